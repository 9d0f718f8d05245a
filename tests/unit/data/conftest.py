"""What the tests of record files share."""

import pytest

from tests.unit.image_sets import make_coco


@pytest.fixture
def coco_root(tmp_path):
    """Ten training images with 0, 1 or 2 boxes."""
    root = tmp_path / "coco"
    make_coco(root, "train2017", 10)
    return root

"""What tests of several folders share."""

import pytest


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A set with labels, see `labelled_set`."""
    from tests.unit.image_sets import labelled_set  # imports OpenCV

    return labelled_set(tmp_path_factory.mktemp("labelled") / "data")

"""Every test process gets the environment that the entry scripts give themselves."""

import pytest

from src.runtime import prepare_process
from tests.helpers import BCCD, LabelledImages

prepare_process()


@pytest.fixture(scope="module")
def graph_mode():
    """Compile graphs in a module's tests, as the entry scripts do; other modules keep what they had."""
    import mindspore as ms  # after the environment is prepared

    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=before)


@pytest.fixture(scope="session")
def labelled_images(tmp_path_factory):
    """Real images of blood cells where they lie beside the project, else generated ones."""
    if BCCD.is_dir():
        return LabelledImages(BCCD, ("RBC", "WBC", "Platelets"))
    from src.tools.sample_data import CLASS_NAMES, SampleSpec, make_sample_data

    root = tmp_path_factory.mktemp("labelled") / "shapes"
    make_sample_data(root, SampleSpec(num_train=40, num_val=12))
    return LabelledImages(root, CLASS_NAMES)

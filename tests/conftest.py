"""Every test process gets the environment that the entry scripts give themselves."""

import pytest

from src.runtime import prepare_process

prepare_process()


@pytest.fixture(scope="module")
def graph_mode():
    """Compile graphs in a module's tests, as the entry scripts do; other modules keep what they had."""
    import mindspore as ms  # after the environment is prepared

    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=before)

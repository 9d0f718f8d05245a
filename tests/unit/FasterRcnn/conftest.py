"""The detector's tests compile graphs, as training and evaluation do."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _in_graph_mode(graph_mode):
    """Use the shared fixture in every module of this folder."""


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """Run a test in both modes."""
    import mindspore as ms  # after the environment is prepared

    ms.set_context(mode={"graph": ms.GRAPH_MODE, "pynative": ms.PYNATIVE_MODE}[request.param])
    yield
    ms.set_context(mode=ms.GRAPH_MODE)

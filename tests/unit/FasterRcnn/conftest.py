"""The detector's tests compile graphs, as training and evaluation do."""
import mindspore as ms
import pytest


@pytest.fixture(scope="session", autouse=True)
def graph_mode():
    """Run every test of this folder in graph mode; other folders keep what they had."""
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=before)

"""The detector's tests compile graphs, as training and evaluation do."""
import pytest


@pytest.fixture(scope="module", autouse=True)
def _in_graph_mode(graph_mode):
    """Use the shared fixture in every module of this folder."""

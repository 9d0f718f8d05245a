"""What tests of several folders share."""

import logging

import pytest


@pytest.fixture
def info(caplog, monkeypatch):
    """What the program says, whether or not another test has set up its log."""
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    caplog.set_level(logging.INFO, logger="src")
    return caplog


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A set with labels, see `labelled_set`."""
    from tests.unit.image_sets import labelled_set  # imports OpenCV

    return labelled_set(tmp_path_factory.mktemp("labelled") / "data")

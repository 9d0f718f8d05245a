"""Fixtures of several test files."""

import logging

import pytest


@pytest.fixture
def info(caplog, monkeypatch):
    """What the program says, whether or not another test has set up its log."""
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    caplog.set_level(logging.INFO, logger="src")
    return caplog

"""A copy of the project that scripts may write into."""

import re

import pytest

from tests.helpers import REPO_ROOT
from tests.scripts.caller import Caller


@pytest.fixture
def project(tmp_path):
    """The project under another name with spaces, without the folders that runs of its own have left."""
    folder = tmp_path / "my project"
    folder.mkdir()
    for path in REPO_ROOT.iterdir():
        if path.name not in (".git", "scripts") and not re.match(r"(train|eval|train_parallel\d+)(\.\d+)?$", path.name):
            (folder / path.name).symlink_to(path)
    (folder / "scripts").mkdir()
    for path in (REPO_ROOT / "scripts").iterdir():
        (folder / "scripts" / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def caller(project, tmp_path):
    return Caller(project, tmp_path / "home" / "my folder")

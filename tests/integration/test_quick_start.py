"""The README's first command on a copy of the project without an environment."""

import json
import shutil
import subprocess

import cv2
import pytest

from tests.helpers import REPO_ROOT


@pytest.mark.slow
def test_quick_start_from_nothing(tmp_path):
    project = tmp_path / "project with spaces"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPO_ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        target = project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO_ROOT / name, target)
    result = subprocess.run(
        ["bash", project / "scripts/quick_start.sh"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=3000,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    run = project / "quick_start" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_images"] == 48
    assert metrics["AP50"] >= 0.80
    images = list((run / "detections").iterdir())
    assert len(images) == 12
    assert all(cv2.imread(str(path)) is not None for path in images)
    assert (run / "loss_0.png").stat().st_size > 0

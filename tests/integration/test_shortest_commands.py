"""The README's shortest commands, as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO_ROOT


def commands() -> list[str]:
    """The lines of the block."""
    text = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("## The shortest commands")[2].partition("```bash\n")[2].partition("```")[0]
    return block.strip().splitlines()


def test_the_shortest_commands_name_no_more_than_they_need():
    """Data, model and the one setting that makes the example short; nothing that a file knows."""
    assert [re.match(r"python (-m )?([\w.]+)", line)[2] for line in commands()] == [
        "src.tools.sample_data",
        "train.py",
        "eval.py",
        "predict.py",
        "export.py",
        "eval_onnx.py",
    ]
    flags = {flag for line in commands()[2:] for flag in re.findall(r"--(\w+)=", line)}
    assert flags == {"checkpoint_path", "coco_root", "model", "input", "ckpt_file", "file_format", "file_name"}


@pytest.mark.slow
def test_the_shortest_commands_run_as_they_stand(tmp_path):
    for path in (*REPO_ROOT.glob("*.py"), *REPO_ROOT.glob("*.yaml"), REPO_ROOT / "src"):
        (tmp_path / path.name).symlink_to(path)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    metrics = []
    for line in commands():
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}"
        assert "WARNING" not in done.stdout, f"{line}\n{done.stdout[-3000:]}"
        if "eval" in line:
            metrics.append(json.loads((tmp_path / "metrics.json").read_text()))
    assert metrics[0]["num_images"] == metrics[1]["num_images"] == 8
    assert metrics[0]["AP50"] == pytest.approx(metrics[1]["AP50"], abs=0.02)
    listed = json.loads((tmp_path / "predictions" / "predictions.json").read_text())["pictures"]
    assert len(listed) == 8 and all(Path(tmp_path, image["drawn"]).is_file() for image in listed)

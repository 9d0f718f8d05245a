"""What several test files need: where the real images lie and how to do without them."""

from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
SHARED = REPO_ROOT.parent / "shared"
BCCD = SHARED / "data" / "bccd"
COCO_SUBSET = SHARED / "data" / "coco_subset"

needs_shared = pytest.mark.skipif(not BCCD.is_dir(), reason=f"the labelled test images are not at {SHARED}/data")

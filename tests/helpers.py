"""What several test files need: labelled images, and the checkpoint of a detector that compiles in seconds."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
SHARED = REPO_ROOT.parent / "shared"
BCCD = SHARED / "data" / "bccd"
COCO_SUBSET = SHARED / "data" / "coco_subset"

needs_shared = pytest.mark.skipif(not BCCD.is_dir(), reason=f"the labelled test images are not at {SHARED}/data")


@dataclass(frozen=True)
class LabelledImages:
    """A data set in COCO layout, with images below train2017 and val2017.

    Attributes:
        root (Path): its folder.
        class_names (tuple[str, ...]): without the background, in the order of the category ids 1, 2, 3.
    """

    root: Path
    class_names: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The classes as the programs take them."""
        return f"--coco_classes={['background', *self.class_names]}"

    def annotations(self, subset: str) -> dict:
        """The annotation file of "train2017" or "val2017"."""
        return json.loads((self.root / "annotations" / f"instances_{subset}.json").read_text())

    def write_part(self, target: Path, subset: str, num_images: int, *, num_boxes: int | None = None) -> list[dict]:
        """Write the first images of a subset as a data set of their own; returns them.

        Args:
            target (Path): its folder, made or added to.
            subset (str): "train2017" or "val2017".
            num_images (int): how many are written.
            num_boxes (int): images with fewer boxes are left out, and so are further boxes. None: all stay.
        """
        content = self.annotations(subset)
        rows = {image["id"]: [] for image in content["images"]}
        for row in content["annotations"]:
            rows[row["image_id"]].append(row)
        content["images"] = [image for image in content["images"] if len(rows[image["id"]]) >= (num_boxes or 0)]
        content["images"] = content["images"][:num_images]
        assert len(content["images"]) == num_images
        content["annotations"] = [row for image in content["images"] for row in rows[image["id"]][:num_boxes]]
        (target / "annotations").mkdir(parents=True, exist_ok=True)
        (target / subset).symlink_to(self.root / subset)
        (target / "annotations" / f"instances_{subset}.json").write_text(json.dumps(content))
        return content["images"]


def write_small_start(path: Path, **options) -> dict:
    """Write random weights of a detector of four narrow blocks; returns every parameter, an array by name.

    Options go to :func:`tests.unit.FasterRcnn.small_detector.config_of`.

    No flag builds so small a ResNet, but a checkpoint notes what it is made of: a program that gets
    ``--pre_trained=PATH --finetune=True`` trains this network.
    """
    import mindspore as ms  # after the environment is prepared

    from src.convert_checkpoint import write_checkpoint
    from src.FasterRcnn import build_detector
    from src.weights.detector_notes import notes_of
    from tests.unit.FasterRcnn.small_detector import config_of

    ms.set_seed(2)
    config = config_of(**options)
    parameters = build_detector(config).parameters_dict()
    write_checkpoint(parameters, path, notes_of(config))
    return {name: value.asnumpy() for name, value in parameters.items()}

"""Small data sets in Pascal VOC layout."""

from pathlib import Path

import cv2
import numpy as np


def xml_object(name="mask", corners=(1, 2, 11, 22), difficult=0) -> str:
    """One `<object>`."""
    x1, y1, x2, y2 = corners
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


def xml_of(file_name, *objects, width=40, height=30) -> str:
    """One XML file, without a declaration."""
    return (
        f"<annotation><filename>{file_name}</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{''.join(objects)}</annotation>"
    )


def add_image(path: Path, value: int = 0) -> None:
    """Write an image of 40 x 30 whose pixels all have one value; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), np.full((30, 40, 3), value, np.uint8))[1].tobytes())


def add_xml(path: Path, file_name: str, *objects: str) -> None:
    """Write the XML file of an image of 40 x 30; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml_of(file_name, *objects), encoding="utf-8")

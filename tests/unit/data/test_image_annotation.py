"""Which boxes are of use, and where they are clipped."""

import numpy as np

from src.data.image_annotation import box_faults


def test_box_faults_and_clipping():
    boxes = np.array(
        [
            [1, 2, 3, 4],  # good
            [5, 5, 5, 9],  # no width
            [9, 9, 4, 12],  # x1 > x2
            [np.nan, 0, 1, 1],
            [0, 0, np.inf, 1],
            [-5, -5, 20, 200],  # partly outside 100 x 80
            [100, 10, 120, 20],  # touches the right edge from outside
            [-9, -9, -1, -1],
        ],
        np.float32,
    )
    faults, clipped = box_faults(boxes, (100, 80))
    assert faults.tolist() == [
        "",
        "no area",
        "no area",
        "not finite",
        "not finite",
        "",
        "outside the image",
        "outside the image",
    ]
    assert clipped[[0, 5]].tolist() == [[1, 2, 3, 4], [0, 0, 20, 80]]
    assert box_faults(boxes)[0].tolist()[5:] == ["", "", ""]

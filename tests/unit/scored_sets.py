"""Ground truth and a model's outputs, for what is scored."""

import numpy as np


def ground_truth(boxes_xywh, *, categories=((1, "cat"),), category=1, first_id=1):
    """COCO dict: `boxes_xywh` maps an image id to its boxes, all of one category."""
    annotations = [
        {"image_id": image_id, "bbox": list(box), "category_id": category}
        for image_id, boxes in boxes_xywh.items()
        for box in boxes
    ]
    for number, annotation in enumerate(annotations, start=first_id):
        annotation |= {"id": number, "area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200} for i in boxes_xywh],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


def outputs(*rows, num_rows=100):
    """Padded outputs (num_rows, 5), (num_rows, 1), (num_rows, 1) of rows (x1, y1, x2, y2, score, label)."""
    boxes, labels = np.zeros((num_rows, 5), np.float32), np.zeros((num_rows, 1), np.int32)
    mask = np.zeros((num_rows, 1), bool)
    for i, (*box, label) in enumerate(rows):
        boxes[i], labels[i], mask[i] = box, label, True
    return boxes, labels, mask

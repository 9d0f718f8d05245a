"""What is measured of an exported ONNX file; see harness.py. Runs without MindSpore."""

import json

import numpy as np
import onnxruntime


def describe(path: str) -> dict:
    """Size of the canvas and number of classes, with the background, that a file of export.py notes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    _, _, height, width = session.get_inputs()[0].shape
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    return {"height": height, "width": width, "num_classes": len(names) + 1}


def inference(path: str, num_threads: int):
    """Detections of one image of noise by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _, _, height, width = session.get_inputs()[0].shape
    image = np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
    metas = np.array([[height, width, 1, 1]], np.float32)
    return lambda: session.run(None, {"image": image, "image_shape": metas}), {}

"""What is measured of this project; see harness.py."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from src.runtime import prepare_process

prepare_process()

import mindspore as ms  # noqa: E402 - reads the environment when it is imported
import numpy as np  # noqa: E402
from mindspore import Tensor, nn, ops  # noqa: E402
from mindspore import dtype as mstype  # noqa: E402

from benchmarks.inputs import LEVEL_STRIDES, NUM_BOXES, pooled_gradient, pyramid, some_images, training_batch  # noqa: E402
from src.model_utils.config import load_config  # noqa: E402

ms.set_context(mode=ms.GRAPH_MODE)
ms.set_seed(1)


def configuration(height: int, width: int, num_classes: int, batch_size: int = 1):
    """The default configuration on another canvas."""
    classes = ["background", *(f"class {number}" for number in range(1, num_classes))]
    return load_config(
        [
            "--device_target=CPU",
            f"--img_height={height}",
            f"--img_width={width}",
            f"--coco_classes={classes}",
            f"--batch_size={batch_size}",
        ]
    )


def train_step(height: int, width: int, batch_size: int, num_classes: int, num_threads: int):
    """One step of training, ResNet-50, the first stage and all batch norms fixed."""
    step, batch = _step_and_batch(height, width, batch_size, num_classes)
    return lambda: [float(loss) for loss in step(*batch)], {}


def graph_compile(height: int, width: int, batch_size: int, num_classes: int, num_threads: int):
    """Compilation of that step, in a new process each time."""
    code = (
        f"import time; from benchmarks.ours import _step_and_batch as make; "
        f"step, batch = make({height}, {width}, {batch_size}, {num_classes}); start = time.perf_counter(); "
        f"step.compile(*batch); print('seconds', time.perf_counter() - start)"
    )

    def run():
        output = subprocess.run([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, check=True).stdout
        return float(output.rsplit("seconds", 1)[1])

    return run, {}


def first_training_step(height: int, width: int, keep_graph: bool, num_threads: int):
    """``python train.py`` on generated images: from the start of the process to the end of its first step."""
    folder = tempfile.TemporaryDirectory()
    data, program = Path(folder.name, "data"), str(Path("train.py").absolute())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "src.tools.sample_data",
            f"--output_dir={data}",
            "--num_train=20",
            "--num_val=1",
            f"--width={width}",
            f"--height={height}",
        ],
        check=True,
        stdout=sys.stderr,
    )
    command = [
        sys.executable,
        program,
        "--device_target=CPU",
        f"--coco_root={data}",
        f"--img_width={width}",
        f"--mindrecord_dir={folder.name}/records",
        f"--img_height={height}",
        "--batch_size=2",
        "--coco_classes=['background','disc','square','star']",
        "--pre_trained=",
        "--frozen_stages=-1",
        "--norm_eval=False",
        "--opt_type=adam",
        "--base_lr=0.0016",
        f"--compile_cache_path={f'{folder.name}/graphs' if keep_graph else ''}",
    ]

    def run():
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=folder.name, text=True, stdout=subprocess.PIPE) as process:
            for line in process.stdout:
                if "first step done" in line:
                    process.kill()
                    return time.perf_counter() - start
        raise SystemExit(f"train.py ended before its first step: {' '.join(command)}")

    # The run to warm up also makes the record files, and the graph to keep; the folder lives as long as the function.
    run.folder = folder
    return run, {}


def _step_and_batch(height: int, width: int, batch_size: int, num_classes: int):
    """The compiled step's cell and a batch for it."""
    from src.FasterRcnn import build_detector
    from src.network_define import build_step
    from src.runtime import Device

    config = configuration(height, width, num_classes, batch_size)
    detector = build_detector(config)
    step = build_step(detector, config, [1e-5] * 1000, Device("CPU"))
    step.set_train()
    image, boxes, labels = training_batch(height, width, batch_size)
    padded = np.zeros((batch_size, config.num_gts, 4), np.float32)
    padded[:, :NUM_BOXES] = boxes
    padded_labels = np.full((batch_size, config.num_gts), -1, np.int32)
    padded_labels[:, :NUM_BOXES] = labels
    valid = padded_labels > 0
    batch = (
        Tensor(image),
        Tensor([[height, width, 1.0]] * batch_size, mstype.float32),
        Tensor(padded),
        Tensor(padded_labels),
        Tensor(valid),
    )
    return step, batch


def inference(height: int, width: int, num_classes: int, num_threads: int):
    """Detections of one image by MindSpore."""
    from src.FasterRcnn import build_detector

    detector = build_detector(configuration(height, width, num_classes))
    detector.set_train(False)
    image = Tensor(np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32))
    metas = Tensor([[height, width, 1.0, 1.0]], mstype.float32)
    return lambda: [output.asnumpy() for output in detector(image, metas)], {}


def roi_align(height: int, width: int, num_rois: int, backward: bool, native: bool, num_threads: int):
    """RoIAlign of a pyramid of one image, perhaps with the gradient of the features for one of the pooled RoIs."""
    from src.FasterRcnn.roi_align import SingleRoIExtractor

    pool = SingleRoIExtractor(7, 2, LEVEL_STRIDES, 56, native=native)
    levels, rois = pyramid(height, width, num_rois)
    rois, levels = Tensor(rois[None]), tuple(Tensor(level) for level in levels)
    if not backward:
        network = _Pooled(pool)
        return lambda: network(rois, *levels).asnumpy(), {}
    network, gradient = _PooledAndGradients(pool), Tensor(pooled_gradient(num_rois))

    def run():
        pooled, gradients = network(rois, gradient, *levels)
        return pooled.asnumpy(), [part.asnumpy() for part in gradients]

    return run, {}


class _Pooled(nn.Cell):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def construct(self, rois, *levels):
        return self.pool(rois, levels)


class _PooledAndGradients(nn.Cell):
    """Pooling is linear: its gradients alone would be computed without it."""

    def __init__(self, pool):
        super().__init__()
        self.pooled = _Pooled(pool)
        self.gradients = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, rois, gradient, *levels):
        return self.pooled(rois, *levels), self.gradients(self.pooled)(rois, *levels, gradient)[1:]


def matrix_product(side: int, num_threads: int):
    """A large float32 matrix product: what the machine can do."""
    matrix = Tensor(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32))
    return lambda: ops.matmul(matrix, matrix).asnumpy(), {"gflop": 2e-9 * side**3}


def convolution(winograd: bool, num_threads: int):
    """A 3x3 convolution of 256 channels on a map of 192x320, as the finest level of the pyramid has.

    The operations counted are those of the definition, which Winograd's algorithm does not need.
    """
    from src.FasterRcnn.winograd import Conv3x3

    rng = np.random.default_rng(0)
    image = Tensor(rng.normal(size=(1, 256, 192, 320)).astype(np.float32))
    network = Conv3x3(256, 256, winograd=winograd, weight_init="ones")
    return lambda: network(image).asnumpy(), {"gflop": 2e-9 * 9 * 256 * 256 * 192 * 320}


def training_images(coco_root: str, height: int, width: int, num_images: int, num_threads: int):
    """Images and boxes from record files to batches for training, everything on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from src.dataset import create_train_dataset, ensure_mindrecord

    folder = tempfile.TemporaryDirectory()
    names, root = some_images(coco_root, num_images, Path(folder.name))
    config = load_config(
        [
            "--device_target=CPU",
            f"--coco_root={root}",
            f"--mindrecord_dir={folder.name}/records",
            f"--coco_classes={['background', *names]}",
            f"--img_height={height}",
            f"--img_width={width}",
            "--batch_size=1",
            "--num_parallel_workers=1",
        ]
    )
    dataset = create_train_dataset(config, ensure_mindrecord(config, training=True))

    def run():
        for _ in dataset.create_tuple_iterator(num_epochs=1):
            pass

    run.folder = folder
    return run, {"images": dataset.get_dataset_size()}


def evaluation_images(folder: str, height: int, width: int, num_images: int, num_threads: int):
    """Decode, resize, normalise: images of a folder on one core."""
    import cv2

    from src.data.image_files import decode_rgb
    from src.data.transforms import Canvas, evaluation_input

    cv2.setNumThreads(0)
    paths, canvas = sorted(Path(folder).glob("*.jpg"))[:num_images], Canvas(width, height, True)

    def run():
        for path in paths:
            evaluation_input(decode_rgb(np.fromfile(path, np.uint8)), canvas)

    return run, {"images": len(paths)}


def coco_scoring(num_images: int, num_detections: int, num_threads: int):
    """The twelve COCO metrics of generated detections: 80 classes, 7 ground truths per image."""
    from src.util import CocoEvaluator

    rng = np.random.default_rng(0)
    truth = {
        "images": [{"id": number, "height": 480, "width": 640} for number in range(num_images)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, 81)],
        "annotations": [],
    }
    for number in range(7 * num_images):
        x, y, w, h = *rng.uniform(0, 300, 2), *rng.uniform(10, 150, 2)
        truth["annotations"].append(
            {
                "id": number + 1,
                "image_id": number // 7,
                "bbox": [x, y, w, h],
                "area": w * h,
                "category_id": int(rng.integers(1, 81)),
                "iscrowd": 0,
            }
        )
    low = rng.uniform(0, 300, (num_images, num_detections, 2))
    boxes = np.concatenate((low, low + rng.uniform(10, 150, low.shape), rng.uniform(size=(*low.shape[:2], 1))), axis=2)
    labels = rng.integers(0, 80, (*boxes.shape[:2], 1))
    mask = np.ones(labels.shape, bool)

    def run():
        evaluator = CocoEvaluator(truth, list(range(1, 81)), "generated")
        evaluator.add(range(num_images), boxes, labels, mask)
        evaluator.summarize(None)

    return run, {}

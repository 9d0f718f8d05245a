"""The pipelines: what reaches the network, which images, in which order."""

import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from src import dataset as dataset_module
from src.data.image_files import ImageError
from src.dataset import create_eval_dataset, create_train_dataset, ensure_mindrecord
from src.model_utils.errors import UserError
from tests.unit.image_sets import config_for, make_coco, rows_of, write_annotations

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])
NO_AUGMENTATION = ["--expand_ratio=0.0", "--flip_ratio=0.0"]
MOSAICS = ("--mosaic_ratio=0.5", "--photometric_ratio=0.5", "--min_scale=0.5")
REPEATS = ("--repeat_thr=0.9",)
every_kind = pytest.mark.parametrize("flags", [(), MOSAICS, REPEATS, MOSAICS + REPEATS], ids=len)


def batches(dataset, num_epochs=1):
    iterator = dataset.create_dict_iterator(num_epochs=num_epochs, output_numpy=True)
    return [list(iterator) for _ in range(num_epochs)]


def train_epochs(config, paths, num_epochs=1, **options):
    return batches(create_train_dataset(config, paths, with_image_id=True, **options), num_epochs)


def ids_of(epoch):
    return [int(image_id) for batch in epoch for image_id in batch["image_id"]]


def images_of(epoch):
    """Every image of an epoch in its order: its id, and all its other columns as bytes."""
    return [
        (int(batch["image_id"][row]), tuple(batch[name][row].tobytes() for name in sorted(batch)))
        for batch in epoch
        for row in range(len(batch["image_id"]))
    ]


def assert_equal_epochs(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for column in one:
            assert np.array_equal(one[column], other[column]), column


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory):
    """Twelve training and seven evaluation images, of which the first, fourth, ... have no boxes."""
    root = tmp_path_factory.mktemp("coco")
    make_coco(root, "train2017", 12)
    make_coco(root, "val2017", 7, first_id=2**40)
    return root


@pytest.fixture(scope="module")
def train_paths(coco_root):
    return ensure_mindrecord(config_for(coco_root), training=True)


@pytest.fixture(scope="module")
def eval_paths(coco_root):
    return ensure_mindrecord(config_for(coco_root), training=False)


# ---- columns


def test_training_columns(coco_root, train_paths):
    dataset = create_train_dataset(config_for(coco_root), train_paths)
    assert dataset.get_col_names() == ["image", "image_shape", "box", "label", "valid_num"]
    assert dataset.get_dataset_size() == 6
    ((batch, *_),) = batches(dataset)
    found = {name: (column.shape, column.dtype.name) for name, column in batch.items()}
    assert found == {
        "image": ((2, 3, 64, 128), "float32"),
        "image_shape": ((2, 3), "float32"),
        "box": ((2, 128, 4), "float32"),
        "label": ((2, 128), "int32"),
        "valid_num": ((2, 128), "bool"),
    }
    assert batch["image_shape"].tolist() == [[64, 128, 1]] * 2


def test_evaluation_columns_and_last_partial_batch(coco_root, eval_paths):
    dataset = create_eval_dataset(config_for(coco_root, "--test_batch_size=4"), eval_paths)
    assert dataset.get_col_names() == ["image", "image_shape", "box", "label", "valid_num", "image_id"]
    ((first, last),) = batches(dataset)
    found = {name: (column.shape, column.dtype.name) for name, column in last.items()}
    assert found == {
        "image": ((3, 3, 64, 128), "float32"),
        "image_shape": ((3, 4), "float32"),
        "box": ((3, 128, 4), "float32"),
        "label": ((3, 128), "int32"),
        "valid_num": ((3, 128), "bool"),
        "image_id": ((3,), "int64"),
    }
    assert ids_of([first, last]) == [2**40 - index for index in range(7)]
    # 40 x 30 images on a canvas of 128 x 64: min(128/40, 64/30) = 2.1333
    np.testing.assert_allclose(last["image_shape"], [[30, 40, 64 / 30, 64 / 30]] * 3, rtol=1e-6)


def test_evaluation_boxes_stay_in_pixels_of_the_image(coco_root, eval_paths):
    ((first, *_),) = batches(create_eval_dataset(config_for(coco_root, "--test_batch_size=3"), eval_paths))
    assert first["valid_num"].sum(axis=1).tolist() == [0, 1, 2]
    assert first["box"][2, :3].tolist() == [[1, 2.5, 9, 11.5], [2, 2.5, 10, 11.5], [0, 0, 0, 0]]
    assert first["label"][2, :3].tolist() == [1, 2, -1]


def test_images_without_boxes_are_trained_on(coco_root, train_paths):
    (epoch,) = train_epochs(config_for(coco_root), train_paths)
    rows = {
        image_id: (valid, label, box)
        for batch in epoch
        for image_id, valid, label, box in zip(
            *(batch[key] for key in ("image_id", "valid_num", "label", "box")), strict=True
        )
    }
    assert sorted(rows) == list(range(89, 101))
    for image_id in (100, 97, 94, 91):  # images 0, 3, 6, 9
        valid, label, box = rows[image_id]
        assert not valid.any()
        assert (label == -1).all()
        assert not box.any()
    assert rows[98][0].sum() == 2


def test_crowd_boxes_are_invalid_rows(tmp_path):
    make_coco(tmp_path, "train2017", 2, boxes_of=lambda index: 3, crowd=lambda number: number == 1)
    config = config_for(tmp_path, *NO_AUGMENTATION)
    ((batch,),) = batches(create_train_dataset(config, ensure_mindrecord(config, training=True)))
    assert batch["valid_num"][:, :4].tolist() == [[True, False, True, False]] * 2
    assert batch["label"][:, :4].tolist() == [[1, 2, 1, -1]] * 2


def test_more_boxes_than_rows(tmp_path):
    make_coco(tmp_path, "train2017", 2, boxes_of=lambda index: 40)
    config = config_for(tmp_path, *NO_AUGMENTATION, "--num_gts=8")
    first, second = batches(create_train_dataset(config, ensure_mindrecord(config, training=True)), num_epochs=2)
    assert first[0]["box"].shape == (2, 8, 4)
    assert first[0]["valid_num"].all()
    assert not np.array_equal(np.sort(first[0]["box"], axis=0), np.sort(second[0]["box"], axis=0))


# ---- order, seeds, shards


def test_each_epoch_has_every_image_in_another_order(coco_root, train_paths):
    first, second = train_epochs(config_for(coco_root), train_paths, num_epochs=2)
    assert sorted(ids_of(first)) == sorted(ids_of(second)) == list(range(89, 101))
    assert ids_of(first) != ids_of(second)
    assert ids_of(first) != list(range(100, 88, -1))


def test_the_seed_decides_order_and_augmentation(coco_root, train_paths):
    (first,) = train_epochs(config_for(coco_root), train_paths)
    (same,) = train_epochs(config_for(coco_root), train_paths)
    (other,) = train_epochs(config_for(coco_root, "--seed=9"), train_paths)
    assert_equal_epochs(first, same)
    assert ids_of(first) != ids_of(other)


def test_no_seed_has_the_order_of_another_ones_epoch(coco_root, train_paths):
    """Also not of its next one, which the sampler's seed + 1 is. Two of 12! orders are equal by no accident."""
    orders = {
        (seed, epoch): tuple(ids_of(batches))
        for seed in (0, 1, 2, 3, 2**32 - 1)
        for epoch, batches in enumerate(train_epochs(config_for(coco_root, f"--seed={seed}"), train_paths, 4))
    }
    assert len(set(orders.values())) == len(orders) == 20


@every_kind
def test_shards_take_turns_in_the_order_of_one_process(coco_root, train_paths, flags):
    """12 images, or 15 with repeats, each the same as in one process."""
    config = config_for(coco_root, "--batch_size=1", "--seed=7", *flags)
    whole = train_epochs(config, train_paths, num_epochs=2)
    shards = [train_epochs(config, train_paths, num_epochs=2, rank=rank, num_shards=3) for rank in range(3)]
    for epoch in range(2):
        turns = zip(*(images_of(shard[epoch]) for shard in shards), strict=True)
        assert [image for turn in turns for image in turn] == images_of(whole[epoch])


def test_the_process_wide_generators_are_left_alone(coco_root, train_paths):
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    train_epochs(config_for(coco_root), train_paths)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@every_kind
def test_workers_do_not_change_what_is_random(coco_root, train_paths, monkeypatch, flags):
    first = train_epochs(config_for(coco_root, *flags), train_paths, num_epochs=2)
    two = config_for(coco_root, *flags, "--num_parallel_workers=2")
    two_threads = train_epochs(two, train_paths, num_epochs=2)
    monkeypatch.setattr(dataset_module, "MIN_WORKERS_FOR_PROCESSES", 1)
    two_processes = train_epochs(two, train_paths, num_epochs=2)
    for epoch in range(2):
        assert_equal_epochs(first[epoch], two_threads[epoch])
        assert_equal_epochs(first[epoch], two_processes[epoch])


def test_workers_are_held_to_the_cores(coco_root, train_paths):
    (epoch,) = train_epochs(config_for(coco_root, "--num_parallel_workers=64"), train_paths)
    assert len(ids_of(epoch)) == 12


@every_kind
def test_training_goes_on_with_the_epochs_it_would_have_had(coco_root, train_paths, flags):
    config = config_for(coco_root, *flags)
    whole = train_epochs(config, train_paths, num_epochs=4)
    resumed = train_epochs(config, train_paths, num_epochs=2, first_epoch=2)
    assert_equal_epochs(whole[2], resumed[0])
    assert_equal_epochs(whole[3], resumed[1])


def test_an_epoch_augments_the_same_image_differently(coco_root, train_paths):
    first, second = train_epochs(config_for(coco_root), train_paths, num_epochs=2)
    images = [
        dict(zip(ids_of(epoch), (image for batch in epoch for image in batch["image"]), strict=True))
        for epoch in (first, second)
    ]
    same = [np.array_equal(images[0][image_id], images[1][image_id]) for image_id in images[0]]
    assert not all(same)


def test_two_shards_are_disjoint_and_complete(coco_root, train_paths):
    config = config_for(coco_root)
    shards = [train_epochs(config, train_paths, num_epochs=3, rank=rank, num_shards=2) for rank in range(2)]
    for first, second in zip(*shards, strict=True):
        assert len(first) == len(second) == 3
        assert not set(ids_of(first)) & set(ids_of(second))
        assert sorted(ids_of(first) + ids_of(second)) == list(range(89, 101))


def test_uneven_shards_take_equal_steps_and_no_image_twice(coco_root, train_paths):
    config = config_for(coco_root, "--batch_size=1")
    shards = [train_epochs(config, train_paths, num_epochs=3, rank=rank, num_shards=5) for rank in range(5)]
    left_out = set()
    for epochs in zip(*shards, strict=True):
        assert [len(epoch) for epoch in epochs] == [2] * 5  # 12 // 5
        ids = [image_id for epoch in epochs for image_id in ids_of(epoch)]
        assert len(set(ids)) == 10
        left_out |= set(range(89, 101)) - set(ids)
    assert len(left_out) > 2  # not the same two in every epoch


def test_training_drops_the_last_partial_batch(coco_root, train_paths):
    (epoch,) = train_epochs(config_for(coco_root, "--batch_size=5"), train_paths)
    assert [len(batch["image"]) for batch in epoch] == [5, 5]


@pytest.mark.parametrize(("batch_size", "num_shards", "each"), [(13, 1, 12), (4, 4, 3)])
def test_fewer_images_than_a_batch_is_an_error(coco_root, train_paths, batch_size, num_shards, each):
    config = config_for(coco_root, f"--batch_size={batch_size}")
    with pytest.raises(UserError, match=f"12 training images .* {each} for each, fewer than batch_size {batch_size}"):
        create_train_dataset(config, train_paths, num_shards=num_shards)


# ---- mosaics, repeats, and that settings reach the images


def changed_share(coco_root, paths, flag):
    """The share of images that look otherwise than without augmentation, of ten epochs."""
    (plain,) = train_epochs(config_for(coco_root, *NO_AUGMENTATION), paths)
    expected = dict(images_of(plain))
    epochs = train_epochs(config_for(coco_root, *NO_AUGMENTATION, flag), paths, num_epochs=10)
    return np.mean([expected[image_id] != columns for epoch in epochs for image_id, columns in images_of(epoch)])


@pytest.mark.parametrize(
    ("flag", "share"),
    [
        ("--mosaic_ratio=1", 1.0),
        ("--mosaic_ratio=0.4", 0.4),
        ("--photometric_ratio=1", 15 / 16),
        ("--photometric_ratio=0.4", 0.4 * 15 / 16),
        ("--expand_ratio=1", 0.5),
        ("--expand_ratio=0.4", 0.2),
        ("--flip_ratio=0.4", 0.4),
        ("--min_scale=0.5", 1.0),
    ],
)
def test_every_probability_is_that_of_its_key(coco_root, train_paths, flag, share):
    found = changed_share(coco_root, train_paths, flag)
    # four standard deviations of a share of 120; a min_scale near 1 rounds to the canvas of before
    assert found == pytest.approx(share, abs=0.02 + 4 * np.sqrt(share * (1 - share) / 120))


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_mosaics_of_fewer_than_four_images(tmp_path, num_images):
    make_coco(tmp_path, "train2017", num_images, boxes_of=lambda index: 1)
    config = config_for(tmp_path, *NO_AUGMENTATION, "--mosaic_ratio=1", "--batch_size=1")
    epochs = train_epochs(config, ensure_mindrecord(config, training=True), num_epochs=5)
    valid = [int(batch["valid_num"].sum()) for epoch in epochs for batch in epoch]
    assert len(valid) == 5 * num_images
    assert 1 < max(valid) <= 4  # more than the one box of the image itself, at most those of four


def test_mosaics_take_boxes_labels_and_crowds_of_all_images(tmp_path):
    """Images have a cat alone, or a dog that is a crowd besides: mosaics have more of both."""
    make_coco(tmp_path, "train2017", 8, boxes_of=lambda index: 1 + index % 2, crowd=lambda number: number == 1)
    config = config_for(tmp_path, *NO_AUGMENTATION, "--mosaic_ratio=1")
    epochs = train_epochs(config, ensure_mindrecord(config, training=True), num_epochs=5)
    labels, valid = (
        np.concatenate([batch[name] for epoch in epochs for batch in epoch]) for name in ("label", "valid_num")
    )
    assert (valid == (labels == 1)).all()  # cats count, crowds and padding do not
    assert ((labels == 1).sum(axis=1) <= 4).all()
    assert (labels == 1).sum(axis=1).max() > 2
    assert (labels == 2).sum(axis=1).max() > 1


def test_mosaics_have_other_partners_in_every_epoch(coco_root, train_paths):
    config = config_for(coco_root, *NO_AUGMENTATION, "--mosaic_ratio=1")
    looks = [columns for epoch in train_epochs(config, train_paths, num_epochs=3) for _, columns in images_of(epoch)]
    assert len(set(looks)) == 36


def test_the_order_of_the_records_decides_nothing(coco_root, train_paths):
    """Another conversion of the same images has another order, as have the files when they are turned round."""
    config = config_for(coco_root, *MOSAICS, *REPEATS)
    for first, second in zip(
        *(train_epochs(config, paths, 2) for paths in (train_paths, train_paths[::-1])), strict=True
    ):
        assert_equal_epochs(first, second)


def test_rare_classes_are_repeated(coco_root, train_paths, caplog):
    """8 of 12 images have a cat, 4 of them a dog: sqrt(0.9 / (2/3)) = 1.162, sqrt(0.9 / (1/3)) = 1.643.

    4 x 1 + 4 x 1.162 + 4 x 1.643 = 15.2 images.
    """
    caplog.set_level("INFO", "src.dataset")
    config = config_for(coco_root, "--batch_size=1", "--repeat_thr=0.9")
    dataset = create_train_dataset(config, train_paths, with_image_id=True)
    assert caplog.messages == [
        "repeat_thr 0.9: an epoch has 15 images, made from 12; repeated: "
        "dog 1.64 times (in 33.3 % of the images); cat 1.16 times (in 66.7 % of the images)"
    ]
    assert dataset.get_dataset_size() == 15
    counts = np.array([np.bincount(np.array(ids_of(epoch)) - 89, minlength=12) for epoch in batches(dataset, 60)])
    assert (counts.sum(axis=1) == 15).all()
    assert (counts >= 1).all()
    num_boxes = np.arange(11, -1, -1) % 3  # of the ids 89, 90, ...
    assert (counts[:, num_boxes == 0] == 1).all()
    # 3 of 3.22 fractions are drawn; four standard deviations of a mean of 240 are 0.13
    assert counts[:, num_boxes == 1].mean() == pytest.approx(1 + 0.162 * 3 / 3.22, abs=0.1)
    assert counts[:, num_boxes == 2].mean() == pytest.approx(1 + 0.643 * 3 / 3.22, abs=0.13)
    assert len({tuple(row) for row in counts}) > 20


def test_an_image_that_comes_again_looks_otherwise(coco_root, train_paths):
    config = config_for(coco_root, "--batch_size=1", "--repeat_thr=1", "--photometric_ratio=1")
    (epoch,) = train_epochs(config, train_paths)
    images = images_of(epoch)
    assert len(images) > len({image_id for image_id, _ in images})
    assert len(images) == len(set(images))


def test_crowds_make_no_class_rare(tmp_path, caplog):
    """Dogs are in one image of 4 as boxes, in all others as crowds."""
    caplog.set_level("INFO", "src.dataset")
    content = make_coco(tmp_path, "train2017", 4, boxes_of=lambda index: 2)
    for row in content["annotations"]:
        row["iscrowd"] = int(row["category_id"] == 11 and row["image_id"] != 100)
    write_annotations(tmp_path, "train2017", content)
    config = config_for(tmp_path, "--repeat_thr=1")
    dataset = create_train_dataset(config, ensure_mindrecord(config, training=True))
    assert caplog.messages[-1] == (
        "repeat_thr 1: an epoch has 5 images, made from 4; repeated: dog 2.00 times (in 25 % of the images)"
    )
    assert dataset.get_dataset_size() == 2


def test_a_threshold_below_all_classes_says_so(coco_root, train_paths, caplog):
    caplog.set_level("INFO", "src.dataset")
    (epoch,) = train_epochs(config_for(coco_root, "--repeat_thr=0.2"), train_paths)
    assert caplog.messages == [
        "repeat_thr 0.2: an epoch has 12 images, made from 12; repeated: none, every class is in more of the images"
    ]
    assert sorted(ids_of(epoch)) == list(range(89, 101))


def test_processes_do_not_share_the_place_in_a_record_file(train_paths):
    """A forked process that read by the files of its parent would move the parent's place in them."""

    def places():
        open_files = {path: os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()}
        return {
            path.name: Path("/proc/self/fdinfo", path.name).read_text().splitlines()[0]
            for path, target in open_files.items()
            if target in {os.path.realpath(record) for record in train_paths}
        }

    reader = dataset_module.RecordReader(train_paths, 3)
    expected = [reader[row][1] for row in range(12)]
    before = places()
    assert before
    backwards = range(11, -1, -1)  # ends at the one end of each file, the parent at the other
    process = multiprocessing.get_context("fork").Process(target=lambda: [reader[row] for row in backwards])
    process.start()
    process.join()
    assert process.exitcode == 0
    assert places() == before
    assert [reader[row][1] for row in range(12)] == expected == list(range(89, 101))


# ---- faults


def test_an_error_in_a_partner_names_the_partner(tmp_path, monkeypatch):
    make_coco(tmp_path, "train2017", 2, boxes_of=lambda index: 1)
    config = config_for(tmp_path, "--mosaic_ratio=1", "--batch_size=1")
    paths = ensure_mindrecord(config, training=True)
    content = {int(row["image_id"]): row["image"].tobytes() for row in rows_of(paths)}
    decode = dataset_module.decode_rgb

    def broken(data):
        if data.tobytes() == content[99]:
            raise ImageError("is damaged or cut off")
        return decode(data)

    monkeypatch.setattr(dataset_module, "decode_rgb", broken)
    reader = dataset_module.RecordReader(paths, 3)
    prepare = dataset_module.TrainPreparation(
        dataset_module.Canvas(128, 64),
        8,
        1,
        {"expand_ratio": 0.0, "flip_ratio": 0.0},
        mosaic_ratio=1.0,
        partners=dataset_module.MosaicPartners(reader, np.ones(2)),
    )
    with pytest.raises(RuntimeError, match="the image with image id 99: is damaged"):
        for epoch in range(20):  # each has three draws of two images
            prepare.prepared(reader[1], epoch)


@pytest.mark.parametrize("processes", [False, True])
def test_an_error_names_the_image(coco_root, eval_paths, monkeypatch, processes):
    def broken(data):
        raise ImageError("is damaged or cut off")

    monkeypatch.setattr(dataset_module, "decode_rgb", broken)
    if processes:
        monkeypatch.setattr(dataset_module, "MIN_WORKERS_FOR_PROCESSES", 1)
    config = config_for(coco_root)
    with pytest.raises(RuntimeError, match=rf"image id {2**40}: is damaged"):
        batches(create_eval_dataset(config, eval_paths))


# ---- a whole set, against a computation of its own


@pytest.fixture(scope="module")
def config_of(labelled, tmp_path_factory):
    """Builds configurations of the labelled set; they share its records."""
    folder = tmp_path_factory.mktemp("labelled_records")

    def build(*flags):
        return config_for(labelled.root, *flags, mindrecord_dir=folder, classes=labelled.classes)

    return build


def content_of(labelled, subset):
    return json.loads((labelled.root / "annotations" / f"instances_{subset}.json").read_text())


def test_evaluation_returns_every_image_in_batches_of_five(labelled, config_of):
    config = config_of("--test_batch_size=5")
    (epoch,) = batches(create_eval_dataset(config, ensure_mindrecord(config, training=False)))
    full, rest = divmod(labelled.num_val, 5)
    assert rest == 2
    assert [len(batch["image"]) for batch in epoch] == [5] * full + [2]
    content = content_of(labelled, "val2017")
    assert ids_of(epoch) == [image["id"] for image in content["images"]]
    valid = sum(int(batch["valid_num"].sum()) for batch in epoch)
    assert valid == len(content["annotations"]) == labelled.num_val_boxes


def test_training_sample_against_plain_numpy(labelled, config_of):
    """Every image is flipped, none expanded: image 5 through OpenCV and numpy alone."""
    config = config_of("--expand_ratio=0.0", "--flip_ratio=1.0", "--img_width=320", "--img_height=192")
    paths = ensure_mindrecord(config, training=True)
    (epoch,) = train_epochs(config, paths)
    assert len(epoch) == labelled.num_train // 2  # batches of 2
    batch, row = next((batch, ids_of([batch]).index(5)) for batch in epoch if 5 in ids_of([batch]))

    content = content_of(labelled, "train2017")
    name = next(image["file_name"] for image in content["images"] if image["id"] == 5)
    pixels = cv2.imread(str(labelled.root / "train2017" / name))[:, :, ::-1]
    scale = 192 / len(pixels)  # 640 x 480 by 0.4, or 320 x 240 by 0.8
    padded = np.zeros((192, 320, 3))
    padded[:, :256] = cv2.resize(np.ascontiguousarray(pixels), (256, 192))
    expected = ((padded - MEAN) / STD)[:, ::-1].transpose(2, 0, 1)
    np.testing.assert_allclose(batch["image"][row], expected, atol=1e-5)

    boxes = np.array([item["bbox"] for item in content["annotations"] if item["image_id"] == 5])
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.minimum(boxes * scale, [255, 191, 255, 191])
    flipped = np.stack([319 - boxes[:, 2], boxes[:, 1], 319 - boxes[:, 0], boxes[:, 3]], axis=1)
    np.testing.assert_allclose(batch["box"][row, : len(boxes)], flipped, atol=1e-4)
    assert batch["valid_num"][row].sum() == len(boxes) > 0
    # the category ids are 1, 2, 3 in the order of the classes
    assert batch["label"][row, : len(boxes)].tolist() == [
        item["category_id"] for item in content["annotations"] if item["image_id"] == 5
    ]


def test_evaluation_sample_against_plain_numpy(labelled, config_of):
    config = config_of("--img_width=1280", "--img_height=768")
    first = next(
        create_eval_dataset(config, ensure_mindrecord(config, training=False)).create_dict_iterator(
            num_epochs=1, output_numpy=True
        )
    )
    name = content_of(labelled, "val2017")["images"][0]["file_name"]
    image = cv2.imread(str(labelled.root / "val2017" / name))[:, :, ::-1]
    padded = np.zeros((768, 1280, 3))
    padded[:, :1024] = cv2.resize(np.ascontiguousarray(image), (1024, 768))
    np.testing.assert_allclose(first["image"][0], ((padded - MEAN) / STD).transpose(2, 0, 1), atol=1e-5)
    np.testing.assert_allclose(
        first["image_shape"][0], [*image.shape[:2], 768 / len(image), 768 / len(image)], rtol=1e-6
    )

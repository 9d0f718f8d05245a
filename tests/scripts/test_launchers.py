"""Scripts of one device, against a stub of python that records what it is called with, and on CPU for real."""

import json
import re
import signal
import subprocess
import time

import pytest

from tests.helpers import write_small_start

# What follows the program's name, {} standing for the caller's folder; the environment that it sees; the folder.
TRAIN = ["--backbone=resnet_v1_101", "--coco_root={}/my coco", "--pre_trained={}/it's.ckpt"]
EVAL = [
    "--anno_path={}/val.json",
    "--checkpoint_path={}/it's.ckpt",
    "--backbone=resnet_v1_101",
    "--coco_root={}/my coco",
]
TRAIN_ARGUMENTS = ["it's.ckpt", "resnet_v1_101", "my coco"]
EVAL_ARGUMENTS = ["val.json", "it's.ckpt", "resnet_v1_101", "my coco"]
ON_ASCEND, ON_GPU = {"DEVICE_ID": "3"}, {"CUDA_VISIBLE_DEVICES": "3", "DEVICE_ID": "0"}
SCRIPTS = {
    "run_standalone_train_ascend.sh": (
        [*TRAIN_ARGUMENTS, "3"],
        ["train.py", "--device_target=Ascend", *TRAIN],
        ON_ASCEND,
        "train",
    ),
    "run_standalone_train_gpu.sh": (
        [*TRAIN_ARGUMENTS, "3"],
        ["train.py", "--device_target=GPU", *TRAIN],
        ON_GPU,
        "train",
    ),
    "run_standalone_train_cpu.sh": (TRAIN_ARGUMENTS, ["train.py", "--device_target=CPU", *TRAIN], {}, "train"),
    "run_eval_ascend.sh": ([*EVAL_ARGUMENTS, "3"], ["eval.py", "--device_target=Ascend", *EVAL], ON_ASCEND, "eval"),
    "run_eval_gpu.sh": ([*EVAL_ARGUMENTS, "3"], ["eval.py", "--device_target=GPU", *EVAL], ON_GPU, "eval"),
    "run_eval_cpu.sh": (EVAL_ARGUMENTS, ["eval.py", "--device_target=CPU", *EVAL], {}, "eval"),
    "run_eval_onnx.sh": (
        EVAL_ARGUMENTS,
        ["eval_onnx.py", *(flag.replace("checkpoint_path", "file_name") for flag in EVAL)],
        {},
        "eval",
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_environment_and_folder(caller, script):
    arguments, program, environment, folder = SCRIPTS[script]
    result = caller(script, *arguments)
    assert result.returncode == 0, result.stderr
    found, (device_id, visible, cwd) = caller.recorded()
    name, *flags = (word.format(caller.folder) for word in program)
    assert found == [str(caller.project / name), *flags]
    assert (device_id, visible) == (
        environment.get("DEVICE_ID", "unset"),
        environment.get("CUDA_VISIBLE_DEVICES", "unset"),
    )
    assert cwd == str(caller.project / folder)
    log = {"train.py": "train.log", "eval.py": "eval.log", "eval_onnx.py": "eval_onnx.log"}[name]
    assert "the program's output\n" in result.stdout
    assert (caller.project / folder / log).read_text() == "the program's output\n"
    assert str((caller.project / folder / "log").readlink()) == log


@pytest.mark.parametrize("script", SCRIPTS)
def test_optional_arguments(caller, script):
    arguments, program, _, _ = SCRIPTS[script]
    result = caller(
        script,
        *arguments,
        "new records",
        "--epoch_size=1",
        "--config_path=mine.yaml",
        "--recipe=scratch",
        "--coco_classes=['background','a b']",
    )
    assert result.returncode == 0, result.stderr
    assert caller.recorded()[0][len(program) :] == [
        f"--mindrecord_dir={caller.folder}/new records",
        "--epoch_size=1",
        f"--config_path={caller.folder}/mine.yaml",
        "--recipe=scratch",
        "--coco_classes=['background','a b']",
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_users_device_takes_precedence_over_the_launchers(caller, script):
    arguments, program, _, _ = SCRIPTS[script]
    for flag in ("--device_target=GPU", "--device_target=CPU"):  # another one, or the launcher's once more
        result = caller(script, *arguments, "--epoch_size=1", flag)
        assert result.returncode == 0, result.stderr
        found = caller.recorded()[0]
        assert found[1:] == [
            *(word.format(caller.folder) for word in program[1:] if "device_target" not in word),
            "--epoch_size=1",
            flag,
        ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_given_twice_stays_so_for_the_program_to_refuse(caller, script):
    """An argument's flag, and the user's own flags."""
    arguments, program, _, _ = SCRIPTS[script]
    caller(script, *arguments, "--coco_root=another", "--device_target=GPU", "--device_target=CPU")
    found = caller.recorded()[0]
    assert found[-3:] == ["--coco_root=another", "--device_target=GPU", "--device_target=CPU"]
    assert (
        f"--coco_root={caller.folder}/my coco" in found
        and len(found) == len([word for word in program if "device_target" not in word]) + 3
    )


def test_text_annotations_of_a_flag_are_the_callers(caller):
    caller(
        "run_standalone_train_cpu.sh", *TRAIN_ARGUMENTS, "--dataset=other", "--image_dir=my coco", "--anno_path=a.txt"
    )
    assert caller.recorded()[0][-2:] == [f"--image_dir={caller.folder}/my coco", f"--anno_path={caller.folder}/a.txt"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_use_shows_the_usage(caller, script):
    arguments, _, _, folder = SCRIPTS[script]
    for wrong in (arguments[:-1], [*arguments, "records", "one more"], [*arguments, "--flag"]):
        result = caller(script, *wrong)
        assert result.returncode == 2
        assert result.stderr.startswith(f"Usage: {script} ")
    assert not (caller.project / folder).exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_named(caller, script):
    arguments, _, _, folder = SCRIPTS[script]
    for position, argument in enumerate(arguments):
        wrong = [*arguments[:position], f"no {argument}", *arguments[position + 1 :]]
        result = caller(script, *wrong)
        assert result.returncode == 1
        assert re.match(rf"ERROR: [A-Z_]+: 'no {re.escape(argument)}' is ", result.stderr)
    assert not (caller.project / folder).exists()


def test_no_weights_are_random_weights(caller):
    assert caller("run_standalone_train_cpu.sh", "", "resnet_v1.5_50", "my coco").returncode == 0
    assert "--pre_trained=" in caller.recorded()[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_programs_exit_code_is_the_scripts(caller, script):
    assert caller(script, *SCRIPTS[script][0], STUB_EXIT="7").returncode == 7


def test_an_older_run_is_kept(caller):
    for _ in range(2):
        caller("run_eval_cpu.sh", *EVAL_ARGUMENTS)
        (caller.project / "eval" / "note").write_text("mine")
    assert (caller.project / "eval.1" / "note").read_text() == "mine"


def test_detached_it_runs_on_by_itself(caller):
    result = caller("run_standalone_train_cpu.sh", *TRAIN_ARGUMENTS, "--detach", STUB_EXIT="7")
    assert result.returncode == 0
    assert "the program's output" not in result.stdout
    log = caller.project / "train" / "train.log"
    assert re.fullmatch(
        rf"process \d+ runs in the background; its output goes to {re.escape(str(log))}\n", result.stdout
    )
    for _ in range(100):
        if log.read_text():
            break
        time.sleep(0.1)
    assert log.read_text() == "the program's output\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_program(caller, number):
    """The program has taken the place of the shell, so nothing stands between."""
    script = caller.project / "scripts" / "run_standalone_train_cpu.sh"
    launcher = subprocess.Popen(
        # Tests that a shell has started in the background inherit that Ctrl-C is ignored.
        ["env", "--default-signal=INT", "bash", script, *TRAIN_ARGUMENTS],
        cwd=caller.folder,
        stdout=subprocess.PIPE,
        env=caller.environment | {"STUB_WAIT": "60"},
        text=True,
    )
    assert launcher.stdout.readline() == "the program's output\n"
    launcher.send_signal(number)
    assert launcher.wait(30) == -number
    launcher.stdout.close()


# --- for real ---------------------------------------------------------------------------------------------------------

SIZES = ("--img_width=192", "--img_height=128", "--compile_cache_path=")


def test_train_and_evaluate_on_this_processor(caller, labelled_images):
    """Two steps on real images where there are any, then the checkpoint on three others."""
    root = caller.folder / "cells"
    labelled_images.write_part(root, "train2017", 4)
    labelled_images.write_part(root, "val2017", 3)
    write_small_start(caller.folder / "small.ckpt")
    del caller.environment["VIRTUAL_ENV"]  # the project's own environment

    def launch(script, *arguments):
        done = subprocess.run(
            ["bash", caller.project / "scripts" / script, *arguments, *SIZES, labelled_images.flag],
            cwd=caller.folder,
            env=caller.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    own = ("--finetune=True", "--frozen_stages=-1", "--norm_eval=False", "--epoch_size=1")
    launch("run_standalone_train_cpu.sh", "small.ckpt", "resnet_v1.5_50", "cells", "records", *own)
    checkpoint = caller.project / "train" / "ckpt_0" / "faster_rcnn-1_2.ckpt"
    assert len((caller.project / "train" / "loss_0.log").read_text().splitlines()) == 2
    annotations = "cells/annotations/instances_val2017.json"
    said = launch("run_eval_cpu.sh", annotations, checkpoint, "resnet_v1.5_50", "cells", "records")
    assert "Result on cells dataset" in said
    assert json.loads((caller.project / "eval" / "metrics.json").read_text())["num_images"] == 3

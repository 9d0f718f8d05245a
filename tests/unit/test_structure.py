"""What holds for the source as a whole: who imports whom, size of functions, docstrings, silent imports."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import REPO_ROOT

SOURCES = sorted((REPO_ROOT / "src").rglob("*.py"))
ENTRY_SCRIPTS = sorted(REPO_ROOT.glob("*.py"))
ENTRY_NAMES = {"train", "eval", "eval_onnx", "export", "postprocess", "predict"}
OPTIONAL_PACKAGES = {"onnxruntime", "onnx", "moxing", "matplotlib", "tensorboardX"}
# Modules about ONNX alone: they may import it at their top, so nobody may import them there.
ONNX_MODULES = {"src.deploy.onnx_graph", "src.deploy.onnx_quantize"}
# The parts of the detector that the stages are built of.
BASICS = {"target_assign", "box_ops", "anchor_generator", "graph_ops", "rows", "sparse_product", "winograd"}
# What else one stage may import from another.
LENT = {("rpn", "bbox_assign_sample"), ("resnet50v1", "resnet")}
# The packages and the modules directly in src, from the ground up: each imports itself and lower floors alone.
FLOORS = (
    {"model_utils", "FasterRcnn"},
    {"common", "runtime", "lr_schedule"},
    {"data", "util"},
    {"dataset", "weights"},
    {"convert_checkpoint"},
    {"deploy", "training"},
    {"predict", "network_define"},
    {"evaluation"},
    {"tools"},
)
# Names of 0.2 that only forward.
FORWARDING = {"voc_to_coco", "sample_data", "check_env", "plot_losses"}
MAX_MODULES_IN_SRC = 10
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_LINES = 50


def module_name(path: Path) -> str:
    """src/model_utils/config.py is src.model_utils.config; a package has the name of its folder."""
    parts = path.relative_to(REPO_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


TREES = {path: tree_of(path) for path in [*SOURCES, *ENTRY_SCRIPTS]}
MODULES = {module_name(path) for path in SOURCES}


def imports_of(tree: ast.AST, module: str, *, package: bool = False) -> Iterator[tuple[str, ast.AST]]:
    """Every module that is imported anywhere below the node, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*parents, base]).rstrip(".")
            # "from src import util" and "from src.util import evaluate" both need the module src.util.
            names = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES]
            for name in names or [base]:
                yield name, node


def imported_by(path: Path) -> set[str]:
    return {name for name, _ in imports_of(TREES[path], module_name(path), package=path.name == "__init__.py")}


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "src"}


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(REPO_ROOT)}:{node.lineno}"


# ---- imports point one way


def test_the_detector_imports_its_own_parts_mindspore_and_numpy_only():
    wrong = []
    for path in SOURCES:
        if not below(module_name(path), "src.FasterRcnn"):
            continue
        wrong += [
            f"{module_name(path)} imports {name}"
            for name in imported_by(path)
            if not below(name, "src.FasterRcnn")
            and name.split(".")[0] not in {"mindspore", "numpy", *sys.stdlib_module_names}
        ]
    assert wrong == []


def test_model_utils_imports_nothing_of_ours_but_itself():
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in SOURCES
        if below(module_name(path), "src.model_utils")
        for name in ours(imported_by(path))
        if not below(name, "src.model_utils")
    ]
    assert wrong == []


def test_stages_of_the_detector_import_neither_the_detector_nor_each_other():
    wrong = []
    for path in SOURCES:
        short = path.stem
        if path.parent.name != "FasterRcnn" or short == "__init__" or short.startswith("faster_rcnn"):
            continue
        parts = {name.removeprefix("src.FasterRcnn.") for name in ours(imported_by(path))}
        wrong += [f"{short} imports {part}" for part in parts if part not in BASICS and (short, part) not in LENT]
    assert wrong == []


def test_every_import_leads_down():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    assert parts == set(floor) | FORWARDING
    wrong = []
    for path in SOURCES:
        part = ".".join(module_name(path).split(".")[1:2])
        targets = {name.split(".")[1] for name in ours(imported_by(path)) if "." in name} - {part}
        wrong += [f"{module_name(path)} imports {target}" for target in targets if floor[target] >= floor[part]]
    assert wrong == []


def test_few_modules_lie_directly_in_src():
    modules = {path.stem for path in (REPO_ROOT / "src").glob("*.py")} - {"__init__"}
    assert len(modules) <= MAX_MODULES_IN_SRC


def test_nothing_imports_an_entry_script():
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in SOURCES
        for name in imported_by(path)
        if name.split(".")[0] in ENTRY_NAMES
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others():
    """Imports for type hints alone count too: modules that need each other's types are one module."""
    graph = {module_name(path): imported_by(path) & MODULES - {module_name(path)} for path in SOURCES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for target in graph[module]:
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_every_import_of_ours_exists():
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in TREES
        for name in ours(imported_by(path))
        if name not in MODULES
    ]
    assert wrong == []


def test_optional_packages_are_imported_where_they_are_needed():
    wrong = []
    for path, tree in TREES.items():
        inside = {
            id(node) for function in ast.walk(tree) if isinstance(function, FUNCTIONS) for node in ast.walk(function)
        }
        wrong += [
            f"{place(path, node)} imports {name}"
            for name, node in imports_of(tree, module_name(path))
            if id(node) not in inside
            and not (module_name(path) in ONNX_MODULES and name.split(".")[0] == "onnx")
            and (
                name.split(".")[0] in OPTIONAL_PACKAGES
                or (name in ONNX_MODULES and module_name(path) not in ONNX_MODULES)
            )
        ]
    assert wrong == []


@pytest.mark.parametrize("path", ENTRY_SCRIPTS, ids=lambda path: path.name)
def test_entry_script_prepares_the_process_before_mindspore_is_imported(path):
    top = ast.Module([node for node in TREES[path].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    first = {name for name, _ in imports_of(top, module_name(path))}
    assert ours(first) <= {
        "src.runtime",
        "src.model_utils.config",
        "src.model_utils.config_checks",
        "src.model_utils.errors",
    }
    assert "mindspore" not in {name.split(".")[0] for name in first}


# ---- style that ruff does not hold


def test_nothing_is_printed_below_src():
    wrong = [
        place(path, node)
        for path in SOURCES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert wrong == []


def lines_without_docstring(function: ast.FunctionDef) -> int:
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_no_function_is_longer_than_fifty_lines():
    wrong = [
        f"{place(path, node)} {node.name}: {lines_without_docstring(node)} lines"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS) and lines_without_docstring(node) > MAX_LINES
    ]
    assert wrong == []


def test_the_losses_of_the_detector_read_as_one_flow():
    """Where a processor has its own way, the parts choose it when they are built."""
    path = REPO_ROOT / "src" / "FasterRcnn" / "faster_rcnn_resnet.py"
    losses = next(node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef) and node.name == "losses")
    code = losses.body[1:]
    assert ast.get_docstring(losses) and code[-1].end_lineno - code[0].lineno + 1 <= 16
    assert [place(path, node) for node in ast.walk(losses) if isinstance(node, ast.If | ast.IfExp)] == []
    called = {node.attr for node in ast.walk(losses) if isinstance(node, ast.Attribute)}
    assert not called & {"depend", "stop_gradient"}


def test_no_handler_catches_everything():
    """Bare, Exception and BaseException hide bugs; with a bare raise as its last line a handler only cleans up."""
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"bare"}
            last = node.body[-1]
            passes_on = isinstance(last, ast.Raise) and last.exc is None
            if names & {"bare", "Exception", "BaseException"} and not passes_on:
                wrong.append(place(path, node))
    assert wrong == []


CLASSES = {node.name: node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def is_explained_above(method: ast.FunctionDef, owner: ast.ClassDef) -> bool:
    """Whether a base class of ours holds the docstring of the method that is overridden."""
    bases = [CLASSES[base.id] for base in owner.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    return any(
        is_explained_above(method, base)
        or any(
            isinstance(node, FUNCTIONS) and node.name == method.name and ast.get_docstring(node) for node in base.body
        )
        for base in bases
    )


def public_things(tree: ast.Module) -> Iterator[ast.AST]:
    """The module, its public functions and classes, and their public methods but construct (told by its class)."""
    yield tree
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    method
                    for method in node.body
                    if isinstance(method, FUNCTIONS)
                    and not method.name.startswith("_")
                    and method.name != "construct"
                    and not is_explained_above(method, node)
                )


def test_everything_public_has_a_docstring():
    wrong = [
        f"{path.relative_to(REPO_ROOT)}: {getattr(node, 'name', 'the module')}"
        for path, tree in TREES.items()
        for node in public_things(tree)
        if not ast.get_docstring(node)
    ]
    assert wrong == []


# ---- importing has no side effect

IMPORT_ALL = """
import json, logging, os, sys
from pathlib import Path
names = sys.argv[1].split(",")
# What these do when they are imported is theirs.
import cv2, mindspore, mindspore.dataset, mindspore.mindrecord, numpy, pycocotools.cocoeval, tqdm, yaml

def state():
    root = logging.getLogger()
    return {"environment": dict(os.environ), "files": sorted(map(str, Path().rglob("*"))),
            "handlers": [repr(handler) for handler in root.handlers], "level": root.level,
            "handlers of src": [repr(handler) for handler in logging.getLogger("src").handlers],
            "optional": sorted({"onnxruntime", "moxing", "matplotlib", "tensorboardX"} & set(sys.modules)),
            "mode": mindspore.get_context("mode"), "seed": mindspore.get_seed(),
            "numpy": str(numpy.random.get_state()), "folder": os.getcwd(), "arguments": list(sys.argv)}

sys.argv[1:] = ["--nope", "--config_path=/none.yaml"]
before, changes = state(), {}
for name in names:
    for loaded in [module for module in sys.modules if module.split(".")[0] in ("src", *names)]:
        del sys.modules[loaded]     # every module is imported first once: no import may need another one before it
    __import__(name)
    changes[name] = [key for key, value in state().items() if value != before[key]]
Path(os.environ["REPORT"]).write_text(json.dumps(changes))
"""


def test_every_module_imports_silently(tmp_path):
    """Whatever the command line says: nothing printed, written, changed in the environment or the root logger."""
    names = [module_name(path) for path in TREES]
    folder, report = tmp_path / "empty", tmp_path / "report.json"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(names)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT), "REPORT": str(report)},
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    changes = json.loads(report.read_text())
    assert set(changes) == set(names)
    assert {name: changed for name, changed in changes.items() if changed} == {}
    assert list(folder.iterdir()) == []


def test_configuration_and_run_time_do_not_need_mindspore():
    """They are read before the environment is prepared for it."""
    code = (
        "import sys, src.runtime, src.lr_schedule, src.common.files, src.model_utils.config; "
        "print([name for name in sys.modules if name.split('.')[0] == 'mindspore'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""Programs that are built once for all tests of this folder."""

import os

import pytest

from tests.cpp.builds import LITE_HOME, build, missing_for_program, missing_tools, reason


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory):
    """A folder of this run of the tests, the same in each of its processes."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cpp build"


@pytest.fixture(scope="session")
def image_tools(build_folder):
    """The folder with preprocess_tool and unit_tests, built without MindSpore Lite."""
    if missing_tools():
        pytest.skip(reason(missing_tools()))
    return build(build_folder, ("preprocess_tool", "unit_tests"), "-DWITH_LITE=OFF")


@pytest.fixture(scope="session")
def program(build_folder):
    """The program main, built with MindSpore Lite."""
    if missing_for_program():
        pytest.skip(reason(missing_for_program()))
    return build(build_folder, ("main",), "-DWITH_LITE=ON", f"-DMS_LITE_HOME={LITE_HOME}") / "main"

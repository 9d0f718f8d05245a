"""Programs that are built once for all tests of this folder."""

import pytest

from tests.cpp.builds import LITE_HOME, build, missing_for_program, missing_tools, reason


@pytest.fixture(scope="session")
def image_tools(tmp_path_factory):
    """The folder with preprocess_tool and unit_tests, built without MindSpore Lite."""
    if missing_tools():
        pytest.skip(reason(missing_tools()))
    return build(tmp_path_factory.mktemp("image tools"), "-DWITH_LITE=OFF")


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The program main, built with MindSpore Lite."""
    if missing_for_program():
        pytest.skip(reason(missing_for_program()))
    return build(tmp_path_factory.mktemp("program"), f"-DMS_LITE_HOME={LITE_HOME}") / "main"

"""Has moved: use ``python -m src.tools.check_env``. This name works until version 0.4."""

import runpy

if __name__ == "__main__":
    runpy.run_module("src.tools.check_env", run_name="__main__")

"""Has moved: use ``python -m src.tools.sample_data``. This name works until version 0.4."""

import runpy

if __name__ == "__main__":
    runpy.run_module("src.tools.sample_data", run_name="__main__")

"""Has moved: use ``python -m src.tools.plot_losses``. This name works until version 0.4."""

import runpy

if __name__ == "__main__":
    runpy.run_module("src.tools.plot_losses", run_name="__main__")

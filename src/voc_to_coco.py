"""Has moved: use ``python -m src.tools.voc_to_coco``. This name works until version 0.4."""

import runpy

if __name__ == "__main__":
    runpy.run_module("src.tools.voc_to_coco", run_name="__main__")

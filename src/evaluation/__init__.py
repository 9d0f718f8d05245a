"""From a model or its result files to the COCO metrics."""

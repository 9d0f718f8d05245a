"""Exported files: how they are written, and how any model file is loaded."""

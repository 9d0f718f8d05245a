"""What every part leans on: files, progress, wording, kept graphs."""

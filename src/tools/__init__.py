"""Programs beside training and evaluation: data, checks, curves."""

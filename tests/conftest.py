"""Every test process gets the environment that the entry scripts give themselves."""
from src.runtime import prepare_process

prepare_process()

"""train.py, and then the parameters that it ended with, in parameters.npz: also of ranks that write no checkpoint."""

import sys

import numpy as np

import train
from src.runtime import prepare_process, run

if __name__ == "__main__":
    prepare_process()
    from src import network_define

    train_only = network_define.train

    def train_and_keep(network, *arguments):
        """Train, then write every parameter by its name."""
        train_only(network, *arguments)
        np.savez("parameters.npz", **{name: value.asnumpy() for name, value in network.parameters_dict().items()})

    network_define.train = train_and_keep
    sys.exit(run(train.main))

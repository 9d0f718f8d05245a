"""The moving average of the weights of a training, which often detects better than the last weights."""

import contextlib
from collections.abc import Iterator

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype


class WeightAverage:
    """Exponential moving average of all parameters, statistics of batch norms included (Tarvainen & Valpola 2017).

    average = d * average + (1 - d) * weight after every step, where d is the smaller of ``decay`` and
    (1 + step) / (10 + step): the first weights, which know nothing, are forgotten quickly.

    Args:
        network (Cell): the network that is trained; the average starts from its weights.
        decay (float): from 0 to below 1; 0.99 averages over about the last 100 steps.
    """

    def __init__(self, network: nn.Cell, decay: float):
        self.decay = decay
        self.steps = 0
        self.weights = [weight for weight in network.get_parameters() if weight.dtype == mstype.float32]
        self.averages = [Parameter(weight.value().copy(), name=f"average.{weight.name}") for weight in self.weights]

    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        share = Tensor(1 - min(self.decay, (1 + self.steps) / (10 + self.steps)), mstype.float32)
        for average, weight in zip(self.averages, self.weights, strict=True):
            # Not ops.lerp, which takes five times as long on a CPU.
            ops.assign_add(average, (weight - average) * share)

    @contextlib.contextmanager
    def in_network(self) -> Iterator[None]:
        """Inside, the network has the averages; afterwards its own weights again."""
        own = [weight.value().copy() for weight in self.weights]
        for weight, average in zip(self.weights, self.averages, strict=True):
            ops.assign(weight, average)
        try:
            yield
        finally:
            for weight, value in zip(self.weights, own, strict=True):
                ops.assign(weight, value)

"""Optimisers whose operators run one by one, behind the compiled graph: inside it they compile for 2 to 3 s."""

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype


class Optimizer:
    """What optimisers share: parameters, the rate of every step, and which parameters decay.

    Args:
        params (Sequence[Parameter]): what is updated, P of them.
        rates (Sequence[float] | Tensor): learning rate of every step.
        weight_decay (float): factor on the weights, added to their gradients; from 0. Scales and shifts of batch norms
            do not decay.
    """

    def __init__(self, params: Sequence[Parameter], rates: Sequence[float] | Tensor, weight_decay: float):
        self.parameters = ParameterTuple(params)
        self.rates = np.asarray(rates, np.float32)
        self.decays = [
            0.0 if "gamma" in parameter.name or "beta" in parameter.name else weight_decay
            for parameter in self.parameters
        ]
        self.steps = 0

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """Update every parameter by its gradient.

        Args:
            gradients (Sequence[Tensor]): P gradients, in the order of the parameters.

        Raises:
            IndexError: there are fewer rates than steps.
        """
        rate = Tensor(self.rates[self.steps])
        self.steps += 1
        self.update(gradients, rate)

    def update(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """The rule itself; ``steps`` counts from 1 here."""
        raise NotImplementedError


class SGD(Optimizer):
    """Gradient descent with momentum: v = momentum * v + gradient, then weight = weight - rate * v.

    Args:
        params, rates, weight_decay: see :class:`Optimizer`.
        momentum (float): from 0.
    """

    def __init__(
        self, params: Sequence[Parameter], rates: Sequence[float] | Tensor, momentum: float, weight_decay: float
    ):
        super().__init__(params, rates, weight_decay)
        self.momentum = Tensor(momentum, mstype.float32)
        self.rules = [ops.SGD(weight_decay=decay) for decay in self.decays]
        self.accum = self.parameters.clone(prefix="accum", init="zeros")
        # Marks where v is still empty: nowhere, it starts at 0. Only read, hence one for all parameters of a shape; an
        # array of zeros that nobody writes takes no memory.
        shapes = {parameter.shape for parameter in self.parameters}
        self.empty = {shape: Tensor.from_numpy(np.zeros(shape, np.float32)) for shape in shapes}

    def update(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """One operator per parameter, which adds the decay too."""
        for rule, parameter, gradient, accum in zip(self.rules, self.parameters, gradients, self.accum, strict=True):
            rule(parameter, gradient, rate, accum, self.momentum, self.empty[parameter.shape])


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, the cheaper order at the end of section 2); their constants, decay added to gradients.

    Args:
        params, rates, weight_decay: see :class:`Optimizer`.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, params: Sequence[Parameter], rates: Sequence[float] | Tensor, weight_decay: float):
        super().__init__(params, rates, weight_decay)
        self.means = self.parameters.clone(prefix="moment1", init="zeros")
        self.squares = self.parameters.clone(prefix="moment2", init="zeros")
        self.rule = ops.Adam()

    def update(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """One operator per parameter, and two more where it decays."""
        powers = [Tensor(beta**self.steps, mstype.float32) for beta in self.BETAS]
        for parameter, gradient, decay, mean, square in zip(
            self.parameters, gradients, self.decays, self.means, self.squares, strict=True
        ):
            if decay:
                gradient = gradient + parameter * decay
            self.rule(parameter, mean, square, *powers, rate, *self.BETAS, self.EPSILON, gradient)


def build_optimizer(config, network: nn.Cell, rates: Sequence[float]) -> Optimizer:
    """The configured optimiser over the network's trainable parameters.

    Args:
        config (Config): ``opt_type`` "sgd" or "adam", ``momentum``, ``weight_decay``.
        network (Cell): a detector.
        rates (Sequence[float]): learning rate of every step.

    Returns:
        Optimizer
    """
    params = network.trainable_params()
    if config.opt_type == "adam":
        return Adam(params, rates, config.weight_decay)
    return SGD(params, rates, config.momentum, config.weight_decay)

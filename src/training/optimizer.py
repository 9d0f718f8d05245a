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
        backbone_factor (float): factor on the rate of the backbone's parameters, above 0.
    """

    STATE: tuple[str, ...] = ()  # names of what is kept per parameter from step to step; it starts at 0

    def __init__(
        self,
        params: Sequence[Parameter],
        rates: Sequence[float] | Tensor,
        weight_decay: float,
        backbone_factor: float = 1.0,
    ):
        self.parameters = ParameterTuple(params)
        self.rates = np.asarray(rates, np.float32)
        self.decays = [
            0.0 if "gamma" in parameter.name or "beta" in parameter.name else weight_decay
            for parameter in self.parameters
        ]
        self.factors = [
            backbone_factor if parameter.name.startswith("backbone.") else 1.0 for parameter in self.parameters
        ]
        self.steps = self.skipped = 0
        self.state = {name: self.parameters.clone(prefix=name, init="zeros") for name in self.STATE}

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """Update every parameter by its gradient.

        Args:
            gradients (Sequence[Tensor]): P gradients, in the order of the parameters.

        Raises:
            IndexError: there are fewer rates than steps.
        """
        rate = self.rates[self.steps + self.skipped]
        self.steps += 1
        rates = {factor: Tensor(rate * np.float32(factor)) for factor in set(self.factors)}
        self.update(gradients, [rates[factor] for factor in self.factors])

    def skip(self) -> None:
        """Let a step pass without an update; the next takes its own rate."""
        self.skipped += 1

    def update(self, gradients: Sequence[Tensor], rates: Sequence[Tensor]) -> None:
        """The rule itself, with one rate per parameter; ``steps`` counts from 1 here."""
        raise NotImplementedError

    def go_on_from(self, other: "Optimizer") -> None:
        """Take over the step and the state of another optimiser of the same kind; parameters that it lacks start new.

        Args:
            other (Optimizer): its parameters are some of these.
        """
        self.steps, self.skipped = other.steps, other.skipped
        for name in self.STATE:
            known = dict(zip((parameter.name for parameter in other.parameters), other.state[name], strict=True))
            for parameter, state in zip(self.parameters, self.state[name], strict=True):
                if parameter.name in known:
                    state.set_data(known[parameter.name].value())


class SGD(Optimizer):
    """Gradient descent with momentum: v = momentum * v + gradient, then weight = weight - rate * v.

    Args:
        params, rates, weight_decay, backbone_factor: see :class:`Optimizer`.
        momentum (float): from 0.
    """

    STATE = ("accum",)

    def __init__(
        self,
        params: Sequence[Parameter],
        rates: Sequence[float] | Tensor,
        momentum: float,
        weight_decay: float,
        backbone_factor: float = 1.0,
    ):
        super().__init__(params, rates, weight_decay, backbone_factor)
        self.momentum = Tensor(momentum, mstype.float32)
        self.rules = [ops.SGD(weight_decay=decay) for decay in self.decays]
        # Marks where v is still empty: nowhere, it starts at 0. Only read, hence one for all parameters of a shape; an
        # array of zeros that nobody writes takes no memory.
        shapes = {parameter.shape for parameter in self.parameters}
        self.empty = {shape: Tensor.from_numpy(np.zeros(shape, np.float32)) for shape in shapes}

    def update(self, gradients: Sequence[Tensor], rates: Sequence[Tensor]) -> None:
        """One operator per parameter, which adds the decay too."""
        for rule, parameter, gradient, accum, rate in zip(
            self.rules, self.parameters, gradients, self.state["accum"], rates, strict=True
        ):
            rule(parameter, gradient, rate, accum, self.momentum, self.empty[parameter.shape])


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, the cheaper order at the end of section 2); their constants, decay added to gradients.

    Args:
        params, rates, weight_decay, backbone_factor: see :class:`Optimizer`.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8
    STATE = ("moment1", "moment2")

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rule = ops.Adam()

    def update(self, gradients: Sequence[Tensor], rates: Sequence[Tensor]) -> None:
        """One operator per parameter, and two more where it decays."""
        powers = [Tensor(beta**self.steps, mstype.float32) for beta in self.BETAS]
        for parameter, gradient, decay, mean, square, rate in zip(
            self.parameters, gradients, self.decays, self.state["moment1"], self.state["moment2"], rates, strict=True
        ):
            if decay:
                gradient = self.decayed(parameter, gradient, decay, rate)
            self.rule(parameter, mean, square, *powers, rate, *self.BETAS, self.EPSILON, gradient)

    def decayed(self, parameter: Parameter, gradient: Tensor, decay: float, rate: Tensor) -> Tensor:
        """The gradient with the decay added."""
        return gradient + parameter * decay


class AdamW(Adam):
    """Adam whose decay does not pass through the moments (Loshchilov & Hutter 2019): weight -= rate * decay * weight.

    Args:
        params, rates, weight_decay, backbone_factor: see :class:`Optimizer`.
    """

    def decayed(self, parameter: Parameter, gradient: Tensor, decay: float, rate: Tensor) -> Tensor:
        """The gradient as it is; the parameter decays at once."""
        ops.assign_sub(parameter, parameter * (rate * decay))
        return gradient


def build_optimizer(config, network: nn.Cell, rates: Sequence[float]) -> Optimizer:
    """The configured optimiser over the network's trainable parameters.

    Args:
        config (Config): ``opt_type``, ``momentum``, ``weight_decay``, ``backbone_lr_factor``.
        network (Cell): a detector.
        rates (Sequence[float]): learning rate of every step.

    Returns:
        Optimizer
    """
    params, factor = network.trainable_params(), config.backbone_lr_factor
    if config.opt_type == "sgd":
        return SGD(params, rates, config.momentum, config.weight_decay, factor)
    return (AdamW if config.opt_type == "adamw" else Adam)(params, rates, config.weight_decay, factor)

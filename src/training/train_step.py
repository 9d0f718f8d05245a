"""One step of a training: losses, gradients, update."""

from collections.abc import Sequence

from mindspore import Tensor, amp, nn, ops

from src.model_utils.config import Config
from src.runtime import Device, give_back_memory
from src.training.optimizer import Optimizer, build_optimizer


class TrainStep(nn.Cell):
    """One step: losses, gradients, optional clipping, update. All but the update is one compiled graph.

    For calls from Python: inside another graph there would be no update.

    Args:
        network (Cell): a detector; its first two outputs are summed to the loss that is minimised.
        optimizer (Optimizer): updates its parameters.
        loss_scale (float): factor on the loss during the backward pass, taken out of the gradients again; keeps
            small float16 gradients from vanishing.
        clip_norm (float | None): largest global norm of the gradients (Pascanu et al. 2013); None: not clipped.
        num_devices (int): gradients are averaged over so many devices.
        dynamic_scale (bool): let the loss scale follow the gradients (Micikevicius et al. 2018): steps whose gradients
            are not finite change nothing and halve it, SCALE_WINDOW others in a row double it.
        accumulate_steps (int): one update, by the mean of the gradients, for so many steps.

    Inputs: those of the network in training.
    Outputs: the network's six losses, float32 scalars.
    """

    SCALE_WINDOW = 2000

    def __init__(
        self,
        network: nn.Cell,
        optimizer: Optimizer,
        loss_scale: float = 1.0,
        clip_norm: float | None = None,
        num_devices: int = 1,
        dynamic_scale: bool = False,
        accumulate_steps: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.network = network
        self.optimizer = optimizer
        self.scaler = amp.DynamicLossScaler(loss_scale, 2, self.SCALE_WINDOW) if dynamic_scale else None
        self.loss_scale = loss_scale if self.scaler is None else self.scaler.scale_value
        self.is_scaled = dynamic_scale or loss_scale != 1.0
        self.gradients = GradientMean(accumulate_steps, clip_norm)
        # Of several steps the mean is clipped, not each of them.
        self.clip_norm = clip_norm if accumulate_steps == 1 else None
        self.reduce = nn.DistributedGradReducer(optimizer.parameters, True, num_devices) if num_devices > 1 else None
        self.trimmed = False
        self.loss_and_gradients = ops.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def __call__(self, *batch) -> tuple[Tensor, ...]:
        losses, gradients = super().__call__(*batch)
        if self.scaler is None or _fits(self.scaler, gradients):
            self.gradients.add(gradients)
        else:
            self.gradients.skip()
        if self.gradients.is_due():
            self.update()
        return losses

    def update(self) -> None:
        """Update the parameters by what has been gathered; called by itself after every ``accumulate_steps`` steps."""
        if mean := self.gradients.take():
            self.optimizer(mean)
        else:
            self.optimizer.skip()

    def finish(self) -> None:
        """Update by what waits for more steps, at the end of a training."""
        if self.gradients.steps:
            self.update()

    def go_on_from(self, other: "TrainStep") -> None:
        """Take over what another step with fewer trained parameters has reached: optimiser and loss scale.

        Gradients that wait there for an update are given up, because they are of fewer parameters; their steps count.
        """
        self.gradients.steps = other.gradients.steps
        self.optimizer.go_on_from(other.optimizer)
        if self.scaler is not None and other.scaler is not None:
            self.scaler.scale_value.set_data(other.scaler.scale_value.value())

    def compile(self, *batch, **options):
        """The base class's. Every step calls it, the first compiles, which leaves 80 MB of free pages behind."""
        super().compile(*batch, **options)
        if not self.trimmed:
            self.trimmed = True
            give_back_memory()

    def construct(self, *batch):
        """The losses, and the gradients that the optimiser takes."""
        (_, losses), gradients = self.loss_and_gradients(*batch)
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        if self.is_scaled:
            gradients = ops.HyperMap()(ops.partial(_scale_gradient, 1.0 / self.loss_scale), gradients)
        if self.clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        return losses, gradients

    def scaled_loss(self, *batch):
        """The scaled sum that is minimised, and the six losses."""
        losses = self.network(*batch)
        return (losses[0] + losses[1]) * self.loss_scale, losses


def _fits(scaler: amp.DynamicLossScaler, gradients: Sequence[Tensor]) -> bool:
    """Whether a loss scale has left the gradients finite; changes it by that."""
    finite = amp.all_finite(gradients)
    scaler.adjust(finite)
    return bool(finite.asnumpy())


def _scale_gradient(factor, gradient):
    return gradient * ops.cast(factor, gradient.dtype)


class GradientMean:
    """The mean of the gradients of several steps.

    Args:
        steps (int): steps that one update waits for.
        clip_norm (float | None): largest global norm of a mean of more than one; None: not clipped.
    """

    def __init__(self, steps: int, clip_norm: float | None):
        self.due = steps
        self.clip_norm = clip_norm
        self.steps = self.counted = 0
        self.sum: Sequence[Tensor] = ()

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradients of a step."""
        self.sum = [a + b for a, b in zip(self.sum, gradients, strict=True)] if self.counted else gradients
        self.counted += 1
        self.steps += 1

    def skip(self) -> None:
        """Count a step whose gradients are of no use."""
        self.steps += 1

    def is_due(self) -> bool:
        """Whether it is time for an update."""
        return self.steps == self.due

    def take(self) -> Sequence[Tensor]:
        """The mean, nothing if no step was of use; starts anew."""
        mean, counted = self.sum, self.counted
        self.steps, self.counted, self.sum = 0, 0, ()
        if self.due == 1 or not counted:
            return mean
        mean = [gradient / counted for gradient in mean]
        return mean if self.clip_norm is None else ops.clip_by_global_norm(mean, self.clip_norm)


def build_step(network: nn.Cell, config: Config, rates: Sequence[float], device: Device) -> TrainStep:
    """The training step of a configuration.

    Args:
        network (Cell): a detector.
        config (Config): ``loss_scale``, ``dynamic_loss_scale``, ``accumulate_steps``, ``grad_clip``,
            ``grad_clip_norm``, and those of :func:`build_optimizer`.
        rates (Sequence[float]): learning rate of every step.
        device (Device): this process: target, rank, number of devices.

    Returns:
        TrainStep
    """
    # A CPU computes in float32, where no gradient vanishes; unscaling all of them would only take time to compile.
    loss_scale = 1.0 if device.target == "CPU" else config.loss_scale
    # An update takes the rate of its last step; the last one may have to do with fewer steps.
    every = config.accumulate_steps
    due = [*rates[every - 1 :: every], *(rates[-1:] if len(rates) % every else [])]
    return TrainStep(
        network,
        build_optimizer(config, network, due),
        loss_scale,
        config.grad_clip_norm if config.grad_clip else None,
        device.num_devices,
        config.dynamic_loss_scale,
        every,
    )

"""Training: the step and the loop.

The loss log is in ``src.training.loss_log``, checkpoints are in ``src.training.checkpoints``.
"""

import logging
import math
from collections.abc import Callable, Sequence

from mindspore import Tensor, nn, ops
from mindspore.dataset import Dataset

from src.common.compile_cache import compile_once
from src.lr_schedule import BASE_IMAGES, learning_rates, scaled_base_lr
from src.model_utils.config import Config
from src.model_utils.errors import UserError
from src.runtime import Device, give_back_memory
from src.training.checkpoints import Checkpoints
from src.training.loss_log import LossLog
from src.training.optimizer import Optimizer, build_optimizer
from src.training.profiling import step_profiler

__all__ = ["Checkpoints", "LossLog", "TrainStep", "build_step", "check_start", "train"]

LOGGER = logging.getLogger(__name__)


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

    Inputs: those of the network in training.
    Outputs: the network's six losses, float32 scalars.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: Optimizer,
        loss_scale: float = 1.0,
        clip_norm: float | None = None,
        num_devices: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.network = network
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.clip_norm = clip_norm
        self.reduce = nn.DistributedGradReducer(optimizer.parameters, True, num_devices) if num_devices > 1 else None
        self.trimmed = False
        self.loss_and_gradients = ops.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def __call__(self, *batch) -> tuple[Tensor, ...]:
        losses, gradients = super().__call__(*batch)
        self.optimizer(gradients)
        return losses

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
        if self.loss_scale != 1.0:
            gradients = ops.HyperMap()(ops.partial(_scale_gradient, 1.0 / self.loss_scale), gradients)
        if self.clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        return losses, gradients

    def scaled_loss(self, *batch):
        """The scaled sum that is minimised, and the six losses."""
        losses = self.network(*batch)
        return (losses[0] + losses[1]) * self.loss_scale, losses


def _scale_gradient(factor, gradient):
    return gradient * ops.cast(factor, gradient.dtype)


def build_step(network: nn.Cell, config: Config, rates: Sequence[float], device: Device) -> TrainStep:
    """The training step of a configuration.

    Args:
        network (Cell): a detector.
        config (Config): ``loss_scale``, ``grad_clip``, ``grad_clip_norm``, and those of :func:`build_optimizer`.
        rates (Sequence[float]): learning rate of every step.
        device (Device): this process: target, rank, number of devices.

    Returns:
        TrainStep
    """
    # A CPU computes in float32, where no gradient vanishes; unscaling all of them would only take time to compile.
    loss_scale = 1.0 if device.target == "CPU" else config.loss_scale
    return TrainStep(
        network,
        build_optimizer(config, network, rates),
        loss_scale,
        config.grad_clip_norm if config.grad_clip else None,
        device.num_devices,
    )


def check_start(config: Config) -> None:
    """Refuse to train on layers that are both random and fixed.

    Args:
        config (Config): ``pre_trained``, ``frozen_stages``, ``norm_eval``.

    Raises:
        UserError: no weights are given, but layers or batch-norm statistics would stay as they are.
    """
    if config.finetune and not config.pre_trained:
        raise UserError(
            "finetune is True, but pre_trained is empty: name the detector to start from, "
            "--pre_trained=DETECTOR.ckpt, or leave finetune out"
        )
    if config.pre_trained or (config.frozen_stages < 0 and not config.norm_eval):
        return
    raise UserError(
        f"--pre_trained is empty, but frozen_stages={config.frozen_stages} and "
        f"norm_eval={config.norm_eval} would keep random layers or batch-norm statistics as they are, and "
        f"the detector could not learn. Give a checkpoint with --pre_trained, or train all layers with "
        f"--recipe=scratch (frozen_stages=-1, norm_eval=False and what goes with them)"
    )


def train(
    network: nn.Cell, dataset: Dataset, config: Config, device: Device, evaluate: Callable[[], float] | None = None
) -> None:
    """Train a detector: ``epoch_size`` passes over the data set.

    Writes ``loss_{rank}.log``, checkpoints below ``save_checkpoint_path``, and TensorBoard files and a profile when
    asked for.

    Args:
        network (Cell): a detector.
        dataset (Dataset): batches of image, image_shape, box, label, valid_num, image_id.
        config (Config): the run's settings.
        device (Device): this process: target, rank, number of devices.
        evaluate (Callable | None): returns the AP of the network as it is; called every ``interval`` epochs and after
            the last, and the best network is kept as ``best_ckpt/best.ckpt``.

    Raises:
        UserError: a loss is not finite, or a file cannot be written.
    """
    steps = dataset.get_dataset_size()
    rates = learning_rates(config, steps, device.num_devices)
    LOGGER.info(
        "learning rate %.6g = base_lr %g x %d devices x batch %d / %d, %s schedule, %d epochs of %d steps",
        scaled_base_lr(config.base_lr, device.num_devices, config.batch_size),
        config.base_lr,
        device.num_devices,
        config.batch_size,
        BASE_IMAGES,
        config.lr_type,
        config.epoch_size,
        steps,
    )
    step_network = build_step(network, config, rates, device)
    checkpoints = Checkpoints(config, device)
    best = -math.inf
    batches = dataset.create_tuple_iterator(num_epochs=config.epoch_size)
    with LossLog(config, device, steps, rates) as log, step_profiler(config, device, steps) as step_done:
        for epoch in range(1, config.epoch_size + 1):
            step_network.set_train()
            # One iterator for all epochs; each pass over it is the next epoch.
            for step, (*batch, image_ids) in enumerate(batches, start=1):
                compile_once(step_network, batch, config)
                losses = [float(loss.asnumpy()) for loss in step_network(*batch)]
                log.write(epoch, step, losses, image_ids.asnumpy().tolist())
                step_done()
            checkpoints.save(network, epoch, steps)
            if evaluate is not None and (epoch % config.interval == 0 or epoch == config.epoch_size):
                best = checkpoints.keep_best(network, evaluate(), best)

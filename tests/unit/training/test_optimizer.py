"""Update rules against their definitions in float64."""

import dataclasses

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.model_utils.config import load_config
from src.training.optimizer import SGD, Adam, AdamW, build_optimizer

RATES = [0.1, 0.02, 0.3]
DECAY = 0.05
# Two of one shape; batch norms' scales and shifts do not decay.
SHAPES = {"conv.weight": (2, 3, 1, 1), "fc.weight": (4, 3), "head.weight": (4, 3), "bn.gamma": (5,), "bn.beta": (5,)}
DECAYS = {name: 0.0 if name.startswith("bn.") else DECAY for name in SHAPES}


def values(seed):
    """An array by the name of each parameter."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def parameters():
    return [Parameter(Tensor(value), name=name) for name, value in values(0).items()]


def updated(optimizer, num_steps):
    """The parameters after each of so many steps; the gradients of step s are values(s)."""
    steps = []
    for step in range(1, num_steps + 1):
        optimizer([Tensor(value) for value in values(step).values()])
        steps.append({parameter.name: parameter.asnumpy().copy() for parameter in optimizer.parameters})
    return steps


def gradient(weight, name, step):
    """With the decay, the derivative of decay / 2 * weight^2."""
    return values(step)[name] + DECAYS[name] * weight


def expected_sgd(name, momentum):
    weight, velocity = values(0)[name].astype(np.float64), 0.0
    for step, rate in enumerate(RATES, start=1):
        velocity = momentum * velocity + gradient(weight, name, step)
        weight = weight - rate * velocity
        yield weight


def expected_adam(name):
    """Algorithm 1 of the paper, with its constants."""
    weight, mean, square = values(0)[name].astype(np.float64), 0.0, 0.0
    for step, rate in enumerate(RATES, start=1):
        mean = 0.9 * mean + 0.1 * gradient(weight, name, step)
        square = 0.999 * square + 0.001 * gradient(weight, name, step) ** 2
        weight = weight - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        yield weight


def expected_adamw(name):
    """Algorithm 2 of Loshchilov & Hutter, whose schedule multiplies both terms: here the rate of the step is alpha."""
    weight, mean, square = values(0)[name].astype(np.float64), 0.0, 0.0
    for step, rate in enumerate(RATES, start=1):
        gradient = values(step)[name].astype(np.float64)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        move = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weight = weight - rate * (move + DECAYS[name] * weight)
        yield weight


def check(optimizer, expected):
    """Compare every parameter after every step."""
    found = updated(optimizer, len(RATES))
    for name in SHAPES:
        for step, weight in enumerate(expected(name)):
            np.testing.assert_allclose(found[step][name], weight, rtol=1e-4, atol=1e-5, err_msg=f"{name} {step}")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum):
    check(SGD(parameters(), RATES, momentum, DECAY), lambda name: expected_sgd(name, momentum))


def test_adam():
    check(Adam(parameters(), RATES, DECAY), expected_adam)


def test_adamw():
    check(AdamW(parameters(), RATES, DECAY), expected_adamw)


@pytest.mark.parametrize("factor", [0.1, 0.5])
@pytest.mark.parametrize(
    "make, expected",
    [
        (
            lambda parameters, rates, factor: SGD(parameters, rates, 0.9, DECAY, factor),
            lambda name: expected_sgd(name, 0.9),
        ),
        (lambda parameters, rates, factor: Adam(parameters, rates, DECAY, factor), expected_adam),
        (lambda parameters, rates, factor: AdamW(parameters, rates, DECAY, factor), expected_adamw),
    ],
)
def test_the_backbone_takes_a_share_of_the_rate(make, expected, factor):
    """At a share f of rates that are 1 / f as large it moves as without a share."""
    params = parameters()
    params[0].name = "backbone.conv.weight"
    optimizer = make(params, np.array(RATES) / factor, factor)
    moved = updated(optimizer, len(RATES))
    for step, weight in enumerate(expected("conv.weight")):
        np.testing.assert_allclose(moved[step]["backbone.conv.weight"], weight, rtol=1e-4, atol=1e-5)
    full_rate = updated(make(parameters(), np.array(RATES) / factor, 1.0), len(RATES))
    for name in list(SHAPES)[1:]:
        np.testing.assert_array_equal(moved[-1][name], full_rate[-1][name])


def test_a_skipped_step_keeps_the_weights_and_passes_its_rate_by():
    """Adam's correction for its start counts updates, not steps."""
    optimizer = Adam(parameters(), [9.0, *RATES], DECAY)
    optimizer.skip()
    check(optimizer, expected_adam)


@pytest.mark.parametrize("make", [lambda p: SGD(p, RATES, 0.9, DECAY), lambda p: Adam(p, RATES, DECAY)])
def test_another_optimiser_goes_on_with_the_state(make):
    """Two steps of one and the third of another are three steps; a parameter that is new starts without state."""
    whole = make(parameters())
    expected = updated(whole, 3)[-1]
    params = parameters()
    first = make(params[1:])
    for step in (1, 2):
        first([Tensor(value) for value in list(values(step).values())[1:]])
    second = make(params)
    second.go_on_from(first)
    second([Tensor(value) for value in values(3).values()])
    for parameter in params[1:]:
        np.testing.assert_array_equal(parameter.asnumpy(), expected[parameter.name])
    state = second.state[second.STATE[0]][0].asnumpy()
    share = 1.0 if isinstance(second, SGD) else 0.1
    gradient = values(3)["conv.weight"] + DECAY * values(0)["conv.weight"]
    np.testing.assert_allclose(state, share * gradient, rtol=1e-5)


def test_scales_and_shifts_do_not_decay():
    """Without gradients nothing but the decay moves a parameter."""
    for optimizer in (
        SGD(parameters(), RATES, 0.9, DECAY),
        Adam(parameters(), RATES, DECAY),
        AdamW(parameters(), RATES, DECAY),
    ):
        optimizer([Tensor(np.zeros(shape, np.float32)) for shape in SHAPES.values()])
        moved = {
            parameter.name
            for parameter in optimizer.parameters
            if (parameter.asnumpy() != values(0)[parameter.name]).any()
        }
        assert moved == {"conv.weight", "fc.weight", "head.weight"}


@pytest.mark.parametrize("make", [lambda: SGD(parameters(), RATES, 0.9, 0.0), lambda: Adam(parameters(), RATES, 0.0)])
def test_there_is_a_rate_for_every_step_and_no_further_step(make):
    optimizer = make()
    updated(optimizer, len(RATES))
    with pytest.raises(IndexError):
        updated(optimizer, 1)


@pytest.mark.parametrize("opt_type, kind", [("sgd", SGD), ("adam", Adam), ("adamw", AdamW)])
def test_the_configuration_chooses_and_frozen_parameters_are_left_out(opt_type, kind):
    config = dataclasses.replace(
        load_config(["--device_target=CPU"]), opt_type=opt_type, momentum=0.8, weight_decay=DECAY
    )
    network = nn.SequentialCell(nn.Dense(3, 4), nn.Dense(4, 2))
    for parameter in network[0].get_parameters():
        parameter.requires_grad = False
    optimizer = build_optimizer(config, network, RATES)
    assert type(optimizer) is kind
    assert [parameter.name for parameter in optimizer.parameters] == ["1.weight", "1.bias"]
    assert optimizer.decays == [DECAY, DECAY]
    np.testing.assert_array_equal(optimizer.rates, np.float32(RATES))
    if kind is SGD:
        assert float(optimizer.momentum) == pytest.approx(0.8)

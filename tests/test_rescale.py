"""Rescaling a narrow network's hidden inputs: which layers, by how much, while it trains and not otherwise."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import runs
import tiny
import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor, nn

from ist_fed import infer, rules, wire
from ist_fed.arrays import build_on_meta
from ist_fed.cli.inspect import describe_scenario
from ist_fed.cost import cost
from ist_fed.errors import AxesError
from ist_fed.models import mlp
from ist_fed.rescale import Rescaling, scaled_inputs
from ist_fed.scenario import parse_scenario
from ist_fed.tasks.digits import Digits
from ist_fed.train import Rescale, Training
from ist_fed.worker import Worker

HALVES = rules.Disjoint(groups=2, min_units=1)
FULL, NARROW = {"a": 8, "b": 12}, {"a": 2, "b": 3}


class Net(nn.Module):
    """A convolution, one by channel, one transposed, a flattened map, a tied head, and torch's own attention."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, a, 3)
        self.depthwise = nn.Conv2d(a, a, 3, groups=a)
        self.back = nn.ConvTranspose2d(a, b, 2)
        self.flat = nn.Linear(4 * b, 5)
        self.table = nn.Embedding(7, b)
        self.head = nn.Linear(b, 7, bias=False)
        self.head.weight = self.table.weight
        self.whole = nn.Linear(5, 5)
        self.attention = nn.MultiheadAttention(4, 2)


def build(**sizes: int) -> nn.Module:
    return Net(**sizes)


def rescaling(factory: Callable[..., nn.Module], sizes: dict[str, int]) -> Rescaling:
    return Rescaling(build_on_meta(factory, sizes), infer(factory, sizes))


def test_layers_that_sum_hidden_inputs_are_found_and_others_not() -> None:
    made = rescaling(build, FULL)
    assert made.scales("full", FULL, NARROW) == {"back": 4.0, "flat": 4.0, "head": 4.0}
    assert made.scales("sqrt", FULL, NARROW) == {"back": 2.0, "flat": 2.0, "head": 2.0}
    assert made.scales("full", FULL, {"a": 8, "b": 6}) == {"flat": 2.0, "head": 2.0}
    assert made.scales("none", FULL, NARROW) == made.scales("full", FULL, FULL) == {}


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_auto_follows_the_norms_and_says_so(norm: str) -> None:
    made = rescaling(mlp(4, 2, norm), {"hidden1": 8})
    assert made.scales("auto", {"hidden1": 8}, {"hidden1": 2}) == made.scales(made.auto, {"hidden1": 8}, {"hidden1": 2})
    assert made.auto == ("full" if norm == "none" else "none")
    assert {"batch": "BatchNorm1d", "layer": "LayerNorm", "none": "no normalisation"}[norm] in made.reason


def test_inputs_times_a_number_are_weights_times_it_and_only_for_a_while() -> None:
    torch.manual_seed(0)
    model = mlp(4, 2, "none")(hidden1=8, hidden2=6).double()
    other = mlp(4, 2, "none")(hidden1=8, hidden2=6).double()
    other.load_state_dict(model.state_dict())
    inputs = torch.randn(5, 4, dtype=torch.float64)
    plain = model(inputs)
    with torch.no_grad():
        other.get_submodule("4").weight.mul_(3.0)  # the second hidden layer
    with scaled_inputs(model, {"4": 3.0}):
        assert torch.allclose(model(inputs), other(inputs), atol=1e-14)
    assert torch.equal(model(inputs), plain)
    with pytest.raises(AxesError, match="inputs of 'nine' are to be rescaled, but the network has no such layer"):
        scaled_inputs(model, {"nine": 2.0}).__enter__()


# --- In a round -------------------------------------------------------------------------------------------------------


def training(how: Rescale) -> Training:
    return replace(tiny.TRAINING, rescale=how)


def test_the_order_says_how_much_and_a_whole_network_is_trained_as_it_is() -> None:
    seen: list[dict[str, float]] = []

    def watching(worker: Worker, message: Message) -> Message:
        seen.append(wire.open_order(message).scales)
        return worker.train(message)

    def federate(rule: rules.Rule, how: Rescale) -> dict[str, Tensor]:
        made = tiny.federate(tiny.Tiny(), rule, 2, training=training(how), instead={0: watching})
        return made.after

    narrow = {how: federate(HALVES, how) for how in ("none", "sqrt", "full")}
    assert seen == [{}, {"4": 2**0.5, "7": 2**0.5}, {"4": 2.0, "7": 2.0}]
    assert not any(tiny.same(narrow["none"], narrow[how]) for how in ("sqrt", "full"))
    assert tiny.same(federate(rules.Full(), "none"), federate(rules.Full(), "full"))  # law 7 holds with it


@pytest.mark.parametrize("how", ["sqrt", "full"])
def test_given_subnets_the_bits_are_those_by_messages(how: Rescale) -> None:
    task = tiny.Tiny()
    reports = runs.train_on(runs.local_grid(task, 3), task, HALVES, training=training(how))
    packed = tiny.federate(task, HALVES, 3, rounds=2, training=training(how))
    assert tiny.same(reports[-1].arrays, packed.after)


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"4": -1.0}, "an order's scales makes no sense"),
        ({"4": float("inf")}, "an order's scales makes no sense"),
        ({"4": "2"}, "an order's scales makes no sense"),
        ({"nine": 2.0}, "inputs of 'nine' are to be rescaled, but the network has no such layer"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(scales: dict[str, float], said: str) -> None:
    task = tiny.Tiny()
    parcel = wire.pack(tiny.initial(task))
    order = {"round": 1, "seed": 1, "sizes": tiny.SIZES, "local_steps": 1, "lr": 0.1, "nonce": "x", "scales": scales}
    order["training"] = {}
    message = wire.order_message(0, parcel, order, ConfigRecord(), ttl=60)
    reply = Worker(task, task.client_data(0, 1), client=0).train(message)
    with pytest.raises(Exception, match=said):
        wire.open_reply(reply, round=1, nonce="x", label=parcel.label())


def test_what_it_takes_in_memory_is_counted() -> None:
    task, sizes = Digits(), {"hidden1": 64, "hidden2": 64}
    plain, scaled = (cost(task, sizes, Training(batch_size=512, rescale=how)).memory for how in ("none", "sqrt"))
    assert plain < scaled < 1.5 * plain


def test_auto_is_said_once_in_the_log_and_by_inspect(caplog: pytest.LogCaptureFixture) -> None:
    scenario = parse_scenario(
        'name = "x"\ntask = "digits"\nclients = 2\nrounds = 1\ntraining.rescale = "auto"\n'
        'sizes = { hidden1 = 32 }\nrule = { name = "disjoint", groups = 2 }'
    )
    said = "rescale = auto is"
    assert describe_scenario(scenario)["rescale"].startswith(said)
    with caplog.at_level(logging.INFO, "ist_fed"):
        tiny.federate(tiny.Tiny(), HALVES, 2, rounds=2, training=training("auto"))
    assert caplog.text.count(said) == 1

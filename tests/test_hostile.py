"""Attacks of which no other file has a test, and that docs/privacy.md names a test for each of them all."""

import io
import pickle
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from flwr.app import Message
from torch import Tensor

from ist_fed import rules, wire
from ist_fed.errors import ScenarioError, WireError
from ist_fed.robust import Keeper, Robust
from ist_fed.robust.settings import Centre
from ist_fed.subnet import extract
from ist_fed.train import Training
from ist_fed.wire import PIECE
from ist_fed.worker import Worker

ROOT = Path(__file__).parents[1]
QUARTERS = rules.Disjoint(groups=4, min_units=2)
SMALL = {"weight": torch.zeros(4, 3)}


def federate(instead: Callable[[Worker, Message], Message] | None = None) -> tiny.Run:
    return tiny.federate(tiny.Tiny(), QUARTERS, 4, instead={2: instead} if instead else {})


def own_blocks(run: tiny.Run, node: int) -> dict[str, Tensor]:
    part = extract(run.after, run.strategy.axes, run.plans[-1][node])
    return {name: part[name] for name, dims in run.strategy.axes.items() if any(dim.axis for dim in dims)}


def test_a_client_cannot_write_outside_its_block() -> None:
    """It says that it holds what another holds, and sends the largest numbers; the server goes by its own plan."""

    def lie(worker: Worker, message: Message) -> Message:
        order = wire.open_order(message)
        loud = {name: torch.full_like(array, 100) for name, array in order.arrays.items()}
        answer = wire.reply_message(order, loud, loss=0.1, seconds=0.1, reply_to=message)
        answer.content["reply"].update(units=list(range(12)), hidden1=list(range(12)), client=0, node=0, weight=1e9)
        return answer

    honest, run = federate(), federate(lie)
    assert run.reports[-1].merged == 4
    assert all((array == 100).all() for array in own_blocks(run, 2).values())
    for node in (0, 1, 3):
        assert tiny.same(own_blocks(run, node), own_blocks(honest, node))


def test_an_update_of_zero_is_accepted() -> None:
    def idle(worker: Worker, message: Message) -> Message:
        order = wire.open_order(message)
        return wire.reply_message(order, order.arrays, loss=0.1, seconds=0.1, reply_to=message)

    run = federate(idle)
    assert (run.reports[-1].merged, run.reports[-1].refused) == (4, ())
    before = extract(run.before, run.strategy.axes, run.plans[-1][2])
    assert tiny.same(own_blocks(run, 2), {name: before[name] for name in own_blocks(run, 2)})


TRAVELS = Training(optimizer="adam", lr=0.01, batch_size=8, state="travels")


@pytest.mark.parametrize("rule", [QUARTERS, rules.Full(), rules.Lease(groups=4, free=0.0, min_units=2)])
@pytest.mark.parametrize("told", [("exp_avg_sq", -1e30), ("step", (1 << 63) - 1)])
def test_state_that_no_optimiser_could_keep_spoils_nobodys_training(rule: rules.Rule, told: tuple[str, float]) -> None:
    """One client sends honest weights and such a state, in every round or lease; all others train on."""
    slot, value = told

    def poison(worker: Worker, message: Message) -> Message:
        order = wire.open_order(message)
        arrays = {
            name: torch.full_like(array, value) if name.startswith(f"{slot}/") else array
            for name, array in order.arrays.items()
        }
        return wire.reply_message(order, arrays, loss=0.1, seconds=0.1, reply_to=message)

    run = tiny.federate(tiny.Tiny(), rule, 4, rounds=4, training=TRAVELS, instead={2: poison})
    for report in run.reports:
        assert {refused.client for refused in report.refused} == {2}
        assert "what an optimiser could keep" in report.refused[0].reason
        assert report.merged == 3


@pytest.mark.parametrize("settings", [Robust(norm_bound=3.0), Robust(loss_margin=0.1)])
def test_a_look_at_parameters_alone_is_no_guard_where_state_travels(settings: Robust) -> None:
    """A client may send honest weights and a state that throws everyone's next step far off."""
    with pytest.raises(ScenarioError, match="to 'fresh', or robust"):
        tiny.strategy(tiny.Tiny(), QUARTERS, training=TRAVELS, robust=Keeper(settings, lambda arrays: 0.0))


@pytest.mark.parametrize("kind", ["median", "trimmed"])
def test_a_state_is_outvoted_as_the_weights_are(kind: Centre) -> None:
    """Moments of which each could be kept, but after which everyone's next step would be far too long."""

    def frozen(worker: Worker, message: Message) -> Message:
        order = wire.open_order(message)
        far = {"exp_avg": 1e9, "exp_avg_sq": 0.0, "step": 1 << 24}
        arrays = {
            name: torch.full_like(array, far[slot]) if (slot := name.partition("/")[0]) in far else array
            for name, array in order.arrays.items()
        }
        return wire.reply_message(order, arrays, loss=0.1, seconds=0.1, reply_to=message)

    def accuracy(**how: object) -> float:
        run = tiny.federate(tiny.Tiny(norm="none"), rules.Full(), 5, rounds=6, training=TRAVELS, **how)
        assert all(report.merged == 5 for report in run.reports)
        model = tiny.Tiny(norm="none").build(**tiny.SIZES)
        model.load_state_dict(run.after)
        return float((model(data.tensors[0]).argmax(dim=1) == data.tensors[1]).float().mean())

    data = tiny.Tiny().test_data()
    honest = accuracy()
    assert accuracy(instead={2: frozen}, robust=Keeper(Robust(merge=kind))) > honest - 0.1 > 0.6
    assert accuracy(instead={2: frozen}) < 0.6


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def zipped(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weight", bytes(size))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "zip"])
@pytest.mark.parametrize("fitted", [False, True], ids=["as it is", "cut or filled up to the right length"])
def test_bytes_are_numbers_and_are_never_unpacked(kind: str, fitted: bool, tmp_path: Path) -> None:
    path, right = tmp_path / "exploded", wire.pack(SMALL).size
    data = pickle.dumps(Bomb(path)) if kind == "pickle" else zipped(100 << 20)
    if fitted:
        data = data[:right].ljust(right, b"\0")
    tracemalloc.start()
    try:
        arrays = wire.unpack(wire.pack(SMALL).layout, [data])
        assert fitted
        assert arrays["weight"].contiguous().view(torch.uint8).numpy().tobytes() == data
    except WireError:
        assert not fitted or not torch.frombuffer(bytearray(data), dtype=torch.float32).isfinite().all()
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert not path.exists()
    if kind == "pickle":
        pickle.loads(pickle.dumps(Bomb(path)))  # it would have
        assert path.exists()


def test_a_reply_that_is_much_too_large_is_refused_without_a_copy() -> None:
    pieces = [bytes(PIECE)] * 64
    tracemalloc.start()
    with pytest.raises(WireError, match="must come as 48 bytes, but 268435456 came"):
        wire.unpack(wire.pack(SMALL).layout, pieces)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_tests_that_the_documentation_names_exist() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    table = text.partition("## Attacks, and the test of each")[2]
    named = re.findall(r"`(test_\w+)`", table)
    known = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))))
    assert len(named) > 20
    assert not [name for name in named if name not in known]

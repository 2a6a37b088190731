"""Finding a task and making it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from ist_fed import Task, infer
from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.axes import dims_of, owners_of
from ist_fed.errors import TaskError
from ist_fed.rules import Node, plan_round
from ist_fed.scenario import load_scenario
from ist_fed.tasks import TASKS, load_task
from ist_fed.tasks.digits import Digits

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").glob("*.toml"))


def error(name: str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(name, options)
    return str(caught.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module of one's own where Python finds it, and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        name = f"own_task_{len(list(tmp_path.glob('*.py')))}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


# --- A task that is found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_built_in_tasks(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, Task)
    assert task.metric
    assert load_task(TASKS[name]) == task


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_shipped_scenarios_can_be_cut_and_dealt_out(path: Path) -> None:
    """Without their data, which the user may still have to bring."""
    scenario = load_scenario(path)
    task = load_task(scenario.task, scenario.options)
    axes = infer(task.build, scenario.sizes, task.declared)
    nodes = [Node(client) for client in range(scenario.clients)]
    plan = plan_round(scenario.make_rule(), 1, nodes, scenario.sizes, scenario.seed)
    whole = arrays_of(build_on_meta(task.build, scenario.sizes))
    for units in plan.subnets:
        narrow = build_on_meta(task.build, {axis: len(held) for axis, held in units.items()})
        assert {name: array.shape for name, array in arrays_of(narrow).items()} == {
            name: tuple(
                len(units[dim.axis]) * dim.outer * dim.inner if dim.axis else length
                for dim, length in zip(dims_of(axes[name]), array.shape, strict=True)
            )
            for name, array in whole.items()
            if all(len(units[block]) for block in owners_of(axes[name]))
        }


def test_options_are_passed_on() -> None:
    assert load_task("digits", {"norm": "layer", "alpha": 2}) == Digits(norm="layer", alpha=2)


def test_ones_own_class_by_import_path() -> None:
    task = load_task("tiny:Tiny", {"norm": "layer"})
    assert isinstance(task, tiny.Tiny)
    assert task.norm == "layer"


def test_ones_own_function_by_import_path(module: Callable[[str], str]) -> None:
    name = module("import tiny\ndef make(size=1, **more):\n    return tiny.Tiny(examples=size + more['extra'])\n")
    assert load_task(f"{name}:make", {"size": 3, "extra": 4}).examples == 7


def test_a_task_need_not_inherit(module: Callable[[str], str]) -> None:
    name = module("""
class Own:
    metric, declared = "hits", {}
    def build(self, **sizes): ...
    def client_data(self, client, clients): ...
    def test_data(self): ...
    def calibration_data(self): ...
    def loss(self, model, batch): ...
    def score(self, model, batch): ...
""")
    assert load_task(f"{name}:Own").metric == "hits"


def test_inheriting_gives_the_defaults(module: Callable[[str], str]) -> None:
    name = module("""
from ist_fed import Task, infer
from ist_fed.arrays import arrays_of, build_on_meta
class Own(Task):
    def build(self, **sizes): ...
    def client_data(self, client, clients): ...
    def test_data(self): ...
    def loss(self, model, batch): ...
    def score(self, model, batch): ...
""")
    task = load_task(f"{name}:Own")
    assert (task.metric, task.declared, task.calibration_data()) == ("accuracy", {}, None)


KINDS = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Any, Literal, Optional
import tiny
@dataclass(frozen=True, kw_only=True)
class Own(tiny.Tiny):
    count: int = 3
    rate: float = 0.5
    name: str = ""
    on: bool = False
    kind: Literal["a", "b"] = "a"
    most: int | None = None
    least: Optional[float] = None
    parts: list[int] = field(default_factory=list)
    whatever: Any = None
"""


@pytest.mark.parametrize(
    "options",
    [
        {"count": 4, "rate": 2, "name": "x", "on": True, "kind": "b", "most": 1, "least": 1},
        {"most": None, "least": None, "parts": "not looked at", "whatever": 3},
    ],
)
def test_options_of_the_annotated_kinds(module: Callable[[str], str], options: dict[str, Any]) -> None:
    task = load_task(f"{module(KINDS)}:Own", options)
    assert {name: getattr(task, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": "many"}, "must be int, but is 'many'; change it in [options]"),
        ({"count": 2.5}, "must be int, but is 2.5"),
        ({"count": True}, "must be int, but is True"),
        ({"rate": "0.1"}, "must be float, but is '0.1'"),
        ({"name": 3}, "must be str, but is 3"),
        ({"on": 1}, "must be bool, but is 1"),
        ({"kind": "c"}, "must be Literal['a', 'b'], but is 'c'"),
        ({"most": "1"}, "must be int | None, but is '1'"),
    ],
)
def test_an_option_of_another_kind(module: Callable[[str], str], options: dict[str, Any], said: str) -> None:
    name = module(KINDS)
    assert said in error(f"{name}:Own", options)
    assert f"option '{next(iter(options))}' of task '{name}:Own'" in error(f"{name}:Own", options)


def test_annotations_that_cannot_be_looked_up_are_not_checked(module: Callable[[str], str]) -> None:
    name = module("import tiny\ndef make(size: 'Nowhere', more: 'int' = 1):\n    return tiny.Tiny()\n")
    assert load_task(f"{name}:make", {"size": 3, "more": "x"})


def test_a_maker_that_fails(module: Callable[[str], str]) -> None:
    name = module("def make(size):\n    return {}[size]\n")
    said = error(f"{name}:make", {"size": 3})
    assert said.startswith(
        "the task's maker, called with the [options] {'size': 3}, must not fail, but raised KeyError: 3"
    )
    assert f"({name}.py, line 2)" in said


# --- A task that is not -----------------------------------------------------------------------------------------------


def test_an_unknown_name_suggests_one() -> None:
    assert error("digts").startswith("there is no task 'digts'; did you mean 'digits'?")
    assert error("zzz").startswith("there is no task 'zzz'; known: ")
    assert "'package.module:attribute'" in error("")


@pytest.mark.parametrize("path", [":", ":x", "x:", "a..b:c", ".a:b", "a:b.c", "a:b:c", "a/b:c", "a b:c", "os.:path"])
def test_a_path_that_is_none(path: str) -> None:
    assert error(path) == f"one's own task is written 'package.module:attribute', but is '{path}'"


def test_a_module_that_is_not_there() -> None:
    said = error("no_such_package.tasks:make")
    assert "cannot be imported: No module named 'no_such_package'" in said
    assert "it and what it needs must be installed, or lie in the folder where the command runs" in said


def test_a_module_without_that_attribute() -> None:
    assert error("tiny:Tny") == "task 'tiny:Tny' cannot be found: 'tiny' has no 'Tny'; did you mean 'Tiny'?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def make(:\n", "raises SyntaxError"),
        ("1 / 0", "raises ZeroDivisionError: division by zero"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise ValueError('mine')", "raises ValueError: mine"),
    ],
)
def test_a_module_that_cannot_be_imported(module: Callable[[str], str], text: str, said: str) -> None:
    assert said in error(f"{module(text)}:make")


@pytest.mark.parametrize("value", ["3", "'text'", "None", "[1]"])
def test_what_cannot_be_called(module: Callable[[str], str], value: str) -> None:
    assert "must be a class or a function that makes a Task, but is a " in error(f"{module(f'make = {value}')}:make")


@pytest.mark.parametrize(
    ("result", "lacking"),
    [
        (
            "None",
            "NoneType it gives lacks metric, declared, build, client_data, test_data, calibration_data, loss, score;",
        ),
        (
            "__import__('types').SimpleNamespace(build=1)",
            "SimpleNamespace it gives lacks metric, declared, client_data, test_data, cal",
        ),
        ("type('Own', (Task,), {})()", "the Own it gives lacks build, client_data, test_data, loss, score; inherit"),
        (
            "type('Own', (tiny.Tiny,), {'score': Task.score})()",
            "the Own it gives lacks score; inherit from ist_fed.Task",
        ),
    ],
)
def test_what_it_makes_lacks_a_member(module: Callable[[str], str], result: str, lacking: str) -> None:
    name = module(f"import tiny\nfrom ist_fed import Task\ndef make():\n    return {result}\n")
    said = error(f"{name}:make")
    assert said.startswith(f"'{name}:make' must give a Task, but the ")
    assert lacking in said


@pytest.mark.parametrize("metric", ["round", "loss"])
def test_a_metric_that_would_overwrite_what_a_run_records(module: Callable[[str], str], metric: str) -> None:
    name = module(f"import tiny\nclass Own(tiny.Tiny):\n    metric = '{metric}'\n")
    assert error(f"{name}:Own") == (
        f"a task's metric must not have the name of what a run records itself, but that of '{name}:Own' is called "
        f"'{metric}'; choose another name, such as 'accuracy'"
    )


# --- Options ----------------------------------------------------------------------------------------------------------


def test_an_unknown_option_suggests_one() -> None:
    assert error("digits", {"nrom": "layer"}) == "task 'digits' has no option 'nrom'; did you mean 'norm'?"
    assert error("digits", {"zzz": 1}).startswith(
        "task 'digits' has no option 'zzz'; known: alpha, model, norm, order, partition, "
    )
    assert "did you mean 'examples'?" in error("tiny:Tiny", {"example": 3})


def test_an_option_of_a_task_that_has_none(module: Callable[[str], str]) -> None:
    name = module("import tiny\ndef make():\n    return tiny.Tiny()\n")
    assert error(f"{name}:make", {"norm": "layer"}) == f"task '{name}:make' has no option 'norm'; it has none"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": "bach"}, "norm must be one of ['batch', 'layer', 'none'], but is 'bach'"),
        ({"norm": 3}, "norm must be one of"),
        ({"partition": "irid"}, "partition must be one of iid, dirichlet, sorted, but is 'irid'"),
        ({"alpha": 0}, "alpha must be a positive number, but is 0"),
        ({"alpha": float("nan")}, "alpha must be a positive number, but is nan"),
        ({"alpha": "much"}, "alpha must be a positive number, but is 'much'"),
        ({"partition_seed": -1}, "partition_seed must be a whole number, not negative, but is -1"),
        ({"partition_seed": 0.5}, "partition_seed must be a whole number, not negative, but is 0.5"),
    ],
)
def test_an_option_that_is_refused_is_named_at_once(options: dict[str, Any], said: str) -> None:
    """And not by every client when it is asked for its data."""
    full = error("digits", options)
    assert full.startswith(f"task 'digits' refused its [options] {options}: ")
    assert said in full


@pytest.mark.parametrize("raised", ["TypeError", "ValueError"])
def test_what_ones_own_task_refuses(module: Callable[[str], str], raised: str) -> None:
    name = module(f"def make(size):\n    raise {raised}(f'size {{size}} is odd')\n")
    assert (
        error(f"{name}:make", {"size": 3}) == f"task '{name}:make' refused its [options] {{'size': 3}}: size 3 is odd"
    )


def test_an_option_that_is_required(module: Callable[[str], str]) -> None:
    name = module("def make(folder):\n    pass\n")
    assert "missing 1 required positional argument: 'folder'" in error(f"{name}:make")

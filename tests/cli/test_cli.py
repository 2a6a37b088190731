"""The command line as a person uses it: what it prints, where it leaves things, how it fails."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ist_fed import cli
from ist_fed.errors import FleetRefused, FleetUnknown, FleetUnreachable

TINY = """
name = "tiny"
task = "digits"
clients = 4
rounds = 3
local_steps = 2

[sizes]
hidden1 = 32
hidden2 = 32

[rule]
name = "disjoint"
groups = 2

[record]
tensorboard = false
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ist_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `ist-fed …` in an empty folder that holds `tiny.toml`; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "200")
    Path("tiny.toml").write_text(TINY)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ist-fed", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_simulate_trains_and_says_where_everything_is(ist_fed: Command) -> None:
    code, out, err = ist_fed("simulate", "tiny.toml")
    assert (code, err) == (0, "")  # quiet when not a terminal
    assert "accuracy" in out
    assert "ist-fed report runs/tiny" in out
    assert Path("runs/tiny/model.safetensors").exists()
    assert len(Path("runs/tiny/metrics.jsonl").read_text().splitlines()) == 3


def test_a_private_run_names_what_it_spent_and_no_report_for_there_is_none(ist_fed: Command) -> None:
    private = ["round.weighting='uniform'", "privacy.mode='central'", "privacy.epsilon=4.0"]
    _, out, _ = ist_fed("simulate", "tiny.toml", *(word for setting in private for word in ("--set", setting)))
    assert ist_fed("report", "runs/tiny")[0] == 1
    assert "report" not in out
    (spent,) = re.findall(r"^spent   (.*)$", out, re.MULTILINE)
    assert Path(spent).exists()


def test_simulate_for_programs(ist_fed: Command) -> None:
    code, out, _ = ist_fed("simulate", "tiny.toml", "--format", "json", "--set", "rounds=2", "--set", "name=other")
    *rounds, summary = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["round"] for line in rounds] == [1, 2]
    assert summary["run"] == "runs/other"
    assert summary["accuracy"] == rounds[-1]["accuracy"]


def test_the_same_scenario_gives_the_same_bits(ist_fed: Command) -> None:
    ist_fed("simulate", "tiny.toml", "--run", "one")
    ist_fed("simulate", "tiny.toml", "--run", "two")
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()


def test_resuming_a_finished_run_changes_nothing(ist_fed: Command) -> None:
    ist_fed("simulate", "tiny.toml")
    model, metrics = Path("runs/tiny/model.safetensors").read_bytes(), Path("runs/tiny/metrics.jsonl").read_text()
    code, out, _ = ist_fed("simulate", "--resume", "runs/tiny")
    assert code == 0
    assert "after 3 rounds" in out
    assert Path("runs/tiny/model.safetensors").read_bytes() == model
    assert Path("runs/tiny/metrics.jsonl").read_text() == metrics


def test_a_run_can_be_made_longer(ist_fed: Command) -> None:
    ist_fed("simulate", "tiny.toml", "--run", "short")
    ist_fed("simulate", "tiny.toml", "--run", "long", "--set", "rounds=5")
    code, _, _ = ist_fed("simulate", "tiny.toml", "--set", "rounds=5", "--resume", "short")
    assert code == 0
    assert Path("short/model.safetensors").read_bytes() == Path("long/model.safetensors").read_bytes()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_bit_for_bit(stop: signal.Signals, ist_fed: Command, tmp_path: Path) -> None:
    ist_fed("simulate", "tiny.toml", "--run", "whole", "--set", "rounds=300")
    command = [sys.executable, "-c", "from ist_fed.cli import main; main()", "simulate", "tiny.toml", "--run", "cut"]
    process = subprocess.Popen(
        [*command, "--set", "rounds=300", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for _ in range(13):  # past a checkpoint, between two
        process.stdout.readline()
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Resume with: ist-fed simulate --resume cut" in err
    assert "Traceback" not in err
    assert not Path("cut/model.safetensors").exists()
    assert ist_fed("simulate", "--resume", "cut")[0] == 0
    whole, cut = load_file("whole/model.safetensors"), load_file("cut/model.safetensors")
    assert all(whole[name].equal(cut[name]) for name in whole)
    assert _untimed("whole") == _untimed("cut")


def _untimed(run: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_inspect_shows_axes_sizes_and_costs(ist_fed: Command) -> None:
    code, out, _ = ist_fed("inspect", "tiny.toml")
    assert code == 0
    assert "hidden2 hidden1" in out
    facts = json.loads(ist_fed("inspect", "tiny.toml", "--format", "json")[1])
    assert facts["axes"]["4.weight"] == {"dims": "hidden2 hidden1", "shape": [32, 32]}
    assert facts["full"]["parameters"] == 64 * 32 + 32 * 32 + 32 * 10 + 10 + 4 * 32
    assert facts["subnets"][0]["parameters"] == 64 * 16 + 16 * 16 + 16 * 10 + 10 + 4 * 16
    assert facts["subnets"][0]["flops"] < facts["full"]["flops"] / 2
    assert 0 < facts["coverage"][0] < facts["coverage"][-1] <= 1


def test_inspect_says_how_much_a_run_does_not_train(ist_fed: Command) -> None:
    _, out, _ = ist_fed("inspect", "tiny.toml")
    assert re.search(r"^50\.0% of the weights are trained at least once after round [12]$", out, re.MULTILINE)
    assert "less than 99.9% of the weights are trained at least once in all 3 rounds\n" in out
    _, out, _ = ist_fed("inspect", "tiny.toml", "--set", 'rule={name="full"}')
    assert "99.9% of the weights are trained at least once after round 1\n" in out


def test_inspect_trains_nothing_and_leaves_nothing(ist_fed: Command) -> None:
    ist_fed("inspect", "tiny.toml")
    assert sorted(os.listdir()) == ["tiny.toml"]


def test_compare_puts_scenarios_side_by_side(ist_fed: Command) -> None:
    settings = [*("--set", "rounds=3"), *("--set", "local_steps=2"), *("--set", "record.tensorboard=false")]
    arguments = ["compare", "digits", "digits-fedavg", *settings, "--target", "0.5", "--folder", "both"]
    code, out, err = ist_fed(*arguments)
    assert code == 0, err
    assert "digits-fedavg" in out
    assert list(Path("both").glob("*.html"))
    before = {path: path.stat().st_mtime_ns for path in Path("both").rglob("metrics.jsonl")}
    rows = json.loads(ist_fed(*arguments, "--format", "json")[1].splitlines()[-1])["rows"]
    assert {path: path.stat().st_mtime_ns for path in Path("both").rglob("metrics.jsonl")} == before  # not run again
    subnets, whole = rows
    assert whole["mb_per_client"] / subnets["mb_per_client"] == pytest.approx(1216568 / 107576)
    assert whole["gflops_per_client"] > 10 * subnets["gflops_per_client"]


def test_compare_says_what_is_the_same(ist_fed: Command) -> None:
    settings = ["--set", "rounds=1", "--set", "local_steps=1", "--set", "record.tensorboard=false", "--folder", "both"]
    code, out, err = ist_fed("compare", "digits", "digits-noniid", *settings)
    assert code == 0, err
    assert "same task, same seed; options differ: alpha, partition" in out
    (flops,) = [line for line in out.splitlines() if "GFLOPs" in line]
    assert "0.0 " not in flops


def test_a_folder_does_not_hide_a_shipped_scenario(ist_fed: Command) -> None:
    Path("digits").mkdir()
    assert ist_fed("inspect", "digits")[0] == 0


def test_a_federation_without_clients_is_refused(ist_fed: Command) -> None:
    code, _, err = ist_fed("deploy", "local", "tiny.toml", "--clients", "0")
    assert code == 2
    assert "--clients" in err
    assert not Path("runs").exists()


def test_report_writes_a_page(ist_fed: Command) -> None:
    ist_fed("simulate", "tiny.toml")
    code, out, _ = ist_fed("report", "runs/tiny")
    assert code == 0
    assert Path(out.split()[-1]).suffix == ".html"
    assert Path(out.split()[-1]).exists()


def test_a_task_of_ones_own_in_the_current_folder(ist_fed: Command) -> None:
    Path("mine_9.py").write_text(
        "from ist_fed.tasks.digits import Digits\n\n\nclass Mine(Digits):\n    metric = 'mine'\n"
    )
    code, out, err = ist_fed("simulate", "tiny.toml", "--set", "task=mine_9:Mine")
    assert code == 0, err
    assert "mine 0." in out


MINE = """
import torch

from ist_fed.tasks.digits import Digits


class Mine(Digits):
    def {what}(self, model, batch):
        return {gives}
"""


@pytest.mark.parametrize(
    ("what", "gives", "says"),
    [
        ("loss", "1.0", "a task's loss() gives a tensor of one element, to differentiate, but gave 1.0; return"),
        ("loss", "torch.ones(2, 3)", "but gave a tensor of shape (2, 3); return"),
        ("score", "None", "a task's score() gives one number, but gave None; return"),
    ],
)
def test_what_a_task_of_ones_own_gives_is_checked(what: str, gives: str, says: str, ist_fed: Command) -> None:
    module = f"mine_{abs(hash((what, gives)))}"  # once imported, a module stays
    Path(f"{module}.py").write_text(MINE.format(what=what, gives=gives))
    code, out, err = ist_fed("simulate", "tiny.toml", "--set", f"task={module}:Mine")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert says in err


FAILS = """
import torch

from ist_fed.tasks.digits import Digits


class Fails(Digits):
    def {method}:
        if {when}:
            raise KeyError("missing")
        return super().{call}
"""


@pytest.mark.parametrize(
    ("method", "when", "says"),
    [
        ("client_data(self, client, clients)", "client == 0", "the task's client_data() for client 0 must not fail"),
        ("test_data(self)", "True", "the task's test_data() must not fail"),
        ("calibration_data(self)", "True", "the task's calibration_data() must not fail"),
        ("loss(self, model, batch)", "not model.training", "the task's loss(), in evaluation, must not fail"),
        (
            "loss(self, model, batch)",
            "batch[0].dtype == torch.float64",
            "the task's loss(), in float64 (give its constants",
        ),
        ("score(self, model, batch)", "len(batch[0]) > 8", "the task's score() must not fail"),
        ("build(self, **sizes)", "True", "the factory must build at any sizes"),
        ("build(self, **sizes)", "torch.empty(1).device.type == 'cpu'", "the factory must build at any sizes"),
    ],
)
def test_what_a_task_of_ones_own_raises_is_a_sentence(method: str, when: str, says: str, ist_fed: Command) -> None:
    module = f"fails_{abs(hash((method, when)))}"
    call = method.replace("self, ", "").replace("self", "")
    Path(f"{module}.py").write_text(FAILS.format(method=method, when=when, call=call))
    own = ["simulate", "tiny.toml", "--set", f"task={module}:Fails"]
    code, out, err = ist_fed(*own)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1
    assert f"raised KeyError: 'missing' ({module}.py, line 10)" in err
    with pytest.raises(cli.IstFedError) as caught:
        ist_fed("--debug", *own)
    assert type(caught.value.__cause__) is KeyError


def test_what_one_client_alone_cannot_read_is_a_sentence_too(ist_fed: Command) -> None:
    Path("fails_2.py").write_text(
        FAILS.format(
            method="client_data(self, client, clients)", when="client == 2", call="client_data(client, clients)"
        )
    )
    code, _, err = ist_fed("simulate", "tiny.toml", "--set", "task=fails_2:Fails")
    assert code == 0
    assert "client_data() for client 2 must not fail, but raised KeyError: 'missing' (fails_2.py, line 10)" in err
    assert "Traceback" not in err


def test_a_score_that_is_not_a_number_is_said_to_be_none(ist_fed: Command) -> None:
    Path("mine_nan.py").write_text(MINE.format(what="score", gives="torch.tensor(torch.nan)"))
    own = ["tiny.toml", "--set", "task=mine_nan:Mine"]
    code, out, err = ist_fed("simulate", *own)
    assert code == 0
    assert "accuracy not a number after 3 rounds" in out
    assert err.startswith("warning: the last accuracy must be a number, or the model is of no use, but is not a number")
    assert "lower training.lr" in err
    assert err.count("\n") == 1
    assert ist_fed("report", "runs/tiny")[0] == 0
    code, _, err = ist_fed("search", *own, "--trials", "1", "--vary", "local_steps=1,2")
    assert code == 1
    assert "but none could" in err


def test_a_loss_that_is_not_a_number_at_the_end_is_said(ist_fed: Command) -> None:
    """The accuracy of a network that diverged is a number as any other."""
    Path("mine_late.py").write_text(
        MINE.format(what="loss", gives="super().loss(model, batch) / (model.training or len(batch[0]) < 9)")
    )
    code, out, err = ist_fed("simulate", "tiny.toml", "--set", "task=mine_late:Mine")
    assert code == 0
    assert "accuracy 0." in out
    assert err.startswith("warning: the last loss must be a number")


def test_what_programs_read_is_json_also_where_a_number_is_not_finite(ist_fed: Command) -> None:
    Path("mine_inf.py").write_text(MINE.format(what="score", gives="torch.tensor(torch.inf)"))
    code, out, _ = ist_fed("simulate", "tiny.toml", "--set", "task=mine_inf:Mine", "--format", "json")
    assert code == 0
    lines = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert [line["accuracy"] for line in lines] == [None] * 4


def test_tensorboard_event_files(ist_fed: Command) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ist_fed("simulate", "tiny.toml", "--set", "record.tensorboard=true")
    events = EventAccumulator("runs/tiny/tensorboard")
    events.Reload()
    lines = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("test/accuracy")] == pytest.approx([e["accuracy"] for e in lines])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate"], "name a scenario"),
        (["simulate", "digts"], "shipped scenarios are cifar-resnet, digits"),
        (["simulate", "tiny.toml", "--set", "training.lrr=1"], "did you mean 'lr'?"),
        (["simulate", "tiny.toml", "--set", "sizes.hidden1=wide"], "'sizes.hidden1' must be a whole number"),
        (["simulate", "tiny.toml", "--set", "rule.groups=3"], "use at most 2 groups"),
        (["simulate", "tiny.toml", "--set", "task=digit"], "did you mean 'digits'?"),
        (["simulate", "tiny.toml", "--set", "task=nowhere:task"], "cannot be imported"),
        (["simulate", "tiny.toml", "--set", "options.nrom=layer"], "did you mean 'norm'?"),
        (["simulate", "tiny.toml", "--set", "device=gpu9"], "but is 'gpu9'"),
        (["simulate", "tiny.toml", "--set", "device=cuda:77"], "device 'cuda:77' cannot be used here"),
        (["simulate", "tiny.toml", "--set", "clients=2000"], "too few for 2000 clients"),
        (["simulate", "tiny.toml", "--resume", "runs/none"], "name the folder of a run"),
        (["report", "runs/none"], "name the folder of a run"),
        (
            ["simulate", "tiny.toml", "--set", "sizes.hidden1=1000000000"],
            "hold the whole network, but for 'tiny' that",
        ),
        (
            ["inspect", "tiny.toml", "--set", "sizes.hidden1=100000000000"],
            "count which units are trained together, but",
        ),
        (["simulate", "tiny.toml", "--set", "rounds=0"], "tiny.toml with --set rounds=0: rounds must be at least 1"),
        (["inspect", "tiny"], "there is no scenario file 'tiny'; shipped"),
        (["inspect", "."], "there is no scenario file '.', only a folder of that name; shipped"),
        (["compare", "digits", "digits-fedavg", "--budget", "bytes"], "are for methods; name some with --methods"),
        (["compare", "digits", "digits-fedavg", "--seeds", "3"], "are for methods; name some with --methods"),
        (["compare", "digits", "digits-fedavg", "--tune", "0.1"], "are for methods; name some with --methods"),
        (["compare", "digits", "digits-fedavg", "--target", "nan"], "a value that the metric may reach, but is nan"),
        (["server", "logs"], "no server has worked in"),
        (["deploy", "local", "tiny.toml", "--run", "."], "choose another folder with --run"),
        (
            ["server", "start", "tiny.toml", "--run", "--insecure", "--folder", "."],
            "choose another folder with --folder",
        ),
        (["server", "start", "--insecure", "--listen", "127.0.0.1"], "65535, but is '127.0.0.1', without a port"),
        (["server", "start", "--insecure", "--listen", "localhost:http"], "--listen is 'host:port', with a port from"),
        (["server", "start", "--insecure", "--listen", "127.0.0.1:99999"], "--listen is 'host:port', with a port from"),
        (["server", "start", "--insecure", "--listen", "127.0.0.1:65535"], "choose another with --streams"),
        (["compare", "tiny.toml"], "at least two scenarios"),
        (["compare", "digits", "digits-fedavg", "--set", "name=same"], "names of their own"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: list[str], says: str, ist_fed: Command) -> None:
    code, out, err = ist_fed(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(("arguments", "meant"), [(["simulat"], "'simulate'"), (["server", "statu"], "'status'")])
def test_a_mistyped_command_is_set_right_once(arguments: list[str], meant: str, ist_fed: Command) -> None:
    code, _, err = ist_fed(*arguments)
    assert code == 2
    assert err.count("Did you mean") == err.count(meant) == 1


def test_a_mistake_costs_no_run_folder(ist_fed: Command) -> None:
    ist_fed("simulate", "tiny.toml", "--set", "rule.groups=3")
    assert ist_fed("simulate", "tiny.toml")[0] == 0


def test_a_run_is_never_overwritten(ist_fed: Command) -> None:
    ist_fed("simulate", "tiny.toml")
    code, _, err = ist_fed("simulate", "tiny.toml")
    assert code == 1
    assert "--resume runs/tiny" in err


def test_resuming_with_another_scenario_is_refused(ist_fed: Command) -> None:
    ist_fed("simulate", "tiny.toml")
    code, _, err = ist_fed("simulate", "tiny.toml", "--set", "training.lr=0.5", "--resume", "runs/tiny")
    assert code == 1
    assert "training.lr: 0.1 → 0.5" in err


def test_debug_shows_the_traceback(ist_fed: Command) -> None:
    with pytest.raises(cli.IstFedError):
        ist_fed("--debug", "simulate", "nothing")


def test_every_command_explains_itself(ist_fed: Command) -> None:
    for command in ("simulate", "inspect", "compare", "report"):
        code, out, _ = ist_fed(command, "-h")
        assert code == 0
        assert "Usage:" in out


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (FleetUnknown("it does not know this client's key"), 77, "error: it does not know this client's key\n"),
        (FleetRefused("this client was revoked"), 1, "error: this client was revoked\n"),
        (FleetUnreachable("nobody answers"), 1, "error: nobody answers\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            1,
            "error: there must be room to write, but a disk",
        ),
        (MemoryError(), 1, "error: there must be memory to work in, but it ran out (MemoryError); lower [sizes]"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: 9 bytes\nand more"), 1, "error: there must be"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_exit_code_tells_what_a_restart_can_mend(
    error: Exception, code: int, says: str, ist_fed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    found, _, said = ist_fed("client", "start")
    assert found == code
    assert said.startswith(says)


@pytest.mark.parametrize("words", [["--example-epsilon", "0"], ["--example-epsilon", "1", "--example-delta", "1"]])
def test_a_client_refuses_a_budget_for_its_examples_that_is_none(words: list[str], ist_fed: Command) -> None:
    code, _, said = ist_fed("client", "start", "--server", "127.0.0.1:1", "--partition", "0/1", *words)
    assert code == 1
    assert "--example-epsilon is positive and --example-delta between 0 and 1" in " ".join(said.split())


@pytest.mark.parametrize(("given", "lacks"), [("127.0.0.1:9092x", ""), ("127.0.0.1", ", without a port")])
def test_a_client_refuses_at_once_a_server_that_it_can_never_call(given: str, lacks: str, ist_fed: Command) -> None:
    code, _, said = ist_fed("client", "start", "--server", given, "--partition", "0/1")
    assert code == 1
    assert said == f"error: --server is 'host:port', with a port from 1 to 65535, but is '{given}'{lacks}\n"

"""`ist-fed audit`: attacks on the product itself, as a scenario uses it, and what they find."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from ist_fed.axes import infer
from ist_fed.cli.arguments import Format, OutputFormat, ScenarioPath, Settings, print_json
from ist_fed.cli.scenarios import find_scenario
from ist_fed.cli.simulate import train_or_go_on
from ist_fed.errors import asking
from ist_fed.evaluate import network
from ist_fed.federation import initial_arrays
from ist_fed.privacy import Mechanism, mechanism
from ist_fed.privacy.audit import Finding, Setting, canaries, membership_inference, update_inversion
from ist_fed.run import Run
from ist_fed.scenario import Scenario
from ist_fed.seeds import generator
from ist_fed.tasks import load_task


def audit(
    scenario: ScenarioPath,
    settings: Settings = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run whose network is attacked; trained first, if it is not there. By default "
            "one is trained and thrown away."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=100, help="Trials with a canary, and as many without.")] = 4000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in a trial with canaries, at most those of the run.")] = 4,
    output: OutputFormat = Format.text,
) -> None:
    """Attack what a scenario releases, and show what is found; ends with 1 if a promise of privacy is broken.

    What it prints is worked out from the clients' examples and is not private itself.
    """
    wanted = find_scenario(scenario, settings)
    found = [on_updates(wanted), on_the_network(wanted, run), on_the_promise(wanted, trials, rounds)]
    if output is Format.json:
        print_json({"scenario": wanted.name, "findings": [asdict(finding) for finding in found]})
    else:
        _show(wanted, found)
    if any(finding.verdict == "promise broken" for finding in found):
        raise typer.Exit(1)


def on_updates(scenario: Scenario) -> Finding:
    """Update inversion."""
    if scenario.privacy.mode == "secure":
        return Finding(
            attack="update inversion",
            adversary="the server",
            verdict="does not apply",
            meaning="no update is seen by anyone, only sums over cohorts, which are not attacked here",
        )
    task = load_task(scenario.task, scenario.options)
    setting = Setting(
        task=task,
        sizes=scenario.sizes,
        axes=infer(task.build, scenario.sizes, task.declared),
        arrays=initial_arrays(scenario, task),
        rule=scenario.make_rule(),
        clients=scenario.clients,
        local_steps=scenario.local_steps,
        training=scenario.training,
        seed=scenario.seed,
    )
    return update_inversion(setting, _promised(scenario))


def on_the_network(scenario: Scenario, folder: Path | None) -> Finding:
    """Membership inference on the network of a run, which is trained first if it is not there."""
    with tempfile.TemporaryDirectory() as temporary:
        return _on_the_network_of(train_or_go_on(scenario, folder or Path(temporary, "run"), "--run"))


def _on_the_network_of(run: Run) -> Finding:
    scenario = run.scenario
    task = load_task(scenario.task, scenario.options)
    model = network(task, scenario.sizes, load_file(run.folder / "model.safetensors"), torch.device("cpu"))
    with asking("client_data()"):
        members = [task.client_data(client, scenario.clients) for client in range(scenario.clients)]
    with asking("test_data()"):
        others = task.test_data()
    return membership_inference(model, task, members, others, generator(scenario.seed, "audit", "membership"))


def on_the_promise(scenario: Scenario, trials: int, rounds: int) -> Finding:
    """Canaries."""
    made = _promised(scenario)
    if made is None:
        return Finding(
            attack="canaries",
            adversary="whoever sees every release",
            verdict="does not apply",
            meaning="the scenario promises no central differential privacy, so there is no epsilon to hold it to",
        )
    return canaries(made, scenario.make_rule(), rounds=min(rounds, scenario.rounds), trials=trials, seed=scenario.seed)


def _promised(scenario: Scenario) -> Mechanism | None:
    if scenario.privacy.mode != "central":
        return None
    return mechanism(scenario.privacy, scenario.make_rule(), clients=scenario.clients, rounds=scenario.rounds)


def _show(scenario: Scenario, found: list[Finding]) -> None:
    console = Console(highlight=False)
    for finding in found:
        table = Table(show_header=False, title=f"{finding.attack} on {scenario.name}: {finding.verdict}")
        table.add_row("by", finding.adversary)
        for name, value in finding.numbers.items():
            for row in value if name == "epsilon" else []:
                what = f"epsilon at delta {row['delta']:g}"
                table.add_row(what, f"at least {row['at least']:.3g}; reported {row['reported']:.3g}")
            if name != "epsilon":
                table.add_row(name, _text(value))
        table.add_row("which means", finding.meaning)
        console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"{_text(value[0])} to {_text(value[1])}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

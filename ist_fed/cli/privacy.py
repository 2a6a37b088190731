"""`ist-fed privacy`: what a scenario promises its clients, worked out without training."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ist_fed.cli.arguments import Format, OutputFormat, ScenarioPath, Settings, find_scenario
from ist_fed.errors import PrivacyError
from ist_fed.privacy import Disclosure, disclose, mechanism
from ist_fed.scenario import Scenario


def privacy(
    scenario: ScenarioPath,
    settings: Settings = None,
    losses: Annotated[
        bool, typer.Option("--pld", help="Also the tighter bound by privacy loss distributions; takes a while.")
    ] = False,
    output: OutputFormat = Format.text,
) -> None:
    """Show what a scenario promises its clients, and what it takes, without training."""
    said = disclosure_of(find_scenario(scenario, settings), losses)
    if output is Format.json:
        print(json.dumps(asdict(said)))
    else:
        _show(said)


def disclosure_of(scenario: Scenario, losses: bool = False) -> Disclosure:
    """What may be said of a scenario.

    Raises:
        PrivacyError: it makes no promise of central differential privacy.
    """
    if scenario.privacy.mode != "central":
        raise PrivacyError(
            f"only a scenario with privacy.mode = 'central' promises differential privacy by the server's noise, but "
            f"{scenario.name}'s is '{scenario.privacy.mode}'; try: --set privacy.mode=central --set privacy.epsilon=4"
        )
    rule = scenario.make_rule()
    made = mechanism(scenario.privacy, rule, clients=scenario.clients, rounds=scenario.rounds)
    return disclose(made, rule, rounds=scenario.rounds, losses=losses)


def _show(said: Disclosure) -> None:
    console = Console(highlight=False)
    table = Table(show_header=False, title="what is promised")
    for name, value in said.facts.items():
        table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    for method, value in said.epsilons.items():
        table.add_row(f"epsilon, {method}", f"{value:.4g}")
    console.print(table)
    table = Table("after round", "epsilon", title=f"at delta {said.facts['delta']:g}")
    for round, value in said.curve.items():
        table.add_row(str(round), f"{value:.4g}")
    console.print(table)
    table = Table("for epsilon", "z as drawn", "z if the draws were known", title="noise that a budget takes")
    for target, (drawn, known) in said.needed.items():
        table.add_row(f"{target:g}", f"{drawn:.4g}", f"{known:.4g}")
    console.print(table)
    console.print("not covered:")
    for line in said.not_covered:
        console.print(f"- {line}")

"""The page about one run: what Independent Subnet Training did in it, told to someone who has never met it."""

from pathlib import Path

from ist_fed.report import sections
from ist_fed.report.again import again
from ist_fed.report.canvas import Drawn, Picture, draw
from ist_fed.report.curves import best_of, final_of, rounds_of
from ist_fed.report.facts import Facts, gather
from ist_fed.report.figures import pictures
from ist_fed.report.four_steps import four_steps
from ist_fed.report.holdings import expected_coverage
from ist_fed.report.numbers import count, score, shares, size
from ist_fed.report.one_round import one_round_picture
from ist_fed.report.page import Html, page, paragraph, tag, tiles, write
from ist_fed.report.units import units_picture
from ist_fed.run import Run
from ist_fed.tasks import Task


def write_report(run: Run, task: Task | None = None) -> Path:
    """Write `report/report.html` into a run's folder, and its pictures beside it; also while the run is going on.

    Args:
        run: of which at least one round is finished.
        task: the scenario's task, if the caller has it. Built-in tasks are found by name; another one is never imported
            because a run's folder names it, and the report then says less of the network.

    Returns:
        The page. It is one file: pictures are embedded, and it asks for nothing else.

    Raises:
        RunError: no round is finished, matplotlib is missing, or the folder cannot be written.
    """
    facts = gather(run, task)
    drawn = {picture.name: draw(picture) for picture in _pictures(facts)}
    return write(run.folder / "report", "report.html", _page(facts, drawn), drawn.values())


def _pictures(facts: Facts) -> list[Picture]:
    scenario, rounds = facts.scenario, rounds_of(facts.lines)
    expected = expected_coverage(scenario, facts.lines, facts.plans, facts.network)
    (plans, sizes), network = facts.shown, facts.network if facts.plans is facts.shown[0] else None
    return [
        one_round_picture(rounds[0], plans[0], sizes, network, facts.unit),
        *([] if facts.lends else [units_picture(rounds, plans, sizes)]),
        *pictures(facts.lines, expected, facts.full_bytes),
    ]


# --- The page ---------------------------------------------------------------------------------------------------------


def _page(facts: Facts, drawn: dict[str, Drawn]) -> str:
    name = facts.scenario.name
    return page(
        f"{name}: Independent Subnet Training",
        tag("h1", name),
        tag("p", _status(facts), class_="muted"),
        _summary(facts),
        _tiles(facts),
        *four_steps(facts, drawn),
        *sections.learning(facts, drawn),
        *sections.units(facts, drawn),
        *sections.coverage(facts, drawn),
        *sections.costs(facts, drawn),
        *sections.refused(facts),
        *again(facts),
    )


def _status(facts: Facts) -> str:
    last, planned = facts.lines[-1]["round"], facts.scenario.rounds
    text = f"Independent Subnet Training · task {facts.scenario.task} · round {last} of {planned}"
    return text if facts.done else f"{text} · no final model yet: the run is going on, or was stopped"


def _summary(facts: Facts) -> Html:
    holdings, scenario = facts.holdings, facts.scenario
    network = "a network"
    if facts.parameters is not None:
        network = f"a network of {facts.parameters:,} parameters ({size(facts.full_bytes)})"
    start = f"{count(facts.clients, 'client')} trained {network} together, each on its own data."
    if holdings.always_whole:
        return paragraph(
            start,
            "Every client held the whole network in every round, so nothing was cut: this is federated averaging "
            "(FedAvg), with which runs of subnets are compared.",
        )
    held = f"{shares(holdings.units)} of its {facts.unit}s"
    if holdings.parameters is not None:
        held += f", and with them {shares(holdings.parameters)} of its parameters"
    kind = "shallower" if facts.unit == "block" else "narrow"
    never = "Some clients held all of it, others a part" if holdings.whole else "No client ever held all of it"
    return paragraph(
        start,
        f"{never}: in each round a client was sent a {kind} network, a subnet, with {held}.",
        f"It trained that for {count(scenario.local_steps, 'step')} and sent it back, and the server put the pieces "
        f"together.",
    )


def _tiles(facts: Facts) -> Html:
    metric, rounds = facts.metric, facts.rounds
    moved = facts.moved("bytes_down", "bytes_up")
    final, best = final_of(facts.lines, facts.model), best_of(facts.lines)
    shown = [
        (
            f"{metric} on held-out data" if facts.done else f"{metric} so far, on held-out data",
            "–" if final is None else score(metric, final),
            f"best {score(metric, best[1])}, after round {best[0]}" if best else "not evaluated yet",
        )
    ]
    if facts.holdings.parameters is not None:
        shown.append(("held by a client at once", shares(facts.holdings.parameters), "of the network's parameters"))
    whole = f"the whole network: {size(2 * facts.full_bytes)}" if facts.full_bytes else "to the client and back"
    shown.append(("moved per client and round", size(moved), whole))
    shown.append(("moved per client in all", size(moved * rounds), f"in {count(rounds, 'round')}"))
    refused = sum(len(line["refused"]) for line in facts.lines)
    asked = sum(len(line["clients"]) for line in facts.lines)
    shown.append(("replies merged", f"{asked - refused:,}", f"of {asked:,}; {refused:,} refused"))
    return tiles(shown)

"""The section that tells what happens in a round, in four steps and a drawing."""

from ist_fed.report.canvas import Drawn
from ist_fed.report.facts import Facts
from ist_fed.report.holdings import Holdings
from ist_fed.report.numbers import count, rule_text
from ist_fed.report.page import Html, figure, tag


def four_steps(facts: Facts, drawn: dict[str, Drawn]) -> list[Html]:
    """What happens in a round, in four steps and a drawing."""
    scenario, training, holdings = facts.scenario, facts.scenario.training, facts.holdings
    send = (
        "Each client was sent the network that its units make. A weight between two hidden units travels only if both "
        "belong to the client's subnet; the network's inputs and outputs are not cut."
    )
    if facts.unit == "block":
        send = (
            "Each client was sent its blocks, and all that is not dealt out: the network's stream, inputs and outputs."
        )
    steps = [
        ("Deal.", f"{_dealing(facts)}."),
        ("Send.", "Each client was sent the whole network." if holdings.always_whole else send),
        (
            "Train.",
            f"Each client took {count(scenario.local_steps, 'step')} of {training.optimizer.upper()} with "
            f"{count(training.batch_size, 'example')} a step. The examples stayed where they were.",
        ),
        ("Merge.", _merging(holdings, facts.unit)),
    ]
    return [
        tag("h2", "One round"),
        tag("ol", *(tag("li", tag("strong", name), " ", text) for name, text in steps)),
        tag("div", figure(drawn["round"], _round_caption(facts)), class_="wide"),
    ]


def _dealing(facts: Facts) -> str:
    scenario, holdings, rule = facts.scenario, facts.holdings, rule_text(facts.scenario.rule)
    if facts.lends:
        return (
            f"The rule, {rule}, lent each client units that nobody else held. Nobody waited: when a client returned "
            f"its units they were merged at once, and it borrowed others of those that were free. A round is as many "
            f"leases that ended as there are clients; the picture shows what was lent out first"
        )
    if holdings.always_whole:
        return f"The rule, {rule}, gave every {facts.unit} to every client"
    fewest, most = holdings.subnets
    subnets = count(most, "subnet") if fewest == most else f"{fewest} to {most} subnets"
    kept = scenario.rule.get("keep", 1)
    moving = ", the clients moving on in between" if scenario.rule.get("rotate", True) else ""
    anew = ", anew in each round" if kept == 1 else f", anew every {kept} rounds{moving}"
    often = anew if holdings.redrawn else ", the same in every round" * (facts.rounds > 1)
    return f"The rule, {rule}, dealt the {facts.unit}s out to {subnets}{often}"


def _merging(holdings: Holdings, unit: str) -> str:
    if holdings.always_whole:
        return "The server took the mean of what came back, weight by weight."
    own = "each weight was written back to its place"
    if unit == "block":
        own += ", and what everyone has became the mean of what came back"
    if holdings.cohort > 1 or not holdings.disjoint:
        own = "a weight that came back from several clients became their mean, and the others were copied"
    if holdings.cohort > 1 and holdings.disjoint:
        own = "the clients of one subnet were averaged, and each weight was written back to its place"
    return f"What came back went into the wide network: {own}. A weight that nobody held kept its value."


def _round_caption(facts: Facts) -> str:
    if facts.holdings.always_whole:
        return "Every hidden unit has one colour, because there is one subnet: the whole network."
    if facts.unit == "block":
        text = (
            "Blocks of one colour are one subnet: a network without the others, past which the stream goes unchanged."
        )
        return text if facts.holdings.disjoint else f"{text} A block of several colours is in several."
    text = (
        "Follow one colour from the inputs to the outputs: those units, and the lines that join them, are one subnet. "
        "It has the same depth as the whole network, and is narrower."
    )
    if not facts.holdings.disjoint:
        return f"{text} A unit of several colours is held by several subnets."
    if len(facts.scenario.sizes) > 1:
        text += " A line between two colours would be a weight that nobody trains in this round; there is none."
    return text

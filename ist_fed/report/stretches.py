"""The phases that a run has been through."""

from ist_fed.report.facts import Facts
from ist_fed.report.numbers import rule_text
from ist_fed.report.page import Html, paragraph, table


def gone_through(facts: Facts) -> list[Html]:
    """The phases that the run has been through, if it has any."""
    if not facts.scenario.phases:
        return []
    rows = []
    for phase in sorted({line["phase"] for line in facts.lines}):
        own, rounds = facts.scenario.during(phase), [line["round"] for line in facts.lines if line["phase"] == phase]
        steps, rate = str(own.local_steps), f"{own.training.optimizer} {own.training.lr}, {own.training.schedule}"
        rows.append([str(phase), f"{rounds[0]} to {rounds[-1]}", rule_text(own.rule), steps, rate])
    header = ["phase", "rounds", "rule", "local steps", "learning rate"]
    return [
        paragraph("The run went through phases; dotted lines in the curves stand between them."),
        table(header, rows),
    ]

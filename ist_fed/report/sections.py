"""The sections of what was measured in a run: text around pictures and tables. Each is a list of elements."""

from collections import defaultdict
from collections.abc import Sequence

from ist_fed.report.canvas import Drawn
from ist_fed.report.curves import Line, final_of, virtual_of
from ist_fed.report.facts import Facts
from ist_fed.report.figures import phases
from ist_fed.report.holdings import Holdings, followed
from ist_fed.report.numbers import amount, count, percent, score, size
from ist_fed.report.page import Html, figure, pair, paragraph, table, tag
from ist_fed.report.stretches import gone_through
from ist_fed.report.units import AXES, ROUNDS

_REASONS, _LETTERS = 50, 300  # rows of the table of refused replies, and of a reason: clients write them


def learning(facts: Facts, drawn: dict[str, Drawn]) -> list[Html]:
    """Metric and loss."""
    final = final_of(facts.lines, facts.model)
    said = "The whole network has not been evaluated yet."
    if final is not None:
        state = "The final network" if facts.done else "The network so far"
        said = f"{state} has {facts.metric} {score(facts.metric, final)} on held-out data."
    return [
        tag("h2", "What it learnt"),
        paragraph(
            said,
            "It is measured on the whole network, put together on the server; the clients' loss is that of their own "
            "subnets on their own data, so the two need not agree.",
        ),
        *gone_through(facts),
        pair(
            figure(drawn["learning-rounds"], "Against rounds: how fast it learnt."),
            figure(drawn["learning-megabytes"], "Against megabytes per client: what learning cost in traffic."),
        ),
        *_in_virtual_time(facts, drawn),
    ]


def _in_virtual_time(facts: Facts, drawn: dict[str, Drawn]) -> list[Html]:
    if (seconds := virtual_of(facts.lines)) is None:
        return []
    text = (
        f"Against the clock of the network that the scenario simulates: there {count(facts.rounds, 'round')} would "
        f"have taken {seconds[-1]:,.4g} s."
    )
    return [tag("div", figure(drawn["learning-virtual"], text), class_="narrow")]


def units(facts: Facts, drawn: dict[str, Drawn]) -> list[Html]:
    """Who held which units; nothing of leases, which are not dealt out in rounds."""
    if facts.lends:
        return []
    holdings, client = facts.holdings, followed(facts.plans)
    more = []
    if not holdings.disjoint:
        more.append(f"A tile of several colours is a {facts.unit.split()[-1]} that several subnets held.")
    if holdings.redrawn:
        kept = facts.scenario.rule.get("keep", 1)
        more.append(f"A letter means a new subnet {'in each round' if kept == 1 else f'every {kept} rounds'}.")
    if len(facts.lines) > ROUNDS:
        more.append(f"The first {ROUNDS} rounds are shown.")
    if len(facts.shown[1]) > AXES:
        more.append(f"The first {AXES} of {len(facts.shown[1])} axes are shown.")
    return [
        tag("h2", "Who held which units"),
        paragraph(
            f"Each column is a round, each row a {facts.unit} (an even sample of them), and the colour is that of the "
            f"subnet that held it. Dots follow client {client}.",
            *more,
        ),
        tag("div", figure(drawn["units"]), class_="wide"),
        paragraph(_seen(holdings, client, facts.unit)),
    ]


def _seen(holdings: Holdings, client: int, unit: str) -> str:
    if holdings.always_whole:
        return ""
    return (
        f"Over the run, client {client} held {percent(holdings.seen)} of the {unit}s at one time or another. "
        f"Holding little at once saves traffic, memory and arithmetic; it keeps no secret from a client."
    )


def coverage(facts: Facts, drawn: dict[str, Drawn]) -> list[Html]:
    """How much of the network was trained."""
    last, holdings = facts.lines[-1], facts.holdings
    rare = "a weight between two hidden layers is trained only in rounds in which both its units are in one subnet"
    even = holdings.units[0] == holdings.units[1] and holdings.subnets[0] == holdings.subnets[1]
    if holdings.disjoint and holdings.redrawn and even:
        dealt = "round" if facts.scenario.rule.get("keep", 1) == 1 else "draw"
        rare += f", which is about one {dealt} in {amount(1 / (holdings.subnets[0] * holdings.units[0] ** 2))}"
    return [
        tag("h2", "How much of the network was trained"),
        paragraph(
            f"After round {last['round']}, {percent(last['coverage'])} of the network had been trained by some client "
            f"at least once.",
            f"What takes longest: {rare}." if not holdings.always_whole and len(facts.shown[1]) > 1 else "",
        ),
        tag("div", figure(drawn["coverage"]), class_="narrow"),
    ]


def costs(facts: Facts, drawn: dict[str, Drawn]) -> list[Html]:
    """Bytes, beside those of the whole network, and seconds."""
    rounds, down, up = facts.rounds, facts.moved("bytes_down"), facts.moved("bytes_up")
    rows: list[tuple[str, float, float]] = [("a round of this run", down, up)]
    full, said = facts.full_bytes, ""
    if full:
        rows.append(("a round with the whole network (FedAvg)", full, full))
        if not facts.holdings.always_whole:
            said = f"A round with the whole network would move {amount(2 * full / (down + up))} times as much."
    if rounds > 1:
        rows += [
            (f"{count(rounds, 'round')}{what.removeprefix('a round')}", d * rounds, u * rounds) for what, d, u in rows
        ]
    cells = [[what, size(d), size(u), size(d + u)] for what, d, u in rows]
    return [
        tag("h2", "What it cost"),
        paragraph(
            "Counted are the bytes of the networks sent out, and of those that came back and were merged; messages add "
            "a little around them.",
            said,
            "What counts in the end is the bytes until the network is good enough, for subnets may need more rounds; "
            "a comparison of runs shows that.",
        ),
        table(["per client", "down", "up", "both"], cells, numbers=1),
        pair(figure(drawn["bytes"], "Traffic of the mean client."), figure(drawn["seconds"], _time(facts.lines))),
    ]


def _time(lines: Sequence[Line]) -> str:
    seconds = [sum(phases(line)) for line in lines]
    text = f"All rounds together took {sum(seconds):,.3g} s on the server's clock."
    training = sum(line["seconds"].get("train", 0.0) for line in lines)
    waited = sum(line["seconds"].get("wait", training) for line in lines)
    if training > 1.01 * waited:
        text += f" Clients trained at the same time: their own clocks add up to {training:,.3g} s."
    return (
        f"{text} assign draws the units, extract cuts and packs subnets, merge checks and writes back, record saves; "
        f"other is waiting in which no client trained."
    )


def refused(facts: Facts) -> list[Html]:
    """Replies that were not merged, by reason; nothing if there are none."""
    reasons: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in facts.lines:
        for refused in line["refused"]:
            reasons[refused["reason"]].append((line["round"], refused["client"]))
    if not reasons:
        return []
    most = sorted(reasons.items(), key=lambda item: -len(item[1]))
    rows = [
        [_short(reason), _numbers(sorted({c for _, c in at})), _numbers([r for r, _ in at]), f"{len(at):,}"]
        for reason, at in most
    ]
    left = [paragraph(f"{len(rows) - _REASONS:,} more reasons are in metrics.jsonl.")] if len(rows) > _REASONS else []
    return [
        tag("h2", "Refused replies"),
        paragraph(
            "A reply that is late, broken or not what was asked for is not merged: its weights keep the value they "
            "had, unless another client brings them too."
        ),
        table(["reason", "clients", "rounds", "times"], rows[:_REASONS], numbers=3),
        *left,
    ]


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…"


def _numbers(numbers: Sequence[int]) -> str:
    distinct = list(dict.fromkeys(numbers))
    more = f" and {len(distinct) - 8:,} more" if len(distinct) > 8 else ""
    return ", ".join(map(str, distinct[:8])) + more

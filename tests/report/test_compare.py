"""Rows are what anyone would work out from the lines, and the page shows them and nothing else."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from written import WriteRun

from ist_fed.errors import RunError
from ist_fed.report import comparison_rows, write_comparison
from ist_fed.run import Run


class Cells(HTMLParser):
    """The first table, row by row, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._open = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") or name == "href" for name, _ in attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data.replace("\xa0", " ")


def by_hand(run: Run, target: float) -> dict[str, Any]:
    """The same numbers, from the file itself."""
    moved, at, best, last = 0.0, None, -1.0, None
    lines = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        moved += (line["bytes_down"] + line["bytes_up"]) / len(line["clients"])
        if "accuracy" in line:
            last = line["accuracy"]
            best = max(best, last)
            if at is None and last >= target:
                at = (line["round"], moved / 1e6)
    return {
        "final": last,
        "best": best,
        "rounds": len(lines),
        "mb_per_client": moved / 1e6,
        "steps_per_client": 10 * len(lines),
        "target_round": at and at[0],
        "target_mb_per_client": at and at[1],
    }


@pytest.fixture
def runs(write_run: WriteRun) -> list[Run]:
    odd: dict[int, dict[str, Any]] = {round: {"accuracy": ..., "loss": ...} for round in (1, 3, 5)}
    falling = {round: {"accuracy": 0.9 - round / 10, "bytes_down": 1_000_000 * round} for round in range(1, 7)}
    fewer = {4: {"clients": [1, 2], "capacities": [1.0, 1.0]}}
    return [
        write_run("odd", lines={**odd, **fewer}),
        write_run("whole", lines=falling, rule={"name": "full"}),
        write_run("short", rounds=2),
    ]


@pytest.mark.parametrize("target", [0.5, 0.8, 0.97])
def test_rows_are_what_one_works_out_by_hand(runs: list[Run], target: float) -> None:
    for row, run in zip(comparison_rows(runs, target), runs, strict=True):
        expected = by_hand(run, target)
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        assert row["metric"] == "accuracy"
    assert [row["name"] for row in comparison_rows(runs, target)] == ["odd", "whole", "short"]
    assert [row["rule"] for row in comparison_rows(runs, None)] == [
        "disjoint (groups 4)",
        "full",
        "disjoint (groups 4)",
    ]


def test_without_a_target_nothing_was_reached(runs: list[Run]) -> None:
    assert {row["target_round"] for row in comparison_rows(runs, None)} == {None}


def test_a_run_that_was_never_evaluated(write_run: WriteRun) -> None:
    (row,) = comparison_rows([write_run(lines={0: {"accuracy": ..., "loss": ...}})], 0.5)
    assert (row["final"], row["best"], row["target_round"]) == (None, None, None)


def test_the_final_networks_metric_is_the_final_one(write_run: WriteRun) -> None:
    (row,) = comparison_rows([write_run(model={"round": 6, "metric": "accuracy", "accuracy": 0.25})], 0.5)
    assert row["final"] == 0.25


def test_runs_of_different_metrics_are_not_compared(write_run: WriteRun) -> None:
    other = write_run("b", lines={0: {"metric": "auc", "auc": 0.5}})
    with pytest.raises(RunError, match="measure accuracy, auc"):
        comparison_rows([write_run("a"), other], None)


def test_a_run_without_a_round_cannot_be_compared(write_run: WriteRun) -> None:
    with pytest.raises(RunError, match="'b' has none yet"):
        comparison_rows([write_run("a"), write_run("b", rounds=0)], None)


def test_a_page_of_its_own(runs: list[Run], tmp_path: Path) -> None:
    folder = tmp_path / "not there" / "yet"
    path = write_comparison(runs, comparison_rows(runs, 0.8), folder, 0.8)
    assert path == folder / "comparison.html"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    html = path.read_text(encoding="utf-8")
    urls = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    assert len(urls) == 4
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    assert not re.search(r"https?://|<script|<link", html)


@pytest.mark.usefixtures("undrawn")
def test_the_table_shows_every_key_of_the_rows(runs: list[Run], tmp_path: Path) -> None:
    rows = comparison_rows(runs, 0.8)
    for row in rows:
        row |= {"gflops_per_client": 1234.5, "target_gflops_per_client": None, "my_own_number": 7}
    table = Cells(write_comparison(runs, rows, tmp_path, 0.8).read_text(encoding="utf-8")).rows
    assert table[0] == [
        "run",
        "rule",
        "rounds",
        "final accuracy",
        "best accuracy",
        "round that reached 80 %",
        "MB per client until then",
        "GFLOPs per client until then",
        "MB per client in all",
        "GFLOPs per client in all",
        "local steps per client",
        "my own number",
    ]
    reached = ["4", f"{rows[0]['target_mb_per_client']:.3g}", "never"]
    total = [f"{rows[0]['mb_per_client']:.3g}", "1,234", "60", "7"]
    assert table[1] == ["odd", "disjoint (groups 4)", "6", "98.44 %", "98.44 %", *reached, *total]
    assert table[3][5:7] == ["never", "never"]


@pytest.mark.usefixtures("undrawn")
def test_without_a_target_the_table_says_nothing_of_one(runs: list[Run], tmp_path: Path) -> None:
    html = write_comparison(runs, comparison_rows(runs, None), tmp_path, None).read_text(encoding="utf-8")
    assert len(Cells(html).rows[0]) == 7
    assert "never" not in html


@pytest.mark.usefixtures("undrawn")
def test_the_findings_are_true(runs: list[Run], tmp_path: Path) -> None:
    html = write_comparison(runs, comparison_rows(runs, 0.8), tmp_path, 0.8).read_text(encoding="utf-8")
    assert "odd reached accuracy 80\xa0% with" in html
    assert "whole moved 0.126 MB for the same" in html
    assert "short did not reach accuracy 80\xa0%." in html
    assert "rule.name: disjoint → full" in html


def test_hostile_and_odd_names(write_run: WriteRun, tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>", "_$\\frac{", "実験 😀"]
    runs = [write_run(name, rounds=2) for name in names]
    cells = Cells(write_comparison(runs, comparison_rows(runs, 0.5), tmp_path, 0.5).read_text(encoding="utf-8"))
    assert [row[0] for row in cells.rows[1:]] == names
    assert "script" not in cells.tags


def test_more_runs_than_colours(write_run: WriteRun, tmp_path: Path) -> None:
    runs = [write_run(f"run{number}", rounds=2) for number in range(11)]
    assert write_comparison(runs, comparison_rows(runs, 0.6), tmp_path, 0.6).exists()


def test_virtual_seconds_are_compared_where_there_are_any(write_run: WriteRun, tmp_path: Path) -> None:
    times = {round: {"virtual": {"round": 2.5, "total": 2.5 * round}} for round in range(1, 7)}
    runs = [write_run("one", lines=times), write_run("other")]
    rows = comparison_rows(runs, 0.8)
    assert (rows[0]["virtual_seconds"], rows[0]["target_virtual_seconds"]) == (15.0, 7.5)
    assert "virtual_seconds" not in rows[1]
    html = write_comparison(runs, rows, tmp_path, 0.8).read_text()
    head, one, other = Cells(html).rows[:3]
    assert (one[head.index("virtual seconds in all")], other[head.index("virtual seconds in all")]) == ("15", "–")

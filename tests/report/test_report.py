"""The page about one run: one file, true numbers, nothing unescaped, also when little is known."""

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from written import WriteRun

from ist_fed.errors import RunError
from ist_fed.report import write_report
from ist_fed.report.page import page, tag
from ist_fed.tasks.digits import Digits

PICTURES = ["bytes", "coverage", "learning-megabytes", "learning-rounds", "round", "seconds", "units"]
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Reader(HTMLParser):
    """Collects what a browser would act on, and the text it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).replace("\xa0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def assert_safe(reader: Reader) -> None:
    assert not reader.tags & {"script", "link", "iframe", "object", "base", "form"}
    assert not any(name.startswith("on") for name in reader.attributes)
    assert "href" not in reader.attributes
    for name in ("src", "srcset"):
        assert all(url.startswith("data:image/png;base64,") for url in reader.attributes.get(name, ()))


# --- One file ---------------------------------------------------------------------------------------------------------


def test_a_page_and_its_pictures(write_run: WriteRun) -> None:
    run = write_run(lines={3: {"refused": [{"client": 2, "reason": "late"}], "merged": 7}})
    path = write_report(run)
    assert path == run.folder / "report" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        *sorted(f"{name}.png" for name in PICTURES if name < "report"),
        "report.html",
        *sorted(f"{name}.png" for name in PICTURES if name > "report"),
    ]
    html = path.read_text(encoding="utf-8")
    assert_safe(Reader(html))
    assert not re.search(r"https?://|[\"'(]//|@import|url\(", html)
    for name in PICTURES:
        png = (path.parent / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert base64.b64encode(png).decode() in html  # the page does not need the file
    assert html.count("prefers-color-scheme: dark") == len(PICTURES) + 1  # a dark version of each, and of the page


# --- True numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_numbers_are_those_of_the_formulas(write_run: WriteRun) -> None:
    text = read(write_report(write_run())).text
    # Linear without bias, BatchNorm with two parameters a unit, and the head's biases.
    full = 64 * 64 + 64 * 96 + 96 * 10 + 10 + 2 * (64 + 96)
    narrow = 64 * 16 + 16 * 24 + 24 * 10 + 10 + 2 * (16 + 24)
    size = 4 * full + 4 * 2 * (64 + 96) + 8 * 2  # running statistics, and a counter for each layer
    assert f"{full:,} parameters ({size / 1000:.3g} kB)" in text
    assert f"{100 * narrow / full:.3g} % of its parameters" in text
    assert "25 % of its hidden units" in text
    assert "No client ever held all of it" in text
    down = sum(8000 + round for round in range(1, 7)) / 8 / 6
    assert f"{(down + 1000) / 1000:.3g} kB" in text
    assert f"would move {2 * size / (down + 1000):.3g} times as much" in text
    assert f"{100 * (1 - 0.5**6):.4g} %" in text
    assert "about one round in 4" in text


@pytest.mark.usefixtures("undrawn")
def test_how_seldom_a_weight_is_trained_is_said_in_draws_where_they_are_kept(write_run: WriteRun) -> None:
    text = read(write_report(write_run(rule={"name": "disjoint", "groups": 4, "keep": 3}))).text
    assert "about one draw in 4" in text


@pytest.mark.usefixtures("undrawn")
def test_the_final_networks_metric_goes_before_the_last_rounds(write_run: WriteRun) -> None:
    model = {"round": 6, "metric": "accuracy", "accuracy": 0.4321, "loss": 1.0, "parameters": 1, "bytes": 4}
    text = read(write_report(write_run(model=model))).text
    assert "The final network has accuracy 43.21 %" in text
    assert "--resume" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_model_of_an_earlier_end_is_not_the_final_one(write_run: WriteRun) -> None:
    text = read(write_report(write_run(model={"round": 4, "metric": "accuracy", "accuracy": 0.4321}))).text
    assert "43.21" not in text
    assert "--resume" in text


@pytest.mark.usefixtures("undrawn")
def test_who_held_the_whole_network_is_not_told_otherwise(write_run: WriteRun) -> None:
    text = read(write_report(write_run(rule={"name": "full"}))).text
    assert "No client ever held all of it" not in text
    assert "federated averaging" in text


@pytest.mark.usefixtures("undrawn")
def test_refused_replies_are_counted_by_reason(write_run: WriteRun) -> None:
    late = {"refused": [{"client": 2, "reason": "too late"}, {"client": 1, "reason": "too late"}]}
    broken = {"refused": [{"client": 2, "reason": "too late"}, {"client": 7, "reason": "x" * 5000}]}
    text = read(write_report(write_run(lines={2: late, 5: broken}))).text
    assert "too late 1, 2 2, 5 3" in text  # clients, rounds, times
    assert "x" * 200 in text
    assert "x" * 1000 not in text
    assert "44 of 48; 4 refused" in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_on_a_simulated_network_is_told_in_its_seconds_too(write_run: WriteRun) -> None:
    times = {round: {"virtual": {"round": 2.5, "total": 2.5 * round}} for round in range(1, 7)}
    run = write_run(lines=times)
    html = write_report(run).read_text()
    assert "there 6 rounds would have taken 15 s" in html
    assert (run.folder / "report" / "learning-virtual.png").exists()


def test_leases_are_told_of_without_plans_that_there_never_were(write_run: WriteRun) -> None:
    ended = {"clients": [3, 1, 3, 0], "capacities": [1.0] * 4, "limits": [1.0] * 4}
    run = write_run(rule={"name": "lease", "groups": 4, "min_units": 4}, clients=4, lines={0: ended})
    html = write_report(run).read_text()
    assert "Nobody waited" in html
    assert "Who held which units" not in html
    assert not (run.folder / "report" / "units.png").exists()


def test_the_scenario_is_there_to_be_run_again(write_run: WriteRun) -> None:
    run = write_run()
    assert " ".join(run.scenario.to_toml().split()) in read(write_report(run)).text


@pytest.mark.usefixtures("undrawn")
def test_the_page_does_not_tell_where_its_author_lives(write_run: WriteRun, tmp_path: Path) -> None:
    assert str(tmp_path) not in write_report(write_run()).read_text()


@pytest.mark.usefixtures("undrawn")
def test_commands_name_the_run_as_it_is_seen_from_here(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "ist-fed report 'runs/my run'" in read(write_report(write_run("my run"))).text


# --- Nothing unescaped ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_what_others_wrote_is_shown_and_not_obeyed(write_run: WriteRun) -> None:
    run = write_run(
        HOSTILE.replace("/", "∕"),
        lines={0: {"metric": HOSTILE, HOSTILE: 0.5}, 2: {"refused": [{"client": 1, "reason": HOSTILE}]}},
        task=HOSTILE,
        options={"a": HOSTILE},
        sizes={"<i>$x": 64, "_y": 64},
    )
    reader = read(write_report(run))
    assert_safe(reader)
    assert "i" not in reader.tags
    assert reader.text.count("<script>alert(1)</script>") >= 4


def test_text_is_escaped_wherever_it_is_put_in() -> None:
    assert tag("p", "<b>", tag("em", "&"), class_='"') == '<p class="&quot;">&lt;b&gt;<em>&amp;</em></p>'
    assert "<title>&lt;b&gt;</title>" in page("<b>", "<i>")
    assert "<i>" not in page("<b>", "<i>")


# --- When little is known ---------------------------------------------------------------------------------------------


def test_a_run_without_a_finished_round(write_run: WriteRun) -> None:
    with pytest.raises(RunError, match="at least one finished round"):
        write_report(write_run(rounds=0))


def test_a_line_of_something_else(write_run: WriteRun) -> None:
    with pytest.raises(RunError, match="lacks bytes_up, clients"):
        write_report(write_run(lines={2: {"bytes_up": ..., "clients": ...}}))


def test_a_model_file_that_is_not_whole(write_run: WriteRun) -> None:
    run = write_run()
    (run.folder / "model.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        write_report(run)


@pytest.mark.usefixtures("undrawn")
def test_in_the_middle_of_a_run(write_run: WriteRun) -> None:
    rare: dict[int, dict[str, Any]] = {round: {"accuracy": ..., "loss": ...} for round in (1, 2, 4)}
    reader = read(write_report(write_run(rounds=4, lines=rare)))
    assert "round 4 of 6" in reader.text
    assert "no final model yet" in reader.text
    assert "accuracy so far" in reader.text
    assert "87.5 %" in reader.text  # of round 3, the last that was evaluated


@pytest.mark.usefixtures("undrawn")
def test_nothing_evaluated_and_no_loss_that_is_finite(write_run: WriteRun) -> None:
    nothing = {"accuracy": ..., "loss": ..., "train_loss": float("nan")}
    assert "has not been evaluated yet" in read(write_report(write_run(rounds=2, lines={0: nothing}))).text


@pytest.mark.usefixtures("undrawn")
def test_two_devices_of_one_number(write_run: WriteRun) -> None:
    write_report(write_run(lines={0: {"clients": [0, 0, 1, 2, 3, 4, 5, 6]}}))


def test_a_run_is_read_without_running_what_it_names(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    run = write_run(task="trap:Task", model={"round": 6, "metric": "accuracy", "parameters": 4321, "bytes": 17284})
    text = read(write_report(run)).text
    assert "trap" not in sys.modules
    assert "4,321 parameters (17.3 kB)" in text
    assert "% of its parameters" not in text
    assert "% of its parameters" in read(write_report(run, Digits())).text  # the caller may hand the task over


def test_without_matplotlib(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = write_run()
    with pytest.raises(RunError, match=re.escape("pip install 'ist_fed[report]'")):
        write_report(run)
    assert not (run.folder / "report").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_cannot_be_written(write_run: WriteRun) -> None:
    run = write_run()
    (run.folder / "report").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(run)


def test_importing_the_report_does_not_import_matplotlib() -> None:
    import subprocess

    code = "import sys, ist_fed.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


RESNET = {"mid1": 4, "mid2": 4, "mid3": 4, "block1": 1, "block2": 1, "block3": 1, "mid4": 5, "mid5": 5, "mid6": 5}


def test_a_run_by_whole_blocks_is_told_of_as_that(write_run: WriteRun) -> None:
    """Five blocks in four groups: one or two of them each, and everything that is no block."""
    sizes = {**RESNET, "block5": 1, "block6": 1}
    run = write_run(rule={"name": "blocks", "groups": 4}, sizes=sizes, options={"model": "resnet"})
    text, folder = read(write_report(run)).text, run.folder / "report"
    assert "was sent a shallower network, a subnet, with 20 to 40 % of its blocks" in text
    assert "dealt the blocks out to 4 subnets" in text
    assert "each row a block" in text
    assert "hidden unit" not in text
    assert "narrower" not in text
    assert (folder / "round.png").exists()
    assert (folder / "units.png").exists()

"""What the pages say: every key of a scenario, with its default and meaning, and links that lead somewhere."""

import re
from dataclasses import MISSING, Field, fields
from inspect import getdoc
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from ist_fed.errors import ScenarioError
from ist_fed.network import Network
from ist_fed.network.description import Tier
from ist_fed.phases import Stretch
from ist_fed.privacy import Privacy
from ist_fed.privacy.example import ExamplePrivacy
from ist_fed.privacy.secure import Secure
from ist_fed.robust import Robust
from ist_fed.scenario import Record, Rounds, Scenario, parse_scenario
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.train import Training

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
TABLES: dict[str, Any] = {
    "[training]": Training,
    "[round]": Rounds,
    "[record]": Record,
    "[server]": ServerOptimizer,
    "[[phases]]": Stretch,
    "[network]": Network,
    "[network.tiers.NAME]": Tier,
    "[privacy]": Privacy,
    "[secure]": Secure,
    "[example_privacy]": ExamplePrivacy,
    "[robust]": Robust,
}


def test_every_table_of_a_scenario_has_a_section() -> None:
    keys = [f"[{f.name}]" for f in fields(Scenario) if f.name in {*_tables(), "sizes", "rule", "options"}]
    found = re.findall(r"^## `(\[+)(\w+)\S*`", PAGE, re.MULTILINE)
    assert {f"[{key}]" for _, key in found} == {*keys, "[phases]"}


def test_every_key_beside_the_tables_is_documented() -> None:
    apart = {*_tables(), "sizes", "rule", "options", "phases"}
    assert _table(Scenario, [f for f in fields(Scenario) if f.name not in apart]) in PAGE


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_documented_as_the_code_has_it(table: str) -> None:
    section = PAGE.split(f"\n## `{table}`", 1)[1].partition("\n## ")[0]
    assert _table(TABLES[table], fields(TABLES[table])) in section


def _tables() -> set[str]:
    return {table.strip("[]") for table in TABLES}


def _table(cls: Any, keys: "list[Field[Any]] | tuple[Field[Any], ...]") -> str:
    said = _meanings(cls)
    return "\n".join(f"| `{key.name}` | {_default(key)} | {said[key.name]} |" for key in keys)


def _default(key: "Field[Any]") -> str:
    if key.default_factory is not MISSING:
        return "none"
    if key.default is MISSING:
        return "to be given"
    if key.default is None:
        return "as in `[network]`"
    return f"`{tomli_w.dumps({'key': key.default}).strip().partition(' = ')[2]}`"


def _meanings(cls: Any) -> dict[str, str]:
    """Key → what the class's docstring says of it, on one line."""
    listed = (getdoc(cls) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", listed, re.MULTILINE)
    return {key: re.sub(r"\s+", " ", text) for key, text in found}


def test_the_least_scenario_is_one_and_cannot_be_less() -> None:
    (least,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert parse_scenario(least).name == "mine"
    for line in filter(None, least.splitlines()):
        with pytest.raises(ScenarioError):
            parse_scenario(least.replace(f"{line}\n", "", 1))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_what_is_there(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        leads_to = (path.parent / name) if name else path
        assert leads_to.exists(), target
        assert not heading or heading in _headings(leads_to), target


def _headings(path: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub makes it of them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

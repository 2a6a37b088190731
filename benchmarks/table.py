"""Write the tables of docs/benchmarks.md from benchmarks/results/*.json; what stands outside the markers is left alone.

    python benchmarks/table.py

A results file has this shape, and may have more keys, which are not shown:

    {"title": "…", "machine": {"cpu": "…", …}, "command": "make …",
     "columns": ["…", …], "rows": [["…", 1.2, …], …], "notes": ["…", …],
     "tables": [{"title": "…", "columns": […], "rows": […]}, …]}     # more tables; may be left out

Each file `NAME.json` fills what stands between `<!-- NAME -->` and `<!-- /NAME -->`. A file that has no place yet gets
one at the end. `RENDERERS` names the files that have a shape of their own.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def section(results: Mapping[str, Any]) -> str:
    """A results file of the usual shape."""
    parts = [origin(results), table(results["columns"], results["rows"])]
    parts += [f"- {note}" if len(results["notes"]) > 1 else note for note in map(one_line, results.get("notes", []))]
    for more in results.get("tables", []):
        parts += [f"**{more['title']}**", table(more["columns"], more["rows"])]
    return "\n\n".join(parts)


def core(results: Mapping[str, Any]) -> str:
    """`core.json`: what was measured against what, line by line."""
    if "columns" in results:
        return section(results)
    columns = ["what", "slice", "n", "ms", "fraction", "target", "of the speed of"]
    rows = [
        [
            line["what"],
            line["slice"],
            line["n"],
            f"{1e3 * line['seconds']:.1f}",
            f"{line['fraction']:.2f}",
            "" if line["target"] is None else f"{line['target']:.1f}{missed(line)}",
            line["against"],
        ]
        for line in results["core"]
    ]
    return "\n\n".join([origin({"command": "make bench-core", **results}), table(columns, rows)])


def missed(line: Mapping[str, Any]) -> str:
    return " (missed)" if line["fraction"] < line["target"] else ""


RENDERERS: dict[str, Callable[[Mapping[str, Any]], str]] = {"core": core}


def origin(results: Mapping[str, Any]) -> str:
    """Which command, on which machine."""
    machine = results["machine"]
    words = machine if isinstance(machine, str) else ", ".join(f"{key} {value}" for key, value in machine.items())
    return f"`{results['command']}` on {words}."


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def one_line(text: str) -> str:
    return " ".join(text.split())


def insert(document: str, name: str, text: str, title: str) -> str:
    """Put `text` between the markers of `name`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in document:
        document = f"{document.rstrip()}\n\n## {title}\n\n{start}\n{end}\n"
    between = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    return between.sub(lambda _: f"{start}\n\n{text}\n\n{end}", document, count=1)


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else "# Benchmarks\n"
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if "machine" not in results:  # a benchmark that is still running
            continue
        text = RENDERERS.get(path.stem, section)(results)
        document = insert(document, path.stem, text, results.get("title", path.stem))
    DOCUMENT.write_text(document, encoding="utf-8")
    print(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    main()

"""HTML that is one file: no script, no request, and nothing unescaped."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ist_fed.errors import RunError
from ist_fed.report.canvas import DARK, LIGHT, Drawn

_VOID = ("img", "meta", "source")


class Html(str):
    """Text that is markup already; any other text is escaped where it is put in."""


def tag(name: str, *children: str, **attributes: str) -> Html:
    """One element.

    Args:
        name: of the element.
        children: markup, or plain text, which is escaped.
        attributes: their values are escaped; `class_` stands for `class`.
    """
    inner = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    given = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items() if value)
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{inner}</{name}>")


def paragraph(*children: str) -> Html:
    """Sentences, with single spaces between them."""
    return tag("p", *(part for child in children if child for part in (child, " ")))


def tiles(facts: Sequence[tuple[str, str, str]]) -> Html:
    """Numbers to see first: what it is, the number, and a word on it."""
    return tag("div", *(_tile(*fact) for fact in facts), class_="tiles")


def _tile(name: str, number: str, note: str) -> Html:
    return tag("div", tag("span", name), tag("strong", number), tag("span", note), class_="tile")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> Html:
    """A table that scrolls sideways on a phone; columns from `numbers` on are aligned to the right."""
    sides = ["" if at < numbers else "number" for at in range(len(head))]
    top = tag("tr", *(tag("th", text, class_=side) for text, side in zip(head, sides, strict=True)))
    body = [tag("tr", *(tag("td", text, class_=side) for text, side in zip(row, sides, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def figure(drawn: Drawn, caption: str = "") -> Html:
    """A picture in the page's own light or dark, with what to look for in it."""
    light, dark = drawn.urls()
    picture = tag(
        "picture",
        tag("source", media="(prefers-color-scheme: dark)", srcset=dark),
        tag("img", src=light, alt=drawn.picture.alt),
    )
    return tag("figure", picture, *([tag("figcaption", caption)] if caption else []))


def pair(*figures: Html) -> Html:
    """Figures beside each other where there is room."""
    return tag("div", *figures, class_="pair")


def fold(title: str, *children: str) -> Html:
    """Something to open on demand."""
    return tag("details", tag("summary", title), *children)


def page(title: str, *children: str) -> str:
    """A whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        # Names and reasons come from elsewhere: should one get through as markup, it still can load and run nothing.
        Html(
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        ),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *children)), lang='en')}\n"


def write(folder: Path, name: str, html: str, drawn: Iterable[Drawn]) -> Path:
    """Write a page and the light version of its pictures.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in drawn:
            (folder / f"{one.picture.name}.png").write_bytes(one.light)
        (folder / name).write_text(html, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"'{folder / name}' cannot be written: {error.strerror}; make room, or choose another folder"
        ) from error
    return folder / name


_STYLE = f"""
:root {{ color-scheme: light dark; --paper: #f5f6f8; --card: {LIGHT.paper}; --ink: {LIGHT.ink};
  --muted: {LIGHT.muted}; --line: {LIGHT.faint}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #12151a; --card: {DARK.paper}; --ink: {DARK.ink};
  --muted: {DARK.muted}; --line: {DARK.faint}; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif; }}
main {{ max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }}
h1 {{ font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; line-height: 1.3; margin: 2.6rem 0 .6rem; }}
p, li {{ max-width: 44rem; overflow-wrap: anywhere; }}
p {{ margin: .6rem 0; }}
.muted, figcaption {{ color: var(--muted); }}
figcaption {{ font-size: .88rem; line-height: 1.5; padding: .5rem .4rem .2rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }}
.tile {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }}
.tile span {{ display: block; font-size: .85rem; line-height: 1.4; color: var(--muted); overflow-wrap: anywhere; }}
.tile strong {{ display: block; font-size: 1.5rem; line-height: 1.35; }}
figure {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: 1rem 0;
  padding: .7rem; }}
img {{ display: block; width: 100%; height: auto; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }}
.pair figure {{ margin: 0; }}
.wide {{ max-width: 46rem; }}
.narrow {{ max-width: 31rem; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 600; color: var(--muted); vertical-align: bottom; }}
th.number {{ white-space: normal; }}
td {{ overflow-wrap: break-word; }}
td:first-child {{ min-width: 6rem; max-width: 26rem; }}
.number {{ text-align: right; white-space: nowrap; }}
code, pre {{ font: .9em/1.5 ui-monospace, monospace; }}
pre {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem;
  overflow-x: auto; }}
details {{ margin: .8rem 0; }}
summary {{ cursor: pointer; font-weight: 600; }}
dt {{ font-weight: 600; margin-top: .6rem; }}
dd {{ margin: 0; max-width: 44rem; }}
"""

"""What the other side said, made fit to print."""

SHOWN_CHARACTERS = 500
"""Longest excerpt in a message, unless asked otherwise."""


def excerpt(value: object, length: int = SHOWN_CHARACTERS) -> str:
    """One printable line of whatever the other side sent; not much more of it is read than is shown."""
    if isinstance(value, str):
        text = value[: 4 * length]
    elif value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64):
        text = str(value)
    else:
        text = f"a value of type {type(value).__name__}"
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (line if len(line) <= length else line[:length] + " …") or "nothing"

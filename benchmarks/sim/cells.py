"""How a measured number is written, and held against its target."""


def shown(value: float | None, form: str) -> str:
    return "" if value is None or value != value else form.format(value)


def verdict(
    what: str, value: float | None, form: str, least: float | None = None, most: float | None = None
) -> list[str]:
    if value is None or (least is None and most is None):
        return [what, shown(value, form), ""]
    if least is not None:
        return [what, shown(value, form), f"≥ {form.format(least)}: {'met' if value >= least else 'MISSED'}"]
    assert most is not None
    return [what, shown(value, form), f"≤ {form.format(most)}: {'met' if value <= most else 'MISSED'}"]

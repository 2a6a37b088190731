"""What an attack found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["succeeds", "fails", "promise holds", "promise broken", "does not apply"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack and what came of it.

    Args:
        attack: its name.
        adversary: who could do it, and what they see.
        verdict: in a word or two.
        meaning: what the numbers say, in words; or why the attack does not apply.
        numbers: by what they are.
    """

    attack: str
    adversary: str
    verdict: Verdict
    meaning: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

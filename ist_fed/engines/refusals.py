"""Whom a SuperLink turned away, read from its log and said in sentences."""

import os
import re
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from ist_fed.engines.superlink import MARK
from ist_fed.pki import Federation

_OURS = rf"^\S*WARNING \S*:\s+{MARK}"  # where a line begins: what callers send is quoted within lines
_REASONS = {
    r"ApiError:2004.*? public key: b['\"](?P<key>.*)['\"], exception": "{who} was turned away: {why}",
    r"Handshake failed.*WRONG_VERSION_NUMBER": "somebody who does not speak TLS was turned away",
    r"Handshake failed.*(UNKNOWN_CA|CERTIFICATE)": "somebody who does not trust this federation's authority went away",
    rf"{_OURS}: Invalid timestamp": "a client whose clock is more than 5 s ahead or 305 s behind was turned away",
    rf"{_OURS}: Invalid node ID": "a client that was revoked was turned away",
    rf"{_OURS}: (?P<said>.*)": "a client was turned away: {said}",
}


class Refusals:
    """What is new in a SuperLink's log since the last look; the same sentence once a look.

    Args:
        log: of the SuperLink.
        identity: to name members by their keys.
    """

    def __init__(self, log: Path, identity: Federation | None) -> None:
        self._log, self._identity = log, identity
        self._at = log.stat().st_size if log.exists() else 0

    def new(self) -> list[str]:
        """Each refusal since the last call, as a sentence."""
        with self._log.open("rb") as file:
            self._at = self._at if self._at <= os.fstat(file.fileno()).st_size else 0  # it was cut
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return list(dict.fromkeys(filter(None, map(self._sentence, whole.decode(errors="replace").splitlines()))))

    def _sentence(self, line: str) -> str | None:
        for pattern, sentence in _REASONS.items():
            if match := re.search(pattern, line):
                found = match.groupdict()
                if key := found.pop("key", None):
                    found |= self._who(key.encode().decode("unicode_escape"))
                return sentence.format(**found)
        return None

    def _who(self, pem: str) -> dict[str, str]:
        for member in self._identity.clients() if self._identity else []:
            key = load_ssh_public_key(member.public_key.encode())
            if pem.strip() == key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().strip():
                revoked = member.status == "revoked"
                why = "it was revoked" if revoked else "a process with the same key was heard of less than 20 s ago"
                return {"who": f"client '{member.name}'", "why": why}
        return {"who": "a client with an unknown key", "why": "approve its request with `ist-fed provision approve`"}

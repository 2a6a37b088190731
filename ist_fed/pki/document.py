"""JSON documents, checked field by field: they come from elsewhere, and anyone may have written them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ist_fed.errors import PkiError
from ist_fed.pki import certificates, files, keys
from ist_fed.pki.address import split_address

VERSION = 1
TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of document: what people call it, its fields, what to do if one is wrong, and the most bytes it has."""

    noun: str
    fields: tuple[str, ...]
    remedy: str
    limit: int = files.LIMIT


def read(path: Path, kind: Kind) -> dict[str, Any]:
    """A document's fields, each checked; a signature is not.

    Raises:
        PkiError: it cannot be read, or is not of this kind.
    """
    data = files.read(path, limit=kind.limit)
    try:
        return _checked(_parsed(data), kind.fields)
    except PkiError as error:
        raise PkiError(f"{kind.noun} '{path}' cannot be used: {error}; {kind.remedy}") from error


def text(document: Mapping[str, Any]) -> bytes:
    """A document as it is written: for people to read."""
    return json.dumps(document, indent=2).encode() + b"\n"


def signed(body: Mapping[str, Any], key: keys.PrivateKey) -> dict[str, Any]:
    """A document with its signature."""
    return {**body, "signature": keys.sign(key, _canonical(body))}


def is_signed(document: Mapping[str, Any], key: keys.PublicKey) -> bool:
    """Whether a document's signature is this key's over all the rest of it."""
    body = {field: value for field, value in document.items() if field != "signature"}
    return keys.is_signed(key, _canonical(body), document["signature"])


def time_text(moment: datetime) -> str:
    """A time as documents say it."""
    return moment.astimezone(UTC).strftime(TIME)


def _canonical(body: Mapping[str, Any]) -> bytes:
    """The same bytes for the same fields: sorted, without spaces, ASCII; fields are text and whole numbers."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise PkiError(f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PkiError(f"it is not a JSON object, but {type(value).__name__}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise PkiError("a field occurs twice")
    return document


def _checked(document: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    if "version" in document:
        _version(document["version"])  # first: another version may have other fields
    if missing := [field for field in fields if field not in document]:
        raise PkiError(f"it says nothing of '{missing[0]}'")
    if unknown := [field for field in document if field not in fields]:
        raise PkiError(f"it has a field {unknown[0][:80]!r}, which nobody knows")
    for field in fields:
        try:
            CHECKS[field](document[field])
        except PkiError as error:
            raise PkiError(f"its '{field}' is wrong: {error}") from error
    return document


def _version(value: Any) -> None:
    if _whole(value) != VERSION:
        raise PkiError(f"version {VERSION} is read here, but it is of version {value}; use the same ist_fed everywhere")


def _number(value: Any) -> None:
    if not 0 <= _whole(value) < 2**31:
        raise PkiError(f"a client's number is 0 or more, but is {value}")


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise PkiError(f"a whole number is wanted, but it is {type(value).__name__}")
    return value


def _words(check: Callable[[str], object]) -> Callable[[Any], None]:
    def checked(value: Any) -> None:
        if not isinstance(value, str):
            raise PkiError(f"text is wanted, but it is {type(value).__name__}")
        check(value)

    return checked


def _time(value: str) -> None:
    try:
        same = datetime.strptime(value, TIME).strftime(TIME) == value
    except ValueError:
        same = False
    if not same:
        raise PkiError(f"a time looks like 2031-12-24T18:00:00Z, but is {value[:80]!r}")


def _status(value: str) -> None:
    if value not in ("approved", "revoked"):
        raise PkiError(f"a client is approved or revoked, but is {value[:80]!r}")


def _former(value: Any) -> None:
    if not isinstance(value, list):
        raise PkiError(f"a list of public keys is wanted, but it is {type(value).__name__}")
    for key in value:
        _words(keys.load_public)(key)


def _maybe_time(value: Any) -> None:
    if value is not None:
        _words(_time)(value)


CHECKS: Mapping[str, Callable[[Any], None]] = {
    "version": _version,
    "name": _words(files.check_name),
    "federation": _words(files.check_name),
    "number": _number,
    "address": _words(split_address),
    "public_key": _words(keys.load_public),
    "former": _former,
    "status": _words(_status),
    "created_at": _words(_time),
    "issued_at": _words(_time),
    "approved_at": _words(_time),
    "revoked_at": _maybe_time,
    "ca": _words(certificates.load),
    "signature": _words(lambda value: None),  # checked against a key
}
"""What each field must be, in every kind of document that has it."""

"""Who was ever admitted: one record a client, and the rules by which a name, a number and a key are given."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ist_fed.errors import PkiError, nearest
from ist_fed.pki import document, files


@dataclass(frozen=True, kw_only=True)
class Member:
    """A client that was approved once."""

    name: str
    number: int
    """From 0; stays with the name, and is never given to another."""
    public_key: str
    """In OpenSSH's one line."""
    status: str
    """`approved` or `revoked`."""
    approved_at: str
    """As in 2031-12-24T18:00:00Z."""
    revoked_at: str | None = None
    former: tuple[str, ...] = ()
    """Public keys that it had before; the server must not let them in."""


RECORD = document.Kind(
    noun="the record",
    fields=("version", *(field.name for field in fields(Member))),
    remedy="restore it from a backup",
    limit=16 * files.LIMIT,  # room for some thousand former keys
)


def read_members(folder: Path) -> list[Member]:
    """Every client with a record in a federation's folder, by number.

    Raises:
        PkiError: a record cannot be read.
    """
    members = [_read(folder, path.name) for path in (folder / "clients").glob("*.json")]
    return sorted(members, key=lambda member: member.number)


def write_member(folder: Path, member: Member) -> None:
    """Write the record of a client, or the new state of one."""
    path = files.inside(folder, "clients", f"{member.name}.json")
    files.replace(path, document.text({"version": document.VERSION, **asdict(member)}))


def find(members: list[Member], name: str) -> Member:
    """The client of a name.

    Raises:
        PkiError: there is none.
    """
    for member in members:
        if member.name == name:
            return member
    raise PkiError(f"there is no client {name[:80]!r}{nearest(name, [member.name for member in members])}")


def admit(members: list[Member], name: str, public_key: str, renew: bool, time: str) -> Member:
    """A client as it is once its request is approved.

    Args:
        members: all until now.
        name: that the client asks for.
        public_key: that it asks for.
        renew: the name is known, and gets this key in the place of the one it has.
        time: of the approval.

    Raises:
        PkiError: the key was used before, or `renew` is not as the name being known says.
    """
    known = next((member for member in members if member.name == name), None)
    if known and known.public_key == public_key and known.status == "approved":
        return known  # the same request again
    if holder := next((member for member in members if public_key in (member.public_key, *member.former)), None):
        raise PkiError(
            f"a key is approved once, but '{holder.name}' has or had this one; have the client make a new one with: "
            f"ist-fed provision request {name} --renew"
        )
    if known is None:
        if renew:
            raise PkiError(f"there is no client '{name}' yet to renew; approve it without --renew")
        number = max((member.number for member in members), default=-1) + 1
        return Member(name=name, number=number, public_key=public_key, status="approved", approved_at=time)
    if not renew:
        raise PkiError(
            f"'{name}' is {known.status}, with another key; if its people say that the new one is theirs, approve it "
            f"with --renew, else have the client choose another name"
        )
    former = (*known.former, known.public_key)
    return replace(known, public_key=public_key, status="approved", approved_at=time, revoked_at=None, former=former)


def check_members(members: list[Member]) -> None:
    """Check that no number is missing or given twice, and no key either.

    Raises:
        PkiError: one is.
    """
    numbers = [member.number for member in members]
    if numbers != list(range(len(members))):
        raise PkiError(
            f"clients are numbered 0, 1, 2, …, each once, but the records say {', '.join(map(str, numbers))}; "
            f"restore them from a backup"
        )
    keys = [key for member in members for key in (member.public_key, *member.former)]
    if len(set(keys)) < len(keys):
        raise PkiError("a key belongs to one client, but occurs twice in the records; restore them from a backup")


def _read(folder: Path, file: str) -> Member:
    path = files.inside(folder, "clients", file)
    record = document.read(path, RECORD)
    del record["version"]
    if record["name"] != path.stem:
        raise PkiError(f"the record of a client is named as the client, but '{path}' is of '{record['name']}'")
    return Member(**{**record, "former": tuple(record["former"])})

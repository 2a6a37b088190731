"""Who this node is in secure rounds: its operator's business, said in `--node-config`."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from ist_fed.pki.revocation import read_revoked
from ist_fed.pki.signing import open_signer
from ist_fed.privacy.secure import Budget, Member
from ist_fed.privacy.secure.limits import MIN_COHORT


def member_of(node: Mapping[str, object]) -> Member | None:
    """The member whose certificate is at `signer`, which insists on a `min-cohort`; None if there is none.

    It trusts no certificate on the list at `revoked`, which it reads anew every round. It counts what it gives away in
    its `folder`, and gives no more away than `secure-epsilon` at `secure-delta`.

    Raises:
        PkiError: the certificate cannot be used, or the list.
    """
    if "signer" not in node:
        return None
    signer, budget = open_signer(Path(str(node["signer"]))), None
    if "folder" in node:
        path = Path(str(node["folder"])) / f"secure-privacy-{signer.name}.jsonl"
        allowed, delta = float(str(node.get("secure-epsilon", "inf"))), float(str(node.get("secure-delta", 1e-5)))
        budget = Budget(path, allowed=allowed, delta=delta)
    revoked: Callable[[], Collection[int]] = tuple
    if "revoked" in node:
        revoked = partial(read_revoked, Path(str(node["revoked"])), signer.authority)
        revoked()
    min_cohort = int(str(node.get("min-cohort", MIN_COHORT)))
    return Member(signer, min_cohort=min_cohort, budget=budget, revoked=revoked)

"""Who this node is in secure rounds: its operator's business, said in `--node-config`."""

from collections.abc import Mapping
from pathlib import Path

from ist_fed.pki.signing import open_signer
from ist_fed.privacy.secure import Member
from ist_fed.privacy.secure.limits import MIN_COHORT


def member_of(node: Mapping[str, object]) -> Member | None:
    """The member whose certificate is at `signer`, which insists on a `min-cohort`; None if there is none.

    Raises:
        PkiError: the certificate cannot be used.
    """
    if "signer" not in node:
        return None
    return Member(open_signer(Path(str(node["signer"]))), min_cohort=int(str(node.get("min-cohort", MIN_COHORT))))

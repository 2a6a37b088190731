"""`ist-fed provision signer`: who takes part in secure rounds, said by an authority that no server holds."""

from pathlib import Path
from typing import Annotated

import typer

from ist_fed.cli.passphrase import ask_passphrase
from ist_fed.pki import certificates
from ist_fed.pki.authority import Authority
from ist_fed.pki.revocation import revoke
from ist_fed.pki.signing import CERTIFICATE, KEY, certify, create_authority, open_signer, read_request, request_member

app = typer.Typer(
    help="Signing keys for secure rounds. Their authority must lie where the server's operator is not: with one of the "
    "members, or a third party.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the members' authority is made.")],
    name: Annotated[str | None, typer.Option(help="Of the federation; by default the folder's.")] = None,
) -> None:
    """Authority: make it; not on the server."""
    made = create_authority(folder, folder.resolve().name if name is None else name, ask_passphrase(new=True))
    print(f"authority    {made.path}; its key is of use to nobody without the passphrase")
    print(f"fingerprint  {certificates.fingerprint(made.certificate())}")
    print("             tell it to the members' people, by another way than the certificates go")
    print("next         on a member's machine: ist-fed provision signer request NAME")


@app.command("request")
def request(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of this member; as its client's, or another.")],
    folder: Annotated[Path, typer.Option(help="Where its key is kept.")] = Path(),
) -> None:
    """Member: make its signing key, and a request for a certificate."""
    path = request_member(folder, name)
    print(f"key          {path.with_name(name + KEY)}; it stays here, and nobody else may see it")
    print(f"request      {path}")
    print("next         send it to the members' authority, whose people make sure that it is yours, and type:")
    print(f"             ist-fed provision signer approve {path.name} --authority FOLDER")


@app.command("approve")
def approve(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="A member's NAME.sign.csr.")],
    authority: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the members' authority.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the certificate; by default the request's.")] = None,
) -> None:
    """Authority: certify a member; first make sure that the request is theirs, and that nobody has two."""
    path = certify(authority, request, ask_passphrase(), request.parent if out is None else out)
    name, _ = read_request(request)
    fingerprint = certificates.fingerprint(Authority(authority).certificate())
    print(f"certificate  {path}; it holds no secret")
    print(f"next         send it to {name}, to lie beside {name}{KEY}, and there:")
    print(f"             ist-fed provision signer verify {name}{CERTIFICATE} --fingerprint {fingerprint}")
    print(f"             ist-fed client start --signer {name}{CERTIFICATE} …")


@app.command("revoke")
def revoke_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the member.")],
    authority: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the members' authority.")],
) -> None:
    """Authority: put every certificate that a member has been given on the list of those that hold no more."""
    path = revoke(authority, name, ask_passphrase(), certificates.now())
    print(f"revoked      {name}; {path} says so, signed, and holds no secret")
    print("next         send it to all members, who put it where their clients read it:")
    print(f"             ist-fed client start --signer NAME{CERTIFICATE} --revoked {path.name} …")
    print(f"             and have the server's operator type: ist-fed provision revoke {name}")


@app.command("verify")
def verify(
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="NAME.sign.pem, beside NAME.sign.key.")],
    fingerprint: Annotated[str | None, typer.Option(help="Of the members' authority.")] = None,
) -> None:
    """Member: check a certificate, its key, and by whom it is."""
    signer = open_signer(certificate, fingerprint)
    print(f"ok           '{signer.name}' has the key of this certificate")
    if fingerprint is not None:
        print("ok           the members' authority has the fingerprint you gave")
        return
    print(f"fingerprint  {certificates.fingerprint(signer.authority)}")
    print("             of the members' authority; compare it with what its people say, or give it with --fingerprint")

"""`ist-fed provision`: who the server is, and which clients it admits."""

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ist_fed.cli.arguments import Format, OutputFormat, print_json
from ist_fed.cli.passphrase import ask_passphrase
from ist_fed.cli.signers import app as signers
from ist_fed.errors import PkiError
from ist_fed.pki import Federation, Member, make_request, open_kit
from ist_fed.pki.address import join_address
from ist_fed.pki.keys import public_fingerprint

app = typer.Typer(
    help="Provide the server and its clients with keys and certificates.", no_args_is_help=True, rich_markup_mode=None
)

app.add_typer(signers, name="signer")

FederationPath = Annotated[Path, typer.Option("--federation", help="Folder of the federation.")]
DEFAULT = Path("federation")


@app.command("init")
def init(
    hosts: Annotated[
        list[str], typer.Option("--host", help="DNS name or IP address of the server; clients call the first one.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the federation's folder is made.")] = DEFAULT,
    port: Annotated[int, typer.Option(help="Port of the server that clients call.")] = 9092,
    name: Annotated[str | None, typer.Option(help="Of the federation; by default the folder's.")] = None,
) -> None:
    """Server: make a federation, its CA and the server's key."""
    federation = Federation.create(
        folder,
        name=folder.resolve().name if name is None else name,
        address=join_address(hosts[0], port),
        hosts=hosts,
        passphrase=ask_passphrase(new=True),
    )
    print(f"federation   {folder} ('{federation.name}', at {federation.address})")
    _print_server(federation)
    print(f"CA           {federation.ca_certificate}; its key is of use to nobody without the passphrase")
    print(f"fingerprint  {federation.fingerprint()}")
    print("             tell it to the clients' people, by another way than the kits go")
    print("next         on a client: ist-fed provision request NAME")
    print(f"             then here: ist-fed provision approve NAME.request.json{_option(folder)}")


@app.command("request")
def request(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of this client.")],
    folder: Annotated[Path, typer.Option(help="Where this client's key is kept.")] = Path(),
    renew: Annotated[bool, typer.Option("--renew", help="Make a new key; the old one is set aside.")] = False,
) -> None:
    """Client: make its key, and a request to be admitted."""
    path = make_request(folder, name, renew)
    key = path.with_name(f"{name}.key")
    public_key = path.with_name(f"{name}.pub").read_text()
    print(f"key          {key}; it stays here, and nobody else may see it")
    print(f"request      {path}")
    print(f"fingerprint  {public_fingerprint(public_key)}")
    print("             of the key; the server's people will compare it")
    print(f"next         send {path.name} to the server, where its people type:")
    print(f"             ist-fed provision approve {path.name}{' --renew' * renew}")


@app.command("approve")
def approve(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="A client's NAME.request.json.")],
    folder: FederationPath = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="Where the kit goes; by default beside the request.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="The client is known, and gets a new key.")] = False,
) -> None:
    """Server: admit a client, and write the kit it needs."""
    federation = Federation.open(folder)
    path = federation.approve(request, passphrase=ask_passphrase(), out=out, renew=renew)
    kit = json.loads(path.read_text())
    print(f"approved     {kit['name']}, client number {kit['number']} of '{federation.name}'")
    print(f"fingerprint  {public_fingerprint(kit['public_key'])}")
    print(
        f"             of its key; if the client shows another: ist-fed provision revoke {kit['name']}{_option(folder)}"
    )
    print(f"kit          {path}; it holds no secret")
    print(f"next         send it to the client, to lie beside {kit['name']}.key, and there:")
    print(f"             ist-fed provision verify {path.name} --fingerprint {federation.fingerprint()}")
    print(f"             ist-fed client start --kit {path.name}")


@app.command("list")
def list_clients(folder: FederationPath = DEFAULT, output: OutputFormat = Format.text) -> None:
    """Server: show every client that was ever approved."""
    members = Federation.open(folder).clients()
    if output is Format.json:
        print_json({"clients": [asdict(member) | {"since": _since(member)} for member in members]})
        return
    table = Table("number", "name", "status", "since")
    for member in members:
        table.add_row(str(member.number), member.name, member.status, _since(member))
    Console(highlight=False).print(table if members else "no client has been approved yet")


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the client.")], folder: FederationPath = DEFAULT
) -> None:
    """Server: shut a client out."""
    member = Federation.open(folder).revoke(name)
    print(f"revoked      {member.name}, client number {member.number}, at {member.revoked_at}")
    print("next         nothing: a server that runs drops the client at once, and none lets it in again")


@app.command("rotate")
def rotate(
    folder: FederationPath = DEFAULT,
    hosts: Annotated[
        list[str] | None, typer.Option("--host", help="DNS name or IP address of the server; by default as before.")
    ] = None,
) -> None:
    """Server: replace its key and certificate."""
    federation = Federation.open(folder)
    federation.rotate_server(passphrase=ask_passphrase(), hosts=hosts)
    _print_server(federation)
    print("next         restart the server if it runs; clients need nothing new")


@app.command("verify")
def verify(
    path: Annotated[Path, typer.Argument(metavar="[FOLDER|KIT]", help="A federation's folder, or a kit.")] = DEFAULT,
    fingerprint: Annotated[str | None, typer.Option(help="Of the CA that a kit must be from.")] = None,
) -> None:
    """Check a federation's folder, or a kit and its key."""
    for line in _verify_kit(path, fingerprint) if os.path.isfile(path) else _verify_federation(path, fingerprint):
        print(line)


def _verify_federation(folder: Path, fingerprint: str | None) -> list[str]:
    if fingerprint is not None:
        raise PkiError(f"--fingerprint is for a kit, but '{folder}' is none")
    federation = Federation.open(folder)
    return [*(f"ok           {line}" for line in federation.verify()), f"fingerprint  {federation.fingerprint()}"]


def _verify_kit(path: Path, fingerprint: str | None) -> list[str]:
    kit = open_kit(path, fingerprint)
    lines = [
        f"ok           {kit.name} is client number {kit.number} of '{kit.federation}', at {kit.address}",
        f"ok           the kit is signed by its CA, and for the key {kit.key}",
    ]
    if fingerprint is not None:
        return [*lines, "ok           the CA has the fingerprint you gave"]
    return [
        *lines,
        f"fingerprint  {kit.fingerprint}",
        "             of the CA; compare it with what the server's people say, or give it with --fingerprint",
    ]


def _print_server(federation: Federation) -> None:
    print(f"server       {federation.server_certificate}, valid until {federation.expires:%Y-%m-%d}")
    print(f"             for {', '.join(federation.hosts)}")


def _since(member: Member) -> str:
    return member.revoked_at or member.approved_at


def _option(folder: Path) -> str:
    """How the next command names the federation."""
    return "" if folder == DEFAULT else f" --federation {shlex.quote(str(folder))}"

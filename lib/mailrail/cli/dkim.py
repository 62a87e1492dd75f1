"""`mailrail dkim`: keys for any signer of mail, the records that publish them, and whether those stand in the DNS."""

import asyncio
import contextlib
import datetime
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import TypeAdapter, ValidationError

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.core.dkim.published import Publication, look_up_published
from mailrail.core.dkim.sign import PEM_SIZE, PrivateKey, SigningError, SigningKey, check_keys, read_private_key
from mailrail.core.dkim.signature import KeyName, read_key_name
from mailrail.core.dkim.tags import TagError
from mailrail.core.dkim.zone import RecordToPublish, to_publish
from mailrail.core.resources.base import ObjectName
from mailrail.kit.files import remove

app = typer.Typer(no_args_is_help=True, help="Make DKIM keys for any signer, and check their records in the DNS.")

RSA_BITS: Final = 2048
"""Of a key that is made: what RFC 8301 3.2 wants of signers, and every verifier takes."""
_WITHIN: Final = 15.0
"""Seconds for the look-up."""
_SECRET_NAME: Final = TypeAdapter(ObjectName)


class KeyType(Enum):
    """Which keys are made."""

    RSA = "rsa"
    ED25519 = "ed25519"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class _MadeKey:
    name: KeyName
    key: PrivateKey
    pem: bytes

    @property
    def record(self) -> RecordToPublish:
        return to_publish(self.name, self.key.public_key())


_KeyFile = Annotated[str, typer.Argument(metavar="FILE", help="PEM file of the private key; - is standard input.")]


@app.command()
def generate(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain that signs (d=).")],
    selector: Annotated[
        str,
        typer.Option(
            "--selector",
            metavar="NAME",
            help="Selector of the key (s=). With both types, -rsa and -ed25519 are added to it.",
            show_default="the date, such as 20261130",
        ),
    ] = "",
    key_type: Annotated[
        KeyType,
        typer.Option(
            "--key-type",
            metavar="TYPE",
            help="Which keys to make: rsa (2048 bits), ed25519 or both.",
            show_default="both",
        ),
    ] = KeyType.BOTH,
    folder: Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Where the files go.")] = Path(),
    secret: Annotated[
        str,
        typer.Option(
            "--secret",
            metavar="NAME",
            help="Write no file: print a Kubernetes Secret of this name, and the records on standard error.",
        ),
    ] = "",
    json: a.Json = False,
) -> None:
    """Make private keys for a domain, and print the records to publish.

    The keys are for any signer that reads PEM (PKCS #8). Each goes into a file DOMAIN.SELECTOR.pem that its owner alone
    may read; a file that is there is never overwritten. With --secret, pipe the answer to `kubectl create -f -`.
    """
    _check_secret_name(secret)
    base = selector or f"{datetime.datetime.now(datetime.UTC):%Y%m%d}"
    kinds = (KeyType.RSA, KeyType.ED25519) if key_type is KeyType.BOTH else (key_type,)
    # RFC 8463 6: two keys of a domain have a selector each.
    names = [_name(domain, f"{base}-{kind.value}" if len(kinds) > 1 else base) for kind in kinds]
    made = [_made(name, kind) for name, kind in zip(names, kinds, strict=True)]
    files = [] if secret else [folder / f"{each.name.domain}.{each.name.selector}.pem" for each in made]
    _write([(file, each.pem) for file, each in zip(files, made, strict=False)])
    manifest = _manifest(secret, made) if secret else None
    if json:
        keys = [_as_json(each.record) | {"key_type": kind.value} for each, kind in zip(made, kinds, strict=True)]
        for row, file in zip(keys, files, strict=False):
            row["file"] = str(file)
        output.print_json({"keys": keys, "secret": manifest})
    elif manifest is not None:
        print(_yaml(manifest), end="")
        _tell([each.record for each in made], beside=True)
    else:
        for file in files:
            output.say(f"wrote {file}")
        output.say("")
        _tell([each.record for each in made])
    _advise(made)


@app.command()
def record(
    file: _KeyFile,
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain, for the name of the record.")] = "",
    selector: Annotated[str, typer.Argument(metavar="SELECTOR", help="The selector, with it.")] = "",
    json: a.Json = False,
) -> None:
    """Print the record that publishes a key: as a line of a zone file, and as the plain value."""
    if domain and not selector:
        output.stop("give SELECTOR, too: the name of the record is SELECTOR._domainkey.DOMAIN", output.USAGE)
    name = _name(domain, selector) if domain else None
    found = to_publish(name, _read(file).public_key())
    if json:
        output.print_json(_as_json(found))
    else:
        _tell([found])


@app.command()
def check(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain that signs (d=).")],
    selector: Annotated[str, typer.Argument(metavar="SELECTOR", help="The selector of the key (s=).")],
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="PEM file of the private key, which must be that of the record."),
    ] = "",
    resolver: a.Resolver = "",
    json: a.Json = False,
) -> None:
    """Check the record of a key in the DNS: whether verifiers can use it, and whether it belongs to the key.

    Exit status 1 if it is missing or wrong, 3 if the DNS did not answer.
    """
    name = _name(domain, selector)
    key = _read(file).public_key() if file else None
    a.check_resolver(resolver)

    async def ask() -> Any:
        # Imported here: every other command starts without dnspython.
        from mailrail.kit.dns_questions import ask_dns
        from mailrail.kit.resolver import DnsResolver

        looking = look_up_published(name, key)
        return await ask_dns(looking, DnsResolver(resolver, timeout=_WITHIN), seconds=_WITHIN, questions=1)

    try:
        found = asyncio.run(ask())
    except KeyboardInterrupt:
        output.stop("interrupted")
    status = {Publication.STANDS: 0, Publication.UNKNOWN: output.UNREACHABLE}.get(found.state, output.REFUSED)
    if json:
        output.print_json({"name": str(name), "state": found.state.value, "message": found.text})
    elif status:
        output.stop(found.text, status)
    else:
        output.say(found.text)
    if status:
        raise typer.Exit(status)


def _name(domain: str, selector: str) -> KeyName:
    try:
        return read_key_name({b"d": a.domain_name(domain).encode(), b"s": selector.encode()})
    except (TagError, UnicodeEncodeError) as error:
        output.stop(f"{selector!r} is no selector of {domain}: {error}; write letters, digits and -", output.USAGE)


def _check_secret_name(name: str) -> None:
    try:
        if name:
            _SECRET_NAME.validate_python(name)
    except ValidationError:
        output.stop(
            f"--secret {name!r} is no name of a Secret: write lower-case letters, digits, - and .", output.USAGE
        )


def _made(name: KeyName, kind: KeyType) -> _MadeKey:
    key = Ed25519PrivateKey.generate() if kind is KeyType.ED25519 else generate_private_key(65537, RSA_BITS)
    return _MadeKey(name, key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _read(file: str) -> PrivateKey:
    try:
        if file == "-":
            pem = sys.stdin.buffer.read(PEM_SIZE + 1)
        else:
            with Path(file).open("rb") as opened:
                pem = opened.read(PEM_SIZE + 1)
        return read_private_key(pem)
    except OSError as error:
        output.stop(f"{file} cannot be read: {error.strerror or error}", output.USAGE)
    except SigningError as error:
        output.stop(f"{file}: {error}", output.USAGE)


def _write(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write all files or none, each new and for its owner alone. Ends the command where one cannot be written."""
    written: list[Path] = []
    try:
        for path, content in files:
            # What is there may be the only copy of a key that signs: it is never written over.
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            written.append(path)
            with os.fdopen(opened, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        for each in written:
            with contextlib.suppress(OSError):
                remove(each)
        if isinstance(error, FileExistsError):
            output.stop(f"{path} is there already: give another --selector or --folder; nothing was written")
        output.stop(f"{path} cannot be written: {error.strerror or error}; nothing was written")


def _manifest(name: str, made: Sequence[_MadeKey]) -> dict[str, Any]:
    """The Secret, with a key of its data for each private key."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "Opaque",
        "stringData": {f"{each.name.selector}.pem": each.pem.decode() for each in made},
    }


def _yaml(manifest: dict[str, Any]) -> str:
    """The manifest with each key of it legible as PEM, which PyYAML would fold."""
    lines = [
        f"apiVersion: {manifest['apiVersion']}",
        f"kind: {manifest['kind']}",
        "metadata:",
        f'  name: "{manifest["metadata"]["name"]}"',  # a name may be a number
        f"type: {manifest['type']}",
        "stringData:",
    ]
    for name, pem in manifest["stringData"].items():
        lines += [f'  "{name}": |', *(f"    {line}" for line in pem.splitlines())]
    return "\n".join(lines) + "\n"


def _as_json(record: RecordToPublish) -> dict[str, Any]:
    name = None if record.name is None else str(record.name)
    return {"name": name, "type": "TXT", "value": record.value, "line": record.line}


def _tell(records: Sequence[RecordToPublish], *, beside: bool = False) -> None:
    """`beside`: on standard error, for the answer is for a program."""
    stream = sys.stderr if beside else sys.stdout
    print("To publish, as lines of a zone file:", file=stream)
    for each in records:
        print(each.line, file=stream)
    for each in records:
        print(f"\nThe same as one value{f', of {each.name}' if each.name is not None else ''}:", file=stream)
        print(each.value, file=stream)


def _advise(made: Sequence[_MadeKey]) -> None:
    try:
        check_keys([SigningKey(each.name, each.key) for each in made])
    except SigningError as error:
        output.note(str(error))

"""OpenDKIM: the signer and verifier that most hosts with Postfix have; run on one message, with keys from a file."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from testkit.peers import program, require_peer

_COMMON = "On-Security accept\nRequireSafeKeys no\nSyslog no\n"
_RESULT = re.compile(r"\bdkim=(\w+)[^;]*header\.a=(\S+)")
_SIGNATURE = re.compile(r"### INSHEADER: idx=\d+ hname='DKIM-Signature' hvalue='(.*?)'$", re.DOTALL | re.MULTILINE)


def _run(folder: str, message: bytes, configuration: str) -> str:
    (Path(folder) / "message").write_bytes(message)
    (Path(folder) / "conf").write_text(_COMMON + configuration)
    done = subprocess.run(
        [program("opendkim"), "-x", f"{folder}/conf", "-v", "-v", "-t", f"{folder}/message"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    return done.stdout


def verify(message: bytes, records: Mapping[str, str]) -> list[tuple[str, str]]:
    """What OpenDKIM says of each signature: result and algorithm. `records`: of keys, by their names in the DNS."""
    require_peer("opendkim")
    with tempfile.TemporaryDirectory(prefix="mailrail-opendkim-") as folder:
        keys = Path(folder) / "keys"
        keys.write_text("".join(f"{name} {record}\n" for name, record in records.items()))
        return _RESULT.findall(_run(folder, message, f"Mode v\nTestPublicKeys {keys}\n"))


def sign(message: bytes, domain: str, selector: str, pem: bytes, canonicalization: str) -> bytes:
    """The message with OpenDKIM's signature by an RSA key on top. `canonicalization`: such as `relaxed/simple`."""
    require_peer("opendkim")
    with tempfile.TemporaryDirectory(prefix="mailrail-opendkim-") as folder:
        key = Path(folder) / "key.pem"
        key.write_bytes(pem)
        configuration = (
            f"Mode s\nDomain {domain}\nSelector {selector}\nKeyFile {key}\nCanonicalization {canonicalization}\n"
        )
        made = _SIGNATURE.search(_run(folder, message, configuration))
    assert made is not None, "OpenDKIM did not sign"
    return b"DKIM-Signature: " + made[1].replace("\n", "\r\n").encode() + b"\r\n" + message

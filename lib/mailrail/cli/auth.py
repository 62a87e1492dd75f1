"""`mailrail auth`: who sent a message, as SPF, DKIM, ARC and DMARC tell it, and what a gateway would do with it."""

import asyncio
import platform
import re
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.message_authentication.authenticate import QUESTION_LIMIT, TIME_LIMIT, authenticate
from mailrail.core.message_authentication.content import HashedContent, hash_content
from mailrail.core.message_authentication.steps import AuthenticationStep, steps_of
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.smtp.address import Address, AddressError, parse_address, plain_ip
from mailrail.core.spf.record import IpAddress

_MOST: Final = 256 * 1024 * 1024
"""Octets of a message that is checked."""
_LONE_LF: Final = re.compile(rb"(?<!\r)\n")
_MBOX_LINE: Final = re.compile(rb">?From [^\n]*\n")
_QUESTION_SECONDS: Final = 5.0
"""Until the resolver gives up one question."""

app = typer.Typer(no_args_is_help=True, help="Check who sent a message.")


@app.command()
def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The message as it was received; - reads standard input.")
    ],
    ip: Annotated[str, typer.Option("--ip", metavar="ADDRESS", help="Address of the client that sent it.")],
    helo: Annotated[str, typer.Option("--helo", metavar="NAME", help="What the client said in HELO or EHLO.")],
    sender: Annotated[
        str, typer.Option("--from", metavar="ADDRESS", help='MAIL FROM; "" or <> is the null reverse-path.')
    ],
    resolver: Annotated[
        str,
        typer.Option(
            "--name-server", "--resolver", metavar="HOST:PORT", help="DNS server to ask. Default: those of the system."
        ),
    ] = "",
    json: a.Json = False,
) -> None:
    """Check a message by SPF, DKIM, ARC and DMARC, step by step, and say what a gateway would do that enforces them.

    Nothing is sent, and no service is asked: only the DNS, as it is now. So a message of long ago may fail for a key
    that is gone. Exit status 0 if the message is accepted, 1 if it is refused or quarantined, 3 if the DNS did not
    answer something and the message is not refused for anything else.
    """
    client = ClientIdentity(_address(ip), helo, _sender(sender))
    _check_resolver(resolver)
    content = hash_content(_in_crlf(_read(file)), time.time())
    if not content.header.fields:
        output.stop(f"{file} does not begin with a header field: give a whole message, header and body", output.USAGE)
    try:
        verdict = asyncio.run(_judge(client, content, resolver))
    except KeyboardInterrupt:
        output.stop("interrupted")
    steps = steps_of(verdict)
    if json:
        output.print_json(_plain(verdict, steps))
    else:
        _tell(verdict, steps)
    if verdict.action in (DmarcAction.REJECT, DmarcAction.QUARANTINE):
        raise typer.Exit(output.REFUSED)
    if verdict.action is DmarcAction.DEFER or verdict.lacks_answers:
        raise typer.Exit(output.UNREACHABLE)


def _address(text: str) -> IpAddress:
    try:
        return plain_ip(ip_address(text.strip().removeprefix("[").removesuffix("]")))
    except ValueError:
        output.stop(f"--ip: {text!r} is no address; write 192.0.2.1 or 2001:db8::1", output.USAGE)


def _sender(text: str) -> Address | None:
    bare = text.strip()
    if bare.startswith("<") and bare.endswith(">"):
        bare = bare[1:-1]
    try:
        return parse_address(bare) if bare else None
    except AddressError as error:
        output.stop(f"--from: {text!r}: {error}; write ann@example.org, or <> for none", output.USAGE)


def _check_resolver(resolver: str) -> None:
    from mailrail.kit.settings import BadSettings, host_port

    try:
        if resolver:
            host_port(resolver)
    except BadSettings as error:
        output.stop(f"--name-server {error}", output.USAGE)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            content = sys.stdin.buffer.read(_MOST + 1)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(_MOST + 1)
    except OSError as error:
        output.stop(f"{file} cannot be read: {error.strerror}", output.USAGE)
    if len(content) > _MOST:
        output.stop(f"{file} has more than {output.size_of(_MOST)}; check a smaller message", output.USAGE)
    return content


def _in_crlf(content: bytes) -> bytes:
    """The message as it was on the wire. Files have LF, and mailbox files a line above each message."""
    line = _MBOX_LINE.match(content)
    if line is not None:
        output.note("the first line, From, is of a mailbox file and is left out")
        content = content[line.end() :]
    content, changed = _LONE_LF.subn(b"\r\n", content)
    if changed:
        output.note("the message has LF at the end of lines; it is taken as if it had CRLF")
    return content


async def _judge(client: ClientIdentity, content: HashedContent, server: str) -> MessageVerdict:
    # Imported here: every other command starts without dnspython.
    from mailrail.kit.dns_questions import ask_dns
    from mailrail.kit.resolver import DnsResolver

    resolver = DnsResolver(server, timeout=_QUESTION_SECONDS)
    asking = authenticate(client, content, AuthenticationRules(platform.node() or "localhost"))
    return await ask_dns(asking, resolver, seconds=TIME_LIMIT, questions=QUESTION_LIMIT)


def _tell(verdict: MessageVerdict, steps: tuple[AuthenticationStep, ...]) -> None:
    output.table(("CHECK", "RESULT", "REASON"), ((s.check, s.result, s.reason) for s in steps), none="", prose=1)
    for step in steps:
        if step.details:
            output.say(f"\n{step.check}:")
            for line in step.details:
                output.say(f"    {line}")
    output.say("\n" + _field(verdict).rstrip())


def _field(verdict: MessageVerdict) -> str:
    return verdict.results.decode("ascii").replace("\r\n", "\n")


def _plain(verdict: MessageVerdict, steps: tuple[AuthenticationStep, ...]) -> dict[str, Any]:
    reply = verdict.reply
    return {
        "action": verdict.action.value,
        "reply": None if reply is None else {"code": reply.code, "enhanced": str(reply.status), "text": reply.text},
        "sender_authenticated": verdict.sender.name.lower(),
        "iprev": {"result": verdict.iprev.result.value, "name": verdict.iprev.name},
        "spf": [
            {
                "scope": each.identity.scope.value,
                "domain": each.domain,
                "result": each.result.value,
                "mechanism": each.mechanism,
                "reason": each.reason,
            }
            for each in (verdict.spf_helo, verdict.spf)
            if each is not None
        ],
        "dkim": [
            {
                "domain": each.domain,
                "selector": each.selector,
                "identity": each.identity,
                "algorithm": each.algorithm,
                "bits": each.bits,
                "result": each.outcome.value,
                "reason": each.reason,
            }
            for each in verdict.evaluated_dkim
        ],
        "arc": {
            "result": verdict.arc.outcome.value,
            "reason": verdict.arc.reason,
            "sealers": [each.sealer for each in verdict.arc.sealed],
        },
        "dmarc": [
            {
                "author": each.author,
                "result": each.result.value,
                "reason": each.reason,
                "policy_domain": each.policy_domain,
                "policy": each.policy.value if each.record is not None else None,
                "asked": each.asked.value if each.record is not None else None,
                "identifiers": [
                    {"method": i.method, "result": i.result, "domain": i.domain, "aligned": i.aligned}
                    for i in each.identifiers
                ],
            }
            for each in verdict.dmarc.verdicts
        ],
        "disposition": verdict.disposition.applied.value,
        "overrides": [{"type": each.type.value, "comment": each.comment} for each in verdict.disposition.reasons],
        "authentication_results": _field(verdict),
        "steps": [
            {"check": s.check, "result": str(s.result), "reason": str(s.reason), "details": list(s.details)}
            for s in steps
        ],
    }

"""What was found about who sent a message, as commands print it."""

from collections.abc import Iterable
from typing import Final

from mailrail.cli import output
from mailrail.pb.queue.v1 import types_pb2

_CHECKS: Final = {"helo": "spf of HELO", "mfrom": "spf of MAIL FROM"}


def summary(found: types_pb2.MessageAuthentication) -> str:
    """What followed, and the result of each method, in one line."""
    said: dict[str, list[str]] = {}
    for each in found.results:
        results = said.setdefault(each.method, [])
        if each.result not in results:
            results.append(each.result)
    methods = [f"{method} {'/'.join(results)}" for method, results in said.items()]
    return "; ".join(part for part in (output.name_of(found, "action"), ", ".join(methods)) if part)


def policy(found: types_pb2.MessageAuthentication) -> str:
    """What the author's domain asks for, and what of it was done; empty: it asks for nothing."""
    if not found.policy_domain:
        return ""
    return f"{found.policy_domain} asks for {found.policy} if DMARC fails; applied: {found.applied}"


def overrides(found: types_pb2.MessageAuthentication) -> str:
    """Why that was not done, a line each."""
    return "\n".join(": ".join(part for part in (each.type, each.comment) if part) for each in found.overrides)


def print_findings(found: types_pb2.MessageAuthentication) -> None:
    """What followed, then each check."""
    output.facts(
        (
            ("Sender", summary(found)),
            ("Author", ", ".join(found.author_domains)),
            ("Policy", policy(found)),
            ("Override", overrides(found)),
        )
    )
    output.table(("  CHECK", "RESULT", "OF", "REASON"), _rows(found), none="  no check was made", prose=1)


def _rows(found: types_pb2.MessageAuthentication) -> Iterable[tuple[str, str, str, str]]:
    for each in found.results:
        whose = f"{each.domain}, selector {each.selector}" if each.selector else each.domain
        yield f"  {_CHECKS.get(each.identity, each.method)}", each.result, whose, each.reason
    if found.signatures_left_out:
        yield "  dkim", "", "", f"{found.signatures_left_out} more signatures are not shown"

"""Conditions: a closed list of reasons, and `Programmed` that claims no more than is known (CFG-05, design 5)."""

import json

import pytest

from mailrail.core.config.diagnostics import (
    REASONS,
    ROLES_OF_KIND,
    Condition,
    ConditionType,
    ConsumerState,
    Diagnostics,
    Finding,
    Reason,
    Severity,
    SourceLocation,
    Status,
    programmed,
    ready,
)
from mailrail.core.resources import KINDS
from mailrail.core.revision.revision import ObjectRef, Role

ROLES = (Role.QUEUE, Role.OUTBOUND)


def consumer(role: Role, revision: int, **more: object) -> ConsumerState:
    return ConsumerState(f"{role.value}-1", role, revision, **more)  # type: ignore[arg-type]


def test_every_reason_is_documented_and_every_kind_knows_who_reads_it() -> None:
    assert set(REASONS) == set(Reason)
    assert all(text.endswith(".") for text in REASONS.values())
    assert set(ROLES_OF_KIND) == set(KINDS)


@pytest.mark.parametrize(
    ("consumers", "status", "reason", "message"),
    [
        ([consumer(Role.QUEUE, 7), consumer(Role.OUTBOUND, 9)], Status.TRUE, Reason.PROGRAMMED,
         "revision 7 is run by every live service that reads it"),
        ([consumer(Role.QUEUE, 6), consumer(Role.OUTBOUND, 7)], Status.UNKNOWN, Reason.PENDING,
         "revision 7 is not yet run by queue queue-1"),
        # A role without live consumers does not block, and is named.
        ([consumer(Role.QUEUE, 7)], Status.TRUE, Reason.PROGRAMMED,
         "revision 7 is run by every live service that reads it; no live outbound"),
        ([consumer(Role.QUEUE, 1, live=False), consumer(Role.OUTBOUND, 7)], Status.TRUE, Reason.PROGRAMMED,
         "revision 7 is run by every live service that reads it; no live queue"),
        ([], Status.TRUE, Reason.PROGRAMMED,
         "revision 7 is run by every live service that reads it; no live queue or outbound"),
        # Another role's state is not asked.
        ([consumer(Role.QUEUE, 7), consumer(Role.OUTBOUND, 7), consumer(Role.INGRESS, 1)], Status.TRUE,
         Reason.PROGRAMMED, "revision 7 is run by every live service that reads it"),
        ([consumer(Role.QUEUE, 6, rejected=7, error="no such rule"), consumer(Role.OUTBOUND, 7)], Status.FALSE,
         Reason.REJECTED, "queue queue-1 rejected revision 7: no such rule"),
        # A rejection of an older revision says nothing about this one.
        ([consumer(Role.QUEUE, 5, rejected=6), consumer(Role.OUTBOUND, 7)], Status.UNKNOWN, Reason.PENDING,
         "revision 7 is not yet run by queue queue-1"),
    ],
)  # fmt: skip
def test_programmed_says_who_runs_it_CFG_05(
    consumers: list[ConsumerState], status: Status, reason: Reason, message: str
) -> None:
    found = programmed(consumers, 7, ROLES)
    assert (found.type, found.status, found.reason, found.message) == (
        ConditionType.PROGRAMMED,
        status,
        reason,
        message,
    )


def test_a_pinned_head_keeps_newer_objects_from_being_programmed_CFG_04() -> None:
    found = programmed([consumer(Role.QUEUE, 3)], 7, ROLES, pinned=3)
    assert (found.status, found.reason) == (Status.FALSE, Reason.PINNED)
    assert "pinned to revision 3" in found.message
    assert programmed([consumer(Role.QUEUE, 3), consumer(Role.OUTBOUND, 3)], 2, ROLES, pinned=3).status is Status.TRUE


def test_many_laggards_are_counted_not_listed() -> None:
    late = [ConsumerState(f"q{n}", Role.QUEUE, 1) for n in range(10)]
    assert programmed(late, 7, ROLES).message == "revision 7 is not yet run by queue q0, queue q1, queue q2 and 7 more"


def test_ready_is_the_first_positive_condition_that_is_not_true() -> None:
    def condition(kind: ConditionType, status: Status) -> Condition:
        return Condition(kind, status, Reason.PENDING, f"{kind} is {status}")

    accepted = condition(ConditionType.ACCEPTED, Status.TRUE)
    assert ready([accepted]).status is Status.TRUE
    assert ready([accepted, condition(ConditionType.SHADOWED, Status.TRUE)]).status is Status.TRUE
    found = ready([accepted, condition(ConditionType.PROGRAMMED, Status.UNKNOWN)])
    assert (found.status, found.reason, found.message) == (
        Status.UNKNOWN,
        Reason.NOT_READY,
        "Programmed is Unknown",
    )


def test_a_finding_reads_like_a_compilers() -> None:
    finding = Finding(
        SourceLocation("mail.d/a.yaml", 3),
        Severity.ERROR,
        Reason.INVALID,
        "spec.x: is required",
        ObjectRef("MailRoute", "team", "r"),
    )
    assert str(finding) == "mail.d/a.yaml:3: MailRoute team/r: spec.x: is required"
    assert json.loads(Diagnostics((), (finding,)).encode()) == [
        {
            "object": "MailRoute team/r",
            "origin": "mail.d/a.yaml",
            "line": 3,
            "severity": "error",
            "reason": "Invalid",
            "message": "spec.x: is required",
        }
    ]
    assert str(Finding(SourceLocation(), Severity.ERROR, Reason.INVALID, "m")) == "m"


def test_of_very_many_findings_what_was_refused_is_stored_first_and_the_rest_is_counted() -> None:
    """Ten thousand rules may name one missing transport; the revision goes live all the same (CFG-01)."""
    waiting = [
        Finding(SourceLocation("f.yaml", n), Severity.WAITING, Reason.TRANSPORT_NOT_FOUND, "is not there")
        for n in range(1, 10)
    ]
    refused = Finding(SourceLocation("f.yaml", 10), Severity.ERROR, Reason.INVALID, "is required")
    stored = json.loads(Diagnostics(findings=(*waiting, refused)).encode(3))
    assert [(f["line"], f["message"]) for f in stored] == [
        (1, "is not there"), (2, "is not there"), (10, "is required"), (None, "7 more findings are not shown"),
    ]  # fmt: skip
    assert len(json.loads(Diagnostics(findings=tuple(waiting)).encode(9))) == 9

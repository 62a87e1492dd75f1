"""A route that is applied with kubectl decides about the very next message, at each level, in real pods."""

import time

import pytest
from cluster.rail import Rail
from cluster.stage import manifest, route

from testkit.conditions import keeps_to, wait_until

pytestmark = pytest.mark.timeout(600)

GATEWAY, DOMAIN, ACCOUNT = "MailGateway/mx1", "MailDomain/org", "MailAccount/alice"


def next_goes_to(rail: Rail, partner: str, recipient: str) -> None:
    """Alice's next message, sent now, arrives at this partner and nowhere else."""
    said = rail.submit(recipient)
    assert said.accepted, said
    rail.partners[partner].wait_for(recipient, 60, rail.tails)
    for name, other in rail.partners.items():
        assert name == partner or not any(recipient in one.recipients for one in other.seen()), name


def test_a_route_changes_where_the_very_next_message_goes_at_global_domain_and_account_level(
    rail: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    rail.apply(rail.smtp("second"), rail.smtp("third"))
    rail.ready("mtrans/second", "mtrans/third")
    took = []

    def applied(name: str, partner: str, parent: str, recipient: str) -> None:
        rail.apply(route(name, partner, parent=parent))
        began = time.monotonic()
        rail.ready(f"mroute/{name}")  # Ready holds once every live service runs it (CFG-05)
        took.append(time.monotonic() - began)
        next_goes_to(rail, partner, recipient)

    try:
        applied("global", "first", GATEWAY, "one@elsewhere.test")
        applied("domain", "second", DOMAIN, "two@elsewhere.test")
        applied("account", "third", ACCOUNT, "three@elsewhere.test")
        applied("account", "first", ACCOUNT, "four@elsewhere.test")  # an edit of a route in use
        applied("account", "third", ACCOUNT, "five@elsewhere.test")
        rail.kubectl("delete", "mroute", "account")
        rail.wait_until_goes_to("second", "x@elsewhere.test")
        next_goes_to(rail, "second", "six@elsewhere.test")
        rail.kubectl("delete", "mroute", "domain")
        rail.wait_until_goes_to("first", "x@elsewhere.test")
        next_goes_to(rail, "first", "seven@elsewhere.test")
    finally:
        rail.kubectl("delete", "mroute", "--all")
    with capsys.disabled():
        print(f"\nfrom kubectl apply to Ready: {', '.join(f'{one:.2f} s' for one in took)}")


def test_a_missing_transport_defers_says_so_and_delivers_when_it_is_there_ADM_03(rail: Rail) -> None:
    rail.apply(route("waiting", "absent", parent=GATEWAY))
    try:
        row = wait_until(
            lambda: rail.condition("mroute", "waiting", "ResolvedRefs"), 60, lambda: f"a condition\n{rail.tails()}"
        )
        assert (row["status"], row["reason"]) == ("False", "TransportNotFound")
        assert "absent does not exist; until it does, matching mail is deferred" in row["message"]
        rail.wait_until_goes_to("absent", "patience@elsewhere.test")  # the condition says what will be, not yet what is
        assert rail.submit("patience@elsewhere.test").accepted
        queued = wait_until(
            lambda: next((r for r in [rail.recipient("patience@elsewhere.test")] if r["attempts"] >= 1), None),
            60,
            lambda: f"a counted attempt\n{rail.tails()}",
        )
        shown = rail.cli("queue", "show", str(queued["message_id"]))
        assert "4.3.5" in shown
        assert "absent" in shown
        rail.apply(manifest("MailTransport", "absent", {"smtp": {"host": rail.partners["second"].host}}))
        rail.partners["second"].wait_for("patience@elsewhere.test", 60, rail.tails)
    finally:
        rail.kubectl("delete", "mroute/waiting")
        rail.kubectl("delete", "--ignore-not-found", "mtrans/absent")


def test_a_route_that_was_deleted_while_no_operator_watched_does_not_linger(rail: Rail) -> None:
    rail.apply(rail.smtp("second"), rail.smtp("third"), route("lower", "second", parent=GATEWAY))
    rail.apply(route("upper", "third", parent=ACCOUNT))
    try:
        rail.ready("mroute/lower", "mroute/upper")
        next_goes_to(rail, "third", "before@elsewhere.test")
        with rail.without_operator():
            rail.kubectl("delete", "mroute/upper")
            next_goes_to(rail, "third", "no-operator@elsewhere.test")  # what was last compiled serves on (CFG-07)
        rail.wait_until_goes_to("second", "x@elsewhere.test")
        next_goes_to(rail, "second", "after@elsewhere.test")
    finally:
        rail.kubectl("delete", "mroute", "--all")


def test_a_wrong_manifest_says_why_within_two_seconds_and_everything_else_goes_on(
    rail: Rail, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = rail.kubectl.try_("apply", "-f", "-", stdin=manifest("MailTransport", "both", {"smtp": {}, "fail": {}}))
    assert refused.returncode != 0
    rail.apply(route("good", "first", parent=GATEWAY))
    try:
        rail.ready("mroute/good")

        def told(number: int) -> float:
            spec = {"domainName": f"other{number}.example", "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}}
            aliases = [{"localPart": part, "to": ["alice"]} for part in ("sales", "Sales")]  # CEL cannot see it
            began = time.monotonic()
            rail.apply(manifest("MailDomain", f"wrong{number}", spec | {"aliases": aliases}))
            row = wait_until(lambda: rail.condition("mdom", f"wrong{number}", "Accepted"), 60, rail.tails)
            took = time.monotonic() - began
            assert row["status"] == "False"
            assert "a localPart that differs in more than case" in row["message"]
            return took

        took = keeps_to(2.0, told, "to be told why a manifest is wrong")
        with capsys.disabled():
            print(f"\ntold why a manifest is wrong after {', '.join(f'{one:.2f} s' for one in took)}")
        next_goes_to(rail, "first", "unharmed@elsewhere.test")
    finally:
        rail.kubectl("delete", "--ignore-not-found", "mroute/good", *(f"mdom/wrong{number}" for number in range(3)))


def test_kubectl_waits_for_ready_on_every_kind(rail: Rail) -> None:
    rail.apply(rail.smtp("first"), route("every", "first", parent=GATEWAY))
    try:
        for kind in ("mgw", "mdom", "macct", "mtrans", "mroute"):
            done = rail.kubectl.try_("wait", "--for=condition=Ready", "--timeout=60s", kind, "--all")
            assert done.returncode == 0, f"{done.stderr}\n{rail.tails()}"
            assert "condition met" in done.stdout
    finally:
        rail.kubectl("delete", "mroute/every")

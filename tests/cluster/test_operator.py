"""The operator against a real API server: from `kubectl apply` to what every service runs, and back into status."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.conftest import CRDS, Kubectl
from cluster.stage import Stage, basics, manifest, relay, route, staged, status_writers

from mailrail.core.revision.problem import RevisionProblem
from mailrail.core.revision.revision import ObjectRef, Revision, Role, RouteLevel

from testkit.conditions import keeps_to, wait_until


@pytest.fixture
def stage(kubectl: Kubectl, database: str, tmp_path: Path) -> Iterator[Stage]:
    with staged(kubectl, database, tmp_path) as made:
        yield made


def hosts(revision: Revision) -> set[str | None]:
    return {t.host for t in revision.transports}


def rules(level: tuple[RouteLevel, ...]) -> list[tuple[str, bool]]:
    """Transport (or direct) of each rule, and whether it is missing."""
    return [(r.transport.name if r.transport else "direct", r.missing) for one in level for r in one.rules]


def test_an_applied_resource_is_live_in_every_service_and_ready_on_every_kind(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator().wait_for_line("leading")
    stage.kubectl.apply(basics() + relay("relay", "relay.example.org") + route("all", "relay"))
    stage.wait_ready("mgw/mx1", "mdom/org", "macct/postmaster", "mtrans/relay", "mroute/all")
    for consumer in stage.consumers.values():
        assert hosts(consumer.revision) == {"relay.example.org"}
    gateway = stage.get("mgw", "mx1")["status"]
    assert gateway["domains"] == 1
    wait_until(
        lambda: stage.get("mgw", "mx1")["status"]["config"]["upToDate"] == 3,
        60,
        lambda: f"three consumers are up to date: {stage.get('mgw', 'mx1')['status']}",
    )
    shown = stage.kubectl("get", "mailrail")
    assert shown.count(" True ") >= 5
    # Nothing of ours is in the way of a deletion, and no tool left its mark.
    for kind in ("mgw", "mdom", "macct", "mtrans", "mroute"):
        for item in json.loads(stage.kubectl("get", kind, "-o", "json"))["items"]:
            assert "finalizers" not in item["metadata"]
            assert "kopf" not in json.dumps(item["metadata"].get("annotations", {}))


def test_a_change_is_live_within_two_seconds_CFG_06(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "first.example.org"))
    stage.wait_ready("mtrans/relay")

    def live(host: str) -> float:
        stage.kubectl.apply(relay("relay", host))
        began = time.monotonic()
        stage.until_queue(lambda r: hosts(r) == {host})
        return time.monotonic() - began

    took = [keeps_to(2.0, lambda n, m=m: live(f"host-{m}-{n}.example.org"), "a change") for m in range(5)]  # type: ignore[misc]
    with capsys.disabled():
        print(f"\na change is live after {', '.join(f'{one:.2f} s' for each in took for one in each)}")


def test_a_missing_transport_defers_and_says_so_and_comes_to_life_when_it_is_there(stage: Stage) -> None:
    stage.start_consumers()
    # All is there before the operator is: it would tell of what refers to an object that it has not heard of yet.
    stage.kubectl.apply(basics() + route("all", "relay"))
    stage.start_operator()
    resolved = stage.wait_condition("mroute", "all", "ResolvedRefs", status="False", reason="TransportNotFound")
    assert "relay does not exist; until it does, matching mail is deferred" in resolved["message"]
    stage.until_queue(lambda r: rules(r.global_routes) == [("relay", True)], what="the rule defers")
    wait_until(lambda: stage.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}"), 60, "an event is there")
    listed = json.loads(stage.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
    assert [(e["reason"], e["type"], e["regarding"]["name"]) for e in listed] == [
        ("TransportNotFound", "Warning", "all")
    ]
    stage.kubectl.apply(relay("relay", "relay.example.org"))
    stage.wait_ready("mroute/all")
    assert rules(stage.queue().global_routes) == [("relay", False)]


def test_a_listener_that_ingress_cannot_open_is_told_in_the_status_of_its_gateway(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(basics())
    stage.wait_ready("mgw/mx1")

    def listener() -> tuple[str, int, int, dict[str, str]]:
        (one,) = stage.get("mgw", "mx1")["status"]["listeners"]
        return one["name"], one["port"], one["openIn"], {c["type"]: c["reason"] for c in one["conditions"]}

    open_now = ("mx", 2525, 1, {"Accepted": "Accepted", "Programmed": "Programmed"})
    stage.until(lambda: listener() == open_now, "the listener is open")
    why = "port 2525 at 0.0.0.0 cannot be opened: it is in use; free it, or give the listener another port"
    gateway = ObjectRef("MailGateway", stage.kubectl.namespace, "mx1")
    stage.consumers[Role.INGRESS].problems = [RevisionProblem(gateway, "listeners/mx", "PortUnavailable", why)]
    closed = ("mx", 2525, 0, {"Accepted": "Accepted", "Programmed": "PortUnavailable"})
    stage.until(lambda: listener() == closed, "the listener is told to be closed")
    assert why in stage.condition("mgw", "mx1", "Ready")["message"]
    assert why in stage.kubectl("get", "mgw", "mx1", "-o", "wide")
    assert why in stage.kubectl("describe", "mgw", "mx1")
    stage.consumers[Role.INGRESS].problems = []
    stage.wait_ready("mgw/mx1")
    assert listener() == open_now


def test_an_operator_that_gets_another_name_goes_on_and_its_old_name_is_nowhere_CFG_11(stage: Stage) -> None:
    targets = ("mgw/mx1", "mdom/org", "macct/postmaster", "mtrans/relay", "mroute/all")
    stage.start_consumers()
    old = stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "relay.example.org") + route("all", "relay"))
    stage.wait_ready(*targets)

    def ready() -> list[dict[str, Any]]:
        return [stage.condition(kind, name, "Ready") for kind, _, name in (t.partition("/") for t in targets)]

    before = ready()
    old.stop()
    stage.start_operator(controller_name="new.example/mail", former_controller_names="mailrail.dev/operator")
    stage.until(
        lambda: all(status_writers(stage.kubectl, one) == {"new.example/mail"} for one in targets),
        "all is said under the new name",
    )
    assert ready() == before
    (entry,) = stage.get("mroute", "all")["status"]["parents"]
    assert (entry["name"], entry["controllerName"]) == ("mx1", "new.example/mail")
    assert stage.kubectl("get", "mailrail", "-o", "wide").count("new.example/mail") == len(targets)


def test_a_new_object_has_conditions_before_anybody_looked_at_it(stage: Stage) -> None:
    stage.kubectl.apply(basics() + relay("relay", "relay.example.org") + route("all", "relay"))
    for kind, name in (
        ("mgw", "mx1"),
        ("mdom", "org"),
        ("macct", "postmaster"),
        ("mtrans", "relay"),
        ("mroute", "all"),
    ):
        found = {c["type"]: (c["status"], c["reason"]) for c in stage.get(kind, name)["status"]["conditions"]}
        assert found == dict.fromkeys(("Accepted", "ResolvedRefs", "Programmed", "Ready"), ("Unknown", "Pending"))
    stage.start_consumers()
    stage.start_operator()
    stage.wait_ready("mgw/mx1", "mdom/org", "macct/postmaster", "mtrans/relay", "mroute/all")
    for kind, name in (("mgw", "mx1"), ("mroute", "all")):
        body = stage.get(kind, name)
        assert body["status"]["observedGeneration"] == body["metadata"]["generation"] == 1


def test_what_is_applied_one_by_one_makes_no_warning_on_its_way(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator(arrival_seconds="120").wait_for_line("all objects are listed")
    gateway, domain, account = basics().split("---\n")[:3]
    for document in (route("all", "relay"), gateway, domain, account, relay("relay", "relay.example.org")):
        stage.kubectl.apply(document)
        listed = stage.kubectl("get", "mroute", "all", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
        assert listed in ("Unknown", "True")
    stage.wait_ready("mgw/mx1", "mdom/org", "macct/postmaster", "mtrans/relay", "mroute/all")
    assert stage.kubectl("get", "events", "-o", "jsonpath={.items[?(@.type=='Warning')].reason}") == ""


def test_a_hidden_route_is_seen_in_the_list(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(
        basics() + relay("relay", "relay.example.org") + route("all", "relay") + route("later", "relay")
    )
    stage.wait_condition("mroute", "later", "Shadowed", status="True")
    rows = stage.kubectl("get", "mroute").splitlines()
    at = rows[0].index("SHADOWED")
    assert {row.split()[0]: row[at:].split()[0] == "True" for row in rows[1:]} == {"all": False, "later": True}


def test_routes_attach_at_all_three_levels(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(
        basics()
        + relay("relay", "relay.example.org")
        + route("by-account", "relay", parent="MailAccount/postmaster")
        + route("by-domain", "relay", parent="MailDomain/org")
        + route("global", "relay", parent="MailGateway/mx1")
    )
    stage.wait_ready("mroute/by-account", "mroute/by-domain", "mroute/global")
    revision = stage.queue()
    for level in (revision.account_routes, revision.domain_routes, revision.global_routes):
        assert rules(level) == [("relay", False)]
    columns = stage.kubectl("get", "mroute", "-o", "jsonpath={range .items[*]}{.metadata.name}={.status.level} {end}")
    assert columns.split() == ["by-account=Account", "by-domain=Domain", "global=Global"]


def test_a_broken_edit_says_why_and_everything_else_goes_on_CFG_01(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "first.example.org"))
    stage.wait_ready("mdom/org", "mtrans/relay")
    good = {"domainName": "example.org", "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}}

    def told(number: int) -> float:
        aliases = [{"localPart": part, "to": [f"alice{number}"]} for part in ("sales", "Sales")]  # CEL cannot see it
        edit = manifest("MailDomain", "org", good | {"aliases": aliases})
        began = time.monotonic()
        stage.kubectl.apply(edit + relay("relay", "second.example.org"))
        accepted = stage.wait_condition("mdom", "org", "Accepted", status="False", reason="Invalid")
        assert "a localPart that differs in more than case" in accepted["message"]
        return time.monotonic() - began

    keeps_to(4, told, "to be told why an edit is broken")
    stage.until_queue(lambda r: hosts(r) == {"second.example.org"})
    assert [d.delivery.value for d in stage.queue().domains] == ["mailbox"]


def test_a_secret_is_sealed_rotated_within_seconds_and_never_copied(stage: Stage) -> None:
    stage.start_consumers(Role.QUEUE, Role.OUTBOUND)
    operator = stage.start_operator()
    submission = {"host": "smtp.example.org", "auth": {"secretRef": {"name": "login"}}}
    stage.kubectl.apply(basics() + manifest("MailTransport", "provider", {"submission": submission}))
    stage.wait_condition("mtrans", "provider", "ResolvedRefs", status="False", reason="SecretNotFound")

    def password() -> bytes:
        outbound = stage.consumers[Role.OUTBOUND].current
        (transport,) = outbound.revision.transports
        assert transport.password is not None
        return outbound.secret(transport.password)

    create = ("create", "secret", "generic", "login", "--from-literal=username=mail@example.org")
    stage.kubectl(*create, "--from-literal=password=hunter2hunter2")
    stage.wait_ready("mtrans/provider")
    assert password() == b"hunter2hunter2"
    stage.kubectl("patch", "secret", "login", "-p", '{"stringData": {"password": "correct horse battery"}}')
    wait_until(lambda: password() == b"correct horse battery", 60, stage.tails)
    assert stage.consumers[Role.QUEUE].current.secrets == {}
    told = json.dumps(stage.get("mtrans", "provider")) + stage.kubectl("get", "events", "-o", "json")
    told += "\n".join((*operator.lines, *stage.config.lines))
    assert "hunter2" not in told
    assert "correct horse" not in told
    stage.kubectl("delete", "secret", "login")
    stage.wait_condition("mtrans", "provider", "ResolvedRefs", status="False", reason="SecretNotFound")


def test_a_new_sealing_key_seals_everything_anew_without_a_restart_CFG_02(stage: Stage) -> None:
    stage.start_consumers(Role.OUTBOUND)
    stage.start_operator(keys_seconds="0.2")
    create = ("create", "secret", "generic", "login", "--from-literal=username=mail@example.org")
    stage.kubectl(*create, "--from-literal=password=hunter2hunter2")
    submission = {"host": "smtp.example.org", "auth": {"secretRef": {"name": "login"}}}
    stage.kubectl.apply(basics() + manifest("MailTransport", "provider", {"submission": submission}))
    stage.wait_ready("mtrans/provider")
    (stage.folder / "keys/k2").write_text(base64.b64encode(b"2" * 32).decode(), encoding="ascii")

    def sealed_anew() -> bool:
        outbound = stage.consumers[Role.OUTBOUND].current
        password = outbound.revision.transports[0].password
        assert password is not None
        return password.key_id == "k2" and outbound.secret(password) == b"hunter2hunter2"

    stage.until(sealed_anew, "the password is sealed under k2 and opens")
    needed = [{"id": "k1", "neededBy": "History"}, {"id": "k2", "neededBy": "Head"}]
    stage.until(
        lambda: stage.get("mgw", "mx1")["status"]["config"]["sealingKeys"] == needed, "status says who needs k1"
    )


def test_a_service_that_rejects_a_revision_is_named_in_programmed_CFG_05(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "first.example.org"))
    stage.wait_ready("mtrans/relay")
    stage.consumers[Role.OUTBOUND].refuse = "no such host"
    stage.kubectl.apply(relay("relay", "second.example.org"))
    programmed = stage.wait_condition("mtrans", "relay", "Programmed", status="False", reason="Rejected")
    assert "no such host" in programmed["message"]
    assert stage.wait_condition("mdom", "org", "Ready", status="True")
    stage.consumers[Role.OUTBOUND].refuse = ""
    stage.kubectl.apply(relay("relay", "third.example.org"))
    stage.wait_ready("mtrans/relay")


def test_a_deletion_in_a_watch_gap_does_not_linger(stage: Stage) -> None:
    """The relist trap: a watch that lost its place lists anew and says nothing of what went meanwhile.

    One kind keeps an object, and its list tells; another loses all of them, and only the count can tell.
    """
    proxy = stage.through_proxy()
    stage.start_consumers()
    stage.start_operator(leader_election="false", count_seconds="1")
    stage.kubectl.apply(
        basics() + relay("kept", "kept.example.org") + relay("gone", "gone.example.org") + route("only", "kept")
    )
    stage.wait_ready("mroute/only", "mtrans/kept", "mtrans/gone")
    proxy.away()
    stage.kubectl("delete", "mroute/only", "mtrans/gone")
    proxy.back(stage.resource_version())
    stage.until_queue(lambda r: hosts(r) == {"kept.example.org"} and not r.global_routes, 60, "the deleted are gone")
    wait_until(lambda: proxy.expired >= 2, 60, "watches were told 410")
    stage.kubectl.apply(relay("kept", "later.example.org"))
    stage.until_queue(lambda r: hosts(r) == {"later.example.org"}, 60, "the watches work again")


def test_while_the_api_server_is_away_services_run_on_and_what_changed_goes_live_when_it_is_back(stage: Stage) -> None:
    proxy = stage.through_proxy()
    stage.start_consumers()
    terms = {"lease_seconds": "60", "renew_seconds": "40", "retry_seconds": "0.3"}
    operator = stage.start_operator(**terms)
    stage.kubectl.apply(basics() + relay("relay", "one.example.org"))
    stage.wait_ready("mtrans/relay")
    proxy.away()
    stage.kubectl.apply(relay("relay", "two.example.org"))
    operator.wait_for_line("cannot renew the lease")
    assert hosts(stage.queue()) == {"one.example.org"}
    proxy.back(stage.resource_version())
    stage.until_queue(lambda r: hosts(r) == {"two.example.org"}, 60)
    stage.wait_ready("mtrans/relay")
    assert operator.running


def test_of_two_operators_one_leads_and_the_other_takes_over_when_it_is_killed(stage: Stage) -> None:
    stage.start_consumers()
    terms = {"lease_seconds": "10", "renew_seconds": "8", "retry_seconds": "0.3"}  # a busy leader keeps it
    first = stage.start_operator(node_id="first", **terms)
    first.wait_for_line("leading")
    second = stage.start_operator(node_id="second", **terms)
    second.wait_for_line("standing by")
    stage.kubectl.apply(basics() + relay("relay", "one.example.org"))
    stage.wait_ready("mtrans/relay")
    lease = "jsonpath={.spec.holderIdentity} {.spec.leaseTransitions}"
    assert stage.kubectl("get", "lease", "mailrail-operator", "-o", lease) == "first 0"
    first.kill()
    stage.kubectl.apply(relay("relay", "two.example.org"))
    stage.until_queue(lambda r: hosts(r) == {"two.example.org"}, 60)
    stage.wait_ready("mtrans/relay")
    assert stage.kubectl("get", "lease", "mailrail-operator", "-o", lease) == "second 1"


def test_a_leader_that_was_stopped_past_its_lease_writes_nothing_when_it_wakes_CFG_04(stage: Stage) -> None:
    stage.start_consumers()
    terms = {"lease_seconds": "10", "renew_seconds": "8", "retry_seconds": "0.3"}  # a busy leader keeps it
    first = stage.start_operator(node_id="first", **terms)
    first.wait_for_line("leading")
    stage.kubectl.apply(basics() + relay("relay", "one.example.org"))
    stage.wait_ready("mtrans/relay")
    stage.pause(first)
    second = stage.start_operator(node_id="second", **terms)
    second.wait_for_line("publishing configuration", 60)
    stage.kubectl.apply(relay("relay", "two.example.org"))
    stage.until_queue(lambda r: hosts(r) == {"two.example.org"}, 60)
    stage.resume(first)
    assert first.wait(60) == 1
    assert first.wait_for_line("no longer the leader")
    assert hosts(stage.queue()) == {"two.example.org"}
    stage.wait_ready("mtrans/relay")


def test_an_operator_that_is_killed_in_mid_publish_leaves_a_whole_revision_and_the_next_one_goes_on(
    stage: Stage,
) -> None:
    stage.start_consumers()
    stage.kubectl.apply(basics() + relay("relay", "one.example.org"))
    operator = stage.start_operator(leader_election="false")
    stage.wait_ready("mtrans/relay")
    for n in range(4):  # killed at different moments between noticing and having written
        stage.kubectl.apply(relay("relay", f"host-{n}.example.org"))
        time.sleep(0.06 * n)
        operator.kill()
        assert hosts(stage.queue()) <= {"one.example.org", *(f"host-{m}.example.org" for m in range(n + 1))}
        operator = stage.start_operator(leader_election="false")
        stage.until_queue(lambda r, n=n: hosts(r) == {f"host-{n}.example.org"}, 60)  # type: ignore[misc]
        stage.wait_ready("mtrans/relay")


def test_while_the_config_service_is_away_new_objects_say_so_and_later_go_live(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(basics())
    stage.wait_ready("mgw/mx1")
    stage.config.stop()
    stage.kubectl.apply(relay("relay", "one.example.org"))
    accepted = stage.wait_condition("mtrans", "relay", "Accepted", status="Unknown", reason="Pending")
    assert "the config service is unreachable" in accepted["message"]
    assert stage.condition("mgw", "mx1", "Ready")["status"] == "True"
    stage.start_config()
    stage.wait_ready("mtrans/relay")


def test_a_crd_that_was_deleted_and_made_again_is_watched_again(stage: Stage) -> None:
    stage.start_consumers()
    operator = stage.start_operator(leader_election="false")
    stage.kubectl.apply(basics() + relay("relay", "one.example.org") + route("all", "relay"))
    stage.wait_ready("mroute/all")
    crd = CRDS / "mailrail.dev_mailroutes.yaml"
    stage.kubectl("delete", "-f", str(crd), "--timeout=120s")
    try:
        stage.until_queue(lambda r: not r.global_routes, 60, "its objects went with it")
    finally:
        stage.kubectl("apply", "--server-side", "-f", str(crd))
        stage.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(crd))
    stage.until(lambda: stage.kubectl.try_("get", "mroute").returncode == 0, "the kind is served again")
    stage.kubectl.apply(route("again", "relay"))
    stage.wait_ready("mroute/again", within=60)
    assert operator.running


def test_a_namespace_with_our_resources_is_deleted_without_the_operator(stage: Stage) -> None:
    operator = stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "one.example.org") + route("all", "relay"))
    stage.wait_condition("mtrans", "relay", "Accepted", status="True")
    operator.stop()
    stage.kubectl("delete", "mgw,mdom,macct,mtrans,mroute", "--all", "--timeout=60s")
    assert stage.kubectl("get", "mailrail", "-o", "name") == ""


def test_without_the_right_to_watch_secrets_they_are_read_by_name_and_polled(stage: Stage) -> None:
    patch = json.dumps([{"op": "replace", "path": "/rules/2/verbs", "value": ["get"]}])
    stage.kubectl("patch", "role", "mailrail-operator", "--type=json", "-p", patch)
    stage.start_consumers(Role.OUTBOUND)
    stage.start_operator(secrets_poll_seconds="0.5")
    submission = {"host": "smtp.example.org", "auth": {"secretRef": {"name": "login"}}}
    stage.kubectl(
        "create", "secret", "generic", "login", "--from-literal=username=u", "--from-literal=password=one-password"
    )
    stage.kubectl.apply(basics() + manifest("MailTransport", "provider", {"submission": submission}))
    stage.wait_condition("mtrans", "provider", "ResolvedRefs", status="True")
    stage.kubectl("patch", "secret", "login", "-p", '{"stringData": {"password": "two-password"}}')

    def rotated() -> bool:
        outbound = stage.consumers[Role.OUTBOUND].current
        return b"two-password" in outbound.secrets.values()

    wait_until(rotated, 60, stage.tails)

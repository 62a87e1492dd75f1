"""The operator's plan: what is read goes in, what is to be written comes out; no API server, no clock."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.config.compiler import Compiled, compile
from mailrail.core.config.diagnostics import ConsumerState, Diagnostics
from mailrail.core.config.loader import Document
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import CompilerState
from mailrail.core.dnscheck.answers import DnsReason, DnsVerdict, Record, RecordState
from mailrail.core.resources import canonical
from mailrail.core.resources.status import KIND_INFO
from mailrail.core.revision.problem import RevisionProblem
from mailrail.core.revision.revision import ObjectRef, Role
from mailrail.core.revision.sealing import Keyring
from mailrail_operator.model import (
    Change,
    ClusterView,
    EventType,
    ObjectMemory,
    Observed,
    Running,
    SealingKey,
    StatusPlan,
)
from mailrail_operator.plan import plan
from mailrail_operator.transport_health import HEALTHY, TransportHealth, health_of

KEYS = Keyring({"k1": b"0" * 32})
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"
ALL_ROLES = (Role.INGRESS, Role.QUEUE, Role.OUTBOUND)


def body(kind: str, name: str, spec: Mapping[str, Any], generation: int = 1) -> dict[str, Any]:
    return {
        "apiVersion": "mailrail.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "mail", "uid": f"uid-{kind}-{name}", "generation": generation},
        "spec": dict(spec),
    }


def ref(kind: str, name: str) -> ObjectRef:
    return ObjectRef(kind, "mail", name)


GATEWAY = body(
    "MailGateway",
    "mx1",
    {
        "hostname": "mx1.example.org",
        "listeners": [{"name": "mx", "protocol": "MX", "port": 2525}],
        "postmaster": {"accountRef": {"name": "postmaster"}},
    },
)
DOMAIN = body(
    "MailDomain", "org", {"domainName": "example.org", "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}}
)
ACCOUNT = body("MailAccount", "postmaster", {"domainRef": {"name": "org"}, "addresses": ["postmaster", "abuse"]})
RELAY = body("MailTransport", "relay", {"smtp": {"host": "relay.example.org", "port": 2526}})
ROUTE = body(
    "MailRoute",
    "all",
    {
        "parentRefs": [{"kind": "MailGateway", "name": "mx1"}],
        "rules": [{"name": "relay", "transportRef": {"name": "relay"}}],
    },
)
EVERYTHING = (GATEWAY, DOMAIN, ACCOUNT, RELAY, ROUTE)


def consumers(revision: int, roles: Iterable[Role] = ALL_ROLES, rejected: int = 0) -> tuple[ConsumerState, ...]:
    return tuple(ConsumerState(f"{role}-1", role, revision, rejected, "boom" if rejected else "") for role in roles)


@dataclass
class Cluster:
    """The API server and the leader's memory, as far as the plan sees them."""

    bodies: dict[ObjectRef, dict[str, Any]]
    state: CompilerState = field(default_factory=CompilerState)
    memory: Mapping[ObjectRef, ObjectMemory] = field(default_factory=dict)
    revision: int = 0
    checksum: str = ""
    compiled: Compiled | None = None

    @classmethod
    def of(cls, *bodies: Mapping[str, Any]) -> "Cluster":
        made = cls({})
        for one in bodies:
            made.put(one)
        return made

    def put(self, one: Mapping[str, Any]) -> None:
        """A write to spec: status stays."""
        observed = Observed.of(one)
        status = self.bodies.get(observed.ref, {}).get("status")
        self.bodies[observed.ref] = copy.deepcopy(dict(one)) | ({"status": status} if status else {})

    def publish(self) -> None:
        """Compile and publish, as the config service would number it."""
        self.compiled = compile(Sources(tuple(Document(b) for b in self.bodies.values())), self.state, KEYS)
        if self.compiled.held:
            return
        self.state = self.compiled.state
        if self.compiled.checksum != self.checksum:
            self.revision, self.checksum = self.revision + 1, self.compiled.checksum

    def plan(
        self, running: Running, now: str = NOW, dns: Mapping[ObjectRef, DnsVerdict] | None = None, **more: Any
    ) -> StatusPlan:
        """Plan, write what it says, and remember."""
        observed = {ref: Observed.of(one) for ref, one in self.bodies.items()}
        assert self.compiled is not None
        compiled = self.compiled
        view = ClusterView(observed, compiled.diagnostics, compiled.state.uses, running, dns or {}, now, **more)
        made = plan(view, self.memory)
        self.memory = made.memory
        for change in made.changes:
            self.bodies[change.ref]["status"] = copy.deepcopy(dict(change.status))
        return made

    def running(self, at: int | None = None, **more: Any) -> Running:
        """Services that all run one revision; the newest if none is given."""
        at = self.revision if at is None else at
        return replace(Running(self.revision, self.checksum, self.revision, False, consumers(at)), **more)

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        rows = self.bodies[ref(kind, name)]["status"]["conditions"]
        return dict(next(row for row in rows if row["type"] == condition))


def settled() -> Cluster:
    """Everything is there, and every service runs it."""
    cluster = Cluster.of(*EVERYTHING)
    cluster.publish()
    cluster.plan(cluster.running())
    return cluster


def change_of(made: StatusPlan, kind: str, name: str) -> Change:
    return next(c for c in made.changes if c.ref == ref(kind, name))


def test_a_working_installation_is_ready_in_every_kind() -> None:
    cluster = settled()
    for one in EVERYTHING:
        assert cluster.condition(one["kind"], one["metadata"]["name"], "Ready")["status"] == "True"


def test_every_positive_condition_is_there_from_the_first_write_with_the_generation_that_was_judged() -> None:
    cluster = settled()
    for one in cluster.bodies.values():
        rows = one["status"]["conditions"]
        assert [r["type"] for r in rows if r["type"] not in ("DNSConfigured",)] == [
            "Accepted",
            "ResolvedRefs",
            "Programmed",
            "Ready",
        ]
        assert {r["observedGeneration"] for r in rows} == {1}


def test_what_is_written_fits_the_schema_of_the_crd() -> None:
    cluster = settled()
    verdict = DnsVerdict("False", DnsReason.RECORDS_MISSING, "x", (Record("MX", "MX", "a", "b", RecordState.MISSING),))
    cluster.plan(cluster.running(), dns={ref("MailDomain", "org"): verdict})
    for one in cluster.bodies.values():
        KIND_INFO[one["kind"]].status.model_validate(one["status"], strict=False)


def test_nothing_is_written_when_nothing_changed() -> None:
    cluster = settled()
    assert cluster.plan(cluster.running(), LATER).changes == ()


def test_the_columns_of_kubectl_get_have_their_facts() -> None:
    cluster = settled()
    facts = {kind: cluster.bodies[ref(kind, name)]["status"] for kind, name in (
        ("MailGateway", "mx1"), ("MailDomain", "org"), ("MailAccount", "postmaster"), ("MailTransport", "relay"),
        ("MailRoute", "all"),
    )}  # fmt: skip
    assert facts["MailGateway"]["domains"] == 1
    assert facts["MailDomain"]["accounts"] == 1
    assert facts["MailAccount"]["addressCount"] == 2
    assert (facts["MailTransport"]["type"], facts["MailTransport"]["endpoint"]) == ("smtp", "relay.example.org:2526")
    assert facts["MailTransport"]["referencedBy"] == 1
    assert (facts["MailRoute"]["level"], facts["MailRoute"]["ruleCount"]) == ("Global", 1)


def test_a_domain_that_is_delivered_by_a_transport_counts_as_one_that_names_it() -> None:
    cluster = settled()
    delivery = {"transport": {"ref": {"name": "relay"}}}
    cluster.put(body("MailDomain", "org", DOMAIN["spec"] | {"delivery": delivery}, 2))
    cluster.publish()
    cluster.plan(cluster.running(), LATER)
    assert cluster.bodies[ref("MailTransport", "relay")]["status"]["referencedBy"] == 2


def test_a_publish_that_services_do_not_run_yet_is_pending_and_then_programmed_CFG_05() -> None:
    cluster = Cluster.of(*EVERYTHING)
    cluster.publish()
    cluster.plan(cluster.running(at=0))
    assert cluster.condition("MailRoute", "all", "Programmed")["reason"] == "Pending"
    assert cluster.condition("MailRoute", "all", "Ready")["status"] == "Unknown"
    cluster.plan(cluster.running(), LATER)
    programmed = cluster.condition("MailRoute", "all", "Programmed")
    assert (programmed["status"], programmed["lastTransitionTime"]) == ("True", LATER)
    assert cluster.condition("MailRoute", "all", "Accepted")["lastTransitionTime"] == NOW


def test_a_role_without_live_consumers_does_not_block_and_is_named_CFG_05() -> None:
    cluster = Cluster.of(*EVERYTHING)
    cluster.publish()
    cluster.plan(cluster.running(consumers=consumers(1, (Role.INGRESS, Role.QUEUE))))
    programmed = cluster.condition("MailTransport", "relay", "Programmed")
    assert (programmed["status"], programmed["message"]) == (
        "True",
        "every live service that reads it runs it; no live outbound",
    )


def test_a_service_that_starts_or_stops_rewrites_no_status_but_the_gateways() -> None:
    cluster = settled()
    starting = cluster.running(consumers=(*consumers(1), ConsumerState("queue-2", Role.QUEUE, 0)))
    assert [c.ref.kind for c in cluster.plan(starting, LATER).changes] == ["MailGateway"]
    gone = cluster.running(consumers=consumers(1, (Role.QUEUE,)))
    assert [c.ref.kind for c in cluster.plan(gone, LATER).changes] == ["MailGateway"]
    assert cluster.condition("MailRoute", "all", "Programmed")["status"] == "True"


def test_one_changed_object_rewrites_its_own_status_and_the_gateways() -> None:
    cluster = settled()
    cluster.put(body("MailTransport", "relay", {"smtp": {"host": "other.example.org"}}, generation=2))
    cluster.publish()
    made = cluster.plan(cluster.running(at=1), LATER)
    assert {c.ref.kind for c in made.changes} == {"MailGateway", "MailTransport"}
    assert cluster.condition("MailTransport", "relay", "Programmed")["reason"] == "Pending"
    cluster.plan(cluster.running(), LATER)
    assert cluster.condition("MailTransport", "relay", "Programmed")["status"] == "True"


def test_a_rejected_revision_is_said_with_the_words_of_who_rejected_it_CFG_05() -> None:
    cluster = settled()
    cluster.put(body("MailRoute", "all", ROUTE["spec"] | {"priority": 5}, generation=2))
    cluster.put(body("MailTransport", "relay", {"smtp": {"host": "other.example.org"}}, generation=2))
    cluster.publish()
    made = cluster.plan(cluster.running(consumers=consumers(1, rejected=2)), LATER)
    programmed = cluster.condition("MailTransport", "relay", "Programmed")
    assert (programmed["status"], programmed["reason"]) == ("False", "Rejected")
    assert "outbound outbound-1 rejected revision 2: boom" in programmed["message"]
    (note,) = change_of(made, "MailTransport", "relay").notes
    assert (note.type, note.reason) == (EventType.WARNING, "Rejected")
    assert cluster.bodies[ref("MailGateway", "mx1")]["status"]["config"]["rejecting"] == 3


def test_a_rollback_is_said_by_what_it_takes_back_and_by_the_gateway_CFG_04() -> None:
    cluster = settled()
    cluster.put(body("MailTransport", "relay", {"smtp": {"host": "other.example.org"}}, generation=2))
    cluster.publish()
    cluster.plan(cluster.running(), LATER)
    cluster.plan(cluster.running(at=1, head=1, pinned=True), LATER)
    assert cluster.condition("MailTransport", "relay", "Programmed")["reason"] == "Pinned"
    assert cluster.condition("MailDomain", "org", "Programmed")["status"] == "True"
    gateway = cluster.condition("MailGateway", "mx1", "Programmed")
    assert (gateway["reason"], gateway["message"]) == ("Pinned", "head is pinned to revision 1; 2 waits for an unpin")
    cluster.plan(cluster.running(), LATER)
    assert cluster.condition("MailTransport", "relay", "Ready")["status"] == "True"


def test_what_the_store_lost_is_not_programmed_until_it_is_published_again_CFG_09() -> None:
    cluster = settled()
    cluster.put(body("MailTransport", "relay", {"smtp": {"host": "other.example.org"}}, generation=2))
    cluster.publish()
    cluster.plan(cluster.running(), LATER)
    lost = "the store went back to revision 1: revision 2, which was published last, is not in it"
    made = cluster.plan(cluster.running(at=1, head=1, difference=lost), LATER)
    for kind, name in (("MailGateway", "mx1"), ("MailTransport", "relay"), ("MailRoute", "all")):
        found = cluster.condition(kind, name, "Programmed")
        assert (found["status"], found["reason"]) == ("False", "NotStored")
        assert found["message"] == f"{lost}; it is published again"
        assert cluster.condition(kind, name, "Ready")["status"] == "False"
    # It is one fact, not one for each of thousands of objects.
    assert [change.ref.kind for change in made.changes if change.notes] == ["MailGateway"]
    # Published again, but services fell back to what the store had, and do not run it yet.
    cluster.revision = 1002
    cluster.plan(cluster.running(at=1), LATER)
    assert cluster.condition("MailTransport", "relay", "Ready")["status"] == "Unknown"
    cluster.plan(cluster.running(), LATER)
    for kind, name in (("MailGateway", "mx1"), ("MailTransport", "relay"), ("MailRoute", "all")):
        assert cluster.condition(kind, name, "Ready")["status"] == "True"


TAKEN = "port 2525 at 0.0.0.0 cannot be opened: it is in use; free it, or give the listener another port"


def ingress(node: str, revision: int = 1, reason: str = "", gateway: str = "") -> ConsumerState:
    problems = (RevisionProblem(ref("MailGateway", "mx1"), "listeners/mx", reason, TAKEN),) if reason else ()
    return ConsumerState(node, Role.INGRESS, revision, problems=problems, gateway=gateway)


def edges(cluster: Cluster, *ingresses: ConsumerState, now: str = LATER) -> tuple[StatusPlan, dict[str, Any]]:
    """A plan for these ingress processes, and the status of the listener then."""
    made = cluster.plan(cluster.running(consumers=(*consumers(1, (Role.QUEUE, Role.OUTBOUND)), *ingresses)), now)
    (listener,) = cluster.bodies[ref("MailGateway", "mx1")]["status"]["listeners"]
    return made, listener


def programmed_of(listener: Mapping[str, Any]) -> tuple[str, str]:
    accepted, programmed = listener["conditions"]
    assert (accepted["type"], accepted["status"], programmed["type"]) == ("Accepted", "True", "Programmed")
    return programmed["status"], programmed["reason"]


def test_each_listener_says_in_how_many_processes_it_is_open() -> None:
    cluster = settled()
    _, listener = edges(cluster, ingress("a"), ingress("b"))
    assert (listener["name"], listener["port"], listener["openIn"]) == ("mx", 2525, 2)
    assert programmed_of(listener) == ("True", "Programmed")
    assert {c["observedGeneration"] for c in listener["conditions"]} == {1}
    made, _ = edges(cluster, ingress("b"), ingress("a"))
    assert made.changes == ()


def test_a_listener_that_a_process_cannot_open_is_told_of_it_and_of_its_gateway() -> None:
    cluster = settled()
    edges(cluster, ingress("a"), ingress("b"))
    made, listener = edges(cluster, ingress("a"), ingress("b", reason="PortUnavailable"))
    assert (programmed_of(listener), listener["openIn"]) == (("False", "PortUnavailable"), 1)
    said = f"ingress b says: {TAKEN}"
    assert listener["conditions"][1]["message"] == said
    for condition in ("Programmed", "Ready"):
        found = cluster.condition("MailGateway", "mx1", condition)
        assert (found["status"], found["message"]) == ("False", f"listener mx: {said}")
    (note,) = change_of(made, "MailGateway", "mx1").notes
    assert (note.type, note.reason, note.message) == (EventType.WARNING, "PortUnavailable", f"listener mx: {said}")
    assert cluster.condition("MailDomain", "org", "Ready")["status"] == "True"
    again, _ = edges(cluster, ingress("a"), ingress("b", reason="PortUnavailable"), now="2026-01-01T01:00:00Z")
    assert again.changes == ()
    _, listener = edges(cluster, ingress("a"), ingress("b"))
    assert programmed_of(listener) == ("True", "Programmed")
    assert cluster.condition("MailGateway", "mx1", "Ready")["status"] == "True"


def test_a_reason_of_a_newer_ingress_is_said_with_a_word_of_the_closed_list() -> None:
    _, listener = edges(settled(), ingress("a", reason="WrongMoon"))
    assert programmed_of(listener) == ("False", "PortUnavailable")


def test_a_listener_that_is_being_opened_is_not_called_open() -> None:
    cluster = Cluster.of(*EVERYTHING)
    cluster.publish()
    _, listener = edges(cluster, ingress("a"), ingress("b", reason="Pending"))
    assert (programmed_of(listener), listener["openIn"]) == (("Unknown", "Pending"), 1)
    assert cluster.condition("MailGateway", "mx1", "Programmed")["status"] == "Unknown"


def test_a_process_that_starts_or_the_last_that_stops_takes_nothing_back_from_a_listener_CFG_05() -> None:
    cluster = settled()
    edges(cluster, ingress("a"))
    _, listener = edges(cluster, ingress("a"), ingress("b", revision=0))
    assert (programmed_of(listener), listener["openIn"]) == (("True", "Programmed"), 1)
    _, listener = edges(cluster)
    assert (programmed_of(listener), listener["openIn"]) == (("True", "Programmed"), 0)
    assert listener["conditions"][1]["message"] == "no live ingress"


def test_a_process_that_serves_another_gateway_does_not_count() -> None:
    cluster = settled()
    _, listener = edges(cluster, ingress("a", gateway="mail/mx1"), ingress("b", gateway="mail/other"))
    assert listener["openIn"] == 1
    _, listener = edges(cluster, ingress("b", gateway="mail/other"))
    assert programmed_of(listener) == ("False", "NotInUse")
    assert "MAILRAIL_INGRESS_GATEWAY" in cluster.condition("MailGateway", "mx1", "Ready")["message"]


def test_what_a_new_object_misses_is_said_after_some_seconds_for_it_may_be_on_its_way() -> None:
    new = copy.deepcopy(ROUTE) | {"metadata": ROUTE["metadata"] | {"creationTimestamp": NOW}}
    cluster = Cluster.of(GATEWAY, DOMAIN, ACCOUNT, new)
    cluster.publish()
    made = cluster.plan(cluster.running(), NOW, arrival_seconds=5.0)
    assert made.arriving
    assert made.counts["MailRoute", "Unknown"] == 1
    assert "status" not in cluster.bodies[ref("MailRoute", "all")]
    made = cluster.plan(cluster.running(), LATER, arrival_seconds=5.0)
    assert not made.arriving
    assert cluster.condition("MailRoute", "all", "ResolvedRefs")["reason"] == "TransportNotFound"
    assert [note.reason for note in change_of(made, "MailRoute", "all").notes] == ["TransportNotFound"]
    # Once it was said, or when the object is broken itself, nothing is held back.
    broken = body("MailRoute", "all", {"parentRefs": [], "rules": []}) | {}
    broken["metadata"] = broken["metadata"] | {"creationTimestamp": NOW}
    at_once = Cluster.of(GATEWAY, DOMAIN, ACCOUNT, broken)
    at_once.publish()
    assert not at_once.plan(at_once.running(), NOW, arrival_seconds=5.0).arriving
    assert at_once.condition("MailRoute", "all", "Accepted")["reason"] == "Invalid"


def of_another_version(cluster: Cluster, kind: str, name: str, *, piece: bool) -> None:
    """The object gets a field that this version does not know, as the version that accepted it has stored it."""
    one = cluster.bodies[ref(kind, name)]
    one["spec"] = one["spec"] | {"later": {}}
    source = canonical(one)
    cluster.state = replace(
        cluster.state,
        accepted=tuple(
            replace(a, source=source, piece=a.piece if piece else None) if a.ref == ref(kind, name) else a
            for a in cluster.state.accepted
        ),
    )


@pytest.mark.parametrize(("kind", "name"), [(one["kind"], one["metadata"]["name"]) for one in EVERYTHING])
def test_an_object_of_another_version_runs_on_and_says_so_and_nothing_else_changes(kind: str, name: str) -> None:
    cluster = settled()
    of_another_version(cluster, kind, name, piece=True)
    cluster.memory = {}  # another leader, of another version
    cluster.publish()
    made = cluster.plan(cluster.running(), LATER)
    assert [change.ref for change in made.changes] == [ref(kind, name)]
    assert cluster.condition(kind, name, "Accepted")["reason"] == "NotSupported"
    assert cluster.condition(kind, name, "Programmed")["status"] == "True", "services run it"
    assert cluster.condition(kind, name, "Ready")["status"] == "False"
    assert [note.reason for note in change_of(made, kind, name).notes] == ["NotSupported"]


@pytest.mark.parametrize(("kind", "name"), [(one["kind"], one["metadata"]["name"]) for one in EVERYTHING])
def test_while_an_object_holds_up_every_publish_what_runs_unchanged_keeps_its_status(kind: str, name: str) -> None:
    cluster = settled()
    before = copy.deepcopy(cluster.bodies[ref(kind, name)]["status"])
    of_another_version(cluster, kind, name, piece=False)
    cluster.put(body("MailTransport", "new", {"direct": {}}))
    cluster.memory = {}
    cluster.publish()
    made = cluster.plan(cluster.running(), LATER)
    assert sorted(change.ref for change in made.changes) == sorted([ref(kind, name), ref("MailTransport", "new")])
    for object_of, named in ((kind, name), ("MailTransport", "new")):
        assert cluster.condition(object_of, named, "Accepted")["reason"] == "NotSupported"
        assert cluster.condition(object_of, named, "Ready")["status"] == "False"
    for part in ("parents", "listeners"):
        assert cluster.bodies[ref(kind, name)]["status"].get(part) == before.get(part)
    assert cluster.plan(cluster.running(), LATER).changes == ()
    assert sum(made.counts.values()) == len(EVERYTHING) + 1, "metrics count all objects"
    assert sum(of for (_, ready), of in made.counts.items() if ready == "True") == len(EVERYTHING) - 1


def test_the_status_says_at_the_top_which_generation_it_is_about() -> None:
    cluster = settled()
    cluster.put(body("MailTransport", "relay", {"smtp": {"host": "other.example.org"}}, generation=2))
    cluster.publish()
    cluster.plan(cluster.running(), LATER)
    assert cluster.bodies[ref("MailTransport", "relay")]["status"]["observedGeneration"] == 2
    assert cluster.bodies[ref("MailRoute", "all")]["status"]["observedGeneration"] == 1


def test_what_no_service_runs_is_not_programmed_for_any_parent() -> None:
    thief = body("MailAccount", "thief", {"domainRef": {"name": "org"}, "addresses": ["postmaster"]})
    lost = body(
        "MailDomain", "lost", DOMAIN["spec"] | {"domainName": "lost.example", "gatewayRef": {"name": "nowhere"}}
    )
    both = ROUTE["spec"] | {"parentRefs": [*ROUTE["spec"]["parentRefs"], {"kind": "MailDomain", "name": "lost"}]}
    cluster = Cluster.of(*EVERYTHING[:-1], body("MailRoute", "all", both), thief, lost)
    cluster.publish()
    made = cluster.plan(cluster.running())
    for kind, name in (("MailAccount", "thief"), ("MailDomain", "lost")):
        programmed = cluster.condition(kind, name, "Programmed")
        assert (programmed["status"], programmed["reason"]) == ("False", "NotInUse"), name
        # Why is said by one event, that of the other condition.
        assert [note.reason for note in change_of(made, kind, name).notes] != ["NotInUse"]
        assert len(change_of(made, kind, name).notes) == 1
    parents = {
        parent["kind"]: {c["type"]: c["status"] for c in parent["conditions"]}["Programmed"]
        for parent in cluster.bodies[ref("MailRoute", "all")]["status"]["parents"]
    }
    assert parents == {"MailGateway": "True", "MailDomain": "False"}
    assert cluster.condition("MailRoute", "all", "Programmed")["status"] == "True"


def test_after_a_refused_edit_it_says_which_generation_serves_on() -> None:
    cluster = settled()
    cluster.put(body("MailDomain", "org", DOMAIN["spec"] | {"domainName": "-"}, generation=2))
    cluster.publish()
    cluster.plan(cluster.running(), LATER)
    programmed = cluster.condition("MailDomain", "org", "Programmed")
    assert (programmed["status"], programmed["reason"]) == ("False", "NotInUse")
    assert programmed["message"] == "generation 2 is not accepted; generation 1 serves on"
    assert programmed["observedGeneration"] == 2
    cluster.put(body("MailDomain", "org", DOMAIN["spec"], generation=3))
    cluster.publish()
    cluster.plan(cluster.running(), LATER)
    assert cluster.condition("MailDomain", "org", "Ready")["status"] == "True"


def test_a_missing_transport_is_named_and_an_event_tells_it_once() -> None:
    cluster = Cluster.of(GATEWAY, DOMAIN, ACCOUNT, ROUTE)
    cluster.publish()
    made = cluster.plan(cluster.running())
    resolved = cluster.condition("MailRoute", "all", "ResolvedRefs")
    assert (resolved["status"], resolved["reason"]) == ("False", "TransportNotFound")
    assert "MailTransport mail/relay" in resolved["message"]
    assert cluster.condition("MailRoute", "all", "Ready")["status"] == "False"
    assert [n.reason for n in change_of(made, "MailRoute", "all").notes] == ["TransportNotFound"]
    assert cluster.plan(cluster.running(), LATER).changes == ()
    cluster.put(RELAY)
    cluster.publish()
    made = cluster.plan(cluster.running(), LATER)
    assert [(n.type, n.reason) for n in change_of(made, "MailRoute", "all").notes] == [
        (EventType.NORMAL, "ResolvedRefs")
    ]
    assert cluster.condition("MailRoute", "all", "Ready")["status"] == "True"


def test_a_broken_edit_is_told_with_the_new_generation_while_the_old_version_serves_CFG_01() -> None:
    cluster = settled()
    cluster.put(body("MailDomain", "org", DOMAIN["spec"] | {"delivery": 5}, generation=2))
    cluster.publish()
    made = cluster.plan(cluster.running(), LATER)
    accepted = cluster.condition("MailDomain", "org", "Accepted")
    assert (accepted["status"], accepted["reason"], accepted["observedGeneration"]) == ("False", "Invalid", 2)
    assert "spec.delivery" in accepted["message"]
    assert change_of(made, "MailDomain", "org").notes[0].type is EventType.WARNING
    assert cluster.compiled is not None
    assert [d.name for d in cluster.compiled.revision.domains] == ["example.org"]


def test_shadowed_is_there_only_while_true_per_parent_too() -> None:
    shadow = body("MailRoute", "second", ROUTE["spec"] | {"priority": 2000})
    cluster = Cluster.of(*EVERYTHING, shadow)
    cluster.publish()
    cluster.plan(cluster.running())
    status = cluster.bodies[ref("MailRoute", "second")]["status"]
    assert cluster.condition("MailRoute", "second", "Shadowed")["reason"] == "HiddenByRule"
    assert "Shadowed" in [c["type"] for c in status["parents"][0]["conditions"]]
    entry = {k: v for k, v in status["parents"][0].items() if k != "conditions"}
    assert entry == {
        "kind": "MailGateway",
        "namespace": "mail",
        "name": "mx1",
        "controllerName": "mailrail.dev/operator",
    }
    assert cluster.condition("MailRoute", "second", "Ready")["status"] == "True"
    del cluster.bodies[ref("MailRoute", "all")]
    cluster.publish()
    made = cluster.plan(cluster.running(), LATER)
    assert "Shadowed" not in [c["type"] for c in change_of(made, "MailRoute", "second").status["conditions"]]
    assert [n.reason for n in change_of(made, "MailRoute", "second").notes] == ["NoShadowed"]


def test_a_status_that_was_written_for_a_newer_generation_is_not_overwritten() -> None:
    cluster = settled()
    for row in cluster.bodies[ref("MailTransport", "relay")]["status"]["conditions"]:
        row["observedGeneration"] = 7
    assert cluster.plan(cluster.running(at=0), LATER).changes[0].ref.kind == "MailGateway"
    assert cluster.condition("MailTransport", "relay", "Accepted")["observedGeneration"] == 7


def test_conditions_of_others_are_left_alone_and_are_no_reason_to_write() -> None:
    cluster = settled()
    cluster.bodies[ref("MailTransport", "relay")]["status"]["conditions"].append(
        {"type": "example.org/Audited", "status": "True", "reason": "Yes", "message": "", "lastTransitionTime": NOW}
    )
    assert cluster.plan(cluster.running(), LATER).changes == ()


def test_a_new_leader_believes_what_was_confirmed_and_rewrites_nothing() -> None:
    cluster = settled()
    cluster.memory = {}
    cluster.revision += 1  # something was published between the two leaders
    made = cluster.plan(cluster.running(at=1), LATER)
    assert [c.ref.kind for c in made.changes] == ["MailGateway"]


def test_a_new_leader_does_not_believe_an_older_generation() -> None:
    cluster = settled()
    cluster.memory = {}
    cluster.put(body("MailTransport", "relay", {"smtp": {"host": "other.example.org"}}, generation=2))
    cluster.publish()
    cluster.plan(cluster.running(at=1), LATER)
    assert cluster.condition("MailTransport", "relay", "Programmed")["reason"] == "Pending"


def test_an_object_that_was_deleted_and_made_again_is_another_object() -> None:
    cluster = settled()
    again = copy.deepcopy(RELAY)
    again["metadata"]["uid"] = "another"
    del cluster.bodies[ref("MailTransport", "relay")]
    cluster.put(again)
    cluster.publish()
    cluster.plan(cluster.running(consumers=consumers(cluster.revision - 1)), LATER)
    assert cluster.condition("MailTransport", "relay", "Programmed")["reason"] == "Pending"


def test_while_nothing_can_be_published_new_objects_say_why_and_judged_ones_stay() -> None:
    cluster = settled()
    cluster.put(body("MailTransport", "second", {"direct": {}}))
    assert cluster.plan(cluster.running(), LATER).changes == ()  # the next compilation is on its way
    made = cluster.plan(cluster.running(), LATER, waiting="the config service is unreachable")
    assert [c.ref.name for c in made.changes] == ["second"]
    for kind in ("Accepted", "ResolvedRefs", "Programmed", "Ready"):
        row = cluster.condition("MailTransport", "second", kind)
        assert (row["status"], row["message"]) == ("Unknown", "the config service is unreachable")


@pytest.mark.parametrize("waiting", ["", "the config service is unreachable"])
def test_a_new_leader_that_has_published_nothing_takes_back_nothing_that_the_one_before_said(waiting: str) -> None:
    cluster = settled()
    cluster.put(body("MailTransport", "relay", {"smtp": {"host": "other.example.org"}}, generation=2))
    cluster.memory = {}
    assert cluster.compiled is not None
    cluster.compiled = replace(cluster.compiled, diagnostics=Diagnostics())
    made = cluster.plan(cluster.running(), LATER, waiting=waiting)
    assert [change.ref.name for change in made.changes] == (["relay"] if waiting else []), "only it is not known"
    assert made.counts["MailDomain", "True"] == 1


def test_dns_is_a_condition_of_its_own_that_ready_does_not_wait_for() -> None:
    cluster = settled()
    assert cluster.condition("MailDomain", "org", "DNSConfigured")["reason"] == "Pending"
    missing = Record("MX", "MX", "example.org", "10 mx1.example.org.", RecordState.MISSING, "there is no such record")
    verdict = DnsVerdict("False", DnsReason.RECORDS_MISSING, "MX: publish it", (missing,))
    made = cluster.plan(cluster.running(), LATER, {ref("MailDomain", "org"): verdict})
    assert cluster.condition("MailDomain", "org", "DNSConfigured")["status"] == "False"
    assert cluster.condition("MailDomain", "org", "Ready")["status"] == "True"
    assert change_of(made, "MailDomain", "org").status["dnsRecords"][0]["state"] == "Missing"
    # A restarted operator has not looked yet; what was found stands until it has.
    assert cluster.plan(cluster.running(), LATER).changes == ()


def test_the_gateway_says_which_sealing_keys_are_still_needed_and_by_what_CFG_02() -> None:
    cluster = settled()
    keys = (SealingKey("k1", in_use=False), SealingKey("k2", in_use=True))
    made = cluster.plan(cluster.running(keys=keys), LATER)
    assert [c.ref.kind for c in made.changes] == ["MailGateway"]
    assert made.changes[0].status["config"]["sealingKeys"] == [
        {"id": "k1", "neededBy": "History"},
        {"id": "k2", "neededBy": "Head"},
    ]
    KIND_INFO["MailGateway"].status.model_validate(made.changes[0].status, strict=False)


def test_no_value_of_a_secret_is_ever_in_a_status() -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "login", "namespace": "mail"},
        "stringData": {"username": "u\x00ser", "password": "correct horse"},
    }
    transport = body(
        "MailTransport",
        "relay",
        {"submission": {"host": "relay.example.org", "auth": {"secretRef": {"name": "login"}}}},
    )
    cluster = Cluster.of(GATEWAY, DOMAIN, ACCOUNT, transport)
    cluster.compiled = compile(
        Sources(tuple(Document(b) for b in (*cluster.bodies.values(), secret))), CompilerState(), KEYS
    )
    cluster.revision = 1
    made = cluster.plan(cluster.running())
    assert "SecretInvalid" in str(change_of(made, "MailTransport", "relay").status)
    assert "correct horse" not in str(made)


def test_objects_of_which_nothing_changed_are_not_looked_at_again_and_the_answer_is_the_same() -> None:
    cluster = settled()
    assert cluster.compiled is not None
    observed = {ref: Observed.of(one) for ref, one in cluster.bodies.items()}
    diagnostics, uses = cluster.compiled.diagnostics, cluster.compiled.state.uses

    def planned(running: Running, last: StatusPlan | None, now: str = LATER) -> StatusPlan:
        view = ClusterView(observed, diagnostics, uses, running, {}, now)
        return plan(view, cluster.memory if last is None else last.memory)

    first = planned(cluster.running(), None)
    again = planned(cluster.running(), first)
    assert first.changes == again.changes == ()
    assert first.counts == again.counts
    route = ref("MailRoute", "all")
    assert again.memory[route].settled is first.memory[route].settled is not None
    rejecting = cluster.running(consumers=consumers(0, rejected=1))
    assert planned(rejecting, again).changes == planned(rejecting, None).changes
    assert len(planned(rejecting, again).changes) == len(EVERYTHING)
    edited = copy.deepcopy(cluster.bodies[ref("MailTransport", "relay")])
    edited["status"]["conditions"].pop()
    observed[ref("MailTransport", "relay")] = Observed.of(edited)
    assert [c.ref.kind for c in planned(cluster.running(), again).changes] == ["MailTransport"]


@given(st.permutations(EVERYTHING), st.integers(0, 1))
def test_the_order_in_which_objects_were_read_changes_nothing(order: list[dict[str, Any]], at: int) -> None:
    one, other = Cluster.of(*EVERYTHING), Cluster.of(*order)
    for cluster in (one, other):
        cluster.publish()
    assert one.plan(one.running(at=at)) == other.plan(other.running(at=at))


@pytest.mark.parametrize("kind", ["MailGateway", "MailRoute"])
def test_counts_by_ready_are_for_metrics(kind: str) -> None:
    cluster = settled()
    assert cluster.plan(cluster.running(), LATER).counts[(kind, "True")] == 1


def test_a_transport_that_fails_says_so_beside_ready_and_is_written_when_the_reason_changes() -> None:
    cluster = settled()
    name = ("MailTransport", next(one for one in cluster.bodies if one.kind == "MailTransport").name)
    assert not any(row["type"] == "Healthy" for row in cluster.bodies[ref(*name)]["status"]["conditions"])

    def judged(health: TransportHealth) -> StatusPlan:
        return cluster.plan(cluster.running(), LATER, health={ref(*name): health})

    judged(HEALTHY)
    assert cluster.condition(*name, "Healthy")["status"] == "True"
    made = judged(health_of("login_refused", "535 5.7.8 no\x1b[31m, at 12:01"))
    assert [change.ref for change in made.changes] == [ref(*name)]
    condition = cluster.condition(*name, "Healthy")
    assert (condition["status"], condition["reason"]) == ("False", "LoginRefused")
    assert condition["message"] == "its mail is deferred: 535 5.7.8 no?[31m, at 12:01"
    assert cluster.condition(*name, "Ready")["status"] == "True"
    assert judged(health_of("login_refused", "535 5.7.8 no, at 12:02")).changes == (), "the same, in other words"
    assert judged(health_of("no_answer", "timed out")).changes
    judged(HEALTHY)
    assert cluster.condition(*name, "Healthy")["reason"] == "Works"


def test_an_event_tells_that_a_transport_fails_for_which_reason_and_that_it_works_again() -> None:
    cluster = settled()
    relay = ref("MailTransport", "relay")

    def told(health: TransportHealth | None) -> list[tuple[EventType, str, str]]:
        known = None if health is None else {relay: health}  # None: a new leader, whom the queue has not answered yet
        made = cluster.plan(cluster.running(), LATER, health=known)
        return [(n.type, n.reason, n.message) for change in made.changes for n in change.notes]

    refused, silent = health_of("login_refused", "535 5.7.8 no"), health_of("no_answer", "timed out")
    assert told(HEALTHY) == [], "that it works from the first is no news"
    assert told(refused) == [(EventType.WARNING, "LoginRefused", "its mail is deferred: 535 5.7.8 no")]
    assert told(refused) == told(None) == told(refused) == []
    assert cluster.condition("MailTransport", "relay", "Healthy")["reason"] == "LoginRefused"
    assert told(silent) == [(EventType.WARNING, "NoAnswer", "its mail is deferred: timed out")]
    assert told(HEALTHY) == [(EventType.NORMAL, "Works", "no longer: NoAnswer")]


def test_where_nobody_asks_the_queue_nothing_is_said_of_health() -> None:
    cluster = settled()
    relay = ref("MailTransport", "relay")
    cluster.plan(cluster.running(), LATER, health={relay: health_of("no_answer", "timed out")})
    assert [change.notes for change in cluster.plan(cluster.running(), LATER, health={}).changes] == [()]
    assert not any(row["type"] == "Healthy" for row in cluster.bodies[relay]["status"]["conditions"])


def test_a_reason_that_a_newer_queue_has_is_still_told() -> None:
    assert health_of("haunted", "451 4.0.0 boo").status == "False"

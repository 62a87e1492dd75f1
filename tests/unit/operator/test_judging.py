"""Several operators and one object: who judges it, and what the others may say (CFG-11). No API server, no clock."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from unit.operator.test_plan import ACCOUNT, DOMAIN, EVERYTHING, GATEWAY, RELAY, Cluster, body, ref

from mailrail.core.config.diagnostics import (
    ROLES_OF_KIND,
    Condition,
    ConditionType,
    Diagnostics,
    ObjectStatus,
    Reason,
    Status,
)
from mailrail.core.revision.revision import ObjectRef
from mailrail_operator.judging import GONE_SECONDS, ObjectJudge, judge_of, status_fields
from mailrail_operator.model import Change, ClusterView, Controller, Observed, Running, StatusPlan
from mailrail_operator.plan import plan

OURS, OTHER = "ours.example/operator", "other.example/operator"
NOW, SOON, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:09:59Z", "2026-01-01T00:10:00Z"
ROUTE = ref("MailRoute", "all")

Row = dict[str, Any]


def verdict(runs: bool) -> ObjectStatus:
    """What our compiler says: whether services get the object."""
    status, reason = (Status.UNKNOWN, Reason.PENDING) if runs else (Status.FALSE, Reason.NOT_IN_USE)
    return ObjectStatus(ROUTE, 2, (Condition(ConditionType.PROGRAMMED, status, reason),))


def seen(by: str = "", programmed: str = "Programmed", observed: int = 2, managers: Mapping[str, Any] = {}) -> Observed:
    """Generation 2 of an object, with the words of its judge."""
    one = body("MailRoute", "all", {}, generation=2)
    if by:
        one["status"] = {
            "controllerName": by,
            "observedGeneration": observed,
            "conditions": [{"type": "Programmed", "reason": programmed}],
        }
    one["metadata"]["managedFields"] = [
        {"manager": name, "subresource": "status", "fieldsV1": {"f:status": {f"f:{f}": {} for f in fields}}}
        for name, fields in managers.items()
    ]
    return Observed.of(one)


def judged(one: Observed, runs: bool | None = True, since: str = "", now: str = NOW, *former: str) -> ObjectJudge:
    said = None if runs is None else verdict(runs)
    return judge_of(one, said, since, Controller(OURS, frozenset(former)), now)


@pytest.mark.parametrize("runs", [True, False, None])
def test_an_object_that_nobody_or_we_judge_is_ours_whatever_we_say_of_it_CFG_11(runs: bool | None) -> None:
    assert judged(seen(), runs) == judged(seen(OURS), runs) == judged(seen(OURS, "NotInUse"), runs) == ObjectJudge(True)


def test_an_object_of_another_is_ours_when_it_says_not_in_use_and_our_services_run_it_CFG_11() -> None:
    assert judged(seen(OTHER, "NotInUse")) == ObjectJudge(True, (OTHER,))
    for programmed in ("Programmed", "Pending", "Rejected", "NotStored"):
        assert judged(seen(OTHER, programmed)) == ObjectJudge(False)
    for runs in (False, None):
        assert judged(seen(OTHER, "NotInUse"), runs) == ObjectJudge(False)


def test_a_judge_that_has_not_looked_for_ten_minutes_is_gone_CFG_11() -> None:
    behind = seen(OTHER, observed=1)
    assert judged(behind) == ObjectJudge(False, (), NOW)
    assert judged(behind, True, NOW, SOON) == ObjectJudge(False, (), NOW)
    assert judged(behind, True, NOW, LATE) == ObjectJudge(True, (OTHER,))
    assert judged(behind, False, NOW, LATE) == ObjectJudge(False, (), NOW), "we would have nothing better to say"
    assert judged(seen(OTHER), True, NOW, LATE) == ObjectJudge(False), "it has looked meanwhile"
    assert GONE_SECONDS == 600


def test_not_in_use_of_an_older_generation_says_nothing_of_this_one_CFG_11() -> None:
    assert judged(seen(OTHER, "NotInUse", observed=1)) == ObjectJudge(False, (), NOW)


def test_all_objects_of_a_former_controller_are_ours_and_none_of_its_words_stays_CFG_11() -> None:
    assert judged(seen(OTHER), False, "", NOW, OTHER) == ObjectJudge(True, (OTHER,))
    left = seen(OURS, managers={OTHER: ["parents"], OURS: ["conditions", "parents"]})
    assert judged(left, True, "", NOW, OTHER) == ObjectJudge(True, (OTHER,))
    assert judged(left) == ObjectJudge(True)


def test_whose_a_field_of_the_status_is_is_read_from_the_API_servers_account() -> None:
    one = seen(OURS, managers={OURS: ["conditions", "parents"]})
    assert status_fields(one, OURS) == {"conditions", "parents"}
    assert status_fields(one, OTHER) == set()
    broken = body("MailRoute", "all", {})
    broken["metadata"]["managedFields"] = [{"manager": OURS, "subresource": "status", "fieldsV1": {}}, "x", {}]
    assert status_fields(Observed.of(broken), OURS) == set()


# --- two operators ---


def parts(status: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What one manager can own apart: a field, a condition, an entry of parents[]."""
    for name, value in status.items():
        match name:
            case "conditions":
                yield from ((("conditions", row["type"]), row) for row in value)
            case "parents":
                keys = ("kind", "namespace", "name", "controllerName")
                yield from ((("parents", *(row[key] for key in keys)), row) for row in value)
            case _:
                yield (name,), value


class Shared:
    """The objects of two operators, with statuses as server-side apply makes them of what each says."""

    def __init__(self, *bodies: Mapping[str, Any]) -> None:
        self.bodies = {Observed.of(one).ref: copy.deepcopy(dict(one)) for one in bodies}
        self.said: dict[ObjectRef, dict[str, dict[tuple[str, ...], Any]]] = {of: {} for of in self.bodies}
        self.writes: list[tuple[str, ObjectRef]] = []

    def status(self, of: ObjectRef) -> dict[str, Any]:
        """The status of an object."""
        found: dict[str, Any] = self.bodies[of].get("status", {})
        return found

    def condition(self, of: ObjectRef, kind: str) -> dict[str, Any]:
        """A condition of an object."""
        return dict(next(row for row in self.status(of)["conditions"] if row["type"] == kind))

    def entries(self, of: ObjectRef) -> dict[str, str]:
        """Controller → Programmed of its entry."""
        return {
            p["controllerName"]: next(c["status"] for c in p["conditions"] if c["type"] == "Programmed")
            for p in self.status(of).get("parents", ())
        }

    def write(self, manager: str, change: Change) -> None:
        """Server-side apply by force, as the writer does it."""
        self.writes.append((manager, change.ref))
        self._apply(manager, change.ref, change.status)
        for ended in change.ends:
            self._apply(ended, change.ref, {})

    def _apply(self, manager: str, of: ObjectRef, status: Mapping[str, Any]) -> None:
        said = self.said[of]
        new = dict(parts(status))
        for name, older in said.items():
            if name != manager:
                for key in [key for key in older if key in new and older[key] != new[key]]:
                    del older[key]
        said[manager] = new
        merged: dict[tuple[str, ...], Any] = {}
        for one in said.values():
            merged |= one
        made: dict[str, Any] = {}
        for key, value in sorted(merged.items()):
            if len(key) > 1:
                made.setdefault(key[0], []).append(value)
            else:
                made[key[0]] = value
        self.bodies[of]["status"] = made
        self.bodies[of]["metadata"]["managedFields"] = [
            {"manager": m, "subresource": "status", "fieldsV1": {"f:status": {f"f:{key[0]}": {} for key in keys}}}
            for m, keys in said.items()
            if keys
        ]


class Operator:
    """One of the two: it reads all objects, or not the gateway, and judges as the plan says."""

    def __init__(self, name: str, shared: Shared, *hidden: str) -> None:
        self.controller, self._shared, self._hidden = Controller(name), shared, hidden
        self._cluster = Cluster({})

    def turn(self, now: str = NOW) -> StatusPlan:
        """Read, compile, plan and write, once."""
        cluster = self._cluster
        cluster.bodies = {k: copy.deepcopy(b) for k, b in self._shared.bodies.items() if k.kind not in self._hidden}
        cluster.publish()
        made = cluster.plan(cluster.running(), now, controller=self.controller)
        for change in made.changes:
            self._shared.write(self.controller.name, change)
        return made


def quiet(shared: Shared, *operators: Operator) -> None:
    """Let them take turns until nobody writes any more; that must be soon."""
    for _ in range(6):
        before = len(shared.writes)
        for one in operators:
            one.turn()
        if len(shared.writes) == before:
            return
    raise AssertionError(f"they go on: {shared.writes[-6:]}")


ATTACHED = tuple(Observed.of(one).ref for one in EVERYTHING if one["kind"] not in ("MailGateway", "MailTransport"))


@pytest.mark.parametrize("blind_first", [True, False])
def test_who_runs_the_objects_judges_them_and_one_that_lacks_their_gateway_is_silent_CFG_11(blind_first: bool) -> None:
    shared = Shared(*EVERYTHING)
    sighted, blind = Operator(OURS, shared), Operator(OTHER, shared, "MailGateway")
    order = (blind, sighted) if blind_first else (sighted, blind)
    quiet(shared, *order)
    for of in ATTACHED:
        assert shared.status(of)["controllerName"] == OURS
        assert shared.condition(of, "Ready")["status"] == "True"
        assert shared.entries(of) == {OURS: "True"}
    assert status_of_manager(shared, OTHER) <= {ref("MailTransport", "relay")}, "it left no word behind"
    again = Operator(OTHER, shared, "MailGateway")
    made = again.turn("2026-01-02T00:00:00Z")
    assert made.changes == (), "nor does it say one after a restart"
    assert sum(made.others.values()) >= len(ATTACHED)
    assert not any(kind == "MailRoute" for kind, _ in made.counts), "what others judge is not counted as ours"


def status_of_manager(shared: Shared, manager: str) -> set[ObjectRef]:
    return {of for of, said in shared.said.items() if said.get(manager)}


def test_two_that_both_run_an_object_have_an_entry_each_and_the_first_judges_it_CFG_11() -> None:
    shared = Shared(*EVERYTHING)
    first, second = Operator(OURS, shared), Operator(OTHER, shared)
    quiet(shared, first, second)
    for of in ATTACHED:
        assert shared.status(of)["controllerName"] == OURS
        assert shared.entries(of) == {OURS: "True", OTHER: "True"}
    for of in (ref("MailGateway", "mx1"), ref("MailTransport", "relay")):
        assert shared.status(of)["controllerName"] == OURS
        assert not shared.said[of].get(OTHER)
    assert shared.condition(ROUTE, "Ready")["status"] == "True"


def test_an_edit_that_the_judge_cannot_run_goes_to_the_one_that_can_and_stays_there_CFG_11() -> None:
    shared = Shared(*EVERYTHING)
    first, second = Operator(OURS, shared), Operator(OTHER, shared)
    quiet(shared, first, second)
    without = Operator(OURS, shared, "MailGateway")  # it may no longer read the gateway's namespace
    quiet(shared, without, second)
    assert shared.status(ROUTE)["controllerName"] == OTHER
    assert shared.condition(ROUTE, "Ready")["status"] == "True"
    assert shared.entries(ROUTE) == {OTHER: "True"}
    quiet(shared, first, second)
    assert shared.status(ROUTE)["controllerName"] == OTHER, "it reads it again, and has an entry; the judge stays"
    assert shared.entries(ROUTE) == {OURS: "True", OTHER: "True"}


def test_a_judge_that_is_gone_is_followed_ten_minutes_after_an_edit_CFG_11() -> None:
    shared = Shared(*EVERYTHING)
    gone, lives = Operator(OTHER, shared), Operator(OURS, shared)
    quiet(shared, gone, lives)
    shared.bodies[ROUTE]["metadata"]["generation"] = 2
    shared.bodies[ROUTE]["spec"]["priority"] = 7
    for now in (NOW, SOON):
        lives.turn(now)
        assert shared.status(ROUTE)["controllerName"] == OTHER
        assert shared.condition(ROUTE, "Ready")["observedGeneration"] == 1
    lives.turn(LATE)
    assert shared.status(ROUTE)["controllerName"] == OURS
    assert shared.condition(ROUTE, "Ready")["observedGeneration"] == 2
    assert shared.entries(ROUTE) == {OURS: "True"}
    assert shared.status(ref("MailDomain", "org"))["controllerName"] == OTHER, "of what nobody edited nothing is known"


def test_after_a_change_of_its_name_an_operator_goes_on_and_the_old_name_is_nowhere_CFG_11() -> None:
    shared = Shared(*EVERYTHING)
    quiet(shared, Operator(OTHER, shared))
    renamed = Operator(OURS, shared)
    renamed.controller = Controller(OURS, frozenset({OTHER}))
    quiet(shared, renamed)
    for of in shared.bodies:
        assert shared.status(of)["controllerName"] == OURS
        assert shared.condition(of, "Ready")["status"] == "True"
    assert status_of_manager(shared, OTHER) == set()
    assert shared.entries(ROUTE) == {OURS: "True"}


def test_what_cannot_be_published_yet_is_said_without_becoming_the_judge_and_taken_back_CFG_11() -> None:
    shared = Shared(GATEWAY, DOMAIN, ACCOUNT, RELAY)
    domain = ref("MailDomain", "org")
    observed = {of: Observed.of(one) for of, one in shared.bodies.items()}
    why = "the config service is unreachable"
    held = plan(ClusterView(observed, Diagnostics(), (), Running(), {}, NOW, why, Controller(OTHER)), {})
    assert len(held.changes) == len(shared.bodies)
    for change in held.changes:
        shared.write(OTHER, change)
    assert "controllerName" not in shared.status(domain)
    quiet(shared, Operator(OURS, shared), Operator(OTHER, shared, "MailGateway"))
    assert shared.status(domain)["controllerName"] == OURS
    assert shared.condition(domain, "Ready")["status"] == "True"
    assert not shared.said[domain].get(OTHER)


def test_every_kind_that_is_judged_says_by_whom() -> None:
    shared = Shared(*EVERYTHING)
    quiet(shared, Operator(OURS, shared))
    assert {of.kind for of in shared.bodies} == set(ROLES_OF_KIND)
    assert {shared.status(of)["controllerName"] for of in shared.bodies} == {OURS}

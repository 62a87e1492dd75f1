"""Two gateways that want one port or one hostname: the older keeps it, whatever they are called (CFG-10)."""

from typing import Any

from unit.config.test_compiler import Content, account, build, domain, resource, words
from unit.config.test_ownership import NOW, aged

from mailrail.core.config.building import BuildOptions
from mailrail.core.config.compiler import Compiled
from mailrail.core.config.diagnostics import ConditionType, Reason, Status

MAP = BuildOptions(port_map={25: 2525, 587: 2587})


def edge(name: str, *ports: int, hour: int, namespace: str = "default", **more: Any) -> list[Content]:
    """A gateway with a domain and a postmaster of its own."""
    host = more.pop("hostname", f"{name}.example")
    listeners = [{"name": f"l{port}", "protocol": "MX", "port": port} for port in ports]
    spec = {"hostname": host, "listeners": listeners, "postmaster": {"accountRef": {"name": name}}}
    own = domain(name, f"{name}.org", namespace, gatewayRef={"name": name})
    made = [resource("MailGateway", name, spec, namespace), own, account(name, name, name, namespace=namespace)]
    return [aged(document, hour) for document in made]


def open_ports(compiled: Compiled) -> dict[str, list[int]]:
    return {g.ref.name: [li.port for li in g.listeners] for g in compiled.revision.gateways}


def reason(compiled: Compiled, name: str) -> Reason:
    condition = compiled.diagnostics.of("MailGateway", name).condition(ConditionType.ACCEPTED)
    assert condition is not None
    return condition.reason


def test_the_older_gateway_keeps_the_port_whatever_the_names_CFG_10() -> None:
    compiled = build([*edge("mx", 25, hour=1), *edge("aaa", 25, hour=2)])
    assert open_ports(compiled) == {"mx": [25]}
    assert reason(compiled, "aaa") is Reason.PORT_CONFLICT
    assert "MailGateway default/aaa: port 25 belongs to MailGateway default/mx; it is left out" in words(compiled)
    assert reason(compiled, "mx") is Reason.ACCEPTED
    alone = build(edge("aaa", 25, hour=2), compiled, now=NOW)
    assert open_ports(alone) == {"aaa": [25]}


def test_an_edit_that_wants_a_port_of_another_is_refused_and_the_old_version_serves() -> None:
    first = build([*edge("mx", 25, hour=1), *edge("aaa", 26, hour=2)])
    second = build([*edge("mx", 25, hour=1), *edge("aaa", 26, 25, hour=2)], first)
    assert open_ports(second) == {"mx": [25], "aaa": [26]}
    assert reason(second, "aaa") is Reason.PORT_CONFLICT


def test_ports_that_end_at_one_real_port_are_in_conflict_too() -> None:
    apart = [*edge("mx", 25, hour=1), *edge("aaa", 2525, hour=2)]
    assert open_ports(build(apart)) == {"mx": [25], "aaa": [2525]}
    mapped = build(apart, options=MAP)
    assert open_ports(mapped) == {"mx": [25]}
    assert "MailGateway default/aaa: port 2525 belongs to MailGateway default/mx; it is left out" in words(mapped)
    within = build(edge("mx", 25, 2525, hour=1), options=MAP)
    assert open_ports(within) == {}
    assert "spec.listeners[1].port: port 2525 is really 2525, which l25 has already" in words(within)[0]


OWN = BuildOptions(port_map={25: 2525, 110: 9100}, own_ports={9100: "metrics"})


def test_a_port_that_ingress_has_for_itself_is_refused_under_whatever_number() -> None:
    for port, words_of_it in ((9100, "port 9100"), (110, "port 110 (really 9100)")):
        compiled = build(edge("mx", 25, port, hour=1), options=OWN)
        assert open_ports(compiled) == {}
        assert reason(compiled, "mx") is Reason.PORT_CONFLICT
        told = f"spec.listeners[1].port: {words_of_it} is ingress's own, for metrics: give the listener another"
        assert told in words(compiled)[0]


def test_an_edit_that_wants_a_port_of_ingress_is_refused_and_the_old_version_serves() -> None:
    second = build(edge("mx", 25, 9100, hour=1), build(edge("mx", 25, hour=1), options=OWN), options=OWN)
    assert open_ports(second) == {"mx": [25]}
    assert reason(second, "mx") is Reason.PORT_CONFLICT


def test_a_gateway_that_was_accepted_before_ports_of_ingress_were_known_loses_that_listener_alone() -> None:
    before = build(edge("mx", 25, 9100, hour=1))
    after = build(edge("mx", 25, 9100, hour=1), before, options=OWN)
    assert open_ports(after) == {"mx": [25]}
    condition = after.diagnostics.of("MailGateway", "mx").condition(ConditionType.RESOLVED_REFS)
    assert condition is not None
    assert condition.reason is Reason.PORT_CONFLICT
    assert "is ingress's own, for metrics" in condition.message


Told = dict[str, tuple[str, str]]


def listeners(compiled: Compiled, name: str) -> Told:
    """Reasons of Accepted and Programmed of each listener of a gateway."""
    found = compiled.diagnostics.of("MailGateway", name).listeners
    return {one.name: (one.accepted.reason.value, one.programmed.reason.value) for one in found}


def test_a_refused_edit_says_which_listener_is_at_fault_and_which_serves_on() -> None:
    accepted, refused, unused = ("Accepted", "Pending"), ("PortConflict", "NotInUse"), ("NotInUse", "NotInUse")
    first = build([*edge("mx", 25, hour=1), *edge("aaa", 26, hour=2)])
    assert listeners(first, "aaa") == {"l26": accepted}
    second = build([*edge("mx", 25, hour=1), *edge("aaa", 26, 25, 27, hour=2)], first)
    assert listeners(second, "aaa") == {"l26": accepted, "l25": refused, "l27": unused}
    never = build([*edge("mx", 25, hour=1), *edge("aaa", 25, 27, hour=2)])
    assert listeners(never, "aaa") == {"l25": refused, "l27": unused}
    (told, _) = never.diagnostics.of("MailGateway", "aaa").listeners
    assert (told.port, told.accepted.message) == (25, "port 25 belongs to MailGateway default/mx")
    assert told.programmed.status is Status.FALSE


def test_a_listener_that_edits_its_port_to_a_taken_one_is_refused_as_it_is_now() -> None:
    def moved(port: int) -> list[Content]:
        gateway, *rest = edge("aaa", port, hour=2)
        (listener,) = gateway["spec"]["listeners"]
        listener["name"] = "mx"
        return [gateway, *rest]

    second = build([*edge("mx", 25, hour=1), *moved(25)], build([*edge("mx", 25, hour=1), *moved(26)]))
    assert open_ports(second)["aaa"] == [26]
    assert listeners(second, "aaa") == {"mx": ("PortConflict", "NotInUse")}


def test_a_listener_that_stays_closed_for_want_of_its_certificate_says_so() -> None:
    gateway, *rest = edge("mx", 25, 465, hour=1)
    gateway["spec"]["listeners"][1]["tls"] = {"certificateSecretRef": {"name": "absent"}}
    assert listeners(build([gateway, *rest]), "mx") == {
        "l25": ("Accepted", "Pending"),
        "l465": ("Accepted", "SecretNotFound"),
    }


def test_the_older_gateway_keeps_the_hostname() -> None:
    compiled = build([*edge("mx", 25, hour=1), *edge("aaa", 26, hour=2, hostname="mx.example")])
    assert open_ports(compiled) == {"mx": [25]}
    assert reason(compiled, "aaa") is Reason.HOSTNAME_CONFLICT


def test_a_gateway_of_another_namespace_is_not_named_and_takes_nothing() -> None:
    thief = edge("aaa", 25, hour=2, namespace="a-team", hostname="mx.example")
    for first in ([], edge("mx", 25, hour=1)):
        compiled = build([*edge("mx", 25, hour=1), *thief], build(first))
        assert open_ports(compiled) == {"mx": [25]}
        assert "hostname mx.example belongs to an object of another namespace; it is left out" in words(compiled)[0]


def test_a_gateway_without_its_postmaster_keeps_nobody_from_a_port() -> None:
    broken = edge("old", 25, hour=0)[:1]
    assert open_ports(build([*broken, *edge("mx", 25, hour=1)])) == {"mx": [25]}

"""Listeners of a running ingress: each is opened by itself; one that cannot be is told, and costs no other."""

import contextlib
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mailrail.core.revision.revision import Listener, ListenerProtocol
from mailrail.pb.config.v1 import config_pb2
from mailrail_ingress.rpc import SERVICE

from testkit.conditions import wait_until
from testkit.ingress import Ingress, Setup, Talk, ref, setup
from testkit.ports import free_port, loopback_address

Start = Callable[..., Ingress]


@pytest.fixture
def address() -> str:
    """Where nobody else listens."""
    return loopback_address()


@pytest.fixture
def run(tmp_path: Path, address: str) -> Iterator[Start]:
    """Start an ingress that listens at `address`; stopped at the end."""
    with contextlib.ExitStack() as stack:

        def begin(made: Setup, **settings: Any) -> Ingress:
            return stack.enter_context(Ingress(tmp_path, made, smtp_listen=address, **settings))

        yield begin


def gateways(**ports: dict[str, int]) -> Setup:
    """A gateway for each name, in this order, with MX listeners on these ports."""
    made = setup()
    template = made.revision.gateways[0]
    found = tuple(
        replace(
            template,
            ref=ref("MailGateway", name),
            hostname=f"{name}.home.example",
            listeners=tuple(Listener(one, ListenerProtocol.MX, port, None) for one, port in listeners.items()),
        )
        for name, listeners in ports.items()
    )
    return replace(made, revision=replace(made.revision, gateways=found))


def banner(address: str, port: int) -> str:
    """Who answers there: the gateway's name."""
    with Talk((address, port), greeting=False) as talk:
        return talk.reply().split()[1].partition(".")[0]


def serving(ingress: Ingress) -> bool:
    """What its health says."""
    port = ingress.events("serving gRPC")[0]["port"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def reported(ingress: Ingress) -> list[tuple[str, str, str]]:
    """What config was told last: (gateway, part, reason) of each problem."""
    report: config_pb2.ReportRequest = ingress.config.reports[-1]
    return [(p.name, p.part, p.reason) for p in report.problems]


def shown(port: int) -> dict[tuple[str, str], str]:
    """The metric: (gateway, listener) → the state that it is in."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        text = page.read().decode()
    found = re.findall(r'^mailrail_ingress_listeners\{gateway="(.*)",listener="(.*)",state="(.*)"\} 1\.0$', text, re.M)
    return {(gateway, listener): state for gateway, listener, state in found}


def test_of_two_gateways_with_one_port_the_first_gets_it_and_ingress_is_ready(run: Start, address: str) -> None:
    metrics = free_port()
    ingress = run(
        gateways(first={"mx": 2525}, second={"mx": 2525, "other": 2526}), metrics_listen=f"127.0.0.1:{metrics}"
    )
    wait_until(lambda: serving(ingress), 60, "ingress is ready")
    assert (banner(address, 2525), banner(address, 2526)) == ("first", "second")
    wait_until(lambda: reported(ingress) == [("second", "listeners/mx", "PortConflict")], 60, "config is told")
    assert (
        "port 2525 is that of listener mx of MailGateway mail/first" in ingress.config.reports[-1].problems[0].message
    )
    assert shown(metrics) == {
        ("mail/first", "mx"): "open",
        ("mail/second", "mx"): "failed",
        ("mail/second", "other"): "open",
    }
    (told,) = ingress.events("cannot listen")
    assert (told["gateway"], told["listener"], told["reason"]) == ("mail/second", "mx", "PortConflict")
    ingress.publish(gateways(second={"mx": 2525, "other": 2526}))
    wait_until(lambda: reported(ingress) == [], 60, "the port went to the other")
    assert banner(address, 2525) == "second"


def test_a_gateway_that_comes_later_takes_no_port_and_sessions_stay(run: Start, address: str) -> None:
    ingress = run(gateways(second={"mx": 2525}))
    with Talk((address, 2525)) as talk:
        ingress.publish(gateways(first={"mx": 2525}, second={"mx": 2525}))
        wait_until(lambda: reported(ingress) == [("first", "listeners/mx", "PortConflict")], 60, "config is told")
        assert talk.codes("EHLO client.example") == ["250"]
    assert banner(address, 2525) == "second"
    assert serving(ingress)


def test_a_port_of_another_process_is_waited_for_and_taken_once_it_is_free(run: Start, address: str) -> None:
    with socket.create_server((address, 2526)):
        ingress = run(gateways(main={"mx": 2525, "second": 2526}), opens=["mx"])
        wait_until(lambda: reported(ingress) == [("main", "listeners/second", "PortUnavailable")], 60, "config is told")
        assert banner(address, 2525) == "main"
        assert not serving(ingress), "it was not open once: a release that cannot open it takes no other's place"
    wait_until(lambda: serving(ingress), 60, "ingress is ready")
    assert banner(address, 2526) == "main"
    wait_until(lambda: reported(ingress) == [], 60, "config is told")
    (told,) = ingress.events("cannot listen; trying again")
    assert (told["listener"], told["port"]) == ("second", 2526)


def test_a_new_listener_that_fails_takes_nothing_from_those_that_are_open(run: Start, address: str) -> None:
    ingress = run(gateways(main={"mx": 2525}))
    wait_until(lambda: serving(ingress), 60, "ingress is ready")
    with socket.create_server((address, 2526)), Talk((address, 2525)) as talk:
        ingress.publish(gateways(main={"mx": 2525, "new": 2526}))
        wait_until(lambda: reported(ingress) == [("main", "listeners/new", "PortUnavailable")], 60, "config is told")
        assert talk.codes("EHLO client.example") == ["250"]
        assert banner(address, 2525) == "main"
        assert serving(ingress), "all processes have this revision: the mail of the others has no other way"
    wait_until(lambda: reported(ingress) == [], 60, "the port was free and taken")


def test_with_no_listener_left_it_is_not_ready(run: Start, address: str) -> None:
    ingress = run(gateways(main={"mx": 2525}))
    wait_until(lambda: serving(ingress), 60, "ingress is ready")
    with socket.create_server((address, 2526)):
        ingress.publish(gateways(main={"mx": 2526}))
        wait_until(lambda: not serving(ingress), 60, "ingress is not ready")
    wait_until(lambda: serving(ingress), 60, "ingress is ready")
    assert banner(address, 2526) == "main"

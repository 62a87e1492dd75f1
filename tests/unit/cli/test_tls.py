"""`mailrail tls`: the five indicators of a domain, and who could receive mail with REQUIRETLS."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from mailrail.cli import tls
from mailrail.cli.app import app
from mailrail.cli.in_force import InForce
from mailrail.core.mtasts.policy import Mode
from mailrail.core.revision.revision import Domain, DomainDelivery, MtaSts, ObjectRef, Revision
from mailrail.pb.outbound.v1 import outbound_pb2, outbound_pb2_grpc
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

YES, NO, UNKNOWN = (
    outbound_pb2.SecurityIndicator.LIGHT_YES,
    outbound_pb2.SecurityIndicator.LIGHT_NO,
    outbound_pb2.SecurityIndicator.LIGHT_UNKNOWN,
)
Decision = admin_pb2.RouteDecision


def security(mta_sts: int = NO, dane: int = NO, require_tls: int = NO) -> outbound_pb2.GetDomainSecurityResponse:
    made = {"starttls": YES, "mta_sts": mta_sts, "dnssec": YES, "dane": dane, "require_tls": require_tls}
    found = outbound_pb2.GetDomainSecurityResponse()
    for name, light in made.items():
        getattr(found, name).light = light
        getattr(found, name).sentence = f"{name} is so"
    found.starttls.seen.FromSeconds(1_900_000_000)
    found.dane.details.append("3 1 1 ab")
    return found


RELAY = types_pb2.ObjectRef(kind="MailTransport", namespace="default", name="relay")
ROUTES = {
    "able.example": admin_pb2.ExplainResponse(decision=Decision(kind=Decision.KIND_DIRECT), by_mx=True),
    "weak.example": admin_pb2.ExplainResponse(decision=Decision(kind=Decision.KIND_DIRECT), by_mx=True),
    "here.example": admin_pb2.ExplainResponse(decision=Decision(kind=Decision.KIND_MAILBOX), final=True),
    "nobody.example": admin_pb2.ExplainResponse(decision=Decision(kind=Decision.KIND_UNKNOWN_RECIPIENT)),
    "waits.example": admin_pb2.ExplainResponse(decision=Decision(kind=Decision.KIND_DEFERRED)),
    "relay.example": admin_pb2.ExplainResponse(decision=Decision(kind=Decision.KIND_TRANSPORT, transport=RELAY)),
    "clear.example": admin_pb2.ExplainResponse(
        decision=Decision(kind=Decision.KIND_TRANSPORT, transport=RELAY), requiretls_obstacle="5.7.10: it has no TLS"
    ),
    "store.example": admin_pb2.ExplainResponse(
        decision=Decision(kind=Decision.KIND_TRANSPORT, transport=RELAY), final=True
    ),
}
SECURITY = {
    ("able.example", ""): security(mta_sts=YES, require_tls=YES),
    ("weak.example", ""): security(require_tls=YES),
    ("relay.example", "default/relay"): security(require_tls=YES),
    ("clear.example", "default/relay"): security(),
    ("example.org", ""): security(dane=YES, require_tls=UNKNOWN),
}


class Services:
    """Both services, as far as these commands ask."""

    asked: list[tuple[str, str]]

    def __init__(self) -> None:
        self.asked = []

    async def Explain(self, request: admin_pb2.ExplainRequest, timeout: float) -> admin_pb2.ExplainResponse:
        assert getattr(request, "from") == "a@ours.example"
        return ROUTES[request.to.rpartition("@")[2]]

    async def GetDomainSecurity(
        self, request: outbound_pb2.GetDomainSecurityRequest, timeout: float
    ) -> outbound_pb2.GetDomainSecurityResponse:
        self.asked.append((request.domain, request.transport))
        return SECURITY[request.domain, request.transport]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    made = Services()
    monkeypatch.setattr(tls, "ask", lambda _, question: asyncio.run(question(None)))
    monkeypatch.setattr(admin_pb2_grpc, "QueueAdminServiceStub", lambda _: made)
    monkeypatch.setattr(outbound_pb2_grpc, "OutboundServiceStub", lambda _: made)
    return made


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["tls", *arguments])


@pytest.fixture
def ours(services: Services, monkeypatch: pytest.MonkeyPatch) -> InForce:
    """The config service can be asked, and says that example.org is ours and has a policy that is not served yet."""
    domain = Domain(
        ref=ObjectRef("MailDomain", "default", "org"),
        name="example.org",
        delivery=DomainDelivery.MAILBOX,
        mta_sts=MtaSts(Mode.ENFORCE, 86_400, ("mx.example.org",)),
    )
    made = InForce(Revision(domains=(domain,)), policy_served=True)
    monkeypatch.setenv("MAILRAIL_SERVER", "outbound=127.0.0.1:1,config=127.0.0.1:2")
    monkeypatch.setattr(tls, "ask", lambda service, q: made if service == "config" else asyncio.run(q(None)))
    return made


def test_of_a_domain_of_ours_it_is_told_what_others_see_STS_23a(ours: InForce) -> None:
    done = run("example.org")
    assert done.exit_code == 0, done.stderr
    _, _, own = done.stdout.partition("What others see of this domain of yours:\n")
    lines = [line.strip() for line in own.splitlines()]
    assert lines[:-1] == ["version: STSv1", "mode: enforce", "mx: mx.example.org", "max_age: 86400"]
    assert lines[-1].startswith('_mta-sts.example.org. IN TXT "v=STSv1; id=')
    assert json.loads(run("example.org", "--json").stdout)["own"] == {"mta_sts": ours.mta_sts()[0]}


def test_a_record_is_held_back_until_the_policy_is_served_STS_23b(
    ours: InForce, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = replace(ours, policy_served=False)
    monkeypatch.setattr(tls, "ask", lambda service, q: early if service == "config" else asyncio.run(q(None)))
    done = run("example.org")
    assert done.stdout.splitlines()[-1].strip() == "no record yet: not every policy process serves the policy"
    assert "_mta-sts.example.org" not in done.stdout


def test_of_a_domain_of_others_nothing_is_told_that_we_serve(ours: InForce) -> None:
    done = run("weak.example")
    assert done.exit_code == 0, done.stderr
    assert "What others see" not in done.stdout
    assert json.loads(run("weak.example", "--json").stdout)["own"] is None


@pytest.mark.parametrize("arguments", [("example.org",), ("show", "example.org")])
def test_the_five_indicators_are_told_with_a_reason_each(services: Services, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[-3:] == [[], ["DANE:"], ["3", "1", "1", "ab"]]
    assert [(line[0], line[1]) for line in lines[1:-3]] == [
        ("STARTTLS", "yes"),
        ("MTA-STS", "no"),
        ("DNSSEC", "yes"),
        ("DANE", "yes"),
        ("REQUIRETLS", "unknown"),
    ]
    assert all(line[-2:] == ["is", "so"] for line in lines[1:-3])


def test_each_recipient_is_told_with_what_is_in_the_way(services: Services) -> None:
    done = run("check", "--required", "a@ours.example", *(f"b@{domain}" for domain in ROUTES), "--json")
    assert done.exit_code == 1
    found = {row["address"].rpartition("@")[2]: (row["path"], row["obstacle"]) for row in json.loads(done.stdout)}
    assert found == {
        "able.example": ("direct", ""),
        "weak.example": ("direct", "neither MTA-STS nor DANE proves the server of b@weak.example"),
        "here.example": ("mailbox", ""),
        "nobody.example": ("other", "b@nobody.example is not accepted"),
        "waits.example": ("other", "mail to b@waits.example goes nowhere now"),
        "relay.example": ("transport", ""),
        "clear.example": ("transport", "5.7.10: it has no TLS"),
        "store.example": ("mailbox", ""),
    }


def test_a_domain_is_asked_for_once_and_all_able_is_a_good_end(services: Services) -> None:
    done = run("check", "a@ours.example", "b@able.example", "c@able.example", "d@here.example")
    assert (done.exit_code, done.stdout.count("yes")) == (0, 3)
    assert services.asked == [("able.example", "")]


def test_too_many_recipients_are_refused(services: Services) -> None:
    done = run("check", "a@ours.example", *(f"u{n}@able.example" for n in range(101)))
    assert done.exit_code == 2
    assert services.asked == []

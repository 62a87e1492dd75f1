"""DKIM keys in the status of a domain, and what the operator remembers of their records."""

import asyncio
from types import SimpleNamespace
from typing import cast

from mailrail.core.config.compiler import Compiled
from mailrail.core.dkim.rotation import KeyStage
from mailrail.core.dnscheck.answers import DnsAnswer, Question
from mailrail.core.revision.revision import (
    DkimKey,
    Domain,
    DomainDelivery,
    Gateway,
    ObjectRef,
    Revision,
    SecretRef,
)
from mailrail.kit.dns_check import DnsCheckResolver
from mailrail_operator.dkim_keys import key_rows, remembered
from mailrail_operator.dns import DnsChecks
from mailrail_operator.model import Observed

from testkit.conditions import eventually

REF = ObjectRef("MailDomain", "mail", "org")
GATEWAY = Gateway(ObjectRef("MailGateway", "mail", "mx1"), "mx1.example.org", (), ObjectRef("MailAccount", "mail", "p"))
RECORD = "v=DKIM1; k=rsa; p=" + "QUJD" * 100
NAME = "s1._domainkey.example.org"


def key(selector: str, stage: KeyStage = KeyStage.SIGNING, record: str = RECORD) -> DkimKey:
    kind = "ed25519" if "ed25519" in record else "rsa"
    return DkimKey(selector, f"{kind}-sha256", SecretRef("mail", "dkim", "k", "d", "i"), stage, record)


def domain(*keys: DkimKey) -> Domain:
    return Domain(REF, "example.org", DomainDelivery.NONE, dkim=keys, gateway=GATEWAY.ref)


def observed(**status: object) -> Observed:
    return Observed(REF, "u", 1, {"domainName": "example.org"}, status, {})


def test_a_status_says_of_each_key_where_it_is_and_what_to_publish() -> None:
    keys = key("s1"), key("s2", KeyStage.WAITING, "v=DKIM1; k=ed25519; p=QUJD")
    rows = key_rows([domain(*keys)], {(NAME, RECORD): 1_800_000_000.0})[REF]
    assert rows[0] == {
        "selector": "s1",
        "type": "RSA",
        "state": "Signing",
        "record": f'{NAME}. IN TXT "{RECORD[:255]}" "{RECORD[255:]}"',
        "value": RECORD,
        "publishedSince": "2027-01-15T08:00:00Z",
    }
    assert (rows[1]["type"], rows[1]["state"]) == ("Ed25519", "Waiting")
    assert "publishedSince" not in rows[1]
    assert key_rows([domain()], {}) == {}


def test_the_next_leader_goes_on_from_what_the_status_says() -> None:
    seen = {(NAME, RECORD): 1_800_000_000.0}
    rows = [dict(row) for row in key_rows([domain(key("s1"), key("s2"))], seen)[REF]]
    assert dict(remembered([observed(dkimKeys=rows)])) == seen
    assert dict(remembered([observed(dkimKeys=[{"selector": "s1", "publishedSince": "soon", "value": "x"}])])) == {}
    assert dict(remembered([observed()])) == {}


async def test_since_when_a_record_stands_is_kept_while_the_dns_does_not_answer() -> None:
    answers = {NAME: DnsAnswer((RECORD,))}
    asked = 0

    class Zone:
        async def ask(self, question: Question) -> DnsAnswer:
            nonlocal asked
            asked += question.name == NAME
            return answers.get(question.name, DnsAnswer()) if question.type == "TXT" else DnsAnswer()

    seen: dict[tuple[str, str], float] = {}
    news: list[dict[tuple[str, str], float]] = []
    moments = iter(range(1000, 2000))
    checks = DnsChecks(
        cast(DnsCheckResolver, Zone()),
        (),
        0.01,
        lambda: None,
        seen,
        lambda: news.append(dict(seen)),
        clock=lambda: next(moments),
    )
    looking = asyncio.create_task(checks.run())
    revision = Revision(gateways=(GATEWAY,), domains=(domain(key("s1")),))
    checks.take(cast(Compiled, SimpleNamespace(revision=revision)), 1)
    await eventually(lambda: seen == {(NAME, RECORD): 1000})
    answers[NAME] = DnsAnswer(failed=True)
    before = asked
    await eventually(lambda: asked > before + 2)
    assert seen == {(NAME, RECORD): 1000}
    answers[NAME] = DnsAnswer(("v=DKIM1; p=",))
    await eventually(lambda: seen == {})
    answers[NAME] = DnsAnswer((RECORD,))
    await eventually(lambda: seen == {(NAME, RECORD): 1001})
    assert [len(each) for each in news] == [1, 0, 1]
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)

"""The policies of our own domains, and their records."""

from dataclasses import replace

import pytest

from mailrail.core.mtasts.own import own_policies, own_record
from mailrail.core.mtasts.policy import Mode, Policy, parse_policy
from mailrail.core.mtasts.record import read_records
from mailrail.core.revision.revision import Domain, DomainDelivery, Gateway, MtaSts, ObjectRef, Revision

GATEWAY = Gateway(
    ObjectRef("MailGateway", "mail", "edge"), "mx.example.org", (), ObjectRef("MailAccount", "mail", "postmaster")
)


def domain(name: str, said: MtaSts | None, gateway: ObjectRef | None = GATEWAY.ref) -> Domain:
    return Domain(ObjectRef("MailDomain", "mail", name), name, DomainDelivery.MAILBOX, mta_sts=said, gateway=gateway)


def test_a_domain_has_the_policy_that_it_says_and_the_others_none() -> None:
    revision = Revision(
        gateways=(GATEWAY,),
        domains=(
            domain("a.example", MtaSts(Mode.ENFORCE, 604_800)),
            domain("b.example", MtaSts(Mode.TESTING, 3600, ("*.b.example", "mx.c.example"))),
            domain("c.example", None),
            domain("d.example", MtaSts(Mode.NONE, 86_400), gateway=None),
            domain("e.example", MtaSts(Mode.ENFORCE, 86_400), gateway=None),
        ),
    )
    assert own_policies(revision) == {
        "a.example": Policy(Mode.ENFORCE, 604_800, ("mx.example.org",)),
        "b.example": Policy(Mode.TESTING, 3600, ("*.b.example", "mx.c.example")),
        "d.example": Policy(Mode.NONE, 86_400),
    }


@pytest.mark.parametrize("hostname", ["192.0.2.1", "2001:db8::1", "[2001:db8::1]"])
def test_a_gateway_that_is_called_by_an_address_gives_no_policy_that_nobody_can_meet(hostname: str) -> None:
    said = domain("a.example", MtaSts(Mode.ENFORCE, 604_800))
    assert own_policies(Revision(gateways=(replace(GATEWAY, hostname=hostname),), domains=(said,))) == {}


def test_the_id_of_a_record_is_another_one_exactly_when_the_policy_is() -> None:
    policies = [
        Policy(mode, age, mx)
        for mode in Mode
        for age in (3600, 86_400)
        for mx in (("a.example",), ("b.example",), ("a.example", "b.example"))
    ]
    records = [own_record(policy) for policy in policies]
    assert len({record.id for record in records}) == len(policies)
    assert records == [own_record(parse_policy(str(policy).encode())) for policy in policies]
    assert [read_records([[str(record).encode()]]) for record in records] == records

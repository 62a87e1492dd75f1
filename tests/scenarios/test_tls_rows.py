"""Which TLS a host needs, row by row of docs/reference/tls-decision.md, for all of Mailrail on a real network.

One Mailrail delivers into a small world: signed zones behind a resolver that validates, policy hosts, and a scripted
server for each MX host. Each row is a domain of its own, whose mail goes, waits or comes back as the table says; the
timeline tells why, and what is counted adds up to all rows.
"""

from collections import Counter
from collections.abc import Iterator

import pytest

from testkit.conditions import wait_until
from testkit.rail import LOGIN, Rail
from testkit.smtp_peer import SmtpPeer
from testkit.tls_rows import (
    NO,
    REQUIRED,
    Fails,
    Goes,
    Network,
    Row,
    Waits,
    delivering,
    ended,
    logged_in,
    proof_in,
    send,
    status_in,
)
from testkit.tls_world import (
    ANOTHER_KEY,
    OWN_KEY,
    UNUSABLE,
    Mx,
    TlsWorld,
    expired,
    for_another_name,
    of_a_stranger,
    policy,
)

pytestmark = [pytest.mark.peer("nsd"), pytest.mark.peer("unbound"), pytest.mark.timeout(600)]

OUTSIDE = ("mx.elsewhere.test",)
"""The mx of a policy that lists no host of its domain."""
NO_TLS = Mx(shows=None)
STRANGER = Mx(of_a_stranger)
LACKS = Mx(inside=("PIPELINING",))
"""TLS is well, and REQUIRETLS is not offered."""
DANE_OF_A_STRANGER = Mx(of_a_stranger, tlsa=(OWN_KEY,))
UNANSWERED = Mx(tlsa=(OWN_KEY,), broken_tlsa=True)
PLAIN_MAIL = [
    Row("any certificate will do", Goes("none"), (STRANGER,)),
    Row("without tls", Goes("clear"), (NO_TLS,)),
    Row("starttls is refused", Goes("clear", words="454"), (Mx(replies={"STARTTLS": "454 4.7.0 not now"}),)),
    Row("signed without tlsa", Goes("none"), (STRANGER,), signed=True),
    Row("mode none", Goes("clear"), (NO_TLS,), mode="none"),
    Row("mode testing", Goes("none", words="is reported on alone"), (STRANGER,), mode="testing"),
    Row("mode testing lists another", Goes("none"), (STRANGER,), mode="testing", lists=OUTSIDE),
]
"""Mail that says nothing of TLS, to domains that demand nothing."""
DANE = [
    Row("tlsa match", Goes("dane"), (DANE_OF_A_STRANGER,), signed=True),
    Row("tlsa mismatch", Waits("tlsa", "no TLSA record of mx1", True), (Mx(tlsa=(ANOTHER_KEY,)),), signed=True),
    Row("tlsa and starttls stripped", Waits("no-tls", "TLS", True), (Mx(None, tlsa=(OWN_KEY,)),), signed=True),
    Row("tlsa unusable", Goes("none", words="usage 1"), (Mx(of_a_stranger, tlsa=(UNUSABLE,)),), signed=True),
    Row("tlsa unusable and no tls", Waits("no-tls", "TLS", True), (Mx(None, tlsa=(UNUSABLE,)),), signed=True),
    Row("tlsa not answered", Waits("tlsa-unanswered", "which TLSA records"), (UNANSWERED,), signed=True),
    Row("tlsa not answered of one", Goes("dane", host=1), (UNANSWERED, DANE_OF_A_STRANGER), signed=True),
    Row("tlsa of an unsigned zone", Goes("none"), (Mx(of_a_stranger, tlsa=(ANOTHER_KEY,)),)),
]
"""DANE_02 DANE_03b DANE_05b DANE_14b DANE_15b DANE_16b."""
MTA_STS = [
    Row("enforce", Goes("mta_sts"), mode="enforce"),
    Row("enforce and a stranger", Waits("certificate", "issuer certificate", True), (STRANGER,), mode="enforce"),
    Row("enforce and expired", Waits("certificate", "expired", True), (Mx(expired),), mode="enforce"),
    Row("enforce and another name", Waits("certificate", "mx1", True), (Mx(for_another_name),), mode="enforce"),
    Row("enforce and starttls stripped", Waits("no-tls", "TLS", True), (NO_TLS,), mode="enforce"),
    Row("enforce and a wrong mx", Waits("sts-mx", "does not list mx1"), mode="enforce", lists=OUTSIDE),
    Row("enforce lists the second", Goes("mta_sts", host=1), (Mx(), Mx()), mode="enforce", lists=("mx2.{}",)),
    Row("record not answered", Waits("sts-unanswered", "does not say whether"), mode="unanswered"),
]
"""STS_10b STS_12b STS_14b STS_24a."""
BOTH = [
    Row("enforce and tlsa", Goes("dane"), (Mx(tlsa=(OWN_KEY,)),), signed=True, mode="enforce"),
    Row("enforce and tlsa mismatch", Waits("tlsa", "TLSA", True), (Mx(tlsa=(ANOTHER_KEY,)),), True, "enforce"),
    Row(
        "tlsa match of a stranger",
        Waits("certificate", "issuer certificate", True),
        (DANE_OF_A_STRANGER,),
        True,
        "enforce",
    ),
    Row("testing and tlsa mismatch", Waits("tlsa", "TLSA", True), (Mx(tlsa=(ANOTHER_KEY,)),), True, "testing"),
]
"""STS_21b: the one never makes up for the other."""
REQUIRETLS = [
    Row("required and nothing proves the mx", Fails("5.7.30", "mx_unproven"), says=REQUIRED),
    Row("required and signed", Goes("pkix"), signed=True, says=REQUIRED),
    Row("required and a stranger", Fails("5.7.10", "certificate", True), (STRANGER,), True, says=REQUIRED),
    Row("required and tlsa", Goes("dane"), (DANE_OF_A_STRANGER,), True, says=REQUIRED),
    Row("required and tlsa unusable", Goes("pkix"), (Mx(tlsa=(UNUSABLE,)),), True, says=REQUIRED),
    Row("required and tlsa not answered", Waits("tlsa-unanswered", "TLSA"), (UNANSWERED,), True, says=REQUIRED),
    Row("required and enforce", Goes("mta_sts"), mode="enforce", says=REQUIRED),
    Row("required and testing", Fails("5.7.30", "mx_unproven"), mode="testing", says=REQUIRED),
    Row("required and a wrong mx", Fails("5.7.30", "sts_mx"), mode="enforce", lists=OUTSIDE, says=REQUIRED),
    Row("required and record not answered", Waits("sts-unanswered", "whether"), mode="unanswered", says=REQUIRED),
    Row("required and starttls stripped", Fails("5.7.10", "no_tls", True), (NO_TLS,), mode="enforce", says=REQUIRED),
    Row(
        "offered in clear only",
        Fails("5.7.30", "no_requiretls", True),
        (Mx(inside=("PIPELINING",), clear=("PIPELINING", "REQUIRETLS")),),
        mode="enforce",
        says=REQUIRED,
    ),
    Row("second mx conforms", Goes("mta_sts", host=1), (LACKS, Mx()), mode="enforce", says=REQUIRED),
    Row("all mx lack it", Fails("5.7.30", "no_requiretls", True), (LACKS, LACKS), mode="enforce", says=REQUIRED),
    Row(
        "one stranger and one that lacks it",
        Fails("5.7.30", "no_requiretls", True),
        (STRANGER, LACKS),
        mode="enforce",
        says=REQUIRED,
    ),
    Row(
        "third of three",
        Goes("mta_sts", host=2),
        (Mx(), Mx(expired), Mx()),
        mode="enforce",
        lists=("mx2.{}", "mx3.{}"),
        says=REQUIRED,
    ),
    Row("required and one is down", Waits("", "", True), (LACKS, Mx(serves=False)), mode="enforce", says=REQUIRED),
]
"""RTLS_11b RTLS_12b RTLS_13b RTLS_14 RTLS_15b RTLS_16b RTLS_18."""
TLS_REQUIRED_NO = [
    Row("no and a wrong mx", Goes("none", over="sts_mx"), mode="enforce", lists=OUTSIDE, says=NO),
    Row("no and expired", Goes("none", over="certificate"), (Mx(expired),), mode="enforce", says=NO),
    Row("no and tlsa mismatch", Goes("none", over="tlsa"), (Mx(tlsa=(ANOTHER_KEY,)),), True, says=NO),
    Row("no and tlsa not answered", Goes("none", over="tlsa_unanswered"), (UNANSWERED,), True, says=NO),
    Row("no and record not answered", Goes("none", over="sts_unanswered"), mode="unanswered", says=NO),
    Row("no and starttls stripped", Goes("clear", over="no_tls"), (NO_TLS,), mode="enforce", says=NO),
    Row("no and tlsa without tls", Goes("clear", over="no_tls"), (Mx(None, tlsa=(OWN_KEY,)),), True, says=NO),
    Row("no and all is well", Goes("mta_sts"), mode="enforce", says=NO),
    Row(
        "no and the server insists",
        Fails("5.7.0", "", True),
        (Mx(clear=(), replies={"STARTTLS": "454 4.7.0 broken", "MAIL": "530 5.7.0 must issue STARTTLS"}),),
        says=NO,
    ),
]
"""RTLS_22b RTLS_23."""
AUTHENTICATED = ("minimum", "Authenticated")
FLOORS = [
    Row("floor encrypted", Waits("no-tls", "TLS", True), (NO_TLS,), floor=(("minimum", "Encrypted"),)),
    Row("floor encrypted and a stranger", Goes("none"), (STRANGER,), floor=(("minimum", "Encrypted"),)),
    Row("floor of proven names", Waits("no-proof", "MTA-STS"), floor=(AUTHENTICATED, ("proofs", ["DANE", "MTASTS"]))),
    Row("floor of pkix", Goes("pkix"), floor=(AUTHENTICATED, ("proofs", ["PKIX"]))),
    Row(
        "floor of pkix and tlsa",
        Waits("certificate", "issuer certificate", True),
        (DANE_OF_A_STRANGER,),
        signed=True,
        floor=(AUTHENTICATED, ("proofs", ["PKIX"])),
    ),
    Row(
        "floor of dane alone",
        Fails("5.7.5", ""),
        mode="enforce",
        floor=(AUTHENTICATED, ("proofs", ["DANE"]), ("otherwise", "Fail")),
    ),
    Row(
        "floor of dane and one not answered",
        Waits("tlsa-unanswered", "which TLSA records", status="4."),
        (Mx(), UNANSWERED),
        signed=True,
        floor=(AUTHENTICATED, ("proofs", ["DANE"]), ("otherwise", "Fail")),
    ),
    Row("floor lets go on", Goes("none"), mode="unanswered", floor=(("whenUnanswered", "Proceed"),)),
]
"""DANE_20b STS_24b."""
TRANSPORTS = [
    Row("by opportunistic", Fails("5.7.10", "no_proof"), says=REQUIRED, by=(("smtp", "Opportunistic"),)),
    Row("by encrypted", Fails("5.7.10", "no_proof"), says=REQUIRED, by=(("smtp", "Required"),)),
    Row("by encrypted without tls", Waits("no-tls", "TLS", True, "4.3.5"), (NO_TLS,), by=(("smtp", "Required"),)),
    Row("by verified", Goes("pkix"), says=REQUIRED, by=(("smtp", "Verified"),)),
    Row(
        "by verified and another",
        Waits("certificate", "issuer", True, "4.3.5"),
        (STRANGER,),
        by=(("smtp", "Verified"),),
    ),
    Row(
        "by submission and another",
        Waits("certificate", "issuer", True, "4.3.5"),
        (STRANGER,),
        by=(("submission", "Verified"),),
    ),
    Row("by lmtp in clear", Goes("clear"), (Mx(None, lmtp=True),), says=REQUIRED, by=(("lmtp", "Disabled"),)),
    Row("by lmtp verified", Goes("pkix"), (Mx(lmtp=True),), says=REQUIRED, by=(("lmtp", "Verified"),)),
]
"""RTLS_25b RTLS_27b, for a store on this machine."""
GOOD, MALFORMED, ELSEWHERE = "good.test", "malformed.test", "elsewhere.test"
"""Three domains on the same MX host, and the policies of two are broken."""
REPAIRED = "repaired.test"
ROWS = [*PLAIN_MAIL, *DANE, *MTA_STS, *BOTH, *REQUIRETLS, *TLS_REQUIRED_NO, *FLOORS, *TRANSPORTS]


def neighbours(world: TlsWorld) -> None:
    world.domain(GOOD, Mx(), policy=policy("enforce", f"mx1.{GOOD}"))
    world.same_hosts(MALFORMED, GOOD, policy="version: STSv1\nmode: enforce\n")
    world.same_hosts(ELSEWHERE, GOOD, policy=policy("enforce", *OUTSIDE))
    world.domain(REPAIRED, Mx(), policy=policy("enforce", *OUTSIDE))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with delivering(ROWS, neighbours) as made:
        yield made


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_mail_goes_waits_or_comes_back_as_the_table_says(network: Network, row: Row) -> None:
    network.check(row)


def expected(*, metric: str) -> Counter[tuple[str, ...]]:
    """What a metric counts once every row has ended."""
    counted: Counter[tuple[str, ...]] = Counter()
    for row in ROWS:
        match metric, row.then:
            case "recipients", Goes():
                counted[row.says, row.then.proof] += 1
            case "passed over", Goes() if row.then.over:
                counted[(row.then.over,)] += 1
            case "errors", Waits() if row.says == REQUIRED and row.then.cause:
                counted[row.then.cause.replace("-", "_"), "deferred"] += 1
            case "errors", Fails() if row.then.reason:
                counted[row.then.reason, "failed"] += 1
    return counted


def test_what_is_counted_is_what_became_of_all_rows(network: Network) -> None:
    for metric, name, labels in (
        ("recipients", "mailrail_queue_tls_recipients_total", ("requirement", "proof")),
        ("errors", "mailrail_queue_requiretls_errors_total", ("reason", "outcome")),
        ("passed over", "mailrail_outbound_tls_demands_passed_over_total", ("demand",)),
    ):
        counts(network.rail, name, labels, expected(metric=metric))


def counts(rail: Rail, metric: str, labels: tuple[str, ...], wanted: Counter[tuple[str, ...]]) -> None:
    wait_until(
        lambda: rail.counted(metric, *labels) == wanted,
        120,
        lambda: f"{metric}: {wanted}; it is {rail.counted(metric, *labels)}",
    )


def arrived(peer: SmtpPeer, count: int) -> None:
    wait_until(lambda: len(peer.messages) == count, 60, lambda: f"{count} messages came\n{peer.transcript}")


def test_the_broken_policy_of_a_stranger_changes_nothing_for_a_neighbour_on_the_same_host_RTLS_28(
    network: Network,
) -> None:
    """Neither what it demands, nor a connection that was made for it."""
    rail, (peer,) = network.rail, network.world.peers[GOOD]
    with logged_in(rail) as client:
        for count, domain in enumerate((MALFORMED, GOOD, MALFORMED, GOOD), 1):
            send(client, domain)
            arrived(peer, count)
        send(client, ELSEWHERE)
        send(client, ELSEWHERE, REQUIRED)
    waiting = rail.wait_for_recipient(f"friend@{ELSEWHERE}", lambda one: "last" in one)
    assert "does not list mx1.good.test" in str(waiting["last"])
    refused = rail.wait_for_mail(LOGIN, lambda one: one["in_reply_to"] == f"<mail@{ELSEWHERE}>")
    assert status_in(rail.read(refused)) == "5.7.30"
    assert len(peer.messages) == 4, peer.transcript
    assert proof_in(ended(rail, GOOD)) == "mta_sts"
    assert proof_in(ended(rail, MALFORMED)) == "none"
    of_good = {id(one.session) for one in peer.messages if any(GOOD in rcpt for rcpt in one.rcpts)}
    assert not of_good & {id(one.session) for one in peer.messages if any(MALFORMED in rcpt for rcpt in one.rcpts)}


def test_mail_that_waits_for_a_wrong_policy_goes_once_it_is_repaired_STS_13b_STS_14b(network: Network) -> None:
    """The old one is cached for a day; the new id of the record shows that there is another."""
    rail, (peer,) = network.rail, network.world.peers[REPAIRED]
    with logged_in(rail) as client:
        send(client, REPAIRED)
    waiting = rail.wait_for_recipient(f"friend@{REPAIRED}", lambda one: "last" in one)
    assert waiting["last"]["tls_cause"] == "TLS_CAUSE_STS_MX"
    assert not peer.sessions, peer.transcript
    network.world.change_policy(REPAIRED, policy("enforce", f"mx1.{REPAIRED}"), "2")
    rail.cli("queue", "kick", str(waiting["id"]))
    arrived(peer, 1)
    assert proof_in(ended(rail, REPAIRED)) == "mta_sts"
    assert network.world.policies.requests[REPAIRED] == 2

"""The smaller parts of ingress, each alone: throttle, logins, certificates, ids, refusals of the queue."""

import asyncio
import contextlib
import ssl
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, cast

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.limits import CHUNK_SIZE
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.smtp.reply import Reply
from mailrail.kit import clock, rpc
from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_ingress.accounts import REMEMBERED_LIMIT, Accounts
from mailrail_ingress.active_config import MessageIds
from mailrail_ingress.checks.next_hop import OutboundVerification
from mailrail_ingress.held_octets import CALM, LEAST, HeldOctets
from mailrail_ingress.ports import CommitAnswer, OpenTransactions
from mailrail_ingress.queue_stream import (
    UPLOADS_PART,
    DatabaseClock,
    EnqueueClient,
    _Commit,
    _Stream,
    _Upload,
    read_reply,
)
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.throttle import (
    ACQUAINTANCE,
    FAILURES,
    LOGIN_FAILURES,
    LOGIN_LENGTH,
    WINDOW,
    Throttle,
    neighbourhood,
)
from mailrail_ingress.tls import TICKET_KEY_LIFE, BadCertificate, load

from testkit.ca import Authority, trusting_anybody
from testkit.ingress import PASSWORD, account, setup

FAKE_KEY = b"f" * 32


# --- the budget ---

LIMIT = 64 * 1024 * 1024


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5000)), max_size=60))
def test_the_budget_knows_what_is_kept_and_wakes_all_once_there_is_room_ACC_07(steps: list[tuple[int, int]]) -> None:
    budget = HeldOctets(20_000)
    kept: dict[int, int] = {}
    woken: list[int] = []

    def wake() -> None:
        woken.append(budget.held)

    for who, octets in steps:
        before = kept.get(who, 0)
        if octets != before:
            budget.change(before, octets)
            kept[who] = octets
        assert budget.held == sum(kept.values())
        assert budget.holders == sum(1 for octets in kept.values() if octets)
        assert budget.tight is (budget.held > 20_000)
        assert budget.share * max(1, budget.holders) <= max(20_000, LEAST * budget.holders)
        if budget.tight:
            budget.wait(wake)
            budget.wait(wake)
        assert budget.waiting <= 1
        if budget.held <= 20_000 * CALM:
            assert budget.waiting == 0
    assert all(held <= 20_000 * CALM for held in woken)


# --- throttle ---


def test_failures_of_one_address_add_up_within_the_window_AUTH_05c() -> None:
    throttle = Throttle()
    for number in range(FAILURES):
        assert not throttle.blocks("a", 1000)
        throttle.record_failure(str(number), "a", 1000)
    assert throttle.blocks("a", 1000 + WINDOW - 1)
    assert not throttle.blocks("b", 1000)
    assert not throttle.blocks("a", 1000 + WINDOW)
    throttle.record_failure("x", "a", 1000 + WINDOW)
    assert not throttle.blocks("a", 1000 + WINDOW)


def test_a_login_that_many_addresses_guess_at_is_closed_to_strangers_alone_AUTH_05c() -> None:
    throttle = Throttle()
    throttle.record_success("ada", "office", 0)
    throttle.record_success("ada", "a hotel", 1000 - ACQUAINTANCE)
    for number in range(LOGIN_FAILURES):
        assert not throttle.blocks_login("ada", "stranger", 1000)
        throttle.record_failure("ada", f"bot {number}", 1000)
    assert throttle.blocks_login("ada", "stranger", 1000)
    assert throttle.blocks_login("ada", "a hotel", 1000)
    assert not throttle.blocks_login("ada", "office", 1000)
    assert not throttle.blocks_login("bob", "stranger", 1000)
    assert not throttle.blocks("stranger", 1000)
    assert not throttle.blocks_login("ada", "stranger", 1000 + WINDOW)


def test_what_a_users_own_address_gets_wrong_closes_the_login_to_nobody_AUTH_05c() -> None:
    throttle = Throttle()
    throttle.record_success("ada", "office", 0)
    for _ in range(2 * LOGIN_FAILURES):
        throttle.record_failure("ada", "office", 1)
    assert throttle.blocks("office", 1)
    assert not throttle.blocks_login("ada", "a hotel", 1)


def test_the_memory_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailrail_ingress.throttle.KEYS", 100)
    monkeypatch.setattr("mailrail_ingress.throttle.ACQUAINTANCES", 100)
    throttle = Throttle()
    for number in range(200):
        throttle.record_failure(f"login {number}", str(number), 1000)
        throttle.record_success(f"user {number}", str(number), 1000)
    throttle.record_failure("x" * 12_000, "y", 1000)
    assert max(map(len, throttle._by_login._counts)) == LOGIN_LENGTH
    assert (len(throttle._by_client), len(throttle._by_login), len(throttle._acquainted)) == (100, 100, 100)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_an_ipv6_customer_is_one_client(one: str, other: str, same: bool) -> None:
    assert (neighbourhood(ip_address(one)) == neighbourhood(ip_address(other))) is same


# --- logins ---


def accounts(**changed: object) -> Accounts:
    made = setup()
    revision = replace(made.revision, **changed)  # type: ignore[arg-type]
    return Accounts(revision, made.secrets, FAKE_KEY)


def test_a_password_admits_its_login_alone_AUTH_05a() -> None:
    found = accounts()
    assert found.admits("ada@home.example", PASSWORD)
    assert not found.admits("ada@home.example", "wrong")
    assert not found.admits("nobody@home.example", PASSWORD)
    assert not found.admits("ada@home.example", "\x00")


def test_a_right_password_is_recalled_and_no_other() -> None:
    found = accounts()
    assert not found.recall("ada@home.example", PASSWORD)
    found.remember("ada@home.example", PASSWORD)
    assert found.recall("ada@home.example", PASSWORD)
    assert not found.recall("ada@home.example", PASSWORD + "x")
    assert not found.recall("ada@home.exampl", "e" + PASSWORD)
    for number in range(REMEMBERED_LIMIT):
        found.remember("x", str(number))
    assert not found.recall("ada@home.example", PASSWORD)
    assert PASSWORD.encode() not in b"".join(found._remembered)


def test_an_unknown_login_has_the_same_fake_under_every_revision_SCR_03() -> None:
    one, two = accounts(), accounts()
    assert one.verifier("nobody", "SCRAM-SHA-256") == two.verifier("nobody", "SCRAM-SHA-256")
    assert one.verifier("nobody", "SCRAM-SHA-256") != one.verifier("somebody", "SCRAM-SHA-256")
    assert one.password("nobody") == two.password("nobody")
    assert one.password("ada@home.example") == PASSWORD


def test_only_what_somebody_could_use_is_usable() -> None:
    assert accounts(accounts=()).usable == frozenset()
    secrets: dict[str, bytes] = {}
    alone = account(ObjectRef("MailAccount", "mail", "eve"), ("eve@home.example",), secrets, clear=False)
    one = replace(alone, scram=alone.scram[:1])
    assert accounts(accounts=(one,)).usable == {"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "PLAIN", "LOGIN"}
    assert "CRAM-MD5" in accounts().usable


def test_a_verifier_that_was_not_delivered_or_is_broken_admits_nobody() -> None:
    made = setup()
    for secrets in ({}, dict.fromkeys(made.secrets, b"nonsense")):
        broken = Accounts(made.revision, secrets, FAKE_KEY)
        assert not broken.admits("ada@home.example", PASSWORD)


# --- certificates ---


def test_the_end_point_binding_is_the_hash_of_the_certificate_SCR_05a() -> None:
    issued = Authority().issue("mx.example.org")
    identity = load(issued.pem)
    assert identity.end_point is not None
    assert len(identity.end_point) == 32
    assert identity.context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_certificate_signed_without_a_hash_has_no_binding() -> None:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.example.org")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=365))
        .sign(key, None)
    )
    pem = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert load(pem).end_point is None


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused_without_showing_it(pem: bytes) -> None:
    with pytest.raises(BadCertificate) as caught:
        load(pem)
    assert "AAAA" not in str(caught.value)


def test_a_certificate_without_its_key_is_refused() -> None:
    pem = Authority().issue("mx.example.org").pem
    alone = b"-----BEGIN CERTIFICATE-----" + pem.partition(b"-----BEGIN CERTIFICATE-----")[2]
    with pytest.raises(BadCertificate):
        load(alone.partition(b"-----BEGIN PRIVATE KEY-----")[0].partition(b"-----BEGIN EC PRIVATE KEY-----")[0])


def _greeted(client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
    """A handshake and the first octets of the server, which come behind its tickets. The client's end."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, session=session)
    for _ in range(2):
        for end in (theirs, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    ours.write(b"220 hello")
    assert theirs.read() == b"220 hello"
    return theirs


def test_the_keys_that_seal_tickets_are_replaced_each_day_TLS_11b(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "now", lambda: now)
    certificate, client = load(Authority().issue("mx.example.org").pem), trusting_anybody()
    session = _greeted(client, certificate.context).session
    now += TICKET_KEY_LIFE - 1
    assert _greeted(client, certificate.context, session).session_reused
    now += 1
    later = _greeted(client, certificate.context, session)
    assert not later.session_reused
    assert _greeted(client, certificate.context, later.session).session_reused


def test_a_handshake_gives_one_ticket_TLS_11a() -> None:
    seen: list[str] = []
    client = trusting_anybody()
    client._msg_callback = lambda *message: seen.append(message[4].name)  # type: ignore[attr-defined]
    _greeted(client, load(Authority().issue("mx.example.org").pem).context)
    assert seen.count("NEWSESSION_TICKET") == 1


def test_a_certificate_goes_on_where_its_keys_cannot_be_replaced_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "now", lambda: now)
    certificate = load(Authority().issue("mx.example.org").pem)
    before = certificate.context
    now += TICKET_KEY_LIFE

    def no_files(context: ssl.SSLContext, pem: bytes) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as full:
        full.setattr("mailrail_ingress.tls._load_chain", no_files)
        assert certificate.context is before
    assert certificate.context is not before


# --- ids, refusals ---


def test_message_ids_are_unique_and_sorted_by_time_ACC_04() -> None:
    ids = MessageIds()
    made = [ids.new(1_795_370_400.0 + number) for number in range(100)]
    assert sorted(made) == made
    assert len({ids.new(1.0) for _ in range(1000)}) == 1000
    assert {len(one) for one in made} == {16}


@pytest.mark.parametrize(
    ("code", "enhanced", "lines", "expected"),
    [
        (452, "4.2.2", ["mailbox full"], "452 4.2.2 mailbox full"),
        (550, "", ["no"], "550 5.0.0 no"),
        (550, "4.1.1", ["no"], "550 5.0.0 no"),
        (550, "5.1.1", [], "550 5.1.1 refused"),
        (550, "5.1.1", ["a\r\nb", "ü"], "550 5.1.1 a??b 5.1.1 ?"),
        (250, "2.0.0", ["ok"], "451 4.3.0"),
        (0, "", [], "451 4.3.0"),
        (99999, "5.0.0", [], "451 4.3.0"),
    ],
)
def test_a_refusal_of_the_queue_becomes_a_reply_that_smtp_allows(
    code: int, enhanced: str, lines: list[str], expected: str
) -> None:
    reply = read_reply(types_pb2.Reply(code=code, enhanced=enhanced, lines=lines))
    assert isinstance(reply, Reply)
    assert str(reply).startswith(expected)


# --- neighbours ---


def test_a_mistake_about_one_client_keeps_no_answer_from_another_ACC_04() -> None:
    heard: list[bool] = []

    def mistaken(answer: CommitAnswer) -> None:
        raise RuntimeError("a mistake of ours")

    async def main() -> None:
        queue = EnqueueClient(IngressSettings(plaintext=True), HeldOctets(LIMIT), OpenTransactions())
        stream = _Stream(cast("Any", Answering(b"1", b"2")), 1024, lambda: 0.0, queue._answer, HeldOctets(LIMIT))
        for name, done in ((b"1", mistaken), (b"2", lambda answer: heard.append(answer.accepted))):
            stream.written[name] = _Commit((b"",), 1, done, since=0.0, uploaded=False)
        await stream._read()
        assert not stream.written

    class Answering:
        """A call that brings these answers, one at a time, and ends."""

        def __init__(self, *ids: bytes) -> None:
            self._ids = list(ids)

        async def read(self) -> object:
            if not self._ids:
                return grpc.aio.EOF
            result = enqueue_pb2.EnqueueResult(message_id=self._ids.pop(0), accepted=True)
            return enqueue_pb2.EnqueueResponse(results=[result])

    asyncio.run(main())
    assert heard == [True]


def test_a_client_hears_of_its_recipient_even_if_the_question_is_cut_off_ACC_05() -> None:
    heard: list[Reply | None] = []

    async def main() -> None:
        verification = OutboundVerification(IngressSettings(outbound_target="127.0.0.1:1", plaintext=True))
        async with verification.running():
            verification.verify("ada@behind.example", ObjectRef("MailTransport", "mail", "next"), heard.append)
            asking = list(verification._tasks)
            await asyncio.sleep(0)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(main())
    assert [reply.code for reply in heard if reply is not None] == [451]


def test_the_databases_clock_is_what_it_said_and_what_has_passed_since_ACC_04() -> None:
    now = [1000.0]
    clock = DatabaseClock(lambda: now[0])
    assert clock.microseconds(5) == 0  # nobody knows
    clock.set_time(5_000_000_000.0)
    now[0] += 7
    assert clock.microseconds(30) == 5_000_000_037_000_000
    clock.set_time(4_999_999_000.0)  # it was put back
    assert clock.microseconds(0) == 4_999_999_000_000_000


@pytest.mark.parametrize("clients", [1, 32, 1000])
def test_what_waits_for_a_queue_that_takes_nothing_is_bounded_for_all_uploads_together_ACC_07(clients: int) -> None:
    async def main() -> None:
        stream = _Stream(cast("Any", None), 0, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        for number in range(clients):
            name = number.to_bytes(16, "big")
            stream.uploads[name] = _Upload(stream, name, lambda: None, lambda: None)
        frame = bytes(CHUNK_SIZE)
        for upload in stream.uploads.values():
            while upload.send(frame):
                pass
        waiting = sum(upload.waiting for upload in stream.uploads.values())
        assert waiting <= max(LIMIT * UPLOADS_PART, clients * CHUNK_SIZE)
        assert stream.budget.held == waiting
        assert all(upload.waiting >= CHUNK_SIZE for upload in stream.uploads.values())

    asyncio.run(main())


def test_messages_with_many_recipients_do_not_make_more_than_one_request_may_hold_ACC_07() -> None:
    async def main() -> None:
        stream = _Stream(cast("Any", None), 1024, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        frame = bytes(5 * 1024 * 1024)
        for number in range(30):
            stream.unwritten[b"%d" % number] = _Commit((frame,), 10, lambda _: None, since=0.0, uploaded=False)
        batches = 0
        while stream.unwritten:
            assert 0 < len(stream._batch()) <= rpc.MAX_MESSAGE
            batches += 1
        assert batches == 30

    asyncio.run(main())


@pytest.mark.parametrize("uploads", [1, 3, 4, 8, 50])
def test_a_small_message_is_committed_with_the_next_request_whatever_is_uploaded_ACC_07(uploads: int) -> None:
    async def main() -> None:
        credit = 32 * 1024 * 1024
        stream = _Stream(cast("Any", None), credit, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        for number in range(uploads):
            name = number.to_bytes(16, "big")
            stream.uploads[name] = _Upload(stream, name, lambda: None, lambda: None)
        for number in range(200):
            for upload in stream.uploads.values():
                if not upload.chunks:
                    upload.send(bytes(CHUNK_SIZE))
            name = b"small %d" % number
            stream.unwritten[name] = _Commit((b"c" * 2000,), 2000, lambda _: None, since=0.0, uploaded=False)
            waiting = sum(upload.waiting for upload in stream.uploads.values())
            stream._batch()
            assert name in stream.written
            if not number % 2:  # what went before was dealt with
                assert sum(upload.waiting for upload in stream.uploads.values()) < waiting, (
                    "uploads have their turn too"
                )
                continue
            stream._credit = credit
            stream._commits = 0

    asyncio.run(main())


def test_many_small_messages_do_not_keep_an_upload_out_ACC_07() -> None:
    async def main() -> None:
        credit = 32 * 1024 * 1024
        stream = _Stream(cast("Any", None), credit, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        upload = stream.uploads[b"large"] = _Upload(stream, b"large", lambda: None, lambda: None)
        upload.send(bytes(3 * CHUNK_SIZE))
        for number in range(3000):
            commit = _Commit((b"",), 10_000, lambda _: None, since=0.0, uploaded=False)
            commit.frame = (b"c" * 10_000,)
            stream.unwritten[b"%d" % number] = commit
        for left in (2, 1, 0):
            stream._batch()
            stream._credit, stream._commits = credit, 0
            assert len(upload.chunks) == left

    asyncio.run(main())


@pytest.mark.parametrize("uploads", [0, 1, 50])
def test_a_small_message_is_committed_with_the_next_request_whatever_large_bodies_wait_ACC_07(uploads: int) -> None:
    async def main() -> None:
        credit, size = 32 * 1024 * 1024, 1024 * 1024
        stream = _Stream(cast("Any", None), credit, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        for number in range(uploads):
            name = number.to_bytes(16, "big")
            stream.uploads[name] = _Upload(stream, name, lambda: None, lambda: None)
        for number in range(200):
            stream.unwritten[b"large %d" % number] = _Commit(
                (bytes(size),), size, lambda _: None, since=0.0, uploaded=False
            )
        for number in range(200):
            for upload in stream.uploads.values():
                if not upload.chunks:
                    upload.send(bytes(CHUNK_SIZE))
            name = b"small %d" % number
            stream.unwritten[name] = _Commit((b"c" * 2000,), 2000, lambda _: None, since=0.0, uploaded=False)
            waiting = sum(upload.waiting for upload in stream.uploads.values())
            bodies = stream._bodies
            assert len(stream._batch()) < 6 * size
            assert name in stream.written
            if number % 2:
                continue
            assert stream._bodies > bodies, "large bodies have their turn too"
            assert not uploads or sum(upload.waiting for upload in stream.uploads.values()) < waiting, "and uploads"
            stream._credit, stream._commits, stream._bodies = credit, 0, 0  # what went was dealt with

    asyncio.run(main())


def test_large_bodies_leave_credit_for_uploads_and_for_small_messages_ACC_07() -> None:
    async def main() -> None:
        credit, size = 32 * 1024 * 1024, 1024 * 1024
        stream = _Stream(cast("Any", None), credit, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        for number in range(100):
            stream.unwritten[b"large %d" % number] = _Commit(
                (bytes(size),), size, lambda _: None, since=0.0, uploaded=False
            )
        while stream._batch():
            pass
        assert stream._bodies == credit // 2
        for number in range(50):
            name = number.to_bytes(16, "big")
            stream.uploads[name] = _Upload(stream, name, lambda: None, lambda: None)
            stream.uploads[name].send(bytes(CHUNK_SIZE))
            stream.uploads[name].send(bytes(CHUNK_SIZE))
        while stream._batch():
            pass
        assert stream._credit == credit // 8

    asyncio.run(main())


def test_a_large_body_goes_however_little_credit_a_queue_gives_in_all_ACC_07() -> None:
    async def main() -> None:
        size = 1024 * 1024
        stream = _Stream(cast("Any", None), size, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        stream.unwritten[b"large"] = _Commit((bytes(size),), size, lambda _: None, since=0.0, uploaded=False)
        assert stream._batch()

    asyncio.run(main())


def test_uploads_leave_credit_for_commits_and_a_commit_follows_its_own_last_chunk_ACC_07() -> None:
    async def main() -> None:
        credit = 2 * 1024 * 1024
        stream = _Stream(cast("Any", None), credit, lambda: 0.0, lambda commit, answer: None, HeldOctets(LIMIT))
        for number in range(50):
            name = number.to_bytes(16, "big")
            stream.uploads[name] = _Upload(stream, name, lambda: None, lambda: None)
            stream.uploads[name].send(bytes(CHUNK_SIZE))
        while stream._batch():  # until the queue would have to deal with something
            pass
        stream.unwritten[b"small"] = _Commit((b"c",), 64 * 1024, lambda _: None, since=0.0, uploaded=False)
        assert stream._batch()
        assert b"small" in stream.written

        waiting = next(name for name, upload in stream.uploads.items() if upload.chunks)
        stream.unwritten[waiting] = _Commit((b"c",), 100, lambda _: None, since=0.0, uploaded=True)
        stream._batch()
        assert waiting in stream.unwritten, "its body has not gone"
        stream._credit, stream._commits = credit, 0
        while waiting in stream.unwritten:
            stream._batch()
            stream._credit = credit
        assert waiting not in stream.uploads

    asyncio.run(main())

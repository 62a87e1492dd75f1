"""One message for one host, as the pool and the connections see it: transactions, content, and who is left.

A job runs as many transactions as its recipients need on a server (RCPTMAX, "too many recipients"), one after the
other on the same connection. What each answer means is decided in core/outbound/course.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import cast

from mailrail.core.message.reencode import HOLD, MAX_HEADER, Reencoder, Target, Unconvertible, reencode
from mailrail.core.outbound.course import Course
from mailrail.core.outbound.envelope import (
    ContentFacts,
    Envelope,
    EnvelopePlan,
    EnvelopeRecipient,
    Form,
    form_for,
    inspect,
    plan,
)
from mailrail.core.smtp.client import Answer, ClientTransaction, Stage, Trouble
from mailrail.core.smtp.parameters import BodyType
from mailrail.core.smtp.stuffing import stuff
from mailrail.core.tlspolicy.decision import Proven, TlsDecision, accepts
from mailrail.kit import clock
from mailrail_outbound import metrics
from mailrail_outbound.pool import Dial, PoolJob
from mailrail_outbound.ports import ConnectionFacts, ContentGone, Delivery, OutOfReach, TlsReport
from mailrail_outbound.smtp import INTERNAL_ERROR, ClientConnection

_AS_IS = Form.AS_IS
_PROBE = Envelope("")
_NOTHING = ContentFacts(0, False, False, False)

MAX_RECIPIENTS = 100
"""RCPTs of one transaction where the server says no less (SOUT-09)."""


class MessageContent:
    """The content of a delivery in the forms that servers need.

    Only what was received is kept, and re-encoded forms, which cost more than a copy: while a thousand servers take
    their time over the final dot, each further copy is one of all that is under way.
    """

    __slots__ = ("_body", "_reencoded", "facts", "prefix")

    def __init__(self, delivery: Delivery) -> None:
        self.prefix = delivery.prefix
        self._body = body = delivery.body
        self._reencoded: dict[Form, bytes] | None = None
        declared = delivery.envelope.body
        if isinstance(body, bytes):
            self.facts = inspect(delivery.prefix + body, declared=declared)
        else:
            binary = declared is BodyType.BINARY_MIME
            utf8 = delivery.envelope.smtputf8
            self.facts = ContentFacts(delivery.size, delivery.eight_bit or binary, binary, utf8 and delivery.eight_bit)

    def size(self, form: Form, limit: int | None) -> int:
        """Octets in this form. What is re-encoded while it streams is estimated, but not above the server's `limit`
        while the stored message keeps to it: only the server can know then, and nothing is bounced on a guess."""
        stored = self.facts.size
        if form is _AS_IS:
            return stored
        whole = self.whole(form)
        if whole is not None:
            return len(whole)
        estimate = stored + stored * 2 // 5
        return max(stored, min(estimate, limit)) if limit is not None else estimate

    def whole(self, form: Form) -> bytes | None:
        """All of it, None where it must stream."""
        body = self._body
        if not isinstance(body, bytes):
            return None
        if form is _AS_IS:
            return self.prefix + body
        if self._reencoded is None:
            self._reencoded = {}
        made = self._reencoded.get(form)
        if made is None:
            metrics.REENCODED.inc(form)
            made = self._reencoded[form] = reencode(self.prefix + body, _TARGETS[form])
        return made

    def stuffed(self, form: Form) -> bytes | None:
        """All of it for DATA, None where it must stream."""
        whole = self.whole(form)
        if whole is None:
            return None
        looked = form is _AS_IS and not self.facts.binary
        return stuff(whole, bare_line_ends=not looked)

    @property
    def held(self) -> int:
        """Octets of memory that it takes to send content that streams: two pieces on their way, one of them stuffed or
        encrypted, and what the re-encoder looks at where it may be needed."""
        return 524288 + (HOLD if self.facts.eight_bit or self.facts.binary else 0)

    @property
    def header_unseen(self) -> bool:
        """Whether only a look at the header can tell if it needs SMTPUTF8: all that is known of content that streams is
        that there are 8-bit octets somewhere."""
        return not isinstance(self._body, bytes) and self.facts.header_eight_bit

    async def look_at_header(self) -> None:
        """Find out; what ends nowhere, or is not whole, keeps the cautious answer. Raises OutOfReach."""
        head = b""
        try:
            async with contextlib.aclosing(self._stored()) as pieces:
                async for piece in pieces:
                    head += piece
                    end = head.find(b"\r\n\r\n")
                    if end >= 0:
                        self.facts.header_eight_bit = not head[:end].isascii()
                    if end >= 0 or len(head) > MAX_HEADER:
                        return
        except OutOfReach:
            raise
        except ContentGone:
            return

    async def pieces(self, form: Form) -> AsyncIterator[bytes]:
        """The content from its start. Raises ContentGone or Unconvertible."""
        if form is _AS_IS:
            async for piece in self._stored():
                yield piece
            return
        metrics.REENCODED.inc(form)
        encoder = Reencoder(_TARGETS[form])
        async for piece in self._stored():
            yield encoder.feed(piece)
        yield encoder.finish()

    async def _stored(self) -> AsyncGenerator[bytes]:
        body = self._body
        assert not isinstance(body, bytes)
        octets = len(self.prefix)
        if self.prefix:
            yield self.prefix
        async for chunk in body.chunks():
            octets += len(chunk)
            yield chunk
        if octets != self.facts.size:
            # A body that ends early looks like any other end: without this, half a message would get its final dot.
            raise ContentGone(f"{octets} octets came and the message has {self.facts.size}")


_TARGETS = {Form.EIGHT_BIT: Target.EIGHT_BIT, Form.SEVEN_BIT: Target.SEVEN_BIT}


class HostJob(PoolJob):
    """The open recipients of a course, on one host."""

    __slots__ = (
        "_connection",
        "_course",
        "_decision",
        "_delivery",
        "_margin",
        "_message",
        "_no_chunks",
        "_pending",
        "_plan",
        "_refused_after",
        "_seen",
        "_told",
        "_under_way",
        "_verdict",
        "answer",
        "dial",
        "dialled",
        "form",
        "fresh_only",
        "had_tls",
        "over",
        "waits_since",
    )

    def __init__(
        self,
        delivery: Delivery,
        message: MessageContent,
        course: Course,
        dial: Dial,
        *,
        decision: TlsDecision,
        lease_margin: float,
        verdict: str,
        seen: dict[int, ConnectionFacts],
        told: Callable[[], None],
    ) -> None:
        self.dial = dial
        self.dialled: list[str] = []
        self.fresh_only = False
        self.had_tls = False
        """The connection that took nothing more had TLS: going on without it would be a downgrade."""
        self.waits_since: float | None = None
        self._no_chunks = False  # the host offers CHUNKING and does not know BDAT
        self._refused_after = 0  # messages that the connection had carried that took nothing more
        self.over = False
        self.answer: Answer | None = None
        """Once it is over: None, or the answer of a host that gave no session."""
        self._told = told
        self._delivery = delivery
        self._message = message
        self._course = course
        self._pending = list(course.open)
        self._plan: EnvelopePlan | None = None
        self._under_way: tuple[ClientConnection, ClientTransaction] | None = None
        self.form = _AS_IS
        self._decision = decision
        self._margin = lease_margin
        self._verdict = verdict
        self._seen = seen
        self._connection: ClientConnection | None = None

    # --- for connections (smtp.Job) ------------------------------------------------------------------------------

    def transaction(self, connection: ClientConnection) -> ClientTransaction | None:
        """See smtp.Job."""
        dialogue = connection.dialogue
        if connection.suits is not self._decision:
            if not accepts(self._decision, _proven(connection)):
                # The key that connections go by makes this impossible; a message is worth a second look (promise 2).
                self.failed(Answer(Stage.PLAN, None, Trouble.TLS, "the connection has not proven enough"), connection)
                return None
            connection.suits = self._decision
        if self.had_tls and connection.tls_facts is None:
            self.failed(_no_tls_now(), connection)
            return None
        if self._delivery.lease.deadline - clock.now() < self._margin:
            # It waited for its connection, or we were frozen meanwhile: nothing is begun that may not be ended.
            self._over(Answer(Stage.PLAN, None, Trouble.LEASE, "too little of the lease is left to begin"))
            return None
        capabilities = dialogue.capabilities
        if self._no_chunks:
            capabilities = replace(capabilities, chunking=False, binary_mime=False)
        delivery = self._delivery
        facts = self._message.facts
        form = self.form = form_for(facts, capabilities)
        if form is not _AS_IS:
            try:
                size = self._message.size(form, capabilities.size)
            except Unconvertible as error:
                self._refuse_all(Answer(Stage.PLAN, None, Trouble.UNCONVERTIBLE, str(error)), connection)
                return None
            facts = ContentFacts(size, facts.eight_bit, facts.binary, facts.header_eight_bit)
        recipients = delivery.recipients
        limit = capabilities.max_recipients
        most = MAX_RECIPIENTS if limit is None else min(limit, MAX_RECIPIENTS)
        while self._pending:
            made = plan(
                delivery.envelope,
                [(i, recipients[i]) for i in self._pending[:most]],
                facts,
                capabilities,
                form=form,
                authenticated=dialogue.authenticated is not None,
            )
            if made.refused:
                self._course.refused_by_plan(made.refused)
                for i, _ in made.refused:
                    self._note(i, connection)
                    self._pending.remove(i)
            if made.rcpt_lines:
                self._plan = made
                transaction = ClientTransaction(made.mail_line, made.rcpt_lines, bdat=made.bdat, octets=facts.size)
                self._under_way = (connection, transaction)
                return transaction
        self._over()
        return None

    def _refuse_all(self, answer: Answer, connection: ClientConnection) -> None:
        self._course.refused_by_plan([(i, answer) for i in self._pending])
        for i in self._pending:
            self._note(i, connection)
        self._pending = []
        self._over()

    def may_finish(self) -> Trouble | None:
        """See smtp.Job."""
        lease = self._delivery.lease
        if lease.cancelled:
            return Trouble.CANCELLED
        return Trouble.LEASE if lease.deadline - clock.now() < self._margin else None

    def content_at_hand(self, form: Form) -> bytes | None:
        """See smtp.Job."""
        return self._message.stuffed(form)

    def content_in_chunks(self, form: Form) -> bytes | None:
        """See smtp.Job."""
        return self._message.whole(form)

    def content(self, form: Form) -> AsyncIterator[bytes]:
        """See smtp.Job."""
        return self._message.pieces(form)

    def finished(self, transaction: ClientTransaction, connection: ClientConnection) -> bool:
        """See smtp.Job."""
        made = self._plan
        assert made is not None
        self._under_way = None
        answers = cast(list[Answer], transaction.answers)  # it is finished: everybody has one
        fresh: list[int] = []
        if transaction.content_sent or not transaction.reused:
            if self._refused_after and connection.dialogue.carried:
                # What another connection refused went by this one: that many messages are what a connection takes.
                connection.owner.limited(connection, self._refused_after)
                self._refused_after = 0
        elif not self.fresh_only:
            fresh = [i for i, answer in zip(made.indexes, answers, strict=True) if transaction.wants_fresh(answer)]
        indexes, decided = made.indexes, answers
        if transaction.bdat_unknown and not self._no_chunks:
            self._no_chunks = True
            fresh = [i for i, answer in zip(indexes, answers, strict=True) if answer.stage is Stage.CONTENT]
        self.fresh_only = bool(fresh)
        if fresh:
            self.had_tls = self.had_tls or connection.tls_facts is not None
            worn = transaction.touched and not transaction.bdat_unknown
            self._refused_after = transaction.earlier if worn else 0
            rest = [(i, answer) for i, answer in zip(indexes, answers, strict=True) if i not in fresh]
            indexes, decided = tuple(i for i, _ in rest), [answer for _, answer in rest]
        again = self._course.answered(indexes, decided, passes_dsn=made.dsn)
        for i in indexes:
            self._note(i, connection)
        if not again and len(indexes) == len(self._pending):
            self._over()
            return False
        asked = set(made.indexes)
        self._pending = [*fresh, *again, *(i for i in self._pending if i not in asked)]
        if fresh:
            return True
        last = answers[-1]
        if self._pending and last.trouble in (Trouble.LEASE, Trouble.CANCELLED, Trouble.FAULT):
            self._course.answered(self._pending, [last] * len(self._pending), passes_dsn=False)
            self._pending = []
        if not self._pending:
            self._over()
            return False
        return True

    def crashed(self, transaction: ClientTransaction | None) -> None:
        """See smtp.Job."""
        if transaction is not None and self._plan is not None:
            self._course.keep_taken(self._plan.indexes, transaction.answers, passes_dsn=self._plan.dsn)
        self._over(Answer(Stage.PLAN, None, Trouble.FAULT, INTERNAL_ERROR))

    # --- for the pool -------------------------------------------------------------------------------------------------

    def gave_up_waiting(self, seconds: float) -> None:
        """See pool.PoolJob."""
        detail = f"no connection to {self.dial.host} was free for {seconds:.0f} s"
        self._over(Answer(Stage.PLAN, None, Trouble.LEASE, detail))

    def failed(self, answer: Answer, connection: ClientConnection | None) -> None:
        """See pool.PoolJob."""
        for i in self._pending:
            if connection is not None:
                self._note(i, connection)
            else:
                ip = self.dialled[-1] if self.dialled else ""
                self._seen[i] = ConnectionFacts(self.dial.host, ip, "", None)
        self._over(answer)

    def cancel(self, *, waits: bool) -> None:
        """An administrator's word: break off what can be (ADM-02). `waits`: the pool gave the job back."""
        if waits:
            self._over(Answer(Stage.CONNECT, None, Trouble.CANCELLED, "cancelled by an administrator"))
        elif self._under_way is not None:
            connection, transaction = self._under_way
            if connection.dialogue.alone(transaction):
                connection.abort(Trouble.CANCELLED, "cancelled by an administrator before the final dot")
        # Else it is found out when content is asked for, or the final dot is out and `delivered` wins.

    def _over(self, answer: Answer | None = None) -> None:
        if not self.over:
            self.over = True
            self.answer = answer
            self._told()

    def _note(self, index: int, connection: ClientConnection) -> None:
        if self._connection is not connection:
            self._connection = connection
            if connection.ip not in self.dialled:
                self.dialled.append(connection.ip)
        noted: ConnectionFacts | None = connection.noted
        if noted is None or noted.tls is None or noted.tls.verdict != self._verdict:
            noted = connection.noted = _seen(connection, self._verdict)
        self._seen[index] = noted


def _no_tls_now() -> Answer:
    # Whoever can end a connection could else choose the one on which STARTTLS is not offered.
    detail = "the host had TLS on the connection before this one and has none now"
    return Answer(Stage.PLAN, None, Trouble.TLS, detail)


def _proven(connection: ClientConnection) -> Proven:
    facts = connection.tls_facts
    return Proven(facts is not None, facts.verified_name if facts is not None else None)


def _seen(connection: ClientConnection, verdict: str) -> ConnectionFacts:
    facts = connection.tls_facts
    tls = TlsReport(
        version=facts.version if facts is not None else "",
        cipher=facts.cipher if facts is not None else "",
        verified=facts is not None and facts.verified_name is not None,
        verdict=verdict,
        offered=connection.dialogue.starttls_offered or facts is not None,
    )
    return ConnectionFacts(connection.host, connection.ip, connection.local_ip, tls)


class ProbeJob(PoolJob):
    """Asks a host whether it would take a recipient, without sending anything (recipients: verify, design 5)."""

    form = Form.AS_IS

    def __init__(self, recipient: EnvelopeRecipient, dial: Dial, done: "asyncio.Future[Answer]") -> None:
        self.dial = dial
        self.dialled: list[str] = []
        self.fresh_only = False
        self.waits_since: float | None = None
        self.done = done
        self.had_tls = False
        """As of HostJob."""
        self._recipient = recipient

    def transaction(self, connection: ClientConnection) -> ClientTransaction | None:
        """See smtp.Job."""
        if self.had_tls and connection.tls_facts is None:
            self._over(_no_tls_now())
            return None
        capabilities = connection.dialogue.capabilities
        made = plan(_PROBE, [(0, self._recipient)], _NOTHING, capabilities, form=Form.AS_IS)
        if made.rcpt_lines:
            return ClientTransaction(b"MAIL FROM:<>\r\n", made.rcpt_lines, probe=True)
        self._over(made.refused[0][1])
        return None

    def finished(self, transaction: ClientTransaction, connection: ClientConnection) -> bool:
        """See smtp.Job."""
        answer = transaction.answers[0]
        assert answer is not None
        if not self.fresh_only and transaction.wants_fresh(answer):
            self.fresh_only = True
            self.had_tls = connection.tls_facts is not None
            return True
        self._over(answer)
        return False

    def failed(self, answer: Answer, connection: ClientConnection | None) -> None:
        """See pool.PoolJob."""
        self._over(answer)

    def crashed(self, transaction: ClientTransaction | None) -> None:
        """See smtp.Job."""
        self._over(Answer(Stage.PLAN, None, Trouble.FAULT, INTERNAL_ERROR))

    def gave_up_waiting(self, seconds: float) -> None:
        """See pool.PoolJob."""
        self._over(Answer(Stage.PLAN, None, Trouble.LEASE, f"no connection was free for {seconds:.0f} s"))

    def _over(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)

    def may_finish(self) -> Trouble | None:
        """Never asked: a probe has no content."""
        return Trouble.CANCELLED

    def content_at_hand(self, form: Form) -> bytes | None:
        """Never asked."""
        raise NotImplementedError("a probe has no content")

    content_in_chunks = content_at_hand

    def content(self, form: Form) -> AsyncIterator[bytes]:
        """Never asked."""
        raise NotImplementedError("a probe has no content")

"""One message for one host, as the pool and the connections see it: transactions, content, recipients left.

A job runs as many transactions as its recipients need on a server (RCPTMAX, "too many recipients"), one after the
other on the same connection. What each answer means is decided in core/outbound/host_failover.py.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import cast

from mailrail.core.ids import began
from mailrail.core.message.reencode import Unconvertible
from mailrail.core.outbound.envelope import (
    ContentFacts,
    EnvelopePlan,
    Form,
    form_for,
    plan,
)
from mailrail.core.outbound.give_back import Held
from mailrail.core.outbound.host_failover import HostFailover
from mailrail.core.outbound.learned import Offered
from mailrail.core.outbound.tls_answers import tls_is_gone, tls_refused
from mailrail.core.revision.revision import TlsProof
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.client import ClientTransaction
from mailrail.core.smtp.stuffing import Stuffer
from mailrail.core.tlspolicy.adoption import adoption, proof_of
from mailrail.core.tlspolicy.decision import Ignored, Proven, RequireTls, TlsDecision, ignored_by, lacks
from mailrail.kit import clock
from mailrail_outbound import metrics
from mailrail_outbound.content import OutgoingContent
from mailrail_outbound.hops import NextHop, Tables
from mailrail_outbound.memory_budget import MemoryShare
from mailrail_outbound.pool import PoolJob
from mailrail_outbound.ports import ConnectionFacts, Delivery, TlsReport
from mailrail_outbound.smtp import INTERNAL_ERROR, NOT_COUNTED, ClientConnection, Dial

_AS_IS = Form.AS_IS
_MUST = RequireTls.MUST

MAX_RECIPIENTS = 100
"""RCPTs of one transaction where the server says no less (SOUT-09)."""


@dataclass(slots=True)
class Attempt:
    """What the jobs of one delivery share, one job a host."""

    delivery: Delivery
    content: OutgoingContent
    failover: HostFailover
    tables: Tables
    hop: NextHop
    seen: dict[int, ConnectionFacts] = field(default_factory=dict)
    """The connection that gave a recipient its answer, or was dialled for it last; by index."""
    memory: MemoryShare | None = None
    """What it has for content that streams, from the first dial on."""


class HostJob(PoolJob):
    """The open recipients of an attempt, on one host."""

    __slots__ = (
        "_attempt",
        "_connection",
        "_decision",
        "_margin",
        "_no_chunks",
        "_on_done",
        "_passed_over",
        "_pending",
        "_plan",
        "_refused_after",
        "_taken",
        "_tls_verdict",
        "_under_way",
        "answer",
        "connection",
        "dial",
        "dialled",
        "form",
        "fresh_only",
        "had_tls",
        "offered",
        "over",
        "waits_since",
    )

    def __init__(
        self,
        attempt: Attempt,
        dial: Dial,
        decision: TlsDecision,
        *,
        tls_verdict: str,
        lease_margin: float,
        on_done: Callable[[], None],
    ) -> None:
        """`tls_verdict`: `decision` in words, for the history. `on_done` is called once, when the job is over."""
        self.dial = dial
        self.dialled: list[str] = []
        self.fresh_only = False
        self.had_tls = False
        """The connection that accepted no further message had TLS: to continue without it would be a downgrade."""
        self.connection: ClientConnection | None = None
        """That of the last transaction, or the one that gave no session; None: there was none."""
        self.offered: Offered | None = None
        """What the server offered in the session of the last transaction; None: there was none."""
        self.waits_since: float | None = None
        self._no_chunks = False  # the host offers CHUNKING and does not know BDAT
        self._refused_after = 0  # messages that the connection had carried that took nothing more
        self.over = False
        self.answer: Answer | None = None
        """Once it is over: None, or the answer of a host that gave no session."""
        self._on_done = on_done
        self._attempt = attempt
        self._pending = list(attempt.failover.open)
        self._plan: EnvelopePlan | None = None
        self._under_way: tuple[ClientConnection, ClientTransaction] | None = None
        self.form = _AS_IS
        self._decision = decision
        self._margin = lease_margin
        self._taken = NOT_COUNTED
        self._tls_verdict = tls_verdict
        self._connection: ClientConnection | None = None
        self._passed_over: tuple[Ignored, ...] | None = None

    # --- for connections (smtp.Job) ------------------------------------------------------------------------------

    def transaction(self, connection: ClientConnection) -> ClientTransaction | None:
        """See smtp.Job."""
        session = connection.session
        if connection.satisfies is not self._decision:
            proven = _proven(connection)
            refusal = lacks(self._decision, proven)
            if refusal is not None:
                # The key that connections go by makes this impossible; a message is worth a second look (promise 2).
                self.end_without_session(tls_refused(refusal), connection)
                return None
            connection.satisfies = self._decision
            connection.offered = _offered(connection)
            connection.taken = metrics.TLS_MESSAGES.of(*adoption(self._decision, proven, connection.offered))
        self._taken = connection.taken  # the next job may have begun when this one ends
        if self.had_tls and connection.tls_facts is None:
            self.end_without_session(tls_is_gone(), connection)
            return None
        if self._attempt.delivery.lease.deadline - clock.now() < self._margin:
            # It waited for its connection, or we were frozen meanwhile: nothing is begun that may not be ended.
            self._over(Answer(Stage.PLAN, None, Trouble.LEASE, "too little of the lease is left to begin"))
            return None
        capabilities = session.capabilities
        self.connection = connection
        self.offered = connection.offered
        if self._no_chunks:
            capabilities = replace(capabilities, chunking=False, binary_mime=False)
        delivery = self._attempt.delivery
        facts = self._attempt.content.facts
        form = self.form = form_for(facts, capabilities)
        if form is not _AS_IS:
            try:
                size = self._attempt.content.size(form, capabilities.size)
            except Unconvertible as error:
                self._refuse_all(Answer(Stage.PLAN, None, self.needs, str(error)), connection)
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
                authenticated=session.authenticated is not None,
                require_tls=self._decision.require_tls is _MUST,
            )
            if made.refused:
                self._attempt.failover.record_refusals(made.refused)
                for i, _ in made.refused:
                    self._note(i, connection)
                    self._pending.remove(i)
            if made.rcpt_lines:
                self._plan = made
                transaction = ClientTransaction(made.mail_line, made.rcpt_lines, bdat=made.bdat, octets=facts.size)
                self._under_way = (connection, transaction)
                if self._decision.lenient:
                    self._count_passed_over(connection)
                return transaction
        self._over()
        return None

    def _count_passed_over(self, connection: ClientConnection) -> None:
        """RTLS-22b: what the destination demands and this message goes without, once for each host."""
        if self._passed_over is None:
            self._passed_over = ignored_by(self._decision, _proven(connection))
            for demand in self._passed_over:
                metrics.PASSED_OVER.inc(demand.replace("-", "_"))

    def _refuse_all(self, answer: Answer, connection: ClientConnection) -> None:
        self._attempt.failover.record_refusals([(i, answer) for i in self._pending])
        for i in self._pending:
            self._note(i, connection)
        self._pending = []
        self._over()

    def may_finish(self) -> Trouble | None:
        """See smtp.Job."""
        lease = self._attempt.delivery.lease
        if lease.cancelled:
            return Trouble.CANCELLED
        return Trouble.LEASE if lease.deadline - clock.now() < self._margin else None

    @property
    def needs(self) -> Trouble:
        """See smtp.Job."""
        return self._attempt.content.needs

    def content_at_hand(self, form: Form) -> tuple[bytes, ...] | None:
        """See smtp.Job."""
        return self._attempt.content.stuffed(form)

    def content_in_chunks(self, form: Form) -> tuple[bytes, ...] | None:
        """See smtp.Job."""
        return self._attempt.content.whole(form)

    def content(self, form: Form) -> AsyncIterator[bytes]:
        """See smtp.Job."""
        return self._attempt.content.pieces(form)

    def stuffer(self, form: Form) -> Stuffer:
        """See smtp.Job."""
        lines = self._attempt.content.lines
        return Stuffer(whole=lines.whole, undotted=lines.undotted) if form is _AS_IS else Stuffer()

    def end_transaction(self, transaction: ClientTransaction, connection: ClientConnection) -> bool:
        """See smtp.Job."""
        made = self._plan
        assert made is not None
        self._under_way = None
        answers = cast(list[Answer], transaction.answers)  # it is finished: each recipient has one
        fresh: list[int] = []
        if transaction.content_sent or not transaction.reused:
            if self._refused_after and connection.session.carried:
                # What another connection refused went by this one: that many messages are what a connection takes.
                connection.owner.limit_messages(connection, self._refused_after)
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
            refused_as_used = transaction.touched and not transaction.bdat_unknown
            self._refused_after = transaction.earlier if refused_as_used else 0
            rest = [(i, answer) for i, answer in zip(indexes, answers, strict=True) if i not in fresh]
            indexes, decided = tuple(i for i, _ in rest), [answer for _, answer in rest]
        failover = self._attempt.failover
        before = failover.accepted
        again = failover.record_answers(indexes, decided, passes_dsn=made.dsn)
        if failover.accepted != before:
            self._taken.number += 1
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
            self._attempt.failover.record_answers(self._pending, [last] * len(self._pending), passes_dsn=False)
            self._pending = []
        if not self._pending:
            self._over()
            return False
        return True

    def end_after_crash(self, transaction: ClientTransaction | None) -> None:
        """See smtp.Job."""
        if transaction is not None and self._plan is not None:
            self._attempt.failover.keep_taken(self._plan.indexes, transaction.answers, passes_dsn=self._plan.dsn)
        self._over(Answer(Stage.PLAN, None, Trouble.FAULT, INTERNAL_ERROR))

    # --- for the pool -------------------------------------------------------------------------------------------------

    @property
    def mail_began(self) -> float:
        """See pool.PoolJob."""
        return began(self._attempt.delivery.message_id)

    @property
    def held(self) -> Held:
        """See pool.PoolJob."""
        delivery = self._attempt.delivery
        return Held(delivery.standing, delivery.held, bool(self._attempt.seen))

    def end_waiting(self, seconds: float) -> None:
        """See pool.PoolJob."""
        detail = f"no connection to {self.dial.host} was free for {seconds:.0f} s"
        self._over(Answer(Stage.PLAN, None, Trouble.LEASE, detail))

    def end_without_session(self, answer: Answer, connection: ClientConnection | None) -> None:
        """See pool.PoolJob."""
        self.connection = connection
        for i in self._pending:
            if connection is not None:
                self._note(i, connection)
            else:
                ip = self.dialled[-1] if self.dialled else ""
                self._attempt.seen[i] = ConnectionFacts(self.dial.host, ip, "", None)
        self._over(answer)

    def cancel(self, *, waits: bool) -> None:
        """Break off what can be, as an administrator asked (ADM-02). `waits`: the pool gave the job back."""
        if waits:
            self._over(Answer(Stage.CONNECT, None, Trouble.CANCELLED, "cancelled by an administrator"))
        elif self._under_way is not None:
            connection, transaction = self._under_way
            if connection.session.alone(transaction):
                connection.abort(Trouble.CANCELLED, "cancelled by an administrator before the final dot")
        # Else it is found out when content is asked for, or the final dot is out and `delivered` wins.

    def _over(self, answer: Answer | None = None) -> None:
        if not self.over:
            self.over = True
            self.answer = answer
            self._on_done()

    def _note(self, index: int, connection: ClientConnection) -> None:
        if self._connection is not connection:
            self._connection = connection
            if connection.ip not in self.dialled:
                self.dialled.append(connection.ip)
        kept: tuple[TlsDecision, str, ConnectionFacts] | None = connection.reported_facts
        if kept is None or kept[0] is not self._decision or kept[1] != self._tls_verdict:
            seen = _seen(connection, self._tls_verdict, self._decision)
            kept = connection.reported_facts = (self._decision, self._tls_verdict, seen)
        self._attempt.seen[index] = kept[2]


def _offered(connection: ClientConnection) -> Offered:
    session, tls = connection.session, connection.tls_facts is not None
    return Offered(tls or session.starttls_offered, tls and session.capabilities.require_tls)


def _proven(connection: ClientConnection) -> Proven:
    facts = connection.tls_facts
    if facts is None:
        return Proven(False, None)
    return Proven(True, facts.verified_name, facts.matched)


def _seen(connection: ClientConnection, verdict: str, decision: TlsDecision) -> ConnectionFacts:
    facts = connection.tls_facts
    proof, offered = proof_of(decision, _proven(connection)), _offered(connection)
    tls = TlsReport(
        version=facts.version if facts is not None else "",
        cipher=facts.cipher if facts is not None else "",
        proof=proof,
        mx_proven=decision.mx_proven or proof is not TlsProof.PKIX,
        verdict=verdict,
        offered=offered.starttls,
        resumed=facts is not None and facts.resumed,
        requiretls=offered.requiretls,
    )
    return ConnectionFacts(connection.host, connection.ip, connection.local_ip, tls)

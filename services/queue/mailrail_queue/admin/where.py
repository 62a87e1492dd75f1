"""A query (mailrail.core.search) as conditions of SQL, and which of them an index leads to (QRY-04).

The text of each condition is a constant of ours; what people typed reaches Postgres as a parameter alone.
"""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

from mailrail.core.ids import header_key
from mailrail.core.route.site import shard
from mailrail.core.search import ORIGIN_WORDS, TLS_WORDS, Operator, SearchField, SearchState, Term
from mailrail.pb.queue.v1 import types_pb2

_NAMES: Final[tuple[LiteralString, ...]] = (
    "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8", "q9", "q10", "q11", "q12", "q13", "q14", "q15", "q16", "q17", "q18", "q19",
)  # fmt: skip
"""Of the parameters: one for each condition that a query may have (search.MOST_CONDITIONS)."""
_TLS: Final = dict(
    zip(
        TLS_WORDS,
        (types_pb2.TLS_REQUIREMENT_UNSPECIFIED, types_pb2.TLS_REQUIREMENT_REQUIRED, types_pb2.TLS_REQUIREMENT_NO),
        strict=True,
    )
)
_ORIGINS: Final = dict(
    zip(ORIGIN_WORDS, (types_pb2.ORIGIN_MX, types_pb2.ORIGIN_SUBMISSION, types_pb2.ORIGIN_SYSTEM), strict=True)
)
_LIVE_STATES: Final[dict[str, LiteralString]] = {
    SearchState.SENDING: "r.token IS NOT NULL",
    SearchState.HELD: "(r.token IS NULL AND r.held_since IS NOT NULL)",
    SearchState.DEFERRED: "(r.token IS NULL AND r.held_since IS NULL AND r.attempts > 0)",
    SearchState.QUEUED: "(r.token IS NULL AND r.held_since IS NULL AND r.attempts = 0 AND r.due <= now())",
    SearchState.SCHEDULED: "(r.token IS NULL AND r.held_since IS NULL AND r.attempts = 0 AND r.due > now())",
}
_ENDED: Final[dict[str, tuple[LiteralString, int]]] = {
    SearchState.DELIVERED: ("h.outcome = ", types_pb2.OUTCOME_DELIVERED),
    SearchState.RELAYED: ("h.outcome = ", types_pb2.OUTCOME_RELAYED),
    SearchState.CAPTURED: ("h.outcome = ", types_pb2.OUTCOME_CAPTURED),
    SearchState.FAILED: ("h.state = ", types_pb2.RECIPIENT_STATE_FAILED),
    SearchState.CANCELLED: ("h.state = ", types_pb2.RECIPIENT_STATE_CANCELLED),
}
_COMPARISONS: Final[dict[Operator, LiteralString]] = {
    Operator.IS: " = ",
    Operator.LESS: " < ",
    Operator.AT_MOST: " <= ",
    Operator.MORE: " > ",
    Operator.AT_LEAST: " >= ",
}
_OF_MESSAGE: Final[LiteralString] = "EXISTS (SELECT FROM message m WHERE m.id = r.message_id AND "
_DOMAIN_OF_ADDRESS: Final[LiteralString] = """lower(split_part(r.address COLLATE "C", '@', -1))"""
"""As recipient_domain has it."""


@dataclass(slots=True)
class _Sql:
    """Conditions, and what leads to them."""

    parts: list[LiteralString] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    leads: list[tuple[int, LiteralString]] = field(default_factory=list)
    """By what they leave: the lowest number is the best. Of those that bound the order of the list, -1: all of these lead."""

    def add(self, part: LiteralString, name: LiteralString, value: Any, *, lead: int | None = None) -> None:
        self.parts.append(part)
        self.parameters[name] = value
        if lead is not None:
            self.leads.append((lead, part))

    def lead_by_domain(self, name: LiteralString, domain: str) -> None:
        self.leads.append((_BY_DOMAIN, _DOMAIN_OF_ADDRESS + " = lower(%(" + name + "_domain)s)"))
        self.parameters[name + "_domain"] = domain
        self.parts.append("r.shard = %(" + name + "_shard)s")
        self.parameters[name + "_shard"] = shard(domain)


_BY_ID, _BY_MESSAGE, _BY_TRANSPORT, _BY_HOLD, _BY_DOMAIN = range(5)
_BY_ORDER: Final = -1


@dataclass(frozen=True, slots=True)
class SqlQuery:
    """A query in the terms of one table: recipients in the queue (alias r) or history (alias h)."""

    parts: Sequence[LiteralString]
    """All must hold; they use `parameters` alone."""
    parameters: dict[str, Any]
    lead: LiteralString | None
    """The one that an index leads to best; None: there is none."""
    bounds: Sequence[LiteralString]
    """Conditions on the time that the list is ordered by."""


def _query(sql: _Sql) -> SqlQuery:
    lead = min((lead for lead in sql.leads if lead[0] != _BY_ORDER), default=None, key=lambda lead: lead[0])
    bounds = [text for rank, text in sql.leads if rank == _BY_ORDER]
    return SqlQuery(sql.parts, sql.parameters, lead[1] if lead is not None else None, bounds)


def live(conditions: Sequence[Term]) -> SqlQuery:
    """What a query asks of the recipients in the queue. `search.check_part` says whether it can be asked."""
    sql = _Sql()
    for name, one in zip(_NAMES, conditions, strict=False):
        _add_live(sql, name, one)
    return _query(sql)


def history(conditions: Sequence[Term]) -> SqlQuery:
    """The same of finished ones."""
    sql = _Sql()
    for name, one in zip(_NAMES, conditions, strict=False):
        _add_finished(sql, name, one)
    return _query(sql)


def is_sending(conditions: Sequence[Term]) -> bool | None:
    """Whether it asks for recipients with an attempt under way alone, or (False) for others alone; None: for both."""
    for one in conditions:
        if one.field is SearchField.STATE:
            return one.value == SearchState.SENDING
        if one.field is SearchField.DUE:
            return False
    return None


def _add_live(sql: _Sql, name: LiteralString, one: Term) -> None:
    value: LiteralString = "%(" + name + ")s"
    match one.field:
        case SearchField.TO:
            _add_text(sql, "r.address", name, one)
            if one.operator is Operator.IS and "@" in str(one.value):
                sql.lead_by_domain(name, str(one.value).rpartition("@")[2])
        case SearchField.DOMAIN if one.operator is Operator.IS:
            sql.add(_DOMAIN_OF_ADDRESS + " = lower(" + value + ")", name, one.value)
            sql.lead_by_domain(name, str(one.value))
        case SearchField.DOMAIN:
            _add_domain(sql, "r.address", name, one)
        case SearchField.FROM:
            _add_sender(sql, name, one)
        case SearchField.FROM_DOMAIN if one.operator is Operator.IS:
            sql.add("r.from_domain = " + value, name, one.value)
        case SearchField.FROM_DOMAIN:
            sql.add("right('.' || r.from_domain, length(" + value + ") + 1) = '.' || " + value, name, one.value)
        case SearchField.TRANSPORT:
            sql.add('r.override_transport COLLATE "C" = ' + value, name, one.value, lead=_BY_TRANSPORT)
        case SearchField.STATE:
            part = _LIVE_STATES[str(one.value)]
            sql.parts.append(part)
            if one.value == SearchState.HELD:
                sql.leads.append((_BY_HOLD, "r.held_since IS NOT NULL"))
        case SearchField.DUE:
            part = "r.due" + _COMPARISONS[one.operator] + value
            # The due time of a leased recipient has no meaning.
            sql.add("r.token IS NULL AND " + part, name, one.value)
            sql.leads.append((_BY_ORDER, part))
        case SearchField.MSGID:
            compared: LiteralString = _OF_MESSAGE + "position(%(" + name + "_header)s IN m.envelope) > 0)"
            _add_header(sql, "r", compared, name, one)
        case SearchField.SITE:
            sql.add("r.site = " + value, name, one.value)
            kind, _, domain = str(one.value).partition(":")
            if kind == "domain" and domain:
                sql.lead_by_domain(name, domain)
        case _:
            _add_common(sql, "r", name, one)


def _add_sender(sql: _Sql, name: LiteralString, one: Term) -> None:
    value: LiteralString = "%(" + name + ")s"
    if one.value == "":
        sql.parts.append("r.from_domain = ''")
        return
    if one.operator is Operator.LIKE:
        sql.add(_OF_MESSAGE + "lower(m.mail_from) LIKE lower(" + value + "))", name, _like(str(one.value)))
        return
    # The domain first: it needs no look at the message.
    sql.parts.append("r.from_domain = %(" + name + "_domain)s")
    sql.parameters[name + "_domain"] = str(one.value).rpartition("@")[2]
    sql.add(_OF_MESSAGE + "lower(m.mail_from) = lower(" + value + "))", name, one.value)


def _add_finished(sql: _Sql, name: LiteralString, one: Term) -> None:
    value: LiteralString = "%(" + name + ")s"
    match one.field:
        case SearchField.TO:
            _add_text(sql, "h.address", name, one)
        case SearchField.DOMAIN:
            _add_domain(sql, "h.address", name, one)
        case SearchField.FROM:
            _add_text(sql, "h.mail_from", name, one)
        case SearchField.FROM_DOMAIN:
            _add_domain(sql, "h.mail_from", name, one)
        case SearchField.STATE:
            part, number = _ENDED[str(one.value)]
            sql.add(part + value, name, number)
        case SearchField.FINISHED:
            part = "h.finished" + _COMPARISONS[one.operator] + value
            sql.add(part, name, one.value, lead=_BY_ORDER)
        case SearchField.MSGID:
            _add_header(sql, "h", "position(%(" + name + "_header)s IN h.envelope) > 0", name, one)
        case SearchField.SITE:
            sql.add("h.site = " + value, name, one.value)
        case _:
            _add_common(sql, "h", name, one)


def _add_common(sql: _Sql, a: LiteralString, name: LiteralString, one: Term) -> None:
    value: LiteralString = "%(" + name + ")s"
    match one.field:
        case SearchField.ID:
            sql.add(a + ".id = " + value, name, one.value, lead=_BY_ID if a == "r" else None)
        case SearchField.MSG:
            sql.add(a + ".message_id = " + value, name, one.value, lead=_BY_MESSAGE)
        case SearchField.ACCOUNT if one.operator is Operator.UNDER:
            sql.add("starts_with(" + a + ".account, " + value + ")", name, f"{one.value}/")
        case SearchField.ACCOUNT:
            sql.add(a + ".account = " + value, name, one.value)
        case SearchField.QUEUED:
            sql.add(a + ".queued" + _COMPARISONS[one.operator] + value, name, one.value)
        case SearchField.ATTEMPTS:
            sql.add(a + ".attempts" + _COMPARISONS[one.operator] + value, name, one.value)
        case SearchField.TLS:
            sql.add(a + ".tls_requirement = " + value, name, _TLS[str(one.value)])
        case SearchField.ORIGIN:
            sql.add(a + ".origin = " + value, name, _ORIGINS[str(one.value)])
        case _:  # of the other part: search.check_part refuses it before
            sql.parts.append("false")


def _add_header(sql: _Sql, a: LiteralString, compared: LiteralString, name: LiteralString, one: Term) -> None:
    """By the number of the Message-ID; two may share one, so what it finds is compared with the envelope."""
    sql.add(a + ".header_key = %(" + name + ")s AND " + compared, name, header_key(str(one.value)))
    sql.parameters[name + "_header"] = str(one.value).encode()


def _add_text(sql: _Sql, column: LiteralString, name: LiteralString, one: Term) -> None:
    value: LiteralString = "%(" + name + ")s"
    if one.operator is Operator.LIKE:
        sql.add("lower(" + column + ") LIKE lower(" + value + ")", name, _like(str(one.value)))
    else:
        sql.add("lower(" + column + ") = lower(" + value + ")", name, one.value)


def _add_domain(sql: _Sql, column: LiteralString, name: LiteralString, one: Term) -> None:
    """A domain of an address, alone or with its subdomains."""
    value: LiteralString = "%(" + name + ")s"
    domain: LiteralString = "lower(split_part(" + column + ", '@', -1))"
    if one.operator is Operator.UNDER:
        sql.add(
            "right('.' || " + domain + ", length(" + value + ") + 1) = '.' || lower(" + value + ")", name, one.value
        )
    else:
        sql.add(domain + " = lower(" + value + ")", name, one.value)


def _like(pattern: str) -> str:
    """A pattern with `*` as LIKE takes it: all of LIKE's own signs mean themselves."""
    for sign in ("\\", "%", "_"):
        pattern = pattern.replace(sign, "\\" + sign)
    return pattern.replace("*", "%")

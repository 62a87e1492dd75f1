"""Which recipients an administrator means: filters, times and pages, as statements take them (reference H17, H28)."""

# ruff: noqa: E501 -- statements keep their own lines, and are put together from constants of our own alone

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from mailrail.core.route.site import shard
from mailrail.core.search import QuerySyntaxError, SearchField, SearchPart, Term, check_part, parse
from mailrail.core.smtp.address import AddressError, domain_to_ascii, parse_literal
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin import where as query
from mailrail_queue.admin.walk import BEGINNING, END
from mailrail_queue.store import columns as c

PAGE: Final = 50
MOST_PAGE: Final = 1000
TEN_YEARS: Final = 316_224_000  # seconds


class BadRequest(ValueError):
    """The call cannot be understood or must not be done; the text says what to change."""


class NotCounted(Exception):
    """The queue is long and was not counted yet."""


class NotFound(LookupError):
    """There is no such thing."""


# As recipient_bound and recipient_domain have it.
_BOUND: Final[LiteralString] = 'r.override_transport COLLATE "C" = %(transport)s'
_TO_DOMAIN: Final[LiteralString] = """lower(split_part(r.address COLLATE "C", '@', -1)) = lower(%(to_domain)s)"""

_NAMING: Final = frozenset({SearchField.ID, SearchField.MSG})
"""What leads to recipients with an attempt under way, too."""

# --- filters ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions on recipients (alias r) or history (alias h), and their parameters."""

    text: LiteralString
    parameters: Mapping[str, Any]


def domain_argument(text: str) -> str:
    """A domain as people type it, as columns hold it. Raises BadRequest."""
    try:
        return parse_literal(text) if text.startswith("[") else domain_to_ascii(text)
    except AddressError as error:
        raise BadRequest(f"{text!r}: {error}") from error


def object_argument(kind: str, text: str) -> str:
    """NAMESPACE/NAME of an object, as columns hold it. Raises BadRequest: a login, say, would silently match nothing."""
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name or "@" in text:
        raise BadRequest(f"{text[:200]!r} is not the name of a {kind}; write NAMESPACE/NAME")
    return text


def message_id_argument(octets: bytes) -> UUID:
    """A message id, as columns hold it. Raises BadRequest."""
    if len(octets) != 16:
        raise BadRequest("a message id has 16 octets")
    return UUID(bytes=octets)


def is_empty(wanted: admin_pb2.Filter) -> bool:
    """Nothing is set."""
    return not wanted.ListFields()


def asked(wanted: admin_pb2.Filter, part: SearchPart, now: float) -> tuple[Term, ...]:
    """What the query of a filter asks of the queue or of history, `now` being Unix seconds (QRY-01). Raises BadRequest."""
    if not wanted.where:
        return ()
    try:
        found = parse(wanted.where, datetime.fromtimestamp(now, UTC))
        check_part(found, part)
    except QuerySyntaxError as error:
        raise BadRequest(f"the query, {error}") from error
    return found


def live_where(wanted: admin_pb2.Filter, conditions: Sequence[Term] = ()) -> Where:
    """The recipients in the queue that a filter and its query (`asked`) mean: AND of what is set (reference H28).
    Raises BadRequest."""
    found = query.live(conditions)
    parts: list[LiteralString] = list(found.parts)
    parameters: dict[str, Any] = dict(found.parameters)
    _common(wanted, "r", parts, parameters)
    if wanted.HasField("on_hold"):
        parts.append("(r.held_since IS NOT NULL) = %(on_hold)s")
        parameters["on_hold"] = wanted.on_hold
    if wanted.transport:
        parts.append(_BOUND)
        parameters["transport"] = object_argument("MailTransport", wanted.transport)
    if wanted.from_domain:
        parts.append("r.from_domain = %(from_domain)s")
        parameters["from_domain"] = domain_argument(wanted.from_domain)
    if getattr(wanted, "from"):
        parts.append(
            "EXISTS (SELECT FROM message m WHERE m.id = r.message_id AND strpos(lower(m.mail_from), lower(%(from)s)) > 0)"
        )
        parameters["from"] = getattr(wanted, "from")
    if wanted.to_domain:
        parts.append(_TO_DOMAIN)
        parts.append("r.shard = %(to_shard)s")
        parameters["to_domain"] = domain_argument(wanted.to_domain)
        parameters["to_shard"] = shard(domain_argument(wanted.to_domain))
    # The due time of a leased recipient has no meaning: a filter by it is about those that wait.
    _times(wanted.due_after, wanted.due_before, wanted, "due", "r.token IS NULL AND r.due", parts, parameters)
    return Where(" AND ".join(parts) or "true", parameters)


def leased_lead(wanted: admin_pb2.Filter, conditions: Sequence[Term] = ()) -> LiteralString:
    """Which of the conditions of `live_where` an index leads to, among the recipients that are leased (QRY-04)."""
    if wanted.recipient_ids:
        return "r.token IS NOT NULL AND r.id = ANY(%(ids)s)"
    if wanted.message_ids:
        return "r.token IS NOT NULL AND r.message_id = ANY(%(message_ids)s)"
    named = query.live([one for one in conditions if one.field in _NAMING])
    return "r.token IS NOT NULL" if named.lead is None else "r.token IS NOT NULL AND " + named.lead


def waiting_lead(wanted: admin_pb2.Filter, conditions: Sequence[Term] = ()) -> LiteralString:
    """The same among those that wait."""
    found = query.live(conditions)
    led: list[LiteralString] = ["r.token IS NULL", *found.bounds]
    if wanted.recipient_ids:
        led.append("r.id = ANY(%(ids)s)")
    elif wanted.message_ids:
        led.append("r.message_id = ANY(%(message_ids)s)")
    elif wanted.transport:
        led.append(_BOUND)
    elif wanted.on_hold:
        led.append("r.held_since IS NOT NULL")
    elif wanted.to_domain:
        led.append(_TO_DOMAIN)
    elif found.lead is not None:
        led.append(found.lead)
    _led_by_time(wanted, "r.due", led)
    return " AND ".join(led)


def history_lead(wanted: admin_pb2.Filter, conditions: Sequence[Term] = ()) -> LiteralString:
    """The same of `history_where`."""
    found = query.history(conditions)
    led: list[LiteralString] = ["true", *found.bounds]
    if wanted.message_ids:
        led.append("h.message_id = ANY(%(message_ids)s)")
    elif found.lead is not None:
        led.append(found.lead)
    _led_by_time(wanted, "h.finished", led)
    return " AND ".join(led)


def _led_by_time(wanted: admin_pb2.Filter, column: LiteralString, led: list[LiteralString]) -> None:
    if wanted.HasField("due_after"):
        led.append(column + " > %(due_after)s")
    if wanted.HasField("due_before"):
        led.append(column + " < %(due_before)s")


def history_where(wanted: admin_pb2.Filter, conditions: Sequence[Term] = ()) -> Where:
    """The same for finished ones; `due` of the filter is when they finished. Raises BadRequest."""
    found = query.history(conditions)
    parts: list[LiteralString] = list(found.parts)
    parameters: dict[str, Any] = dict(found.parameters)
    _common(wanted, "h", parts, parameters)
    if wanted.HasField("on_hold") and wanted.on_hold:
        parts.append("false")
    if wanted.transport:
        raise BadRequest("history keeps no transport set by administrators; see the attempts of a message")
    if getattr(wanted, "from"):
        parts.append("strpos(lower(h.mail_from), lower(%(from)s)) > 0")
        parameters["from"] = getattr(wanted, "from")
    if wanted.to_domain:
        parts.append("right(lower(h.address), length(%(to_domain)s) + 1) = '@' || lower(%(to_domain)s)")
        parameters["to_domain"] = domain_argument(wanted.to_domain)
    if wanted.from_domain:
        parts.append("right(lower(h.mail_from), length(%(from_domain)s) + 1) = '@' || lower(%(from_domain)s)")
        parameters["from_domain"] = domain_argument(wanted.from_domain)
    _times(wanted.due_after, wanted.due_before, wanted, "due", "h.finished", parts, parameters)
    return Where(" AND ".join(parts) or "true", parameters)


def _common(wanted: admin_pb2.Filter, a: LiteralString, parts: list[LiteralString], parameters: dict[str, Any]) -> None:
    if wanted.recipient_ids:
        if max(wanted.recipient_ids) >= 2**63:
            raise BadRequest(f"there is no recipient {max(wanted.recipient_ids)}")
        parts.append(a + ".id = ANY(%(ids)s)")
        parameters["ids"] = c.bigints(list(wanted.recipient_ids))
    if wanted.message_ids:
        parts.append(a + ".message_id = ANY(%(message_ids)s)")
        parameters["message_ids"] = c.uuids([message_id_argument(one).bytes for one in wanted.message_ids])
    if wanted.account:
        parts.append(a + ".account = %(account)s")
        parameters["account"] = object_argument("MailAccount", wanted.account)
    if wanted.to:
        parts.append("strpos(lower(" + a + ".address), lower(%(to)s)) > 0")
        parameters["to"] = wanted.to
    if wanted.HasField("submitted_only"):
        operator: LiteralString = " = " if wanted.submitted_only else " <> "
        parts.append(a + ".origin" + operator + "%(submission)s")
        parameters["submission"] = types_pb2.ORIGIN_SUBMISSION
    _times(wanted.queued_after, wanted.queued_before, wanted, "queued", a + ".queued", parts, parameters)


def instant(moment: Any) -> datetime:
    """A Timestamp as a time with its zone. Raises BadRequest for one that is no time."""
    try:
        found: datetime = moment.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"not a time: {error}") from error
    return found


def seconds(length: Any) -> float:
    """A Duration in seconds, of ten years at most either way. Raises BadRequest."""
    if abs(length.seconds) > TEN_YEARS:
        raise BadRequest("cannot move by more than ten years")
    return float(length.seconds + length.nanos / 1e9)


def _times(
    after: Any,
    before: Any,
    wanted: admin_pb2.Filter,
    name: LiteralString,
    column: LiteralString,
    parts: list[LiteralString],
    parameters: dict[str, Any],
) -> None:
    for bound, moment, operator in (("after", after, " > "), ("before", before, " < ")):
        key = f"{name}_{bound}"
        if wanted.HasField(key):  # type: ignore[arg-type]
            bound_name: LiteralString = "after" if bound == "after" else "before"
            comparison: LiteralString = " > " if operator == " > " else " < "
            parts.append(column + comparison + "%(" + name + "_" + bound_name + ")s")
            parameters[key] = instant(moment)  # compared by instant (reference H17)


# --- pages --------------------------------------------------------------------------------------------------------------

_OWNER = 16
"""Characters of a token that say what it is of."""


def page_size(asked: int) -> int:
    """Rows of a page: 50 unless said otherwise, 1000 at most."""
    return min(asked or PAGE, MOST_PAGE)


class PageTokens:
    """Tokens that say where a page ended: opaque to callers, and of use for the same list with the same filter alone."""

    def __init__(self, name: str, chosen: bytes = b"") -> None:
        """`chosen`: what the list is narrowed by."""
        self._owner = hashlib.sha256(name.encode() + b"\0" + chosen).hexdigest()[:_OWNER]

    def make(self, place: str) -> str:
        """A token for this place."""
        return f"{self._owner}:{place}"

    def read(self, token: str) -> str | None:
        """The place of a token; None without one. Raises BadRequest."""
        if not token:
            return None
        owner, colon, place = token.partition(":")
        if not colon or len(owner) != _OWNER:
            raise BadRequest("the page token is not valid")
        if owner != self._owner:
            raise BadRequest("the page token is of another list or filter: leave it out to begin with the first page")
        return place


def chosen(wanted: admin_pb2.Filter) -> bytes:
    """A filter as `PageTokens` takes it."""
    return wanted.SerializeToString(deterministic=True)


def make_place(phase: str, moment: datetime, identity: int) -> str:
    """A place in a list that is ordered by time and id."""
    return f"{phase}:{moment.isoformat()}:{identity}"


def read_place(place: str | None, first: str, *, end: bool = False) -> tuple[str, datetime, int]:
    """Phase, time and id of a place; the beginning (or end) of everything when there is none. Raises BadRequest."""
    if place is None:
        return (first, *(END if end else BEGINNING))
    phase, _, rest = place.partition(":")
    moment, _, identity = rest.rpartition(":")
    try:
        parsed = datetime.fromisoformat(moment)
        number = int(identity)
    except ValueError:
        raise BadRequest("the page token is not valid") from None
    if phase not in ("L", "W", "H") or parsed.tzinfo is None or not 0 <= number < 2**63:
        raise BadRequest("the page token is not valid")
    return phase, parsed, number

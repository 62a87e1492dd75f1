"""What people type as ids, times and durations, and the options that choose recipients of the queue."""

import contextlib
import datetime
import functools
import inspect
import uuid
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from mailrail.cli.output import USAGE, stop
from mailrail.core.moments import UnreadableTime, span
from mailrail.core.search import QuerySyntaxError, parse
from mailrail.core.smtp.address import AddressError, domain_to_ascii
from mailrail.pb.queue.v1 import admin_pb2, types_pb2


def is_number(text: str) -> bool:
    """Whether it is a plain whole number that the API can carry."""
    return text.isascii() and text.isdigit() and len(text) < 20


def duration(text: str) -> datetime.timedelta:
    """`90s`, `5m`, `1h30m`, `2d`; a bare number is seconds. Ends the command on anything else."""
    bare = text.strip()
    unsigned = bare.lstrip("+-")
    if is_number(unsigned) and len(unsigned) < 10:
        return (-1 if bare.startswith("-") else 1) * datetime.timedelta(seconds=int(unsigned))
    try:
        return span(bare)
    except UnreadableTime as error:
        stop(str(error), USAGE)


def moment(text: str, now: datetime.datetime | None = None) -> datetime.datetime:
    """A time: ISO 8601 (local unless it names a zone), `now`, `-2h` (ago) or `+30m`. Ends the command otherwise."""
    now = now or datetime.datetime.now(datetime.UTC)
    if text == "now":
        return now
    if text[:1] in "+-":
        text, given = f"{text} from now", text
        with contextlib.suppress(OverflowError):
            return now + duration(given)
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        stop(f"{text!r} is not a time; write 2026-11-22T18:00, 2026-11-22T18:00:00Z, -2h or +30m", USAGE)


def stamp(value: datetime.datetime) -> Timestamp:
    """A time as the API carries it."""
    made = Timestamp()
    made.FromDatetime(value.astimezone(datetime.UTC).replace(tzinfo=None))
    return made


def message_id(text: str) -> bytes:
    """The 16 octets of a message id typed as a UUID. Ends the command on anything else."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        stop(
            f"{text!r} is not a message id. The id is in our `250 accepted as ...` reply; "
            "`mailrail queue show NUMBER` prints it for a recipient.",
            USAGE,
        )


def check_url(option: str, url: str) -> None:
    """End the command when libpq could make nothing of it. Its own words repeat the text, passwords included."""
    from mailrail.kit.postgres import unreadable

    if (problem := unreadable(url)) is not None:
        stop(f"{option} is {problem}", USAGE)


def domain_name(text: str) -> str:
    """A domain as lower-case A-labels, from either spelling. Ends the command on anything else."""
    try:
        return domain_to_ascii(text.strip().removesuffix("."), in_address=True)
    except AddressError as error:
        stop(f"{text!r} is no domain: {error}; write it as example.org", USAGE)


def check_resolver(resolver: str, *, trust_ad: bool = False) -> None:
    """End the command when a DNS server (empty: those of the system) cannot be meant so."""
    from mailrail.kit.settings import BadSettings, host_port

    if trust_ad and not resolver:
        stop("--trust-ad: name the validating DNS server with --resolver HOST:PORT", USAGE)
    try:
        if resolver:
            host_port(resolver)
    except BadSettings as error:
        stop(f"--resolver {error}", USAGE)


def query(text: str) -> str:
    """A query of the queue or of history, as the API takes it. Where it cannot be read this ends the command, and
    points there."""
    try:
        if not parse(text, datetime.datetime.now(datetime.UTC)):
            stop("the query is empty: write what to look for, such as to:alice@example.org", USAGE)
    except QuerySyntaxError as error:
        stop(f"the query cannot be read: {error.pointed(text)}", USAGE)
    return text


def object_ref(kind: str, text: str) -> types_pb2.ObjectRef:
    """`namespace/name`, or `name` in the namespace `default`."""
    namespace, _, name = text.rpartition("/")
    if not name or "/" in namespace:
        stop(f"{text!r} is not the name of a {kind}; write NAMESPACE/NAME", USAGE)
    return types_pb2.ObjectRef(kind=kind, namespace=namespace or "default", name=name)


def qualified(text: str) -> str:
    """`namespace/name` from either spelling; empty stays empty."""
    return text if not text or "/" in text or "@" in text else f"default/{text}"


def account_name(text: str) -> str:
    """The account of mail in the queue, which knows no logins: one in its place would silently match nothing."""
    if "@" in text and "/" not in text:
        stop(
            f"{text} is a login; write the account's NAMESPACE/NAME (`mailrail ingress resolve {text}` prints it)",
            USAGE,
        )
    return qualified(text)


def rule(found: types_pb2.Attempt | admin_pb2.RuleTried) -> str:
    """`namespace/route[rule]`; empty where no route decided."""
    if not found.HasField("route"):
        return ""
    return f"{found.route.namespace}/{found.route.name}[{found.rule or found.rule_index}]"


MESSAGE = 'A message id (as in "250 accepted as ID"), or the number of one of its recipients.'
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DirectUrl = Annotated[
    str,
    typer.Option(
        "--direct-url",
        envvar="MAILRAIL_DIRECT_URL",
        metavar="URL",
        help="URL of Postgres itself, if --database-url is that of a pooler.",
        show_default=False,
    ),
]
Resolver = Annotated[
    str, typer.Option("--resolver", metavar="HOST:PORT", help="DNS server to ask. Default: those of the system.")
]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=0, help="Show at most N; 0 shows all.")]
EVERYTHING = 2**31 - 1
"""What `--limit 0` asks of a call that has no pages: as much as the service ever answers."""
FromDomain = Annotated[
    str, typer.Option("--from-domain", metavar="DOMAIN", help="Only senders of exactly this domain.")
]
ToDomain = Annotated[str, typer.Option("--to-domain", metavar="DOMAIN", help="Only recipients in exactly this domain.")]
Account = Annotated[str, typer.Option("--account", metavar="NS/NAME", help="Only mail that this account submitted.")]
All = Annotated[bool, typer.Option("--all", help="All recipients in the queue.")]


# --- choosing recipients ----------------------------------------------------------------------------------------------


class Choice(Enum):
    """What a command does with the recipients that its options choose."""

    LIVE = "looks at the queue"
    FINISHED = "looks at the history"
    TO_CHANGE = "changes them"


LIVE, FINISHED, TO_CHANGE = Choice

_IDS = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID", help='Recipient numbers, or message ids (as in "250 accepted as ID").', show_default=False
    ),
]
_HOLD = Annotated[
    bool | None,
    typer.Option("--on-hold/--not-on-hold", help="Only recipients on hold, or only others.", show_default=False),
]
_SUBMITTED = Annotated[
    bool | None,
    typer.Option(
        "--submitted/--not-submitted", help="Only mail submitted with a login, or only other mail.", show_default=False
    ),
]


def _text(option: str, metavar: str, text: str) -> Any:
    return Annotated[str, typer.Option(option, metavar=metavar, help=text, show_default=False)]


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


_EVERYWHERE = (
    _option("from_", _text("--from", "TEXT", "Only this sender: a part of the address."), ""),
    _option("to", _text("--to", "TEXT", "Only this recipient: a part of the address."), ""),
    _option("from_domain", FromDomain, ""),
    _option("to_domain", ToDomain, ""),
    _option("account", Account, ""),
    _option("submitted_only", _SUBMITTED, None),
    _option(
        "queued_before",
        _text("--queued-before", "TIME", "Only mail accepted before: 2026-11-22T18:00, -2h."),
        "",
    ),
    _option("queued_after", _text("--queued-after", "TIME", "Only mail accepted after this time."), ""),
    _option(
        "where",
        _text("--where", "QUERY", "Only what a query finds: 'to:*@example.org state:deferred queued:<-2h'."),
        "",
    ),
)
_QUEUED_ONLY = (
    _option("on_hold", _HOLD, None),
    _option(
        "transport",
        _text("--transport", "NS/NAME", "Only recipients that an administrator bound to it."),
        "",
    ),
    _option("due_before", _text("--due-before", "TIME", "Only recipients due before this time."), ""),
    _option("due_after", _text("--due-after", "TIME", "Only recipients due after this time."), ""),
)


def choosing(choice: Choice) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the ids and options that choose recipients; it gets them as one argument, `chosen`.

    A command that changes something ends when nothing was chosen: a forgotten option must not reach the whole queue.
    """
    options = [*_EVERYWHERE, *(() if choice is FINISHED else _QUEUED_ONLY)]
    if choice is TO_CHANGE:
        options.append(_option("all", All, False))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(command).parameters.values() if p.name != "chosen"
        ]
        ids = _option("ids", _IDS, None)
        # Arguments in the order of typing: the command's own first, then the ids.
        arguments = [p for p in own if p.default is p.empty]
        rest = [p for p in own if p.default is not p.empty]

        @functools.wraps(command)
        def with_filter(**given: Any) -> None:
            chosen = selection(given.pop("ids"), **{p.name: given.pop(p.name) for p in options})
            if choice is TO_CHANGE and chosen == admin_pb2.Filter():
                stop("choose the recipients: give ids, options such as --to-domain, or --all", USAGE)
            command(chosen=chosen, **given)

        parameters = [*arguments, ids, *rest, *options]
        parameters.sort(key=lambda p: p.name == "json")  # the last of the options, as everywhere
        vars(with_filter)["__signature__"] = inspect.Signature(parameters)
        with_filter.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_filter

    return decorate


def selection(ids: list[str] | None, **options: Any) -> admin_pb2.Filter:
    """The filter that ids and options describe; all that is set must hold. Ends the command on a bad value."""
    chosen = admin_pb2.Filter()
    for text in ids or []:
        if is_number(text):
            chosen.recipient_ids.append(int(text))
        else:
            chosen.message_ids.append(message_id(text))
    for name, value in options.items():
        field = name.rstrip("_")
        if value in ("", None) or (field == "all" and not value):
            continue
        if field in ("queued_before", "queued_after", "due_before", "due_after"):
            getattr(chosen, field).CopyFrom(stamp(moment(value)))
        else:
            if field == "account":
                value = account_name(value)
            elif field == "transport":
                value = qualified(value)
            elif field == "where":
                value = query(value)
            setattr(chosen, field, value)
    return chosen

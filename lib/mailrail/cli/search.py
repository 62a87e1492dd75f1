"""`mailrail search`: find mail in the queue and in its history at once, by a query of mailrail.core.search."""

import shlex
from datetime import datetime
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli import queue as q
from mailrail.cli.connection import ask
from mailrail.core.search import SearchPart, parse, parts
from mailrail.pb.queue.v1 import admin_pb2

_KEYS = {SearchPart.QUEUE: "queue", SearchPart.HISTORY: "history"}
_LISTS = {SearchPart.QUEUE: "list", SearchPart.HISTORY: "history"}


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="QUERY",
            help="FIELD:VALUE, or a word: an address, domain, number, message id or a part of an address.",
        ),
    ],
    limit: a.Limit = 50,
    json: a.Json = False,
) -> None:
    """Find recipients in the queue and in its history. All parts of the query must hold.

    `mailrail search alice@example.org 'queued:<-2h'`; all fields: docs/reference/search.md. Exit status 1: none found.
    """
    now = q.utc_now()
    query = a.query(" ".join(words))
    conditions = parse(query, now)
    places = [part for part in SearchPart if part in parts(conditions)]
    if not places:
        output.stop("nothing can be like that: some of this is of the queue alone, some of finished mail", output.USAGE)
    if guessed := [str(one) for one in conditions if one.guessed]:
        output.note(f"looking for {' '.join(guessed)}")  # QRY-01: a guess is shown
    chosen = admin_pb2.Filter(where=query)

    async def question(channel: Any) -> dict[SearchPart, q.FoundRecipients]:
        stub = q.admin_service(channel)
        return {part: await q.search(stub, chosen, limit, finished=part is SearchPart.HISTORY) for part in places}

    found = ask(q.SERVICE, question, doing="searching")
    if json:
        output.print_json({_KEYS[part]: q.page_json(page) for part, page in found.items()})
    else:
        _print(found, now)
    for part, page in found.items():
        if page.stopped_at:
            output.note(f"in {part.value}: not all was looked at, only {page.stopped_at}; {_go_on(part, query, page)}")
        elif page.cursor and not json:
            output.say(f"... more in {part.value}; {_go_on(part, query, page)}")
    if not any(page.recipients for page in found.values()):
        raise typer.Exit(output.REFUSED)


def _print(found: dict[SearchPart, q.FoundRecipients], now: datetime) -> None:
    first = True
    for part, page in found.items():
        if not page.recipients:
            continue
        if not first:
            print()
        first = False
        output.say(f"In {part.value}:")
        columns = q.live_columns(now) if part is SearchPart.QUEUE else q.finished_columns(now)
        q.print_table(page, columns, none="")
    if first:
        output.say(
            "none was found so far" if any(page.stopped_at for page in found.values()) else "no recipient matches"
        )


def _go_on(part: SearchPart, query: str, page: q.FoundRecipients) -> str:
    return f"go on with: mailrail queue {_LISTS[part]} --where {shlex.quote(query)} --after {page.cursor}"

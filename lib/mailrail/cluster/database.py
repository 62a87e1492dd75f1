"""Which database an installation uses, and what has to be true before it uses another: the chart's migrations Job.

Values may name another database than the one that has the mail, by intent or by a forgotten option. A template cannot
look, so the Job does. What it agreed to stands in a ConfigMap, whose one key is the place, as the chart writes it:

    bundled.<StatefulSet>    a Postgres of the chart's own
    external.<digest>        that which the values name

Pods of queue, config and outbound mount that key: those of a revision that names another place wait until the Job has
agreed, and those of the old revision serve on. `decide` is pure: what is recorded and found goes in, what to do comes
out.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

import psycopg

from mailrail.cluster import POSTGRES_PORT, move
from mailrail.kit import migrations
from mailrail.kit.kubernetes import Api, ApiError, core_path

BUNDLED: Final = "bundled."
PLACE: Final = re.compile(r"(bundled|external)\.[a-z0-9.-]{1,200}")
_ROUNDS: Final = 5
_ASK: Final = 10
"""Seconds for the old database to answer; it runs all the time."""


class Previous(StrEnum):
    """What is wanted of mail in the database that was used before (`postgres.previous`)."""

    REFUSE = "refuse"
    MOVE = "move"
    LEAVE = "leave"


class Step(StrEnum):
    """What to do."""

    AGREE = "agree"
    MOVE = "move"
    REFUSE = "refuse"


class DatabaseRefused(Exception):
    """Services may not use the database that the values name; the text says why and what to do."""


@dataclass(frozen=True)
class Used:
    """What is recorded: the place that services use, and what its database and all copies have in common."""

    place: str
    lineage: str = ""


@dataclass(frozen=True)
class Seen:
    """What a look into a database found."""

    lineage: str = ""
    """Empty: no schema of Mailrail."""
    holdings: move.Holdings = field(default_factory=move.Holdings)
    fenced: bool = False
    moved: str = ""
    """Where it was moved to; empty: it was not."""


@dataclass(frozen=True)
class DatabaseVerdict:
    """A step, and a sentence for people."""

    step: Step
    why: str = ""


def decide(used: Used | None, place: str, new: Seen, old: Seen | str, previous: Previous) -> DatabaseVerdict:
    """What to do where values name `place`.

    `old`: the database that was used; a sentence where nobody can look into it; empty where nothing of it is left.
    """
    if new.moved and previous is not Previous.LEAVE:
        return DatabaseVerdict(
            Step.REFUSE,
            f"this database was {new.moved}: mail goes on there. Name that one again, or set postgres.previous=leave to"
            " leave it and go on with what is here",
        )
    if used is None or used.place == place:
        return DatabaseVerdict(Step.AGREE)
    where = _words(used.place)
    if new.lineage and new.lineage == used.lineage and not new.fenced:
        return DatabaseVerdict(Step.AGREE, f"this database is a copy of {where}")
    if previous is Previous.LEAVE:
        return DatabaseVerdict(Step.AGREE, f"what is in {where} stays there, and nothing sends it")
    if isinstance(old, str):
        if not old:
            return DatabaseVerdict(Step.AGREE, f"{where} holds nothing: it is gone with its volume, or never had one")
        return DatabaseVerdict(
            Step.REFUSE,
            f"this installation uses {where}, and the values name {_words(place)}: {old}. Give your values again"
            " (helm upgrade --reset-then-reuse-values); or move the mail yourself (mailrail cluster move-database); or"
            " set postgres.previous=leave to leave it there",
        )
    if not old.lineage:
        return DatabaseVerdict(Step.AGREE, f"{where} holds nothing")
    if previous is Previous.MOVE:
        return DatabaseVerdict(Step.MOVE)
    if old.holdings:
        return DatabaseVerdict(
            Step.REFUSE,
            f"{where} holds {old.holdings}, which the values would leave behind for {_words(place)}. Give your values"
            " again; or set postgres.previous=move to take them along, or =leave to leave them there",
        )
    return DatabaseVerdict(Step.AGREE, f"{where} holds no mail")


def _words(place: str) -> str:
    if place.startswith(BUNDLED):
        return f"the bundled Postgres {place.removeprefix(BUNDLED)}"
    return f"an external database ({place})"


# --- the cluster and the databases ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What the Job is told."""

    namespace: str
    record: str
    """Name of the ConfigMap."""
    place: str
    external_url: str = ""
    """Of the database at an external place, of Postgres itself where a pooler stands between."""
    previous: Previous = Previous.REFUSE
    bundled: str = ""
    """StatefulSet of the bundled Postgres that an installation has by default: looked for where nothing is recorded."""
    domain: str = ""
    """After the name of a StatefulSet: the rest of its host's name."""
    password: str = ""
    """Of the bundled Postgres; empty: it never had one."""
    labels: Mapping[str, str]

    @property
    def url(self) -> str:
        """Of the database at the place."""
        return self.bundled_url(self.place) if self.place.startswith(BUNDLED) else self.external_url

    def bundled_url(self, place: str) -> str:
        """Where a bundled Postgres is. It has no TLS, whatever the environment says of the other."""
        host = place.removeprefix(BUNDLED) + self.domain
        return f"postgresql://mailrail:{quote(self.password, safe='')}@{host}:{POSTGRES_PORT}/mailrail?sslmode=disable"


async def settle(job: Installation, api: Api, *, wait: float, say: Callable[[str], None]) -> None:
    """Agree to the place, move what is to be moved, bring the schema up to date, record it. May be repeated.

    `wait`: seconds for the database to be there. Raises DatabaseRefused, move.MoveRefused, MigrationError, ApiError,
    psycopg.Error.
    """
    used = await _used(job, api)
    if used is None:
        used = await _write(job, api, Used(job.place))  # pods begin to start while Postgres does
    await asyncio.to_thread(migrations.wait_for_database, job.url, wait, say)
    await asyncio.to_thread(_to_place, job, used, await _left(job, api, used), say)
    with await asyncio.to_thread(move.connect, job.url) as connection:
        lineage = move.lineage(connection)
    if used != Used(job.place, lineage):
        await _write(job, api, Used(job.place, lineage))
        say(f"services use {_words(job.place)}")


def _to_place(job: Installation, used: Used, left: str | None, say: Callable[[str], None]) -> None:
    """All that is done in databases. `left`: as `decide` has the old one; None: it can be asked."""
    with move.connect(job.url) as new:
        seen = _look(new)
    old = _ask(job.bundled_url(used.place)) if left is None else left
    verdict = decide(used, job.place, seen, old, job.previous)
    if verdict.why and verdict.step is not Step.REFUSE:
        say(verdict.why)
    match verdict.step:
        case Step.REFUSE:
            raise DatabaseRefused(verdict.why)
        case Step.MOVE:
            move.move(job.bundled_url(used.place), job.url, say=say)
        case Step.AGREE:
            if isinstance(old, Seen) and old.lineage and job.previous is not Previous.LEAVE:
                _close(job, used, say)
            if job.place.startswith(BUNDLED) and seen.fenced:
                with move.connect(job.url) as new:
                    move.release(new)
            migrations.migrate(job.url, say=say)


def _close(job: Installation, used: Used, say: Callable[[str], None]) -> None:
    """Nothing more is accepted in the old one, which the old pods still serve; and nothing was since the look."""
    url = job.bundled_url(used.place)
    with move.connect(url) as connection:
        move.fence(url, connection)
        if held := move.holdings(connection):
            move.release(connection)
            raise DatabaseRefused(f"{_words(used.place)} has taken {held} meanwhile; run this again")
        say(f"{_words(used.place)} is read-only from now on")


def _ask(url: str) -> Seen | str:
    """What the old database holds, or a sentence where it does not answer."""
    try:
        with move.connect(url, within=_ASK) as connection:
            return _look(connection)
    except psycopg.OperationalError as error:
        return f"it does not answer ({str(error).strip()})"


def _look(connection: move.Connection) -> Seen:
    return Seen(move.lineage(connection), move.holdings(connection), move.fenced(connection), move.moved_to(connection))


async def _used(job: Installation, api: Api) -> Used | None:
    body = await api.get(core_path("configmaps", job.namespace, job.record))
    for place, lineage in ((body or {}).get("data") or {}).items():
        return Used(place, lineage)
    asked = job.bundled and not job.place.startswith(BUNDLED)
    there = asked and await api.get(_stateful_set(job, job.bundled)) is not None
    return Used(BUNDLED + job.bundled) if there else None


async def _left(job: Installation, api: Api, used: Used) -> str | None:
    """Whether the old database can be asked (None), or why not; empty: it is gone, its volume too, or is the same."""
    if used.place == job.place:
        return ""
    if not used.place.startswith(BUNDLED):
        return "nothing can look into that one from here"
    name = used.place.removeprefix(BUNDLED)
    try:
        server = await api.get(_stateful_set(job, name))
        claim = await api.get(core_path("persistentvolumeclaims", job.namespace, f"data-{name}-0"))
    except ApiError as error:
        if error.code != 403:
            raise
        return None
    if never_bound(claim):
        return ""
    if server is not None:
        return None
    return f"StatefulSet {name} is gone, and PersistentVolumeClaim data-{name}-0 may hold mail" if claim else ""


def never_bound(claim: Mapping[str, Any] | None) -> bool:
    """Whether a PersistentVolumeClaim still waits for its first volume, so that nothing can be on it."""
    return claim is not None and claim.get("status", {}).get("phase") == "Pending"


def _stateful_set(job: Installation, name: str) -> str:
    return f"/apis/apps/v1/namespaces/{job.namespace}/statefulsets/{name}"


async def _write(job: Installation, api: Api, used: Used) -> Used:
    path = core_path("configmaps", job.namespace)
    metadata: dict[str, Any] = {"name": job.record, "namespace": job.namespace, "labels": dict(job.labels)}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {used.place: used.lineage}}
    for _ in range(_ROUNDS):
        found = await api.get(f"{path}/{job.record}")
        try:
            if found is None:
                await api.call("POST", path, body)
            else:
                metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
                await api.call("PUT", f"{path}/{job.record}", body)
        except ApiError as error:
            if error.code != 409:
                raise
        else:
            return used
    raise ApiError(409, f"another process keeps writing ConfigMap {job.record}; run this again")

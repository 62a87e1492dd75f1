"""DKIM keys of domains as statuses have them, which are also the memory of when their records came into the DNS."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from mailrail.core.dkim.key import ED25519
from mailrail.core.dkim.signature import KeyName
from mailrail.core.dkim.zone import RecordToPublish
from mailrail.core.revision.revision import DkimKey, Domain, ObjectRef
from mailrail_operator.model import Observed

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


def key_rows(
    domains: Iterable[Domain], seen: Mapping[tuple[str, str], float]
) -> dict[ObjectRef, tuple[Mapping[str, Any], ...]]:
    """`status.dkimKeys` of each domain that has keys. `seen`: as in Sources.keys_seen."""
    return {domain.ref: tuple(_row(domain, key, seen) for key in domain.dkim) for domain in domains if domain.dkim}


def _row(domain: Domain, key: DkimKey, seen: Mapping[tuple[str, str], float]) -> Mapping[str, Any]:
    name = KeyName(domain.name, key.selector)
    row = {
        "selector": key.selector,
        "type": "Ed25519" if key.algorithm.startswith(ED25519) else "RSA",
        "state": key.stage.value.capitalize(),
        "record": RecordToPublish(name, key.record).line,
        "value": key.record,
    }
    since = seen.get((str(name), key.record))
    return row if since is None else row | {"publishedSince": datetime.fromtimestamp(since, UTC).strftime(_TIME)}


def remembered(objects: Iterable[Observed]) -> Iterator[tuple[tuple[str, str], float]]:
    """What statuses say of records of keys that stand, as in Sources.keys_seen."""
    for seen in objects:
        domain = seen.spec.get("domainName")
        for row in seen.status.get("dkimKeys") or () if seen.ref.kind == "MailDomain" else ():
            try:
                since = datetime.fromisoformat(row["publishedSince"]).timestamp()
                yield (str(KeyName(str(domain), row["selector"])), row["value"]), since
            except (KeyError, ValueError, TypeError):  # it is not published, or somebody else wrote it
                continue

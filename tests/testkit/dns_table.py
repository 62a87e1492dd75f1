"""A DNS that is a table, for decisions that ask (`core.lookups`): no socket, and a note of what was asked.

    table = DnsTable()
    table.add("example.org", "TXT", "v=spf1 mx -all")
    table.add("example.org", "MX", "10 mx.example.org")
    table.fail("slow.example.org")
    verdict = answered(check_host(...), table)

Names compare without case. A name that was not told, with none told below it, does not exist; one without records of
the type asked for has no data (RFC 8020, RFC 2308 2). Aliases are followed, and a loop of them is trouble.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from mailrail.core.lookups import NO_DATA, NO_NAME, DnsOutcome, DnsQuestion, LookupAnswer

_ALIASES = 16


def _key(name: str) -> str:
    return name.removesuffix(".").lower()


class DnsTable:
    """Call it with a question."""

    def __init__(self) -> None:
        self._records: defaultdict[str, dict[str, list[Any]]] = defaultdict(dict)
        self._failing: set[tuple[str, str]] = set()
        self.asked: list[DnsQuestion] = []

    @classmethod
    def of_case(cls, rows: Iterable[Mapping[str, Any]]) -> "DnsTable":
        """From rows of name, type, and strings, data or rcode."""
        table = cls()
        for row in rows:
            match row.get("rcode"):
                case None:
                    values = ["".join(row["strings"])] if "strings" in row else row["data"]
                    for value in values:
                        table.add(row["name"], row["type"], value)
                case "SERVFAIL":
                    table.fail(row["name"], row["type"])
                case "NODATA":
                    table.exists(row["name"])
                case "NXDOMAIN":
                    pass
                case other:
                    raise ValueError(f"a table has no {other}")
        return table

    def add(self, name: str, kind: str, value: str | bytes) -> None:
        """One record, as a zone file has it; of TXT its strings joined, each character an octet."""
        records = self._records[_key(name)].setdefault(kind, [])
        match kind:
            case "TXT":
                records.append(value if isinstance(value, bytes) else value.encode("latin-1"))
            case "A" | "AAAA":
                records.append(ip_address(str(value)))
            case "MX":
                preference, _, host = str(value).partition(" ")
                records.append((int(preference), _key(host)))
            case _:
                records.append(_key(str(value)))

    def exists(self, name: str) -> None:
        """A name without records."""
        self._records[_key(name)].setdefault("", [])

    def fail(self, name: str, kind: str = "ANY") -> None:
        """No answer to questions for a name, or to those for one type of records that it does not have."""
        self.exists(name)
        self._failing.add((_key(name), kind))

    def __call__(self, question: DnsQuestion) -> LookupAnswer:
        self.asked.append(question)
        name = _key(question.name)
        for _ in range(_ALIASES):
            records = self._records.get(name)
            if records is None:
                below = any(other.endswith(f".{name}") for other in self._records)
                return NO_DATA if below else NO_NAME
            if found := records.get(question.kind):
                return LookupAnswer(DnsOutcome.FOUND, tuple(found))
            if not self._failing.isdisjoint({(name, question.kind), (name, "ANY")}):
                return LookupAnswer(DnsOutcome.TROUBLE, text=f"{question.kind} of {name}: SERVFAIL")
            if "CNAME" not in records:
                return NO_DATA
            name = records["CNAME"][0]
        return LookupAnswer(DnsOutcome.TROUBLE, text=f"{question.name} is an alias of itself")

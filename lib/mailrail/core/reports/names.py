"""What a report of ours is called: its id, file name and subject, the same in each place (DAGG-06, DAGG-07, DAGG-09).

All of it follows from who reports to whom about which period, so a report that is made again, by any replica, is the
same one (design 8).
"""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Final

from mailrail.core.reports.incoming import ReportKind

_DAY: Final = 24 * 3600
_ID_OCTETS: Final = 15  # of a digest; 24 letters and digits


@dataclass(frozen=True, slots=True)
class Period:
    """Of a report. Both ends belong to it."""

    begin: int
    """Unix seconds."""
    end: int

    @classmethod
    def of_day(cls, day: date) -> "Period":
        """One day of UTC, from 00:00:00 to 23:59:59 (TRPT-04a, DAGG-02a). It is the period of the report, whenever the
        first and the last message came."""
        begin = int(datetime.combine(day, time(), UTC).timestamp())
        return cls(begin, begin + _DAY - 1)


@dataclass(frozen=True, slots=True)
class ReportName:
    """Who reports to whom about what. Domains are A-labels in lower case."""

    kind: ReportKind
    submitter: str
    """Our domain."""
    domain: str
    """The policy domain."""
    period: Period

    @property
    def unique(self) -> str:
        """Unique by itself. DAGG-06: letters and digits only, since the file name has it (8460 5.1, 9990 3.5.1)."""
        told = f"{self.kind} {self.submitter} {self.domain} {self.period.begin} {self.period.end}"
        return base64.b32encode(hashlib.sha256(told.encode()).digest()[:_ID_OCTETS]).decode().lower()

    @property
    def id(self) -> str:
        """Report-ID, without brackets."""
        return f"{self.unique}@{self.submitter}"

    @property
    def file(self) -> str:
        """DAGG-07, TRPT-12: the name of the packed report."""
        ending = "xml.gz" if self.kind is ReportKind.DMARC else "json.gz"
        begin, end = self.period.begin, self.period.end
        return f"{self.submitter}!{self.domain}!{begin}!{end}!{self.unique}.{ending}"

    @property
    def subject(self) -> str:
        """DAGG-09, TRPT-16."""
        return f"Report Domain: {self.domain} Submitter: {self.submitter} Report-ID: <{self.id}>"

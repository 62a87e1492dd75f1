"""What the log and the metrics say while Postgres cannot be worked with.

Every loop of the process meets an outage, again at each try. One of them says so here: when it begins, twice a minute
meanwhile, with how much waits for it, and when it is over. What the loops say of themselves is left out for as long.
"""

from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from mailrail.kit import clock, log

_AGAIN: Final = 30.0
"""Seconds after which an outage that lasts is logged again."""


class Outage:
    """Whether Postgres can be worked with."""

    def __init__(self, now: Callable[[], float] = clock.now) -> None:
        self._now = now
        self._since: float | None = None
        self._said = 0.0
        self._waiting: dict[str, Callable[[], int]] = {}
        self._log = log.get_logger()
        self.full = False
        """Postgres refused to store mail for lack of space when it was asked last."""

    @property
    def lasts(self) -> bool:
        """Postgres was unreachable when it was tried last."""
        return self._since is not None

    def count(self, what: str, how_many: Callable[[], int]) -> None:
        """Show with each line how many of these wait."""
        self._waiting[what] = how_many

    def begin(self, error: Exception) -> None:
        """No connection could be made."""
        now = self._now()
        if self._since is None:
            self._since = self._said = now
            self._log.warning("Postgres is unreachable", error=str(error).strip(), **self._counts())
        elif now - self._said >= _AGAIN:
            self._said = now
            seconds = round(now - self._since)
            self._log.warning(
                "Postgres is still unreachable", error=str(error).strip(), seconds=seconds, **self._counts()
            )

    def end(self) -> None:
        """A connection was made."""
        if self._since is not None:
            seconds = round(self._now() - self._since)
            self._since = None
            self._log.info("Postgres is reachable again", seconds=seconds, **self._counts())

    def step(self, logger: FilteringBoundLogger, event: str, error: Exception, **fields: object) -> None:
        """A step has to be tried again: said where it is not the outage."""
        if not self.lasts:
            logger.warning(event, error=str(error).strip(), **fields)

    def _counts(self) -> dict[str, int]:
        return {what: how_many() for what, how_many in self._waiting.items()}

"""The form in which a delivery says what it waits for."""

from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

_T = TypeVar("_T")
Steps = Generator[Awaitable[Any] | None, Any, _T]
"""The way of a delivery, or a part of it. Yields what must be awaited and gets its value; None: its job."""

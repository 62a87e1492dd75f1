"""Packages that a library takes along where it finds them, and that a service has no use for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Within the context `import package` says that it is not installed, unless it was imported before.

    For imports at the top of a module, while there is one thread.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # so documented: an import of it raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[package]

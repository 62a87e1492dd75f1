"""What local mode does with files, it does on a file system that behaves as that of Windows does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.windows_files import windows_files


@pytest.fixture(autouse=True)
def _on_windows_files(tmp_path: Path) -> Iterator[None]:
    with windows_files(tmp_path):
        yield

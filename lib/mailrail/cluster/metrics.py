"""What the bundled Postgres exports: the room on its volume, which no client of it may ask for."""

import shutil
from pathlib import Path
from typing import Final

from prometheus_client import Gauge
from prometheus_client.registry import CollectorRegistry

SERVED: Final = CollectorRegistry()
"""These series alone: what every service exports besides is nothing that Postgres has."""
VOLUME = Gauge(
    "mailrail_postgres_volume_bytes",
    "Size of the volume of the bundled Postgres; without a volume of its own, of the node's",
    registry=SERVED,
)
VOLUME_AVAILABLE = Gauge(
    "mailrail_postgres_volume_available_bytes",
    "Octets that the bundled Postgres may still write to its volume",
    registry=SERVED,
)


def watch(folder: Path) -> None:
    """Let each scrape look at the volume below this folder."""
    VOLUME.set_function(lambda: shutil.disk_usage(folder).total)
    VOLUME_AVAILABLE.set_function(lambda: shutil.disk_usage(folder).free)

"""The settings that each child is started with."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mailrail.local.options import POLICIES, SMTP, WATCHER, LocalOptions
from mailrail.local.pki import Pki

_FEW_SOCKETS: Final = {"connections": "250", "lookups": "50"}
"""What a process on Windows has room for (kit/open_files.py)."""


@dataclass(frozen=True, slots=True)
class Environments:
    """Environment variables of the children of one installation."""

    options: LocalOptions
    database_url: str
    cache: Path
    keys: Pki
    targets: Mapping[str, str]
    """Service → HOST:PORT of its gRPC server."""
    metrics: Mapping[str, str]
    """Child → HOST:PORT of its metrics."""

    def of(self, name: str) -> dict[str, str]:
        """The environment of a child: its settings (kit/settings.py), and no other MAILRAIL_ variable of ours."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAILRAIL_")}
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        options = self.options
        role = "operator" if name == WATCHER else name
        values = {
            "node_id": f"local-{name}",
            "metrics_listen": self.metrics[name],
            "tls_dir": str(self.keys.role(role)),
            "sealing_keys_dir": str(self.keys.sealing_keys),
            "cache_dir": str(self.cache),
            "log_format": options.log_format,
            "log_level": options.log_level,
            "stop_with_parent": "true",
        }
        if name != WATCHER:
            values["grpc_listen"] = self.targets[name]
        if name != "config":
            values["config_target"] = self.targets["config"]
        values |= self._special(name)
        return environment | {f"MAILRAIL_{name.upper()}_{key.upper()}": value for key, value in values.items()}

    def _special(self, name: str) -> dict[str, str]:
        """Settings that only this child has."""
        options = self.options
        match name:
            case "config":
                return {"database_url": self.database_url}
            case "queue":
                return {"database_url": self.database_url, "history_days": str(options.history_days)}
            case "ingress":
                return {
                    "queue_target": self.targets["queue"],
                    "outbound_target": self.targets["outbound"],
                    "dmarc_target": self.targets["dmarc"],
                    "smtp_listen": options.listen,
                    "resolver": options.resolver or "",
                }
            case "dmarc":
                return {
                    "database_url": self.database_url,
                    "queue_target": self.targets["queue"],
                    "resolver": options.resolver or "",
                    # Nobody hears of mail that somebody tries things with.
                    "schedule": "false",
                }
            case "outbound":
                return {
                    "database_url": self.database_url,
                    "queue_target": self.targets["queue"],
                    "captive": str(not options.deliver).lower(),
                    "resolver": options.resolver or "",
                    "resolver_trust_ad": str(options.trust_ad).lower(),
                    "own_mx": options.address(SMTP),
                    **(_FEW_SOCKETS if sys.platform == "win32" else {}),
                }
            case _:
                return {
                    "resources": str(options.resources.absolute()),
                    "captive": str(not options.deliver and options.loopback_only).lower(),
                    "port_offset": str(options.port_offset),
                    "certificate": str(self.keys.smtp_certificate),
                    "certificate_key": str(self.keys.smtp_key),
                    "policies_listen": options.address(POLICIES),
                    "policies_tls_dir": str(self.keys.role("policy")),
                }

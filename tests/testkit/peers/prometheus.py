"""A Prometheus of one's own that scrapes what the test names, and answers queries."""

import json
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from testkit.conditions import wait_until
from testkit.peers import program, require_peer
from testkit.ports import free_port, loopback_address
from testkit.processes import Program


class Prometheus:
    """A running Prometheus. Use as a context manager, or call `stop()`."""

    def __init__(
        self,
        targets: dict[str, str],
        *,
        rules: str | None = None,
        every: float = 1.0,
        labels: dict[str, dict[str, str]] | None = None,
        scrape_configs: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Scrape `targets` (job name: `HOST:PORT`) each `every` seconds; `rules` is the text of a rules file.

        `labels`: job name → labels that every series of it gets. `scrape_configs`: others, as Prometheus has them.
        """
        require_peer("prometheus")
        self.address = loopback_address()
        self.port = free_port(self.address)
        self._temporary = tempfile.TemporaryDirectory(prefix="mailrail-prometheus-")
        folder = Path(self._temporary.name)
        config = {
            "global": {"scrape_interval": f"{int(every * 1000)}ms", "evaluation_interval": "1s"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target], "labels": (labels or {}).get(job, {})}]}
                for job, target in targets.items()
            ]
            + [dict(one) for one in scrape_configs],
        }
        if rules is not None:
            (folder / "rules.yml").write_text(rules)
            config["rule_files"] = ["rules.yml"]
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._program = Program(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address}:{self.port}",
            ],
            name="prometheus",
        )
        try:
            self._program.wait_for_line("Server is ready to receive web requests", 60)
        except AssertionError:
            self.stop()
            raise

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query: one entry a series, with `metric` and `value` (time, text)."""
        answer = self._get("query", query=expression)
        result: list[dict[str, Any]] = answer["result"]
        return result

    def query_range(self, expression: str, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """The result of a range query (Unix seconds): one entry a series, with `metric` and `values`."""
        answer = self._get("query_range", query=expression, start=str(start), end=str(end), step=str(step))
        result: list[dict[str, Any]] = answer["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that is loaded, with `name`, `health`, `lastError`, `state` and `alerts`."""
        groups: list[dict[str, Any]] = self._get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def value(self, expression: str) -> float:
        """The one value that an instant query answers. Raises LookupError when there is none or several."""
        result = self.query(expression)
        if len(result) != 1:
            raise LookupError(f"{expression} has {len(result)} results")
        return float(result[0]["value"][1])

    def wait_until_scraped(self, within: float = 60.0) -> None:
        """Wait until every target has answered a scrape."""

        def all_up() -> bool:
            states = self._get("targets", state="active")["activeTargets"]
            errors = [f"{state['scrapeUrl']}: {state['lastError']}" for state in states if state["health"] != "up"]
            assert not errors, errors
            return bool(states)

        wait_until(all_up, within, "Prometheus has scraped every target")

    def wait_until_scraped_again(self, within: float = 60.0) -> None:
        """Wait until every target was scraped anew: what it exported at the moment of the call is seen."""
        now = time.time()

        def all_since() -> bool:
            seen = self.query("timestamp(up)")
            return bool(seen) and all(float(one["value"][1]) > now for one in seen)

        wait_until(all_since, within, "Prometheus has scraped every target again")

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://{self.address}:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data

    def stop(self) -> None:
        """Stop it and remove its data."""
        self._program.stop()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

"""One metrics endpoint for all processes of a local installation.

In a cluster Prometheus scrapes each pod and adds the label `service` itself; here one page holds the series of every
child with that label added, so that the same queries and dashboards work. A family's HELP and TYPE stand once, with the
samples of all processes below, as the text format wants.
"""

import http.server
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus

from mailrail.kit import promptly

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_HAS_SERVICE = re.compile(r'[{,]service="')


def merge(pages: Iterable[tuple[str, str]]) -> str:
    """One page in text format 0.0.4 from (service, page) pairs. Samples that say their service already keep it."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for service, page in pages:
        family = ""
        for line in page.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                samples.setdefault(family, [])
                if not any(known.startswith(line[:7]) for known in head):
                    head.append(line)
            elif line and not line.startswith("#"):
                match = _NAME.match(line)
                if match is None:
                    continue
                # A sample belongs to the family above it: `x_bucket`, `x_sum` and `x_count` to histogram `x`.
                owner = family if family and match[0].startswith(family) else match[0]
                samples.setdefault(owner, []).append(_labelled(line, match.end(), service))
    lines: list[str] = []
    for family, found in samples.items():
        lines += [*sorted(heads.get(family, [])), *found]
    return "\n".join(lines) + "\n"


def _labelled(line: str, end: int, service: str) -> str:
    if _HAS_SERVICE.search(line):
        return line
    label = f'service="{service}"'
    if line[end] != "{":
        return f"{line[:end]}{{{label}}}{line[end:]}"
    separator = "" if line[end + 1] == "}" else ","
    return f"{line[:end]}{{{label}{separator}{line[end + 1 :]}"


class MergedMetrics:
    """Serves `/metrics` of all children on one address, from a thread."""

    def __init__(self, address: tuple[str, int], sources: Mapping[str, str], own: Callable[[], str]) -> None:
        """`sources`: service → HOST:PORT of its metrics. `own`: the supervisor's page. Raises OSError when the
        address is taken."""
        self._sources = dict(sources)
        self._own = own
        merged = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 30

            def do_GET(self) -> None:
                if self.path.split("?")[0] not in ("/metrics", "/"):
                    self.send_error(HTTPStatus.NOT_FOUND, "only /metrics is served")
                    return
                page = merged.page().encode()
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *_: object) -> None:
                """A scrape is no event."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            allow_reuse_address = sys.platform != "win32"  # there it would let two instances share the port

            def handle_error(self, *_: object) -> None:
                """A client that went away is no event either."""

        self._server = Server(address, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the address."""
        if self._thread.is_alive():
            promptly.stop(self._server)
            self._thread.join(5)
        else:
            self._server.server_close()

    def page(self) -> str:
        """The merged page as of now; a child that does not answer is left out and counted as down."""
        pages: list[tuple[str, str]] = []
        answering: list[str] = []
        for service, address in self._sources.items():
            try:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=2) as response:  # our own child
                    pages.append((service, response.read().decode()))
                answering.append(service)
            except (OSError, ValueError, urllib.error.URLError):
                continue
        up = "".join(f'mailrail_local_up{{service="{s}"}} {int(s in answering)}\n' for s in self._sources)
        head = (
            "# HELP mailrail_local_up 1 while a process of local mode answers, else 0\n# TYPE mailrail_local_up gauge\n"
            if up
            else ""
        )
        return merge([*pages, ("local", self._own() + head + up)])

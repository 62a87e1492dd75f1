"""A server that would look twice a second whether it should stop is stopped at once, and its address is free again."""

import http.server
import socket
import threading

import pytest

from mailrail.kit import promptly

from testkit.conditions import wait_until
from testkit.ports import accepts


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_server_that_looks_once_an_hour_whether_it_should_stop_stops_at_once(address: str) -> None:
    server = http.server.ThreadingHTTPServer((address, 0), http.server.BaseHTTPRequestHandler)
    port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(3600,), daemon=True)
    thread.start()
    wait_until(lambda: accepts("127.0.0.1", port), 10, "the server answers")
    stopping = threading.Thread(target=promptly.stop, args=(server,), daemon=True)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    assert not thread.is_alive()
    with socket.create_server((address, port)):
        pass


def test_a_server_is_stopped_that_just_began_to_serve() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    began = threading.Event()
    server.service_actions = began.set  # type: ignore[method-assign]  # called after each look at the socket
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    assert began.wait(30)
    promptly.stop(server)
    thread.join(30)
    assert not thread.is_alive()

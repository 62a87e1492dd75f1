"""Stopping a server of the standard library at once.

`serve_forever` looks only each half second whether it should stop, which every process that serves metrics would wait
for at its end, one after the other. A connection to its own address wakes it.
"""

import contextlib
import socket
import socketserver
import threading

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound


def stop(server: socketserver.TCPServer) -> None:
    """End `serve_forever`, which runs in another thread, and free the address. Blocks for some milliseconds."""
    asking = threading.Thread(target=server.shutdown, name="stop", daemon=True)
    asking.start()
    host, port = server.server_address[:2]
    while asking.is_alive():
        # The first one may come before the server was asked; then it is a request like any other, and we ask again.
        with contextlib.suppress(OSError), socket.create_connection((_ANY.get(str(host), str(host)), int(port)), 0.1):
            pass
        asking.join(0.05)
    server.server_close()

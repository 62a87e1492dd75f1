"""Where other replicas find this one."""

import pytest

from mailrail_queue.__main__ import address_for_peers
from mailrail_queue.settings import QueueSettings


@pytest.mark.parametrize(
    ("peer_host", "listen", "address"),
    [
        ("10.1.2.3", "[::]:7002", "10.1.2.3:7002"),
        ("fd00::7", "[::]:7002", "[fd00::7]:7002"),
        ("queue-0.queue", "0.0.0.0:7002", "queue-0.queue:7002"),
        ("", "127.0.0.5:0", "127.0.0.5:7002"),
        ("", "[::1]:0", "[::1]:7002"),
    ],
)
def test_an_address_for_peers_has_brackets_where_it_is_of_ipv6(peer_host: str, listen: str, address: str) -> None:
    settings = QueueSettings(peer_host=peer_host, grpc_listen=listen)
    assert address_for_peers(settings, 7002) == address

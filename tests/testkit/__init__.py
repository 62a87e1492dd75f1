"""What tests share: one good fake of each neighbour, real peers where one can be installed, and waiting on conditions.

Import by name (`from testkit.dns import DnsServer`): pytest puts `tests/` on the path.
docs/contributing/testing.md shows what there is and when to use which.
"""

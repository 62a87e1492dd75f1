"""What changes beneath a running installation, on the node: its database's password, a database that hangs, a rival.

Long forms: queue, config and compiler are tested with each of these beside real Postgres servers in `make test`.
"""

import contextlib
import time
from collections.abc import Iterator

import psutil
import pytest
from cluster.ledger import Break
from cluster.rail import Rail
from cluster.release import NAME, is_ready, node_processes, restarts
from cluster.stage import manifest

from testkit.conditions import wait_until
from testkit.processes import frozen

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

DOMAIN = "kills.partner.test"
SQL = """
import sys, psycopg
password = open("/etc/mailrail/database/password").read().strip()
with psycopg.connect(host="127.0.0.1", user="mailrail", dbname="mailrail", password=password, autocommit=True) as c:
    for statement in sys.argv[1:]:
        c.execute(statement)
"""


@contextlib.contextmanager
def counted(rail: Rail, name: str, breaks: list[Break]) -> Iterator[None]:
    """Mail comes in while the context lasts, and afterwards every message is counted. `breaks` may grow meanwhile."""
    with rail.traffic(f"{name}-{{n}}@{DOMAIN}") as run:
        run.wait_for(20, 120)
        yield
        run.wait_for(run.accepted() + 20, 180)
    rail.counted(run, DOMAIN, breaks, prefix=f"{name}-")


def test_a_rotated_password_of_the_database_is_taken_up_without_a_restart_and_no_mail_is_lost(rail: Rail) -> None:
    before = {one["metadata"]["name"]: restarts(one) for one in rail.pods()}
    password = f"rotated {time.monotonic_ns()}"
    breaks: list[Break] = []
    with counted(rail, "rotated", breaks):
        at = time.time()
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = user AND pid <> pg_backend_pid()"
        alter = f"ALTER ROLE mailrail PASSWORD '{password}'"
        rail.kubectl("exec", f"{NAME}-postgres-0", "--", "python", "-c", SQL, alter, end)
        rail.set_secret(f"{NAME}-postgres", password=password)
        rail.let_the_kubelet_look()
        rail.wait_until_ready(180)
        breaks.append(Break("password", at, time.time()))
    assert {one["metadata"]["name"]: restarts(one) for one in rail.pods()} == before


def test_a_database_that_hangs_is_noticed_refused_for_and_waited_for_ACC_09(rail: Rail) -> None:
    uid = rail.pods("postgres")[0]["metadata"]["uid"]
    if not node_processes(uid):
        pytest.skip("this machine is not the node, so nothing here can stop the processes of its pods")
    breaks: list[Break] = []
    with counted(rail, "hung", breaks):
        at = time.time()
        with contextlib.ExitStack() as hung:
            for pid in node_processes(uid):
                with contextlib.suppress(psutil.NoSuchProcess):  # the backend of a session that ended meanwhile
                    hung.enter_context(frozen(pid, descendants=False))
            wait_until(lambda: not any(map(is_ready, rail.pods("queue"))), 30, rail.tails)
            talk = rail.first.talk(*rail.mx, [f"meanwhile@{DOMAIN}"])
            assert talk.code in (421, 451), talk
        rail.wait_until_ready(120)
        breaks.append(Break("postgres", at, time.time()))


def test_of_two_gateways_on_one_port_the_older_serves_on_also_from_new_pods(rail: Rail) -> None:
    rival = {
        "hostname": "aaa.example.org",
        "listeners": [{"name": "mx", "protocol": "MX", "port": 25}],
        "postmaster": {"accountRef": {"name": "postmaster"}},
    }
    rail.apply(manifest("MailGateway", "aaa", rival))
    try:
        wait_until(
            lambda: rail.condition("mgw", "aaa", "Accepted")["reason"] == "PortConflict",
            60,
            lambda: f"the younger one is told\n{rail.tails()}",
        )
        for pod in rail.pods("ingress"):
            rail.kill("ingress", pod["metadata"]["name"])
        assert rail.first.talk(*rail.mx, [f"rival@{DOMAIN}"]).accepted
        assert rail.condition("mgw", "mx1", "Ready")["status"] == "True"
    finally:
        rail.kubectl("delete", "mgw/aaa")

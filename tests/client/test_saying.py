"""What tasks say comes by every way to a server; those over TLS and ssh have tests of their own with their like."""

import os

import pytest
from client import saying
from contract.gate import DEADLINE
from faults.proxy import Proxy
from server.processes import wait_until

from farm_executor import FarmExecutor, start_server
from farm_executor.client.farm import hearing, voice

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture
def lines(monkeypatch):
    """What comes before results, on a busy machine, too."""
    monkeypatch.setattr(hearing, "PATIENCE", DEADLINE)
    monkeypatch.setattr(voice, "STUCK_SECONDS", DEADLINE)
    return []


def test_of_an_embedded_farm(lines, caplog):
    with FarmExecutor(1, output=lines.append, context=saying.CONTEXT) as farm:
        saying.check(farm, lines, caplog)
        saying.check(farm.with_options(max_attempts=1), lines, caplog)


def test_over_connections_that_have_been_resumed(lines, caplog):
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address, heartbeat=0.2, output=lines.append, context=saying.CONTEXT) as farm,
    ):
        pid = farm.submit(os.getpid).result(DEADLINE)
        (session,) = farm._engine.servers.sessions()
        for _ in range(2):
            broken = session.control
            proxy.cut()
            # The lanes may be resumed at any time, but output comes over this one.
            wait_until(lambda broken=broken: session.control not in (None, broken), "another connection")
            saying.check(farm, lines, caplog)
        assert farm.submit(os.getpid).result(DEADLINE) == pid, "the worker went on"

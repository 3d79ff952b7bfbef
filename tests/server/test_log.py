"""A server's log: it waits for nobody who reads it, and strangers cannot fill a disk with it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys

import pytest
from server.peers import dial, read_to_end
from server.processes import DEADLINE, wait_until
from server.serving import DIE_WITH_TESTS, KEY, TESTS, Serving

from farm_executor import ping
from farm_executor.server import log
from farm_executor.wire.security import write_key

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork")
GARBAGE = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(log, "time", clock)
    return clock


def test_of_many_lines_one_a_second_is_logged_and_tells_of_how_many(caplog, clock):
    ration = log.Ration(logging.getLogger("strangers"))
    for number in range(1000):
        ration.warn("dismissed peer=%d", number)
    assert caplog.messages == ["dismissed peer=0"]
    assert ration.deadline == 101.0
    ration.on_time(100.9)
    clock.now = 101.0
    ration.on_time(clock.now)
    assert caplog.messages[1:] == ["dismissed peer=999 others=998"]
    assert ration.deadline == float("inf")
    ration.warn("dismissed peer=%d", 1000)
    clock.now = 102.5
    ration.warn("dismissed peer=%d", 1001)
    assert caplog.messages[2:] == ["dismissed peer=1001 others=1"]
    clock.now = 104.0
    ration.warn("accept failed")
    assert caplog.messages[3:] == ["accept failed"]


def test_of_what_is_kept_back_the_last_of_the_highest_level_is_told(caplog, clock):
    caplog.set_level(logging.INFO)
    ration = log.Ration(logging.getLogger("strangers"))
    ration.info("first")
    for tell, text in (ration.info, "one"), (ration.warn, "two"), (ration.warn, "three"), (ration.info, "four"):
        tell(text)
    clock.now = 102.0
    ration.on_time(clock.now)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "first"),
        ("WARNING", "three others=3"),
    ]


def test_who_hangs_up_while_dialling_is_not_worth_a_warning():
    with Serving() as server:
        with dial(server.address) as client:
            client.sendall(b"FARM")
        line = server.wait_for_line("dismissed")
        assert " INFO " in line
        assert "hung up" in line


def test_strangers_cost_a_line_a_second_and_are_counted():
    with Serving(ration=3600) as server:
        for _ in range(50):
            with dial(server.address) as stranger:
                stranger.sendall(GARBAGE)
                assert read_to_end(stranger) == b""
        assert ping(server.host, server.port, key=KEY)
        assert len(server.lines("dismissed")) == 1
    with Serving(ration=0.3) as server:
        for _ in range(20):
            with dial(server.address) as stranger:
                stranger.sendall(GARBAGE)
                assert read_to_end(stranger) == b""

        def told():
            found = [line.rpartition("others=")[2] for line in server.lines("dismissed")]
            return len(found) + sum(int(others) for others in found if others.isdecimal())

        wait_until(lambda: told() == 20, "each of them is told of, or counted")


SERVE = """
from farm_executor.cli import main
main(["serve", "127.0.0.1:0", "--workers", "1", "--key-file", sys.argv[1]])
"""
BACKGROUND = """
from farm_executor import start_server
server = start_server("127.0.0.1", 0, background=True, workers=1, key_file=sys.argv[1])
print(f"serving on {server.address}, pid", server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ends its server with it")
@pytest.mark.parametrize("program", [SERVE, BACKGROUND], ids=["command line", "in the background"])
def test_a_standard_error_that_nobody_reads_stops_no_server(tmp_path, program):
    write_key(tmp_path / "key", KEY)
    # A line for each stranger, at once: else the test would have to wait.
    boot = f"import sys\n{DIE_WITH_TESTS}\nimport farm_executor.server.log as log\nlog.RATION_SECONDS = 0\n"
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    with subprocess.Popen(
        [sys.executable, "-c", boot + program, str(tmp_path / "key")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write_end,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, sys.path)])},
    ) as process:
        try:
            os.close(write_end)
            address = process.stdout.readline().decode().split()[2].rstrip(",")
            host, port = address.split(":")
            for _ in range(5):
                with dial(address) as stranger:
                    stranger.sendall(GARBAGE)
                    assert read_to_end(stranger) == b""
                assert ping(host, int(port), DEADLINE, key=KEY)
            os.set_blocking(read_end, False)
            with contextlib.suppress(BlockingIOError):
                while os.read(read_end, 65536):
                    pass
            with dial(address) as stranger:
                stranger.sendall(GARBAGE)
                assert read_to_end(stranger) == b""
            os.set_blocking(read_end, True)
            said = os.read(read_end, 65536)
            assert b"lines of the log were dropped" in said
            assert b"dismissed peer=" in said
        finally:
            process.stdin.close()
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE)
            os.close(read_end)


def test_a_probe_that_connects_and_hangs_up_is_not_worth_a_line():
    with Serving() as server:
        for _ in range(20):
            dial(server.address).close()
        with dial(server.address) as stranger:
            stranger.sendall(b"F")
        server.wait_for_line("dismissed")
        assert len(server.lines("dismissed")) == 1

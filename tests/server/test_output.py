"""Standard output of servers: whether it is read or not, no task and no server waits for that, or fails."""

import os
import subprocess
import sys

import pytest
from server import tasks
from server.processes import DEADLINE
from server.serving import KEY, TESTS, Serving

from farm_executor import FarmExecutor
from farm_executor.server import output
from farm_executor.server.output import OutputPipe, say

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork")
MUCH = 300_000  # bytes; more than two pipes hold


def fill(descriptor):
    os.set_blocking(descriptor, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * 4096)


@pytest.fixture
def sink(no_leaks):
    """Both ends of what stands for our own output."""
    ends = dict(zip(("shown", "own"), os.pipe(), strict=True))
    yield ends
    for descriptor in ends.values():
        os.close(descriptor)


@pytest.fixture
def pipe(sink):
    pipe = OutputPipe(sink["own"])
    yield pipe
    pipe.close()
    os.close(pipe._write_end)


def test_an_output_that_takes_nothing_for_long_is_waited_for_no_more_until_it_takes_some(pipe, sink, monkeypatch):
    fill(sink["own"])
    os.write(pipe._write_end, b"first")
    pipe.copy()
    assert pipe.stuck
    monkeypatch.setattr(output.time, "monotonic", lambda: float("inf"))
    pipe.copy()
    assert not pipe.stuck
    os.write(pipe._write_end, b"second")
    pipe.copy()
    assert not pipe.stuck
    while os.read(sink["shown"], 65536) != b"x" * 65536:
        pass
    os.write(pipe._write_end, b"third")
    pipe.copy()
    assert os.read(sink["shown"], 65536) == b"third"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_costs_what_is_written_then_and_no_more(sink):
    with open("/dev/full", "wb") as full:
        pipe = OutputPipe(full.fileno())
        os.write(pipe._write_end, b"lost")
        pipe.copy()
        assert not pipe.stuck
        pipe._sink = sink["own"]  # somebody has made room
        os.write(pipe._write_end, b"there")
        pipe.copy()
    assert os.read(sink["shown"], 100) == b"there"
    pipe.close()
    os.close(pipe._write_end)


def test_what_cannot_be_said_is_not_an_error(monkeypatch):
    def fail(descriptor, data):
        raise OSError

    monkeypatch.setattr(os, "write", fail)
    say("hello")


def test_tasks_print_though_nobody_reads_the_server_s_output(no_leaks):
    with Serving(workers=2) as server, FarmExecutor(server.address, key=KEY, max_attempts=1) as farm:
        assert [future.result(DEADLINE) for future in [farm.submit(tasks.chatter, MUCH) for _ in range(2)]] == [
            "done",
            "done",
        ]


def test_tasks_print_though_the_reader_of_the_server_s_output_has_gone(no_leaks):
    with Serving(workers=1) as server, FarmExecutor(server.address, key=KEY, max_attempts=1) as farm:
        server.process.stdout.close()
        assert farm.submit(tasks.chatter, MUCH).result(DEADLINE) == "done"


def test_what_tasks_print_is_passed_on_up_to_the_last_line():
    with Serving(workers=2) as server:
        with FarmExecutor(server.address, key=KEY, output="server") as farm:
            # In one piece each, also where Python does not buffer: two workers write at the same time.
            for future in [farm.submit(print, f"line {number}\n", end="") for number in range(100)]:
                future.result(DEADLINE)
        server.process.terminate()
        lines = server.process.stdout.read().splitlines()
    assert sorted(lines) == sorted(f"line {number}" for number in range(100))


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_a_server_without_standard_streams_serves(closed, tmp_path):
    address = f"unix:{tmp_path}/socket"
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY)
    key_file.chmod(0o600)
    options = ["--workers", "1", "--key-file", str(key_file), "--path", TESTS]
    command = [sys.executable, "-m", "farm_executor", "serve", address, *options]
    server = subprocess.Popen(["sh", "-c", f'exec "$@" {closed}', "sh", *command])
    try:
        with FarmExecutor(address, key=KEY, max_attempts=1) as farm:
            assert farm.submit(tasks.chatter, 10).result(DEADLINE) == "done"
            assert farm.submit(os.write, 1, b"by C code").result(DEADLINE) == len(b"by C code")
    finally:
        server.terminate()
        assert server.wait(DEADLINE) == 0

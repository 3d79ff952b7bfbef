"""The ways between a program and the servers that an engine holds: either dials, or the engine carries bytes."""

import base64
import contextlib
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from launch import tasks
from server.processes import DEADLINE, children, command_line, descriptors, wait_until

from farm_executor import FarmExecutor, VersionMismatchError, __version__
from farm_executor.client.farm import discovery
from farm_executor.core.tunnel import PIECE
from farm_executor.launch import engine as engine_module
from farm_executor.launch import errand, far, near
from farm_executor.launch.ends import Loop
from farm_executor.launch.far import Far
from farm_executor.launch.near import Near

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]
WORKER = "tcp://127.0.0.1:1001"
WAYS = ("direct", "back", "engine")
one_will_do = pytest.mark.parametrize("engine", ["dask"], indirect=True)


@pytest.fixture(params=["dask", "ray"])
def engine(request):
    return request.param


@pytest.fixture
def become(engine, tmp_path, monkeypatch):
    """Says what the cluster has."""
    monkeypatch.setattr(errand, "LISTEN", "127.0.0.1")
    monkeypatch.setenv(f"FAKE_{engine.upper()}", str(tmp_path / "cluster"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / f"fake_{engine}"), prepend=os.pathsep)

    def become(**has):
        has = {"threads": {WORKER: 1}, "resources": {"CPU": 1}, **has}
        (tmp_path / "new").write_text(json.dumps(has))
        (tmp_path / "new").replace(tmp_path / "cluster")

    become()
    return become


@pytest.fixture
def where(engine, become):
    return f"{engine}://127.0.0.1:10001"


def gateways(pid):
    return [child for child in children(pid) if b"launch.gateway" in command_line(child)]


def servers(pid):
    return [server for gateway in gateways(pid) for server in children(gateway) if is_server(server)]


def is_server(pid):
    try:
        return b"sys.stdin.buffer" in command_line(pid)
    except OSError:
        return False


def dials(server, port):
    """Whether a server's supervisor has a connection to a port. Workers of this machine have unix sockets."""
    with open(f"/proc/{server}/net/tcp") as file:
        lines = [line.split() for line in file][1:]
    inodes = {line[9] for line in lines if line[3] == "01" and int(line[2].partition(":")[2], 16) == port}
    return any(f"socket:[{inode}]" in opened for inode in inodes for opened in descriptors(server))


@pytest.mark.parametrize("via", WAYS)
def test_each_way_leads_there(where, via):
    with FarmExecutor(f"{where}?via={via}", max_attempts=1) as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
        place = farm._backing.supply._sources[0][1]._place
        assert dials(farm.submit(os.getppid).result(DEADLINE), place.port) == (via == "back")
        data = os.urandom(3 * PIECE + 7)
        assert farm.submit(bytes, data).result(DEADLINE) == data
        assert list(farm.map(abs, range(-3000, 0))) == list(range(3000, 0, -1))
        placed = servers(os.getpid())
    wait_until(lambda: not any(map(is_server, placed)), "the server is gone")


def test_bytes_are_in_order_whatever_the_calls_do(where, become):
    become(calls="order")
    with FarmExecutor(f"{where}?via=engine", max_attempts=1) as farm:
        data = os.urandom(2 * PIECE + 7)
        assert farm.submit(bytes, data).result(DEADLINE) == data
        assert list(farm.map(abs, range(-300, 0), chunksize=1)) == list(range(300, 0, -1))


def test_calls_that_fail_cut_the_connections_and_nothing_is_lost(where, become, tmp_path, caplog):
    with (
        caplog.at_level(logging.WARNING),
        FarmExecutor(f"{where}?via=engine", max_attempts=1, resume_timeout=60) as farm,
        amid_a_task(farm, tmp_path / "gate"),
    ):
        become(calls="fail")
        wait_until(lambda: "still dialling" in caplog.text, "the connections are cut")
        become()


@contextlib.contextmanager
def amid_a_task(farm, gate):
    """A task runs meanwhile, and is found to have gone on."""
    worker = farm.submit(os.getpid).result(DEADLINE)
    future = farm.submit(wait_for, str(gate))
    wait_until(future.running, "it runs")
    yield
    gate.touch()
    assert future.result(DEADLINE) == worker
    assert farm.submit(os.getpid).result(DEADLINE) == worker


@one_will_do
def test_bytes_go_to_the_worker_itself_and_not_through_the_scheduler(where, become):
    with FarmExecutor(f"{where}?via=engine", max_attempts=1) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        become(queues="stall")
        data = os.urandom(3 * PIECE + 7)
        assert farm.submit(bytes, data).result(DEADLINE) == data
        become()


@one_will_do
@pytest.mark.parametrize("how", ["fail", "stall"])
def test_a_worker_that_cannot_be_called_is_reached_through_the_scheduler(where, become, caplog, how):
    become(direct=how)
    with caplog.at_level(logging.INFO), FarmExecutor(f"{where}?via=engine", max_attempts=1) as farm:
        data = os.urandom(3 * PIECE + 7)
        assert farm.submit(bytes, data).result(DEADLINE) == data
        assert list(farm.map(abs, range(-300, 0), chunksize=1)) == list(range(300, 0, -1))
    assert caplog.text.count("bytes go through the scheduler") == 1


@one_will_do
@pytest.mark.parametrize("how", ["fail", "stall"])
def test_calls_to_a_worker_that_stop_go_on_through_the_scheduler(where, become, tmp_path, caplog, how):
    with (
        caplog.at_level(logging.INFO),
        FarmExecutor(f"{where}?via=engine", max_attempts=1, resume_timeout=60) as farm,
    ):
        with amid_a_task(farm, tmp_path / "gate"):
            become(direct=how)
            wait_until(lambda: "bytes go through the scheduler" in caplog.text, "it is told", 2 * DEADLINE)
        data = os.urandom(3 * PIECE + 7)
        assert farm.submit(bytes, data).result(DEADLINE) == data
    assert caplog.text.count("bytes go through the scheduler") == 1


def wait_for(path):
    wait_until(lambda: os.path.exists(path), "the gate is open")
    return os.getpid()


def test_a_gateway_that_is_killed_loses_no_task(where):
    with FarmExecutor(f"{where}?via=engine", resume_timeout=0) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        (gateway,) = gateways(os.getpid())
        futures = [farm.submit(abs, -number) for number in range(50)]
        os.kill(gateway, signal.SIGKILL)
        assert [future.result(DEADLINE) for future in futures] == list(range(50))
        assert farm.submit(abs, -2).result(DEADLINE) == 2
        assert gateways(os.getpid()) != [gateway]


@one_will_do
def test_a_server_that_is_killed_loses_no_task(where):
    with FarmExecutor(f"{where}?via=engine", resume_timeout=0, max_attempts=3) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        (server,) = servers(os.getpid())
        futures = [farm.submit(abs, -number) for number in range(50)]
        os.kill(server, signal.SIGKILL)
        assert [future.result(DEADLINE) for future in futures] == list(range(50))


@one_will_do
@pytest.mark.parametrize("via", ["direct", "engine"])
def test_a_killed_program_leaves_nothing(where, via):
    code = [
        "import sys, time",
        "from farm_executor import FarmExecutor",
        "from farm_executor.launch import engine, errand",
        "engine.PATIENCE_SECONDS, errand.LISTEN = 0.5, '127.0.0.1'",
        f"farm = FarmExecutor('{where}?via={via}', resume_timeout=0)",
        "print(farm.submit(abs, -1).result(60), flush=True)",
        "farm.submit(time.sleep, 600)",
        "time.sleep(600)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(code)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "1\n"
        placed = servers(program.pid)
        assert placed
        program.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(map(is_server, placed)), "the server is gone")


@one_will_do
def test_the_engine_carries_the_bytes_where_the_program_cannot_be_dialled(where, monkeypatch):
    monkeypatch.setattr(engine_module, "WAYS", ("back", "engine"))
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.2")  # where the server takes the program to be
    with FarmExecutor(where) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        place = farm._backing.supply._sources[0][1]._place
        assert not dials(farm.submit(os.getppid).result(DEADLINE), place.port)


@one_will_do
def test_a_way_that_does_not_lead_there_is_told_of_with_its_reason(where, caplog, monkeypatch):
    monkeypatch.setattr(discovery, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(discovery, "REPORT_EVERY", 0.01)
    monkeypatch.setattr(discovery, "RETRY_SECONDS", 0.05)
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.2")
    with caplog.at_level(logging.WARNING), FarmExecutor(f"{where}?via=back") as farm:
        future = farm.submit(abs, -1)
        told = r"one of them cannot be reached, or could not at first: back: 127\.0\.0\.2:\d+: .*refused"
        wait_until(lambda: re.search(told, caplog.text), "it is told")
        assert future.cancel()
    with (
        pytest.raises(TimeoutError, match="back: 127"),
        FarmExecutor(f"{where}?via=back", connect_timeout=5) as farm,
    ):
        farm.submit(abs, -1).result(DEADLINE)


def test_calls_that_fail_are_told_of_with_the_engines_words(where, become, caplog, monkeypatch):
    monkeypatch.setattr(discovery, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(discovery, "REPORT_EVERY", 0.01)
    monkeypatch.setattr(discovery, "RETRY_SECONDS", 0.05)
    become(calls="fail")
    with caplog.at_level(logging.WARNING), FarmExecutor(f"{where}?via=engine") as farm:
        future = farm.submit(abs, -1)
        told = "engine: OSError: the engine has hung up"
        wait_until(lambda: told in caplog.text, "it is told")
        become()
        assert future.result(DEADLINE) == 1


# -- farm_executor sent along ---------------------------------------------------------------------------------


@one_will_do
def test_farm_executor_is_sent_along_where_it_lacks(where, tmp_path):
    without = bare(tmp_path)
    with FarmExecutor(f"{where}?python={without}") as farm:
        assert farm.submit(tasks.origin, "farm_executor.data.payload").result(DEADLINE) == (
            "<sent farm_executor.data.payload>"
        )
        with pytest.raises(ZeroDivisionError):
            farm.submit(divmod, 1, 0).result(DEADLINE)


def bare(folder):
    """An interpreter that has nothing but the standard library."""
    path = folder / "bare"
    path.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {sys.executable} -S -E "$@"\n')
    path.chmod(0o700)
    return path


def test_what_differs_is_named_on_both_sides():
    word = {
        "error": "ImportError: x",
        "missing": "farm_executor.launch.granted",
        "python": "3.9",
        "version": "0.0.1",
    }
    error = errand.explained("dask://h:1", "", word)
    assert isinstance(error, VersionMismatchError)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert error.mismatches == {"python": (here, "3.9"), "farm_executor": (__version__, "0.0.1")}
    assert "Python 3.9 with farm_executor 0.0.1" in str(error)
    assert f"Python {here} with farm_executor {__version__}" in str(error)
    assert "same minor version of Python" in str(error)


@pytest.mark.parametrize(
    ("word", "is_sent"),
    [
        ({"missing": "farm_executor"}, True),
        ({"missing": "tblib", "version": __version__}, True),
        ({"missing": "cloudpickle"}, True),
        ({"missing": "tblib", "version": "0.0.1"}, False),
        ({"missing": "numpy"}, False),
        ({"error": "x"}, False),
        ({"missing": "farm_executor.launch.granted", "version": "0.0.1"}, False),
    ],
)
def test_what_is_sent_along_is_what_lacks_altogether(word, is_sent):
    assert errand.is_sent(word) == is_sent


# -- the near and the far end, without an engine ---------------------------------------------------------------


@pytest.fixture
def tunnel():
    """Both ends, around a server that echoes."""
    made = Tunnelled()
    yield made
    made.close()


class Tunnelled:
    """What is between the two: calls that a test may hold, or fail."""

    def __init__(self):
        self.program = socket.create_server(("127.0.0.1", 0))
        self.loop = Loop()
        self.loop.start()
        self.far = Far()
        self.words = []
        self.calls = ThreadPoolExecutor(20)
        self.how = "answer"
        port = self.program.getsockname()[1]
        dial = partial(socket.create_connection, ("127.0.0.1", port))
        self.near = Near(self.loop, self.call, dial, self.words.append)
        self.server = None

    def call(self, piece):
        if self.how == "refuse":
            raise OSError("not now")
        if self.how == "stall":
            return Future()
        return self.calls.submit(self.far.exchange, piece)

    def hold(self, via, script):
        config = base64.b64encode(b"%s\n%s\n" % (json.dumps(script).encode(), json.dumps({"via": via}).encode()))
        self.server = threading.Thread(target=self.run, args=(config.decode(),))
        self.server.start()
        self.near.start()

    def run(self, config):
        self.said = self.far.hold("", errand.COMMAND, config, "mark")

    def close(self):
        self.near.close()
        if self.server is not None:
            self.far._process.kill()
            self.server.join()
        self.loop.close()
        self.program.close()
        self.calls.shutdown()


# In the server's place: says what it is told, and dials the tunnel as often as lines come.
DIALS = """
import socket
config = json.loads(sys.stdin.buffer.readline())
print('mark' + json.dumps({'ready': True, 'tunnel': config['tunnel']}), flush=True)
sys.stdin.read()
"""


def dialled(tunnel):
    wait_until(lambda: tunnel.words, "the server has said where")
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(tunnel.words[0]["tunnel"])
    return sock


def read(sock, count):
    sock.settimeout(DEADLINE)
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


def test_bytes_pass_both_ways_and_so_do_ends(tunnel):
    tunnel.hold(["engine"], DIALS)
    with dialled(tunnel) as server, tunnel.program.accept()[0] as program:
        for one, other in ((server, program), (program, server)):
            data = os.urandom(12 << 20)
            sender = threading.Thread(target=one.sendall, args=(data,))
            sender.start()
            assert read(other, len(data)) == data
            sender.join()
        server.shutdown(socket.SHUT_WR)
        assert program.recv(1) == b""
        program.sendall(b"still open")
        assert read(server, 10) == b"still open"
        program.close()
        assert server.recv(1) == b""


def test_a_slow_reader_holds_up_no_other_connection(tunnel):
    tunnel.hold(["engine"], DIALS)
    with dialled(tunnel) as one, tunnel.program.accept()[0] as slow:
        one.setblocking(False)
        wait_until(lambda: fills(one), "no more of it is taken")
        with dialled(tunnel) as other, tunnel.program.accept()[0] as quick:
            other.sendall(b"hello")
            assert read(quick, 5) == b"hello"
        slow.settimeout(DEADLINE)
        assert slow.recv(1) == b"x"


def fills(sock):
    """Send as much as is taken; return whether nothing was, for a moment."""
    try:
        while sock.send(b"x" * 65536):
            pass
    except BlockingIOError:
        return not select.select([], [sock], [], 0.3)[1]


@pytest.mark.parametrize("how", ["refuse", "stall"])
def test_calls_that_stop_end_the_connections_and_others_come_after_them(tunnel, monkeypatch, how):
    monkeypatch.setattr(near, "GONE_SECONDS", 0.5)
    tunnel.hold(["engine"], DIALS)
    with dialled(tunnel) as server, tunnel.program.accept()[0] as program:
        tunnel.how = how
        server.sendall(b"x")
        program.settimeout(DEADLINE)
        while program.recv(1):
            pass
        tunnel.how = "answer"
        server.settimeout(DEADLINE)
        assert server.recv(1) == b""
    with dialled(tunnel) as server, tunnel.program.accept()[0] as program:
        server.sendall(b"again")
        assert read(program, 5) == b"again"


def test_a_program_that_is_not_there_is_hung_up_on(tunnel):
    tunnel.hold(["engine"], DIALS)
    with dialled(tunnel) as server:
        tunnel.program.accept()[0].close()
        server.settimeout(DEADLINE)
        assert server.recv(1) == b""
    tunnel.program.close()
    with dialled(tunnel) as server:
        server.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionError):
            assert server.recv(1) == b""


def test_a_far_end_that_nobody_asks_closes_what_it_has(tunnel, monkeypatch):
    monkeypatch.setattr(far, "GONE_SECONDS", 0.3)
    monkeypatch.setattr(near, "GONE_SECONDS", 600)
    tunnel.hold(["engine"], DIALS)
    with dialled(tunnel) as server, tunnel.program.accept()[0]:
        tunnel.how = "stall"
        server.settimeout(DEADLINE)
        with contextlib.suppress(ConnectionError):
            assert server.recv(1) == b""


def test_a_server_that_is_dialled_alone_ends_once_nobody_asks(tunnel, monkeypatch):
    monkeypatch.setattr(far, "GONE_SECONDS", 0.3)
    tunnel.hold(["direct"], "print('mark{\"ready\": true}', flush=True); sys.stdin.read(); sys.stdin.read()")
    wait_until(lambda: tunnel.words, "it is there")
    tunnel.how = "stall"
    tunnel.server.join(DEADLINE)
    assert tunnel.said == {"ready": True}

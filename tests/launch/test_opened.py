"""Servers of clusters for other programs: what passes through, what comes and goes, what is refused."""

import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading

import pytest
from server.peers import free_address
from server.processes import DEADLINE, children, command_line, wait_until
from server.serving import TESTS

from farm_executor import AuthenticationError, FarmExecutor
from farm_executor.launch.opened import Opened
from farm_executor.launch.relay import CHUNK, Relay
from farm_executor.wire.address import parse_address, parse_addresses
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.security import write_key

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


def servers_of(pid):
    """The servers in the jobs that a process has: a script that has become a server."""
    return [child for child in children(pid) if b"sys.stdin.buffer" in command_line(child)]


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "lab.key"
    write_key(path, make_key_file_content())
    return str(path)


@pytest.fixture
def launch(key_file):
    """Opens the servers of addresses; gives what has been opened so far."""
    with contextlib.ExitStack() as stack:

        def start(*addresses, where="127.0.0.1:0"):
            told = []
            opened = Opened(
                parse_addresses(addresses),
                parse_address(where, any_port=True),
                key_file,
                lambda server, address: told.append((str(server), str(address))),
            )
            stack.callback(opened.end)
            opened.start()
            return opened, told

        yield start


def test_a_program_without_the_cluster_uses_its_servers(srun, launch, key_file):
    srun()
    _, told = launch("slurm://gpu?nodes=2&per=2")
    wait_until(lambda: len(told) == 2, "both have come")
    assert {server for server, _ in told} == {"slurm://gpu/n1:17"}
    with FarmExecutor([address for _, address in told], key_file=key_file) as farm:
        assert len(set(farm.broadcast(os.getpid, timeout=DEADLINE))) == 4
        data = os.urandom(5 << 20)
        assert farm.submit(bytes, data).result(DEADLINE) == data
    with FarmExecutor(told[0][1], key_file=key_file) as farm:  # and so does the next program
        assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_a_server_in_anothers_place_has_its_port(srun, launch, key_file):
    srun()
    _, told = launch("slurm://")
    wait_until(lambda: told, "it has come")
    with FarmExecutor(told[0][1], key_file=key_file, resume_timeout=0) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        (server,) = servers_of(os.getpid())
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: len(told) == 2, "another has come")
        assert farm.submit(abs, -2).result(DEADLINE) == 2
    assert len({address for _, address in told}) == 1


def test_what_is_refused_ends_it(srun, launch):
    srun("echo 'srun: error: invalid partition specified: nope' >&2; exit 1")
    opened, _ = launch("slurm://nope")
    with selectors.DefaultSelector() as selector:
        selector.register(opened, selectors.EVENT_READ)
        assert selector.select(DEADLINE)
    assert "invalid partition" in str(opened.failure)


def test_a_port_that_is_in_use_ends_it(srun, launch):
    srun()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        opened, _ = launch("slurm://", where=f"127.0.0.1:{taken.getsockname()[1]}")
        wait_until(lambda: isinstance(opened.failure, OSError), "it is told")


def test_a_key_without_a_certificate_is_refused(tmp_path):
    write_key(tmp_path / "plain", os.urandom(32).hex().encode())
    for name in ("plain", "missing"):
        with pytest.raises(AuthenticationError, match="farm-executor keygen"):
            Opened([parse_addresses("slurm://")[0]], parse_address("h:1"), str(tmp_path / name), print)


def test_the_command_prints_them_and_ends_them(srun, key_file):
    srun()
    where = free_address()
    code = "from farm_executor.launch import errand; errand.LISTEN = '127.0.0.1'\n"
    code += "import sys; from farm_executor.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "launch", "slurm://", "--listen", where, "--key-file", key_file]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, sys.path)])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == f"slurm:///n1:17 {where}\n"
        (server,) = servers_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    assert server not in children(os.getpid())


# -- the bytes ----------------------------------------------------------------------------------------------


class Parked:
    """A server with connections that rest, of which the other ends are `ends`."""

    def __init__(self):
        self.ends = []
        self.resting = []

    def add(self):
        one, other = socket.socketpair()
        self.resting.append(one)
        self.ends.append(other)
        other.settimeout(DEADLINE)

    def take(self, deadline):
        if not self.resting:
            raise TimeoutError
        return self.resting.pop()


@pytest.fixture
def relayed():
    relay, far = Relay(), Parked()
    listener = socket.create_server(("127.0.0.1", 0))
    where = listener.getsockname()
    relay.serve([listener], far)
    yield lambda: socket.create_connection(where, DEADLINE), far
    relay.close()
    for end in (*far.ends, *far.resting):
        end.close()


def received(sock, count):
    data = bytearray()
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return bytes(data)


def test_more_than_fits_passes_both_ways_and_ends_are_passed_on(relayed):
    dial, far = relayed
    far.add()
    data = os.urandom(20 * CHUNK)
    with dial() as near:
        sending = threading.Thread(target=near.sendall, args=(data,))
        sending.start()  # it is held up until the other end reads
        far.ends[0].sendall(b"hello")
        assert received(near, 5) == b"hello"
        assert received(far.ends[0], len(data)) == data
        sending.join()
        near.shutdown(socket.SHUT_WR)
        assert far.ends[0].recv(1) == b""
        far.ends[0].sendall(b"bye")
        far.ends[0].close()
        assert received(near, 4) == b"bye"


def test_a_program_waits_until_the_server_has_another_connection(relayed):
    dial, far = relayed
    with dial() as near:
        near.sendall(b"x")
        far.add()
        assert far.ends[0].recv(1) == b"x"


def test_an_end_that_is_gone_takes_the_other_along(relayed):
    dial, far = relayed
    far.add()
    with dial() as near:
        near.sendall(b"x")
        assert far.ends[0].recv(1) == b"x"
        far.ends[0].close()
        with contextlib.suppress(OSError):
            while True:
                near.sendall(bytes(CHUNK))


def test_without_a_descriptor_a_port_is_let_be_for_a_moment(relayed, monkeypatch, caplog):
    dial, far = relayed
    far.add()
    refused = []

    def accept(listener):
        refused.append(listener)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(socket.socket, "accept", accept)
        near = dial()
        wait_until(lambda: refused, "it is tried")
    with near:
        near.sendall(b"x")
        assert far.ends[0].recv(1) == b"x"
    # Not asked again and again meanwhile; a busy machine may have let two pauses pass.
    assert "accept failed" in caplog.text
    assert len(refused) < 10

"""Servers that dial the program: what works, who gets nothing, what is left."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from client import saying
from server import tasks
from server.peers import free_address
from server.processes import DEADLINE, children, wait_until
from server.serving import DIE_WITH_TESTS, KEY, TESTS, Serving

from farm_executor import AuthenticationError, FarmExecutor, WorkerLostError
from farm_executor.admin import ask
from farm_executor.client.farm import hearing, voice
from farm_executor.core.messages import BackHello, to_json
from farm_executor.launch import back
from farm_executor.launch.back import BackServer, Rendezvous
from farm_executor.wire import dialling as dialling_module
from farm_executor.wire.address import parse_address, parse_addresses
from farm_executor.wire.dialling import RefusedError, offer
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.security import Key, write_key

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]
HELLO = to_json(BackHello("0123", "one"))


class Dialling:
    """``farm-executor serve --back``, with its log kept."""

    def __init__(self, folder: Path, where: str, *arguments: str, key: bytes = KEY) -> None:
        self.key_file = folder / f"key-{len(os.listdir(folder))}"
        write_key(self.key_file, key)
        self._log = folder / f"log-{len(os.listdir(folder))}"
        boot = f"{DIE_WITH_TESTS}\nfrom farm_executor.cli import main; sys.exit(main())"
        options = ["-v", "--workers", "2", "--key-file", str(self.key_file), *arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", boot, "serve", "--back", where, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, sys.path)])},
                start_new_session=True,
            )
        self.greeting = self.process.stdout.readline()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"{text!r} in the log")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE)
        self.process.stdout.close()
        return code


@pytest.fixture
def dialling(tmp_path):
    """Starts servers that dial, and ends them."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **options):
            server = Dialling(tmp_path, *arguments, **options)
            stack.callback(server.end)
            return server

        yield start


@pytest.fixture
def waiting():
    """A place where servers are waited for, and one to offer oneself at."""
    where = free_address()
    (address,) = parse_addresses(f"back://{where}")
    place = Rendezvous(address, lambda address: Key(KEY))
    with pytest.raises(ConnectionError, match="no server has dialled in"):
        place.look()
    yield place, parse_address(where)
    place.end()
    place.end()


# -- what works ---------------------------------------------------------------------------------------------


def test_servers_that_dial_are_used_and_serve_one_program_after_another(dialling):
    where = free_address()
    server = dialling(where)
    assert server.greeting == f"dialling {where}, 2 workers for each client\n"
    for _ in range(2):
        with FarmExecutor([f"back://{where}"], key=KEY) as farm:
            assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
            assert list(farm.map(abs, range(-100, 0), timeout=DEADLINE)) == list(range(100, 0, -1))
            assert len(set(farm.broadcast(tasks.pid, timeout=DEADLINE))) == 2
            (told,) = farm.statistics().servers
            assert told.address.startswith(f"back://{where}/")
    assert server.end() == 0
    assert "Traceback" not in server.log


def test_with_a_certificate_everything_is_encrypted(dialling, tmp_path):
    where, content = free_address(), make_key_file_content()
    server = dialling(where, "--name", "one", key=content)
    assert server.greeting.endswith(", TLS\n")
    with FarmExecutor([f"back://{where}"], key_file=server.key_file) as farm:
        data = os.urandom(1 << 20)
        assert farm.submit(bytes, data).result(DEADLINE) == data
        assert farm.statistics().servers[0].address == f"back://{where}/one"


def test_what_tasks_say(dialling, caplog, monkeypatch):
    monkeypatch.setattr(hearing, "PATIENCE", DEADLINE)  # a busy machine may take longer to show it
    monkeypatch.setattr(voice, "STUCK_SECONDS", DEADLINE)
    where, heard = free_address(), []
    dialling(where)
    with FarmExecutor(
        [f"back://{where}"], max_workers=1, key=KEY, output=heard.append, context=saying.CONTEXT
    ) as farm:
        saying.check(farm, heard, caplog)


def test_a_task_is_killed_and_one_whose_server_dies_goes_to_another(dialling):
    where = free_address()
    servers = [dialling(where), dialling(where)]
    with FarmExecutor([f"back://{where}"], key=KEY, resume_timeout=0) as farm:
        farm.submit(abs, -1)
        wait_until(lambda: sum(one.up for one in farm.statistics().servers) == 2, "both have come")
        with pytest.raises(WorkerLostError):
            farm.with_options(max_attempts=1).submit(tasks.die, "kill").result(DEADLINE)
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        servers[0].process.kill()
        servers[0].process.wait()
        wait_until(lambda: len(farm.statistics().servers) == 1, "the dead one is forgotten")
        assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_a_server_whose_dialling_has_died_ends_when_its_clients_have_gone(dialling):
    where = free_address()
    server = dialling(where)
    with FarmExecutor([f"back://{where}"], key=KEY) as farm:
        workers = set(farm.broadcast(tasks.pid, timeout=DEADLINE))
        (dialler,) = children(server.process.pid) - workers
        os.kill(dialler, signal.SIGKILL)
        server.wait_for("dialling has ended")
        server.wait_for("draining")
        assert server.process.wait(DEADLINE) == 0


def test_a_server_dials_on_until_a_client_waits(dialling):
    where = free_address()
    server = dialling(where)
    server.wait_for("no client waits")
    with FarmExecutor([f"back://{where}"], key=KEY) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    assert server.end() == 0


def test_a_forked_child_lets_go_of_the_parents_place(waiting):
    place, _ = waiting
    if not (pid := os.fork()):
        place.abandon()
        os._exit(0 if place._listeners[0].fileno() == -1 else 1)
    assert os.waitpid(pid, 0)[1] == 0


# -- who gets nothing ---------------------------------------------------------------------------------------


def test_a_server_with_another_key_is_not_let_in(waiting):
    place, where = waiting
    with pytest.raises(AuthenticationError):
        offer(where, Key(b"another key than the program's 0123"), HELLO, DEADLINE)
    with pytest.raises(ConnectionError, match="no server has dialled in"):
        place.look()


@pytest.mark.parametrize("said", [b"", b"FARM", bytes(range(256)) * 16, b"GET / HTTP/1.1\r\n\r\n"])
def test_a_squatter_gets_nothing(waiting, said):
    place, where = waiting
    # It is hung up on as soon as it has said enough.
    with socket.create_connection((where.host, where.port)) as squatter, contextlib.suppress(OSError):
        squatter.sendall(said)
        squatter.shutdown(socket.SHUT_WR)
        assert squatter.recv(100) in (b"", b"\0" * 48)
    with pytest.raises(ConnectionError, match="no server has dialled in"):
        place.look()
    sock = offer(where, Key(KEY), HELLO, DEADLINE)  # others are let in meanwhile
    sock.close()


def test_a_server_that_does_not_say_that_it_waits_is_not_used(waiting, monkeypatch):
    place, where = waiting
    monkeypatch.setattr(dialling_module, "WAITS", b"x")
    with offer(where, Key(KEY), HELLO, DEADLINE) as sock:
        assert sock.recv(1) == b""
    with pytest.raises(ConnectionError, match="no server has dialled in"):
        place.look()


def test_who_takes_a_program_for_a_server_is_told(waiting):
    _, where = waiting
    with pytest.raises(RefusedError, match="a client waits here for servers"):
        ask(where, "status", DEADLINE, key=KEY)


def test_a_server_that_dials_a_server_is_told():
    with Serving(workers=1) as server, pytest.raises(RefusedError, match="a server listens here: --back names"):
        offer(parse_address(server.address), Key(KEY), HELLO, DEADLINE)


def test_a_port_in_use_is_waited_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        (address,) = parse_addresses(f"back://127.0.0.1:{other.getsockname()[1]}")
        place = Rendezvous(address, lambda address: Key(KEY))
        with pytest.raises(OSError, match="cannot listen on"):
            place.look()
    with pytest.raises(ConnectionError, match="no server has dialled in"):
        place.look()
    place.end()


# -- connections that rest ----------------------------------------------------------------------------------


def test_each_connection_that_rests_is_taken_once(waiting, monkeypatch):
    monkeypatch.setattr(back, "TAKE_SECONDS", DEADLINE)
    place, where = waiting
    changed = threading.Semaphore(0)
    place.watch(changed.release)
    first, second = (offer(where, Key(KEY), HELLO, DEADLINE) for _ in range(2))
    assert changed.acquire(timeout=DEADLINE)
    ((address, locate),) = place.look()
    assert locate(False) == address
    with first, second, address.grant.take(float("inf")) as one, address.grant.take(float("inf")) as other:
        one.sendall(b"x")
        other.sendall(b"x")
        assert (first.recv(1), second.recv(1)) == (b"x", b"x")
    with pytest.raises(TimeoutError, match="no connection to us at the moment"):
        address.grant.take(0)


def test_a_server_without_a_connection_is_gone_at_once_if_it_ended_one_and_after_a_while_if_not(
    waiting, monkeypatch
):
    place, where = waiting
    changed = threading.Semaphore(0)
    place.watch(changed.release)
    offer(where, Key(KEY), HELLO, DEADLINE).close()
    assert changed.acquire(timeout=DEADLINE)  # it has come
    assert changed.acquire(timeout=DEADLINE)  # and gone
    with pytest.raises(ConnectionError):
        place.look()

    monkeypatch.setattr(back, "GONE_SECONDS", -1.0)
    with offer(where, Key(KEY), HELLO, DEADLINE):
        assert changed.acquire(timeout=DEADLINE)
        ((address, _),) = place.look()
        address.grant.take(float("inf")).close()
        with pytest.raises(TimeoutError):
            address.grant.take(0)
        assert changed.acquire(timeout=DEADLINE)


def test_no_more_connections_rest_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(back, "MAX_PARKED", 1)
    server = BackServer("back://here:1", "one", "host", lambda: None)
    ours, theirs = socket.socketpair()
    with theirs, ours:
        assert server.park(ours)
        assert not server.park(theirs)
        server.close()


# -- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["127.0.0.1:1", "--back", "127.0.0.1:2"], "give one of them"),
        (["--back", "unix:/tmp/a"], "--back takes HOST:PORT"),
        (["--back", "farm://a:1?all"], "--back takes HOST:PORT"),
        (["--back", "127.0.0.1:0"], "there is no such port"),
        (["--back", "192.0.2.1:1"], "refusing to dial 192.0.2.1:1: with a key that has no certificate"),
    ],
)
def test_what_cannot_be_dialled_is_refused(arguments, why, tmp_path):
    write_key(tmp_path / "key", KEY)
    command = [sys.executable, "-m", "farm_executor", "serve", *arguments, "--key-file", str(tmp_path / "key")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 2
    assert why in done.stderr

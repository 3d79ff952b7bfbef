"""A farm over TLS: everything works as without, nobody else gets in, and each refusal says what to do."""

import contextlib
import logging
import os
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from certificates import Authority
from client import output_tasks, saying, stream_tasks
from contract.gate import Gate
from faults.proxy import Proxy
from server import tasks
from server.peers import LanePeer, SessionPeer, dial, listening, prove_key, read_to_end
from server.processes import DEADLINE, children, command_line, environment, wait_until
from server.serving import KEY, Serving

from farm_executor import (
    AddressError,
    AuthenticationError,
    FarmExecutor,
    TaskKilledError,
    end_server,
    lfarm,
    ping,
    start_server,
    status,
)
from farm_executor.cli import main
from farm_executor.client.farm import hearing, voice
from farm_executor.core.frames import FrameType
from farm_executor.core.handshake import NONCE_SIZE, ClientHandshake, Security
from farm_executor.core.messages import AdminHello, LaneHello, Role, to_json
from farm_executor.observe.overview import Overview
from farm_executor.observe.series import Cursor
from farm_executor.observe.watching import Watching
from farm_executor.wire.address import parse_address
from farm_executor.wire.dialling import connect
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import (
    KEY_FILE_VARIABLE,
    Key,
    default_key_file,
    monitor_content,
    read_key,
    write_key,
)
from farm_executor.wire.tls import TlsSocket, own_context

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a farm's servers need fork"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def key_file(folder):
    write_key(folder / "key", make_key_file_content())
    return folder / "key"


@pytest.fixture(scope="module")
def key(key_file):
    return read_key(key_file)


@pytest.fixture(scope="module")
def serving(key_file):
    with Serving(key=key_file.read_bytes()) as server:
        yield server


@pytest.fixture
def plain_file(tmp_path):
    write_key(tmp_path / "plain", KEY)
    return tmp_path / "plain"


def place(server):
    host, _, port = server.address.rpartition(":")
    return host, int(port)


# -- everything works as without ----------------------------------------------------------------------------


@pytest.fixture
def heard(monkeypatch):
    """What tasks say comes before their results, on a busy machine, too."""
    monkeypatch.setattr(hearing, "PATIENCE", DEADLINE)
    monkeypatch.setattr(voice, "STUCK_SECONDS", DEADLINE)
    return []


def test_what_tasks_say(serving, key_file, heard, caplog):
    with FarmExecutor(
        serving.address, max_workers=1, key_file=key_file, output=heard.append, context=saying.CONTEXT
    ) as farm:
        saying.check(farm, heard, caplog)
        saying.check(farm.with_options(priority="high"), heard, caplog)


def test_streams_of_small_and_large_items(serving, key_file):
    with FarmExecutor(serving.address, key_file=key_file) as farm:
        assert list(farm.stream(stream_tasks.count, 5000)) == list(range(5000))
        assert list(farm.stream(stream_tasks.mixed))[3] == b"x" * 100_000
        with farm.stream(stream_tasks.count, 10**9) as stream:
            assert next(stream) == 0
        assert stream.future.result(DEADLINE) is None


def test_output_and_streams_over_cuts(serving, key_file):
    with (
        Proxy(serving.address) as proxy,
        FarmExecutor(proxy.address, key_file=key_file, heartbeat=0.2, output=lambda line: None) as farm,
    ):
        stream = farm.stream(stream_tasks.count, 5000)
        items = [next(stream) for _ in range(2000)]
        proxy.cut()
        assert [*items, *stream] == list(range(5000))
        assert farm.submit(output_tasks.say, "after").result(DEADLINE) == "after"


def test_who_watches_with_a_monitors_key_sees_it(serving, key_file, folder):
    """As `top` and the dashboard of servers do."""
    write_key(folder / "monitor", monitor_content(key_file))
    with FarmExecutor(serving.address, key_file=key_file, name="the name", heartbeat=0.1) as farm:
        farm.submit(abs, 1).result(DEADLINE)
        watching = Watching([parse_address(serving.address)], folder / "monitor")
        try:
            overview = Overview(watching)

            def clients():
                overview.sample()
                (table,) = [table for table in overview.document(Cursor())[0]["tables"] if table.title == "Clients"]
                return [row[0] for row in table.rows]

            wait_until(lambda: clients() == ["the name"], "the farm's name")
            assert overview.document(Cursor())[0]["tiles"][0][0] == "1 / 1"
        finally:
            watching.close()


def test_calls_maps_and_errors(serving, key_file):
    with FarmExecutor(serving.address, key_file=key_file) as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
        assert list(farm.map(abs, range(-20_000, 0))) == list(range(20_000, 0, -1))
        with pytest.raises(ZeroDivisionError):
            farm.submit(divmod, 1, 0).result(DEADLINE)
        assert len(farm.broadcast(os.getpid)) == 2


def test_large_buffers_both_ways_at_once(serving, key_file):
    np = pytest.importorskip("numpy")
    arrays = [np.arange(size << 17, dtype=np.int64) for size in (64, 8)]
    with FarmExecutor(serving.address, key_file=key_file) as farm:
        futures = [farm.submit(np.positive, array) for array in arrays]
        for array, future in zip(arrays, futures, strict=True):
            assert np.array_equal(future.result(DEADLINE), array)


@pytest.mark.parametrize("caller_leads", [True, False])
def test_many_threads_and_many_calls(serving, key_file, caller_leads):
    with FarmExecutor(serving.address, key_file=key_file, caller_leads=caller_leads) as farm:
        found = []

        def call(number):
            found.extend(farm.submit(pow, number, 2).result(DEADLINE) for _ in range(50))
            found.extend(future.result(DEADLINE) for future in [farm.submit(abs, -1) for _ in range(200)])

        threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert len(found) == 6 * 250


def test_a_killed_task_and_a_dead_worker_cost_only_themselves(serving, key_file):
    with FarmExecutor(serving.address, key_file=key_file) as farm:
        running = farm.submit(time.sleep, 1000)
        wait_until(running.running, "it runs")
        assert wait_until(lambda: farm.kill(running), "it is killed")
        with pytest.raises(TaskKilledError):
            running.result(DEADLINE)
        worker = farm.submit(tasks.pid).result(DEADLINE)
        os.kill(worker, signal.SIGKILL)
        assert farm.submit(tasks.pid).result(DEADLINE) != worker


def test_what_waits_behind_a_long_task_is_taken_back_and_can_be_cancelled(serving, key_file):
    with FarmExecutor(serving.address, key_file=key_file) as farm:
        slow = farm.submit(time.sleep, 1000)
        futures = [farm.submit(abs, -number) for number in range(500)]
        last = farm.submit(time.sleep, 1000)
        assert [future.result(DEADLINE) for future in futures] == list(range(500))
        queued = farm.submit(abs, 1)
        assert queued.cancel()
        assert farm.kill(slow)
        assert farm.kill(last)


def test_an_executor_passed_to_a_task_is_a_client_with_the_servers_key(serving, key_file):
    with FarmExecutor(serving.address, key_file=key_file, max_workers=1) as farm:
        assert farm.submit(nested, serving.address).result(DEADLINE) == 5


def nested(address):
    with FarmExecutor(address, max_workers=1) as farm:
        return farm.submit(abs, -5).result()


nested.__module__ = "__main__"  # so that it travels by value


def test_the_environment_or_the_users_own_file_is_enough(serving, key_file, monkeypatch, tmp_path):
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key_file))
    with FarmExecutor(serving.address) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    monkeypatch.delenv(KEY_FILE_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    default_key_file().parent.mkdir()
    write_key(default_key_file(), key_file.read_bytes())
    with FarmExecutor(serving.address) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        assert ping(*place(server))
        with pytest.raises(AuthenticationError, match="demands TLS"):
            ping(*place(server), key=read_key(key_file).secret)


def test_administrators_and_the_command_line(key_file, capsys):
    with start_server("127.0.0.1", 0, background=True, workers=1, key_file=key_file) as server:
        assert ping(*place(server), key_file=key_file)
        assert status(*place(server), key_file=key_file)["slots"] == 1
        for command in ("ping", "status", "end"):
            assert main([command, server.address, "--key-file", str(key_file)]) == 0
        assert server.wait(DEADLINE)
    assert "answers" in capsys.readouterr().out


def test_lfarm_over_tls(key_file):
    servers = lfarm.start_local_servers([("127.0.0.1", 0)], key_file=key_file)
    addresses = [server.address for server in servers]
    kernel = lfarm.make_kernel(addresses, key_file=key_file)
    with lfarm.use_kernel(kernel):
        assert lfarm.pmap(abs, [-1, -2]) == [1, 2]
        lfarm.end_kernel(wait=True)
    lfarm.end_local_servers(addresses, key_file=key_file)
    for server in servers:
        server.end()


def test_a_server_on_every_address_needs_no_further_word(key_file, plain_file):
    with Serving(at="0.0.0.0:0", key=key_file.read_bytes()) as server:
        assert server.greeting.endswith("TLS\n")
        assert ping("127.0.0.1", server.port, key_file=key_file)
    with pytest.raises(AddressError, match="farm-executor keygen"):
        start_server("0.0.0.0", 0, background=True, key_file=plain_file)
    with pytest.raises(AddressError, match="farm-executor keygen"):  # for one of them is enough to get in
        start_server("0.0.0.0", 0, background=True, key_file=[key_file, plain_file])


def test_unix_sockets_are_never_encrypted(key_file, tmp_path):
    address = f"unix:{tmp_path / 'socket'}"
    command = [
        sys.executable,
        "-m",
        "farm_executor",
        "serve",
        address,
        "--workers",
        "1",
        "--key-file",
        str(key_file),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == f"serving on {address}, 1 worker for each client\n"
            with FarmExecutor(address, key_file=key_file) as farm:
                assert farm.submit(abs, -1).result(DEADLINE) == 1
            with FarmExecutor(address, key=read_key(key_file).secret) as farm:
                assert farm.submit(abs, -1).result(DEADLINE) == 1
        finally:
            process.terminate()


# -- connections that break ---------------------------------------------------------------------------------


class Relay:
    """Hands on what travels between a client and a server, until it is cut."""

    def __init__(self, address):
        self._target = address
        self._pairs = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = []
        self._start(self._accept)

    def _start(self, action, *arguments):
        thread = threading.Thread(target=action, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = dial(self._target)
                far.settimeout(None)
                self._pairs.append((near, far))
                self._start(self._hand_on, near, far)
                self._start(self._hand_on, far, near)

    def _hand_on(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """End all connections of this moment; new ones may be made."""
        for pair in list(self._pairs):
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE)
        for pair in self._pairs:
            for sock in pair:
                sock.close()


@pytest.mark.parametrize("times", [1, 3])
def test_a_connection_that_breaks_is_resumed_encrypted_and_nothing_runs_twice(serving, key_file, tmp_path, times):
    path = str(tmp_path / "effects")
    with (
        Gate() as gate,
        Relay(serving.address) as relay,
        FarmExecutor(relay.address, key_file=key_file, max_workers=1) as farm,
    ):
        before = len(serving.lines("lane resumed"))
        running = farm.submit(tasks.sign_and_pass_gate, path, gate.address)
        queued = [farm.submit(abs, -number) for number in range(100)]
        gate.wait_for_arrivals()
        for number in range(times):
            relay.cut()
            serving.wait_for_line("lane resumed", count=before + number + 1)
        gate.open()
        running.result(DEADLINE)
        assert [future.result(DEADLINE) for future in queued] == list(range(100))
        assert farm.statistics().resubmitted == 0
    assert len((tmp_path / "effects").read_text().split()) == 1


def test_a_task_that_holds_the_gil_while_connections_break_costs_nobody_a_second_run(serving, key_file, tmp_path):
    """Its worker cannot take up another connection, nor TLS on it, before it has ended; the other one can."""
    path = str(tmp_path / "effects")
    with (
        Relay(serving.address) as relay,
        FarmExecutor(relay.address, key_file=key_file, max_workers=2, max_attempts=1) as farm,
    ):
        farm.connect(DEADLINE)
        before = len(serving.lines("session resumed"))
        held = farm.submit(tasks.hold_the_gil, path, 10**8)
        wait_until(lambda: os.path.exists(path), "it has begun")
        others = [farm.submit(tasks.sign, path) for _ in range(20)]
        relay.cut()
        serving.wait_for_line("session resumed", count=before + 1)
        assert held.result(DEADLINE) == 10**8
        for future in others:
            future.result(DEADLINE)
        assert farm.statistics().resubmitted == 0
    assert len((tmp_path / "effects").read_text().split()) == 21


def test_results_on_their_way_survive_connections_that_break_again_and_again(serving, key_file):
    with Relay(serving.address) as relay, FarmExecutor(relay.address, key_file=key_file, max_workers=2) as farm:
        before = len(serving.lines("lane resumed"))
        futures = [farm.submit(bytes, 200_000 + number) for number in range(300)]
        for number in range(3):
            futures[60 * (number + 1)].result(DEADLINE)
            relay.cut()
        assert [len(future.result(DEADLINE)) for future in futures] == [200_000 + number for number in range(300)]
        assert farm.statistics().resubmitted == 0
        serving.wait_for_line("lane resumed", before + 1)


# -- nobody else gets in, and everybody is told what to do --------------------------------------------------


def test_a_plain_client_is_told_to_use_the_key_file(serving, key):
    with pytest.raises(AuthenticationError, match="demands TLS: use the key file"):
        ping(serving.host, serving.port, key=key.secret)
    with FarmExecutor(serving.address, key=KEY) as farm, pytest.raises(AuthenticationError, match="demands TLS"):
        farm.submit(abs, 1).result(DEADLINE)
    serving.wait_for_line("dismissed .*it comes without TLS")


def test_a_plain_server_is_not_spoken_to_and_the_client_says_why(key_file, key):
    with Serving(key=key.secret.hex().encode()) as server:
        with pytest.raises(AuthenticationError, match="does not speak TLS"):
            ping(server.host, server.port, key_file=key_file)
        told = pytest.raises(AuthenticationError, match="does not speak TLS")
        with FarmExecutor(server.address, key_file=key_file) as farm, told:
            farm.submit(abs, 1).result(DEADLINE)


def test_another_key_file_is_a_wrong_key(serving, tmp_path):
    write_key(tmp_path / "other", make_key_file_content())
    with pytest.raises(AuthenticationError, match="refused the key"):
        ping(serving.host, serving.port, key_file=tmp_path / "other")


def test_the_right_secret_with_another_certificate_is_refused(serving, key, tmp_path):
    write_key(tmp_path / "other", make_key_file_content())
    mixed = Key(key.secret, read_key(tmp_path / "other").tls)
    with pytest.raises(AuthenticationError, match="certificate is not trusted"):
        connect(parse_address(serving.address), mixed, {"role": "admin", "command": "ping"}, DEADLINE)
    serving.wait_for_line("dismissed .*does not trust our certificate")


def test_a_server_that_only_knows_the_secret_does_not_pass_for_ours(key_file, key):
    """It relays nothing, and has proven the secret in the clear: but its certificate is another."""
    write_key(key_file.parent / "fake", make_key_file_content())
    fake = read_key(key_file.parent / "fake").tls.server

    def pretend(listener):
        from farm_executor.core.handshake import ServerHandshake

        sock, _ = listener.accept()
        with sock:
            handshake = ServerHandshake({key.secret: {Security.TLS}}, os.urandom(NONCE_SIZE))
            while not handshake.done:
                sock.sendall(handshake.receive_data(sock.recv(handshake.wanted)))
            with contextlib.suppress(Exception):
                TlsSocket(sock, fake, server_side=True).do_handshake(time.monotonic() + DEADLINE)

    with listening() as (listener, address):
        thread = threading.Thread(target=pretend, args=(listener,))
        thread.start()
        with pytest.raises(AuthenticationError, match="certificate is not trusted"):
            connect(parse_address(address), key, {"role": "admin", "command": "ping"}, DEADLINE)
        thread.join(DEADLINE)


def prove(sock, key, security):
    handshake = ClientHandshake(key.secret, os.urandom(NONCE_SIZE), security)
    sock.sendall(handshake.start())
    while not handshake.done:
        sock.sendall(handshake.receive_data(sock.recv(handshake.wanted)))
    return handshake.secret


@pytest.mark.parametrize(
    "said",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 48, b"\xff" * 10_000],
    ids=["tls", "http", "zeros", "ones"],
)
def test_strangers_are_dismissed_without_a_word(serving, said, key_file):
    with dial(serving.address) as stranger:
        with contextlib.suppress(ConnectionError):
            stranger.sendall(said)
        assert read_to_end(stranger) == b""
    assert ping(serving.host, serving.port, key_file=key_file)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 500, b"x" * 100_000], ids=["http", "zeros", "x"]
)
def test_who_holds_the_key_and_speaks_no_tls_is_dismissed(serving, said, key, key_file):
    with dial(serving.address) as peer:
        prove(peer, key, Security.TLS)
        with contextlib.suppress(ConnectionError):
            peer.sendall(said)
        read_to_end(peer)
    serving.wait_for_line("dismissed .*does not speak TLS")
    assert ping(serving.host, serving.port, key_file=key_file)


def test_who_stops_in_the_midst_of_tls_is_dismissed_in_time_and_keeps_nobody_waiting(key, key_file):
    shorter = "import farm_executor.server.door as s; s.GUEST_SECONDS = 0.5"
    with Serving(before=shorter, key=key_file.read_bytes()) as server, dial(server.address) as silent:
        prove(silent, key, Security.TLS)
        silent.sendall(b"\x16\x03\x01")
        assert ping(server.host, server.port, key_file=key_file)
        assert read_to_end(silent) == b""
        server.wait_for_line("dismissed .*it said nothing in time")


def test_a_lane_whose_client_stops_before_tls_ends_its_worker_in_time(key, key_file):
    shorter = "import farm_executor.server.worker as w; w.SECURE_SECONDS = 0.2"
    with Serving(before=shorter, key=key_file.read_bytes()) as server:
        with SessionPeer(server.address, key=key) as session, dial(server.address) as silent:
            from farm_executor.core.handshake import encode_hello

            sealed = SealedSocket(silent, prove(silent, key, Security.TLS_LANE), server_side=False)
            hello = {"role": "lane", "session": session.id, "slot": 0, "lane": 1}
            sealed.sendall(b"".join(encode_hello(hello)))
            assert session.wait_for_death()["lane"] == 1
        server.wait_for_line("worker [0-9]+ ends: ")


def test_a_lane_whose_client_is_gone_before_tls_ends_its_worker_without_a_word(key, key_file):
    """As at the end of a program whose servers write to the same terminal."""
    with Serving(key=key_file.read_bytes()) as server:
        with SessionPeer(server.address, key=key) as session:
            with dial(server.address) as gone:
                from farm_executor.core.handshake import encode_hello

                sealed = SealedSocket(gone, prove(gone, key, Security.TLS_LANE), server_side=False)
                hello = {"role": "lane", "session": session.id, "slot": 0, "lane": 1}
                sealed.sendall(b"".join(encode_hello(hello)))
            assert session.wait_for_death()["lane"] == 1
        assert not server.lines("worker [0-9]+ ends")


@pytest.mark.parametrize(("security", "role"), [(Security.TLS_LANE, "admin"), (Security.TLS, "lane")])
def test_tls_begins_where_the_role_says_and_nowhere_else(serving, key, security, role, monkeypatch):
    from farm_executor.wire import dialling

    wrong = type("Wrong", (), {"LANE": "admin" if role == "admin" else "no such role", "BACK": Role.BACK})
    monkeypatch.setattr(dialling, "Role", wrong)
    hello = to_json(LaneHello("session", 1) if role == "lane" else AdminHello("ping"))
    said = "dismissed .*TLS begins at another place for this role"
    before = len(serving.lines(said))
    with pytest.raises((OSError, EOFError)):
        connect(parse_address(serving.address), key, hello, DEADLINE)
    serving.wait_for_line(said, before + 1)


def test_a_session_and_its_lanes_by_hand(serving, key):
    with SessionPeer(serving.address, key=key) as session:
        lane = session.open_lane()
        assert isinstance(lane, LanePeer)
        lane.start()
        lane.teach(1, abs)
        lane.submit(0, (1, -7))
        assert lane.outcomes(1) == {0: 7}
        lane.close()
        assert session.wait_for_death()["code"] == 0
        session.send_frame(FrameType.BYE)


# -- several keys -------------------------------------------------------------------------------------------


def test_a_server_with_several_keys_takes_each_and_no_other(key_file, plain_file, tmp_path):
    write_key(tmp_path / "new", make_key_file_content())
    write_key(tmp_path / "neither", make_key_file_content())
    files = [tmp_path / "new", key_file, plain_file]
    with start_server("127.0.0.1", 0, background=True, workers=1, key_file=files) as server:
        for file in files:
            with FarmExecutor(server.address, key_file=file) as farm:
                assert farm.submit(abs, -3).result(DEADLINE) == 3
        with pytest.raises(AuthenticationError, match="refused the key"):
            ping(*place(server), key_file=tmp_path / "neither")
        with pytest.raises(AuthenticationError, match="demands TLS"):
            ping(*place(server), key=read_key(key_file).secret)


def test_what_runs_in_workers_has_the_first_key(key_file, tmp_path):
    write_key(tmp_path / "new", make_key_file_content())
    with Serving("--key-file", str(key_file), key=(tmp_path / "new").read_bytes()) as server:
        for file in (tmp_path / "new", key_file):
            with FarmExecutor(server.address, key_file=file, max_workers=1) as farm:
                assert farm.submit(nested, server.address).result(DEADLINE) == 5


def test_a_key_changes_under_a_running_client_and_nothing_is_lost(key_file, tmp_path, monkeypatch):
    """As in the guide: servers take both, clients get the new one, servers forget the old one."""
    old, new, mine = key_file.read_bytes(), make_key_file_content(), tmp_path / "mine"
    write_key(tmp_path / "old", old)
    write_key(tmp_path / "new", new)
    write_key(mine, old)
    with contextlib.ExitStack() as stack:
        with listening() as (_, address):
            pass
        first = stack.enter_context(start(address, tmp_path / "old"))
        farm = stack.enter_context(FarmExecutor(address, key_file=mine, max_attempts=10))
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        first.end()
        second = stack.enter_context(start(address, [tmp_path / "new", tmp_path / "old"]))
        assert farm.submit(abs, -2).result(DEADLINE) == 2
        write_key(tmp_path / "copy", new)
        os.replace(tmp_path / "copy", mine)
        second.end()
        stack.enter_context(start(address, tmp_path / "new"))
        assert farm.submit(abs, -3).result(DEADLINE) == 3


def start(address, key_file):
    host, _, port = address.rpartition(":")
    return start_server(host, int(port), background=True, workers=1, key_file=key_file)


def test_no_key_file_at_all_is_refused():
    with pytest.raises(AuthenticationError, match="no key file is named"):
        start_server("127.0.0.1", 0, background=True, key_file=[])


# -- certificates of one's own ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder, "our ca")


def trusting(authority, certificate=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.path)
    if certificate:
        context.load_cert_chain(certificate)
    return context


def test_a_certificate_and_a_context_of_the_users_own(authority, plain_file):
    certificate = authority.issue("server")
    context = trusting(authority)
    options = {"key_file": plain_file, "ssl_context": context}
    with start_server(
        "127.0.0.1", 0, background=True, workers=2, key_file=plain_file, certificate=certificate
    ) as server:
        with FarmExecutor(server.address, **options) as farm:
            assert list(farm.map(abs, range(-100, 0))) == list(range(100, 0, -1))
        assert ping(*place(server), **options)
        assert status(*place(server), **options)["slots"] == 2
        with pytest.raises(AuthenticationError, match="demands TLS: .* or an ssl_context"):
            ping(*place(server), key_file=plain_file)
        with pytest.raises(AuthenticationError, match="certificate is not trusted"):
            ping(*place(server), key_file=plain_file, ssl_context=ssl.create_default_context())
        with pytest.raises(AuthenticationError, match="refused the key"):
            ping(*place(server), key=b"another key, 16 bytes", ssl_context=context)
        end_server(*place(server), **options)
        assert server.wait(DEADLINE)


def test_clients_may_be_asked_for_certificates_too(authority, plain_file, tmp_path):
    certificate = authority.issue("server")
    arguments = ["--certificate", str(certificate), "--client-ca", str(authority.path)]
    with Serving(*arguments) as server:
        with FarmExecutor(server.address, key=KEY, ssl_context=trusting(authority, certificate)) as farm:
            assert farm.submit(abs, -3).result(DEADLINE) == 3
        with pytest.raises(AuthenticationError, match="does not trust our certificate"):
            ping(server.host, server.port, key=KEY, ssl_context=trusting(authority))


@pytest.mark.parametrize("option", ["private_key", "client_ca"])
def test_files_that_go_with_a_certificate_need_one(authority, plain_file, option):
    with pytest.raises(AuthenticationError, match="needs a certificate"):
        start_server("127.0.0.1", 0, background=True, key_file=plain_file, **{option: authority.path})


def test_a_context_does_not_travel_and_says_so(authority):
    farm = FarmExecutor("127.0.0.1:1", key=KEY, ssl_context=trusting(authority))
    with pytest.raises(TypeError, match="with a context made there"):
        pickle.dumps(farm)
    with pytest.raises(TypeError, match="must be an ssl.SSLContext"):
        FarmExecutor("127.0.0.1:1", ssl_context="context")


# -- somebody in between ------------------------------------------------------------------------------------


def test_who_relays_the_proofs_in_the_clear_cannot_go_on_with_tls_of_his_own(authority, plain_file):
    """The server asks clients for no certificate, so anybody may speak TLS with it; but not the proof within."""
    certificate = authority.issue("server")
    with (
        start_server(
            "127.0.0.1", 0, background=True, workers=1, key_file=plain_file, certificate=certificate
        ) as server,
        listening() as (listener, address),
    ):
        found = []

        def attack():
            near, _ = listener.accept()
            with near, dial(server.address) as far:
                for end, other, size in ((near, far, 48), (far, near, 48), (near, far, 32), (far, near, 33)):
                    other.sendall(end.recv(size, socket.MSG_WAITALL))
                blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
                tls = TlsSocket(far, blind, server_side=False)
                tls.do_handshake(time.monotonic() + DEADLINE)
                guess = ClientHandshake(b"he knows no secret", os.urandom(NONCE_SIZE), Security.WITHIN_TLS)
                tls.sendall(guess.start())
                tls.sendall(guess.receive_data(tls.recv(48)))
                found.append(tls.recv(33))

        thread = threading.Thread(target=attack)
        thread.start()
        with pytest.raises((OSError, EOFError)):
            victim = Key(KEY, own_context(trusting(authority)))
            connect(parse_address(address), victim, {"role": "admin", "command": "ping"}, DEADLINE)
        thread.join(DEADLINE)
    assert found == [bytes(33)]


def test_the_security_cannot_be_lowered_by_who_is_in_between(serving, key):
    """He changes either preamble's security byte to plain: the client refuses, or the proof fails."""

    def meddle(listener, change):
        near, _ = listener.accept()
        with near, dial(serving.address) as far, contextlib.suppress(OSError):
            for end, other, size in ((near, far, 48), (far, near, 48), (near, far, 32), (far, near, 33)):
                data = bytearray(end.recv(size, socket.MSG_WAITALL))
                if len(data) < size:
                    break
                if size == 48 and end is (near if change == "client" else far):
                    data[6] = Security.PLAIN
                other.sendall(data)

    for change in ("client", "server"):
        with listening() as (listener, address):
            thread = threading.Thread(target=meddle, args=(listener, change))
            thread.start()
            with pytest.raises((AuthenticationError, EOFError, OSError)):
                connect(parse_address(address), key, {"role": "admin", "command": "ping"}, DEADLINE)
            thread.join(DEADLINE)


# -- it is never seen ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kind", ["background", "command line"])
def test_secrets_are_on_no_command_line_in_no_environment_and_in_no_log(kind, key_file, key, caplog):
    caplog.set_level(logging.DEBUG)
    private = key_file.read_text().partition("-----BEGIN PRIVATE KEY-----\n")[2].split("\n")[0]
    secret_text = key_file.read_text().partition("EXECUTOR SECRET-----\n")[2].split("\n")[0]
    seen = []
    with contextlib.ExitStack() as stack:
        if kind == "background":
            server = stack.enter_context(
                start_server("127.0.0.1", 0, background=True, workers=1, key_file=key_file)
            )
            seen += [repr(server), str(vars(server))]
        else:
            server = stack.enter_context(Serving("-v", workers=1, key=key_file.read_bytes()))
        farm = stack.enter_context(FarmExecutor(server.address, key_file=key_file))
        worker = farm.submit(tasks.pid).result(DEADLINE)
        with dial(server.address) as stranger:
            prove_key_wrongly(stranger)
        for pid in {server.pid, worker, *children(server.pid)}:
            seen += [command_line(pid).decode(), environment(pid).decode()]
        seen += [str(farm.submit(tasks.own_environment).result(DEADLINE)), repr(farm), str(farm.statistics())]
        seen += [repr(farm._engine._options), str(status(*place(server), key_file=key_file)), repr(key)]
        if kind == "command line":
            seen.append(server.log)
    seen.append(caplog.text)
    everything = "\n".join(seen)
    assert len(everything) > 1000
    for form in (key.secret.hex(), secret_text, private, repr(key.secret)):
        assert form not in everything


def prove_key_wrongly(sock):
    with contextlib.suppress(AuthenticationError, EOFError):
        prove_key(sock, b"a stranger's guess")

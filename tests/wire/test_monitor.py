"""A monitor's key lets its holder look, and do nothing else; and those who watch cost a server next to nothing."""

import json
import os
import re
import secrets
import selectors
import socket
import stat
import subprocess
import sys

import pytest
from server.peers import Peer, SessionPeer
from server.processes import DEADLINE, children, descriptors, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, cli
from farm_executor.admin import Watch, ask
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.secret import is_random, monitor_secret
from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.server.admin import MAX_WATCHERS
from farm_executor.wire.address import parse_address
from farm_executor.wire.connection import Connection, no_segment
from farm_executor.wire.dialling import RefusedError, connect
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.security import Key, monitor_content, monitors_of, read_key, server_keys, write_key
from farm_executor.wire.versions import local_versions

pytestmark = pytest.mark.usefixtures("no_leaks")
COMMAND = [sys.executable, "-m", "farm_executor"]
PING = {"role": "admin", "command": "ping"}
WAYS = ("plain", "tls", "unix")


class Place:
    """A server, and the keys of those who run code on it and of those who look."""

    def __init__(self, way, folder):
        content = make_key_file_content() if way == "tls" else secrets.token_hex(32).encode()
        self.key_file, self.monitor_file = folder / "key", folder / "monitor"
        write_key(self.key_file, content)
        write_key(self.monitor_file, monitor_content(self.key_file))
        at = f"unix:{folder}/socket" if way == "unix" else "127.0.0.1:0"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "farm_executor",
                "serve",
                at,
                "--workers",
                "1",
                "--key-file",
                str(self.key_file),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = parse_address(self.process.stdout.readline().split(",")[0].removeprefix("serving on "))

    def close(self):
        self.process.terminate()
        self.process.wait(DEADLINE)
        self.process.stdout.close()


@pytest.fixture(scope="module", params=WAYS)
def place(request, tmp_path_factory):
    place = Place(request.param, tmp_path_factory.mktemp("place"))
    yield place
    place.close()


# -- who can do what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ping", "status"])
def test_a_monitor_may_ask(place, command):
    answer = ask(place.address, command, DEADLINE, key_file=place.monitor_file)
    assert answer == {} or answer["pid"] == place.process.pid


@pytest.mark.parametrize(
    "hello",
    [
        {"role": "admin", "command": "end"},
        {"role": "admin", "command": "no such command"},
        {"role": "control", "versions": local_versions()._asdict()},
        {"role": "control", "versions": local_versions()._asdict(), "resume": "some session"},
        {"role": "lane", "session": "some session", "lane": 1, "slot": 0},
        {"role": "lane", "session": "some session", "lane": 1, "resume": True},
    ],
    ids=lambda hello: " ".join(map(str, list(hello.values())[:2]))[:12],
)
def test_a_monitor_may_do_nothing_else(place, hello):
    with pytest.raises(AuthenticationError, match="may only look"):
        connection, _ = connect(place.address, read_key(place.monitor_file), hello, DEADLINE)
        connection.close()
    assert ask(place.address, "status", DEADLINE, key_file=place.key_file)["draining"] is False


def test_an_executor_with_a_monitors_key_is_refused_for_good(place):
    with FarmExecutor(str(place.address), key_file=place.monitor_file) as farm:
        future = farm.submit(abs, 1)
        with pytest.raises(AuthenticationError, match="may only look: it is a monitor's; name the farm's own key"):
            future.result(DEADLINE)


def test_a_monitor_watches(place):
    watch = Watch(place.address, read_key(place.monitor_file), DEADLINE)
    try:
        for _ in range(3):
            status = next_answer(watch)
            assert status.pid == place.process.pid
            assert status.slots == 1
    finally:
        watch.close()


def next_answer(watch):
    with selectors.DefaultSelector() as selector:
        selector.register(watch, selectors.EVENT_READ)
        watch.ask()
        while True:
            assert selector.select(DEADLINE)
            if (status := watch.take()) is not None:
                return status


def test_the_other_key_of_the_same_file_still_works(place):
    with FarmExecutor(str(place.address), key_file=place.key_file) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_no_monitors():
    key = secrets.token_hex(32).encode()
    monitor = Key(monitor_secret(key), read_only=True)
    with Serving("--no-monitors", key=key) as serving, pytest.raises(AuthenticationError, match="refused the key"):
        connect(parse_address(serving.address), monitor, PING, DEADLINE)
    with Serving(key=key) as serving:
        connect(parse_address(serving.address), monitor, PING, DEADLINE)[0].close()


# -- key files -----------------------------------------------------------------------------------------


def test_a_monitors_file_has_the_certificate_and_no_private_key(tmp_path):
    write_key(tmp_path / "key", make_key_file_content())
    content = monitor_content(tmp_path / "key")
    assert b"-----BEGIN CERTIFICATE-----" in content
    assert b"PRIVATE KEY" not in content
    assert b"EXECUTOR SECRET" not in content
    assert read_key(tmp_path / "key").secret not in content
    write_key(tmp_path / "monitor", content)
    key = read_key(tmp_path / "monitor")
    assert key.read_only
    assert key.tls.server is None
    assert key.secret == monitor_secret(read_key(tmp_path / "key").secret)


@pytest.mark.parametrize("secret", [KEY, b"correct horse battery staple", b"a" * 32 + b"bcdefg" * 5 + b"zz"])
def test_from_a_key_that_a_human_has_made_none_is_derived(tmp_path, secret):
    assert not is_random(secret)
    write_key(tmp_path / "key", secret)
    with pytest.raises(AuthenticationError, match="was not made by the computer"):
        monitor_content(tmp_path / "key")
    assert monitors_of([Key(secret)]) == []
    with Serving(key=secret) as serving, pytest.raises(AuthenticationError, match="refused the key"):
        monitor = Key(monitor_secret(secret))
        connect(parse_address(serving.address), monitor, PING, DEADLINE)


def test_a_monitors_key_has_no_monitors_of_its_own(tmp_path):
    write_key(tmp_path / "key", secrets.token_hex(32).encode())
    write_key(tmp_path / "monitor", monitor_content(tmp_path / "key"))
    with pytest.raises(AuthenticationError, match="is a monitor's key file already"):
        monitor_content(tmp_path / "monitor")
    assert monitors_of([read_key(tmp_path / "monitor")]) == []


def test_a_server_does_not_start_with_a_monitors_key(tmp_path):
    write_key(tmp_path / "key", secrets.token_hex(32).encode())
    write_key(tmp_path / "monitor", monitor_content(tmp_path / "key"))
    with pytest.raises(AuthenticationError, match="needs a full key"):
        server_keys(None, tmp_path / "monitor")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda content: content.replace(b"END FARM", b"END NO FARM"), "holds no block FARM EXECUTOR MONITOR"),
        (
            lambda content: content + b"\n-----BEGIN PRIVATE KEY-----\n",
            "must not hold what belongs",
        ),
        (
            lambda content: content.replace(b"\nN", b"\n?").replace(b"\nY", b"\n?"),
            "is not base64|holds|certificate",
        ),
        (
            lambda content: content.replace(b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----\n?"),
            "cert",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, spoil, why):
    write_key(tmp_path / "key", make_key_file_content())
    content = spoil(monitor_content(tmp_path / "key"))
    write_key(tmp_path / "monitor", content)
    try:
        read_key(tmp_path / "monitor")
    except AuthenticationError as error:
        assert re.search(why, str(error)), error
    else:
        assert content == monitor_content(tmp_path / "key"), "what was not spoilt"


def test_the_command_prints_it_and_keeps_it_from_others(tmp_path):
    write_key(tmp_path / "key", make_key_file_content())
    command = [sys.executable, "-m", "farm_executor", "keygen", "--monitor", str(tmp_path / "key")]
    with open(tmp_path / "monitor", "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        subprocess.run(command, check=True, stdout=file, timeout=DEADLINE)
    assert stat.S_IMODE((tmp_path / "monitor").stat().st_mode) == 0o600
    assert read_key(tmp_path / "monitor").read_only


def test_the_command_refuses_a_weak_key(tmp_path, capsys):
    write_key(tmp_path / "key", KEY)
    assert cli.main(["keygen", "--monitor", str(tmp_path / "key")]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "was not made by the computer" in said.err


def test_neither_key_is_in_a_log_or_a_repr(tmp_path):
    write_key(tmp_path / "key", secrets.token_hex(32).encode())
    write_key(tmp_path / "monitor", monitor_content(tmp_path / "key"))
    keys = [read_key(tmp_path / "key"), read_key(tmp_path / "monitor")]
    with Serving(key=keys[0].secret) as serving:
        with pytest.raises(AuthenticationError):
            connect(parse_address(serving.address), keys[1], {"role": "admin", "command": "end"}, DEADLINE)
        serving.wait_for_line("code=read-only")
        for key in keys:
            assert bytes(key.secret).decode() not in serving.log + repr(key) + str(key.secret)


# -- those who watch -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serving():
    with Serving(workers=1) as serving:
        yield serving


def watcher(serving):
    connection, _ = connect(
        parse_address(serving.address), Key(KEY), {"role": "admin", "command": "watch"}, DEADLINE
    )
    return Peer(connection)


def test_a_watcher_gets_an_answer_to_each_question_with_its_number(serving):
    with watcher(serving) as peer:
        for seq in (7, 8):
            peer.connection.socket.settimeout(DEADLINE)
            peer.send_frame(FrameType.PING, seq=seq)
            frame = peer.receive()
            assert (frame.type, frame.seq) == (FrameType.PONG, seq)
            assert json.loads(bytes(frame.body))["pid"] == serving.pid


@pytest.mark.parametrize(
    "said",
    [
        *(encode_frame(FrameType.KILL), encode_frame(FrameType.BYE), encode_frame(FrameType.HELLO, body=b"{}")),
        [b"\xff" * 64],
        [b"GET / HTTP/1.1\r\n\r\n" * 10],
    ],
    ids=["kill", "bye", "hello", "junk", "http"],
)
def test_a_watcher_that_says_anything_else_is_hung_up_on(serving, said):
    with watcher(serving) as peer, watcher(serving) as other:
        peer.send(*(said if isinstance(said, list) else [said]))
        peer.wait_for_end()
        other.send_frame(FrameType.PING, seq=1)
        assert other.receive().type is FrameType.PONG


def test_a_watcher_that_does_not_read_is_told_nothing_more_and_costs_no_other(serving):
    with watcher(serving) as deaf, watcher(serving) as other:
        pings = b"".join(bytes(part) for part in encode_frame(FrameType.PING, seq=1)) * 1000
        deaf.connection.socket.settimeout(0.2)
        try:
            for _ in range(100):
                deaf.connection.socket.sendall(pings)
        except TimeoutError:
            pass  # the server reads on; its answers are what it does not pile up
        other.send_frame(FrameType.PING, seq=1)
        assert other.receive().type is FrameType.PONG


def test_so_many_may_watch_and_no_more(serving):
    peers = [watcher(serving) for _ in range(MAX_WATCHERS)]
    try:
        with pytest.raises(RefusedError, match="watch this server already"):
            watcher(serving)
        with SessionPeer(serving.address):
            pass
    finally:
        for peer in peers:
            peer.close()
    wait_until(lambda: can_watch(serving), "there is room again")


def can_watch(serving):
    try:
        watcher(serving).close()
    except RefusedError:
        return False
    return True


def test_watchers_leave_no_descriptor_behind_and_workers_have_none_of_theirs(serving):
    wait_until(lambda: can_watch(serving), "there is room")
    with FarmExecutor(serving.address, key=KEY) as farm:
        farm.submit(abs, 1).result(DEADLINE)  # what the server opens once, for good, is open now
    wait_until(lambda: not children(serving.pid), "no worker")
    before = descriptors(serving.pid)
    with watcher(serving), FarmExecutor(serving.address, key=KEY) as farm:
        of_watcher = {each.partition("=")[2] for each in descriptors(serving.pid) - before}
        pid = farm.submit(os.getpid).result(DEADLINE)
        assert not of_watcher & {each.partition("=")[2] for each in descriptors(pid)}
    wait_until(lambda: descriptors(serving.pid) <= before, "no descriptor more than before")


def test_a_server_that_ends_does_not_wait_for_those_who_watch():
    with Serving() as serving, watcher(serving) as peer:
        ask(parse_address(serving.address), "end", DEADLINE, key=KEY)
        peer.wait_for_end()
        assert serving.wait() == 0


class Fake:
    """A server that says what it likes to one who watches."""

    def __init__(self, *buffers):
        here, self.there = socket.socketpair()
        self.there.sendall(b"".join(map(bytes, buffers)))
        here.setblocking(False)
        self.watch = Watch.__new__(Watch)
        self.watch._connection = Connection(here, 4 * 1024 * 1024, no_segment)
        self.watch._known = None

    def __enter__(self):
        return self.watch

    def __exit__(self, *error):
        self.there.close()
        self.watch.close()


@pytest.mark.parametrize(
    "buffers",
    [
        encode_frame(FrameType.PONG, body=b"{}"),
        encode_frame(FrameType.PONG, body=b"x"),
        encode_frame(FrameType.PONG, body=b"[" * 3_000),
        encode_frame(FrameType.PONG, body=b'{"farm_status": "2"}'),
        encode_frame(FrameType.DRAINING, body=b"{}"),
    ],
)
def test_a_server_that_answers_nonsense_is_an_error(buffers):
    with Fake(*(buffers if isinstance(buffers, list) else [buffers])) as watch, pytest.raises(RemoteProtocolError):
        watch.take()

"""The supervisor: who gets in, who gets which worker, who hears of its end, and what is left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from contract.gate import Gate
from contract.tasks import pass_gate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server import tasks
from server.peers import Peer, SessionPeer, dial, prove_key, read_to_end
from server.processes import DEADLINE, alive, children, descriptors, exists, resident_bytes, wait_until
from server.serving import KEY, Serving
from strategies import json_objects, json_values

from farm_executor import FarmExecutor, end_server, ping, start_server, status
from farm_executor.core.frames import BULK, HEADER_SIZE, MAX_HELLO, FrameType, encode_frame
from farm_executor.core.handshake import ClientHandshake, Security, decode_hello, encode_hello
from farm_executor.errors import AuthenticationError, VersionMismatchError
from farm_executor.server import door
from farm_executor.wire.address import parse_address
from farm_executor.wire.dialling import connect
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.versions import local_versions

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


def farm(server: Serving, **options: object) -> FarmExecutor:
    return FarmExecutor(server.address, **{"key": KEY, **options})  # type: ignore[arg-type]


def serves(server: Serving) -> bool:
    """Whether a real client gets its work done there now."""
    with farm(server, max_workers=1, connect_timeout=DEADLINE) as executor:
        return executor.submit(abs, -7).result() == 7


@contextlib.contextmanager
def many_dials(server: Serving, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(dial(server.address)) for _ in range(count)]


def quiet(server: Serving) -> bool:
    """Whether the server has no worker and, on its side, no connection."""
    return not children(server.pid) and not status(server.host, server.port, key=KEY)["sessions"]


# -- several clients ----------------------------------------------------------------------------------------


def test_clients_have_workers_of_their_own_and_share_no_globals(serving):
    with farm(serving) as one, farm(serving) as other:
        mine = {one.submit(tasks.set_state, "one's").result() for _ in range(20)}
        others = {other.submit(tasks.get_state).result() for _ in range(20)}
        other_pids = {other.submit(tasks.pid).result() for _ in range(20)}
        assert others == {"never set"}
        assert not mine & other_pids


def test_clients_are_served_at_once_and_not_one_after_the_other(serving):
    with Gate() as gate, farm(serving) as one, farm(serving) as other:
        held = [one.submit(pass_gate, gate.address, number) for number in range(4)]
        gate.wait_for_arrivals(2)
        assert [other.submit(abs, -number).result(DEADLINE) for number in range(20)] == list(range(20))
        assert not any(future.done() for future in held)
        gate.open()
        assert [future.result(DEADLINE) for future in held] == [0, 1, 2, 3]


def test_one_client_s_crashes_are_no_other_client_s(serving):
    with farm(serving, max_attempts=2) as one, farm(serving) as other:
        pids = {other.submit(tasks.pid).result() for _ in range(20)}
        with pytest.raises(Exception, match="exited with code 7"):
            one.submit(tasks.die, "exit").result(DEADLINE)
        assert {other.submit(tasks.pid).result() for _ in range(20)} <= pids | children(serving.pid)
        assert all(alive(pid) for pid in pids)


def test_each_session_has_as_many_workers_as_there_are_slots_and_the_client_wants(serving):
    with farm(serving) as all_slots, farm(serving, max_workers=1) as one_slot:
        all_slots.submit(abs, 1).result()
        one_slot.submit(abs, 1).result()

        def counts() -> list[int]:
            sessions = status(serving.host, serving.port, key=KEY)["sessions"]
            return sorted(session["workers"] for session in sessions)

        wait_until(lambda: counts() == [1, 2], "one client with one worker, one with two")


# -- status -------------------------------------------------------------------------------------------------


def test_status_tells_of_the_server_its_clients_and_their_workers():
    with Serving("--name", "the big one", workers=1) as server, farm(server) as executor:
        worker = executor.submit(tasks.pid).result()
        data = status(server.host, server.port, key=KEY)
        assert json.loads(json.dumps(data)) == data
        assert data["address"] == server.address
        assert data["name"] == "the big one"
        assert data["pid"] == server.pid
        assert data["slots"] == 1
        assert data["draining"] is False
        assert data["seconds"] > 0
        assert data["versions"]["python"].endswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
        (session,) = data["sessions"]
        assert f"pid {os.getpid()}" in session["client"]
        assert session["workers"] == 1
        (row,) = data["workers"]["rows"]
        shown = dict(zip(data["workers"]["columns"], row))
        assert shown["session"] == session["id"]
        assert shown["pid"] == worker
        assert shown["slot"] == 0
        assert shown["up"] >= 0


def test_status_works_however_many_clients_there_are_and_says_how_many_it_leaves_out():
    with Serving() as server, contextlib.ExitStack() as stack:
        stack.enter_context(SessionPeer(server.address, client="x" * 60_000))
        for number in range(600):
            stack.enter_context(SessionPeer(server.address, client=f"client number {number} of very many"))
        data = status(server.host, server.port, key=KEY)
        assert data["sessions"]
        assert len(data["sessions"]) + data["sessions_left_out"] == 601
        assert serves(server)


# -- the end of a session -----------------------------------------------------------------------------------


def test_a_session_leaves_no_worker_no_zombie_and_no_descriptor_behind(serving):
    wait_until(lambda: quiet(serving), "a quiet server")
    before = descriptors(serving.pid)
    for _ in range(3):
        with farm(serving) as executor:
            pids = {executor.submit(tasks.pid).result() for _ in range(10)}
    wait_until(lambda: not any(exists(pid) for pid in pids), "no trace of the workers")
    wait_until(lambda: quiet(serving), "a quiet server")
    wait_until(lambda: len(descriptors(serving.pid)) <= len(before), "no more descriptors than before")


def test_a_worker_that_holds_on_after_its_client_has_gone_is_killed(serving):
    with Gate() as gate:
        session = SessionPeer(serving.address)
        lane = session.open_lane()
        lane.start()
        lane.teach(1, tasks.ignore_everything_and_pass_gate)
        lane.submit(0, (1, gate.address))
        gate.wait_for_arrivals()
        os.kill(lane.pid, signal.SIGSTOP)  # deaf, as a task in C code that holds the interpreter
        session.close()
        wait_until(lambda: not exists(lane.pid), "the worker is gone")


CLIENT = """
import sys, tempfile
from farm_executor import FarmExecutor
from server import tasks
folder, gate, arguments = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3])
tempfile.tempdir = folder
farm = FarmExecutor(max_workers=2, **arguments)
futures = [farm.submit(tasks.sign_and_pass_gate, folder + "/pids", gate) for _ in range(2)]
for future in futures:
    future.result()
"""


@contextlib.contextmanager
def running_client(
    folder: Path, gate: Gate, **arguments: Any
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A program of its own with a farm whose two workers are at the gate; and their pids."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", CLIENT, str(folder), repr(gate.address), repr(arguments)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as client:
        try:
            gate.wait_for_arrivals(2)
            yield client, list(map(int, (folder / "pids").read_text().split()))
        finally:
            client.kill()


def test_a_client_that_is_killed_takes_its_workers_along_within_two_seconds(serving, tmp_path):
    with (
        Gate() as gate,
        running_client(tmp_path, gate, addresses=serving.address, key=KEY, resume_timeout=0.2) as (client, workers),
    ):
        assert set(workers) <= children(serving.pid)
        client.kill()
        wait_until(lambda: not any(map(alive, workers)), "the workers have ended", seconds=2)
    wait_until(lambda: not any(map(exists, workers)), "the server has reaped them")
    assert serves(serving)


def test_a_client_that_is_killed_takes_its_embedded_farm_along_within_two_seconds(tmp_path):
    with Gate() as gate, running_client(tmp_path, gate) as (client, workers):
        (farm_pid,) = children(client.pid)
        assert set(workers) <= children(farm_pid)
        assert len(os.listdir(tmp_path)) == 2
        client.kill()
        wait_until(lambda: not any(map(alive, [*workers, farm_pid])), "all have ended", seconds=2)
        wait_until(lambda: os.listdir(tmp_path) == ["pids"], "no temporary files are left", seconds=2)


# -- worker deaths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "code"), [("exit", 7), ("segfault", -signal.SIGSEGV), ("kill", -signal.SIGKILL)])
def test_the_client_is_told_which_worker_died_of_what_and_what_it_had_begun(serving, how, code):
    with SessionPeer(serving.address) as session:
        lane = session.open_lane(lane=41)
        lane.start()
        lane.teach(1, tasks.pid)
        lane.teach(2, tasks.die)
        lane.submit(0, (1,))
        assert lane.outcomes(1) == {0: lane.pid}
        lane.submit(1, (2, how), (1,))
        report = session.wait_for_death()
        assert {"lane": 41, "slot": 0, "pid": lane.pid, "code": code, "begun": 1}.items() <= report.items()
        assert not {"killed", "held", "limit"} & report.keys()
        lane.wait_for_end()
        wait_until(lambda: not exists(lane.pid), "the worker has been reaped")


def kill(session, lane=1, first=0, ranges=((0, 0),), recalls=0):
    order = {"order": 5, "lane": lane, "first": first, "recalls": recalls, "ranges": ranges}
    session.send(*encode_hello(order, FrameType.KILL))


def spared(session):
    frame = session.receive()
    assert frame.type is FrameType.SPARED, frame
    return decode_hello(frame)


def test_a_worker_is_killed_for_the_task_that_it_runs(serving):
    with SessionPeer(serving.address) as session, Gate() as gate:
        lane = session.open_lane()
        lane.start()
        lane.teach(1, tasks.ignore_everything_and_pass_gate)
        lane.teach(2, tasks.pid)
        lane.submit(0, (2,), (1, gate.address), (2,))
        assert lane.outcomes(1) == {0: lane.pid}
        gate.wait_for_arrivals()
        kill(session, first=0, ranges=[(0, 0), (2, 5)])
        assert spared(session) == {"order": 5, "lane": 1, "recalls": 0}, (
            "it runs neither what it has ended nor what it has not begun"
        )
        kill(session, first=0, ranges=[(0, 0), (1, 5)])
        report = session.wait_for_death()
        assert (report["lane"], report["pid"], report["code"]) == (1, lane.pid, -signal.SIGKILL)
        assert (report["begun"], report["killed"]) == (1, 1)
        assert "oom" not in report
        lane.wait_for_end()


def test_a_worker_is_spared_when_numbers_have_come_to_mean_other_tasks(serving):
    with SessionPeer(serving.address) as session, Gate() as gate:
        lane = session.open_lane()
        lane.start()
        lane.teach(1, tasks.ignore_everything_and_pass_gate)
        lane.submit(0, (1, gate.address), (1, gate.address))
        gate.wait_for_arrivals()
        lane.recall(1)
        assert lane.receive().type is FrameType.RECALLED
        kill(session, first=0, ranges=[(0, 0)], recalls=0)
        assert spared(session) == {"order": 5, "lane": 1, "recalls": 1}
        kill(session, first=0, ranges=[(0, 0)], recalls=1)
        assert session.wait_for_death()["killed"] == 0


def test_a_worker_that_is_about_to_begin_a_task_is_killed_for_it(serving):
    """Its client knows that it has ended all before."""
    with SessionPeer(serving.address) as session:
        lane = session.open_lane()
        lane.start()
        kill(session, first=1, ranges=[(1, 1)])
        assert session.wait_for_death()["killed"] == 1


def test_a_spared_worker_that_was_stopped_for_a_look_goes_on(serving):
    with SessionPeer(serving.address) as session:
        lane = session.open_lane()
        lane.start()
        lane.teach(1, tasks.pid)
        for seq in range(200):
            lane.submit(seq, (1,))
            kill(session, first=seq, ranges=[(seq + 1, seq + 1)])
            assert spared(session) == {"order": 5, "lane": 1, "recalls": 0}
            assert lane.outcomes(1) == {seq: lane.pid}


def test_a_kill_of_a_lane_that_is_not_the_sessions_has_no_effect(serving):
    with SessionPeer(serving.address) as session, SessionPeer(serving.address) as other:
        lane = other.open_lane(lane=7)
        lane.start()
        kill(session, lane=7)
        kill(session, lane=8)
        mine = session.open_lane(lane=9)
        mine.start()
        kill(session, lane=9, first=0, ranges=[(3, 4)])
        assert spared(session) == {"order": 5, "lane": 9, "recalls": 0}, "and nothing was said of the others"
        lane.teach(1, tasks.pid)
        lane.submit(0, (1,))
        assert lane.outcomes(1) == {0: lane.pid}


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"lane": 1},
        {"order": 1, "lane": 1, "first": 0, "recalls": 0, "ranges": 7},
        {"order": 1, "lane": 1, "first": 0, "recalls": 0, "ranges": [[1]]},
        {"order": 1, "lane": 1, "first": float("inf"), "recalls": 0, "ranges": [[1, 1]]},
        {"order": 1, "lane": 1, "first": 0, "recalls": 0, "ranges": [[0, float("inf")]]},
        {"order": 1, "lane": [1], "first": 0, "recalls": 0, "ranges": []},
        {"order": 1, "lane": None, "first": 0, "recalls": 0, "ranges": []},
        {"order": 1, "lane": 1, "first": "x", "recalls": 0, "ranges": [["a", "b"]]},
    ],
    ids=str,
)
def test_a_malformed_kill_costs_its_session_only(serving, order):
    with SessionPeer(serving.address) as session:
        lane = session.open_lane()
        lane.start()
        session.send(*encode_hello(order, FrameType.KILL))
        session.wait_for_end()
    assert serves(serving)


def test_a_worker_that_dies_with_nothing_to_do_has_begun_nothing(serving):
    with SessionPeer(serving.address) as session:
        lane = session.open_lane()
        lane.start()
        os.kill(lane.pid, signal.SIGKILL)
        assert session.wait_for_death()["begun"] == -1


def test_the_lane_of_a_dead_worker_ends_even_if_a_grandchild_holds_it_open(serving, tmp_path):
    with Gate() as gate, farm(serving, max_attempts=1, max_workers=1) as executor:
        future = executor.submit(tasks.leave_a_child_and_die, str(tmp_path / "pids"), gate.address)
        after = executor.submit(tasks.pid)
        gate.wait_for_arrivals()  # the grandchild is there, and stays until the gate opens
        with pytest.raises(Exception, match="exited with code 3"):
            future.result(DEADLINE)
        assert after.result(DEADLINE)


def test_a_dead_worker_is_replaced_in_its_slot(serving):
    with farm(serving, max_workers=1) as executor:
        first = executor.submit(tasks.pid).result()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not exists(first), "the worker is gone")
        assert executor.submit(tasks.pid).result(DEADLINE) != first


# -- guests -------------------------------------------------------------------------------------------------


def test_connections_without_a_key_beyond_the_limit_of_an_address_push_out_its_oldest_and_no_client():
    limit = door.MAX_GUESTS_OF_A_HOST
    with Serving() as server, many_dials(server, limit + 20) as strangers:
        server.wait_for_line("too many connections without a key from its address", count=20)
        assert serves(server)
        for stranger in strangers[:20]:
            assert read_to_end(stranger) == b""
        strangers[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            strangers[-1].recv(1)
        assert len(descriptors(server.pid)) < limit + 40


def test_for_one_more_the_guest_goes_that_makes_no_progress_and_not_the_oldest():
    few = "import farm_executor.server.door as d; d.MAX_GUESTS_OF_A_HOST = 3"
    opening = ClientHandshake(KEY, bytes(32), Security.SEALED).start()
    with Serving(before=few) as server, many_dials(server, 3) as (oldest, idle, youngest):
        oldest.sendall(opening)
        assert len(oldest.recv(48, socket.MSG_WAITALL)) == 48
        with dial(server.address):
            assert read_to_end(idle) == b""
            for sock in (oldest, youngest):
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine's")
def test_connections_without_a_key_from_many_addresses_push_out_the_oldest_of_all_and_no_client():
    limit, each = door.MAX_GUESTS, door.MAX_GUESTS_OF_A_HOST - 2
    with Serving() as server, contextlib.ExitStack() as stack:
        strangers = [
            stack.enter_context(socket.create_connection((server.host, server.port), DEADLINE, (source, 0)))
            for source in (f"127.0.1.{number // each + 1}" for number in range(limit + 20))
        ]
        server.wait_for_line("too many connections without a key$", count=20)
        assert serves(server)
        assert read_to_end(strangers[0]) == b""
        strangers[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            strangers[-1].recv(1)
        assert len(descriptors(server.pid)) < limit + 40


def test_a_peer_that_says_nothing_is_dismissed_in_time():
    shorter = "import farm_executor.server.door as s; s.GUEST_SECONDS = 0.2"
    with Serving(before=shorter) as server, dial(server.address) as silent, dial(server.address) as slow:
        slow.sendall(b"FARM")
        for sock in (silent, slow):
            assert read_to_end(sock) == b""
        server.wait_for_line("dismissed .*it said nothing in time", count=2)
        assert serves(server)


def test_a_peer_that_trickles_its_bytes_does_not_get_more_time_for_it():
    shorter = "import farm_executor.server.door as s; s.GUEST_SECONDS = 0.3"
    with Serving(before=shorter) as server, dial(server.address) as slow:
        slow.settimeout(0.02)
        with contextlib.suppress(ConnectionError):
            for byte in b"FARM\1\1" + bytes(40):
                slow.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(100):
                        break
            else:
                pytest.fail("it was heard out")
        server.wait_for_line("dismissed .*it said nothing in time")


def test_a_peer_that_has_proven_the_key_and_says_no_hello_is_dismissed_too():
    shorter = "import farm_executor.server.door as s; s.GUEST_SECONDS = 0.2"
    with Serving(before=shorter) as server, dial(server.address) as silent:
        silent = prove_key(silent)
        assert read_to_end(silent) == b""
        server.wait_for_line("dismissed .*it said nothing in time")


@pytest.mark.parametrize(
    "said",
    [
        b"garbage of the first order, and more of it than is ever wanted" * 100,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\0" * 48,
        b"\xff" * 10_000,
        b"FARM" + b"\xff" * 44,
        b"FARM\2\1" + bytes(42),
        b"FARM\1\1\5" + bytes(41),
        b"FARM\1\1\0" + bytes(8) + b"\1" + bytes(32),
    ],
    ids=[
        "garbage",
        "http",
        "tls",
        "ssh",
        "zeros",
        "ones",
        "farm-ones",
        "low-above-high",
        "no-such-security",
        "padding",
    ],
)
def test_who_does_not_speak_the_protocol_is_dismissed_without_a_word(serving, said):
    before = len(serving.lines("dismissed"))
    with dial(serving.address) as peer:
        with contextlib.suppress(ConnectionError):
            peer.sendall(said)
        assert read_to_end(peer) == b""
    wait_until(lambda: len(serving.lines("dismissed")) == before + 1, "one line in the log")


def test_who_hangs_up_at_any_point_costs_one_line_in_the_log(serving):
    before = len(serving.lines("dismissed"))
    for said in (b"F", b"FARM\1\1\0" + bytes(40), b"FARM\1\1\0" + bytes(41), b"FARM\1\1\0" + bytes(41 + 31)):
        with dial(serving.address) as peer:
            peer.sendall(said)
    with dial(serving.address) as peer:
        prove_key(peer)
    with dial(serving.address) as peer:
        peer = prove_key(peer)
        peer.sendall(b"".join(encode_hello({"role": "admin"}))[:-1])
    wait_until(lambda: len(serving.lines("dismissed")) == before + 6, "a line for each in the log")
    assert serves(serving)


def test_who_resets_the_connection_at_any_point_costs_nobody_else_anything(serving):
    def reset(sock: socket.socket | SealedSocket) -> None:
        (sock if isinstance(sock, socket.socket) else sock._sock).setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )
        sock.close()

    hellos = [{"role": "admin", "command": "status"}, {"role": "lane"}, {"role": "control"}, {"role": "admin"}]
    for _ in range(10):
        reset(dial(serving.address))
        for hello in hellos:
            peer = prove_key(dial(serving.address))
            peer.sendall(b"".join(encode_hello(hello)))
            reset(peer)
    assert serves(serving)
    wait_until(lambda: quiet(serving), "a quiet server")


def test_a_wrong_key_is_refused_and_logged(serving):
    with pytest.raises(AuthenticationError, match="refused the key"):
        SessionPeer(serving.address, key=b"x" * 32)
    assert serving.wait_for_line("dismissed .*wrong key")


def test_a_proof_that_was_overheard_is_of_no_use_a_second_time(serving):
    said: list[bytes] = []
    with dial(serving.address) as honest:
        from farm_executor.core.handshake import ClientHandshake, Security

        handshake = ClientHandshake(KEY, bytes(32), Security.SEALED)
        said.append(handshake.start())
        honest.sendall(said[-1])
        said.append(handshake.receive_data(honest.recv(48, socket.MSG_WAITALL)))
        honest.sendall(said[-1])
        assert honest.recv(33, socket.MSG_WAITALL)[0] == 1
    with dial(serving.address) as thief:
        thief.sendall(said[0])
        assert len(thief.recv(48, socket.MSG_WAITALL)) == 48
        thief.sendall(said[1])
        assert read_to_end(thief) == bytes(33)


def test_what_is_promised_takes_no_memory(serving):
    """1 GiB in the length of a body, and in the table of a segment; before the key and behind it."""
    before = resident_bytes(serving.pid)
    body_of_1_gib = (1 << 30).to_bytes(4, "little") + bytes([FrameType.HELLO, 0]) + bytes(10)
    table = (1).to_bytes(4, "little") + (1 << 30).to_bytes(8, "little")
    segment_of_1_gib = b"".join(encode_frame(FrameType.HELLO, flags=BULK, body=table))
    with contextlib.ExitStack() as stack:
        for promise in (body_of_1_gib, segment_of_1_gib):
            for proven in (False, True):
                peer = stack.enter_context(dial(serving.address))
                if proven:
                    peer = prove_key(peer)
                peer.sendall(promise)
                peer.sendall(b"some of it" * 100)
        assert serves(serving)
        assert resident_bytes(serving.pid) - before < 64 << 20
    assert serves(serving)


def test_a_hello_of_more_than_its_limit_is_not_read(serving):
    with dial(serving.address) as peer:
        peer = prove_key(peer)
        frame = b"".join(encode_frame(FrameType.HELLO, body=b" " * (MAX_HELLO + 1)))
        with contextlib.suppress(ConnectionError):
            peer.sendall(frame)
        assert read_to_end(peer) == b""
    serving.wait_for_line(f"dismissed .*{MAX_HELLO + 1} bytes; the limit is {MAX_HELLO}")


# -- hellos of peers that hold the key ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        ({"role": "lane", "session": "no such", "slot": 0, "lane": 1}, "no such session"),
        ({"role": "admin", "command": "dance"}, "knows no command 'dance'"),
    ],
)
def test_a_hello_that_asks_for_what_there_is_not_is_refused_with_the_reason(serving, hello, why):
    with pytest.raises(ConnectionRefusedError, match=why):
        connect(parse_address(serving.address), Key(KEY), hello, DEADLINE)


@pytest.mark.parametrize("slot", [2, 2**31 - 1])
def test_a_lane_for_a_slot_that_there_is_not_is_refused(serving, slot):
    with SessionPeer(serving.address) as session:
        with pytest.raises(ConnectionRefusedError, match="slots 0 to 1"):
            session.open_lane(slot=slot)
        session.open_lane(slot=1).start()


CONTROL = {"role": "control", "versions": local_versions()._asdict()}


@pytest.mark.parametrize(
    "hello",
    [
        *({**CONTROL, name: 10**400} for name in ("heartbeat", "resume_seconds", "max_memory")),
        *({**CONTROL, "heartbeat": wrong} for wrong in (float("nan"), float("inf"), -1, "5", True)),
        {"role": "control"},
        {"role": "lane"},
        *(
            {"role": "lane", "session": "s", "lane": 1, "slot": wrong}
            for wrong in (-1, 1 << 70, "0", None, 0.0, [0])
        ),
        *({"role": "lane", "session": "s", "lane": wrong, "slot": 0} for wrong in ("1", None, 0.5, -1)),
        {"role": "admin"},
        {"role": "x" * 60_000},
        {},
    ],
    ids=lambda hello: repr(hello)[-40:],
)
def test_a_hello_of_another_form_ends_its_own_connection_only(serving, hello):
    with SessionPeer(serving.address) as session:
        with pytest.raises((EOFError, ConnectionError)):
            connect(parse_address(serving.address), Key(KEY), hello, DEADLINE)
        assert session.ping() == {"lanes": []}
    assert max(map(len, serving.lines("dismissed .*(malformed|no such role)"))) < 500


def test_a_fault_in_serving_one_guest_is_that_guests_alone():
    with Serving(
        before="import farm_executor.server.admin as s\n"
        "def fail(self, guest, hello): raise ZeroDivisionError('of our own')\n"
        "s.Admin.answer = fail"
    ) as server:
        with SessionPeer(server.address) as session:
            with pytest.raises((EOFError, ConnectionError)):
                connect(parse_address(server.address), Key(KEY), {"role": "admin", "command": "ping"}, DEADLINE)
            assert server.wait_for_line("ERROR.*guest failed peer=127.0.0.1")
            assert server.wait_for_line("ZeroDivisionError: of our own")
            lane = session.open_lane()
            lane.start()
        with SessionPeer(server.address) as other:
            assert other.ping() == {"lanes": []}


def test_a_fault_in_answering_one_watcher_is_that_watchers_alone():
    with (
        Serving(
            before="import farm_executor.server.machine as m\n"
            "def fail(): raise ZeroDivisionError('of our own')\n"
            "m.machine = fail"
        ) as server,
        SessionPeer(server.address) as session,
    ):
        hello = {"role": "admin", "command": "watch"}
        connection, _ = connect(parse_address(server.address), Key(KEY), hello, DEADLINE)
        with Peer(connection) as watcher:
            watcher.send_frame(FrameType.PING, seq=1)
            watcher.wait_for_end()
        assert server.wait_for_line("ERROR.*watcher failed")
        assert server.wait_for_line("ZeroDivisionError: of our own")
        assert session.ping() == {"lanes": []}


def test_a_fault_in_serving_one_session_is_that_sessions_alone():
    with (
        Serving(
            before="import farm_executor.server.workers as w\n"
            "def fail(self, session, kill): raise ZeroDivisionError('of our own')\n"
            "w.Workers.kill = fail"
        ) as server,
        SessionPeer(server.address) as faulty,
        SessionPeer(server.address) as other,
    ):
        lane = faulty.open_lane()
        lane.start()
        kill(faulty)
        assert read_to_end(faulty.connection.socket) == b""
        assert server.wait_for_line("ERROR.*session failed client=")
        assert server.wait_for_line("ZeroDivisionError: of our own")
        wait_until(lambda: not exists(lane.pid), "the session's worker has ended")
        assert other.ping() == {"lanes": []}


def test_a_session_does_not_get_more_workers_than_twice_its_slots(serving):
    with SessionPeer(serving.address) as session:
        lanes = [session.open_lane(lane=number, slot=number % 2) for number in range(2)]
        for lane in lanes:
            os.kill(lane.pid, signal.SIGSTOP)  # so that they do not leave when they are replaced
        lanes += [session.open_lane(lane=number, slot=number % 2) for number in range(2, 4)]
        with pytest.raises(ConnectionRefusedError, match="4 workers already"):
            session.open_lane(lane=5)
        os.kill(lanes[0].pid, signal.SIGKILL)
        session.wait_for_death()
        session.open_lane(lane=6).start()


def test_a_lane_to_a_slot_that_has_a_worker_takes_its_place(serving):
    with SessionPeer(serving.address) as session:
        old = session.open_lane(lane=1, slot=0)
        old.start()
        beside = session.open_lane(lane=2, slot=1)
        new = session.open_lane(lane=3, slot=0)
        old.wait_for_end()
        assert session.wait_for_death()["lane"] == 1
        new.start()
        beside.start()


def leave_a_thread() -> int:
    threading.Thread(target=threading.Event().wait).start()
    return os.getpid()


def test_a_worker_that_is_replaced_and_has_a_thread_that_never_ends_does_not_stay():
    """Else it would be in the way of those that come after it, and the farm would stand still."""
    shorter = "import farm_executor.server.sessions as s; s.GRACE_ENDED = 0.2"
    with Serving(before=shorter, workers=1) as server, farm(server, max_tasks_per_child=1) as executor:
        pids = [executor.submit(leave_a_thread).result(DEADLINE) for _ in range(4)]
        assert len(set(pids)) == 4
        wait_until(lambda: not any(map(exists, pids[:2])), "those replaced are gone")


def test_a_session_that_has_ended_gets_no_more_lanes(serving):
    with SessionPeer(serving.address) as session:
        session.send_frame(FrameType.BYE)
        session.wait_for_end()
        with pytest.raises(ConnectionRefusedError, match="no such session"):
            session.open_lane()


@pytest.mark.parametrize("kind", [kind for kind in FrameType if kind not in (FrameType.BYE, FrameType.PING)])
def test_an_unexpected_frame_ends_that_session_alone(serving, kind):
    with SessionPeer(serving.address) as other, SessionPeer(serving.address) as session:
        lane = session.open_lane()
        lane.start()
        session.send_frame(kind, body=b"{}")
        session.wait_for_end()
        lane.wait_for_end()
        other.open_lane().start()


def test_a_truncated_frame_ends_that_session_alone(serving):
    with SessionPeer(serving.address) as other:
        with SessionPeer(serving.address) as session:
            lane = session.open_lane()
            session.send(b"\1\1\1")
        wait_until(lambda: not exists(lane.pid), "the session's worker is gone")
        other.open_lane().start()


@pytest.mark.parametrize("name", ["python", "protocol"])
def test_a_client_of_versions_that_do_not_fit_is_refused_with_each_that_differs(serving, name):
    mine = local_versions()._asdict()
    other = {**mine, name: type(mine[name])(99), "tblib": "0.1"}
    with pytest.raises(VersionMismatchError) as caught:
        SessionPeer(serving.address, versions=other)
    assert caught.value.mismatches == {name: ("99", str(mine[name])), "tblib": ("0.1", mine["tblib"])}
    for part in (name, "99", str(mine[name]), "tblib", "0.1", mine["tblib"]):
        assert part in str(caught.value)
    SessionPeer(serving.address, versions=other, allow_version_mismatch=True).close()


@pytest.mark.parametrize("name", ["cloudpickle", "tblib", "farm_executor"])
def test_a_client_whose_libraries_differ_is_let_in(serving, name):
    versions = {**local_versions()._asdict(), name: "0.1"}
    SessionPeer(serving.address, versions=versions).close()


@pytest.mark.parametrize("versions", [None, 5, [], {}, {"python": "cpython 3.11"}], ids=repr)
def test_a_client_that_does_not_tell_its_versions_is_dismissed(serving, versions):
    with pytest.raises(EOFError):
        SessionPeer(serving.address, versions=versions)


hellos = st.one_of(
    json_objects,
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["control", "lane", "admin"]) | json_values,
            "command": st.sampled_from(["ping", "status"]) | json_values,
            "session": json_values,
            "slot": json_values,
            "lane": json_values,
            "versions": json_values,
            "client": json_values,
            "allow_version_mismatch": json_values,
        },
    ),
)


def say_hello(server: Serving, body: bytes) -> None:
    with dial(server.address) as peer:
        peer = prove_key(peer)
        peer.sendall(b"".join(encode_frame(FrameType.HELLO, body=body)))
        peer.shutdown(socket.SHUT_WR)
        read_to_end(peer)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hello=hellos)
def test_no_hello_whatever_ends_the_server(serving, hello):
    say_hello(serving, json.dumps(hello).encode())
    assert alive(serving.pid)


def deepest() -> int:
    """How deep a JSON array may be here before it is too deep to be read."""
    low, high = 1, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        try:
            json.loads("[" * middle + "]" * middle)
        except RecursionError:
            high = middle
        else:
            low = middle
    return low


def test_no_hello_however_deep_ends_the_server(serving):
    """Reading, comparing and printing have limits of their own, which lie close together."""
    versions = json.dumps(local_versions()._asdict())
    room = (MAX_HELLO - len(versions) - 200) // 2
    for depth in range(max(min(deepest(), room) - 100, 1), min(deepest() + 100, room), 7):
        deep = "[" * depth + "]" * depth
        for body in (
            f'{{"role": {deep}}}',
            f'{{"role": "admin", "command": {deep}}}',
            f'{{"role": "lane", "session": {deep}}}',
            f'{{"role": "control", "versions": {deep}}}',
            f'{{"role": "control", "versions": {versions[:-1]}, "python": {deep}}}}}',
            f'{{"role": "control", "versions": {versions}, "client": {deep}}}',
        ):
            say_hello(serving, body.encode())
    assert serves(serving)


def test_a_hello_in_no_encoding_or_with_numbers_beyond_all_measure_is_refused(serving):
    huge = b'{"role": ' + b"9" * 60_000 + b"}"
    for body in (b"\xff\xfe", b'{"role": "\\ud800"}', huge, b"[]", b"", b"{", b"NaN"):
        say_hello(serving, body)
    assert serves(serving)


def test_what_comes_in_one_go_with_the_hello_is_spoken_out_of_turn(serving):
    with dial(serving.address) as peer:
        peer = prove_key(peer)
        hello = b"".join(encode_hello({"role": "admin", "command": "ping"}))
        peer.sendall(hello + hello[: HEADER_SIZE - 1])
        assert read_to_end(peer) == b""


# -- workers are clean --------------------------------------------------------------------------------------


def test_a_worker_has_nothing_open_of_the_supervisor_s_or_of_other_workers(serving):
    with farm(serving) as one, farm(serving) as other:
        other.submit(abs, 1).result()
        first = one.submit(tasks.open_descriptors).result()
        sockets = {name for name in first.values() if name.startswith("socket:")}
        listed = [name.partition("=")[2] for name in descriptors(serving.pid)]
        shared = sockets & set(listed)
        assert len(shared) == 1, "the lane, which the supervisor keeps so as to hang it up"


@pytest.mark.parametrize("kind", ["embedded", "background", "command line"])
def test_the_standard_input_of_a_task_and_of_its_children_is_empty(serving, kind):
    with contextlib.ExitStack() as stack:
        if kind == "embedded":
            executor = FarmExecutor(1)
        elif kind == "background":
            server = stack.enter_context(start_server("127.0.0.1", 0, background=True, workers=1, key=KEY))
            executor = FarmExecutor(server.address, key=KEY)
        else:
            executor = farm(serving, max_workers=1)
        stack.enter_context(executor)
        assert executor.submit(tasks.open_descriptors).result(DEADLINE)[0] == os.devnull
        assert executor.submit(tasks.read_standard_input).result(DEADLINE) == (b"", b"")


def test_a_task_may_start_processes_and_wait_for_them(serving):
    with farm(serving, max_workers=1) as executor:
        run = executor.submit(subprocess.run, [sys.executable, "-c", "import sys; sys.exit(5)"], timeout=30)
        assert run.result(DEADLINE).returncode == 5


def test_a_system_that_starts_no_process_for_now_is_asked_again():
    """The client is refused the lane with the reason, and comes again; the server lives."""
    refuse_twice = """
import errno, os
fork, refusals = os.fork, [1, 2]
def refusing():
    if refusals:
        refusals.pop()
        raise OSError(errno.EAGAIN, "no more processes")
    return fork()
os.fork = refusing
"""
    with Serving(before=refuse_twice, workers=1) as server:
        refusal = pytest.raises(ConnectionRefusedError, match="no more processes")
        with SessionPeer(server.address) as session, refusal:
            session.open_lane()
        assert serves(server)
        assert len(server.lines("cannot start a worker")) == 2


def test_a_system_that_starts_no_process_while_the_client_hangs_up_costs_no_server():
    refuse = """
import errno, os
fork, refusals = os.fork, [1]
def refusing():
    if refusals:
        refusals.pop()
        for guest_socket in [s for s in __import__("gc").get_objects() if type(s).__name__ == "socket"]:
            if guest_socket.fileno() != -1:
                try:
                    guest_socket.getpeername()
                except OSError:
                    continue
                if guest_socket.family.name == "AF_INET":
                    guest_socket.shutdown(2)
        raise OSError(errno.EAGAIN, "no more processes")
    return fork()
os.fork = refusing
"""
    with Serving(before=refuse, workers=1) as server:
        with SessionPeer(server.address) as session, pytest.raises((OSError, EOFError)):
            session.open_lane()
        assert serves(server)


def test_a_server_out_of_descriptors_serves_those_it_has_and_goes_on_when_there_are_some():
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    with Serving(before=few, workers=1) as server, SessionPeer(server.address) as session:
        lane = session.open_lane()
        lane.start()
        lane.teach(1, tasks.pid)
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(dial(server.address))
            server.wait_for_line("accept failed")
            lane.submit(0, (1,))
            assert lane.outcomes(1) == {0: lane.pid}
        assert serves(server)
        assert len(server.lines("accept failed")) < 100, "the log is not flooded"


def test_a_server_whose_descriptors_are_all_in_use_by_clients_tries_again_in_peace():
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))"
    started = time.monotonic()
    with Serving(before=few, workers=1) as server, contextlib.ExitStack() as stack:
        sessions = []
        while not server.lines("accept failed"):
            with contextlib.suppress(OSError):
                sessions.append(stack.enter_context(SessionPeer(server.address, timeout=0.3)))
        server.wait_for_line("accept failed", count=3)
        attempts = len(server.lines("accept failed"))
        assert attempts <= (time.monotonic() - started) / door.ACCEPT_PAUSE + 1
        for session in sessions[:12]:
            session.close()
        assert serves(server)


def test_a_client_that_asks_and_never_listens_costs_a_bounded_amount():
    """Each KILL that spares is answered; the answers to somebody who does not read pile up in the supervisor.

    Whoever leaves too many unread is hung up on.
    """
    order = {"order": 1, "lane": 1, "first": 0, "recalls": 0, "ranges": []}
    orders = b"".join(encode_hello(order, FrameType.KILL)) * 1000
    with Serving(workers=1) as serving, SessionPeer(serving.address) as peer:
        peer.open_lane().start()
        before = resident_bytes(serving.pid)
        with contextlib.suppress(OSError):  # it has hung up, which is right
            for _ in range(300):
                peer.connection.socket.sendall(orders)
        assert resident_bytes(serving.pid) - before < 16 << 20


# -- the end of the server ----------------------------------------------------------------------------------


def test_a_server_told_to_end_takes_no_new_clients_and_serves_those_it_has_to_their_end():
    with Gate() as gate, Serving() as server, farm(server) as executor:
        running = [executor.submit(pass_gate, gate.address, number) for number in range(4)]
        gate.wait_for_arrivals(2)
        end_server(server.host, server.port, key=KEY)
        server.wait_for_line("draining")
        assert not ping(server.host, server.port, timeout=0.2, key=KEY)
        with pytest.raises(ConnectionRefusedError):
            dial(server.address)
        gate.open()
        assert [future.result(DEADLINE) for future in running] == [0, 1, 2, 3]
        assert executor.submit(abs, -5).result(DEADLINE) == 5, "also what is submitted later"
        assert server.process.poll() is None
        executor.shutdown()
        assert server.wait() == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_server_that_gets_a_signal_ends_with_what_it_has_begun_and_the_next_one_gets_the_rest(how, caplog):
    caplog.set_level("INFO", "farm_executor.client")
    with Gate() as gate, Serving() as server, farm(server) as executor:
        running = [executor.submit(pass_gate, gate.address, number) for number in range(6)]
        gate.wait_for_arrivals(2)
        server.process.send_signal(getattr(signal, how))
        wait_until(lambda: "draining server=" in caplog.text, "its client has been told")
        with pytest.raises(ConnectionRefusedError):
            dial(server.address)
        gate.open()
        assert server.wait() == 0, "although its client is still there"
        done, waiting = wait(running, timeout=0)
        assert len(done) == 2
        assert executor.statistics().queued == len(waiting)
        with Serving(at=server.address):
            assert [future.result(DEADLINE) for future in running] == [0, 1, 2, 3, 4, 5]
            assert executor.statistics().resubmitted == 0
            executor.shutdown()


def test_a_server_without_clients_ends_at_once_when_told_to(serving):
    with Serving() as server:
        server.terminate()
        assert server.wait() == 0


def test_a_child_that_ends_after_the_server_has_closed_all_is_no_news():
    late = """
import os, signal
from farm_executor.wire.waker import Waker
close = Waker.close
Waker.close = lambda waker: (close(waker), os.kill(os.getpid(), signal.SIGCHLD))
"""
    with Serving(before=late) as server:
        server.terminate()
        assert server.wait() == 0
        assert "Exception ignored" not in server.log


def test_end_server_may_be_said_twice_and_a_third_time_to_nobody():
    with Serving() as server, SessionPeer(server.address) as session:
        session.open_lane().start()
        with dial(server.address) as late:
            late = prove_key(late)
            end_server(server.host, server.port, key=KEY)
            late.sendall(b"".join(encode_hello({"role": "admin", "command": "end"})))
            assert read_to_end(late)
        with pytest.raises(OSError):
            end_server(server.host, server.port, key=KEY)
        assert alive(server.pid)


def test_a_client_that_comes_while_the_server_drains_is_refused_with_the_reason():
    with Serving() as server, SessionPeer(server.address) as session, dial(server.address) as late:
        session.open_lane().start()
        late = prove_key(late)
        end_server(server.host, server.port, key=KEY)
        late.sendall(b"".join(encode_hello({"role": "control", "versions": local_versions()._asdict()})))
        assert b"draining" in read_to_end(late)


def test_a_server_that_drains_does_not_wait_for_a_client_that_can_get_no_worker_any_more():
    with Serving() as server, SessionPeer(server.address) as session:
        end_server(server.host, server.port, key=KEY)
        assert server.wait() == 0
        frames = []
        with pytest.raises(EOFError):
            while True:
                frames.append(session.receive().type)
        assert frames in ([], [FrameType.DRAINING, FrameType.BYE])


def test_a_server_that_drains_ends_when_the_last_worker_of_its_last_client_has_died():
    with Serving() as server, SessionPeer(server.address) as session:
        lane = session.open_lane()
        lane.start()
        end_server(server.host, server.port, key=KEY)
        os.kill(lane.pid, signal.SIGKILL)
        assert server.wait() == 0


def test_a_second_sigterm_ends_the_server_at_once_and_its_workers_with_it():
    with Gate() as gate, Serving() as server, SessionPeer(server.address) as session:
        lane = session.open_lane()
        lane.start()
        lane.teach(1, tasks.ignore_everything_and_pass_gate)
        lane.submit(0, (1, gate.address))
        gate.wait_for_arrivals()
        server.terminate()
        server.wait_for_line("draining")
        assert alive(lane.pid)
        server.terminate()
        assert server.wait() == 0
        assert not exists(lane.pid)
        lane.wait_for_end()


def test_work_goes_on_on_a_server_restarted_at_the_same_port_after_its_supervisor_was_killed(tmp_path):
    with Gate() as gate, contextlib.ExitStack() as stack:
        server = stack.enter_context(Serving(workers=1))
        executor = stack.enter_context(farm(server))
        running = executor.submit(tasks.sign_and_pass_gate, str(tmp_path / "pids"), gate.address)
        queued = [executor.submit(abs, -number) for number in range(50)]
        gate.wait_for_arrivals()
        (worker,) = children(server.pid)
        server.process.kill()
        server.wait()
        wait_until(lambda: not alive(worker), "the worker has ended with its supervisor")
        again = stack.enter_context(Serving(at=server.address, workers=1))
        gate.wait_for_arrivals()
        gate.open()
        assert running.result(DEADLINE) in children(again.pid)
        assert [future.result(DEADLINE) for future in queued] == list(range(50))
        assert (tmp_path / "pids").read_text().split() == [str(worker), str(running.result())]


STARTER = """
import threading
from farm_executor import start_server
server = start_server("127.0.0.1", 0, background=True, workers=1, key=b"0123456789abcdef")
print(server.pid, server.address, flush=True)
threading.Event().wait()
"""


def test_a_server_in_the_background_ends_with_the_process_that_started_it():
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid, address = starter.stdout.readline().split()
        with SessionPeer(address, key=b"0123456789abcdef") as session:
            lane = session.open_lane()
            lane.start()
            starter.kill()
            wait_until(lambda: not alive(int(pid)) and not alive(lane.pid), "server and worker end", seconds=2)

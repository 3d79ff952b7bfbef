"""Rings of shared memory: the memory, the bell, and connections that send through them."""

import contextlib
import os
import signal
import socket
import struct
import threading
from collections import deque
from pathlib import Path

import pytest
from server.processes import DEADLINE

from farm_executor.core.frames import FrameType, encode_frame, encode_payload
from farm_executor.core.ring import LEAST, USUAL, Shape
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire import memfd
from farm_executor.wire import ring as ring_module
from farm_executor.wire.connection import Connection
from farm_executor.wire.ring import Ring, accept, offer

pytestmark = [
    pytest.mark.skipif(not memfd.AVAILABLE, reason="there is no memfd on this system"),
    pytest.mark.usefixtures("no_leaks"),
]


@contextlib.contextmanager
def ends(*, use=True):
    """Both ends of a lane with a ring: the client's, which does not block, and the worker's."""
    here, there = socket.socketpair()
    bell, other_bell = socket.socketpair()
    for sock in (here, there, bell, other_bell):
        sock.settimeout(DEADLINE)
    client, worker = Connection(here), Connection(there)
    offer(other_bell, worker.expect_ring)
    assert client.expect_ring(accept(bell)) is None
    if use:
        assert client.use_ring()
        assert worker.use_ring()
    here.setblocking(False)
    there.settimeout(None)
    try:
        yield client, worker
    finally:
        client.close()
        worker.close()


class Emptied(deque):
    """What waits to be sent, as one thread finds it while another sends the rest of it."""

    def __bool__(self):
        return True

    def __iter__(self):
        raise RuntimeError("deque mutated during iteration")


def test_any_thread_may_look_while_another_sends():
    with ends(use=False) as (client, _):
        assert not client.laden
        client.send(encode_payload(FrameType.TASKS, (bytes(64 * 1024), large())))
        client._unsent, queued = Emptied(), client._unsent
        assert client.laden
        assert not client.starved
        client._unsent = queued


def test_sending_through_a_ring_that_has_been_closed_fails_as_a_socket_does():
    with ends() as (client, _):
        client._ring.close()
        client.send(encode_payload(FrameType.TASKS, (b"pickle", large())))
        assert not client.backlog
        with pytest.raises(EOFError):
            client.receive()


def large(size=20 * USUAL.chunk + 12_345):
    return os.urandom(size)


@contextlib.contextmanager
def in_thread(action, *arguments):
    thread = threading.Thread(target=action, args=arguments)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def receive(connection):
    frames = []
    while not frames:
        frames = connection.receive()
    (frame,) = frames
    return frame


def test_large_segments_go_through_the_ring_both_ways():
    data = large()
    frame = encode_payload(FrameType.TASKS, (b"pickle", data, b"small", bytearray(data)), prefix=bytes(4))
    with ends() as (client, worker):
        assert not client.send(frame)
        assert client.starved
        assert not client.unsent  # the socket takes more, but has nothing to take
        received = []

        def take():
            received.append(receive(worker))
            worker.send_all(frame)

        with in_thread(take):
            while not client.flush():
                pass
            back = receive(client)
        for got in (*received, back):
            assert [bytes(part) for part in got.segments] == [b"pickle", data, b"small", data]
            assert [type(part) for part in got.segments] == [memoryview, bytes, bytes, bytearray]
        # Marks are counted, and what is in the ring is not.
        assert client.bytes_sent == worker.bytes_received == client.bytes_received == worker.bytes_sent < 1000
        assert not client.as_given


def test_a_frame_behind_the_word_that_there_is_a_ring_may_use_it_at_once():
    with ends(use=False) as (client, worker):
        data = large(LEAST)
        client.use_ring()
        client.send(encode_frame(FrameType.RINGED) + encode_payload(FrameType.FUNCTION, (b"", data)))
        first, second = worker.receive()
        assert (first.type, bytes(second.segments[1])) == (FrameType.RINGED, data)
        assert worker.use_ring()


def test_without_the_word_nothing_goes_through_the_ring():
    with ends(use=False) as (client, worker):
        worker.send_all(encode_payload(FrameType.RESULTS, (b"", bytes(100_000)), prefix=bytes(4)))
        assert receive(client).segments[1] == bytes(100_000)
        assert worker.as_given


def test_a_ring_that_is_expected_takes_an_earlier_ones_place_unless_that_is_used():
    with ends(use=False) as (_, worker):
        spare = worker.expect_ring(None)
        assert spare is not None
        assert not worker.use_ring()
        assert worker.expect_ring(spare) is None
        assert worker.use_ring()
        bell, other = socket.socketpair()
        with bell, other:
            offer(other, worker.expect_ring)
            os.close(memfd.receive(bell)[1])
            with pytest.raises(OSError, match="has none"):  # the one in use stays
                accept(bell)


def test_a_worker_that_waits_for_room_stops_waiting_when_the_lane_is_hung_up():
    with ends() as (_, worker):
        errors = []

        def send():
            try:
                worker.send_all(encode_payload(FrameType.RESULTS, (b"", large()), prefix=bytes(4)))
            except OSError as error:
                errors.append(error)

        with in_thread(send):
            while not worker.starved:
                pass
            worker.hang_up()
        assert errors


def test_the_lanes_end_ends_waiting_even_if_somebody_keeps_the_bell_open():
    with ends() as (client, worker):
        kept = os.dup(client.bell)  # as a process does that the program has forked
        errors = []

        def send():
            try:
                worker.send_all(encode_payload(FrameType.RESULTS, (b"", large()), prefix=bytes(4)))
            except OSError as error:
                errors.append(error)

        try:
            with in_thread(send):
                while not worker.starved:
                    pass
                client.close()
            assert errors
        finally:
            os.close(kept)


def test_the_end_of_the_bell_ends_the_lane_of_whoever_sends():
    with ends() as (client, worker):
        assert not client.send(encode_payload(FrameType.TASKS, (b"", large()), prefix=bytes(4)))
        worker.close()
        assert client.flush()  # nothing is left that could be sent
        with pytest.raises(EOFError):
            while True:
                client.receive()


@pytest.mark.parametrize("credits", [b"+" * 5, b"x" * 65, b"+" * 1000])
def test_more_credits_than_chunks_end_the_lane(credits):
    with ends() as (client, worker):
        bell = socket.socket(fileno=os.dup(worker.bell))
        with bell:
            assert not client.send(encode_payload(FrameType.TASKS, (b"", large()), prefix=bytes(4)))
            bell.send(credits)
            assert client.flush()
        with pytest.raises(EOFError):
            while True:
                client.receive()


def test_a_peer_that_takes_no_credits_harms_nobody_else():
    with ends() as (client, worker):
        sock = worker.socket
        body = struct.pack("<I2QI", 2, 0, 100 * USUAL.chunk, 0)
        sock.sendall(b"".join(encode_frame(FrameType.RESULTS, flags=17, count=1, body=body)))
        sender = threading.Thread(target=sock.sendall, args=(b"." * 100,))
        sender.start()
        frame = receive(client)  # whatever was in the ring
        sender.join()
        assert len(frame.segments[1]) == 100 * USUAL.chunk


def test_what_a_peer_changes_in_the_ring_later_does_not_change_what_was_received():
    with ends() as (client, worker):
        data = large(2 * LEAST)
        client.send(encode_payload(FrameType.TASKS, (b"", data), prefix=bytes(4)))
        frame = receive(worker)
        client.send(encode_payload(FrameType.TASKS, (b"", bytes(20 * USUAL.chunk)), prefix=bytes(4)))  # overwrites
        assert frame.segments[1] == data


def test_a_peer_that_writes_into_the_ring_all_the_while_only_spoils_what_it_sends():
    with ends() as (client, worker):
        over = threading.Event()

        def scribble():
            with memoryview(worker._ring._memory) as memory:
                while not over.is_set():
                    for place in range(0, len(memory), 4096):
                        memory[place] = 255  # whatever anybody might look for there

        kept = bytes(range(256)) * 300  # which stays on the socket
        with in_thread(scribble):
            try:
                for number in range(5):
                    sent = (kept, bytes(LEAST + number), kept)
                    assert client.send(encode_payload(FrameType.TASKS, sent, prefix=bytes(4)))
                    got = receive(worker).segments
                    assert [len(part) for part in got] == [len(part) for part in sent]
                    assert (got[0], got[2]) == (kept, kept)
                    assert set(got[1]) <= {0, 255}
            finally:
                over.set()


# -- offers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bells():
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(DEADLINE)
        yield here, there


def hand(sock, word, size, *, seal=True):
    descriptor = memfd.create("farm-test", size)
    try:
        if seal:
            memfd.fix_size(descriptor)
        memfd.send(sock, word, descriptor)
    finally:
        os.close(descriptor)


def test_what_is_offered_is_checked(bells):
    here, there = bells
    small = Shape(65_536, 2)
    for word, size, seal, why in [
        (small.encode(), small.size - 4096, True, "bytes, not"),
        (small.encode(), small.size + 4096, True, "bytes, not"),
        (small.encode(), small.size, False, "seals"),
        (Shape(1, 2).encode(), 4096, True, "a ring of"),
        (struct.pack("<II", 1 << 31, 64), 4096, True, "a ring of"),
        (b"x", 4096, True, "described by 1 bytes"),
        (bytes(64), 4096, True, "described by 64 bytes"),
    ]:
        hand(there, word, size, seal=seal)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(RemoteProtocolError, match=why):
            accept(here)
        assert os.listdir("/proc/self/fd") == before
    there.send(small.encode())  # as through ssh, which passes bytes on and no descriptors
    with pytest.raises(OSError, match="dropped on the way"):
        accept(here)
    there.close()
    with pytest.raises(OSError, match="has none"):
        accept(here)


def test_a_pipe_or_a_file_is_no_ring(bells, tmp_path):
    here, there = bells
    small = Shape(65_536, 2)
    path = tmp_path / "file"
    path.write_bytes(bytes(small.size))
    with path.open("r+b") as file:
        memfd.send(there, small.encode(), file.fileno())
    with pytest.raises(RemoteProtocolError, match="no memfd|seals"):
        accept(here)


@pytest.mark.parametrize("call", ["create", "fix_size", "map_shared", "send"])
def test_a_worker_without_memory_hangs_up_and_keeps_nothing(bells, monkeypatch, call):
    here, there = bells

    def refuse(*arguments):
        raise OSError(12, "none left")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(ring_module.memfd, call, refuse)
    offer(there, pytest.fail)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the bell's end
    with pytest.raises(OSError, match="has none"):
        accept(here)


def test_a_ring_is_closed_and_unmapped_with_its_lane():
    maps = Path("/proc/self/maps")
    with ends():
        assert "farm-ring" in maps.read_text()
    assert "farm-ring" not in maps.read_text()


def test_a_sender_that_is_killed_in_the_middle_of_a_segment_is_the_lanes_end():
    with ends() as (client, worker):
        child = os.fork()
        if not child:  # it stops where there is no more room
            client.abandon()
            worker.send_all(encode_payload(FrameType.RESULTS, (b"", large()), prefix=bytes(4)))
            os._exit(1)
        worker.abandon()
        while not client.reader.mid_frame:
            client.receive()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with pytest.raises(EOFError, match="within a frame"):
            while True:
                client.receive()


def test_a_receiver_that_is_killed_in_the_middle_of_a_segment_is_the_lanes_end():
    with ends() as (client, worker):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:  # it takes no more than what one read gives
            client.abandon()
            worker.receive()
            os.write(writing, b".")
            signal.pause()
            os._exit(1)
        worker.abandon()
        assert not client.send(encode_payload(FrameType.TASKS, (b"", large()), prefix=bytes(4)))
        assert os.read(reading, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while not client.flush():
            pass
        with pytest.raises(EOFError):
            while True:
                client.receive()
        os.close(reading)
        os.close(writing)


def test_a_ring_says_nothing_of_itself_to_a_forked_child():
    with ends() as (client, worker):
        child = os.fork()
        if not child:
            client.abandon()
            worker.abandon()
            os._exit(0)
        os.waitpid(child, 0)
        data = large(2 * LEAST)
        client.send(encode_payload(FrameType.TASKS, (b"", data), prefix=bytes(4)))
        assert receive(worker).segments[1] == data
        assert isinstance(client._ring, Ring)

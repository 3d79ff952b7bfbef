"""Whatever bytes a peer sends, nothing comes of them but what is provided for; `nox -s fuzz` looks for more."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading

import pytest
from faults.hostile import SEEDS, TARGETS, Unpickled, no_unpickling
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.peers import listening
from server.serving import KEY
from strategies import frames as any_frame
from strategies import json_objects, mutated

from farm_executor import payload
from farm_executor.address import parse_address
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.handshake import NONCE_SIZE, ServerHandshake, encode_hello
from farm_executor.errors import RemoteProtocolError
from farm_executor.transport import connect


def _bytes_of(frame):
    fields = {"flags": frame.flags, "count": frame.count, "seq": frame.seq}
    return b"".join(encode_frame(frame.type, body=frame.body, segments=frame.segments, **fields))


control = st.sampled_from([FrameType.HELLO, FrameType.KILL, FrameType.WORKER_DIED, FrameType.SPARED])
numbers = st.integers(-2, 10) | st.integers() | st.none() | st.text(max_size=3)
roles = st.sampled_from(["control", "lane", "admin", None, 1])
hellos = st.fixed_dictionaries(
    {},
    optional={
        "role": roles,
        "command": st.sampled_from(["ping", "status", "end", []]),
        "session": numbers,
        "slot": numbers,
        "lane": numbers,
        "order": numbers,
        "first": numbers,
        "versions": json_objects | st.none(),
        "client": st.text(max_size=200),
        "ranges": st.lists(st.lists(numbers, max_size=3) | numbers, max_size=4) | numbers,
    },
)
said = st.builds(lambda data, kind: b"".join(encode_hello(data, kind)), hellos | json_objects, control)
streams = st.lists(any_frame.map(_bytes_of) | said | st.binary(max_size=60), max_size=4).map(b"".join)


def hostile(name):
    seeds = st.sampled_from(SEEDS[name])
    return seeds | seeds.flatmap(mutated) | streams | st.tuples(seeds, streams).map(b"".join)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_survived(name):
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hostile(name))
    def check(data):
        TARGETS[name](data)

    before = len(os.listdir("/proc/self/fd"))
    with no_unpickling():
        check()
    assert len(os.listdir("/proc/self/fd")) <= before + 20, "nothing is left open, but one house with its door"


def test_the_trap_works():
    with no_unpickling(), pytest.raises(Unpickled):
        payload.loads([b"N."])


def test_a_promise_of_much_takes_no_memory():
    """A segment of 64 TiB is announced; so are 65,536 of them that are not there."""
    for sizes in ([1 << 46], [1 << 40] * 60, [1 << 20] * 65_536):
        table = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        data = struct.pack("<IBBHQ", len(table), 19, 1, 1, 0) + table
        for name in ("frames", "worker"):
            TARGETS[name](b"\xff" + data if name == "frames" else data)


@pytest.mark.parametrize("role", ["control", "admin"])
def test_a_connection_without_payloads_takes_no_memory_for_one(role):
    """A server's answer to a hello promises a segment of 1 GiB; there may be none before a lane's hellos."""
    table = struct.pack("<IQ", 1, 1 << 30)
    answer = struct.pack("<IBBHQ", len(table), FrameType.HELLO, 1, 0, 0) + table

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            handshake = ServerHandshake(KEY, bytes(NONCE_SIZE))
            while not handshake.done:
                sock.sendall(handshake.receive_data(sock.recv(handshake.wanted)))
            sock.recv(65536)
            sock.sendall(answer)
            with contextlib.suppress(OSError):
                sock.recv(1)

    with listening() as (listener, address):
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with pytest.raises(RemoteProtocolError):
                connect(parse_address(address), KEY, {"role": role}, 2.0)
        finally:
            thread.join()


def test_a_segment_that_is_only_promised_takes_no_memory_without_numpy():
    program = (
        "import resource\n"
        "from farm_executor.payload import allocate\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "segment = allocate(1 << 30)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10  # KiB

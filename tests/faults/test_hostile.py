"""Whatever bytes a peer sends, nothing comes of them but what is provided for; `nox -s fuzz` looks for more."""

import logging
import os
import struct

import pytest
from faults.hostile import SEEDS, TARGETS, Unpickled, no_unpickling
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import frames as any_frame
from strategies import json_objects, mutated

from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.handshake import encode_hello
from farm_executor.data import payload


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


@pytest.fixture(autouse=True)
def level():
    """The targets silence the package's logger, which tests that come later in this process look at."""
    logger = logging.getLogger("farm_executor")
    before = logger.level
    yield
    logger.setLevel(before)


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

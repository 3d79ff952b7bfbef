"""Memory that processes share by its descriptor."""

import os
import sys

import pytest

from farm_executor.errors import RemoteProtocolError
from farm_executor.wire import memfd
from farm_executor.wire.memory_objects import MemoryObject

HAS_SEALS = memfd.AVAILABLE


def made(data):
    memory = MemoryObject.create("farm-test", len(data))
    memory.write(0, data)
    return memory


def test_what_is_written_is_seen_through_every_view():
    memory = made(b"0123456789")
    memory.write(4, bytearray(b"four"))

    assert bytes(memory.view(private=False)) == bytes(memory.view(private=True)) == b"0123four89"


def test_writes_to_a_private_view_are_seen_by_nobody_else():
    memory = made(bytes(20_000))
    memory.seal()
    one, other = memory.view(private=True), memory.view(private=True)
    one[0] = 1

    assert (one[0], other[0], memory.view(private=False)[0]) == (1, 0, 0)


@pytest.mark.parametrize("private", [True, False])
def test_what_is_closed_has_no_view(private):
    memory = made(b"gone")
    memory.close()
    with pytest.raises(OSError, match="closed"):
        memory.view(private=private)


def test_a_view_outlives_the_descriptor():
    memory = made(b"still here")
    view = memory.view(private=False)
    memory.close()
    memory.close()

    assert memory.fileno() == -1
    assert bytes(view) == b"still here"
    with pytest.raises(TypeError):
        view[0] = 0


@pytest.mark.skipif(not HAS_SEALS, reason="this system has no seals")
def test_sealed_memory_can_be_neither_written_nor_truncated():
    memory = made(b"sealed")
    memory.seal()

    for change in (lambda: memory.write(0, b"x"), lambda: os.ftruncate(memory.fileno(), 1)):
        with pytest.raises(PermissionError):
            change()


@pytest.mark.skipif(not HAS_SEALS, reason="this system has no seals")
@pytest.mark.parametrize("private", [False, True])
def test_sealed_memory_is_mapped_as_systems_before_linux_6_7_allow(private):
    memory = MemoryObject.create("farm-mapped", 10_000)
    memory.seal()
    view = memory.view(private=private)

    with open("/proc/self/maps") as maps:
        (ours,) = [line.split()[1] for line in maps if "memfd:farm-mapped" in line]
    assert ours == ("rw-p" if private else "r--p")  # with an s at the end they refuse it
    view.release()


@pytest.mark.skipif(not HAS_SEALS, reason="this system has no seals")
def test_memory_of_another_process_must_be_sealed():
    memory = made(b"changing")
    copy = os.dup(memory.fileno())

    with pytest.raises(RemoteProtocolError, match="seals"):
        MemoryObject.received(copy)
    with pytest.raises(OSError):  # refused, it is closed
        os.fstat(copy)
    memory.seal()
    assert bytes(MemoryObject.received(os.dup(memory.fileno())).view(private=False)) == b"changing"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no such descriptors there")
def test_what_is_no_memory_is_refused():
    reading, writing = os.pipe()
    try:
        with pytest.raises(RemoteProtocolError, match="not of shared memory"):
            MemoryObject.received(reading)
    finally:
        os.close(writing)


def test_nothing_of_it_has_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr(memfd, "AVAILABLE", False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory = made(b"no name")
    memory.seal()

    assert bytes(memory.view(private=True)) == b"no name"
    assert list(tmp_path.iterdir()) == []

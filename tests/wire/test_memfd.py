"""Memory that several processes map."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from farm_executor.errors import RemoteProtocolError
from farm_executor.wire import memfd

pytestmark = pytest.mark.skipif(not memfd.AVAILABLE, reason="there is no memfd on this system")

SIZE = 1 << 16


@pytest.fixture
def memory():
    descriptor = memfd.create("farm-test", SIZE)
    yield descriptor
    os.close(descriptor)


def test_what_is_written_through_one_mapping_is_read_through_another(memory):
    with memfd.map_shared(memory, SIZE) as one, memfd.map_shared(memory, SIZE) as other:
        one[:4] = b"farm"
        assert other[:4] == b"farm"


def test_memory_of_a_fixed_size_can_be_neither_truncated_nor_extended(memory):
    memfd.fix_size(memory)

    memfd.check(memory, SIZE)
    for size in (0, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)


def test_memory_that_is_not_as_promised_is_refused(memory, tmp_path):
    with pytest.raises(RemoteProtocolError, match=r"seals \d+, not 7"):
        memfd.check(memory, SIZE)
    memfd.fix_size(memory)
    with pytest.raises(RemoteProtocolError, match=f"of {SIZE} bytes, not {SIZE + 1}"):
        memfd.check(memory, SIZE + 1)
    with open(tmp_path / "file", "wb") as file, pytest.raises(RemoteProtocolError, match="seals|no memfd"):
        memfd.check(file.fileno(), 0)
    reading, writing = os.pipe()
    with open(reading), open(writing, "w"), pytest.raises(RemoteProtocolError, match="no memfd"):
        memfd.check(reading, 0)


def test_a_descriptor_passes_through_a_unix_socket(memory):
    here, there = socket.socketpair()
    with here, there:
        memfd.send(here, b"word", memory)
        word, descriptor = memfd.receive(there)

        assert word == b"word"
        assert descriptor is not None
        assert not os.get_inheritable(descriptor)
        assert os.path.sameopenfile(descriptor, memory)
        os.close(descriptor)


def test_bytes_without_a_descriptor_come_without_one():
    here, there = socket.socketpair()
    with here, there:
        here.send(b"word")
        assert memfd.receive(there) == (b"word", None)
        here.close()
        assert memfd.receive(there) == (b"", None)


def test_where_the_system_does_not_know_the_newest_flag_there_is_memory_nevertheless(monkeypatch):
    make, flags = os.memfd_create, []

    def old(name, given):
        flags.append(given)
        if given & 8:
            raise OSError(errno.EINVAL, "unknown flag")
        return make(name, given)

    monkeypatch.setattr(os, "memfd_create", old)
    os.close(memfd.create("farm-test", SIZE))
    assert len(flags) == 2


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "posix_fallocate"])
def test_where_the_system_has_no_memory_an_error_says_so_and_nothing_stays_open(monkeypatch, call):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "none left")

    monkeypatch.setattr(os, call, refuse)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="none left"):
        memfd.create("farm-test", SIZE)
    assert set(os.listdir("/proc/self/fd")) == before


def test_where_there_is_no_memfd_an_error_says_so(monkeypatch):
    monkeypatch.setattr(memfd, "AVAILABLE", False)
    with pytest.raises(OSError, match="no memfd"):
        memfd.create("farm-test", SIZE)


def test_a_limit_on_addresses_is_an_error_of_mapping():
    code = (
        "import os, resource, sys\n"
        "from farm_executor.wire import memfd\n"
        "descriptor = os.memfd_create('farm-test')\n"
        "os.ftruncate(descriptor, 1 << 30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try:\n"
        "    memfd.map_shared(descriptor, 1 << 30)\n"
        "except OSError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"

"""Each call gets the buffers of its function as they were sent, whatever earlier calls have written to theirs."""

import errno
import os

import pytest

from farm_executor.server.originals import LEAST, Originals

SIZES = (0, 1, LEAST - 1, LEAST, LEAST + 1, 3 * LEAST)


def buffers():
    return [bytearray(number.to_bytes(1, "little") * size) for number, size in enumerate(SIZES)]


@pytest.fixture(params=["mapped", "no memory objects", "no descriptor", "no room"])
def _way(request, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "refused")

    if request.param == "no memory objects":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif request.param == "no descriptor":
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    elif request.param == "no room":
        monkeypatch.setattr(os, "pwrite", refuse)


@pytest.mark.usefixtures("_way")
def test_copies_are_as_the_originals_were_and_can_be_written_to():
    kept = Originals(buffers())
    for _ in range(2):
        copies = kept.copies()
        assert copies == buffers()
        for copy in copies:
            with memoryview(copy) as view:
                view[:] = b"x" * len(view)


@pytest.mark.usefixtures("_way")
def test_bytes_are_the_same_object_for_every_call():
    content = bytes(LEAST)
    assert all(Originals([bytearray(LEAST), content]).copies()[1] is content for _ in range(2))


def test_memory_is_written_in_as_many_steps_as_the_system_takes(monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda memory, data, place: pwrite(memory, data[: LEAST // 3], place))
    assert Originals(buffers()).copies() == buffers()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no memory objects")
def test_copies_outlive_the_originals_and_neither_leaves_a_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    kept = Originals(buffers())
    copies = kept.copies()
    del kept
    assert copies == buffers()
    del copies
    assert len(os.listdir("/proc/self/fd")) == before

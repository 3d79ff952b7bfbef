"""The sockets at the ends of a tunnel, and what its far end keeps."""

import base64
import contextlib
import errno
import json
import os
import socket
import threading

import pytest

from farm_executor.core import tunnel
from farm_executor.core.tunnel import Tunnel, heading, request
from farm_executor.launch import ends as ends_module
from farm_executor.launch import far as far_module
from farm_executor.launch.ends import Ends, Loop
from farm_executor.launch.far import Far


def refused():
    raise OSError("connections are opened here alone")


def test_what_a_peer_has_sent_before_it_closed_arrives_after_the_other_has_said_its_last():
    """When something else comes for the connection, its socket must not be told once more that it has ended."""
    loop, other = Loop(), Tunnel(1)
    ends = Ends(loop, refused)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.callback(loop.close)
        ends.begin(1)
        loop.start()
        ends.listen(listener)
        peer = stack.enter_context(socket.create_connection(listener.getsockname(), 30))
        other.receive(ends.take(30))
        (number,) = other.connections
        other.end(number)
        ends.give(other.take())
        assert peer.recv(1) == b""

        with ends.lock:  # nothing is read meanwhile
            peer.sendall(b"the rest")
            peer.close()
            other._frame(tunnel.CREDIT, number, 0)
            ends.give(other.take())
        came = b""
        while number in other.connections and not other.connections[number].ends:
            other.receive(ends.take(30))
            came = b"".join(other.connections[number].held) if number in other.connections else came
        assert came == b"the rest"


class Full(socket.socket):
    """A listener of a process that has no descriptor left, once it is told so."""

    full = False

    def __init__(self):
        super().__init__()
        self.bind(("127.0.0.1", 0))
        super().listen()
        self.asked = []
        self.was_asked = threading.Event()

    def accept(self):
        if self.full:
            self.asked.append(threading.current_thread())
            self.was_asked.set()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_without_a_descriptor_for_who_connects_the_others_go_on(monkeypatch):
    monkeypatch.setattr(ends_module, "TICK_SECONDS", 3600.0)  # the ticks come from here
    loop, other = Loop(), Tunnel(1)
    ends = Ends(loop, refused)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Full())
        stack.callback(loop.close)
        stack.callback(ends.begin, 2)  # closes what it has accepted
        ends.begin(1)
        loop.start()
        ends.listen(listener)
        peer = stack.enter_context(socket.create_connection(listener.getsockname(), 30))
        other.receive(ends.take(30))
        (number,) = other.connections
        listener.full = True
        late = stack.enter_context(socket.create_connection(listener.getsockname(), 30))
        assert listener.was_asked.wait(30)
        for index in range(200):  # each is a turn of the loop's
            peer.sendall(bytes([index]))
            other.receive(ends.take(30))
            held = other.connections[number].held
            assert bytes(held[0]) == bytes([index])
            other.wrote(number, 1)
        assert len(listener.asked) <= 2  # at most one tick was due
        listener.full = False
        late.sendall(b"late")
        loop.call(lambda: [tick(0.0) for tick in list(loop.ticks)])
        while len(other.connections) < 2 or not (held := other.connections[number + 1].held):
            other.receive(ends.take(30))
        assert bytes(held[0]) == b"late"


def test_of_what_a_server_says_again_and_again_only_the_last_is_kept():
    """Its ways may fail for one reason and another in turn, for as long as it lives."""
    said = [{"tried": way, "error": str(number)} for number in range(50) for way in ("back", "engine")]
    words = [{"ready": True, "server": "s"}, *said]
    command = f"for word in {[json.dumps(word) for word in words]!r}: print('mark' + word)"
    far = Far()
    assert hold(far, command) == {"ready": True, "server": "s"}
    assert [json.loads(word) for word in far._words.values()] == [words[0], *said[-2:]]


@pytest.mark.parametrize("epoch", [0, 7])
def test_words_do_not_pile_up_for_a_near_end_that_is_not_there(epoch, monkeypatch):
    """Nor is one lost to it if it comes, or comes back."""
    monkeypatch.setattr(far_module, "GONE_SECONDS", 0.0)
    far = Far()
    if epoch:
        assert far.give(request(epoch)) == b""
    for number in range(50):
        far._say("back", b"%d" % number)
        assert far.take(far.epoch, 0) == b""
    if epoch:
        epoch, number = heading(far.give(request(epoch)))
        assert (epoch > 7, number) == (True, 0)
    near = Tunnel(epoch + 1)
    assert far.give(request(epoch + 1)) == b""
    near.receive(far.take(epoch + 1, 0))
    assert list(near.words) == [b"49"]
    far._close()


@pytest.mark.parametrize(("value", "passed"), [("65536", None), ("131072", "131072")])
def test_a_server_gives_memory_back_as_everywhere(value, passed, monkeypatch):
    """Dask has its own workers give back at once what is freed, unless somebody has said how much."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", value)
    monkeypatch.setenv("ANOTHER", "one")
    names = ["MALLOC_TRIM_THRESHOLD_", "ANOTHER"]
    command = f"import json, os; print('mark' + json.dumps(dict(ready=[*map(os.environ.get, {names})])))"
    assert hold(Far(), command) == {"ready": [passed, "one"]}


def hold(far, command):
    config = base64.b64encode(b'""\n' + json.dumps({"via": ["back"]}).encode())
    return far.hold("", command, config.decode(), "mark")

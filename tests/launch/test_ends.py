"""The sockets at the ends of a tunnel, and what its far end keeps."""

import base64
import contextlib
import json
import socket

from farm_executor.core import tunnel
from farm_executor.core.tunnel import Tunnel
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


def test_of_what_a_server_says_again_and_again_only_the_last_is_kept():
    """Its ways may fail for one reason and another in turn, for as long as it lives."""
    said = [{"tried": way, "error": str(number)} for number in range(50) for way in ("back", "engine")]
    words = [{"ready": True, "server": "s"}, *said]
    command = f"for word in {[json.dumps(word) for word in words]!r}: print('mark' + word)"
    far = Far()
    config = base64.b64encode(b'""\n' + json.dumps({"via": ["back"]}).encode())
    assert far.hold("", command, config.decode(), "mark") == {"ready": True, "server": "s"}
    assert [json.loads(word) for word in far._words.values()] == [words[0], *said[-2:]]

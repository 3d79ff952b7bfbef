"""The sockets at the ends of a tunnel."""

import contextlib
import socket

from farm_executor.core import tunnel
from farm_executor.core.tunnel import Tunnel
from farm_executor.launch.ends import Ends, Loop


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

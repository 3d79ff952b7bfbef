"""Who has connected, until he has proven the key and said what for.

This module owns the server's half of a connection's beginning, on sockets that do not block: the dialogue of
`core.handshake`, TLS and the same dialogue within it, the hello. It must not know what is done with a hello, nor
when a guest has been here for too long.

What a guest may cost before he has proven the key: the few bytes of the dialogue, once. TLS begins only after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from farm_executor.core.frames import HEADER_SIZE, MAX_HELLO, FrameReader, FrameType
from farm_executor.core.handshake import NONCE_SIZE, Security, ServerHandshake, decode_hello
from farm_executor.core.messages import ClientHello, LaneHello, read_client_hello
from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.wire.connection import no_segment
from farm_executor.wire.dialling import HELLO_RECORDS, begin_tls, handshake_within
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import AnySocket, Socket

__all__ = ["Guest"]


class Guest:
    """One connection.

    Args:
        sock: It, accepted and not blocking.
        host: Where it comes from, without the port.
        name: The same for people to read, with the port.
        keys: Each of which admits.
        local: Whether nobody can read what travels there, so that it is never encrypted.
        deadline: Until when it may stay, on the monotonic clock.

    Attributes:
        socket: The connection; another object once it is sealed or encrypted.
        raw: The connection as it was accepted.
        secured_later: With which of the keys, counted from 1, TLS is to begin after the hellos; 0 if it has begun
            before or is not to begin.
        has_spoken: Whether a byte has come.
        progressed: When the last message was complete, or else when it came, on the monotonic clock.
        secret: What both ends, and they alone, have of this connection; empty where nothing needs it.
    """

    def __init__(
        self, sock: Socket, *, host: str, name: str, keys: Sequence[Key], local: bool, deadline: float
    ) -> None:
        self.socket: AnySocket = sock
        self.host = host
        self.name = name
        self.deadline = deadline
        self.raw = sock
        self.secured_later = 0
        self.secret = b""
        self.has_spoken = False
        self.progressed = time.monotonic()
        self._security = Security.PLAIN
        self._key = keys[0]
        self._keys = keys
        self._local = local
        self._shaking = False  # whether TLS has begun, and is not through
        self._reader = FrameReader(MAX_HELLO, no_segment)
        accepted: dict[bytes, set[Security]] = {}
        for key in keys:
            accepted.setdefault(key.secret, set()).update(_securities(key, local))
        self._handshake = ServerHandshake(accepted, os.urandom(NONCE_SIZE))

    def __repr__(self) -> str:
        if self._shaking:
            state = "within TLS's handshake"
        elif not self._handshake.done:
            state = "proving the key" if self.has_spoken else "silent"
        else:
            state = f"{self._security.name}, hello awaited"
        return f"<Guest {self.name}: {state}>"  # never its secret: this may be logged

    def receive(self) -> ClientHello | None:
        """Read what has come and answer it.

        Returns:
            The hello, once it is there.

        Raises:
            EOFError: The guest has hung up.
            AuthenticationError: He is not admitted, and knows it.
            RemoteProtocolError: He does not speak the protocol.
            OSError: The connection is lost.
        """
        try:
            while not self._handshake.done or self._shaking:
                self._go_on()
            return self._receive_hello()
        except (BlockingIOError, InterruptedError):
            return None

    def _go_on(self) -> None:
        if self._shaking:
            assert not isinstance(self.socket, (Socket, SealedSocket))
            self.socket.do_handshake()
            self._shaking = False
            self._handshake = handshake_within(self._key, self.secret, self.socket)
            return
        data = self.socket.recv(self._handshake.wanted)
        if not data:
            raise EOFError("it hung up")
        self.has_spoken = True
        answer = self._handshake.receive_data(data)
        if answer:  # a message is complete
            self.progressed = time.monotonic()
        self.socket.sendall(answer)
        if self._handshake.refused:
            raise AuthenticationError(self._handshake.refused)
        if self._handshake.done and self.socket is self.raw:
            self._admit()

    def _admit(self) -> None:
        """He has proven a key in the clear."""
        self._security = security = self._handshake.security
        if security is Security.PLAIN:
            return
        self.secret = self._handshake.secret
        number, self._key = next(
            (number, key)
            for number, key in enumerate(self._keys, 1)
            if key.secret == self._handshake.key and security in _securities(key, self._local)
        )
        if security is Security.TLS:
            self.socket = begin_tls(self.raw, self._key)
            self._shaking = True
            return
        self.socket = SealedSocket(self.raw, self.secret, server_side=True)
        if security is Security.TLS_LANE:
            self.secured_later = number

    def _receive_hello(self) -> ClientHello | None:
        data = self.socket.recv(HEADER_SIZE + MAX_HELLO)
        if not data:
            raise EOFError("it hung up")
        frames = self._reader.receive_data(data)
        if not frames:
            return None
        if len(frames) > 1 or self._reader.mid_frame or frames[0].type is not FrameType.HELLO:
            raise RemoteProtocolError("more or less than one hello")
        hello = read_client_hello(decode_hello(frames[0]))
        lane = isinstance(hello, LaneHello)
        if self._security is (Security.TLS if lane else Security.TLS_LANE):
            raise RemoteProtocolError("TLS begins at another place for this role")
        if lane and isinstance(self.socket, SealedSocket) and not self.socket.is_after(HELLO_RECORDS):
            raise RemoteProtocolError("more or less than one record for the hello")  # its worker counts on that
        return hello


def _securities(key: Key, local: bool) -> set[Security]:
    if local:
        return {Security.PLAIN, Security.SEALED}  # the other end may be one of TCP, with a tunnel in between
    if key.tls is None or key.tls.server is None:
        return {Security.SEALED}
    return {Security.TLS, Security.TLS_LANE}

"""A connection that has not yet authenticated or sent its hello.

This module owns the server's half of a connection's beginning, on non-blocking sockets: the dialogue of
`core.handshake`, TLS and the same dialogue within it, and the hello. It must not know what is done with a hello,
nor when a guest has stayed for too long.

Before it has proven the key, a guest costs no more than the few bytes of the dialogue, once. TLS begins only after
that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence, Set

from farm_executor._record import NamedTuple
from farm_executor.core.frames import HEADER_SIZE, MAX_HELLO, FrameType
from farm_executor.core.handshake import NONCE_SIZE, Security, ServerHandshake, decode_hello
from farm_executor.core.messages import BackHello, ClientHello, LaneHello, encode, read_client_hello
from farm_executor.core.reader import FrameReader
from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.wire.connection import no_segment
from farm_executor.wire.dialling import HELLO_RECORDS, begin_tls, handshake_within
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import AnySocket, Socket

__all__ = ["Guest"]


_WITH_TLS = frozenset({Security.TLS, Security.TLS_LANE})


class Guest:
    """One connection that has not sent its hello.

    Args:
        sock: The connection, accepted and non-blocking.
        host: The peer's address, without the port.
        name: The same with the port, for people to read.
        keys: The keys, each of which admits the guest.
        local: Whether nobody else can read the connection, so that it need not be encrypted.
        deadline: When the guest must have sent its hello, on the monotonic clock.

    Attributes:
        socket: The connection; another object once it is sealed or encrypted.
        raw: The connection as it was accepted.
        secured_later: The number of the key, counted from 1, with which TLS begins after the hellos; 0 if it has
            begun before them or does not begin at all.
        has_spoken: Whether any byte has been received.
        beside: Whether it has come by the socket that is for lanes and rings only.
        breaks: Whether the connection may break while both its ends live.
        progressed: When the last message was complete, or else when the guest connected, on the monotonic clock.
        secret: A secret of this connection that only its two ends have; empty where nothing needs one.
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
        self.beside = False
        self.breaks = True
        self.progressed = time.monotonic()
        self._security = Security.PLAIN
        self._key = keys[0]
        self._keys = keys
        self._local = local
        self._shaking = False  # whether TLS's own handshake is under way
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

    @property
    def read_only(self) -> bool:
        """Whether the key that the guest has proven lets it look, and do nothing else."""
        return self._key.read_only

    def receive(self) -> ClientHello | None:
        """Read what has come and answer it.

        Returns:
            The hello once it is complete; None before that.

        Raises:
            EOFError: The guest has hung up.
            AuthenticationError: The guest is not admitted, and has been told.
            RemoteProtocolError: The guest does not speak the protocol.
            OSError: The connection is lost.
        """
        try:
            while not self._handshake.done or self._shaking:
                self._go_on()
            return self._receive_hello()
        except (BlockingIOError, InterruptedError):
            return None

    def reply(self, answer: NamedTuple) -> None:
        """Send a message. It does not block: the message is small, and the first of the connection.

        Raises:
            OSError: The connection is lost.
        """
        self.socket.sendall(b"".join(encode(answer)))

    def _go_on(self) -> None:
        if self._shaking:
            assert not isinstance(self.socket, (Socket, SealedSocket))
            self.socket.do_handshake()
            self._shaking = False
            self._handshake = handshake_within(self._key, self.secret, self.socket)
            return
        # Never more than the dialogue wants: the bytes behind it are for TLS, the sealed socket or the hello.
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
        """Secure the connection of a guest that has proven a key in the clear."""
        self._security = security = self._handshake.security
        number, self._key = next(
            (number, key)
            for number, key in enumerate(self._keys, 1)
            if key.secret == self._handshake.key and security in _securities(key, self._local)
        )
        if security is Security.PLAIN:
            return
        self.secret = self._handshake.secret
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
        lane = isinstance(hello, (LaneHello, BackHello))  # neither goes on with the supervisor's half of it
        if self._security is (Security.TLS if lane else Security.TLS_LANE):
            raise RemoteProtocolError("TLS begins at another place for this role")
        if lane and isinstance(self.socket, SealedSocket) and not self.socket.is_after(HELLO_RECORDS):
            # The worker makes a SealedSocket of its own, which starts to count records after the hellos'; and on a
            # connection of `BackHello` a handshake follows, of which nothing may have been read.
            raise RemoteProtocolError("more or less than one record for the hello")
        return hello


def _securities(key: Key, local: bool) -> Set[Security]:
    encrypts = key.tls is not None and key.tls.server is not None
    if local:
        # The other end may use TCP, with a tunnel in between.
        return {Security.PLAIN, Security.SEALED, *_WITH_TLS} if encrypts else {Security.PLAIN, Security.SEALED}
    return _WITH_TLS if encrypts else {Security.SEALED}

"""Who is there: the first bytes of every connection, for both roles, and the hello that follows.

This module owns the preambles, the proof of the key and the meaning of a hello. It must not know sockets,
clocks or random numbers: nonces are passed in, the caller sets the deadline.

The dialogue, every field of a fixed size, nothing unpickled and no memory taken for a peer without the key::

    1. client -> server   preamble, 48 bytes
    2. server -> client   preamble, 48 bytes; it ends here if the version or the security is not to be had
    3. client -> server   HMAC-SHA256(key, "farm client" + both preambles), 32 bytes
    4. server -> client   1, HMAC-SHA256(key, "farm server" + both preambles), 33 bytes; or 0 and 32 zero bytes:
                          wrong key, and the connection ends

A preamble is::

    offset  size  field
    0       4     "FARM"
    4       1     client: lowest version it speaks;   server: the version chosen, 0 for none in common
    5       1     client: highest version it speaks;  server: the highest it speaks
    6       1     security: see `Security`; server: the client's, or, to refuse that, the one it demands
    7       8     client: which key, see `key_id`;  server: zero
    15      1     zero
    16      32    nonce

Both preambles are covered by both proofs, so nobody in between can lower the version or the security.
Then each side sends one HELLO frame (`frames`): a JSON object of at most 64 KiB.

Who relays these four messages has a connection on which both ends believe to be talking to each other, as they do.
So what follows must be of no use to him: the two ends have a *secret* then, made of the key and both preambles,
with which all that follows is sealed (`seal`); or TLS is bound to it.

Where the two speak TLS, they hold this dialogue twice: first in the clear, so that a stranger costs no more than
without, then within TLS, where each proof also covers the secret of the first dialogue and what is TLS's own of
this connection. So the two dialogues and TLS between them have the same two ends, whoever has a certificate that
the client trusts, or even the server's own private key.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import struct
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from farm_executor.core.frames import Buffer, Frame, FrameType, encode_frame
from farm_executor.core.secret import MIN_KEY_SIZE, Secret
from farm_executor.core.text import one_line
from farm_executor.errors import AuthenticationError, RemoteProtocolError, VersionMismatchError

__all__ = [
    "MAX_VERSION",
    "MIN_MEMORY_LIMIT",
    "NONCE_SIZE",
    "PROTOCOL_VERSION",
    "ClientHandshake",
    "Role",
    "Security",
    "ServerHandshake",
    "Versions",
    "binding_within",
    "decode_hello",
    "describe_mismatches",
    "encode_hello",
    "key_id",
]

MAGIC = b"FARM"
PROTOCOL_VERSION = 3
NONCE_SIZE = 32
MAX_VERSION = 100  # characters of one
MIN_MEMORY_LIMIT = 1024 * 1024  # bytes for a worker: whoever says less means another unit

_KEY_ID_SIZE = 8
_PREAMBLE = struct.Struct(f"<4sBBB{_KEY_ID_SIZE}sB{NONCE_SIZE}s")
_PROOF_SIZE = 32


class Security(enum.IntEnum):
    """What protects what follows a handshake."""

    PLAIN = 0
    """The system: over a unix socket, which nobody else can use."""
    TLS = 1
    """TLS begins right after the proofs."""
    TLS_LANE = 2
    """The hellos are sealed, then TLS begins: the server must know what a lane is for before it starts the worker
    that is to speak TLS."""
    WITHIN_TLS = 3
    """This handshake itself is spoken within TLS."""
    SEALED = 4
    """Everything is sealed."""


def key_id(key: bytes) -> bytes:
    """Eight bytes by which a server that has several keys knows which one is meant; they do not tell the key."""
    return hmac.new(key, b"farm key id", hashlib.sha256).digest()[:_KEY_ID_SIZE]


class Role(str, enum.Enum):
    """What a connection is for; said in the client's hello."""

    CONTROL = "control"
    LANE = "lane"
    ADMIN = "admin"


class Versions(NamedTuple):
    """What must agree, or at least be known, between the two ends.

    A differing Python (implementation or minor version) forbids working together, because pickles of functions
    hold bytecode; a differing cloudpickle or tblib is reported along with it.
    """

    python: str
    cloudpickle: str
    tblib: str
    farm_executor: str
    protocol: int = PROTOCOL_VERSION

    def mismatches(self, other: Versions) -> dict[str, tuple[str, str]]:
        """For each differing name this side's and the other's version."""
        mine, theirs = self._asdict(), other._asdict()
        return {name: (str(mine[name]), str(theirs[name])) for name in mine if mine[name] != theirs[name]}

    @classmethod
    def from_json(cls, data: Any) -> Versions:
        """Read what was made of `_asdict`.

        Raises:
            RemoteProtocolError: It is not of this form.
        """
        if not isinstance(data, dict):
            raise RemoteProtocolError("a hello without versions")
        fields: dict[str, Any] = {name: data.get(name) for name in _VERSION_FIELDS}
        for name, value in fields.items():
            if type(value) is not _VERSION_FIELDS[name]:
                raise RemoteProtocolError(
                    f"malformed versions in a hello: the one of {name} is a {type(value).__name__}"
                )
        if not 0 <= fields["protocol"] <= 255:
            raise RemoteProtocolError("malformed versions in a hello: the protocol is not from 0 to 255")
        texts = {name: one_line(value, MAX_VERSION) for name, value in fields.items() if name != "protocol"}
        return cls(**texts, protocol=fields["protocol"])


_SECURITIES = frozenset(Security)
_WITH_TLS = frozenset({Security.TLS, Security.TLS_LANE, Security.WITHIN_TLS})
_VERSION_FIELDS = {"python": str, "cloudpickle": str, "tblib": str, "farm_executor": str, "protocol": int}


def describe_mismatches(mismatches: dict[str, tuple[str, str]]) -> str:
    """For people: what `Versions.mismatches` found on the client."""
    return ", ".join(f"{name} (client {mine}, server {theirs})" for name, (mine, theirs) in mismatches.items())


class ClientHandshake:
    """The client's half of the dialogue.

    Send what `start` returns, then feed what comes to `receive_data` and send what it returns, until `done`.
    The server says nothing between its proof and its hello, so bytes beyond are an error.

    Args:
        key: The shared secret, at least 16 bytes.
        nonce: 32 fresh random bytes.
        security: What is to follow.
        binding: Within TLS what else both ends must have in common: see `binding_within`.
    """

    def __init__(self, key: bytes, nonce: bytes, security: Security = Security.PLAIN, binding: bytes = b"") -> None:
        _check(key, nonce)
        self._key = key
        self._security = security
        self._binding = binding
        self._mine = _PREAMBLE.pack(MAGIC, PROTOCOL_VERSION, PROTOCOL_VERSION, security, key_id(key), 0, nonce)
        self._theirs = b""
        self._received = b""
        self.done = False

    def start(self) -> bytes:
        """The client's preamble."""
        return self._mine

    @property
    def wanted(self) -> int:
        """How many bytes are to be read next, at most."""
        return (_PREAMBLE.size if not self._theirs else 1 + _PROOF_SIZE) - len(self._received)

    def receive_data(self, data: Buffer) -> bytes:
        """Take bytes from the server; return what to send.

        Raises:
            RemoteProtocolError: The other end is no farm server.
            VersionMismatchError: The two speak no version of the protocol in common.
            AuthenticationError: The server refused our key, or did not prove that it holds it; or one of the two
                speaks TLS and the other does not.
        """
        self._received += bytes(data)
        if not self._theirs:
            if not MAGIC.startswith(self._received[:4]):
                raise RemoteProtocolError("the other end is no farm_executor server")
            if len(self._received) < _PREAMBLE.size:
                return b""
            if len(self._received) > _PREAMBLE.size:
                raise RemoteProtocolError("the server spoke out of turn")
            self._theirs, self._received = self._received, b""
            self._check_preamble()
            return self._proof(b"client")
        if len(self._received) < 1 + _PROOF_SIZE:
            return b""
        if len(self._received) > 1 + _PROOF_SIZE:
            raise RemoteProtocolError("the server spoke out of turn")
        if self._received[0] != 1:
            raise AuthenticationError("the server refused the key: it holds another one")
        if not hmac.compare_digest(self._received[1:], self._proof(b"server")):
            raise AuthenticationError("the server did not prove that it holds the key")
        self.done = True
        return b""

    @property
    def secret(self) -> Secret:
        """32 bytes that, when the dialogue is done, both ends have and nobody else, of this connection alone."""
        return Secret(self._proof(b"secret"))

    def _proof(self, role: bytes) -> bytes:
        return _proof(self._key, role, self._mine, self._theirs, self._binding)

    def _check_preamble(self) -> None:
        _, chosen, highest, security, *_ = _PREAMBLE.unpack(self._theirs)
        if chosen != PROTOCOL_VERSION:
            raise VersionMismatchError(
                f"the client speaks protocol {PROTOCOL_VERSION}, the server up to {highest}: "
                "install the same version of farm_executor on both",
                {"protocol": (str(PROTOCOL_VERSION), str(highest))},
            )
        if security == self._security:
            return
        if security not in _SECURITIES:
            raise RemoteProtocolError(f"the server demands security {security}, which this client does not speak")
        if self._security in _WITH_TLS and security not in _WITH_TLS:
            raise AuthenticationError(
                "the server does not speak TLS, which this client demands: start it with the same key file, "
                "made by farm-executor keygen, or with a certificate"
            )
        if self._security not in _WITH_TLS and security in _WITH_TLS:
            raise AuthenticationError(
                "the server demands TLS: use the key file that farm-executor keygen has made for it, "
                "or an ssl_context that trusts its certificate"
            )
        raise RemoteProtocolError(
            "this unix socket leads to a server that listens on TCP, where everything is sealed: "
            "let the tunnel begin with a TCP port, or end at a unix socket"
        )


class ServerHandshake:
    """The server's half of the dialogue.

    Feed what comes to `receive_data` and send what it returns, until `done` or `refused`; in the second case the
    connection ends after sending.

    Args:
        keys: The shared secrets, each at least 16 bytes, with the securities under which it admits. The first of
            them stands for one that is not there: its securities are what a stranger is told.
        nonce: 32 fresh random bytes.
        binding: See `ClientHandshake`.

    Attributes:
        key: The secret that the client names; None if there is no such one, or it has named none yet.
        security: What the client wants to follow.
    """

    def __init__(self, keys: Mapping[bytes, Collection[Security]], nonce: bytes, binding: bytes = b"") -> None:
        for key in keys:
            _check(key, nonce)
        self._keys = keys
        self._nonce = nonce
        self._binding = binding
        self.key: bytes | None = None
        self.security = Security.PLAIN
        self._mine = b""
        self._theirs = b""
        self._received = b""
        self.done = False
        self.refused = ""

    @property
    def wanted(self) -> int:
        """How many bytes are to be read next, at most."""
        return (_PREAMBLE.size if not self._theirs else _PROOF_SIZE) - len(self._received)

    def receive_data(self, data: Buffer) -> bytes:
        """Take bytes from the client; return what to send.

        Raises:
            RemoteProtocolError: The peer does not speak this protocol. Nothing is to be answered.
        """
        if self.refused:
            raise RemoteProtocolError("the client goes on although it was refused")
        self._received += bytes(data)
        if not self._theirs:
            if not MAGIC.startswith(self._received[:4]):
                raise RemoteProtocolError(f"no farm client: it began with {self._received[:8]!r}")
            if len(self._received) < _PREAMBLE.size:
                return b""
            self._theirs, self._received = self._received[: _PREAMBLE.size], self._received[_PREAMBLE.size :]
            return self._answer_preamble()
        if len(self._received) < _PROOF_SIZE:
            return b""
        if len(self._received) > _PROOF_SIZE:
            raise RemoteProtocolError("the client spoke out of turn")
        if self.key is None or not hmac.compare_digest(self._received, self._proof(self.key, b"client")):
            self.refused = "wrong key"
            return bytes(1 + _PROOF_SIZE)
        self.done = True
        return b"\1" + self._proof(self.key, b"server")

    @property
    def secret(self) -> Secret:
        """See `ClientHandshake.secret`."""
        assert self.key is not None
        return Secret(self._proof(self.key, b"secret"))

    def _proof(self, key: bytes, role: bytes) -> bytes:
        return _proof(key, role, self._theirs, self._mine, self._binding)

    def _answer_preamble(self) -> bytes:
        _, lowest, highest, security, named, zero, _ = _PREAMBLE.unpack(self._theirs)
        if len(self._received) or zero or security not in _SECURITIES or lowest > highest:
            raise RemoteProtocolError("malformed preamble")
        self.key = next((key for key in self._keys if key_id(key) == named), None)
        self.security = Security(security)
        accepted = self._keys[self.key] if self.key is not None else next(iter(self._keys.values()))
        spoken = lowest <= PROTOCOL_VERSION <= highest
        chosen = PROTOCOL_VERSION if spoken else 0
        if not spoken:
            self.refused = f"it speaks protocols {lowest} to {highest}, this server {PROTOCOL_VERSION}"
        elif security not in accepted:
            if security in _WITH_TLS:
                self.refused = "it wants TLS"
            else:
                self.refused = "it comes without " + ("seals" if Security.SEALED in accepted else "TLS")
            security = min(accepted)
        self._mine = _PREAMBLE.pack(MAGIC, chosen, PROTOCOL_VERSION, security, bytes(_KEY_ID_SIZE), 0, self._nonce)
        return self._mine


def _check(key: bytes, nonce: bytes) -> None:
    if len(key) < MIN_KEY_SIZE:
        raise AuthenticationError(f"a key must be at least {MIN_KEY_SIZE} bytes long, not {len(key)}")
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce is {NONCE_SIZE} bytes long, not {len(nonce)}")


def _proof(key: bytes, role: bytes, client: bytes, server: bytes, binding: bytes) -> bytes:
    return hmac.new(key, b"farm " + role + client + server + binding, hashlib.sha256).digest()


def binding_within(secret: bytes, of_tls: bytes) -> bytes:
    """What a dialogue within TLS binds.

    Args:
        secret: Of the dialogue in the clear, over the same connection.
        of_tls: What both ends have of that TLS connection, and of no other.
    """
    return hashlib.sha256(secret + of_tls).digest()


def encode_hello(data: dict[str, Any], kind: FrameType = FrameType.HELLO, seq: int = 0) -> list[Buffer]:
    """A HELLO frame, or one of the other types that carry JSON, with this object."""
    return encode_frame(kind, seq=seq, body=json.dumps(data).encode())


def decode_hello(frame: Frame) -> dict[str, Any]:
    """The object of a frame that carries JSON; what it should hold is in `messages`.

    Raises:
        RemoteProtocolError: The body is no JSON object.
    """
    try:
        data = json.loads(bytes(frame.body))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed {frame.type.name} frame: {error}") from None
    if not isinstance(data, dict):
        raise RemoteProtocolError(f"{frame.type.name} frame holds no JSON object")
    return data

"""The handshake: the first bytes of every connection, for both roles, and the hello that follows.

This module owns the preambles, the proof of the key and the meaning of a hello. It must not know sockets,
clocks or random numbers: nonces are passed in, and the caller sets the deadline.

In the dialogue every field has a fixed size, nothing is unpickled, and no memory is taken for a peer without the
key::

    1. client -> server   preamble, 48 bytes
    2. server -> client   preamble, 48 bytes; the dialogue ends here without a common version and security
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

An attacker who relays these four messages ends up in between two peers that rightly believe to be talking to each
other. The connection must be of no use to the attacker from then on, so the two ends derive a *secret* from the key
and both preambles: everything that follows is sealed with it (`seal`), or TLS is bound to it.

With TLS, the dialogue is held twice: first in the clear, so that a stranger costs no more than without TLS, then
within TLS, where each proof also covers the secret of the first dialogue and a value that belongs to this TLS
connection alone. So both dialogues, and TLS between them, have the same two ends, even if an attacker has a
certificate that the client trusts, or the server's own private key.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import struct
from collections.abc import Collection, Mapping
from typing import Any

from farm_executor._record import NamedTuple
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
PROTOCOL_VERSION = 4
# So long that none is ever drawn twice: a proof is then of no use in another dialogue.
NONCE_SIZE = 32
MAX_VERSION = 100  # characters in one version
MIN_MEMORY_LIMIT = 1024 * 1024  # bytes for a worker: a lower limit was meant in another unit

_KEY_ID_SIZE = 8
_PREAMBLE = struct.Struct(f"<4sBBB{_KEY_ID_SIZE}sB{NONCE_SIZE}s")
_PROOF_SIZE = 32


class Security(enum.IntEnum):
    """How a connection is protected after the handshake."""

    PLAIN = 0
    """By the operating system: a unix socket, which nobody else can use."""
    TLS = 1
    """TLS begins right after the proofs."""
    TLS_LANE = 2
    """The hellos are sealed, then TLS begins: the server must know the purpose of a lane before it starts the
    worker that speaks TLS on it."""
    WITHIN_TLS = 3
    """This handshake itself takes place within TLS."""
    SEALED = 4
    """Everything is sealed."""


def key_id(key: bytes) -> bytes:
    """Return eight bytes that tell a server with several keys which one is meant, without revealing the key."""
    return hmac.new(key, b"farm key id", hashlib.sha256).digest()[:_KEY_ID_SIZE]


class Role(str, enum.Enum):
    """The purpose of a connection, as stated in the client's hello."""

    CONTROL = "control"
    LANE = "lane"
    ADMIN = "admin"
    BACK = "back"
    """A server's own: it waits on this connection for the client at the other end to begin."""


class Versions(NamedTuple):
    """The versions that must agree between the two ends, or at least be known to both.

    Two ends with different Pythons (implementation or minor version) cannot work together, because pickles of
    functions hold bytecode; a different cloudpickle or tblib is reported as well.
    """

    python: str
    cloudpickle: str
    tblib: str
    farm_executor: str
    protocol: int = PROTOCOL_VERSION

    def mismatches(self, other: Versions) -> dict[str, tuple[str, str]]:
        """Return this side's and the other's version for each name in which they differ."""
        mine, theirs = self._asdict(), other._asdict()
        return {name: (str(mine[name]), str(theirs[name])) for name in mine if mine[name] != theirs[name]}

    @classmethod
    def from_json(cls, data: Any) -> Versions:
        """Read an object that was made by `_asdict`.

        Raises:
            RemoteProtocolError: It is not of this form.
        """
        if not isinstance(data, dict):
            raise RemoteProtocolError("a hello without versions")
        fields: dict[str, Any] = {name: data.get(name) for name in _VERSION_FIELDS}
        for name, value in fields.items():
            # Not isinstance, by which JSON's true would pass as a protocol.
            if type(value) is not _VERSION_FIELDS[name]:
                raise RemoteProtocolError(
                    f"malformed versions in a hello: the one of {name} is a {type(value).__name__}"
                )
        # A preamble has one byte for it.
        if not 0 <= fields["protocol"] <= 255:
            raise RemoteProtocolError("malformed versions in a hello: the protocol is not from 0 to 255")
        texts = {name: one_line(value, MAX_VERSION) for name, value in fields.items() if name != "protocol"}
        return cls(**texts, protocol=fields["protocol"])


_SECURITIES = frozenset(Security)
_WITH_TLS = frozenset({Security.TLS, Security.TLS_LANE, Security.WITHIN_TLS})
_VERSION_FIELDS = {"python": str, "cloudpickle": str, "tblib": str, "farm_executor": str, "protocol": int}


def describe_mismatches(mismatches: dict[str, tuple[str, str]]) -> str:
    """Describe for people the client's `Versions.mismatches`."""
    return ", ".join(f"{name} (client {mine}, server {theirs})" for name, (mine, theirs) in mismatches.items())


class ClientHandshake:
    """The client's half of the dialogue.

    Send what `start` returns, then feed received bytes to `receive_data` and send what it returns, until `done`.
    The server sends nothing between its proof and its hello, so bytes beyond an expected message are an error.

    Args:
        key: The shared secret, at least 16 bytes.
        nonce: 32 fresh random bytes.
        security: How the connection is to be protected afterwards.
        binding: Within TLS, what else both ends must have in common: see `binding_within`.

    Attributes:
        done: Whether the server has proven that it holds the key.
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
        """Return the client's preamble."""
        return self._mine

    @property
    def wanted(self) -> int:
        """The number of bytes to read next, at most."""
        return (_PREAMBLE.size if not self._theirs else 1 + _PROOF_SIZE) - len(self._received)

    def receive_data(self, data: Buffer) -> bytes:
        """Take bytes from the server; return what to send.

        Raises:
            RemoteProtocolError: The other end is not a farm server.
            VersionMismatchError: The two have no version of the protocol in common.
            AuthenticationError: The server refused our key, or did not prove that it holds it; or one of the two
                speaks TLS and the other does not.
        """
        self._received += bytes(data)
        if not self._theirs:
            # Checked from the first bytes on: a server of another kind may never send as many as a preamble has.
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
        """32 bytes for this connection alone, which only its two ends have once the dialogue is done."""
        return Secret(self._proof(b"secret"))

    def _proof(self, role: bytes) -> bytes:
        return _proof(self._key, role, self._mine, self._theirs, self._binding)

    def _check_preamble(self) -> None:
        _, chosen, highest, security, *_ = _PREAMBLE.unpack(self._theirs)
        # The version comes first, because it decides what the number of a security means.
        if chosen != PROTOCOL_VERSION:
            raise VersionMismatchError(
                f"the client speaks protocol {PROTOCOL_VERSION}, the server up to {highest}: "
                "install the same version of farm_executor on both",
                {"protocol": (str(PROTOCOL_VERSION), str(highest))},
            )
        if security == self._security:
            return
        # The preamble is not proven yet, so anybody may have written it. It only decides how to fail: to go on with
        # the security that it demands would let somebody in between choose a lower one.
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

    Feed received bytes to `receive_data` and send what it returns, until `done` or `refused`; in the second case
    close the connection after sending.

    Args:
        keys: The shared secrets, each at least 16 bytes, with the securities under which it admits clients. The
            first one's securities are also what a client with an unknown key is told.
        nonce: 32 fresh random bytes.
        binding: See `ClientHandshake`.

    Attributes:
        key: The secret that the client has named; None if it is unknown, or the client has not named one yet.
        security: How the client wants the connection to be protected afterwards.
        done: Whether the client has proven that it holds the key.
        refused: Why the client is refused; empty if it is not.
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
        """The number of bytes to read next, at most."""
        return (_PREAMBLE.size if not self._theirs else _PROOF_SIZE) - len(self._received)

    def receive_data(self, data: Buffer) -> bytes:
        """Take bytes from the client; return what to send.

        Raises:
            RemoteProtocolError: The peer does not speak this protocol. Send no answer.
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
        # An unknown key is refused here rather than after the preamble: the answer is the same as to a wrong proof.
        if self.key is None or not hmac.compare_digest(self._received, self._proof(self.key, b"client")):
            self.refused = "wrong key"
            # As long as the other answer, so that the client knows how many bytes to read.
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
        # An honest client cannot have said more yet: its proof covers the nonce that it is about to get.
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
            # Refused in the preamble, before any proof: the client has to be told which security to use instead.
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
    # The role keeps a proof from being reflected to the end that made it, and the secret from being either proof.
    return hmac.new(key, b"farm " + role + client + server + binding, hashlib.sha256).digest()


def binding_within(secret: bytes, of_tls: bytes) -> bytes:
    """Return the binding for a dialogue within TLS.

    Args:
        secret: The secret of the dialogue in the clear, over the same connection.
        of_tls: A value that both ends have for that TLS connection, and for no other.
    """
    return hashlib.sha256(secret + of_tls).digest()


def encode_hello(data: dict[str, Any], kind: FrameType = FrameType.HELLO, seq: int = 0) -> list[Buffer]:
    """Encode an object as a HELLO frame, or as one of the other types that carry JSON."""
    return encode_frame(kind, seq=seq, body=json.dumps(data).encode())


def decode_hello(frame: Frame) -> dict[str, Any]:
    """Decode the object of a frame that carries JSON; `messages` says what it should hold.

    Raises:
        RemoteProtocolError: The body is not a JSON object.
    """
    try:
        data = json.loads(bytes(frame.body))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed {frame.type.name} frame: {error}") from None
    if not isinstance(data, dict):
        raise RemoteProtocolError(f"{frame.type.name} frame holds no JSON object")
    return data

"""TLS over a connected socket: which certificates are trusted, and the encryption itself.

This is the only module that imports `ssl`. It must not open connections, nor know what is said over them.

Only TLS 1.3 is spoken. Either both sides hold the same key file, show each other the one certificate in it and
trust no other; or the certificates and contexts are the user's own.

A plain `ssl.SSLSocket` must not be read in one thread while another writes to it, as a worker and an engine do. So
the encryption is an `ssl.SSLObject` between two buffers, with one lock around it, and the socket is read and
written outside that lock.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from socket import socket
from ssl import SSLContext
from typing import Any

from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.wire.layered import LayeredSocket
from farm_executor.wire.trusted import read_trusted

__all__ = ["Tls", "TlsSocket", "expiry", "explained", "own_certificate", "own_context", "pinned", "watching"]

PIECE = 256 * 1024  # bytes encrypted at a time; a socket takes about that many at once
_FIRST_READ, _LARGEST_READ = 32 * 1024, 256 * 1024  # a record has slightly more than 16 KiB

_RECORD_HEAD = 5  # bytes; the last two are the length of what follows
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
# Two dates in DER, each UTCTime or GeneralizedTime, in a sequence: only the second counts here.
_DATE = rb"(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)"
_VALIDITY = re.compile(rb"\x30[\x1e\x20\x22]" + _DATE + rb"(?:\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z))")


@dataclass(frozen=True)
class Tls:
    """The TLS contexts of one side of a farm.

    Attributes:
        client: The context for connections it makes; None if it makes none.
        server: The context for connections it accepts; None if it accepts none.
        monitors: The same for clients that may only look, and show no certificate; None if there are none.
    """

    client: SSLContext | None
    server: SSLContext | None
    monitors: SSLContext | None = None


def pinned(content: bytes, path: str | os.PathLike[str]) -> Tls:
    """Make contexts that show the certificate in a key file, prove its private key, and trust only it.

    Args:
        content: The content of the file.
        path: The name of the file, for errors.

    Raises:
        AuthenticationError: The file lacks a certificate or its private key, or the private key is encrypted.
    """
    certificate = _certificates_in(content, path)[0]
    client, server = _context(ssl.PROTOCOL_TLS_CLIENT), _context(ssl.PROTOCOL_TLS_SERVER)
    for context in (client, server):
        context.check_hostname = False  # the certificate itself is pinned, so the host name does not matter
        context.verify_mode = ssl.CERT_REQUIRED
        _load(context, path, content)
        context.load_verify_locations(cadata=certificate.decode())
    # A monitor's key file has no private key, or its holder could pass for a server.
    monitors = _context(ssl.PROTOCOL_TLS_SERVER)
    _load(monitors, path, content)
    return Tls(client, server, monitors)


def watching(content: bytes, path: str | os.PathLike[str]) -> Tls:
    """Make the context of a monitor: it trusts only the certificate in a key file, and shows none.

    Raises:
        AuthenticationError: The file lacks a certificate.
    """
    certificate = _certificates_in(content, path)[0]
    client = _context(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # as for `pinned`
    client.verify_mode = ssl.CERT_REQUIRED
    try:
        client.load_verify_locations(cadata=certificate.decode("ascii", "replace"))
    except (OSError, ValueError) as error:
        raise AuthenticationError(f"cannot read the certificate in {path}: {_why(error)}") from None
    return Tls(client, None)


def own_certificate(
    certificate: str | os.PathLike[str],
    private_key: str | os.PathLike[str] | None,
    client_ca: str | os.PathLike[str] | None,
) -> Tls:
    """Make a server's context from the user's own certificate.

    Args:
        certificate: A PEM file with the certificate, and the chain from it to one that clients trust.
        private_key: A PEM file with its private key; None if that is in the first file.
        client_ca: A PEM file with the certificates that sign those of clients; None if clients need none.

    Raises:
        AuthenticationError: A file cannot be read, does not hold what it should, or the private key is encrypted.
    """
    shown = _read(certificate, "the certificate")
    _certificates_in(shown, certificate)
    proving = None if private_key is None else _read(private_key, "the private key")
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load(context, certificate, shown, private_key, proving)
    if client_ca is not None:
        trusted = _CERTIFICATE.findall(_read(client_ca, "certificates"))
        if not trusted:
            raise AuthenticationError(f"cannot read certificates in {client_ca}: there is none")
        try:
            context.load_verify_locations(cadata="\n".join(each.decode("ascii", "replace") for each in trusted))
        except (OSError, ValueError) as error:
            raise AuthenticationError(f"cannot read certificates in {client_ca}: {_why(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return Tls(None, context, context)


def own_context(context: Any) -> Tls:
    """Wrap the user's own context for a client.

    Raises:
        TypeError: The context is not an `ssl.SSLContext`.
    """
    if not isinstance(context, SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not a {type(context).__name__}")
    return Tls(context, None)


def _context(protocol: int) -> SSLContext:
    context = SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # sessions are never resumed
    return context


def _read(path: str | os.PathLike[str], what: str) -> bytes:
    try:
        return read_trusted(path, what, secret=False)
    except OSError as error:
        raise AuthenticationError(f"cannot read {what} in {path}: {error.strerror}") from None


def _certificates_in(content: bytes, path: str | os.PathLike[str]) -> list[bytes]:
    found = _CERTIFICATE.findall(content)
    if not found:
        raise AuthenticationError(f"there is no certificate in {path}")
    return found


def expiry(path: str | os.PathLike[str]) -> str | None:
    """Return the date on which the certificate in a file expired, in UTC; None if it has not expired.

    Raises:
        AuthenticationError: See `own_certificate`.
    """
    first = _certificates_in(_read(path, "the certificate"), path)[0]
    try:
        found = _VALIDITY.search(ssl.PEM_cert_to_DER_cert(first.decode("ascii")))
        if found is None:
            return None
        text = (found[1] or found[2]).decode()
        form = "%y%m%d%H%M%SZ" if found[1] else "%Y%m%d%H%M%SZ"
        ended = dt.datetime.strptime(text, form).replace(tzinfo=dt.timezone.utc)
    except ValueError:
        return None  # loading the certificate will report the error
    return None if ended > dt.datetime.now(dt.timezone.utc) else f"{ended:%Y-%m-%d}"


@contextlib.contextmanager
def _named(content: bytes, path: str | os.PathLike[str]) -> Iterator[str | os.PathLike[str]]:
    """Provide a file name for content already read, since OpenSSL only takes names: that of a pipe holding it.

    Reading the file again by its own name could find another file there than the one that was checked. Where pipes
    have no names, as on Windows, the name is the file's own.
    """
    if not os.path.exists("/dev/fd"):
        yield path
        return
    read_end, write_end = os.pipe()
    try:
        os.set_blocking(write_end, False)  # a pipe takes 64 KiB
        with open(write_end, "wb", buffering=0) as file:
            if file.write(content) != len(content):
                raise AuthenticationError(f"{path} is too large")
        yield f"/dev/fd/{read_end}"
    finally:
        os.close(read_end)


def _load(
    context: SSLContext,
    certificate: str | os.PathLike[str],
    shown: bytes,
    private_key: str | os.PathLike[str] | None = None,
    proving: bytes | None = None,
) -> None:
    """Load the certificate to show and its private key, from the same file or from one of its own."""

    def ask_nobody() -> str:  # without it, OpenSSL would prompt at the terminal
        raise AuthenticationError(f"the private key in {private_key or certificate} must not be encrypted")

    try:
        with (
            _named(shown, certificate) as first,
            _named(shown if proving is None else proving, private_key or certificate) as second,
        ):
            context.load_cert_chain(first, second, ask_nobody)
    except OSError as error:
        where = f"{certificate} and {private_key}" if private_key else certificate
        raise AuthenticationError(f"no certificate with its private key in {where}: {_why(error)}") from None


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


class TlsSocket(LayeredSocket):
    """A connected socket whose bytes travel encrypted; call `do_handshake` first.

    Args:
        sock: The connection; this object takes ownership of it.
        context: The certificates to show and to trust.
        server_side: Whether the other end has made the connection.
        host: The name that the server's certificate must have, where the context demands one.

    See `LayeredSocket` for how it receives and sends.
    """

    piece = PIECE

    def __init__(self, sock: socket, context: SSLContext, *, server_side: bool, host: str | None = None) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = host if context.check_hostname else None
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=name)
        self._lock = threading.Lock()  # for the TLS object and its two buffers
        self._cipher = memoryview(bytearray(_FIRST_READ))
        self._plain = memoryview(b"")  # decrypted, and not asked for yet
        self._ended = False  # whether the other end has finished sending
        self._unsent = memoryview(b"")  # encrypted, and not taken by the socket yet
        self._accepted = 0  # the number of the caller's bytes in it
        self._head = b""  # the head of the record being received, as far as it has arrived
        self._missing = 0  # the number of bytes of that record's body still to come

    # -- the handshake ---------------------------------------------------------------------------------

    def do_handshake(self, deadline: float | None = None) -> None:
        """Agree on keys, show and check certificates.

        Args:
            deadline: Monotonic time, for a blocking socket. None for a non-blocking one; call this again whenever
                there is something to read.

        Raises:
            BlockingIOError: The other end has yet to answer.
            TimeoutError: The other end did not answer in time.
            EOFError: The other end hung up.
            AuthenticationError: Either end does not trust a certificate.
            RemoteProtocolError: The other end does not speak TLS 1.3.
            OSError: The connection is lost.
        """
        while True:
            if deadline is not None:
                self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                with self._lock:
                    done = self._shake()
                    said = self._outgoing.read()
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):  # send the alert to the other end
                    self._sock.sendall(self._outgoing.read())
                raise explained(error) from None
            if said:
                self._sock.sendall(said)  # does not block: it is small, and the socket's buffer is empty
            if done:
                return
            count = self._sock.recv_into(self._cipher)
            if not count:
                raise EOFError("the other end hung up during the TLS handshake")
            self._count(self._cipher[:count])
            self._incoming.write(self._cipher[:count])

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._plain = self._decrypt_rest()  # data may have come with the last handshake message
        return True

    def binding(self) -> bytes:
        """Return a value that, after the handshake, both ends share for this connection and for no other.

        It is the client's Finished message: an HMAC, with a key derived from both ends' ephemeral keys, over the
        whole handshake up to there, certificates included. (Python does not offer the exporter of TLS 1.3, and
        gives this under its name from TLS 1.2.)

        Raises:
            RemoteProtocolError: The connection does not use TLS 1.3; with older versions this would not hold.
        """
        binding = self._tls.get_channel_binding("tls-unique") if self._tls.version() == "TLSv1.3" else None
        if not binding:
            raise RemoteProtocolError("the other end does not speak TLS 1.3")
        return binding

    def _count(self, came: memoryview) -> None:
        """Count whole records."""
        while came:
            if not self._missing:
                wanted = _RECORD_HEAD - len(self._head)
                self._head += came[:wanted]
                came = came[wanted:]
                if len(self._head) < _RECORD_HEAD:
                    return
                self._missing = int.from_bytes(self._head[-2:], "big")
            step = min(self._missing, len(came))
            self._missing -= step
            came = came[step:]
            if not self._missing:
                self.bytes_received += _RECORD_HEAD + int.from_bytes(self._head[-2:], "big")
                self._head = b""

    # -- receiving -------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """See `LayeredSocket.pending`."""
        return bool(self._plain)

    def recv_into(self, buffer: Any) -> int:
        """Receive into a buffer; see the base class for the differences from a socket.

        Raises:
            BlockingIOError: Less than a record has arrived.
            TimeoutError: The socket has a timeout, and it has expired.
            OSError: The connection is lost, or somebody has tampered with the traffic; see `explained`.
        """
        target = memoryview(buffer).cast("B")
        if self._ended and not self._plain:
            return 0
        if not self._plain:
            came = self._sock.recv_into(self._cipher)
            if not came:
                self._ended = True
                return 0
            self._count(self._cipher[:came])
            with self._lock:
                self._incoming.write(self._cipher[:came])
                count = self._decrypt(target)
                if count == len(target):
                    self._plain = self._decrypt_rest()
            if came == len(self._cipher) < _LARGEST_READ:
                self._cipher = memoryview(bytearray(2 * came))
            if not count and not self._ended:
                raise BlockingIOError("less than a record has come")
            return count
        count = min(len(target), len(self._plain))
        target[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _decrypt(self, target: memoryview) -> int:
        """Fill the target as far as there is data; return the number of bytes."""
        count = 0
        # Look for pending data before each read, since the exception for "nothing there" is expensive.
        while count < len(target) and (self._incoming.pending or self._tls.pending()):
            try:
                got: Any = self._tls.read(len(target) - count, target[count:])
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                got = 0
            except ssl.SSLError:
                self._ended = True
                raise
            if not got:
                self._ended = True
                break
            count += got
        return count

    def _decrypt_rest(self) -> memoryview:
        rest = bytearray(self._incoming.pending + self._tls.pending())
        return memoryview(rest)[: self._decrypt(memoryview(rest))]

    # -- sending ---------------------------------------------------------------------------------------

    def send(self, data: Any) -> int:
        """See `layered.LayeredSocket.send`."""
        if not self._unsent:
            piece = memoryview(data).cast("B")[:PIECE]
            if not piece:
                return 0
            with self._lock:
                self._accepted = self._tls.write(piece)
                self._unsent = memoryview(self._outgoing.read())
        while self._unsent:
            count = self._sock.send(self._unsent)
            self.bytes_sent += count
            self._unsent = self._unsent[count:]
        return self._accepted


def explained(error: OSError) -> Exception:
    """Translate an OpenSSL error into one of ours where the user has to act; return other errors unchanged."""
    if not isinstance(error, ssl.SSLError):
        return error
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthenticationError(f"the other end's certificate is not trusted: {error.verify_message}")
    if "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA")):
        return AuthenticationError(f"the other end does not trust our certificate: {_why(error)}")
    if "CERTIFICATE" in reason:  # for instance, none was shown at all
        return AuthenticationError(f"the other end has shown no certificate that is trusted: {_why(error)}")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return EOFError("the other end hung up during the TLS handshake")
    return RemoteProtocolError(f"the other end does not speak TLS as we do: {_why(error)}")

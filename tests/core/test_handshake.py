"""The handshake: two that hold the key find each other; nobody else gets past either of them."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import EVERY_BYTE, Cuts, cuts, joined, json_objects, json_values, keys, mutated, nonces, versions

from farm_executor.core.frames import BULK, MAX_HELLO, Frame, FrameType, encode_frame
from farm_executor.core.handshake import (
    NONCE_SIZE,
    PROTOCOL_VERSION,
    ClientHandshake,
    Role,
    Security,
    ServerHandshake,
    Versions,
    decode_hello,
    encode_hello,
    key_id,
)
from farm_executor.core.reader import FrameReader
from farm_executor.errors import AuthenticationError, RemoteProtocolError, VersionMismatchError

unhurried = settings(deadline=None)

KEY = b"a key of the farm"
OTHER_KEY = b"another key of it"
CLIENT_NONCE = bytes(range(NONCE_SIZE))
SERVER_NONCE = bytes(range(100, 100 + NONCE_SIZE))

Half = ClientHandshake | ServerHandshake
Tamper = Callable[[int, bytes], bytes]
"""Somebody in between: given the message's number (1 to 4, as in the module's dialogue) and bytes, other bytes."""


def preamble(
    nonce: bytes,
    lowest: int = PROTOCOL_VERSION,
    highest: int = PROTOCOL_VERSION,
    security: int = 0,
    key: bytes | None = KEY,
) -> bytes:
    """A client's preamble, or with None for the key a server's, laid out by hand from the table in the module."""
    named = bytes(8) if key is None else hmac.new(key, b"farm key id", hashlib.sha256).digest()[:8]
    return b"FARM" + bytes([lowest, highest, security]) + named + b"\0" + nonce


def proof(key: bytes, role: bytes, client: bytes, server: bytes, binding: bytes = b"") -> bytes:
    return hmac.new(key, b"farm " + role + client + server + binding, hashlib.sha256).digest()


def client(key: bytes = KEY, nonce: bytes = CLIENT_NONCE) -> ClientHandshake:
    return ClientHandshake(key, nonce)


def server(key: bytes = KEY, nonce: bytes = SERVER_NONCE) -> ServerHandshake:
    return ServerHandshake({key: {Security.PLAIN}}, nonce)


def over(half: Half) -> bool:
    return half.done or (isinstance(half, ServerHandshake) and bool(half.refused))


def give(half: Half, data: bytes, cut: Cuts) -> tuple[bytes, bytes]:
    """What a driver does with arriving bytes: it reads as many as are wanted, until the half is over.

    Returns:
        What the half answered, and the bytes left unread.
    """
    answer = b""
    for piece in cut(data):
        while piece and not over(half):
            now, piece = piece[: half.wanted], piece[half.wanted :]
            data = data[len(now) :]
            answer += half.receive_data(now)
    return answer, data


def converse(
    one: ClientHandshake, other: Half, cut: Cuts, tamper: Tamper = lambda _, data: data
) -> list[Exception]:
    """Let the two talk until one has nothing more to say; return what they raised.

    A side that raises closes its connection: the other hears nothing more.
    """
    numbers = count(1)
    listener: Half = other
    speaker: Half = one
    message = one.start()
    while message:
        try:
            answer, _ = give(listener, tamper(next(numbers), message), cut)
        except Exception as error:
            return [error]
        message = answer
        speaker, listener = listener, speaker
    return []


def outcome(half: Half, pieces: Iterable[bytes]) -> Exception | None:
    """Give a stranger's bytes to the half; it must not end done, and must raise only what it documents."""
    try:
        for piece in pieces:
            half.receive_data(piece)
            assert not half.done
            if over(half):
                break
            assert half.wanted > 0
    except RemoteProtocolError as error:
        return error
    except (AuthenticationError, VersionMismatchError) as error:
        assert isinstance(half, ClientHandshake), "a server tells strangers nothing by way of exceptions"
        return error
    finally:
        assert not half.done
    return None


def transcript(key: bytes = KEY, a: bytes = CLIENT_NONCE, b: bytes = SERVER_NONCE) -> tuple[bytes, bytes]:
    """The bytes of a genuine dialogue: the client's, and the server's."""
    said = {1: b"", 2: b"", 3: b"", 4: b""}

    def listen(number: int, data: bytes) -> bytes:
        said[number] = data
        return data

    assert converse(client(key, a), server(key, b), EVERY_BYTE, listen) == []
    return said[1] + said[3], said[2] + said[4]


# -- those who hold the key ---------------------------------------------------------------------------------


@unhurried
@given(keys, nonces, nonces, cuts)
def test_two_that_hold_the_key_are_done_under_any_chunking(key: bytes, a: bytes, b: bytes, cut: Cuts) -> None:
    one, other = client(key, a), server(key, b)
    assert converse(one, other, cut) == []
    assert one.done
    assert other.done
    assert other.refused == ""


def test_the_dialogue_is_the_documented_one_byte_by_byte() -> None:
    first, second = preamble(CLIENT_NONCE), preamble(SERVER_NONCE, key=None)
    assert transcript() == (
        first + proof(KEY, b"client", first, second),
        second + b"\1" + proof(KEY, b"server", first, second),
    )


def test_each_half_wants_no_more_than_the_next_message() -> None:
    """What comes behind the handshake is not eaten by it."""
    one, other = client(), server()
    assert (one.wanted, other.wanted) == (48, 48)
    assert other.receive_data(one.start()[:40]) == b""
    assert other.wanted == 8
    answer = other.receive_data(one.start()[40:])
    assert other.wanted == 32
    says = one.receive_data(answer)
    assert one.wanted == 33
    says, left = give(other, says + b"what follows", Cuts((1000,)))
    assert other.done
    assert left == b"what follows"
    assert give(one, says + b"what follows", Cuts((7,))) == (b"", b"what follows")
    assert one.done


@pytest.mark.parametrize("half", [client, server])
def test_a_key_too_short_and_a_nonce_of_another_size_are_refused_here(half: Callable[[bytes, bytes], Half]) -> None:
    with pytest.raises(AuthenticationError, match="16 bytes"):
        half(b"x" * 15, CLIENT_NONCE)
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="nonce"):
            half(KEY, bytes(size))


# -- wrong key, other versions ------------------------------------------------------------------------------


same_size = st.binary(min_size=32, max_size=32)  # HMAC pads with zeros: b"k" and b"k\0" are one key


@unhurried
@given(same_size, same_size, cuts)
def test_a_wrong_key_is_an_authentication_error_there_and_a_refusal_here(
    key: bytes, other_key: bytes, cut: Cuts
) -> None:
    assume(key != other_key)
    one, other = client(key), server(other_key)
    (error,) = converse(one, other, cut)
    assert isinstance(error, AuthenticationError)
    assert "key" in str(error)
    assert other.refused == "wrong key"
    assert not one.done
    assert not other.done


def test_a_refusal_says_nothing_about_the_key() -> None:
    other = server()
    other.receive_data(client(OTHER_KEY).start())
    assert other.receive_data(bytes(32)) == bytes(33)


def test_a_server_that_accepts_any_key_does_not_pass_for_ours() -> None:
    one = client()
    one.receive_data(preamble(SERVER_NONCE, key=None))
    with pytest.raises(AuthenticationError, match="prove"):
        one.receive_data(b"\1" + proof(OTHER_KEY, b"server", one.start(), preamble(SERVER_NONCE, key=None)))
    assert not one.done


OURS, OTHER = PROTOCOL_VERSION, PROTOCOL_VERSION + 1


@pytest.mark.parametrize(("lowest", "highest"), [(OTHER, OTHER), (OTHER, 255), (0, OURS - 1)])
def test_a_client_of_other_versions_is_told_ours_and_refused(lowest: int, highest: int) -> None:
    other = server()
    assert other.receive_data(preamble(CLIENT_NONCE, lowest, highest)) == preamble(
        SERVER_NONCE, 0, PROTOCOL_VERSION, key=None
    )
    assert str(highest) in other.refused
    assert not other.done


@pytest.mark.parametrize(("lowest", "highest"), [(OURS, OURS), (0, OURS), (OURS, 255), (0, 255)])
def test_a_client_whose_versions_include_ours_is_given_ours(lowest: int, highest: int) -> None:
    other = server()
    first = preamble(CLIENT_NONCE, lowest, highest)
    second = other.receive_data(first)
    assert second == preamble(SERVER_NONCE, key=None)
    assert other.receive_data(proof(KEY, b"client", first, second))
    assert other.done


def test_a_refused_client_is_not_let_in_afterwards() -> None:
    other = server()
    first = preamble(CLIENT_NONCE, OTHER, 9)
    second = other.receive_data(first)
    try:
        other.receive_data(proof(KEY, b"client", first, second))
    except RemoteProtocolError:
        pass
    assert not other.done


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(preamble(CLIENT_NONCE, 2, 1), id="lowest above highest"),
        pytest.param(preamble(CLIENT_NONCE, security=5), id="no such security"),
        pytest.param(preamble(CLIENT_NONCE)[:15] + b"\1" + preamble(CLIENT_NONCE)[16:], id="not zero"),
        pytest.param(preamble(CLIENT_NONCE) + b"x", id="more than a preamble"),
    ],
)
def test_a_malformed_preamble_is_refused_by_the_server(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        server().receive_data(data)


@pytest.mark.parametrize("chosen", [0, 1, 255])
def test_a_server_of_other_versions_is_a_version_mismatch(chosen: int) -> None:
    one = client()
    with pytest.raises(VersionMismatchError, match="install the same version") as caught:
        one.receive_data(preamble(SERVER_NONCE, chosen, 7))
    assert caught.value.mismatches == {"protocol": (str(PROTOCOL_VERSION), "7")}
    assert not one.done


# -- TLS and several keys -----------------------------------------------------------------------------------


TLS = frozenset({Security.TLS, Security.TLS_LANE})


def encrypted_client(security: Security = Security.TLS, key: bytes = KEY, binding: bytes = b"") -> ClientHandshake:
    return ClientHandshake(key, CLIENT_NONCE, security, binding)


@pytest.mark.parametrize("security", Security)
def test_the_security_that_the_client_wants_is_known_to_the_server(security: Security) -> None:
    one, other = encrypted_client(security), ServerHandshake({KEY: set(Security)}, SERVER_NONCE)
    assert converse(one, other, EVERY_BYTE) == []
    assert (one.done, other.done, other.security, other.key) == (True, True, security, KEY)


def test_a_plain_client_of_an_encrypted_server_is_told_to_use_its_key_file() -> None:
    one, other = client(), ServerHandshake({KEY: TLS}, SERVER_NONCE)
    (error,) = converse(one, other, EVERY_BYTE)
    assert isinstance(error, AuthenticationError)
    assert "demands TLS" in str(error)
    assert "keygen" in str(error)
    assert other.refused == "it comes without TLS"


@pytest.mark.parametrize("security", [Security.TLS, Security.TLS_LANE])
def test_an_encrypting_client_of_a_plain_server_is_told_so(security: Security) -> None:
    one, other = encrypted_client(security), server()
    (error,) = converse(one, other, EVERY_BYTE)
    assert isinstance(error, AuthenticationError)
    assert "does not speak TLS" in str(error)
    assert other.refused == "it wants TLS"


def test_a_server_that_demands_security_which_we_do_not_know_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="security 9"):
        encrypted_client().receive_data(preamble(SERVER_NONCE, security=9, key=None))


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_each_of_a_servers_keys_admits(key: bytes) -> None:
    one = client(key)
    other = ServerHandshake({KEY: {Security.PLAIN}, OTHER_KEY: {Security.PLAIN}}, SERVER_NONCE)
    assert converse(one, other, EVERY_BYTE) == []
    assert (one.done, other.done, other.key) == (True, True, key)


def test_the_first_key_of_a_server_is_what_a_client_with_none_of_them_is_measured_by() -> None:
    keys = {KEY: TLS, OTHER_KEY: frozenset({Security.PLAIN})}
    (error,) = converse(client(b"a third key of it"), ServerHandshake(keys, SERVER_NONCE), EVERY_BYTE)
    assert "demands TLS" in str(error)
    (error,) = converse(encrypted_client(key=b"a third key of it"), ServerHandshake(keys, SERVER_NONCE), EVERY_BYTE)
    assert "refused the key" in str(error)


def test_a_key_admits_under_its_own_security_only() -> None:
    keys = {KEY: TLS, OTHER_KEY: frozenset({Security.PLAIN})}
    other = ServerHandshake(keys, SERVER_NONCE)
    (error,) = converse(client(), other, EVERY_BYTE)
    assert "demands TLS" in str(error)
    assert not other.done
    one, other = client(OTHER_KEY), ServerHandshake(keys, SERVER_NONCE)
    assert converse(one, other, EVERY_BYTE) == []
    assert one.done


def test_within_tls_both_must_have_the_same_connection() -> None:
    mine, theirs = b"m" * 32, b"t" * 32
    for seen, agrees in ((mine, True), (theirs, False), (b"", False)):
        one = encrypted_client(Security.WITHIN_TLS, binding=seen)
        other = ServerHandshake({KEY: {Security.WITHIN_TLS}}, SERVER_NONCE, mine)
        errors = converse(one, other, EVERY_BYTE)
        assert (one.done, other.done, errors == []) == (agrees, agrees, agrees)


def test_what_is_said_in_the_clear_does_not_do_within_tls() -> None:
    """Also where the certificate were the same: the proofs cover at which of the two they are spoken."""
    inner = ServerHandshake({KEY: {Security.WITHIN_TLS}}, SERVER_NONCE)
    for security in (Security.PLAIN, Security.TLS, Security.TLS_LANE):
        one = encrypted_client(security)
        answer = ServerHandshake({KEY: {Security.WITHIN_TLS}}, SERVER_NONCE).receive_data(one.start())
        with pytest.raises((AuthenticationError, RemoteProtocolError)):
            one.receive_data(answer)
    within = encrypted_client(Security.WITHIN_TLS).start()
    said = one.start()
    forged = within[:6] + said[6:7] + within[7:]
    proof_in_the_clear = proof(KEY, b"client", forged, inner.receive_data(within))
    assert inner.receive_data(proof_in_the_clear) == bytes(33)
    assert inner.refused == "wrong key"


def test_a_keys_name_does_not_tell_the_key() -> None:
    assert len(key_id(KEY)) == 8
    assert key_id(KEY) != key_id(OTHER_KEY)
    assert key_id(KEY) not in (KEY[:8], hashlib.sha256(KEY).digest()[:8])


# -- hostile peers ------------------------------------------------------------------------------------------


def a_server_that_has_the_preamble() -> ServerHandshake:
    half = server()
    half.receive_data(preamble(CLIENT_NONCE))
    return half


def a_client_that_has_the_preamble() -> ClientHandshake:
    half = client()
    half.receive_data(preamble(SERVER_NONCE))
    return half


HALVES = [client, server, a_client_that_has_the_preamble, a_server_that_has_the_preamble]
hostile = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=100).map(b"FARM".__add__),
    st.binary(max_size=60).map(preamble(b"").__add__),
    st.binary(min_size=32, max_size=60).map(b"\1".__add__),
    st.sampled_from(range(256)).map(lambda first: bytes([first]) + bytes(80)),
)


@pytest.mark.parametrize("half", HALVES)
@unhurried
@given(st.data(), hostile, cuts)
def test_no_bytes_whatever_get_past_a_half(
    half: Callable[[], Half], data: st.DataObject, stream: bytes, cut: Cuts
) -> None:
    outcome(half(), cut(stream))


@pytest.mark.parametrize(
    "stream", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"SSH-2.0-x", b"FARN", b"\0"]
)
@pytest.mark.parametrize("half", [client, server])
def test_a_peer_of_another_protocol_is_refused_with_the_first_byte_that_differs(
    half: Callable[[], Half], stream: bytes
) -> None:
    same = next(i for i in range(4) if stream[i : i + 1] != b"FARM"[i : i + 1])
    one = half()
    assert one.receive_data(stream[:same]) == b""
    with pytest.raises(RemoteProtocolError):
        one.receive_data(stream[same : same + 1])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@unhurried
@given(st.data(), cuts)
def test_a_message_changed_on_its_way_gets_nobody_in(number: int, data: st.DataObject, cut: Cuts) -> None:
    """Changed, shortened or lengthened at any position: who was to hear it is not done."""
    one, other = client(), server()

    def tamper(now: int, message: bytes) -> bytes:
        if now != number:
            return message
        changed = data.draw(mutated(message))
        assume(not changed.startswith(message))  # a byte too many behind it belongs to what follows
        return changed

    for error in converse(one, other, cut, tamper):
        assert isinstance(error, RemoteProtocolError | AuthenticationError | VersionMismatchError)
    assert not one.done
    # The fourth message is the server's answer to a client that has proven its key: only the client is deceived.
    assert other.done == (number == 4)


@pytest.mark.parametrize("position", range(48))
@pytest.mark.parametrize("number", [1, 2])
def test_each_byte_of_a_preamble_is_covered_by_the_proofs(number: int, position: int) -> None:
    def tamper(now: int, message: bytes) -> bytes:
        if now != number:
            return message
        return message[:position] + bytes([message[position] ^ 1]) + message[position + 1 :]

    one, other = client(), server()
    converse(one, other, Cuts((1000,)), tamper)
    assert not one.done
    assert not other.done


@unhurried
@given(keys, nonces, cuts)
def test_a_client_does_not_take_its_own_words_for_a_server(key: bytes, nonce: bytes, cut: Cuts) -> None:
    one = client(key, nonce)
    own = one.start()
    echoes: Iterator[bytes] = cut(own)
    assert give(one, b"".join(echoes), cut)[0] == proof(key, b"client", own, own)
    outcome(one, cut(proof(key, b"client", own, own)))
    assert not one.done
    again = client(key, nonce)
    again.receive_data(own)
    outcome(again, [b"\1" + proof(key, b"client", own, own)])


@unhurried
@given(keys, nonces, nonces, cuts)
def test_two_clients_do_not_take_each_other_for_a_server(key: bytes, a: bytes, b: bytes, cut: Cuts) -> None:
    one, other = client(key, a), client(key, b)
    one_says = give(one, other.start(), cut)[0]
    other_says = give(other, one.start(), cut)[0]
    outcome(one, cut(other_says + other_says[:1]))
    outcome(other, [b"\1" + one_says])


@unhurried
@given(keys, nonces, nonces, cuts)
def test_a_server_does_not_take_its_own_proof_for_a_clients(key: bytes, a: bytes, b: bytes, cut: Cuts) -> None:
    other = server(key, b)
    first = preamble(a, key=key)
    second = other.receive_data(first)
    outcome(other, cut(proof(key, b"server", first, second)))
    assert other.refused == "wrong key"


@unhurried
@given(keys, nonces, nonces, nonces, cuts)
def test_a_session_recorded_is_of_no_use_in_another(
    key: bytes, a: bytes, b: bytes, fresh: bytes, cut: Cuts
) -> None:
    assume(fresh not in (a, b))
    from_client, from_server = transcript(key, a, b)
    again = server(key, fresh)
    assert outcome(again, iter([from_client[:48], *cut(from_client[48:])])) is None
    assert again.refused == "wrong key"
    error = outcome(client(key, fresh), iter([from_server[:48], *cut(from_server[48:])]))
    assert isinstance(error, AuthenticationError)


@unhurried
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_nobody_in_between_can_change_versions_or_security(lowest: int, highest: int, security: int) -> None:
    changed = bytes([lowest, highest, security])
    assume(changed != bytes([PROTOCOL_VERSION, PROTOCOL_VERSION, 0]))
    for number in (1, 2):
        one, other = client(), server()
        converse(
            one,
            other,
            Cuts((1000,)),
            lambda now, message, number=number: message[:4] + changed + message[7:] if now == number else message,
        )
        assert not one.done
        assert not other.done


@pytest.mark.parametrize("half", [a_client_that_has_the_preamble, a_server_that_has_the_preamble])
def test_who_speaks_out_of_turn_is_refused(half: Callable[[], Half]) -> None:
    one = half()
    with pytest.raises(RemoteProtocolError, match="out of turn"):
        one.receive_data(bytes(one.wanted + 1))


def test_a_server_that_goes_on_behind_its_preamble_is_refused() -> None:
    """It cannot know our proof yet; and with ``wanted`` used up a driver would wait for nothing."""
    with pytest.raises(RemoteProtocolError):
        client().receive_data(preamble(SERVER_NONCE) + bytes(33))


# -- the hello ----------------------------------------------------------------------------------------------


def hello_of(body: bytes) -> Frame:
    return Frame(FrameType.HELLO, body=body)


@unhurried
@given(json_objects, cuts)
def test_a_hello_is_read_as_it_was_encoded(data: dict[str, Any], cut: Cuts) -> None:
    reader = FrameReader(max_body=MAX_HELLO)
    (frame,) = (frame for piece in cut(joined(encode_hello(data))) for frame in reader.receive_data(piece))
    assert frame.type is FrameType.HELLO
    # Compared as text, for the sake of NaN.
    assert json.dumps(decode_hello(frame)) == json.dumps(data)


@pytest.mark.parametrize("kind", [FrameType.HELLO, FrameType.REFUSED])
def test_what_is_malformed_is_named(kind: FrameType) -> None:
    for body in (b"", b"[]", b"{"):
        with pytest.raises(RemoteProtocolError, match=kind.name):
            decode_hello(Frame(kind, body=body))


@unhurried
@given(
    st.one_of(st.binary(max_size=100), json_objects.map(lambda data: json.dumps(data).encode()).flatmap(mutated))
)
@example(b"\xff\xfe{\x00}\x00")
@example(b"\xef\xbb\xbf{}")
@example(b'{"\\ud800": 1}')
@example(b'{"x": ' + b"9" * 5000 + b"}")
@example(b'{"x": -Infinity, "y": NaN, "z": 1e999}')
@example(b"[" * 60_000)
@example(b'{"":' * 16_000)
def test_a_hello_of_any_bytes_is_an_object_or_refused(body: bytes) -> None:
    try:
        data = decode_hello(hello_of(body))
    except RemoteProtocolError as error:
        str(error).encode()  # it can be logged
    else:
        assert isinstance(data, dict)


@unhurried
@given(json_values)
def test_a_hello_that_is_no_object_is_refused(value: Any) -> None:
    assume(not isinstance(value, dict))
    with pytest.raises(RemoteProtocolError, match="no JSON object"):
        decode_hello(hello_of(json.dumps(value).encode()))


def test_a_hello_in_any_kind_of_buffer_is_read() -> None:
    body = json.dumps({"role": Role.LANE}).encode()
    for buffer in (body, bytearray(body), memoryview(body)):
        assert decode_hello(Frame(FrameType.HELLO, body=buffer)) == {"role": "lane"}
    assert decode_hello(Frame(FrameType.HELLO, BULK, body=body)) == {"role": "lane"}


# -- versions -----------------------------------------------------------------------------------------------


@unhurried
@given(versions)
def test_versions_are_read_as_they_were_written(mine: Versions) -> None:
    assert Versions.from_json(json.loads(json.dumps(mine._asdict()))) == mine


@unhurried
@given(versions, versions)
def test_mismatches_are_what_differs_with_mine_first(mine: Versions, theirs: Versions) -> None:
    found = mine.mismatches(theirs)
    assert (not found) == (mine == theirs)
    assert theirs.mismatches(mine) == {name: (b, a) for name, (a, b) in found.items()}
    for name, (a, b) in found.items():
        assert (a, b) == (str(getattr(mine, name)), str(getattr(theirs, name)))


def test_every_field_is_compared() -> None:
    mine = Versions("cpython 3.11", "3.1", "3.0", "1.0")
    for name in mine._asdict():
        assert list(mine.mismatches(mine._replace(**{name: 77 if name == "protocol" else "other"}))) == [name]


GOOD: dict[str, Any] = Versions("cpython 3.11", "3.1", "3.0", "1.0")._asdict()
fields = st.fixed_dictionaries(
    {}, optional={name: st.one_of(json_values, st.just(value), st.just(value)) for name, value in GOOD.items()}
)


@unhurried
@given(json_values | fields)
@example(GOOD | {"protocol": float("inf")})
@example(GOOD | {"protocol": float("nan")})
@example(GOOD | {"protocol": 10**4000})
@example(GOOD | {"protocol": -1})
@example(GOOD | {"protocol": "9" * 5000})
@example(GOOD | {"protocol": "\ud800"})
@example(GOOD | {"python": "\ud800"})
@example(GOOD | {"python": [[[[]]]]})
def test_versions_of_any_json_are_versions_or_refused(data: Any) -> None:
    try:
        got = Versions.from_json(data)
    except RemoteProtocolError as error:
        str(error).encode()
    else:
        assert [type(value) for value in got] == [type(value) for value in GOOD.values()]
        json.dumps(got.mismatches(Versions.from_json(GOOD)))


@pytest.mark.parametrize("data", [None, 1, "text", [], {}, {"python": "cpython 3.11"}, {**GOOD, "protocol": None}])
def test_versions_of_another_form_are_refused(data: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="versions"):
        Versions.from_json(data)


def test_versions_nested_deeper_than_the_stack_are_refused() -> None:
    nested: list[Any] = []
    for _ in range(200_000):
        nested = [nested]
    with pytest.raises(RemoteProtocolError):
        Versions.from_json({**GOOD, "python": nested})


@pytest.mark.parametrize("name", list(GOOD))
def test_a_version_of_another_type_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Versions.from_json({**GOOD, name: "1" if name == "protocol" else [1]})


def test_a_hello_frame_larger_than_the_limit_is_refused_by_its_header() -> None:
    stream = joined(encode_frame(FrameType.HELLO, body=bytes(MAX_HELLO + 1)))
    with pytest.raises(RemoteProtocolError):
        FrameReader(max_body=MAX_HELLO).receive_data(stream[:16])


def test_the_preamble_has_the_documented_size() -> None:
    assert len(client().start()) == struct.calcsize("<4sBBB8sB32s") == 48

"""Seals: what was sent comes out, in order; of what somebody else has made, changed or moved, nothing does."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_executor.core.seal import CLIENT, MAX_RECORD, RECORD_HEAD, SERVER, Seal, record_length
from farm_executor.errors import RemoteProtocolError

SECRET = bytes(range(32))
unhurried = settings(deadline=None)
messages = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6)


def records(sent: list[bytes], sender: bytes = CLIENT, secret: bytes = SECRET) -> list[bytes]:
    seal = Seal(secret, sender)
    return [seal.head(data) + data for data in sent]


def taken(came: list[bytes], sender: bytes = CLIENT, secret: bytes = SECRET) -> list[bytes]:
    """What an end takes of these until one does not fit."""
    seal = Seal(secret, sender)
    found = []
    for record in came:
        head, data = record[:RECORD_HEAD], record[RECORD_HEAD:]
        if len(head) < RECORD_HEAD or not seal.check(head, data):
            break
        found.append(data)
    return found


def test_a_seal_is_the_half_of_an_hmac_as_anybody_would_compute_it() -> None:
    seal = Seal(SECRET, SERVER, number=7)
    key = hmac.new(SECRET, b"farm from server", hashlib.sha256).digest()
    whole = hmac.new(key, struct.pack("<QI", 7, 5) + b"hello", hashlib.sha256).digest()
    assert seal.head(b"hello") == struct.pack("<I", 5) + whole[:16]
    assert seal.number == 8
    assert repr(seal) == "<Seal number=8>"


@unhurried
@given(messages)
def test_what_was_sent_comes_out(sent: list[bytes]) -> None:
    assert taken(records(sent)) == sent


@unhurried
@given(messages, st.data())
def test_of_what_was_changed_on_its_way_nothing_comes_out(sent: list[bytes], data: st.DataObject) -> None:
    came = records(sent)
    number = data.draw(st.integers(0, len(came) - 1))
    place = data.draw(st.integers(0, len(came[number]) - 1))
    changed = bytearray(came[number])
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    came[number] = bytes(changed)
    if place < 4:  # the length is what a receiver cuts the stream by; here it lies
        assert record_length_or_none(came[number]) != len(sent[number])
        return
    assert taken(came) == sent[:number]


def record_length_or_none(record: bytes) -> int | None:
    try:
        return record_length(record)
    except RemoteProtocolError:
        return None


@unhurried
@given(messages, st.data())
def test_what_was_left_out_repeated_or_moved_is_not_taken(sent: list[bytes], data: st.DataObject) -> None:
    came = records(sent)
    number = data.draw(st.integers(0, len(came) - 1))
    other = data.draw(st.integers(0, len(came) - 1))
    assert taken([*came[: number + 1], *came[number:]]) == sent[: number + 1]
    assert taken([*came[:number], *came[number + 1 :]]) == sent[:number]
    moved = list(came)
    moved[number], moved[other] = moved[other], moved[number]
    assert taken(moved) == (sent if number == other else sent[: min(number, other)])


@unhurried
@given(messages)
def test_what_belongs_to_the_other_direction_or_another_connection_is_not_taken(sent: list[bytes]) -> None:
    assert taken(records(sent), SERVER) == []
    assert taken(records(sent), secret=SECRET[::-1]) == []


@pytest.mark.parametrize("length", [0, MAX_RECORD + 1, 2**32 - 1])
def test_a_length_that_no_record_has_is_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="limit"):
        record_length(struct.pack("<I", length))
    assert record_length(b"..." + struct.pack("<I", MAX_RECORD), 3) == MAX_RECORD

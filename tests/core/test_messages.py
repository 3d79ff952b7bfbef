"""The table of JSON messages: what is written is read again, all else is refused, and the protocol page has it."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import json_values, versions, words

from farm_executor.core import features as features_module
from farm_executor.core import messages
from farm_executor.core.census import ClientStatus, Death, FarmStatus, Machine, Status, Totals, WorkerTable
from farm_executor.core.features import MAX_FEATURE, MAX_FEATURES, shared
from farm_executor.core.frames import BULK, ERROR, FRAMES, ONCE, RING, TOGETHER, FrameType, Way
from farm_executor.core.handshake import MAX_VERSION, MIN_MEMORY_LIMIT, Versions
from farm_executor.core.messages import (
    MAX_COUNT,
    MAX_LABEL,
    MAX_MESSAGE,
    MAX_PID,
    MAX_SECONDS,
    ROLES,
    TABLE,
    AdminHello,
    BackHello,
    ControlHello,
    Done,
    Draining,
    KillOrder,
    LaneHello,
    Pong,
    Refused,
    Spared,
    Welcome,
    WorkerDied,
    WorkerHello,
    decode,
    encode,
    from_json,
    read_client_hello,
    to_json,
)
from farm_executor.core.reader import FrameReader
from farm_executor.core.text import MAX_STDERR, MAX_STDERR_LINES, one_line, some_lines
from farm_executor.errors import RemoteProtocolError

unhurried = settings(deadline=None)
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "protocol.md"

counts = st.integers(0, MAX_COUNT)
pids = st.integers(1, MAX_PID)
slots = st.integers(0, MAX_PID)
recalls = st.integers(0, 0xFFFF)
seconds = st.floats(0, MAX_SECONDS)
maybe = st.none()
farms = st.builds(FarmStatus, *[counts] * len(FarmStatus._fields))
clients = st.builds(ClientStatus, counts, *[words] * 5, seconds, words, counts, maybe | farms)
machines = st.builds(Machine, seconds, st.lists(seconds, max_size=3), maybe | counts, maybe | counts)
totals = st.builds(
    *(Totals, counts, counts, st.dictionaries(words, counts, max_size=3), counts, seconds, counts, counts)
)
deaths = st.builds(Death, seconds, counts, slots, pids, words, st.integers(-MAX_PID, MAX_PID), counts)
cells = maybe | words | counts | st.floats(0.5, 1e6)
tables = st.builds(WorkerTable, st.lists(words, max_size=3), st.lists(st.lists(cells, max_size=3), max_size=3))
pairs = st.dictionaries(words, st.tuples(words, words), max_size=3)
features = st.lists(st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True), max_size=3).map(tuple)
memory = st.integers(MIN_MEMORY_LIMIT, MAX_COUNT)
MESSAGES = {
    ControlHello: st.builds(
        ControlHello,
        versions,
        st.booleans(),
        words,
        seconds,
        seconds,
        maybe | memory,
        maybe | words,
        features,
        *[words] * 4,
    ),
    LaneHello: st.builds(LaneHello, words, counts, maybe | slots, st.booleans(), st.booleans()),
    AdminHello: st.builds(AdminHello, words),
    BackHello: st.builds(BackHello, words, words),
    Welcome: st.builds(Welcome, words, pids, words, versions, seconds, features, words, words),
    WorkerHello: st.builds(WorkerHello, pids),
    Refused: st.builds(Refused, words, words, maybe | pairs),
    FarmStatus: farms,
    ClientStatus: clients,
    Machine: machines,
    Totals: totals,
    Death: deaths,
    WorkerTable: tables,
    Status: st.builds(
        *(
            Status,
            counts,
            words,
            words,
            words,
            words,
            pids,
            seconds,
            seconds,
            pids,
            st.booleans(),
            versions,
            machines,
        ),
        *(totals, st.lists(clients, max_size=3), counts, tables, st.lists(deaths, max_size=3)),
    ),
    Done: st.builds(Done),
    Pong: st.builds(Pong, st.lists(st.tuples(counts, counts, counts), max_size=3)),
    WorkerDied: st.builds(
        WorkerDied,
        *(counts, slots, pids, st.integers(-MAX_PID, MAX_PID), st.integers(-1, MAX_COUNT)),
        *(maybe | counts, maybe | seconds, maybe | counts, maybe | counts, maybe | st.booleans(), maybe | counts),
        st.lists(words, max_size=3).map("\n".join),
    ),
    Draining: st.builds(Draining, st.booleans()),
    KillOrder: st.builds(
        KillOrder, counts, counts, counts, recalls, st.lists(st.tuples(counts, counts), max_size=3)
    ),
    Spared: st.builds(Spared, counts, counts, recalls),
}
some_message = st.sampled_from(list(MESSAGES)).flatmap(MESSAGES.__getitem__)


def test_every_message_is_in_the_table_with_every_field():
    assert TABLE.keys() == MESSAGES.keys()
    for kind, (_, fields) in TABLE.items():
        assert tuple(fields) == kind._fields


@unhurried
@given(some_message)
def test_what_is_written_is_read_again(message):
    data = json.loads(json.dumps(to_json(message)))
    assert from_json(type(message), data) == message
    if type(message) in ROLES:
        assert read_client_hello(data) == message


@unhurried
@given(some_message, st.integers(0, 2**64 - 1))
def test_a_message_travels_in_a_frame_of_its_type(message, seq):
    kind = TABLE[type(message)][0]
    if kind is not None:
        (frame,) = FrameReader().receive_data(b"".join(map(bytes, encode(message, seq))))
        assert (frame.type, frame.seq) == (kind, seq)
        assert decode(type(message), frame) == message


NASTY = st.sampled_from(
    [10**400, -(10**400), 10**4000, 2**63, -1, float("nan"), float("inf"), True, None, "", "\ud800", [], {}, [[]]]
)


@unhurried
@given(some_message, st.data())
def test_a_field_of_any_other_value_is_within_its_range_or_refused(message, data):
    """Read from text, as a peer sends it."""
    kind = type(message)
    said = to_json(message)
    for name in data.draw(st.lists(st.sampled_from(kind._fields), max_size=2)) if kind._fields else []:
        said[name] = data.draw(json_values | NASTY)
    try:
        read = from_json(kind, json.loads(json.dumps(said)))
    except RemoteProtocolError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 500
    else:
        assert from_json(kind, json.loads(json.dumps(to_json(read), allow_nan=False))) == read


@unhurried
@given(st.sampled_from(list(TABLE)), json_values)
@example(ControlHello, [])
def test_any_json_is_a_message_or_refused(kind, data):
    for read in (lambda: from_json(kind, data), lambda: read_client_hello({"role": data})):
        try:
            read()
        except RemoteProtocolError as error:
            assert str(error).isprintable()


@given(st.sampled_from(Status._fields), json_values)
def test_what_is_known_already_is_read_as_if_it_were_not(name, value):
    machine, all_in_all = Machine(2, [0.5], 1 << 30, None), Totals(1, 2, {"oom": 1}, 3, 4.5, 6, 7)
    table = WorkerTable(["slot", "state"], [[0, "idle"], [1, None]])
    client = ClientStatus(1, "c", "h", "u", "p", "", 3.5, "open", 2, FarmStatus(1))
    some = "a:1", "lab", "h", "u", 7, 1.5, 1e9, 2, False, Versions("p", "c", "t", "f")
    message = Status(2, *some, machine, all_in_all, [client], 0, table, [Death(1e9, 1, 0, 9, "oom", -9, 5)])
    before = json.loads(json.dumps(to_json(message)))
    known = before, from_json(Status, before)
    assert from_json(Status, dict(before), known) == message
    for after in ({**before, name: value}, {other: before[other] for other in before if other != name}):
        try:
            expected = from_json(Status, after)
        except RemoteProtocolError as error:
            with pytest.raises(RemoteProtocolError, match=re.escape(str(error))):
                from_json(Status, after, known)
        else:
            assert from_json(Status, after, known) == expected


def test_numbers_that_no_float_can_hold_are_refused():
    """They pass every comparison with an infinity."""
    for name in ("heartbeat", "resume_seconds", "max_memory"):
        data = {"versions": Versions("p", "c", "t", "f")._asdict(), name: 10**400}
        with pytest.raises(RemoteProtocolError, match=name):
            from_json(ControlHello, data)


@pytest.mark.parametrize(
    "said", ["modules", ["Modules"], ["a" * 33], [""], ["a b"], ["\u00e4"], [1], ["modules"] * 65, None, {}]
)
def test_features_of_another_form_are_refused(said):
    hello = {"versions": Versions("p", "c", "t", "f")._asdict(), "features": said}
    with pytest.raises(RemoteProtocolError, match="features should be"):
        from_json(ControlHello, hello)


def test_features_that_nobody_knows_are_read_and_only_those_of_both_are_shared():
    hello = {"versions": Versions("p", "c", "t", "f")._asdict(), "features": ["later", "modules"]}
    assert shared(["other", "modules"], from_json(ControlHello, hello).features) == {"modules"}


def test_a_value_nested_deeper_than_the_stack_is_refused():
    nested = []
    for _ in range(200_000):
        nested = [nested]
    for kind, (_, fields) in TABLE.items():
        for name in fields:
            with pytest.raises(RemoteProtocolError):
                from_json(kind, {name: nested})


# -- the page ---------------------------------------------------------------------------------------------------


def _keys(text):
    """The keys of the tables in it: what is in backticks in their first column."""
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [key for row in rows for key in re.findall(r"`(\w+)`", row)]


def _part(begin, end):
    page = PAGE.read_text(encoding="utf-8")
    return page[page.index(begin) + len(begin) :].partition(end)[0]


def _table(head, after):
    return _keys(_part(after, "\n## ").split(head, 1)[1].partition("\n\n")[0])


@pytest.mark.parametrize(
    ("kind", "after", "head"),
    [
        (ControlHello, "### control", "| client's key |"),
        (Welcome, "### control", "| server's key |"),
        (LaneHello, "### lane", "| client's key |"),
        (WorkerHello, "### lane", "| server's key |"),
        (AdminHello, "### admin", "| client's key |"),
        (BackHello, "### back", "| server's key |"),
        (Refused, "### refused", "| key |"),
        (WorkerDied, "For each worker that ends", "| key |"),
        (KillOrder, "With `KILL` the client asks", "| key |"),
        (Pong, "answers with a `PONG`", "| key |"),
        (Spared, "answer is `SPARED`", "| key |"),
        (Draining, "`DRAINING` is an object", "| key |"),
        (Status, "The answer to `status`", "| key |"),
        (ClientStatus, "of `sessions`", "| key |"),
        (FarmStatus, "The object of a `PING`", "| key |"),
        (Machine, "`machine` is an object", "| key |"),
        (Totals, "`totals` is an object", "| key |"),
        (Death, "Each of `deaths`", "| key |"),
        (WorkerTable, "`workers` is an object", "| key |"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_page_has_the_fields_of_the_table(kind, after, head):
    role = ["role"] if kind in ROLES else []
    told = _table(head, after)
    assert sorted(told) == sorted([*role, *kind._fields])


def test_the_page_has_the_ranges_of_the_table():
    ranges = _part("### Numbers and texts", "\n## ")
    for limit in (MAX_PID, MAX_LABEL, MAX_MESSAGE, MAX_VERSION, MAX_STDERR, MAX_STDERR_LINES, MIN_MEMORY_LIMIT):
        assert f"{limit:,}" in ranges
    assert MAX_COUNT == 2**63 - 1
    assert "2^63 - 1" in ranges
    assert MAX_SECONDS == 1e10
    assert "10^10" in ranges


def test_the_page_has_the_table_of_frames():
    """Each row's number, name, ways, feature and flags."""
    page = PAGE.read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([^|]*) \| ([^|]*)\| ([^|]*)\|", page, re.MULTILINE)
    told = [
        (int(number), name, ways.strip(), *(tuple(re.findall(r"`(\w+)`", cell)) for cell in cells))
        for number, name, ways, *cells in rows
    ]
    flags = {"BULK": BULK, "RING": RING, "ERROR": ERROR, "ONCE": ONCE, "TOGETHER": TOGETHER}
    assert told == [
        (
            *(int(kind), kind.name),
            ", ".join(way.name.replace("_", " ").lower() for way in Way if way & meaning.ways),
            (meaning.feature,) if meaning.feature else (),
            tuple(name for name, flag in flags.items() if flag & meaning.flags),
        )
        for kind, meaning in FRAMES.items()
    ]


def test_the_page_has_the_features_and_their_limits():
    part = _part("#### Features", "\n### ")
    named = {value for name, value in vars(features_module).items() if name.isupper() and type(value) is str}
    assert set(_keys(part)) == named
    assert {meaning.feature for meaning in FRAMES.values()} - {""} <= named
    assert f"1 to {MAX_FEATURE} characters" in part
    assert f"at most {MAX_FEATURES} of them" in part


def test_the_page_s_frames_with_json_are_those_of_the_table():
    listed = re.findall(r"\| `(\w+)` \|[^\n]*\| JSON[^|]*\|", PAGE.read_text(encoding="utf-8"))
    assert {FrameType[name] for name in listed} == {kind for kind, _ in TABLE.values() if kind is not None}


# -- a peer's words -----------------------------------------------------------------------------------------------


@unhurried
@given(st.text(), st.integers(0, 40))
@example("\x1b[2J\x1b]0;title\x07", 40)
@example("first\nWARNING forged", 40)
@example("\ud800 \u202e \x9b31m", 40)
def test_a_line_is_printable_and_bounded(text, limit):
    line = one_line(text, limit)
    assert line.isprintable()
    assert len(line) == min(len(text), limit)
    line.encode()
    assert one_line(line, limit) == line


def test_a_line_is_left_as_it_is_where_it_can_be():
    assert one_line("Größe 3 µm 日本", 100) == "Größe 3 µm 日本"
    assert one_line("two\nlines\tand \x1b[31mred", 100) == "two lines and ?[31mred"


@unhurried
@given(st.text(st.characters() | st.sampled_from("\n\t\x1b")), st.integers(1, 5), st.integers(1, 40))
def test_some_lines_are_printable_and_bounded(text, lines, limit):
    shown = some_lines(text, lines, limit)
    assert len(shown) <= limit
    assert shown.count("\n") < lines
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert some_lines(shown, lines, limit) == shown


def test_nothing_of_the_module_is_forgotten_in_all():
    here = {kind.__name__ for kind in TABLE if kind.__module__ == messages.__name__}
    kinds = {name for name in vars(messages) if name in here}
    assert kinds <= set(messages.__all__)

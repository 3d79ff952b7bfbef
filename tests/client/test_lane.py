"""What a lane sends for tasks is what its worker reads."""

from functools import partial
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from farm_executor.client.farm.call import Call
from farm_executor.client.farm.functions import MAX_LARGE_BYTES, FunctionTable
from farm_executor.client.farm.lane import Lane
from farm_executor.core.batches import MAX_BATCH_BYTES, decode_tasks, decode_tasks_together
from farm_executor.core.frames import (
    MAX_COUNT,
    ONCE,
    TOGETHER,
    Frame,
    FrameType,
    decode_number,
    payload_of,
)
from farm_executor.core.options import TaskOptions
from farm_executor.core.reader import FrameReader
from farm_executor.data import payload


class Wire:
    """A connection that notes what is sent."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._reader = FrameReader()

    def send(self, buffers: list[Any]) -> bool:
        self.frames += self._reader.receive_data(b"".join(buffers))
        return True


def send(calls: list[tuple[Any, tuple[Any, ...], bool]], max_attempts: int = 3) -> list[Frame]:
    """Send calls of these functions with these arguments, some of them pickled at once; return the frames."""
    table, wire, tasks = FunctionTable(), Wire(), []
    for number, (function, args, at_once) in enumerate(calls):
        pickled = payload.dumps_call(args, {}) if at_once or not payload.all_plain(args) else None
        options = TaskOptions(max_attempts=max_attempts)
        call = Call(number, None, table.find(function), pickled, None if pickled else args, options)  # type: ignore[arg-type]
        tasks.append(call)
    lane = Lane(1, wire, SimpleNamespace(features=frozenset()), 0, 4711)  # type: ignore[arg-type]
    assert lane.send_tasks(0, tasks)
    return wire.frames


def calls_in(frames: list[Frame]) -> list[tuple[Any, tuple[Any, ...]]]:
    functions: dict[int, Any] = {}
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    for frame in frames:
        if frame.type is FrameType.FUNCTION:
            functions[frame.seq] = payload.loads(payload_of(frame))
            continue
        assert frame.type is FrameType.TASKS
        assert frame.seq == len(calls)
        if frame.flags & TOGETHER:
            numbers, data = decode_tasks_together(frame)
            arguments = payload.loads_together(data, frame.count)
            calls += [(functions[n], args) for n, args in zip(numbers, arguments, strict=True)]
        else:
            calls += [(functions[n], payload.loads(data)[0]) for n, data in decode_tasks(frame)]
    return calls


values = st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.lists(st.integers(), max_size=3))
arguments = st.lists(values, max_size=3).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([abs, len, pow]), arguments, st.booleans()), min_size=1))
def test_calls_arrive_as_they_were_made_however_they_travel(calls):
    assert calls_in(send(calls)) == [(function, args) for function, args, _ in calls]


def test_plain_calls_share_a_pickle_and_others_do_not():
    def flags(*calls: tuple[Any, ...]) -> list[bool]:
        frames = send([(max, args, False) for args in calls])
        return [bool(frame.flags & TOGETHER) for frame in frames if frame.type is FrameType.TASKS]

    assert flags((1,), ("a", None)) == [True]
    assert flags((1,)) == [False]
    assert flags((1,), ([2],)) == [False]


def test_plain_calls_too_large_for_one_pickle_travel_as_others_do():
    calls = [(len, ("x" * 1000 + str(number),), False) for number in range(MAX_BATCH_BYTES // 900)]
    frames = send(calls)
    assert calls_in(frames) == [(function, args) for function, args, _ in calls]
    assert not any(frame.flags & TOGETHER for frame in frames)


def test_plain_calls_too_many_for_one_frame_travel_as_others_do():
    frames = send([(abs, (1,), False)] * (MAX_COUNT + 1))
    assert len(calls_in(frames)) == MAX_COUNT + 1


def test_plain_calls_that_must_not_run_again_say_so():
    frames = send([(abs, (1,), False)] * 2, max_attempts=1)
    assert [frame.flags for frame in frames if frame.type is FrameType.TASKS] == [TOGETHER | ONCE]


def test_large_functions_are_forgotten_only_when_what_was_sent_with_them_has_been_named():
    """The first is used again by the same sending, after the others have made it one too many."""
    table, wire, tasks = FunctionTable(), Wire(), []
    large = [table.find(partial(len, bytes([number]) * (MAX_LARGE_BYTES // 2))) for number in range(3)]
    for number, function in enumerate([*large, large[0]]):
        tasks.append(Call(number, None, function, None, (), TaskOptions()))  # type: ignore[arg-type]
    lane = Lane(1, wire, SimpleNamespace(features=frozenset()), 0, 4711)  # type: ignore[arg-type]
    assert lane.send_tasks(0, tasks)

    frames = wire.frames
    places = {type_: [n for n, frame in enumerate(frames) if frame.type is type_] for type_ in FrameType}
    assert max(places[FrameType.TASKS]) < min(places[FrameType.FORGET])
    sent = [frame.seq for frame in frames if frame.type is FrameType.FUNCTION]
    gone = [decode_number(frame) for frame in frames if frame.type is FrameType.FORGET]
    assert sent == [1, 2, 3]
    assert gone == [2, 3], "the last used stays"
    wire.frames.clear()
    assert lane.send_forget_large()
    assert [decode_number(frame) for frame in wire.frames] == [1]
    assert not lane.kept.large

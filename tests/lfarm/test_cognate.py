"""Cognates: each gives what its serial counterpart gives, however it is divided."""

import array
import collections
import functools
import itertools
import operator
import random
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
from contract.gate import DEADLINE
from contract.tasks import pass_gate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lfarm import tasks

from farm_executor import lfarm
from farm_executor.errors import InvalidTaskError, NoKernelError, TaskExecutionError
from farm_executor.lfarm import (
    pcount,
    pcount_if,
    pevery,
    pfind,
    pfind_if,
    plet,
    pmap,
    pmap_into,
    pmap_reduce,
    pnotany,
    pnotevery,
    preduce,
    preduce_partial,
    premove,
    premove_if,
    psome,
    psort,
)

ON_ONE_KERNEL = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PARTS = st.none() | st.integers(1, 12)
NUMBERS = st.lists(st.integers(-5, 5), max_size=12)


@pytest.fixture
def submitted(kernel, monkeypatch):
    """The calls that reach the kernel: for each its function, its arguments and its future."""
    calls = []
    submit = kernel.submit

    def spy(task, /, *args, **kwargs):
        future = submit(task, *args, **kwargs)
        calls.append((task, args, future))
        return future

    monkeypatch.setattr(kernel, "submit", spy)
    return calls


def reduce_right(function, values, *initial):
    return functools.reduce(lambda right, left: function(left, right), reversed(list(values)), *initial)


# -- as lfarm's own tests ---------------------------------------------------------------------------------


def test_plet(kernel):
    assert plet(lambda x, y: x + y, x=lambda: 3, y=lambda: 4) == 7
    a = 10
    assert plet(lambda x, y: x + y, x=lambda: a + 3, y=lambda: a + 4) == 27


@pytest.mark.parametrize("parts", [None, 2, 3])
def test_pmap_into(kernel, parts):
    for kind in (list, lambda items: np.array(items), lambda items: array.array("q", items), collections.deque):
        target = kind([0, 0, 0])
        assert pmap_into(target, operator.add, [5, 6, 7], [10, 11, 12], parts=parts) is target
        assert list(target) == [15, 17, 19]
        target = kind([0])
        pmap_into(target, operator.add, [5, 6, 7], [10, 11, 12], parts=parts)
        assert list(target) == [15]


def test_pmap(kernel):
    assert pmap(lambda x: x * x, [3, 4, 5, 6]) == [9, 16, 25, 36]
    assert pmap(lambda x: x * x, (3, 4, 5, 6)) == [9, 16, 25, 36]
    assert pmap(lambda x: x * x, np.array([3, 4, 5, 6])) == [9, 16, 25, 36]


def test_degenerate_pmaps(kernel):
    assert pmap(abs, []) == []
    assert pmap_into([], operator.add, [2, 3], [4, 5]) == []
    assert pmap(lambda x: x, [0, 1, 2, 3]) == [0, 1, 2, 3]
    assert pmap("operator:pos", [0, 1, 2, 3]) == [0, 1, 2, 3]


def test_pmapcar(kernel):
    assert pmap(operator.add, [5, 6, 7], [10, 11, 12]) == [15, 17, 19]
    assert pmap(operator.add, [5, 6, 7], [10, 11, 12], parts=2) == [15, 17, 19]


def test_pmapcar_handles_sequences(kernel):
    assert pmap(operator.add, [1, 2, 3], (4, 5, 6)) == [5, 7, 9]
    assert pmap(operator.add, [1, 2, 3], np.array([4, 5, 6]), parts=2) == [5, 7, 9]


def test_pmap_parts_arg(kernel):
    @lfarm.deftask
    def sq(x):
        return x * x

    for parts, n in itertools.product(range(1, 9), range(1, 7)):
        a = [random.randrange(n) for _ in range(n)]
        assert pmap(sq, a, parts=parts) == list(map(sq, a))
        assert pmap_into([None] * n, sq, a, parts=parts) == list(map(sq, a))


def test_pmap_into_thunk(kernel):
    @lfarm.deftask
    def seven():
        return 7

    c = 10
    a = [1, 1, 1]
    assert pmap_into(a, lambda: 9) == [9, 9, 9]
    assert pmap_into(a, seven) == [7, 7, 7]
    assert pmap_into(a, lambda: c + 9) == [19, 19, 19]
    assert pmap_into(a, lambda: 0, size=2, parts=5) == [0, 0, 19]


def test_pmap_closure(kernel):
    a = 10
    result = [0, 0, 0]
    assert pmap(lambda x: a + x, [1, 2, 3]) == [11, 12, 13]
    assert pmap_into(result, lambda x: a + x, [1, 2, 3]) is result
    assert result == [11, 12, 13]


def test_pmap_with_size_constraint(kernel):
    def inc(x):
        return x + 1

    assert pmap(inc, [1, 10, 100, 1000], size=2) == [2, 11]
    assert pmap(inc, (1, 10, 100, 1000), size=2) == [2, 11]
    assert pmap_into([99, 99, 99, 99], inc, [1, 10, 100, 1000], size=2) == [2, 11, 99, 99]
    assert pmap_into(["a", "b"], inc, [1, 10, 100, 1000], size=2) == [2, 11]
    assert pmap_into(["a", "b", "c", "d"], inc, [1, 10, 100, 1000], size=2) == [2, 11, "c", "d"]
    assert pmap(inc, [1, 2], size=5) == [2, 3]


def test_pmap_into_edge(kernel):
    assert pmap_into([9, 9, 9], abs, [1, 2, 3]) == [1, 2, 3]
    assert pmap_into([9, 9, 9], abs, [1, 2, 3], size=3) == [1, 2, 3]
    assert pmap_into([9, 9, 9], abs, [1, 2, 3], size=2) == [1, 2, 9]
    assert pmap_into([9, 9, 9], abs, [1, 2, 3], size=0) == [9, 9, 9]
    assert pmap_into([9, 9, 9], abs, []) == [9, 9, 9]
    assert pmap_into([], abs, [1, 2, 3]) == []


def test_grind_pmap(kernel):
    @lfarm.deftask
    def mul3(x, y, z):
        return x * y * z

    for n in range(100):
        a, b, c = range(1, n + 1), range(11, n + 11), range(21, n + 21)
        assert pmap(mul3, a, b, c) == [x * y * z for x, y, z in zip(a, b, c)]


def test_preduce_partial(kernel):
    for options in ({"initial_value": 0}, {}):
        with pytest.raises(ValueError, match="at least one"):
            preduce_partial(operator.add, [], **options)
    eight, six = [3, 4, 5, 6, 7, 8, 9, 10], (3, 4, 5, 6, 7, 8)
    assert preduce_partial(operator.add, eight, parts=1) == [52]
    assert preduce_partial(operator.add, eight, parts=2) == [18, 34]
    assert preduce_partial(operator.add, eight, parts=2, from_end=True) == [18, 34]
    assert preduce_partial(operator.add, six, parts=3, from_end=True) == [7, 11, 15]
    assert preduce_partial(operator.add, six, parts=3) == [7, 11, 15]


@pytest.mark.parametrize("from_end", [False, True])
def test_preduce(kernel, from_end):
    assert preduce(lambda x, y: x + y, [1, 2, 3, 4, 5, 6]) == 21
    z = 10
    assert preduce(lambda x, y: x + y + z, [1, 2, 3, 4, 5, 6]) == 71
    numbers = [random.randrange(100) for _ in range(20)]
    matrices = [tuple(random.choices(range(10), k=4)) for _ in range(20)]
    pairs = [(9, 0), (9, 1), (9, 2), (9, 3)]
    serial = reduce_right if from_end else functools.reduce
    for parts in range(1, 11):
        options = {"parts": parts, "from_end": from_end}
        assert preduce(operator.add, range(8), **options) == 28
        assert preduce(operator.add, range(8), initial_value=0, **options) == 28
        assert preduce(operator.add, pairs, key=operator.itemgetter(1), **options) == 6
        for start, end in ((0, 20), (5, 20), (0, 5), (5, 16)):
            options |= {"start": start, "end": end}
            some, of_some = numbers[start:end], matrices[start:end]
            assert preduce(operator.add, numbers, **options) == sum(some)
            assert preduce(operator.mul, numbers, initial_value=2, **options) == functools.reduce(
                operator.mul, some, 2
            )
            assert preduce(tasks.product, matrices, **options) == serial(tasks.product, of_some)
            assert preduce(tasks.product, matrices, initial_value=(1, 2, 3, 4), **options) == serial(
                tasks.product, of_some, (1, 2, 3, 4)
            )


def test_pmap_reduce(kernel):
    c = [random.randrange(100) for _ in range(3)]
    assert pmap_reduce(lambda x: x * x, operator.add, c) == preduce(operator.add, c, key=lambda x: x * x)
    assert pmap_reduce(lambda x: x * x, operator.add, [3, 4, 5]) == 9 + 16 + 25


# -- each as its serial counterpart -----------------------------------------------------------------------


@given(NUMBERS, NUMBERS, PARTS, st.none() | st.integers(0, 15))
@ON_ONE_KERNEL
def test_pmap_is_map(kernel, a, b, parts, size):
    expected = list(map(operator.sub, a, b))[:size]

    assert pmap(operator.sub, a, b, parts=parts, size=size) == expected
    assert pmap(operator.sub, iter(a), tuple(b), parts=parts, size=size) == expected
    assert pmap(operator.sub, (x for x in a), (x for x in b), parts=parts, size=size) == expected


@given(NUMBERS, NUMBERS, PARTS, st.none() | st.integers(0, 15))
@ON_ONE_KERNEL
def test_pmap_into_is_map_up_to_the_targets_end(kernel, target, a, parts, size):
    results = [-x for x in a][:size][: len(target)]
    rest = target[len(results) :]

    assert pmap_into(target, operator.neg, a, parts=parts, size=size) is target
    assert target == results + rest


@given(
    st.lists(st.text("abc", max_size=2), max_size=12),
    st.data(),
    PARTS,
    st.booleans(),
    st.booleans(),
    st.none() | st.text("z", max_size=2),
    st.booleans(),
)
@ON_ONE_KERNEL
def test_preduce_is_reduce(kernel, texts, data, parts, from_end, recurse, initial, with_key):
    """Concatenation is associative and not commutative, and shows how often each thing was used."""
    start = data.draw(st.integers(0, len(texts)))
    end = data.draw(st.none() | st.integers(start, len(texts)))
    some = [text.upper() if with_key else text for text in texts[start:end]]
    options = {"start": start, "end": end, "from_end": from_end, "parts": parts, "recurse": recurse}
    options |= {"key": str.upper} if with_key else {}
    options |= {} if initial is None else {"initial_value": initial}
    if not some and initial is None:
        with pytest.raises(TaskExecutionError) as caught:  # as the function itself without arguments
            preduce(operator.add, texts, **options)
        assert isinstance(caught.value.__cause__, TypeError)
        return
    serial = reduce_right if from_end else functools.reduce
    expected = serial(operator.add, some, *(() if initial is None else (initial,)))

    assert preduce(operator.add, texts, **options) == expected
    if with_key:
        del options["key"]
        assert pmap_reduce(str.upper, operator.add, texts, **options) == expected
    if some:
        options.pop("recurse")
        options |= {"key": str.upper} if with_key else {}
        assert "".join(preduce_partial(operator.add, texts, **options)) == expected


@given(NUMBERS, NUMBERS, PARTS)
@ON_ONE_KERNEL
def test_quantifiers_are_all_and_any(kernel, a, b, parts):
    answers = list(map(operator.ge, a, b))

    assert pevery(operator.ge, a, b, parts=parts) is all(answers)
    assert pnotevery(operator.ge, a, b, parts=parts) is not all(answers)
    assert pnotany(operator.ge, a, b, parts=parts) is not any(answers)
    assert bool(psome(operator.ge, a, b, parts=parts)) is any(answers)
    assert psome(operator.pos, a, parts=parts) == next((x for x in a if x), None)


@given(NUMBERS, st.data(), PARTS, st.none() | st.just(operator.neg))
@ON_ONE_KERNEL
def test_searching_is_as_by_hand(kernel, a, data, parts, key):
    start = data.draw(st.integers(0, len(a)))
    end = data.draw(st.none() | st.integers(start, len(a)))
    options = {"key": key, "start": start, "end": end, "parts": parts}
    value = key or operator.pos
    hits = [x for x in a[start:end] if value(x) == 2]

    assert pfind(2, a, **options) == next(iter(hits), None)
    assert pcount(2, a, **options) == len(hits)
    behind = [] if end is None else a[end:]
    kept = [x for x in a[start:end] if value(x) != 2]
    assert premove(2, a, **options) == a[:start] + kept + behind
    positive = [x for x in a[start:end] if value(x) > 0]
    assert pfind_if(lambda x: x > 0, a, **options) == next(iter(positive), None)
    assert pfind_if(lambda x: x > 0, a, from_end=True, **options) == next(reversed(positive), None)
    assert pcount_if(lambda x: x > 0, a, **options) == len(positive)
    kept = [x for x in a[start:end] if value(x) <= 0]
    assert premove_if(lambda x: x > 0, a, **options) == a[:start] + kept + behind


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12), PARTS, st.booleans())
@ON_ONE_KERNEL
def test_psort_is_sorted(kernel, pairs, parts, reverse):
    first = operator.itemgetter(0)

    assert psort(pairs, parts=parts, reverse=reverse) == sorted(pairs, reverse=reverse)
    assert psort(pairs, key=first, parts=parts, reverse=reverse) == sorted(pairs, key=first, reverse=reverse)


# -- what may be divided ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [None, 3])
@pytest.mark.parametrize(
    "sequence",
    [
        [4, 5, 6, 7],
        (4, 5, 6, 7),
        range(4, 8),
        b"\x04\x05\x06\x07",
        bytearray(b"\x04\x05\x06\x07"),
        memoryview(b"\x04\x05\x06\x07"),
        array.array("q", [4, 5, 6, 7]),
        np.arange(4, 8),
        np.arange(4, 12)[:4],
        collections.deque([4, 5, 6, 7]),
        {4: "a", 5: "b", 6: "c", 7: "d"},
        {4: "a", 5: "b", 6: "c", 7: "d"}.keys(),
    ],
    ids=lambda sequence: type(sequence).__name__,
)
def test_every_iterable_is_a_sequence(kernel, sequence, parts):
    assert pmap(lambda x: int(x) + 1, sequence, parts=parts) == [5, 6, 7, 8]
    assert pmap(lambda x, y: int(x) + y, sequence, itertools.count(), parts=parts) == [4, 6, 8, 10]
    assert preduce(lambda x, y: int(x) + int(y), sequence, parts=parts) == 22
    assert preduce_partial(lambda x, y: int(x) + int(y), sequence, parts=2) == [9, 13]
    assert pfind_if(lambda x: x > 5, sequence, parts=parts) == 6
    assert pfind_if(lambda x: x > 5, sequence, parts=parts, from_end=True) == 7
    assert premove_if(lambda x: x > 5, sequence, parts=parts) == [4, 5]
    assert psort(sequence, parts=parts, reverse=True) == [7, 6, 5, 4]
    assert pevery(lambda x: x > 3, sequence, parts=parts)


def test_a_defaultdict_is_not_changed_by_looking_at_it(kernel):
    counts = collections.defaultdict(int, {4: 1, 5: 2})

    assert pmap(operator.neg, counts) == [-4, -5]
    assert dict(counts) == {4: 1, 5: 2}


def test_of_endless_iterables_the_shortest_other_or_the_size_counts(kernel):
    assert pmap(operator.add, itertools.count(), iter([5, 6])) == [5, 7]
    assert pmap(operator.add, itertools.count(), [5, 6]) == [5, 7]
    assert pmap(operator.neg, itertools.count(), size=3) == [0, -1, -2]
    assert pmap(operator.neg, itertools.count(), size=0) == []
    assert pmap_into([9, 9], operator.neg, itertools.count()) == [0, -1]


def test_rows_of_a_matrix_are_elements(kernel):
    matrix = np.arange(12).reshape(4, 3)

    assert pmap(lambda row: int(row.sum()), matrix) == [3, 12, 21, 30]
    assert preduce(operator.add, matrix, parts=3).tolist() == [18, 22, 26]


def test_results_are_the_callers_own_elements(kernel):
    elements = [[3], [1], [2]]

    assert pfind([1], elements) is elements[1]
    assert premove([1], elements)[0] is elements[0]
    assert all(mine is theirs for mine, theirs in zip(psort(elements), (elements[1], elements[2], elements[0])))


# -- how it is divided ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sequence",
    [list(range(10)), tuple(range(10)), range(10), np.arange(10), "0123456789"],
    ids=lambda sequence: type(sequence).__name__,
)
def test_h8_only_a_parts_own_elements_travel(kernel, submitted, sequence):
    pmap(str, sequence, parts=3)
    preduce_partial(lambda x, y: x, sequence, parts=3)
    pcount_if(bool, sequence, parts=3, start=1)

    lengths = [len(args[0]) for _, args, _ in submitted]
    assert lengths == [3, 3, 4] * 2 + [3, 3, 3]
    assert all(type(args[0]) is type(sequence) for _, args, _ in submitted)


def test_there_is_a_part_for_each_worker(kernel, submitted):
    pmap(abs, range(10))
    assert len(submitted) == kernel.worker_count


def test_there_are_no_more_parts_than_elements(kernel, submitted):
    pmap(abs, range(3), parts=100)
    assert len(submitted) == 3


def test_the_parts_results_are_reduced_in_one_task_or_in_parallel(kernel, submitted):
    assert preduce(operator.add, range(16), parts=8) == 120
    assert len(submitted) == 8 + 1
    submitted.clear()
    assert preduce(operator.add, range(16), parts=8, recurse=True) == 120
    assert len(submitted) == 8 + 4 + 2 + 1


def test_an_initial_value_is_used_once(kernel):
    """lfarm uses it in each part."""
    assert preduce(operator.add, [1, 2, 3, 4], initial_value=100, parts=4) == 110
    assert preduce_partial(operator.add, [1, 2, 3, 4], initial_value=100, parts=2) == [103, 7]
    assert preduce_partial(operator.add, [1, 2, 3, 4], initial_value=100, parts=2, from_end=True) == [3, 107]
    assert preduce(operator.add, [], initial_value=None) is None


def test_nothing_at_all_is_reduced_by_the_task_itself(kernel):
    assert preduce(lambda *values: sum(values), []) == 0
    with pytest.raises(TaskExecutionError) as caught:
        preduce(lambda x, y: x + y, [])
    assert isinstance(caught.value.__cause__, TypeError)


def test_tasks_are_functions_deftasks_and_names(kernel):
    @lfarm.deftask
    def double(x):
        return 2 * x

    assert pmap(double, [1, 2]) == [2, 4]
    assert pmap("operator:neg", [1, 2]) == [-1, -2]
    assert pmap_reduce(double, "operator:add", [1, 2, 3]) == 12
    assert pfind_if("operator:truth", [0, 3], key=double) == 3
    assert psort([1, 2], key="operator:neg") == [2, 1]
    assert plet(lambda x, y: (x, y), x=lfarm.deftask(lambda: 3), y="operator:neg") == (3, "operator:neg")


# -- failures ---------------------------------------------------------------------------------------------


COGNATES = {
    "pmap": lambda task: pmap(task, range(5)),
    "pmap_into": lambda task: pmap_into([0] * 5, task, range(5)),
    "preduce": lambda task: preduce(operator.add, range(5), key=task),
    "preduce_partial": lambda task: preduce_partial(operator.add, range(5), key=task),
    "pmap_reduce": lambda task: pmap_reduce(task, operator.add, range(5)),
    "pevery": lambda task: pevery(task, range(1, 5)),
    "psome": lambda task: psome(lambda x: task(x) > 5, range(5)),
    "pfind_if": lambda task: pfind_if(lambda x: x > 5, range(5), key=task),
    "pcount_if": lambda task: pcount_if(task, range(5)),
    "premove_if": lambda task: premove_if(task, range(5)),
    "psort": lambda task: psort(range(5), key=task),
    "plet": lambda task: plet(lambda x, y: 0, x=lambda: task(1), y=lambda: task(3)),
}


@pytest.mark.parametrize("name", COGNATES)
def test_a_failing_part_fails_the_whole(kernel, name):
    def fail_on_three(x):
        if x == 3:
            raise LookupError("three")
        return x

    with pytest.raises(TaskExecutionError, match="three") as caught:
        COGNATES[name](fail_on_three)
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.parametrize("name", COGNATES)
def test_without_a_kernel_there_are_no_cognates(name):
    with pytest.raises(NoKernelError):
        COGNATES[name](abs)


@pytest.mark.parametrize("name", [name for name in COGNATES if name not in ("psome", "plet")])
def test_no_task_is_refused_before_anything_is_submitted(kernel, submitted, name):
    for task in (42, [abs], "no name"):
        with pytest.raises(InvalidTaskError):
            COGNATES[name](task)
    assert submitted == []


def test_a_failure_leaves_the_target_alone(kernel):
    def fail_on_three(x):
        return 1 // (x - 3)

    target = [9] * 5
    with pytest.raises(TaskExecutionError):
        pmap_into(target, fail_on_three, range(5), parts=5)
    assert target == [9] * 5


def test_the_first_failing_part_cancels_those_that_have_not_begun(kernel, gate, submitted):
    address = gate.address

    def task(x):
        if x == 0:
            raise LookupError("zero")
        return pass_gate(address, x)

    with pytest.raises(TaskExecutionError, match="zero"):  # while all the others are held
        pmap(task, range(200), parts=200)

    futures = [future for _, _, future in submitted]
    cancelled = [future.cancelled() for future in futures]
    assert cancelled[-1]
    assert sum(cancelled) >= 100
    gate.open()
    assert not wait(futures, DEADLINE).not_done


@pytest.mark.parametrize("cognate", [psome, pfind_if])
def test_what_is_found_cancels_what_is_behind(kernel, gate, submitted, cognate):
    address = gate.address

    def task(x):
        return x == 0 or pass_gate(address, False)

    assert cognate(task, range(200), parts=200) in (True, 0)  # while all the others are held

    futures = [future for _, _, future in submitted]
    assert futures[-1].cancelled()
    gate.open()
    assert not wait(futures, DEADLINE).not_done


def test_one_false_answer_decides_pevery(kernel, gate):
    address = gate.address

    assert pevery(lambda x: x != 0 and pass_gate(address, True), range(200), parts=200) is False
    gate.open()


def test_when_submitting_fails_what_was_submitted_is_cancelled(kernel, gate, monkeypatch):
    futures = []
    submit = kernel.submit

    def fail_in_the_end(*args, **kwargs):
        if len(futures) == 50:
            raise RuntimeError("ended meanwhile")
        futures.append(submit(*args, **kwargs))
        return futures[-1]

    monkeypatch.setattr(kernel, "submit", fail_in_the_end)
    address = gate.address
    with pytest.raises(RuntimeError, match="ended meanwhile"):
        pmap(lambda x: pass_gate(address), range(100), parts=100)

    with pytest.raises(CancelledError):
        futures[-1].result(0)
    gate.open()
    assert not wait(futures, DEADLINE).not_done


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, -1])
def test_too_few_parts_are_refused(kernel, parts):
    for call in (
        lambda: pmap(abs, [1], parts=parts),
        lambda: pmap(abs, [], parts=parts),
        lambda: pmap_into([1], abs, [1], parts=parts),
        lambda: preduce(operator.add, [1], parts=parts),
        lambda: preduce(operator.add, [], initial_value=1, parts=parts),
        lambda: preduce_partial(operator.add, [1], parts=parts),
        lambda: pmap_reduce(abs, operator.add, [1], parts=parts),
        lambda: pevery(abs, [1], parts=parts),
        lambda: psome(abs, [1], parts=parts),
        lambda: pcount(1, [1], parts=parts),
        lambda: pfind(1, [1], parts=parts),
        lambda: premove(1, [1], parts=parts),
        lambda: psort([1], parts=parts),
    ):
        with pytest.raises(ValueError, match="parts must be at least 1"):
            call()


@pytest.mark.parametrize("wrong", [1.5, "2", True])
def test_numbers_of_a_wrong_kind_are_refused(kernel, wrong):
    for options in ({"parts": wrong}, {"size": wrong}):
        with pytest.raises(TypeError, match="must be an int"):
            pmap(abs, [1, 2, 3], **options)
    for options in ({"start": wrong}, {"end": wrong}):
        with pytest.raises(TypeError, match="must be an int"):
            preduce(operator.add, [1, 2, 3], **options)


def test_numpys_integers_are_integers(kernel):
    assert pmap(abs, [-1, -2, -3], parts=np.int64(2), size=np.int8(2)) == [1, 2]
    assert pcount(1, [1, 1, 1], start=np.int64(1), end=np.int64(2)) == 1


def test_a_negative_size_is_refused(kernel):
    with pytest.raises(ValueError, match="size must be at least 0"):
        pmap(abs, [1], size=-1)
    with pytest.raises(ValueError, match="size must be at least 0"):
        pmap_into([1], abs, [1], size=-1)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (0, -1), (4, None), (0, 4), (2, 1)])
def test_there_must_be_such_an_interval(kernel, start, end):
    for cognate in (preduce, preduce_partial, pfind_if, pcount_if, premove_if):
        with pytest.raises(ValueError, match="interval|at least 0"):
            cognate(operator.add, [1, 2, 3], start=start, end=end)


def test_sequences_are_needed_and_must_be_iterable(kernel):
    for cognate in (pmap, pevery, psome, pnotany, pnotevery):
        with pytest.raises(TypeError, match="sequence"):
            cognate(abs)
        with pytest.raises(TypeError, match="iterable"):
            cognate(abs, 3)
    with pytest.raises(TypeError, match="iterable"):
        preduce(operator.add, 3)
    with pytest.raises(TypeError):
        pmap(abs, np.array(3))


def test_a_target_must_be_one_that_can_be_changed(kernel):
    for target in ((1, 2), range(3), 3, None, iter([1])):
        with pytest.raises(TypeError, match="can be changed"):
            pmap_into(target, abs, [1, 2])


def test_plet_needs_a_body_and_passes_values_through(kernel):
    with pytest.raises(TypeError, match="must be a function"):
        plet(42, x=lambda: 3)
    assert plet(lambda: 3) == 3
    assert plet(lambda x, y: (x, y), x=3, y=None) == (3, None)
    assert plet(lambda body: body, body=lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):  # the body is called here
        plet(lambda x: x / 0, x=lambda: 3)

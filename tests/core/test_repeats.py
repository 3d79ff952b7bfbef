"""Which large arguments are shared as they repeat."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farm_executor.core.repeats import MAX_STRIKES, Repeats, Verdict

SEND, TAKE, COMPARE = Verdict.SEND, Verdict.TAKE, Verdict.COMPARE


def seen(repeats, key="key", size=10, sample=1):
    verdict, dropped = repeats.see(key, size, sample)
    assert not dropped
    return verdict


def test_it_is_shared_from_the_second_sight_on_and_compared_from_then():
    repeats = Repeats()

    assert seen(repeats) is SEND
    assert seen(repeats) is TAKE
    assert seen(repeats) is SEND  # another thread, while the copy is being taken
    assert repeats.taken("key")
    for _ in range(3):
        assert seen(repeats) is COMPARE
        repeats.same("key")


def test_what_was_written_to_since_the_first_sight_is_not_copied():
    repeats = Repeats()

    assert [seen(repeats, sample=number) for number in range(5)] == [SEND] * 5
    assert seen(repeats, sample=4) is TAKE


def test_what_changes_between_calls_that_use_it_is_copied_each_time():
    repeats = Repeats()
    for epoch in range(10):
        assert seen(repeats, sample=epoch) is (SEND if not epoch else COMPARE)
        if epoch:
            repeats.changed("key", epoch)
        assert seen(repeats, sample=epoch) is TAKE
        repeats.taken("key")
        assert seen(repeats, sample=epoch) is COMPARE
        repeats.same("key")


def test_what_changes_before_any_call_has_used_its_copy_is_left_alone():
    repeats = Repeats()
    assert seen(repeats) is SEND
    for _ in range(MAX_STRIKES):
        assert seen(repeats) is TAKE
        repeats.taken("key")
        assert seen(repeats) is COMPARE
        repeats.changed("key", 1)
    assert [seen(repeats) for _ in range(5)] == [SEND] * 5
    assert repeats.used == 0


def test_more_than_there_is_room_for_in_turn_is_not_copied_for_ever():
    repeats = Repeats(max_bytes=30)
    copies = 0
    shared = set()
    for _ in range(40):
        for key in range(6):
            verdict, dropped = repeats.see(key, 10, 1)
            shared -= set(dropped)
            if verdict is TAKE:
                copies += 1
                repeats.taken(key)
                shared.add(key)
            elif verdict is COMPARE:
                repeats.same(key)
    assert copies <= 6 * MAX_STRIKES
    assert len(shared) == 3


def test_what_exceeds_the_room_is_never_copied():
    repeats = Repeats(max_bytes=9)

    assert [seen(repeats) for _ in range(4)] == [SEND] * 4


def test_what_cannot_be_shared_is_left_alone():
    repeats = Repeats()
    seen(repeats)
    assert seen(repeats) is TAKE
    repeats.leave("key")

    assert not repeats.taken("key")
    assert seen(repeats) is SEND
    assert repeats.used == 0


@given(st.lists(st.integers(0, 9), max_size=60))
def test_only_so_many_are_remembered(keys):
    repeats = Repeats(max_seen=4)
    for place, key in enumerate(keys):
        before = set(keys[:place])
        _, dropped = repeats.see(key, 1, 1)
        assert set(dropped) <= before
        assert len(repeats._seen) <= 4


class Machine(RuleBasedStateMachine):
    """Threads that see arguments, and objects that change and go, in any order."""

    LIMIT = 25

    def __init__(self):
        super().__init__()
        self.repeats = Repeats(self.LIMIT, max_seen=4)
        self.contents = {}
        self.taking = {}
        self.copies = {}

    @rule(key=st.integers(0, 5), size=st.integers(1, 12))
    def see(self, key, size):
        content = self.contents.setdefault(key, 0)
        verdict, dropped = self.repeats.see((key, size), size, content)
        for other in dropped:
            self.copies.pop(other, None)
        if verdict is TAKE:
            assert (key, size) not in self.copies
            self.taking[key, size] = content
        elif verdict is COMPARE:
            if self.copies[key, size] == content:
                self.repeats.same((key, size))
            else:
                del self.copies[key, size]
                self.repeats.changed((key, size), content)

    @precondition(lambda self: self.taking)
    @rule(data=st.data(), fails=st.booleans())
    def end_taking(self, data, fails):
        key = data.draw(st.sampled_from(sorted(self.taking)))
        content = self.taking.pop(key)
        if fails:
            self.repeats.leave(key)
        elif self.repeats.taken(key):
            self.copies[key] = content

    @rule(key=st.integers(0, 5))
    def write(self, key):
        self.contents[key] = self.contents.get(key, 0) + 1

    @rule(key=st.integers(0, 5), size=st.integers(1, 12))
    def go(self, key, size):
        self.repeats.forget((key, size))
        self.copies.pop((key, size), None)

    @invariant()
    def there_is_room_for_all_copies(self):
        assert sum(size for _, size in self.copies) <= self.repeats.used <= self.LIMIT

    @invariant()
    def nothing_is_counted_without_a_copy(self):
        if not self.taking:
            assert self.repeats.used == sum(size for _, size in self.copies)


TestMachine = Machine.TestCase

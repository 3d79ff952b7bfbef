"""What a server may hold of shared objects."""

from farm_executor.core.sharing import State
from farm_executor.core.shelf import MAX_OBJECTS, Room, Shelf


def shelf(limit=100):
    room = Room(lambda: limit)
    return Shelf(room), room


def test_an_object_is_wanted_then_held_then_gone():
    held, room = shelf()

    assert held.offer(1, 60) == (State.WANTED, "")
    assert held.offer(1, 60) == (State.WANTED, "")  # an offer that is repeated takes no more room
    assert room.used == 60
    assert held.ask(1, "worker") == (State.WANTED, "")
    assert held.arrived(1, 60)
    assert held.waiting(1) == ["worker"]
    assert held.waiting(1) == []
    assert held.ask(1, "another") == held.offer(1, 60) == (State.HELD, "")
    held.drop(1)
    assert room.used == 0


def test_a_refusal_names_the_number_the_size_and_the_limit():
    held, room = shelf(limit=100)
    held.offer(1, 60)

    state, reason = held.offer(2, 50)

    assert state is State.REFUSED
    assert "shared object 2 of 50 bytes" in reason
    assert "100 bytes in all, of which 60 bytes are taken" in reason
    assert "--max-shared" in reason
    assert held.ask(2, "worker") == (State.REFUSED, reason)
    held.drop(2)
    assert room.used == 60


def test_what_can_be_done_without_leaves_half_of_the_room_to_what_cannot():
    room = Room(lambda: 101)
    one, other = Shelf(room), Shelf(room)

    assert one.offer(1, 30, True)[0] is State.WANTED
    assert other.offer(1, 21, True)[0] is State.REFUSED
    assert other.offer(2, 20, True)[0] is State.WANTED
    assert one.offer(2, 51)[0] is State.WANTED
    assert room.used == 101


def test_sessions_share_the_room_and_give_it_back_at_their_end():
    room = Room(lambda: 100)
    one, other = Shelf(room), Shelf(room)
    one.offer(1, 100)

    assert other.offer(1, 1)[0] is State.REFUSED
    one.clear()
    assert other.offer(2, 100)[0] is State.WANTED


def test_a_session_has_a_limit_of_objects():
    held, _ = shelf(limit=10**9)
    for number in range(MAX_OBJECTS):
        held.offer(number, 1)

    state, reason = held.offer(MAX_OBJECTS, 1)

    assert state is State.REFUSED
    assert str(MAX_OBJECTS) in reason


def test_what_is_one_too_many_takes_no_memory():
    held, _ = shelf(limit=10**9)
    for number in range(1, MAX_OBJECTS + 1000):
        held.offer(number, 1)

    assert len(held._entries) == MAX_OBJECTS
    state, reason = held.ask(MAX_OBJECTS + 1, "worker")
    assert state is State.REFUSED
    assert "too many" in reason
    assert held.ask(MAX_OBJECTS + 1000, "worker") == (State.WANTED, "")  # it has yet to be offered


def test_a_server_that_cannot_tell_its_limit_refuses_what_it_is_asked_then():
    limits = iter([OSError(24, "Too many open files")])

    def limit():
        for error in limits:
            raise error
        return 100

    held = Shelf(Room(limit))
    state, reason = held.offer(1, 10)
    assert state is State.REFUSED
    assert "cannot tell whether it may hold shared object 1: [Errno 24] Too many open files" in reason
    assert held.ask(1, "worker") == (State.REFUSED, reason)
    assert held.offer(2, 10) == (State.WANTED, "")


def test_sessions_share_the_descriptors_and_give_them_back():
    room = Room(lambda: 100, lambda: 2)
    one, other = Shelf(room), Shelf(room)
    assert one.offer(1, 1)[0] is other.offer(1, 1)[0] is State.WANTED

    state, reason = one.offer(2, 1)
    assert state is State.REFUSED
    assert "no descriptor left for shared object 2" in reason
    assert one.ask(2, "worker")[0] is State.REFUSED
    assert one.offer(1, 1)[0] is State.WANTED  # an offer that is repeated takes no more
    other.fail(1, "no memory")
    other.drop(1)
    assert one.offer(3, 1)[0] is State.WANTED
    assert one.offer(4, 1)[0] is State.REFUSED


def test_nobody_waits_for_what_was_dropped():
    held, _ = shelf()
    held.offer(1, 10)
    held.ask(1, "early")
    held.drop(1)

    assert held.waiting(1) == ["early"]
    state, reason = held.ask(1, "late")
    assert state is State.REFUSED
    assert "nobody needs it" in reason


def test_what_was_dropped_or_has_come_already_is_not_kept():
    held, _ = shelf()
    held.offer(1, 10)

    assert not held.arrived(1, 11)
    assert held.arrived(1, 10)
    assert not held.arrived(1, 10)
    held.drop(1)
    assert not held.arrived(1, 10)


def test_what_comes_before_it_is_offered_is_held_if_there_is_room_for_what_can_be_done_without():
    held, room = shelf(limit=100)
    assert held.ask(3, "early") == (State.WANTED, "")

    assert held.arrived(3, 50)
    assert room.used == 50
    assert held.waiting(3) == ["early"]
    assert held.ask(3, "late") == held.offer(3, 50, True) == (State.HELD, "")
    assert held.ask(2, "another")[0] is State.REFUSED  # which is now known to have been dropped
    assert not held.arrived(2, 10)
    assert not held.arrived(4, 1)
    assert held.offer(4, 1, True)[0] is State.REFUSED
    held.drop(3)
    assert room.used == 0


def test_what_cannot_be_brought_before_it_is_offered_is_refused():
    held, room = shelf(limit=100)
    held.ask(1, "early")

    assert held.fail(1, "no descriptor")
    assert held.waiting(1) == ["early"]
    assert held.ask(1, "late") == held.offer(1, 50, True) == (State.REFUSED, "no descriptor")
    assert room.used == 0


def test_a_worker_that_cannot_take_an_object_in_fails_those_who_wait_for_it():
    held, room = shelf()
    held.ask(1, "early")
    held.offer(1, 10)

    assert held.fail(1, "no room")
    assert not held.fail(1, "again")
    assert held.waiting(1) == ["early"]
    assert held.ask(1, "late") == (State.REFUSED, "no room")
    assert room.used == 0


def test_a_worker_that_has_ended_waits_no_longer():
    held, _ = shelf()
    held.ask(1, "one")
    held.ask(1, "other")
    held.forget("one")

    assert held.waiting(1) == ["other"]

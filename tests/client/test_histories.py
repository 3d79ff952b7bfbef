"""Any order of cuts, deaths, results, resumptions, drains and give-ups settles each task exactly once.

The engine is the real one; the network is played, see `fake_network`.
"""

from fake_network import ACKNOWLEDGE_BYTES, Network
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from farm_executor.core.frames import HEADER_SIZE
from farm_executor.core.lifecycle import LaneState, SessionState
from farm_executor.core.messages import Draining, encode

STEPS = ["read", "dial", "work", "deliver_one", "run", "cut_lane", "die", "drain", "cut_control"]
picks = st.integers(0, 7)


class Histories(RuleBasedStateMachine):
    """What may happen, in any order; in the end all is well again, and every task has its result."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def _worker(self, pick):
        workers = list(self.network.workers.values())
        return workers[pick % len(workers)] if workers else None

    @rule(count=st.integers(1, 5))
    def submit(self, count):
        for _ in range(count):
            self.network.submit()

    @initialize(rounds=st.integers(0, 5))
    def begin(self, rounds):
        for _ in range(rounds):
            self.network.round()

    @rule(count=st.integers(1, 4))
    def round(self, count):
        for _ in range(count):
            self.network.round()

    @rule(pick=picks, steps=st.lists(st.sampled_from(STEPS), max_size=8))
    def resume_half_way(self, pick, steps):
        """The states in the midst of resuming are few steps long: what comes in between is drawn more densely."""
        self.network.out_of_reach = False
        self.cut_lane(pick)
        for step in ("read", "dial", "work", *steps):
            worker = self._worker(pick)
            if step in ("cut_lane", "deliver_one", "die"):
                {"cut_lane": self.cut_lane, "deliver_one": self.deliver_one, "die": self.die_unheard}[step](pick)
            elif step == "drain" and self.network.control is not None:
                self.network.control.say(encode(Draining(True)))
                self.network.read()
            elif step == "cut_control" and self.network.control is not None:
                self.network.control.break_off()
                self.network.read()
            elif step == "run" and worker is not None:
                worker.run()
            elif step in ("read", "dial", "work"):
                getattr(self.network, step)()
            self.lanes_are_under_their_sessions()

    def deliver_one(self, pick):
        worker = self._worker(pick)
        if worker is not None:
            worker.deliver()

    def die_unheard(self, pick):
        worker = self._worker(pick)
        if worker is not None:
            worker.die(report=False)

    @rule()
    def dial(self):
        self.network.dial()

    @rule()
    def work(self):
        self.network.work()

    @rule()
    def read(self):
        self.network.read()

    @rule()
    def serve(self):
        self.network.serve()

    @rule(pick=picks, count=st.integers(1, 4))
    def deliver(self, pick, count):
        for _ in range(count):
            worker = self._worker(pick)
            if worker is not None:
                worker.deliver()

    @rule(pick=picks)
    def run(self, pick):
        worker = self._worker(pick)
        if worker is not None:
            worker.run()

    @rule(pick=picks)
    def cut_lane(self, pick):
        worker = self._worker(pick)
        if worker is not None:
            worker.outbox.cut()
            worker.connection.break_off()

    @precondition(lambda self: self.network.control is not None)
    @rule()
    def cut_control(self):
        self.network.control.break_off()

    @rule(pick=picks, report=st.booleans())
    def die(self, pick, report):
        worker = self._worker(pick)
        if worker is not None:
            worker.die(report=report)

    @rule()
    def lose_session(self):
        self.network.lose_session()

    @rule(yes=st.booleans())
    def reach(self, yes):
        self.network.out_of_reach = not yes

    @precondition(lambda self: self.network.control is not None)
    @rule()
    def drain(self):
        self.network.control.say(encode(Draining(True)))

    @rule(drain=st.booleans(), cut=st.booleans())
    def remove(self, drain, cut):
        if cut and self.network.control is not None:
            self.network.control.break_off()
            self.network.read()
        self.network.remove(drain=drain)

    @rule()
    def beat(self):
        self.network.pass_time(resumable=True)

    @rule()
    def give_up(self):
        self.network.pass_time()

    @rule(pick=picks)
    def stuck(self, pick):
        worker = self._worker(pick)
        if worker is not None and worker.lane in self.network.engine._lanes:
            lane = self.network.engine._lanes[worker.lane]
            if lane.state.connected:
                self.network.engine._crew.on_stuck(worker.lane)

    @invariant()
    def nothing_is_settled_twice(self):
        assert all(count == 1 for count in self.network.settled.values())
        assert self.network.engine._error is None

    @invariant()
    def lanes_are_under_their_sessions(self):
        engine = self.network.engine
        for number, lane in engine._lanes.items():
            assert lane.state is not LaneState.GONE
            assert lane.session.lanes[number] is lane
            assert lane.session.state is not SessionState.OVER
            assert (lane.connection in self.network.reactor.handlers) == lane.state.connected

    def little_is_kept(self):
        """Of what has arrived, no more than what is not worth an acknowledgement yet."""
        for worker in list(self.network.workers.values()):
            while worker.alive and worker.connection.there:
                worker.deliver()
            if worker.alive and not worker.outbox.mute and not worker.connection.back:
                assert worker.outbox.kept <= ACKNOWLEDGE_BYTES // HEADER_SIZE

    def teardown(self):
        try:
            self.network.settle_down()
            for number, future in enumerate(self.network.futures):
                assert future.done(), f"task {number}: {self.network.engine.statistics()}"
                assert future.result() == number
                assert self.network.settled[number] == 1
                assert self.network.runs[number] >= 1
            assert not self.network.engine._dispatch.scheduler.unsettled
            self.little_is_kept()
        finally:
            self.network.close()


TestHistories = Histories.TestCase
TestHistories.settings = settings(deadline=None, stateful_step_count=30)

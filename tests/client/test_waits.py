"""Workers that wait for room or for credit while their client stands still or goes, and signs of life meanwhile."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from client import ring_tasks as tasks
from client.test_rings import SIZE, ask, ringed, until_ringed
from server.peers import SessionPeer
from server.processes import DEADLINE, alive, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, status
from farm_executor.core.features import ALWAYS, RINGS
from farm_executor.core.frames import BULK_THRESHOLD, FrameType
from farm_executor.core.liveness import MAX_MISSED
from farm_executor.core.ring import USUAL
from farm_executor.core.streams import MAX_AHEAD
from farm_executor.data.streamed import stream_out
from farm_executor.wire import memfd
from farm_executor.wire import ring as ring_module

pytestmark = [
    pytest.mark.skipif(not memfd.AVAILABLE, reason="there is no memfd on this system"),
    pytest.mark.usefixtures("no_leaks"),
]

GOODBYES = ["client", "client, to the worker", "server"]
# Longer would take time, and shorter ones are missed by a server that waits for a processor.
HEARTBEAT = 0.5
BEATS = MAX_MISSED + 2  # that a segment takes
# Only what ends by itself does so: nobody is killed for being late.
PATIENT = "from farm_executor.server import sessions; sessions.GRACE_CRASHED = sessions.GRACE_ENDED = 3600.0"
CLIENT = """
import sys
from client import ring_tasks as tasks
from client.test_rings import SIZE, until_ringed
from farm_executor import FarmExecutor

address, key_file, folder, heartbeat, resume_timeout = sys.argv[1:]
times = {"heartbeat": float(heartbeat), "resume_timeout": float(resume_timeout)}
with FarmExecutor(address, key_file=key_file, **times) as farm:
    until_ringed(farm)
    future = farm.submit(tasks.make_once_told, folder, SIZE)
    print(len(future.result()), future.result().count(b"."), flush=True)
"""


class Client:
    """A program whose worker is about to send it something large, and which is stopped before it comes."""

    def __init__(self, server, folder, resume_timeout):
        root = Path(__file__).parents[2]
        said = [server.address, server.key_file, folder, HEARTBEAT, resume_timeout]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, *map(str, said)],
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._folder = folder
        self.worker = int(self._noted("begun"))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def stop(self):
        """Stop it, and have the worker fill the ring."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        (self._folder / "go").touch()
        self._noted("waits")

    def _noted(self, what):
        return wait_until(lambda: (self._folder / what).is_file() and (self._folder / what).read_text(), what)


def say_goodbye(by, server, peer, lane):
    if by == "client":
        peer.send_frame(FrameType.BYE)
    elif by == "client, to the worker":
        lane.send_frame(FrameType.BYE)
    else:
        server.terminate()
        server.wait_for_line("draining")
        server.terminate()


def state_of(server):
    (client,) = status(server.host, server.port, key=KEY)["sessions"]
    return client["state"]


def test_a_client_that_is_stopped_finds_its_result_when_it_goes_on_and_others_are_served_meanwhile(tmp_path):
    with Serving(workers=1) as server, Client(server, tmp_path, resume_timeout=60) as client:
        client.stop()
        wait_until(lambda: state_of(server) == "cut", "the server has noticed that it says nothing")
        with FarmExecutor(server.address, key=KEY) as other:
            until_ringed(other)
        assert alive(client.worker)
        client.process.send_signal(signal.SIGCONT)
        assert client.process.communicate(timeout=DEADLINE)[0] == f"{SIZE} {SIZE}\n"


def test_the_worker_of_a_stopped_client_ends_with_the_session(tmp_path):
    with Serving(before=PATIENT, workers=1) as server, Client(server, tmp_path, resume_timeout=0.5) as client:
        client.stop()
        wait_until(lambda: not alive(client.worker), "the worker has ended, and waits no longer")


@pytest.mark.parametrize("by", GOODBYES)
def test_a_worker_that_waits_for_room_ends_when_it_is_told(tmp_path, by):
    with (
        Serving(before=PATIENT, workers=1) as server,
        SessionPeer(server.address, features=[*ALWAYS, RINGS]) as peer,
    ):
        lane = peer.open_lane()
        lane.start()
        ring = ring_module.accept(ask(peer).socket)
        lane.connection.expect_ring(ring)
        lane.connection.use_ring()
        lane.send_frame(FrameType.RINGED)
        lane.teach(7, tasks.make_and_tell)
        lane.submit(0, (7, str(tmp_path / "waits"), SIZE))
        wait_until((tmp_path / "waits").is_file, "it waits")
        say_goodbye(by, server, peer, lane)
        wait_until(lambda: not alive(lane.pid), "the worker has ended, and waits no longer")


@pytest.mark.parametrize("by", GOODBYES)
def test_a_worker_that_waits_for_credit_ends_when_it_is_told(by):
    with (
        Serving(before=PATIENT, workers=1) as server,
        SessionPeer(server.address, features=[*ALWAYS]) as peer,
    ):
        lane = peer.open_lane()
        lane.start()
        lane.teach(7, stream_out)
        lane.submit(0, (7, itertools.repeat, (bytes(BULK_THRESHOLD),), {}))
        for _ in range(MAX_AHEAD):  # each a frame of its own, so that no more follow
            assert lane.receive().type is FrameType.ITEMS
        say_goodbye(by, server, peer, lane)
        wait_until(lambda: not alive(lane.pid), "the worker has ended, and waits no longer")


@pytest.mark.parametrize(("way", "together"), [("from the worker", 1), ("to the worker", USUAL.count)])
def test_a_segment_that_takes_longer_than_signs_of_life_may_does_not_end_its_lane(tmp_path, way, together):
    """Its marks tell of progress, for each piece that comes, and for as many as a worker may take at once."""
    size = BEATS * together * USUAL.chunk
    with Serving(workers=1) as server, FarmExecutor(server.address, key=KEY, heartbeat=HEARTBEAT) as farm:
        until_ringed(farm)
        (lane,) = farm._engine._lanes.values()
        connection, beats = lane.connection, lambda: farm._engine.servers._around.liveness._beats
        if way == "from the worker":
            future = farm.submit(tasks.make_in_step, str(tmp_path), size)
        else:
            farm.submit(tasks.take_in_step, str(tmp_path)).result(DEADLINE)
            future = farm.submit(tasks.echo, b"." * size)
        for beat in range(BEATS):
            wait_until(lambda seen=beats(): beats() > seen, "another beat")
            for piece in range(together):
                (tmp_path / str(beat * together + piece)).touch()
        assert future.result(DEADLINE) == b"." * size
        assert farm._engine._lanes[lane.id].connection is connection
        assert ringed(farm) == [True]

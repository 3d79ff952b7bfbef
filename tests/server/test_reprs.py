"""What a debugger or a log shows of a server's objects: their state, and no secret."""

import socket
import time

import pytest

from farm_executor.core.messages import ControlHello
from farm_executor.server.channel import Channel
from farm_executor.server.guest import Guest
from farm_executor.server.process import Worker
from farm_executor.server.progress import Progress
from farm_executor.server.session import Session
from farm_executor.wire.connection import Connection
from farm_executor.wire.security import Key
from farm_executor.wire.versions import local_versions

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_connection_tells_what_it_has_moved_and_that_it_is_closed(ends):
    connection = Connection(ends[0])
    connection.send_all([b"abc"])
    assert repr(connection) == f"<Connection fd {ends[0].fileno()}: 3 bytes out, 0 in, 0 unsent>"

    connection.close()
    assert repr(connection) == "<Connection closed: 3 bytes out, 0 in, 0 unsent>"


def test_a_guest_tells_how_far_it_has_come_and_not_its_key(ends):
    key = Key(b"0123456789abcdef")
    guest = Guest(ends[0], host="h", name="h:1", keys=[key], local=True, deadline=time.monotonic())
    assert repr(guest) == "<Guest h:1: silent>"

    guest.has_spoken = True
    assert repr(guest) == "<Guest h:1: proving the key>"


def test_a_session_tells_its_state_and_not_the_id_that_would_resume_it(ends):
    whose = {"distant": True, "number": 1, "who": ControlHello(local_versions())}
    session = Session("the-id", "user@host:7", 15.0, 5.0, None, frozenset(), **whose)
    assert repr(session) == "<Session of user@host:7: cut, 0 workers>"

    session.connection = Connection(ends[0])
    assert repr(session) == "<Session of user@host:7: connected, 0 workers>"

    session.ended = True
    assert repr(session) == "<Session of user@host:7: ended, 0 workers>"


def test_a_worker_tells_where_it_is_and_what_it_does(ends):
    mine, theirs = Channel.pair()
    progress = Progress()
    worker = Worker(12, 3, 4, ends[0], mine, progress, None, None)
    assert repr(worker) == "<Worker pid 12, slot 3, lane 4: idle>"

    progress.close()
    assert repr(worker) == "<Worker pid 12, slot 3, lane 4: gone>"

    worker.stopped = True
    assert repr(worker) == "<Worker pid 12, slot 3, lane 4: stopped>"

    worker.killed = 5
    assert repr(worker) == "<Worker pid 12, slot 3, lane 4: killed>"
    mine.close()
    theirs.close()

"""Lanes between programs on one machine, over the unix socket that a server on TCP has beside its port."""

import logging
import socket
import sys

import pytest
from contract.tasks import identity
from faults.proxy import Proxy
from server.peers import SessionPeer
from server.processes import DEADLINE, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, start_server
from farm_executor.core.features import ALWAYS, BESIDE
from farm_executor.errors import AuthenticationError
from farm_executor.wire import dialling
from farm_executor.wire.dialling import RefusedError, connect
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import beside, ends, hang_up

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="there are no abstract sockets"),
    pytest.mark.usefixtures("no_leaks"),
]


def are_beside(farm):
    """Whether each lane goes over a unix socket, as it is."""
    return {
        lane.connection.peer is None and lane.connection.as_given for lane in list(farm._engine._lanes.values())
    }


@pytest.fixture
def server():
    with start_server("127.0.0.1", 0, background=True, workers=2) as server:
        yield server


def test_lanes_of_a_program_on_the_server_s_machine_go_over_a_unix_socket(server):
    with FarmExecutor(server.address) as farm:
        assert farm.broadcast(identity, 1) == [1, 1]
        assert are_beside(farm) == {True}


def test_what_stands_in_between_is_not_passed_by(server):
    with Proxy(server.address) as proxy, FarmExecutor(proxy.address) as farm:
        assert farm.broadcast(identity, 1) == [1, 1]
        assert are_beside(farm) == {False}
        assert len(proxy.links) == 3


@pytest.mark.parametrize("why", ["elsewhere", "another user's"])
def test_where_the_unix_socket_is_not_to_be_used_lanes_go_by_tcp(server, why, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "farm_executor")
    if why == "elsewhere":  # as from another network namespace with the same addresses
        monkeypatch.setattr("farm_executor.client.farm.link.beside", lambda name: beside("elsewhere"))
    else:

        def refuse(uid, address):
            raise AuthenticationError("it belongs to another user")

        monkeypatch.setattr(dialling, "check_peer", refuse)
    with FarmExecutor(server.address) as farm:
        assert farm.broadcast(identity, 1) == [1, 1]
        assert are_beside(farm) == {False}
    assert any("lanes go by TCP" in record.getMessage() for record in caplog.records)


def test_such_a_lane_is_resumed_over_tcp(server):
    with FarmExecutor(server.address, max_workers=1) as farm:
        farm.submit(identity, 1).result(DEADLINE)
        (lane,) = farm._engine._lanes.values()
        hang_up(lane.connection.socket)
        assert farm.submit(identity, 2).result(DEADLINE) == 2
        wait_until(lambda: lane.connection.peer is not None, "it is resumed")
        assert farm.statistics().resubmitted == 0


def test_the_ends_of_a_connection_are_the_same_at_both_ends_if_they_are_on_one_machine():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as here,
    ):
        there, _ = listener.accept()
        with there:
            assert ends(here) == ends(there) != ""
    one, other = socket.socketpair()
    with one, other:
        assert ends(one) == ""


def test_a_client_that_has_not_asked_for_it_is_not_told():
    features = [name for name in ALWAYS if name != BESIDE]
    with Serving(workers=1) as server, SessionPeer(server.address, features=features) as peer:
        assert "beside" not in peer.hello
        assert "ends" not in peer.hello


def test_who_is_not_in_a_session_gets_no_lane_there():
    with Serving(workers=1) as server, SessionPeer(server.address, features=[*ALWAYS]) as peer:
        said = {"role": "lane", "session": "another", "lane": 1, "slot": 0}
        with pytest.raises(RefusedError, match="no such session"):
            connect(beside(peer.hello["beside"]), Key(KEY), said, DEADLINE)
        with pytest.raises(AuthenticationError, match="refused the key"):
            connect(beside(peer.hello["beside"]), Key(b"another key of sixteen bytes"), said, DEADLINE)

"""Questions to a server: whether it is there, how it is, and that it end; also when what answers is no server."""

import contextlib
import os
import socket
import threading

import pytest
from server import tasks
from server.peers import SessionPeer, dial, free_address, listening, read_to_end
from server.processes import DEADLINE, wait_until
from server.serving import KEY, TESTS

from farm_executor import (
    AddressError,
    AuthenticationError,
    FarmExecutor,
    RemoteProtocolError,
    Server,
    end_server,
    ping,
    start_server,
    status,
)
from farm_executor.admin import ask
from farm_executor.wire.address import parse_address
from farm_executor.wire.security import write_key

pytestmark = pytest.mark.usefixtures("no_leaks")

HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"
OTHER_KEY = b"a key that is not the server's"


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TESTS, prepend=os.pathsep)
        server = start_server("127.0.0.1", 0, background=True, name="a name", workers=3, key=KEY)
    with server:
        yield server


def place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@contextlib.contextmanager
def answering(*answers: bytes, connections: int = 1000):
    """Something that listens and is no farm server; the list of what it was told."""
    heard: list[bytes] = []
    with listening() as (listener, address):
        stop = threading.Event()

        def serve():
            with contextlib.ExitStack() as stack:
                while not stop.is_set():
                    try:
                        sock = stack.enter_context(listener.accept()[0])
                    except OSError:
                        return
                    sock.settimeout(DEADLINE)
                    heard.append(sock.recv(48))
                    for answer in answers:
                        sock.sendall(answer)
                        sock.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address, heard
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)
            assert not thread.is_alive()


# -- ping ---------------------------------------------------------------------------------------------------


def test_ping_is_true_where_a_server_answers(server):
    assert ping(*place(server.address), key=KEY) is True
    assert ping(*place(server.address), timeout=None, key=KEY) is True
    assert ping(*place(server.address), 1, key=KEY) is True


def test_ping_is_false_where_nobody_listens():
    assert ping(*place(free_address()), timeout=0.3, key=KEY) is False


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_ping_with_hardly_any_time_asks_once(timeout):
    assert ping(*place(free_address()), timeout=timeout, key=KEY) is False


@pytest.mark.parametrize("answers", [(), (b"",), (HTTP,)], ids=["silent", "ends", "http"])
def test_ping_is_false_where_something_else_answers(answers):
    with answering(*answers) as (address, heard):
        assert ping(*place(address), timeout=0.25, key=KEY) is False
        assert heard


def test_ping_waits_for_a_server_that_comes_later():
    address = free_address()
    found = []
    asking = threading.Thread(target=lambda: found.append(ping(*place(address), timeout=DEADLINE, key=KEY)))
    asking.start()
    with start_server(*place(address), background=True, workers=1, key=KEY):
        asking.join(DEADLINE)
    assert found == [True]


# -- status -------------------------------------------------------------------------------------------------


def test_status_is_of_the_server_asked(server):
    data = status(*place(server.address), key=KEY)
    assert (data["address"], data["name"], data["pid"], data["slots"]) == (server.address, "a name", server.pid, 3)
    assert data["draining"] is False
    assert set(data["versions"]) == {"python", "cloudpickle", "tblib", "farm_executor", "protocol"}


def test_status_shows_the_workers_of_each_client_and_none_that_is_gone(server):
    with FarmExecutor(server.address, key=KEY, max_workers=2) as farm:
        pids = {farm.submit(tasks.pid).result(DEADLINE)}

        def shown():
            workers = status(*place(server.address), key=KEY)["workers"]
            return {row[workers["columns"].index("pid")] for row in workers["rows"]}

        wait_until(lambda: len(shown()) == 2 and pids <= shown(), "two workers, one of them the task's")
    wait_until(lambda: not status(*place(server.address), key=KEY)["sessions"], "no client")


def test_status_counts_up(server):
    first = status(*place(server.address), key=KEY)["seconds"]
    assert wait_until(lambda: status(*place(server.address), key=KEY)["seconds"] > first, "later")


def test_asking_makes_no_session(server):
    for _ in range(3):
        assert status(*place(server.address), key=KEY)["sessions"] == []


# -- the end ------------------------------------------------------------------------------------------------


def test_end_server_ends_a_server_without_clients_at_once():
    server = start_server("127.0.0.1", 0, background=True, workers=1, key=KEY)
    with server:
        assert end_server(*place(server.address), key=KEY) is None
        assert server.wait(DEADLINE)
        assert "ended" in repr(server)
        assert ping(*place(server.address), timeout=0.1, key=KEY) is False


def test_end_server_lets_connections_in_progress_go_on():
    with start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server:
        with SessionPeer(server.address) as session:
            lane = session.open_lane()
            lane.start()
            end_server(*place(server.address), key=KEY)
            lane.teach(1, abs)
            lane.submit(0, (1, -7))
            assert lane.outcomes(1) == {0: 7}
            assert not server.wait(0)
        assert server.wait(DEADLINE)


# -- what may go wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", [status, end_server])
def test_questions_to_nobody_are_oserrors(question):
    with pytest.raises(OSError):
        question(*place(free_address()), key=KEY)


@pytest.mark.parametrize("question", [status, end_server])
def test_questions_to_something_else_are_errors_that_say_so(question):
    with answering(HTTP) as (address, _), pytest.raises(RemoteProtocolError, match="no farm_executor server"):
        question(*place(address), key=KEY)
    with answering(b"") as (address, _), pytest.raises(ConnectionResetError, match=address):
        question(*place(address), key=KEY)
    with answering() as (address, _), pytest.raises(TimeoutError):
        question(*place(address), timeout=0.05, key=KEY)


@pytest.mark.parametrize("question", [ping, status, end_server])
def test_questions_with_another_key_are_authentication_errors(server, question):
    with pytest.raises(AuthenticationError):
        question(*place(server.address), key=OTHER_KEY)
    assert ping(*place(server.address), key=KEY)


@pytest.mark.parametrize("question", [ping, status, end_server])
def test_questions_to_no_address_are_address_errors(question):
    for host, port in (("", 80), ("two words", 80), ("host", 70000), ("host", 0), ("host", "80"), (None, 80)):
        with pytest.raises(AddressError):
            question(host, port)


def test_the_key_may_be_in_a_file(server, tmp_path):
    write_key(tmp_path / "key", KEY)
    assert ping(*place(server.address), key_file=tmp_path / "key")
    assert status(*place(server.address), key_file=str(tmp_path / "key"))["pid"] == server.pid


def test_a_command_that_the_server_does_not_know_is_refused_with_the_reason(server):
    with pytest.raises(ConnectionRefusedError, match="knows no command 'dance'"):
        ask(parse_address(server.address), "dance", DEADLINE, KEY)


def test_an_answer_ends_the_connection(server):
    """The server keeps nothing of who has asked."""
    before = len(os.listdir(f"/proc/{server.pid}/fd"))
    for _ in range(5):
        status(*place(server.address), key=KEY)
    wait_until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= before, "as many descriptors as before")
    with dial(server.address) as sock:
        sock.sendall(b"?")
        assert read_to_end(sock) == b""


# -- start_server -------------------------------------------------------------------------------------------


def test_a_server_in_the_background_tells_its_address_and_process():
    with start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server:
        assert isinstance(server, Server)
        assert server.address.startswith("127.0.0.1:")
        assert server.address in repr(server)
        assert "running" in repr(server)
        assert not server.wait(0)
    assert server.wait(0)
    server.end()


def test_two_servers_share_a_machine():
    with (
        start_server("127.0.0.1", 0, background=True, name="one", workers=1, key=KEY) as one,
        start_server("127.0.0.1", 0, background=True, name="two", workers=1, key=KEY) as two,
    ):
        assert one.address != two.address
        assert [status(*place(each.address), key=KEY)["name"] for each in (one, two)] == ["one", "two"]


def test_a_server_drained_by_its_handle_serves_its_clients_to_their_end():
    with start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server:
        with SessionPeer(server.address) as session:
            lane = session.open_lane()
            lane.start()
            server.drain()
            wait_until(lambda: not ping(*place(server.address), timeout=0, key=KEY), "it takes no new clients")
            lane.teach(1, abs)
            lane.submit(0, (1, -7))
            assert lane.outcomes(1) == {0: 7}
        assert server.wait(DEADLINE)


@pytest.mark.parametrize("workers", [0, -1])
def test_a_server_without_workers_is_refused(workers):
    with pytest.raises(ValueError, match="workers must be >= 1"):
        start_server("127.0.0.1", 0, background=True, workers=workers, key=KEY)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_server_that_others_could_reach_must_be_asked_for_in_so_many_words(host):
    with pytest.raises(AddressError, match="insecure=True"):
        start_server(host, 0, background=True, key=KEY)


def test_a_server_that_others_can_reach_is_had_when_asked_for():
    with start_server("0.0.0.0", 0, background=True, workers=1, key=KEY, insecure=True) as server:
        assert ping("127.0.0.1", place(server.address)[1], key=KEY)


def test_a_server_in_the_foreground_returns_when_it_has_ended():
    address = free_address()
    returned = threading.Event()

    def serve():
        start_server(*place(address), workers=1, key=KEY)
        returned.set()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ping(*place(address), timeout=DEADLINE, key=KEY)
    assert not returned.is_set()
    end_server(*place(address), key=KEY)
    assert returned.wait(DEADLINE)
    thread.join()

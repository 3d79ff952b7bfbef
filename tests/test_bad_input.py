"""Bad input: a test for each row of the table of what the user sees.

Row by row, from end to end, through the public API. What each row means in detail is in the tests of the modules:
`test_address`, `test_security`, `test_transport`, `server.test_supervisor`, `server.test_worker`.
"""

import contextlib
import errno
import importlib
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from concurrent.futures import BrokenExecutor

import pytest
from contract.gate import Gate
from contract.tasks import FailsToLoad, PlainError, identity, raise_it, raise_with_lock, return_lock
from server import tasks
from server.peers import dial, free_address, listening, prove_key, read_to_end
from server.processes import DEADLINE, alive, resident_bytes, wait_until
from server.serving import KEY, Serving

from farm_executor import (
    AddressError,
    AuthenticationError,
    FarmExecutor,
    TaskExecutionError,
    WorkerLostError,
    ping,
    start_server,
)
from farm_executor.client.farm import link as dialling
from farm_executor.client.farm.engine import Engine
from farm_executor.client.farm.link import CLEAR_REFUSALS
from farm_executor.core import dialling as core_dialling
from farm_executor.core.frames import BULK, FrameType, encode_frame
from farm_executor.core.handshake import PROTOCOL_VERSION

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture(scope="module")
def serving():
    with Serving() as server:
        yield server


@pytest.fixture(params=["embedded", "server"])
def farm(request, serving):
    """A farm with two workers, each way."""
    with FarmExecutor(2) if request.param == "embedded" else FarmExecutor(serving.address, key=KEY) as executor:
        yield executor


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


def place(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


def lines(path):
    return path.read_text().split() if path.exists() else []


# -- row: an address that is none ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    ["host:", "host:port:x", "host:70000", [], b"host:80", {"host": 80}, ["host:80", "host:"], ("host", 70000)],
    ids=repr,
)
def test_what_is_no_address_is_an_address_error_at_once_that_names_it_and_the_forms(addresses):
    with pytest.raises(AddressError) as caught:
        FarmExecutor(addresses)
    text = str(caught.value)
    assert '"host:port"' in text
    assert '"unix:/path"' in text
    if addresses:
        assert repr(addresses) in text or repr(addresses[-1]) in text


def test_a_lone_string_is_one_address():
    assert "127.0.0.1:1" in repr(FarmExecutor("127.0.0.1:1"))


# -- row: nobody listens ------------------------------------------------------------------------------------


def test_where_nobody_listens_submit_waits_and_the_log_says_whom_it_is_dialling(caplog):
    address = free_address()
    farm = FarmExecutor(address, key=KEY)
    future = farm.submit(abs, -1)
    wait_until(lambda: "still dialling" in caplog.text, "a line in the log")
    assert f"still dialling server={address}" in caplog.text
    assert "ConnectionRefusedError" in caplog.text
    assert not future.done()
    farm.shutdown(cancel_futures=True)
    assert future.cancelled()


def test_the_log_says_so_every_so_often_and_not_at_every_attempt(caplog, monkeypatch):
    monkeypatch.setattr(core_dialling, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(dialling, "REPORT_EVERY", 0.2)
    attempts = []
    connect = dialling.connect
    monkeypatch.setattr(dialling, "connect", lambda *args, **more: (attempts.append(1), connect(*args, **more)))
    farm = FarmExecutor(free_address(), key=KEY)
    farm.submit(abs, -1)
    wait_until(lambda: caplog.text.count("still dialling") >= 3, "three lines in the log")
    assert len(attempts) > caplog.text.count("still dialling")
    farm.shutdown(wait=False, cancel_futures=True)


def test_with_a_connect_timeout_it_is_a_timeout_error_that_names_the_addresses():
    one, other = free_address(), free_address()
    with FarmExecutor([one, other], key=KEY, connect_timeout=0.2) as farm:
        futures = [farm.submit(abs, -1) for _ in range(3)]
        for future in futures:
            with pytest.raises(TimeoutError) as caught:
                future.result(DEADLINE)
            assert one in str(caught.value)
            assert other in str(caught.value)
            assert "0.2" in str(caught.value)
        with pytest.raises(TimeoutError, match=one):
            farm.submit(abs, -1)


def test_a_connect_timeout_is_over_also_while_a_silent_peer_is_listened_to():
    with listening() as (_, address), FarmExecutor(address, key=KEY, connect_timeout=0.2) as farm:
        future = farm.submit(abs, -1)
        with pytest.raises(TimeoutError, match=address):
            future.result(DEADLINE)


def test_a_connect_timeout_is_of_no_account_once_a_server_was_there(serving, monkeypatch):
    there, over = threading.Event(), threading.Event()
    give_up = Engine._give_up_connecting

    def give_up_later(engine):  # the time is over once a server is there, however long that takes here
        if there.is_set():
            give_up(engine)
            over.set()
        else:
            engine._reactor.after(0.02, engine._give_up_connecting)

    monkeypatch.setattr(Engine, "_give_up_connecting", give_up_later)
    with FarmExecutor([serving.address, free_address()], key=KEY, connect_timeout=0.02) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        there.set()
        assert over.wait(DEADLINE)
        assert farm.submit(abs, -2).result(DEADLINE) == 2


def test_a_server_that_starts_later_is_found_also_before_there_ever_was_one(caplog):
    address = free_address()
    with FarmExecutor(address, key=KEY) as farm:
        futures = [farm.submit(abs, -number) for number in range(10)]
        wait_until(lambda: "still dialling" in caplog.text, "the first attempt has failed")
        with start_server(*place(address), background=True, workers=1, key=KEY):
            assert [future.result(DEADLINE) for future in futures] == list(range(10))


def test_a_server_that_is_there_does_all_the_work_while_another_is_not(serving):
    with FarmExecutor([free_address(), serving.address], key=KEY) as farm:
        assert list(farm.map(abs, range(-20, 0), timeout=DEADLINE)) == list(range(20, 0, -1))


def test_an_address_where_something_else_answers_is_dialled_again_like_one_where_nobody_does(caplog):
    """It may be a farm server tomorrow. Each attempt is one connection, with a growing pause behind it."""
    with listening() as (listener, address):
        farm = FarmExecutor(address, key=KEY)
        future = farm.submit(abs, -1)
        for _ in range(3):
            with listener.accept()[0] as sock:
                sock.recv(48, socket.MSG_WAITALL)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        wait_until(lambda: "no farm_executor server" in caplog.text, "the reason in the log")
        assert not future.done()
        farm.shutdown(wait=False, cancel_futures=True)


# -- row: wrong key -----------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error_from_the_first_call_that_needs_the_farm(serving):
    before = len(serving.lines("wrong key"))
    farm = FarmExecutor(serving.address, key=b"not the server's key")
    with farm:
        with pytest.raises(AuthenticationError, match=serving.address):
            farm.submit(abs, 1).result(DEADLINE)
        for _ in range(3):
            with pytest.raises(AuthenticationError, match=serving.address):
                farm.submit(abs, 1)
        with pytest.raises(AuthenticationError):
            list(farm.map(abs, [1]))
    serving.wait_for_line("wrong key", before + CLEAR_REFUSALS)
    assert len(serving.lines("wrong key")) == before + CLEAR_REFUSALS


def test_a_wrong_key_is_an_authentication_error_for_every_task_that_waits(serving):
    with FarmExecutor(serving.address, key=b"not the server's key") as farm:
        futures = []
        with contextlib.suppress(AuthenticationError):
            futures.extend(farm.submit(abs, number) for number in range(100))
            futures = [farm.submit(abs, number) for number in range(100)]
        errors = [future.exception(DEADLINE) for future in futures]
        assert {type(error) for error in errors} <= {AuthenticationError}
        assert len({id(error) for error in errors}) == len(errors), "each has its own, for tracebacks grow"


# The beginning of a server's: sealed, in our version.
PREAMBLE = b"FARM" + bytes([PROTOCOL_VERSION, PROTOCOL_VERSION, 4])


def refuse(listener):
    """Be somebody who says that the key is wrong, as anybody can."""
    with listener.accept()[0] as sock:
        sock.recv(48, socket.MSG_WAITALL)
        sock.sendall(PREAMBLE + bytes(41))
        sock.recv(32, socket.MSG_WAITALL)
        sock.sendall(bytes(33))
        assert read_to_end(sock) == b""


def test_a_wrong_key_is_given_up_after_a_few_tries():
    """Connections are counted where they arrive."""
    with listening() as (listener, address), FarmExecutor(address, key=b"not the server's key") as farm:
        future = farm.submit(abs, 1)
        for _ in range(CLEAR_REFUSALS):
            refuse(listener)
        with pytest.raises(AuthenticationError):
            future.result(DEADLINE)
        with pytest.raises(AuthenticationError):
            farm.submit(abs, 1)
        farm.shutdown()

        def ours():
            return [thread for thread in threading.enumerate() if thread.name.startswith("farm-")]

        wait_until(lambda: not ours(), "nobody is left who could try again")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_who_says_that_the_key_is_wrong_is_not_believed_when_a_server_has_proven_that_it_is_right(serving):
    with listening() as (listener, address), FarmExecutor(serving.address, key=KEY) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        farm.add_server(address)
        for _ in range(CLEAR_REFUSALS + 2):
            refuse(listener)
        assert farm.submit(abs, -2).result(DEADLINE) == 2


def test_a_server_that_does_not_know_the_key_gets_no_task():
    """Whoever listens there cannot have the farm's work: the client wants a proof, too."""
    with listening() as (listener, address), FarmExecutor(address, key=KEY) as farm:
        future = farm.submit(identity, "a secret")
        for _ in range(CLEAR_REFUSALS):
            with listener.accept()[0] as sock:
                heard = sock.recv(48, socket.MSG_WAITALL)
                sock.sendall(PREAMBLE + bytes(41))
                heard += sock.recv(32, socket.MSG_WAITALL)
                sock.sendall(b"\1" + bytes(32))
                assert read_to_end(sock) == b""
            assert KEY not in heard
        with pytest.raises(AuthenticationError, match="did not prove"):
            future.result(DEADLINE)


# -- row: garbage, silence, promises, scanners, HTTP --------------------------------------------------------

PROMISE = (1 << 30).to_bytes(4, "little") + bytes([FrameType.HELLO, BULK]) + bytes(10)
STRANGERS = {
    "garbage": os.urandom(10_000),
    "a letter": b"F",
    "a promise of 1 GiB": PROMISE,
    "an HTTP client": b"GET / HTTP/1.1\r\nHost: localhost:11111\r\nUser-Agent: curl/8\r\n\r\n",
    "half a preamble": PREAMBLE + bytes(20),
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_costs_one_line_in_the_log_and_nobody_else_anything(serving, said):
    memory = resident_bytes(serving.pid)
    with FarmExecutor(serving.address, key=KEY) as farm, dial(serving.address) as stranger:
        its_line = "dismissed peer={}:{} ".format(*stranger.getsockname())
        with contextlib.suppress(ConnectionError):
            stranger.sendall(said)
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        assert ping(serving.host, serving.port, key=KEY)
        stranger.close()
        serving.wait_for_line(its_line, 1)
        assert farm.submit(abs, -2).result(DEADLINE) == 2
    assert len(serving.lines(its_line)) == 1
    assert resident_bytes(serving.pid) - memory < 16 << 20


def test_a_promise_of_1_gib_by_one_who_has_the_key_takes_no_memory_either(serving):
    before, memory = len(serving.lines("dismissed")), resident_bytes(serving.pid)
    table = (1).to_bytes(4, "little") + (1 << 30).to_bytes(8, "little")
    with dial(serving.address) as peer:
        peer = prove_key(peer)
        peer.sendall(b"".join(encode_frame(FrameType.HELLO, flags=BULK, body=table)))
        assert read_to_end(peer) == b""
    serving.wait_for_line("dismissed", before + 1)
    assert resident_bytes(serving.pid) - memory < 16 << 20


def test_a_port_scanner_costs_nobody_anything(serving):
    for _ in range(50):
        dial(serving.address).close()
    with FarmExecutor(serving.address, key=KEY) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


# -- row: an argument that cannot be pickled ----------------------------------------------------------------


def test_an_argument_that_cannot_be_pickled_is_the_error_of_its_future_and_names_the_argument(farm):
    lock = threading.Lock()
    for future, named in (
        (farm.submit(identity, lock), "argument 0, of type lock"),
        (farm.submit(print, 1, 2, [lock]), "argument 2, of type list"),
        (farm.submit(print, sep=lock), "argument sep, of type lock"),
        (farm.submit(lock.acquire), "the function itself"),
        (farm.submit(lambda: lock), "the function itself"),
    ):
        assert future.done(), "it is known at once"
        with pytest.raises(TypeError, match="pickle") as caught:
            future.result()
        assert named in str(caught.value)
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_an_argument_that_cannot_be_pickled_costs_its_own_call_of_a_map_alone(farm):
    values = [farm.submit(identity, item) for item in (1, threading.Lock(), 3)]
    assert values[0].result(DEADLINE) == 1
    assert values[2].result(DEADLINE) == 3
    results = farm.map(identity, [1, threading.Lock(), 3])
    assert next(results) == 1
    with pytest.raises(TypeError, match="pickle"):
        next(results)


class RaisesWhenPickled:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError("own"), MemoryError(), TimeoutError()], ids=repr)
def test_whatever_an_argument_raises_when_pickled_is_its_future_s(farm, error):
    with pytest.raises(type(error)):
        farm.submit(identity, RaisesWhenPickled(error)).result(DEADLINE)
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_an_argument_too_deep_to_be_pickled_is_its_future_s_error(farm):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((pickle.PicklingError, RecursionError), match="recursion"):
        farm.submit(identity, deep).result(DEADLINE)
    while deep:  # from outside to inside, for its end would be as deep
        deep = deep.pop()
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_an_argument_that_cannot_be_read_on_the_worker_is_a_task_execution_error(farm):
    with pytest.raises(TaskExecutionError, match=r"could not be read on the worker.*refused"):
        farm.submit(identity, FailsToLoad()).result(DEADLINE)
    assert farm.submit(abs, -1).result(DEADLINE) == 1


# -- row: a result or an exception that cannot be pickled ---------------------------------------------------


def test_a_result_that_cannot_be_pickled_is_pickles_error_with_an_explanation(farm):
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        farm.submit(return_lock).result(DEADLINE)
    assert type(caught.value.__cause__) is TaskExecutionError
    assert "of type lock, could not be pickled" in str(caught.value.__cause__)
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_a_result_that_cannot_be_rebuilt_here_is_a_task_execution_error_with_the_reason(farm):
    with pytest.raises(TaskExecutionError, match="could not be rebuilt here.*refused"):
        farm.submit(FailsToLoad).result(DEADLINE)
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_an_exception_that_cannot_be_pickled_is_a_task_execution_error_with_both_texts(farm):
    for function, own in ((tasks.raise_unpicklable, "it says what was wrong"), (raise_with_lock, "PlainError")):
        with pytest.raises(TaskExecutionError) as caught:
            farm.submit(function).result(DEADLINE)
        text = str(caught.value)
        assert own in text
        assert "cannot pickle" in text
        assert function.__name__ in text, "the remote traceback"
        assert caught.value.pid
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_an_exception_that_can_be_pickled_is_itself(farm):
    with pytest.raises(PlainError, match="as it is"):
        farm.submit(raise_it, PlainError("as it is")).result(DEADLINE)


# -- row: a module that the worker lacks --------------------------------------------------------------------


def test_a_module_that_the_worker_lacks_is_a_task_execution_error_that_names_module_and_server(
    serving, tmp_path, monkeypatch
):
    """A server started where the module is not; what travels by name needs it there."""
    (tmp_path / "module_of_the_client.py").write_text(
        "class Own:\n    pass\n\ndef call():\n    return 1\n\ndef fail():\n    raise Error('own')\n\n"
        "class Error(Exception):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("module_of_the_client")
    try:
        with FarmExecutor(serving.address, key=KEY, ship="off") as farm:
            for future in (farm.submit(module.call), farm.submit(identity, module.Own())):
                with pytest.raises(TaskExecutionError) as caught:
                    future.result(DEADLINE)
                text = str(caught.value)
                assert "No module named 'module_of_the_client'" in text
                assert f"server {serving.address}" in text
                assert f"it is this program's own, from {tmp_path}" in text
                assert "see ship= of FarmExecutor" in text, "it says what to do"
                assert caught.value.server == serving.address
                assert isinstance(caught.value.__cause__, ModuleNotFoundError) or caught.value.remote_traceback
            assert farm.submit(abs, -1).result(DEADLINE) == 1
    finally:
        del sys.modules["module_of_the_client"]


# -- row: os._exit, a segfault, SIGKILL, no memory ----------------------------------------------------------

DEATHS = {"exit": "exited with code 7", "segfault": "signal 11 (SIGSEGV", "kill": "signal 9 (SIGKILL"}


@pytest.mark.parametrize("how", DEATHS)
def test_a_task_that_kills_its_worker_is_lost_after_its_attempts_and_no_other_is(farm, how, tmp_path):
    others = [farm.submit(identity, number) for number in range(50)]
    deadly = farm.submit(tasks.sign_and_die, str(tmp_path / "book"), how)
    others += [farm.submit(identity, number) for number in range(50, 100)]
    with pytest.raises(WorkerLostError) as caught:
        deadly.result(DEADLINE)
    assert DEATHS[how] in str(caught.value)
    assert "each of 3 attempts" in str(caught.value)
    assert [future.result(DEADLINE) for future in others] == list(range(100))
    assert len(lines(tmp_path / "book")) == 3
    assert len(set(lines(tmp_path / "book"))) == 3, "each time in another worker"
    assert farm.submit(abs, -1).result(DEADLINE) == 1


@pytest.mark.parametrize("how", DEATHS)
def test_with_max_attempts_1_a_deadly_task_is_begun_exactly_once(farm, how, tmp_path):
    deadly = farm.with_options(max_attempts=1).submit(tasks.sign_and_die, str(tmp_path / "book"), how)
    with pytest.raises(WorkerLostError) as caught:
        deadly.result(DEADLINE)
    assert DEATHS[how] in str(caught.value)
    assert "only once" in str(caught.value)
    assert farm.submit(abs, -1).result(DEADLINE) == 1
    assert len(lines(tmp_path / "book")) == 1


@pytest.mark.parametrize("attempts", [2, 5])
def test_a_deadly_task_is_begun_exactly_as_often_as_it_may_be(farm, attempts, tmp_path):
    view = farm.with_options(max_attempts=attempts)
    deadly = [view.submit(tasks.sign_and_die, str(tmp_path / f"book{number}"), "exit") for number in range(3)]
    for number, future in enumerate(deadly):
        with pytest.raises(WorkerLostError, match=f"each of {attempts} attempts"):
            future.result(DEADLINE)
        assert len(lines(tmp_path / f"book{number}")) == attempts


def test_a_task_that_kills_its_worker_the_first_time_alone_has_its_result(farm, tmp_path):
    future = farm.submit(tasks.die_the_first_time, str(tmp_path / "book"), "exit")
    assert str(future.result(DEADLINE)) == lines(tmp_path / "book")[1]
    assert len(lines(tmp_path / "book")) == 2


def test_a_task_killed_from_outside_is_run_again(farm, gate, tmp_path):
    future = farm.submit(tasks.sign_and_pass_gate, str(tmp_path / "book"), gate.address)
    gate.wait_for_arrivals()
    os.kill(int(lines(tmp_path / "book")[0]), signal.SIGKILL)
    gate.wait_for_arrivals()
    gate.open()
    assert str(future.result(DEADLINE)) == lines(tmp_path / "book")[1]


def test_tasks_queued_behind_a_deadly_one_are_moved_and_not_charged(serving, tmp_path, gate):
    """With one attempt each they still have their results, for they have not been begun."""
    with FarmExecutor(serving.address, key=KEY, max_workers=1, max_attempts=1) as farm:
        for _ in range(20):
            farm.submit(abs, -1).result(DEADLINE)  # the farm learns that tasks are short, and queues ahead
        deadly = farm.submit(tasks.sign_pass_gate_and_die, str(tmp_path / "deadly"), gate.address, "kill")
        behind = [farm.submit(tasks.sign, str(tmp_path / "behind"), number) for number in range(30)]
        gate.wait_for_arrivals()
        gate.open()
        with pytest.raises(WorkerLostError):
            deadly.result(DEADLINE)
        assert [future.result(DEADLINE) for future in behind] == list(range(30))
    assert len(lines(tmp_path / "deadly")) == 1
    assert len(lines(tmp_path / "behind")) == 30


def test_tasks_of_many_kinds_among_deadly_ones_all_settle_as_they_must(farm, tmp_path):
    futures = []
    for number in range(120):
        if number % 40 == 20:
            futures.append(farm.submit(tasks.die, "exit"))
        else:
            futures.append(farm.submit(identity, number))
    for number, future in enumerate(futures):
        if number % 40 == 20:
            with pytest.raises(WorkerLostError):
                future.result(DEADLINE)
        else:
            assert future.result(DEADLINE) == number


def test_a_worker_that_dies_between_tasks_costs_no_task(farm):
    for _ in range(5):
        os.kill(farm.submit(tasks.pid).result(DEADLINE), signal.SIGKILL)
        # It may be sent to each of the two workers before their ends are known.
        assert farm.with_options(max_attempts=3).submit(abs, -1).result(DEADLINE) == 1


def test_a_worker_that_somebody_killed_is_not_said_to_have_been_killed_for_want_of_memory(farm):
    with pytest.raises(WorkerLostError, match=r"signal 9 \(SIGKILL\) while it received or ran"):
        farm.with_options(max_attempts=1).submit(tasks.die, "kill").result(DEADLINE)


def test_memory_that_the_system_refuses_is_the_task_s_own_memory_error(farm):
    with pytest.raises(MemoryError):
        farm.submit(tasks.want_too_much_memory, 256 << 20, 1 << 40).result(DEADLINE)
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_a_lost_worker_s_error_survives_pickling_and_is_a_broken_executor(farm):
    with pytest.raises(BrokenExecutor) as caught:
        farm.with_options(max_attempts=1).submit(tasks.die, "exit").result(DEADLINE)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert type(twin) is WorkerLostError
    assert str(twin) == str(caught.value)


def test_the_log_says_which_worker_was_lost_of_what(farm, caplog):
    caplog.set_level(logging.WARNING)
    with pytest.raises(WorkerLostError):
        farm.with_options(max_attempts=1).submit(tasks.die, "exit").result(DEADLINE)
    assert "worker lost" in caplog.text
    assert "exited with code 7" in caplog.text


def test_an_exit_by_sys_exit_is_an_exception_like_any_other_and_kills_no_worker(farm):
    for _ in range(3):
        with pytest.raises(SystemExit) as caught:
            farm.submit(sys.exit, 3).result(DEADLINE)
        assert caught.value.code == 3
    assert farm.statistics().lost == 0


# -- row: a port in use, a host that is not local -----------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_a_port_in_use_is_the_caller_s_oserror(background):
    with listening() as (_, address), pytest.raises(OSError, match=f"cannot listen on {address}") as caught:
        start_server(*place(address), background=background, key=KEY)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("background", [False, True])
def test_a_port_in_use_by_another_farm_server_is_the_caller_s_oserror_too(serving, background):
    with pytest.raises(OSError, match=f"cannot listen on {serving.address}") as caught:
        start_server(serving.host, serving.port, background=background, key=KEY)
    assert caught.value.errno == errno.EADDRINUSE
    assert alive(serving.pid)


@pytest.mark.parametrize("background", [False, True])
def test_a_host_that_is_not_this_machine_is_the_caller_s_oserror(background):
    with pytest.raises(OSError, match="cannot listen on 192.0.2.1:0") as caught:
        start_server("192.0.2.1", 0, background=background, key=KEY, insecure=True)
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("background", [False, True])
def test_a_host_without_an_address_is_the_caller_s_oserror(background):
    with pytest.raises(OSError):
        start_server("no-such-host.invalid", 0, background=background, key=KEY, insecure=True)

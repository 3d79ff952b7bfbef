"""Every way to end leaves nothing behind: no process, socket file, directory, thread or descriptor."""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
import weakref
from pathlib import Path

import own_servers
import pytest

from farm_executor import BrokenFarmError, FarmExecutor, start_server
from farm_executor.launch.local import PrivateServer

DEADLINE = 20.0
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def _marked(mark):
    """The pids of living processes that were started with this mark in their environment."""
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if mark.encode() in file.read():
                        pids.append(int(entry))
            except OSError:
                continue
    return pids


def _until(condition, seconds=DEADLINE):
    """Wait for a condition; return its last value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


class Script:
    """A program of a user's, run in a process of its own, with all that comes of it marked."""

    def __init__(self, folder):
        self.mark = f"farm-test-{uuid.uuid4()}"
        # Not in the folder, whose path may be too long for the sockets that multiprocessing puts there.
        self.temporary = Path(tempfile.mkdtemp(prefix="script-", dir="/tmp"))
        self.folder = folder
        self.process = None
        self.own_servers = False  # whether the program is to use servers that it starts itself

    def start(self, code, **options):
        path = self.folder / "script.py"
        # What runs in the background, as tests may, has Ctrl-C ignored, and hands that down.
        interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code = textwrap.dedent(code)
        if self.own_servers:
            code = code.replace("from farm_executor import FarmExecutor", own_servers.IMPORT)
        path.write_text(interruptible + code)
        env = {**os.environ, "FARM_TEST_MARK": self.mark, "TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            **options,
        )
        return self.process

    def run(self, code, **options):
        process = self.start(code, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def left(self):
        return _marked(self.mark), os.listdir(self.temporary)

    def clean(self, seconds=5.0):
        """Whether nothing is left, within so many seconds."""
        return _until(lambda: self.left() == ([], []), seconds)


def unmarked(output):
    """What tasks have printed, without what tells where."""
    return re.sub(r"^\(127\.0\.0\.1:\d+/\d+\) ", "", output, flags=re.MULTILINE)


@pytest.fixture
def script(tmp_path):
    script = Script(tmp_path)
    yield script
    if script.process is not None:
        with script.process:
            script.process.kill()
    for pid in _marked(script.mark):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(script.temporary, ignore_errors=True)


@pytest.fixture(params=["embedded", "own servers"])
def program(request, script):
    """A script that is run on an embedded farm, and on two servers that it starts itself."""
    script.own_servers = request.param == "own servers"
    return script


# -- within one process -------------------------------------------------------------------------------


def test_the_with_block_leaves_nothing(no_leaks, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with FarmExecutor(2) as farm:
        assert list(farm.map(abs, [-1, -2])) == [1, 2]

    assert os.listdir(tmp_path) == []


def test_an_executor_never_used_starts_nothing(no_leaks):
    farm = FarmExecutor(2)
    farm.shutdown()

    assert farm.statistics().state == "shut down"


def test_shutdown_without_waiting_finishes_what_was_submitted(no_leaks):
    farm = FarmExecutor(2)
    futures = [farm.submit(abs, -i) for i in range(50)]
    farm.shutdown(wait=False)

    assert [future.result(timeout=DEADLINE) for future in futures] == list(range(50))


def test_a_collected_executor_finishes_what_was_submitted_and_ends(no_leaks):
    farm = FarmExecutor(2)
    futures = [farm.submit(abs, -i) for i in range(50)]
    reference = weakref.ref(farm)
    del farm
    gc.collect()

    assert reference() is None
    assert [future.result(timeout=DEADLINE) for future in futures] == list(range(50))


def test_a_collected_executor_over_servers_gives_its_workers_back(no_leaks):
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        farm = FarmExecutor(server.address)
        pid = farm.submit(os.getpid).result(timeout=DEADLINE)
        del farm
        gc.collect()

        assert _until(lambda: not _alive(pid))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_shutdown_from_a_callback_does_not_wait_for_itself(no_leaks):
    farm = FarmExecutor(1)
    done = threading.Event()

    def shut_down(future):
        farm.shutdown(wait=True)
        done.set()

    farm.submit(abs, -1).add_done_callback(shut_down)

    assert done.wait(DEADLINE)


def test_many_farms_one_after_the_other_leave_nothing(no_leaks):
    for _ in range(5):
        with FarmExecutor(1) as farm:
            farm.submit(abs, -1).result(timeout=DEADLINE)


def test_an_embedded_server_that_was_killed_is_started_anew(no_leaks):
    with FarmExecutor(1) as farm:
        before = farm.submit(os.getppid).result(timeout=DEADLINE)
        os.kill(before, signal.SIGKILL)

        # For a moment the orphaned worker may still answer.
        assert _until(lambda: farm.submit(os.getppid).result(timeout=DEADLINE) != before)


def test_an_embedded_server_that_never_lives_breaks_the_farm(no_leaks, monkeypatch):
    monkeypatch.setattr("farm_executor.launch.local._BOOT", "raise SystemExit(9)")

    with FarmExecutor(1) as farm:
        error = farm.submit(abs, -1).exception(timeout=DEADLINE)

    assert isinstance(error, BrokenFarmError)
    assert "exit code 9" in str(error)


def test_cancelling_what_waits_leaves_what_the_first_workers_are_about_to_begin(no_leaks):
    farm = FarmExecutor(2)
    futures = [farm.submit(abs, -number) for number in range(20)]
    farm.shutdown(cancel_futures=True)

    cancelled = [future.cancelled() for future in futures]
    assert cancelled[:2] == [False, False]
    assert cancelled.count(True) > 10
    assert [future.result() for future in futures if not future.cancelled()] == list(range(cancelled.count(False)))


def test_cancelling_what_waits_for_a_server_that_is_not_there_waits_for_nothing(no_leaks):
    farm = FarmExecutor("127.0.0.1:1", max_workers=2)
    futures = [farm.submit(abs, -number) for number in range(20)]
    farm.shutdown(cancel_futures=True)

    assert all(future.cancelled() for future in futures)


# -- a program of its own -----------------------------------------------------------------------------


@LINUX
def test_the_end_of_the_interpreter_without_shutdown_finishes_the_tasks(program):
    code, out, err = program.run("""
        import time
        from farm_executor import FarmExecutor

        def late(text):
            time.sleep(0.3)
            print(text + "\\n", end="", flush=True)  # in one piece, also where nothing is buffered

        farm = FarmExecutor(2)
        farm.submit(late, "apple")
        farm.submit(late, "pear")
    """)

    assert (code, sorted(unmarked(out).split()), err) == (0, ["apple", "pear"], "")
    assert program.clean()


@LINUX
def test_the_end_of_the_interpreter_waits_for_threads_that_still_submit(program):
    """threading._register_atexit would refuse their tasks (CPython issue 148280)."""
    code, out, err = program.run("""
        import threading, time
        from farm_executor import FarmExecutor

        farm = FarmExecutor(1)
        farm.submit(abs, 1).result()  # from Python 3.12 on, no thread can be started once the main one has ended

        def work():
            time.sleep(0.3)  # the main thread has ended by then
            print(farm.submit(abs, -7).result(), flush=True)

        threading.Thread(target=work).start()
    """)

    assert (code, out, err) == (0, "7\n", "")
    assert program.clean()


@LINUX
def test_an_exception_that_ends_the_program_leaves_nothing(program):
    code, _, err = program.run("""
        from farm_executor import FarmExecutor
        with FarmExecutor(2) as farm:
            farm.submit(abs, -1).result()
            raise LookupError("the program's own")
    """)

    assert code == 1
    assert err.rstrip().endswith("LookupError: the program's own")
    assert program.clean()


SLOW = """
    import sys, time
    from farm_executor import FarmExecutor

    with FarmExecutor({arguments}) as farm:
        futures = [farm.submit(time.sleep, 60) for _ in range(10)]
        while farm.statistics().running < 2:
            time.sleep(0.01)
        print("running", flush=True)
        futures[0].result()
"""


@LINUX
def test_ctrl_c_interrupts_tasks_and_ends_everything(program):
    """As the terminal does it: SIGINT to the whole process group."""
    process = program.start(SLOW.format(arguments="2"), start_new_session=True)
    assert process.stdout.readline() == "running\n"

    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)

    assert "KeyboardInterrupt" in err
    assert process.returncode != 0
    assert program.clean()


@LINUX
def test_ctrl_c_without_a_with_block_does_not_run_what_is_queued(program):
    process = program.start(
        """
        import time
        from farm_executor import FarmExecutor

        farm = FarmExecutor(2)
        futures = [farm.submit(time.sleep, 60) for _ in range(100)]
        while farm.statistics().running < 2:
            time.sleep(0.01)
        print("running", flush=True)
        futures[0].result()
        """,
        start_new_session=True,
    )
    assert process.stdout.readline() == "running\n"

    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=DEADLINE)

    assert program.clean()


@LINUX
def test_a_client_that_is_killed_takes_its_farm_along(program):
    process = program.start(SLOW.format(arguments="2"))
    assert process.stdout.readline() == "running\n"

    process.kill()

    assert program.clean(2.0), program.left()


@LINUX
@pytest.mark.parametrize("task", ["time.sleep(60)", "while_true()", "pow(7, 10**9)"])
def test_a_client_that_is_killed_takes_its_workers_on_servers_along(script, task):
    """Also when the task holds the interpreter's lock, or never ends."""
    with start_server("127.0.0.1", 0, background=True, workers=2) as server:
        process = script.start(f"""
            import time, os
            from farm_executor import FarmExecutor

            def while_true():
                while True:
                    pass

            def run(path):
                with open(path, "w") as file:
                    file.write(str(os.getpid()))
                os.rename(path, path + ".done")
                {task}

            farm = FarmExecutor({server.address!r}, resume_timeout=0.5)
            futures = [farm.submit(run, {str(script.folder)!r} + f"/pid{{i}}") for i in range(2)]
            print("submitted", flush=True)
            futures[0].result()
        """)
        assert process.stdout.readline() == "submitted\n"
        paths = [script.folder / f"pid{i}.done" for i in range(2)]
        assert _until(lambda: all(path.exists() for path in paths))
        pids = [int(path.read_text()) for path in paths]

        process.kill()

        assert _until(lambda: not any(map(_alive, pids)), 2.0)
        with FarmExecutor(server.address) as farm:
            assert farm.submit(abs, -1).result(timeout=DEADLINE) == 1


@LINUX
def test_a_client_that_ends_while_it_dials_says_nothing(script):
    """As it does when it is shut down while a worker is replaced."""
    code, out, err = script.run("""
        import socket
        from farm_executor import FarmExecutor

        with FarmExecutor(1) as farm:
            farm.submit(abs, -1).result()
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(farm._backing.supply.embedded.locate().path)
            sock.sendall(b"FARM")
            sock.close()
            farm.broadcast(abs, -1)
            still_dialling = socket.socket(socket.AF_UNIX)
            still_dialling.connect(farm._backing.supply.embedded.locate().path)
    """)

    assert (code, out, err) == (0, "", "")


@LINUX
def test_a_forked_child_has_a_farm_of_its_own_and_leaves_the_parents_alone(script):
    code, out, err = script.run("""
        import os, sys, threading, warnings
        from farm_executor import BrokenFarmError, FarmExecutor

        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of a fork with threads: our subject

        def wait_for(event_path):
            import time
            while not os.path.exists(event_path):
                time.sleep(0.01)
            return "parent's"

        go = os.path.join(os.environ["TMPDIR"], "go")
        farm = FarmExecutor(2)
        future = farm.submit(wait_for, go)
        parents = farm.submit(os.getppid).result()
        pid = os.fork()
        if pid == 0:
            try:
                future.result(timeout=10)
            except BrokenFarmError as error:
                print("child:", type(error).__name__, flush=True)
            print("child: own farm", farm.submit(os.getppid).result(timeout=10) != parents, flush=True)
            farm.shutdown()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        open(go, "w").close()
        print("parent:", future.result(timeout=10), farm.submit(os.getppid).result() == parents, flush=True)
        farm.shutdown()
        os.remove(go)
    """)

    assert err == ""
    assert (code, out.splitlines()) == (
        0,
        ["child: BrokenFarmError", "child: own farm True", "parent: parent's True"],
    )
    assert script.clean()


@LINUX
def test_a_forked_child_that_outlives_its_killed_parent_does_not_keep_the_farm_alive(script):
    process = script.start("""
        import os, time
        from farm_executor import FarmExecutor

        farm = FarmExecutor(1)
        farm.submit(abs, -1).result()
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        print("forked", flush=True)
        time.sleep(30)
    """)
    assert process.stdout.readline() == "forked\n"

    process.kill()

    # All that is left is the child itself.
    assert _until(lambda: len(_marked(script.mark)) == 1, 3.0), script.left()
    assert _until(lambda: os.listdir(script.temporary) == [], 3.0)


@LINUX
def test_a_second_ctrl_c_ends_the_wait_for_a_task_that_will_not_stop(script):
    process = script.start(
        """
        import time
        from farm_executor import FarmExecutor

        def stubborn():
            while True:
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    print("no", flush=True)

        with FarmExecutor(1) as farm:
            future = farm.submit(stubborn)
            while not farm.statistics().running:
                time.sleep(0.01)
            print("running", flush=True)
            future.result()
        """,
        start_new_session=True,
    )
    assert process.stdout.readline() == "running\n"
    time.sleep(0.5)  # not for a state: the task has been sent, and is to be in its sleep when the signal comes

    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "no\n"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=DEADLINE)

    assert script.clean()


# -- what an embedded worker has of its client --------------------------------------------------------


@LINUX
def test_embedded_workers_have_the_clients_path_directory_environment_and_output(script):
    (script.folder / "beside.py").write_text("def where():\n    return 'beside the script'\n")
    code, out, err = script.run("""
        import os, sys
        from farm_executor import FarmExecutor
        import beside

        os.environ["SET_BY_THE_PROGRAM"] = "yes"
        os.chdir(os.environ["TMPDIR"])
        sys.path.append("/added/by/the/program")

        def look():
            print("from the worker", flush=True)
            print("to stderr", file=sys.stderr)
            added = "/added/by/the/program" in sys.path
            return os.getcwd(), os.environ["SET_BY_THE_PROGRAM"], added, sys.argv, sys.stdin.read()

        with FarmExecutor(1) as farm:
            print(farm.submit(beside.where).result(), flush=True)
            assert farm.submit(look).result() == (os.getcwd(), "yes", True, sys.argv, "")
            print("after it", flush=True)
    """)

    assert (code, out.splitlines(), err) == (
        0,
        ["beside the script", "from the worker", "after it"],
        "to stderr\n",
    )


@LINUX
def test_no_main_guard_is_needed_and_globals_set_by_the_initializer_are_there(script):
    code, out, err = script.run("""
        from farm_executor import FarmExecutor

        STATE = None
        CACHE = {}

        def prepare(value):
            global STATE
            STATE = value
            CACHE["key"] = value * 2

        def work(x):
            return STATE, CACHE["key"], x

        farm = FarmExecutor(2, initializer=prepare, initargs=(5,))
        print(list(farm.map(work, range(3))))
    """)

    assert (code, out, err) == (0, "[(5, 10, 0), (5, 10, 1), (5, 10, 2)]\n", "")


def test_a_broken_farm_says_so_to_every_future_and_each_has_its_own_error(no_leaks):
    def fail():
        raise OSError("no licence")

    with FarmExecutor(1, initializer=fail) as farm:
        futures = []
        with pytest.raises(BrokenFarmError):
            while True:  # until submit itself knows
                futures.append(farm.submit(abs, -1))
                time.sleep(0.01)
        errors = [future.exception(timeout=DEADLINE) for future in futures]

    assert all(isinstance(error, BrokenFarmError) and "no licence" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == len(errors)
    assert farm._broken


def test_a_server_that_is_still_to_be_started_when_all_is_over_is_not(no_leaks):
    """The first farm of a process has it started meanwhile, by a thread that may be late."""
    server = PrivateServer(1)
    server.end()

    with pytest.raises(BrokenFarmError, match="shut down"):
        server.locate()


@LINUX
def test_a_farm_that_ends_at_once_leaves_nothing(script):
    """Whether or not its server has been started by then."""
    code, out, err = script.run(
        """
        import threading
        from farm_executor import FarmExecutor
        for _ in range(3):
            farm = FarmExecutor(1, initializer=print, initargs=(threading.Lock(),))
            try:
                farm.submit(pow, 2, 2)
            except TypeError:
                farm.shutdown()
        print("done")
        """
    )

    assert (code, out, err) == (0, "done\n", "")
    assert script.clean()


# -- children of multiprocessing ----------------------------------------------------------------------


@LINUX
@pytest.mark.parametrize(
    "how",
    ["farm = None", "farm.shutdown(wait=False)", "late(farm, path)", "sys.exit(3)"],
    ids=["drop", "shut", "late", "exit"],  # short, as the path of a forkserver's socket has them
)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_finishes_its_tasks_before_it_ends(script, method, how):
    code, out, err = script.run(f"""
        import multiprocessing, sys, tempfile, threading, time
        from farm_executor import FarmExecutor
        import farm_executor.client.farm.engine  # whose hooks children that are forked inherit

        class Mark:
            text = "x"

        def write(path, mark):
            time.sleep(0.1)
            with open(path, "a") as file:
                file.write(mark.text)

        def late(farm, path):
            main = threading.current_thread()
            threading.Thread(target=lambda: (main.join(), farm.submit(write, path, Mark()))).start()

        def child(path):
            farm = FarmExecutor(1)
            for _ in range(3):
                farm.submit(write, path, Mark())
            {how}

        if __name__ == "__main__":
            with tempfile.NamedTemporaryFile() as file:
                process = multiprocessing.get_context({method!r}).Process(target=child, args=(file.name,))
                process.start()
                process.join()
                print(process.exitcode, file.read().decode())
    """)

    written = "xxxx" if "late" in how else "xxx"
    assert (code, out, err) == (0, f"{3 if 'exit' in how else 0} {written}\n", "")
    assert script.clean()


# -- what multiprocessing does in a worker ------------------------------------------------------------


SPAWNING = """
    import os, sys
    from farm_executor import FarmExecutor

    def spawn(method):
        import multiprocessing
        with multiprocessing.get_context(method).Pool(1) as pool:
            return __file__, pool.map(abs, [-4])

    if __name__ == "__main__":
        with FarmExecutor(1) as farm:
            farm.submit(abs, -1).result()
            {meanwhile}
            for method in "spawn", "forkserver":
                print(farm.with_options(timeout=20).submit(spawn, method).result() == (__file__, [4]))
"""


@LINUX
@pytest.mark.parametrize("meanwhile", ["pass", "os.remove(__file__)"], ids=["it is here", "it is elsewhere"])
def test_a_task_of_the_program_can_spawn_processes_wherever_the_program_is(script, meanwhile):
    code, out, err = script.run(SPAWNING.format(meanwhile=meanwhile))

    assert (code, out, err) == (0, "True\nTrue\n", "")
    assert script.clean()


@LINUX
@pytest.mark.parametrize("module", ["package.program", "package"])
def test_a_task_of_a_program_run_as_a_module_can_spawn_processes(script, module):
    package = script.folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "beside.py").write_text("")
    text = "from . import beside\n" + textwrap.dedent(SPAWNING.format(meanwhile="pass"))
    (package / ("program.py" if "." in module else "__main__.py")).write_text(text)
    result = subprocess.run(
        [sys.executable, "-m", module], capture_output=True, text=True, cwd=script.folder, timeout=60
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "True\nTrue\n", "")


SHARING = """
    from farm_executor import FarmExecutor

    def make():
        from multiprocessing.shared_memory import SharedMemory
        segment = SharedMemory(create=True, size=100)
        segment.buf[0] = 7
        segment.close()
        return segment.name

    def add(name):
        from multiprocessing.shared_memory import SharedMemory
        segment = SharedMemory(name=name)
        segment.buf[0] += 1
        segment.close()

    {early}
    with FarmExecutor(1, max_tasks_per_child=1) as farm:
        farm.submit(abs, -1).result()
        from multiprocessing.shared_memory import SharedMemory
        own = SharedMemory(create=True, size=100)
        name = farm.submit(make).result()
        for each in name, own.name:
            farm.submit(add, each).result()
            farm.submit(add, each).result()
        SharedMemory(name=name).unlink()
        other = SharedMemory(name=farm.submit(make).result())
        farm.submit(add, other.name).result()
    for segment in own, other:
        SharedMemory(name=segment.name).close()
        print(segment.buf[0])
        segment.close()
        segment.unlink()
    forgotten = SharedMemory(create=True, size=100)
    print(forgotten.name)
"""


@LINUX
@pytest.mark.parametrize("early", ["import multiprocessing.shared_memory", "pass"], ids=["before", "after"])
def test_memory_that_is_shared_lives_as_long_as_the_program(script, early):
    """Also that of a program which comes to use it after its farm has started."""
    code, out, err = script.run(SHARING.format(early=early))

    assert (code, out.split()[:2]) == (0, ["2", "8"])
    forgotten = out.split()[2]
    assert _until(lambda: not os.path.exists(f"/dev/shm/{forgotten}"))
    warnings = [line for line in err.splitlines() if "UserWarning" in line]
    assert len(warnings) == 1, "of what the program itself has forgotten"
    assert "1 leaked shared_memory" in warnings[0]
    assert script.clean()

"""How servers on this machine are started, in every environment that a program may have."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest

from farm_executor import BrokenFarmError, FarmExecutor
from farm_executor.launch.path import PACKAGE_ROOT

DEADLINE = 20.0
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="has sockets without files, and /proc")


class Program:
    """A program of a user's: its files, and a process of its own to run it in."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, code):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))
        return path

    def run(self, code, *, directory=None, **options):
        """What it prints; it must end well, and in time."""
        return self.run_command([sys.executable, str(self.write("program.py", code))], directory, **options)

    def run_command(self, command, directory=None, **options):
        process = subprocess.Popen(
            command,
            cwd=directory or self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"the program hangs: {out}{err}")
        assert process.returncode == 0, out + err
        return out


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


def _with_path(folder):
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {**os.environ, "PYTHONPATH": path}


# -- signals --------------------------------------------------------------------------------------------------

DEATH = """
    from farm_executor import FarmExecutor, WorkerLostError

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with FarmExecutor(1, max_attempts=1) as farm:
        mask = farm.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result(20)
        print(mask, type(farm.submit(die).exception(20)).__name__, farm.submit(abs, -1).result(20))
"""


def test_signals_that_the_program_blocks_are_not_blocked_in_its_farm(program):
    block = "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"

    assert program.run(block + textwrap.dedent(DEATH)) == "set() WorkerLostError 1\n"


@pytest.mark.parametrize("ignored", ["SIGCHLD", "SIGTERM", "SIGPIPE", "SIGINT"])
def test_signals_that_the_program_ignores_do_not_keep_its_farm_from_working(program, ignored):
    ignore = f"import os, signal\nsignal.signal(signal.{ignored}, signal.SIG_IGN)\n"

    assert program.run(ignore + textwrap.dedent(DEATH)) == "set() WorkerLostError 1\n"


@pytest.mark.parametrize(
    "unheeded",
    ["signal.signal(signal.SIGINT, signal.SIG_IGN)", "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})"],
)
def test_ctrl_c_does_not_interrupt_tasks_of_a_program_that_does_not_heed_it(program, unheeded):
    out = program.run(f"""
        import os, signal, time
        from farm_executor import FarmExecutor

        {unheeded}

        def interrupt_all():
            os.killpg(0, signal.SIGINT)  # as the terminal does it
            time.sleep(0.1)
            return "not interrupted"

        with FarmExecutor(1) as farm:
            print(farm.submit(interrupt_all).result(20))
    """)

    assert out == "not interrupted\n"


# -- a frozen program -----------------------------------------------------------------------------------------

FROZEN = """\
#!{python}
import sys
sys.frozen, sys.executable = True, __file__
with open({starts!r}, "a") as file:
    file.write("x")
import farm_executor
{support}
def double(x):
    return 2 * x
def within():
    with farm_executor.FarmExecutor(1) as farm:
        return farm.submit(double, 4).result(20)
with farm_executor.FarmExecutor(1) as farm:
    for task in (double, 3), (within,):
        try:
            print(farm.submit(*task).result(20))
        except farm_executor.BrokenFarmError as error:
            print(error)
"""


def _freeze(program, support):
    """What stands for an executable: it is its own interpreter, and takes no -c."""
    starts = program.folder / "starts"
    path = program.write("app", FROZEN.format(python=sys.executable, starts=str(starts), support=support))
    path.chmod(0o755)
    return program.run_command([str(path)]), len(starts.read_text())


def test_a_frozen_program_is_never_started_a_second_time_unawares(program):
    out, starts = _freeze(program, "")

    assert starts == 1
    assert "Call farm_executor.freeze_support()" in out


def test_a_frozen_program_that_supports_it_is_its_own_server(program):
    out, starts = _freeze(program, "farm_executor.freeze_support()")

    assert out == "6\n8\n"
    assert starts == 1 + 1 + 1  # itself, its server, and that of the farm within a task


def test_freeze_support_does_nothing_in_a_program_that_is_not_frozen(program):
    assert program.run("import farm_executor; farm_executor.freeze_support(); print('on')") == "on\n"


# -- an interpreter that cannot be started --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("executable", "says"),
    [("/nowhere/python", "/nowhere/python"), ("", "set_executable"), (None, "set_executable"), ("/", "denied")],
)
def test_an_interpreter_that_cannot_be_started_breaks_the_farm_at_once(monkeypatch, no_leaks, executable, says):
    monkeypatch.setattr("sys.executable", executable)
    monkeypatch.delitem(sys.modules, "multiprocessing.spawn", raising=False)

    with FarmExecutor(1) as farm, pytest.raises(BrokenFarmError, match=says):
        farm.submit(abs, -1).result(timeout=DEADLINE)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_system_that_starts_no_server_breaks_the_farm_at_once(monkeypatch, no_leaks, number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("subprocess.Popen", refuse)

    with FarmExecutor(1) as farm, pytest.raises(BrokenFarmError, match=os.strerror(number)):
        farm.submit(abs, -1).result(timeout=DEADLINE)


def test_the_interpreter_that_multiprocessing_was_told_is_started(program):
    out = program.run("""
        import multiprocessing, sys
        from farm_executor import FarmExecutor

        multiprocessing.set_executable(sys.executable)
        sys.executable = "/nowhere/server"  # as in a web server that embeds Python
        with FarmExecutor(1) as farm:
            print(farm.submit(abs, -1).result(20))
    """)

    assert out == "1\n"


# -- a machine that has nothing more to give ------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr("farm_executor.core.dialling.LONGEST_PAUSE", 0.05)


def test_a_client_without_descriptors_does_not_dial_its_own_server_for_ever(monkeypatch, hasty, no_leaks):
    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("farm_executor.client.farm.link.connect", refuse)

    with FarmExecutor(1) as farm, pytest.raises(BrokenFarmError, match="Too many open files"):
        farm.submit(abs, -1).result(timeout=DEADLINE)


def test_a_client_that_has_descriptors_again_goes_on(monkeypatch, hasty, no_leaks):
    from farm_executor.client.farm.link import connect

    left = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 3

    def refuse(*arguments, **options):
        if left:
            raise left.pop()
        return connect(*arguments, **options)

    monkeypatch.setattr("farm_executor.client.farm.link.connect", refuse)

    with FarmExecutor(1) as farm:
        assert farm.submit(abs, -1).result(timeout=DEADLINE) == 1


def test_a_farm_none_of_whose_workers_can_be_started_says_so(program):
    program.write(
        "sitecustomize.py",
        """
        import errno, os
        def refuse():
            raise OSError(errno.EAGAIN, "no more processes")
        os.fork = refuse
        """,
    )
    out = program.run(
        """
        import farm_executor.core.dialling
        from farm_executor import FarmExecutor

        farm_executor.core.dialling.LONGEST_PAUSE = 0.05
        with FarmExecutor(2) as farm:
            error = farm.submit(abs, -1).exception(20)
        print(type(error).__name__, "no more processes" in str(error))
        """,
        env=_with_path(program.folder),
    )

    assert out == "BrokenFarmError True\n"


# -- places for its socket ------------------------------------------------------------------------------------

USE = """
    import os, sys
    from farm_executor import FarmExecutor

    def pass_on(farm):
        with farm:
            return farm.submit(abs, -2).result(20)

    with FarmExecutor(2) as farm:
        print(farm.submit(abs, -1).result(20), farm.submit(pass_on, farm).result(20))
"""


def test_a_temporary_directory_too_deep_for_a_socket(program):
    deep = program.folder / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)

    assert program.run(USE, env={**os.environ, "TMPDIR": str(deep)}) == "1 2\n"
    assert os.listdir(deep) == []


NO_PLACE = """
    import tempfile
    make = tempfile.mkdtemp
    def refuse(*arguments, **options):
        raise FileNotFoundError(2, "No usable temporary directory found")
    tempfile.mkdtemp = refuse
"""


@LINUX
def test_no_temporary_directory_at_all(program):
    assert program.run(textwrap.dedent(NO_PLACE) + textwrap.dedent(USE)) == "1 2\n"


@LINUX
def test_a_process_that_may_write_no_file(program):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"

    assert program.run(limit + textwrap.dedent(USE), env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}) == "1 2\n"


@LINUX
def test_a_farm_on_a_socket_without_a_file_is_started_anew(program):
    out = program.run(
        textwrap.dedent(NO_PLACE)
        + textwrap.dedent("""
        import os, signal, time
        from farm_executor import FarmExecutor

        with FarmExecutor(1) as farm:
            before = farm.submit(os.getppid).result(20)
            os.kill(before, signal.SIGKILL)
            while farm.submit(os.getppid).result(20) == before:
                time.sleep(0.01)
            print(farm.submit(abs, -1).result(20))
        """)
    )

    assert out == "1\n"


def test_without_a_place_for_its_socket_the_farm_breaks_at_once_and_says_why(monkeypatch, no_leaks):
    def refuse(*arguments, **options):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr("farm_executor.launch.local.listen", refuse)

    with FarmExecutor(1) as farm, pytest.raises(BrokenFarmError, match="No usable temporary directory"):
        farm.submit(abs, -1).result(timeout=DEADLINE)


# -- standard streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed(program, closed):
    path = program.write(
        "program.py",
        """
        import os, sys
        from farm_executor import FarmExecutor

        def chatter():
            print("to nobody, or to somebody", flush=True)
            for descriptor in (1, 2):
                try:
                    os.write(descriptor, b"from C\\n")
                except OSError:
                    pass
            return 1

        with FarmExecutor(2) as farm:
            found = list(farm.map(lambda x: chatter(), range(4)))
        with open("found", "w") as file:
            file.write(str(found))
        """,
    )
    program.run_command(["sh", "-c", f'exec "$0" "$1" {closed}', sys.executable, str(path)])

    assert (program.folder / "found").read_text() == "[1, 1, 1, 1]"


# -- modules --------------------------------------------------------------------------------------------------

STANDARD = ["json", "signal", "enum", "types", "selectors", "socket", "random", "logging", "re", "ctypes", "select"]


def _shadow(program, folder):
    for name in STANDARD:
        program.write(f"{folder}/{name}.py", "raise RuntimeError('this is not the module of that name')")
    return program.folder / folder


SIMPLE = """
    from farm_executor import FarmExecutor
    with FarmExecutor(1) as farm:
        print(farm.submit(abs, -1).result(20))
"""


def test_the_current_directory_may_hold_modules_with_names_of_the_standard_library(program):
    program.write("here/os.py", "raise RuntimeError('this is not the module of that name')")

    assert program.run(SIMPLE, directory=_shadow(program, "here")) == "1\n"


@pytest.mark.parametrize("variable", ["PYTHONPATH", "PYTHONSAFEPATH"])
def test_the_search_path_may_mean_a_directory_with_such_modules_once_the_program_is_there(program, variable):
    folder = _shadow(program, "there")
    value = os.environ.get("PYTHONPATH", "") + os.pathsep + "." if variable == "PYTHONPATH" else "1"
    code = f"import os; os.chdir({str(folder)!r})\n"

    assert program.run(code + textwrap.dedent(SIMPLE), env={**os.environ, variable: value}) == "1\n"


def test_modules_in_the_search_path_that_only_the_server_would_need_are_not_taken_for_pythons(program):
    """The program itself imports none of these."""
    program.write("early/mmap.py", "raise RuntimeError('not the module of that name')")
    program.write("early/ctypes.py", "raise RuntimeError('not the module of that name')")

    assert program.run(SIMPLE, env=_with_path(program.folder / "early")) == "1\n"


def test_the_server_is_of_the_very_package_that_the_program_uses_whatever_else_is_installed(program):
    program.write("elsewhere/farm_executor/__init__.py", "raise RuntimeError('another version')")
    program.write(
        "here/sitecustomize.py",
        """
        import os, sys
        installed = [path for path in sys.path if path.endswith("site-packages")]
        place = sys.path.index(installed[0]) if installed else len(sys.path)
        sys.path.insert(place, os.path.join(os.path.dirname(os.path.dirname(__file__)), "elsewhere"))
        """,
    )
    (program.folder / "here" / "farm_executor").symlink_to(PACKAGE_ROOT + "/farm_executor")

    assert program.run(SIMPLE, env=_with_path(program.folder / "here")) == "1\n"


def test_sitecustomize_runs_in_the_server_as_in_any_python(program):
    program.write("sitecustomize.py", "import builtins; builtins.customized = True")
    code = """
        from farm_executor import FarmExecutor
        with FarmExecutor(1) as farm:
            print(farm.submit(eval, "customized").result(20))
    """

    assert program.run(code, env=_with_path(program.folder)) == "True\n"


def _dash_c(program, code):
    return program.run_command([sys.executable, "-c", textwrap.dedent(code)])


@pytest.mark.parametrize("package", [False, True])
def test_a_module_from_what_was_the_current_directory_is_found(program, package):
    program.write("mine/__init__.py" if package else "mine.py", "def double(x):\n    return 2 * x\n")

    out = _dash_c(
        program,
        """
        import os
        import mine
        os.chdir("/")
        from farm_executor import FarmExecutor
        with FarmExecutor(1) as farm:
            print(farm.submit(mine.double, 3).result(20))
        """,
    )

    assert out == "6\n"


def test_a_module_from_a_relative_entry_of_the_path_is_found_from_elsewhere(program):
    program.write("library/mine.py", "def double(x):\n    return 2 * x\n")

    out = program.run("""
        import os, sys
        sys.path.insert(0, "library")
        import mine
        os.chdir("/")
        from farm_executor import FarmExecutor
        with FarmExecutor(1) as farm:
            print(farm.submit(mine.double, 3).result(20))
    """)

    assert out == "6\n"


# -- a farm at a module's top level ---------------------------------------------------------------------------

TOP_LEVEL = """
    import os
    with open("imports", "a") as file:
        file.write("x")
        assert file.tell() < 6
    from farm_executor import FarmExecutor
    def double(x):
        return 2 * x
    with FarmExecutor({arguments}) as farm:
        try:
            print(list(farm.map(double, [1])))
        except RuntimeError as error:
            print(error)
"""


def test_a_module_that_uses_a_farm_while_it_is_imported_is_told_so_by_its_first_worker(program):
    program.write("jobs.py", TOP_LEVEL.format(arguments="1"))

    out = _dash_c(program, "import jobs")

    assert "module jobs uses a farm while it is imported" in out
    assert (program.folder / "imports").read_text() == "xx"


def test_a_module_that_uses_a_farm_of_servers_while_it_is_imported_is_told_so(program):
    program.write("jobs.py", TOP_LEVEL.format(arguments="open('server').read()"))

    out = _dash_c(
        program,
        """
        from farm_executor import start_server
        with start_server("127.0.0.1", 0, background=True, workers=1) as server:
            with open("server", "w") as file:
                file.write(server.address)
            import jobs
        """,
    )

    assert "module jobs uses a farm while it is imported" in out
    assert (program.folder / "imports").read_text() == "xx"


def test_a_module_may_make_a_farm_while_it_is_imported_that_it_uses_later(program):
    program.write(
        "jobs.py",
        """
        from farm_executor import FarmExecutor
        farm = FarmExecutor(1)
        def double(x):
            return 2 * x
        def twice(x):
            return farm.submit(double, x).result(20)
        """,
    )

    assert _dash_c(program, "import jobs; print(jobs.twice(2))") == "4\n"
    assert _dash_c(program, "import jobs; print(jobs.farm.submit(jobs.twice, 2).result(20))") == "4\n"


def test_a_task_may_import_a_module_that_uses_a_farm(program):
    program.write(
        "figures.py",
        """
        from farm_executor import FarmExecutor
        with FarmExecutor(1) as farm:
            FIGURE = farm.submit(abs, -3).result(20)
        """,
    )

    out = program.run("""
        from farm_executor import FarmExecutor
        def figure():
            import figures
            return figures.FIGURE
        with FarmExecutor(1) as farm:
            print(farm.submit(figure).result(20))
    """)

    assert out == "3\n"


# -- gevent ---------------------------------------------------------------------------------------------------

GEVENT = """
    {first}
    from gevent import monkey
    monkey.patch_all()
    import gevent, time
    from farm_executor import FarmExecutor, start_server

    def square(x):
        time.sleep(0.1)
        return x * x

    with {server} as server, FarmExecutor({arguments}) as farm:
        ticks = []
        def tick():
            while True:
                ticks.append(1)
                gevent.sleep(0.01)
        ticking = gevent.spawn(tick)
        print(farm.submit(abs, -1).result(20), list(farm.map(square, range(4))))
        calls = [gevent.spawn(lambda i=i: farm.submit(square, i).result(20)) for i in range(4)]
        gevent.joinall(calls, timeout=20)
        print([call.value for call in calls], len(ticks) > 1)
        ticking.kill()
"""


@pytest.mark.parametrize("first", ["", "from farm_executor import FarmExecutor; farm = FarmExecutor(1)"])
@pytest.mark.parametrize("embedded", [True, False])
def test_the_rest_of_the_program_goes_on_under_gevent(program, first, embedded):
    pytest.importorskip("gevent")
    server = "open('/dev/null')" if embedded else "start_server('127.0.0.1', 0, background=True, workers=2)"
    arguments = "2" if embedded else "server.address"

    out = program.run(GEVENT.format(first=first, server=server, arguments=arguments))

    assert out == "1 [0, 1, 4, 9]\n[0, 1, 4, 9] True\n"


# -- what is passed on ----------------------------------------------------------------------------------------


def test_an_executor_is_passed_to_another_process_with_the_key_beside_its_socket(no_leaks):
    code = "import pickle, sys\nprint(pickle.load(sys.stdin.buffer).submit(abs, -3).result(20))"

    with FarmExecutor(1) as farm:
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(farm), capture_output=True, timeout=60
        )

    assert (done.stdout, done.stderr) == (b"3\n", b"")

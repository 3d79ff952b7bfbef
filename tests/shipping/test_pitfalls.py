"""Imports at awkward moments, in awkward places."""

import compileall
import os
import zipfile

import pytest
from shipping.elsewhere import Elsewhere, Program

from farm_executor.launch.ssh import SSH_VARIABLE

LAZY = {f"mod{number}.py": f"value = {number}" for number in range(12)}


def test_many_threads_import_many_modules_and_one(program):
    program.write({**LAZY, "one.py": "import two\nvalue = 1", "two.py": "import one\nvalue = 2"})
    code = """
        def task():
            import importlib, threading
            found = []
            def load(name):
                found.append(importlib.import_module(name).value)
            names = [f"mod{number}" for number in range(12)] + ["one", "two"] * 4
            threads = [threading.Thread(target=load, args=(name,)) for name in names]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            return sorted(found)
        print(farm.submit(task).result(60) == sorted([*range(12), *[1, 2] * 4]))
    """
    assert program.script(code) == "True"


def test_a_thread_that_outlives_its_task_may_import(program):
    program.write(LAZY)
    code = """
        def begin():
            import builtins, threading
            builtins.go, builtins.done = threading.Event(), threading.Event()
            def later():
                builtins.go.wait()
                import mod7
                builtins.found = mod7.value
                builtins.done.set()
            threading.Thread(target=later).start()
        def end():
            import builtins
            builtins.go.set()
            builtins.done.wait(30)
            return builtins.found
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1)
        farm.submit(begin).result()
        print(farm.submit(end).result())
    """
    assert program.script(code) == "7"


def test_an_import_in_the_initializer(program):
    program.write({"setup_it.py": "import builtins\ndef begin(): builtins.began = 'begun'"})
    code = """
        import setup_it
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], initializer=setup_it.begin)
        def task():
            import builtins
            return builtins.began
        print(farm.submit(task).result())
    """
    assert program.script(code) == "begun"


def test_a_child_that_a_task_forks_cannot_ask(program):
    program.write(LAZY)
    code = """
        def task():
            import mod1, multiprocessing
            def child(pipe):
                import mod1  # which is there
                try:
                    import mod2
                except ModuleNotFoundError as error:
                    pipe.send(str(error))
            mine, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
            process.start()
            text = mine.recv()
            process.join()
            import mod2
            return text, mod2.value
        print(farm.submit(task).result(60))
    """
    assert program.script(code) == (
        "(\"No module named 'mod2': a process that a task has forked cannot ask the client for it; "
        'import it in the task, before", 2)'
    )


def test_a_destructor_amid_the_workers_own_work_cannot_ask(program):
    program.write(LAZY)
    code = """
        def task():
            import builtins, gc, sys
            import farm_executor.server.outcomes as outcomes
            builtins.said = []
            class Late:
                def __del__(self):
                    try:
                        import mod3
                    except ModuleNotFoundError as error:
                        builtins.said.append(str(error))
            real = outcomes.encode_result
            def encode(*arguments, **others):
                outcomes.encode_result = real
                Late()
                return real(*arguments, **others)
            outcomes.encode_result = encode
            return object
        def said():
            import builtins
            return builtins.said
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1)
        farm.submit(task).result(60)
        print(*farm.submit(said).result(60))
    """
    assert program.script(code) == (
        "No module named 'mod3': the client cannot be asked for it in a destructor; import it before"
    )


def test_to_look_for_a_module_asks_nobody(program):
    program.write({"offered.py": "raise SystemExit"})
    code = """
        def task():
            import farm_executor.server.asking as asking, importlib.util
            asked = []
            real = asking.encode_question
            asking.encode_question = lambda *question: asked.append(question) or real(*question)
            found = importlib.util.find_spec("offered") is not None
            for name in ("nobody_has_this", "pyarrow_or_so", "winreg"):
                try:
                    __import__(name)
                except ModuleNotFoundError as error:
                    assert str(error) == f"No module named {name!r}"
            return found, asked
        print(farm.submit(task).result(60))
    """
    assert program.script(code) == "(True, [])"


def test_an_executor_in_a_task_sends_on_what_its_worker_was_sent(program):
    program.write({"helpers.py": "def f(): return 'from afar'"})
    code = """
        import helpers
        def task(farm):
            with farm:
                return farm.submit(helpers.f).result(60)
        print(farm.submit(task, farm).result(60))
    """
    assert program.script(code) == "from afar"


@pytest.mark.parametrize("end", ["kill", "timeout"])
def test_a_task_that_ends_while_it_asks_is_asked_for_again_by_the_next(program, end):
    program.write({"helpers.py": "value = 1"})
    code = f"""
        import threading
        from farm_executor.client.farm.parcels import Parcels
        asked, go = threading.Event(), threading.Event()
        real = Parcels._answer
        def slow(self, *question):
            asked.set()
            go.wait(60)
            return real(self, *question)
        Parcels._answer = slow
        def task():
            import helpers
            return helpers.value
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1)
        future = farm.with_options(timeout={0.5 if end == "timeout" else None}).submit(task)
        asked.wait(60)
        if {end!r} == "kill":
            farm.kill(future)
        print(type(future.exception(60)).__name__)
        go.set()
        print(farm.submit(task).result(60))
    """
    assert program.script(code).split() == ["TaskTimeoutError" if end == "timeout" else "TaskKilledError", "1"]


# Cuts all lanes of `farm` when the first module is asked for; `questions` are the names that were.
CUT_WHILE_ASKED = """
        from farm_executor.client.farm.parcels import Parcels
        from farm_executor.wire.sockets import hang_up
        questions = []
        real = Parcels._answer
        def cut(self, *question):
            questions.append(question[0])
            if len(questions) == 1:
                for lane in list(farm._engine._lanes.values()):
                    hang_up(lane.connection.socket)
            return real(self, *question)
        Parcels._answer = cut
"""


def test_a_connection_that_breaks_while_asked(program):
    program.write({"helpers.py": "value = 1"})
    code = f"""{CUT_WHILE_ASKED}
        def task():
            import helpers
            return helpers.value
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1, max_attempts=1)
        print(farm.submit(abs, -1).result(60))
        print(farm.submit(task).result(60), questions, farm.statistics().resubmitted)
    """
    assert program.script(code).splitlines() == ["1", "1 ['helpers', 'helpers'] 0"]


def test_a_worker_gets_nothing_but_what_was_offered(program):
    program.write({"helpers.py": "value = 1"})
    names = ["os", "pandas", "script", "helpers_", "farm_executor", "__main__", "etc"]
    code = f"""
        def task(names):
            import farm_executor.server.modules as modules, sys
            finder = next(one for one in sys.meta_path if isinstance(one, modules.ModuleFinder))
            found = []
            for name in names:
                try:
                    found.append(bool(finder._ask(name, "")))
                except ModuleNotFoundError as error:
                    found.append(str(error).partition(": ")[2])
            return found
        print(farm.submit(task, {names}).result(60))
    """
    refusal = "the program does not offer it"
    assert program.script(code) == str([True if name == "script" else refusal for name in names])


def test_no_place_on_the_server(tmp_path, monkeypatch):
    folder = tmp_path / "program"
    folder.mkdir()
    refuse = "import tempfile\ndef no(): raise OSError(30, 'Read-only file system')\ntempfile.gettempdir = no"
    with Elsewhere(folder, before=refuse) as server:
        program = Program(folder, server)
        program.write({"helpers.py": "def f(): pass"})
        printed = program.script("import helpers; print(farm.submit(helpers.f).exception())")
    assert "No module named 'helpers': the server has no place for it" in printed
    assert "Read-only file system" in printed


def test_a_full_disk_on_the_server(tmp_path):
    folder = tmp_path / "program"
    folder.mkdir()
    with Elsewhere(folder, before="import resource, server.tasks") as server:
        program = Program(folder, server)
        program.write({"helpers.py": "def f(): return 'fits'\n" + "# much\n" * 10_000})
        code = """
            import helpers
            def limit(size):
                import resource, signal
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            farm.submit(limit, 1000).result()
            print(farm.submit(helpers.f).exception())
            farm.submit(limit, -1).result()
            print(farm.submit(helpers.f).result())
        """
        printed = program.script(code)
    assert "No module named 'helpers': it cannot be put into " in printed
    assert "File too large" in printed
    assert printed.endswith("fits")


def test_a_module_too_large_is_named_with_the_limit_and_a_way_out(program):
    program.write({"pkg/__init__.py": "def f(): pass"})
    for number in range(33):
        (program.folder / "pkg" / f"data{number}").write_bytes(bytes(1 << 20))
    printed = program.script("import pkg; print(farm.submit(pkg.f).exception())")
    assert f"it is the program's own, from {program.folder}/pkg, and more than 32 MiB" in printed
    assert "ship=[\"auto\", 'pkg']" in printed


def test_a_file_system_that_does_not_answer_keeps_nobody_from_submitting(program):
    """Listing its folders hangs, as on a network's drive whose server is down."""
    code = """
        import threading
        from farm_executor.client.farm.own_modules import OwnModules
        print(farm.submit(abs, -1).result(60))
        hanging, go = threading.Event(), threading.Event()
        def hang(self):
            hanging.set()
            go.wait()
        OwnModules.list_folders = hang
        farm._engine._shipping._look_at = 0.0
        print(farm.submit(abs, -2).result(60), hanging.wait(60))
        with open("later.py", "w") as file:
            file.write("value = 3")
        import later
        def task():
            import later
            return later.value
        future = farm.submit(task)
        print(farm.submit(abs, -4).result(60))
        go.set()
        print(future.result(60))
    """
    assert program.script(code).splitlines() == ["1", "2 True", "4", "3"]


def test_the_first_look_hangs_and_its_modules_are_on_offer_once_it_does_not(program):
    program.write({"lazy.py": "value = 5"})
    code = """
        import logging, threading
        import farm_executor.client.farm.shipping as shipping
        from farm_executor.client.farm.own_modules import OwnModules
        shipping.FIRST_LOOK_SECONDS = 0.1
        go, real = threading.Event(), OwnModules.list_folders
        said = []
        class Handler(logging.Handler):
            def emit(self, record):
                said.append(record.getMessage())
        logging.getLogger("farm_executor").addHandler(Handler(logging.WARNING))
        def hang(self):
            go.wait()
            real(self)
        OwnModules.list_folders = hang
        print(farm.submit(abs, -1).result(60), said)
        go.set()
        farm._engine._shipping._looked.wait(60)
        def task():
            import lazy
            return lazy.value
        print(farm.submit(task).result(60))
    """
    first, second = program.script(code).splitlines()
    assert first.startswith("1 ['folders of modules do not answer seconds=0.1")
    assert second == "5"


def test_modules_in_a_zip_file_are_not_sent_and_the_error_says_so(program):
    with zipfile.ZipFile(program.folder / "lib.zip", "w") as file:
        file.writestr("zipped.py", "def f(): return 1")
    code = """
        import sys; sys.path.insert(0, "lib.zip")
        import zipped
        print(farm.submit(zipped.f).exception(60))
    """
    printed = program.script(code)
    assert "No module named 'zipped'; it is this program's own" in printed
    assert "modules in archives are not sent" in printed


def test_a_zipapp_s_modules_are_not_sent_either(program):
    with zipfile.ZipFile(program.folder / "app.pyz", "w") as file:
        file.writestr("inside.py", "def f(): return 1")
        file.writestr(
            "__main__.py",
            "import os, inside\nfrom farm_executor import FarmExecutor\n"
            "print(FarmExecutor(os.environ['FARM_ADDRESS']).submit(inside.f).exception(60))",
        )
    assert "modules in archives are not sent" in program.run("app.pyz")


@pytest.mark.parametrize("package", [False, True])
def test_compiled_modules_without_source_are_not_sent_and_the_error_says_so(program, package):
    source = program.file("compiled/__init__.py" if package else "compiled.py", "def f(): return 1")
    assert compileall.compile_file(source, legacy=True, quiet=1)
    source.unlink()
    printed = program.script("import compiled\nprint(farm.submit(compiled.f).exception(60))")
    assert "No module named 'compiled'; it is this program's own" in printed
    assert "compiled modules without source are not sent" in printed


def test_a_module_with_a_name_of_pythons_is_not_sent_and_the_log_says_so(program):
    program.write({"colorsys.py": "mine = True"})
    code = """
        import colorsys, logging
        said = []
        class Handler(logging.Handler):
            def emit(self, record):
                said.append(record.getMessage())
        logging.getLogger("farm_executor").addHandler(Handler(logging.WARNING))
        def task():
            import colorsys
            return hasattr(colorsys, "mine")
        print(colorsys.mine, farm.submit(task).result(60), farm.submit(task).result(60), *said)
    """
    printed = program.script(code)
    assert printed.startswith(
        f"True False False module has a name of Python's module=colorsys file={program.folder}/"
    )
    assert printed.count("name of Python's") == 1


def test_a_module_that_nobody_has(program):
    code = """
        def task():
            import nobody_has_this
        print(farm.submit(task).exception(60).__cause__)
    """
    printed = program.script(code)
    assert "No module named 'nobody_has_this'" in printed
    assert "this program does not find a module 'nobody_has_this' either" in printed


def test_a_module_that_cannot_be_read_is_named_with_the_reason(program):
    program.write({"helpers.py": "def f(): pass"})
    code = """
        import helpers
        from farm_executor.client.farm import parcels
        def refuse(*arguments, **others):
            raise PermissionError(13, "Permission denied", arguments[0])
        parcels.open = refuse
        print(farm.submit(helpers.f).exception(60))
    """
    printed = program.script(code)
    assert "No module named 'helpers': it is the program's own, and cannot be read: " in printed
    assert f"Permission denied: '{program.folder}/helpers.py'" in printed


def test_over_ssh(tmp_path, sshd, monkeypatch):
    folder = tmp_path / "program"
    folder.mkdir()
    program = Program(folder, None)
    program.write({"helpers.py": "import os\ndef f(): return os.path.dirname(__file__)"})
    monkeypatch.setenv(SSH_VARIABLE, sshd.ssh)
    program.file(
        "script.py",
        """
        import os, helpers
        from farm_executor import FarmExecutor
        with FarmExecutor("ssh://somewhere?workers=1") as farm:
            print(farm.submit(helpers.f).result(60))
        """,
    )
    where = program.run("script.py")
    assert "farm-modules-" in where
    assert not os.path.exists(os.path.dirname(where))


def test_a_package_of_60_modules_costs_one_question(program):
    """Each turn, from what the client sends to what comes back, is a round trip, whatever the network's delay."""
    names = [f"m{number}" for number in range(60)]
    program.write({f"pkg/{name}.py": f"value = {number}" for number, name in enumerate(names)})
    program.write({"pkg/__init__.py": f"from . import {', '.join(names)}\ndef f(): return m59.value"})
    code = """
        import pkg
        from farm_executor.client.farm.crew import Crew
        from farm_executor.wire.connection import Connection
        turns = []
        frames = []
        real_send = Connection.send
        def send(self, buffers):
            if any(lane.connection is self for lane in list(farm._engine._lanes.values())):
                turns.append("out")
            return real_send(self, buffers)
        def taken(real):
            def take(self, lane, frame):
                turns.append("in")
                frames.append(frame.type.name)
                return real(self, lane, frame)
            return take
        Connection.send = send
        Crew._on_frame, Crew._on_results = taken(Crew._on_frame), taken(Crew._on_results)
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1)
        farm.submit(abs, -1).result(60)
        def count():
            found = sum(pair == ("out", "in") for pair in zip(turns, turns[1:]))
            turns.clear()
            return found
        count(), frames.clear()
        print(farm.submit(pkg.f).result(60), count(), frames)
        frames.clear()
        print(farm.submit(pkg.f).result(60), count(), frames)
    """
    first, second = program.script(code).splitlines()
    assert first == "59 2 ['WANTED', 'RESULTS']"
    assert second == "59 1 ['RESULTS']"


def test_more_files_than_can_be_offered_are_warned_of_and_those_in_use_travel(program):
    program.write({f"file{number}.py": "" for number in range(12)})
    program.write({"zzz.py": "value = 1"})
    code = """
        import logging, zzz
        import farm_executor.client.farm.chosen_modules as chosen
        chosen.MAX_OFFER = 5
        said = []
        class Handler(logging.Handler):
            def emit(self, record):
                said.append(record.getMessage())
        logging.getLogger("farm_executor").addHandler(Handler(logging.WARNING))
        def task():
            import zzz
            return zzz.value
        print(farm.submit(task).result(60), *said)
    """
    printed = program.script(code)
    assert printed.startswith("1 too many modules count=")
    assert "name those that are wanted, by ship=[...]" in printed


def test_data_beside_a_module_that_is_a_file_stays_here(program):
    program.write(
        {"words.txt": "some", "reads.py": "def f(): return open(__file__.replace('reads.py', 'words.txt'))"}
    )
    assert "FileNotFoundError" in program.script("import reads; print(repr(farm.submit(reads.f).exception(60)))")


def test_a_program_that_a_task_starts_finds_modules_by_the_task_s_path(program):
    program.write({"ours.py": "if __name__ == '__main__': print('ours')"})
    code = """
        import os
        def task(path):
            import os, subprocess, sys
            import ours
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)) if path else ""}
            command = [sys.executable, "-m", "ours"]
            return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()
        print([farm.submit(task, path).result(60) for path in (False, True)])
    """
    assert program.script(code) == "['', 'ours']"


@pytest.mark.parametrize("older", ["server", "client"])
def test_with_an_older_server_or_client_nothing_is_sent(tmp_path, older):
    folder = tmp_path / "program"
    folder.mkdir()
    before = "import farm_executor.core.features as features\nfeatures.shared = lambda *both: frozenset()"
    with Elsewhere(folder, before=before if older == "server" else "") as server:
        program = Program(folder, server)
        program.write({"helpers.py": "def f(): return 1"})
        printed = program.script(f"""
            import helpers
            if {older!r} == "client":
                import farm_executor.client.farm.link as link
                link.shared = lambda *both: frozenset()
            print(farm.submit(abs, -1).result(60), farm.submit(helpers.f).exception(60))
        """)
    assert printed.startswith("1 ")
    assert "No module named 'helpers'; it is this program's own" in printed


SLOW = """
import threading
from farm_executor.client.farm.parcels import Parcels
asked, go = threading.Event(), threading.Event()
real = Parcels._answer
def slow(self, *question):
    asked.set()
    go.wait(60)
    return real(self, *question)
Parcels._answer = slow
"""


def test_other_tasks_come_and_are_taken_back_while_one_asks(program):
    program.write({"helpers.py": "value = 1"})
    code = f"""{SLOW}
def task():
    import helpers
    return helpers.value
farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1)
print(farm.submit(abs, -1).result(60))
first = farm.submit(task)
asked.wait(60)
others = [farm.submit(abs, -number) for number in range(50)]
print(all(other.cancel() for other in others[10:]))
go.set()
print(first.result(60), [other.result(60) for other in others[:10]])
"""
    program.file("script.py", "import os\nfrom farm_executor import FarmExecutor\n" + code)
    assert program.run("script.py").splitlines() == ["1", "True", f"1 {list(range(10))}"]


def test_a_connection_that_breaks_while_the_initializer_asks(program):
    program.write({"setup_it.py": "import builtins\ndef begin(): builtins.began = 'begun'"})
    code = f"""{CUT_WHILE_ASKED}
        import setup_it
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1, initializer=setup_it.begin)
        def task():
            import builtins
            return builtins.began
        print(farm.submit(task).result(60), questions)
    """
    assert program.script(code) == "begun ['setup_it', 'setup_it']"


def test_what_reads_never_imports(program):
    """It would wait for the thread that imports, which waits for it."""
    program.write(LAZY)
    code = """
        def watch():
            import builtins, sys
            builtins.seen = []
            class Watching:
                def find_spec(self, name, path=None, target=None):
                    frame = sys._getframe()
                    while frame is not None:
                        if frame.f_code.co_name == "_receive" and "lane.py" in frame.f_code.co_filename:
                            builtins.seen.append(name)
                        frame = frame.f_back
            sys.meta_path.insert(0, Watching())
        def load(number, data):
            import importlib, time
            return importlib.import_module(f"mod{number}").value + len(data)
        def seen():
            import builtins
            return builtins.seen
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], max_workers=1)
        farm.submit(watch).result(60)
        list(farm.map(abs, range(100)))
        futures = [farm.submit(load, number, bytes(1 << 20)) for number in range(12)]
        print(sum(future.result(60) for future in futures) == 66 + 12 * (1 << 20), farm.submit(seen).result(60))
    """
    assert program.script(code) == "True []"

"""Where a program's own modules may be, each with a server on which they do not exist."""

import pytest
from server.serving import KEY, Serving
from shipping.elsewhere import BECOME_NOBODY, CAN_SWITCH, NOBODY, Program

from farm_executor.wire.security import write_key

HELPERS = """
    import os
    def where(x):
        return x + 1, os.path.dirname(os.path.abspath(__file__))
"""
ASK = """
value, folder = farm.submit(helpers.where, 1).result()
print(value, folder != os.path.dirname(helpers.__file__))
"""


def test_a_module_beside_the_script(program):
    program.write({"helpers.py": HELPERS})
    assert program.script(f"import helpers\n{ASK}") == "2 True"


@pytest.mark.parametrize("how", ["-c", "stdin"])
def test_a_module_in_the_current_directory(program, how):
    program.write({"helpers.py": HELPERS})
    code = f"""
import os, helpers
from farm_executor import FarmExecutor
farm = FarmExecutor(os.environ['FARM_ADDRESS'])
{ASK}
"""
    printed = program.run("-c", code) if how == "-c" else program.run("-", stdin=code)
    assert printed == "2 True"


def test_a_package_run_with_m_and_its_relative_imports(program):
    program.write(
        {
            "app/__init__.py": "",
            "app/tools.py": "def double(x): return 2 * x",
            "app/deep/__init__.py": "from ..tools import double",
            "app/__main__.py": """
            import os
            from farm_executor import FarmExecutor
            from .deep import double
            from . import tools
            def local(x):
                from .tools import double
                return double(x) + tools.double(x)
            with FarmExecutor(os.environ['FARM_ADDRESS']) as farm:
                print(farm.submit(double, 21).result(), farm.submit(local, 1).result())
        """,
        }
    )
    assert program.run("-m", "app") == "42 4"


def test_a_module_that_only_the_task_imports(program):
    program.write({"lazy.py": "value = 7"})
    code = """
        def task():
            import lazy
            return lazy.value
        print(farm.submit(task).result())
    """
    assert program.script(code) == "7"


def test_a_module_written_after_the_first_task(program):
    code = """
        print(farm.submit(abs, -1).result())
        with open("later.py", "w") as file:
            file.write("def f(): return 'later'")
        import later
        print(farm.submit(later.f).result())
    """
    assert program.script(code).split() == ["1", "later"]


def test_modules_that_import_each_other_and_namespace_packages(program):
    program.write(
        {
            "one.py": "import two\nclass A:\n    def other(self): return two.B()",
            "two.py": "import one\nclass B:\n    def name(self): return one.A.__name__",
            "space/inner.py": "value = 5",
        }
    )
    code = """
        import one, space.inner
        def task():
            import space.inner
            return one.A().other().name(), space.inner.value
        print(*farm.submit(task).result())
    """
    assert program.script(code) == "A 5"


def test_data_in_a_package(program):
    program.write({"pkg/__init__.py": ""})
    program.file("pkg/data/words.txt", "some words")
    program.file("pkg/.env", "SECRET=1")
    program.write(
        {
            "pkg/read.py": """
            import os, importlib.resources
            def read():
                here = os.path.dirname(__file__)
                text = (importlib.resources.files("pkg") / "data" / "words.txt").read_text()
                return text, open(os.path.join(here, "data/words.txt")).read(), os.path.exists(here + "/.env")
        """
        }
    )
    assert program.script("import pkg.read; print(*farm.submit(pkg.read.read).result())") == (
        "some words some words False"
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_that_a_task_starts(program, method):
    program.write(
        {
            "work.py": f"""
            import multiprocessing
            def square(x): return x * x
            def task():
                with multiprocessing.get_context({method!r}).Pool(1) as pool:
                    return pool.map(square, [1, 2, 3])
        """
        }
    )
    assert program.script("import work; print(farm.submit(work.task).result())") == "[1, 4, 9]"


def test_pythonpath_and_a_src_layout(program, tmp_path):
    program.write({"src/lib/__init__.py": "from .part import f", "src/lib/part.py": "def f(): return __name__"})
    program.file(
        "bin/run.py",
        "import os, lib\nfrom farm_executor import FarmExecutor\n"
        "print(FarmExecutor(os.environ['FARM_ADDRESS']).submit(lib.f).result())",
    )
    assert program.run("bin/run.py", path=[str(program.folder / "src")]) == "lib.part"


def test_the_finder_of_an_editable_install(program):
    program.write({"project/pkg/__init__.py": "def f(): return 'editable'"})
    code = f"""
        import importlib.util, sys, types
        finder = types.ModuleType("__editable___pkg_finder")
        finder.MAPPING = {{"pkg": {str(program.folder / "project" / "pkg")!r}}}
        class Finder:
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                if name in finder.MAPPING:
                    return importlib.util.spec_from_file_location(name, finder.MAPPING[name] + "/__init__.py")
        sys.modules[finder.__name__] = finder
        sys.meta_path.append(Finder)
        def task():
            import pkg
            return pkg.f()
        print(farm.submit(task).result())
    """
    assert program.script(code) == "editable"


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
@pytest.mark.parametrize("init", [True, False])
def test_what_pytest_collects(program, mode, init):
    if init:
        program.write({"suite/__init__.py": ""})
    program.write(
        {
            "suite/common.py": "def helper(x): return x + 1",
            "suite/test_it.py": f"""
            import os
            from farm_executor import FarmExecutor
            {"from suite.common import helper" if init or mode == "importlib" else "from common import helper"}
            def task(x):
                return helper(x)
            def test_it():
                with FarmExecutor(os.environ['FARM_ADDRESS']) as farm:
                    assert farm.submit(task, 1).result() == 2
        """,
        }
    )
    path = [str(program.folder)] if mode == "importlib" else []
    options = ["-q", "-p", "no:cacheprovider", f"--import-mode={mode}", "--rootdir", str(program.folder), "suite"]
    assert "1 passed" in program.run("-m", "pytest", *options, path=path)


def test_a_worker_that_comes_later_has_what_the_first_was_sent(program):
    program.write({"helpers.py": "def version(): return 1"})
    code = """
        import helpers, pathlib
        farm = FarmExecutor(os.environ['FARM_ADDRESS'], max_tasks_per_child=1)
        print([farm.submit(helpers.version).result() for _ in range(2)])
        pathlib.Path(helpers.__file__).write_text("def version(): return 2")
        print([farm.submit(helpers.version).result() for _ in range(4)])
        farm.shutdown()
        print(FarmExecutor(os.environ['FARM_ADDRESS']).submit(helpers.version).result())
    """
    assert program.script(code).splitlines() == ["[1, 1]", "[1, 1, 1, 1]", "2"]


def test_a_traceback_shows_the_clients_file_and_its_lines(program):
    program.write({"helpers.py": "def fail():\n    raise ValueError('no')  # here\n"})
    code = """
        import helpers, traceback
        try:
            farm.submit(helpers.fail).result()
        except ValueError:
            traceback.print_exc(file=__import__("sys").stdout)
    """
    printed = program.script(code)
    line = f"  File \"{program.folder / 'helpers.py'}\", line 2, in fail\n    raise ValueError('no')  # here"
    assert printed.count(line) == 2, printed
    assert "farm-modules-" not in printed


def test_a_kernel_of_lfarm_says_what_travels(program):
    program.write({"helpers.py": "def double(number): return 2 * number"})
    code = """
        import helpers
        from farm_executor import TaskExecutionError, lfarm
        for ship in "auto", ["helpers"], "off":
            with lfarm.make_kernel(os.environ["FARM_ADDRESS"], ship=ship) as kernel, lfarm.use_kernel(kernel):
                try:
                    print(lfarm.pmap(helpers.double, [1, 2]))
                except TaskExecutionError as error:
                    print("and is not sent to this worker" in str(error))
    """
    assert program.script(code).splitlines() == ["[2, 4]", "[2, 4]", "True"]


@pytest.mark.skipif(not CAN_SWITCH, reason="it takes root, and a Python that other users may run")
def test_a_server_of_another_user_who_may_not_read_the_folder(tmp_path):
    folder = tmp_path / "program"
    folder.mkdir(mode=0o700)
    with Serving(workers=1, before=BECOME_NOBODY) as server:
        server.key_file = tmp_path / "key"  # of each user's own
        write_key(server.key_file, KEY)
        program = Program(folder, server)
        program.write({"helpers.py": "import os\ndef f(path): return os.getuid(), os.access(path, os.R_OK)"})
        code = "import helpers\nprint(farm.submit(helpers.f, os.path.abspath('helpers.py')).result())"
        assert program.script(code) == f"({NOBODY}, False)"

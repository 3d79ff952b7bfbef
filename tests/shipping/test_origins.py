"""Programs' own modules where tools put them: notebooks, and editable installs of each kind.

The session `origins` of nox installs what these tests need; elsewhere they are skipped.
"""

import os
import queue
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest
from server.processes import DEADLINE
from shipping.elsewhere import BEGIN, ROOT, Program

# -- a notebook ---------------------------------------------------------------------------------------------------


class Kernel:
    """A Jupyter kernel, as a notebook in a program's folder has it."""

    def __init__(self, program: Program) -> None:
        from jupyter_client.manager import KernelManager

        self._manager = KernelManager()
        self._manager.kernel_spec.argv[0] = sys.executable  # whatever is registered for this user
        self._manager.start_kernel(
            cwd=str(program.folder),
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                "PYTHONPATH": ROOT,
                "FARM_ADDRESS": program.server.address,
                "FARM_EXECUTOR_KEY_FILE": str(program.server.key_file),
            },
        )
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=DEADLINE)

    def run(self, code: str) -> str:
        """Run a cell; return what it printed."""
        printed = []

        def take(message):
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed.append(content["text"])
            elif message["msg_type"] == "error":
                printed.append("\n".join(content["traceback"]))

        try:
            self._client.execute_interactive(textwrap.dedent(code), timeout=DEADLINE, output_hook=take)
        except (TimeoutError, queue.Empty):
            printed.append("it does not end")
        return "".join(printed).strip()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(program):
    pytest.importorskip("ipykernel")
    pytest.importorskip("jupyter_client")
    program.write({"helpers.py": "def version(): return 'first'"})
    with Kernel(program) as kernel:
        yield kernel


def test_a_notebook_s_modules_travel_and_edit_and_run_works(kernel):
    kernel.run("import os, helpers, importlib\nfrom farm_executor import FarmExecutor")
    kernel.run("farm = FarmExecutor(os.environ['FARM_ADDRESS'])")
    assert kernel.run("print(farm.submit(helpers.version).result())") == "first"
    kernel.run("""
        with open("helpers.py", "w") as file:
            file.write("def version(): return 'second edition'")
        importlib.reload(helpers)
    """)
    assert kernel.run("print(helpers.version(), farm.submit(helpers.version).result())") == "second edition first"
    assert (
        kernel.run("""
            farm.shutdown()
            farm = FarmExecutor(os.environ['FARM_ADDRESS'])
            print(farm.submit(helpers.version).result())
        """)
        == "second edition"
    )


def test_a_cell_s_functions_and_a_module_written_by_a_cell(kernel):
    kernel.run("import os\nfrom farm_executor import FarmExecutor\nfarm = FarmExecutor(os.environ['FARM_ADDRESS'])")
    kernel.run("def here(): return 'of the cell'")
    assert kernel.run("print(farm.submit(here).result())") == "of the cell"
    kernel.run("""
        with open("later.py", "w") as file:
            file.write("def f(): return 'written by a cell'")
        def task():
            import later
            return later.f()
    """)
    assert kernel.run("import later; print(farm.submit(task).result())") == "written by a cell"


def test_what_a_kernel_s_own_packages_lack_is_not_said(kernel):
    """The kernel has loaded dozens of packages that no task imports."""
    kernel.run("import os, logging, helpers\nfrom farm_executor import FarmExecutor")
    kernel.run("""
        lines = []
        class Handler(logging.Handler):
            def emit(self, record):
                lines.append(record.getMessage())
        logging.getLogger("farm_executor").addHandler(Handler(logging.WARNING))
        farm = FarmExecutor(os.environ['FARM_ADDRESS'])
    """)
    assert kernel.run("print(farm.submit(helpers.version).result(), lines)") == "first []"


def test_what_tasks_print_comes_beneath_the_cell_that_runs(kernel):
    """Whichever cell has started the thread that shows it: what a kernel gives here is of that cell alone."""
    kernel.run("""
        import os
        from farm_executor import FarmExecutor
        def say(text):
            print(text, flush=True)
            return text
        farm, far = FarmExecutor(1), FarmExecutor(os.environ['FARM_ADDRESS'])
    """)
    for text in ("one", "two"):
        assert kernel.run(f"future = farm.submit(say, '{text}'); future.result(); print(future.output)") == (
            f"{text}\n{text}"
        )
        assert kernel.run(f"far.submit(say, '{text}').result()").endswith(f") {text}")
    assert "<table" in kernel.run("print(farm._repr_html_())")


# -- editable installs --------------------------------------------------------------------------------------------

BACKENDS = {
    "setuptools, a src layout": (
        "setuptools",
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n',
        "src/pkg",
    ),
    "setuptools, flat": (
        "setuptools",
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[tool.setuptools]\npackages = ["pkg", "pkg.deep"]\n',
        "pkg",
    ),
    "hatchling": (
        "hatchling",
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["src/pkg"]\n',
        "src/pkg",
    ),
    "meson-python": (
        "mesonpy",
        '[build-system]\nrequires = ["meson-python"]\nbuild-backend = "mesonpy"\n',
        "src/pkg",
    ),
}
MESON = """
project('pkg', version: '1.0')
python = import('python').find_installation(pure: true)
python.install_sources('src/pkg/__init__.py', 'src/pkg/part.py', subdir: 'pkg')
python.install_sources('src/pkg/deep/__init__.py', subdir: 'pkg/deep')
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment in which what is installed here is found, too; its Python."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(site) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


HOWS = {
    "loaded": ("import pkg", "'auto'"),
    "imported by the task": ("", "'auto'"),
    "named": ("", "['auto', 'pkg']"),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_editable_install(program, environment, backend, how):
    module, text, package = BACKENDS[backend]
    if (backend, how) == ("meson-python", "imported by the task"):
        pytest.skip("its finder tells what it has only by building it")
    begin, ship = HOWS[how]
    pytest.importorskip(module)
    pytest.importorskip("pip")
    program.write(
        {
            "project/pyproject.toml": f'[project]\nname = "pkg"\nversion = "1.0"\n{text}',
            f"project/{package}/__init__.py": "from .part import f",
            f"project/{package}/part.py": "from .deep import name\ndef f(): return name",
            f"project/{package}/deep/__init__.py": "name = __name__",
        }
    )
    if module == "mesonpy":
        program.file("project/meson.build", MESON)
    command = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--no-index", "--no-deps"]
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja is there
    done = subprocess.run(
        [*command, "--no-build-isolation", "-e", str(program.folder / "project")],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": programs},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    task = "def task():\n    import pkg\n    return pkg.f()\n"
    farm = f"farm = FarmExecutor(os.environ['FARM_ADDRESS'], ship={ship})\nprint(farm.submit(task).result())\n"
    program.file("run/script.py", f"{BEGIN}{begin}\n{task}{farm}")
    assert program.run("run/script.py", python=str(environment), programs=programs) == "pkg.deep"

"""What `farm_executor` promises by name."""

import ast
import inspect
import subprocess
import sys

import farm_executor
from farm_executor import FarmExecutor, errors
from farm_executor.arguments import ROWS
from farm_executor.client import settings


def test_every_public_name_exists_once():
    assert len(set(farm_executor.__all__)) == len(farm_executor.__all__)
    assert all(hasattr(farm_executor, name) for name in farm_executor.__all__)


def test_every_error_is_public():
    assert set(errors.__all__) <= set(farm_executor.__all__)


def test_what_checkers_know_of_the_executors_settings_is_its_signature():
    """The overloads of the constructor give them as one dictionary, which no checker compares with it."""
    classes = {
        node.name: node
        for node in ast.walk(ast.parse(inspect.getsource(settings)))
        if isinstance(node, ast.ClassDef)
    }
    known = {
        item.target.id: ast.unparse(item.annotation)
        for name in ("SharedSettings", "KeywordSettings")
        for item in classes[name].body
        if isinstance(item, ast.AnnAssign)
    }
    parameters = inspect.signature(FarmExecutor.__init__).parameters.values()

    by_name_alone = {p.name: ast.unparse(ast.parse(p.annotation)) for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert known == by_name_alone


def test_what_checkers_know_of_a_maps_options_is_its_signature():
    known = {
        name: getattr(kind, "__forward_arg__", kind) for name, kind in settings.MapKeywords.__annotations__.items()
    }
    parameters = inspect.signature(FarmExecutor.map).parameters.values()
    assert known == {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_the_executors_settings_are_its_arguments():
    given = list(inspect.signature(FarmExecutor.__init__).parameters)[1:]
    assert given == list(settings.FarmSettings._fields) == list(ROWS["FarmExecutor"])


def imported_by(program, *names):
    """Which of these modules the program imports in a fresh interpreter, beyond what `logging` does."""
    there = f"import sys, logging\nnames = [name for name in {names} if name not in sys.modules]"
    code = f"{there}\n{program}\nprint(*[name for name in names if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_executor_imports_no_heavy_module():
    """cloudpickle, tblib and numpy are imported when they are needed, if they are; so is all that does the work."""
    heavy = (
        "cloudpickle",
        "tblib",
        "numpy",
        "asyncio",
        "subprocess",
        "dataclasses",
        "farm_executor.client.farm.engine",
    )

    assert imported_by("from farm_executor import FarmExecutor", *heavy) == []


def test_a_server_imports_little_before_it_serves():
    """A program that starts one waits for that."""
    slow = ("subprocess", "tempfile", "shutil", "dataclasses", "inspect", "ast", "email", "importlib.metadata")
    program = "from farm_executor.launch.child import run\nfrom farm_executor.wire.versions import local_versions"

    found = imported_by(f"{program}\nlocal_versions()", *slow, "farm_executor.client.executor")

    assert found == []

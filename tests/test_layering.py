"""Who may import whom: a ladder without cycles, and a core without effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import farm_executor

ROOT = Path(farm_executor.__file__).parent

# The first that fits counts; a module may import its own step's modules only where it is named in SIDEWAYS.
LEVELS = [
    ("farm_executor.core", 2),
    ("farm_executor.client", 5),
    ("farm_executor.server", 5),
    ("farm_executor.launch", 6),
    ("farm_executor.admin", 5),
    ("farm_executor.advice", 4),
    ("farm_executor.transport", 3),
    ("farm_executor.payload", 2),
    ("farm_executor.byvalue", 2),
    ("farm_executor.failure", 2),
    ("farm_executor.blocks", 2),
    ("farm_executor.race", 2),
    ("farm_executor.versions", 2),
    ("farm_executor.address", 2),
    ("farm_executor.arguments", 2),
    ("farm_executor.layered", 1),
    ("farm_executor.sealed", 2),
    ("farm_executor.tls", 2),
    ("farm_executor.security", 2),
    ("farm_executor.keygen", 3),
    ("farm_executor.refused", 1),
    ("farm_executor.trusted", 2),
    ("farm_executor.errors", 1),
    ("farm_executor.importing", 1),
    ("farm_executor.tokens", 1),
    ("farm_executor._version", 0),
    ("farm_executor.lfarm", 7),
    ("farm_executor.cli", 7),
    ("farm_executor.demo", 7),
    ("farm_executor.__main__", 8),
    ("farm_executor", 8),
]
FOLDERS = ("core", "client", "server", "launch", "lfarm")
IMPURE = {
    *(
        "asyncio",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "pickle",
        "queue",
        "random",
        "secrets",
        "selectors",
    ),
    *("signal", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "cloudpickle", "tblib"),
}
# demo is a program that uses the package as users do, and imports it late.
ALLOWED = {("farm_executor.demo", "farm_executor")}


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


def _level(module):
    return next(level for name, level in LEVELS if module == name or module.startswith(name + "."))


def _folder(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else module


def _imports(path):
    """Every module that is imported, whatever the form and wherever in the file."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_steps_or_from_its_own_folder(module):
    for imported in _imports(MODULES[module]):
        if not imported.startswith("farm_executor") or (module, imported) in ALLOWED:
            continue
        same_folder = _folder(module) == _folder(imported)
        beside = _level(imported) == _level(module) and (_level(module) in (2, 7))
        assert _level(imported) < _level(module) or same_folder or beside, f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("farm_executor.core")])
def test_the_core_imports_nothing_with_effects(module):
    assert not {name.split(".")[0] for name in _imports(MODULES[module])} & IMPURE


def test_only_what_opens_connections_imports_socket_and_ssl():
    importers = {
        library: {name for name, path in MODULES.items() if library in set(_imports(path))}
        for library in ("socket", "ssl")
    }

    between = {f"farm_executor.{name}" for name in ("layered", "race", "sealed", "tls")}
    assert importers == {"socket": {"farm_executor.transport", *between}, "ssl": {"farm_executor.tls"}}


def test_a_program_that_does_not_encrypt_does_not_import_what_does():
    code = "import farm_executor.transport, farm_executor.client.engine, sys; print('ssl' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_ladder_has_no_cycles():
    graph = {name: {other for other in _imports(path) if other in MODULES} for name, path in MODULES.items()}
    done, doing = set(), []

    def visit(name):
        assert name not in doing, f"a cycle: {' -> '.join([*doing, name])}"
        if name not in done:
            doing.append(name)
            for other in graph[name]:
                if (name, other) not in ALLOWED:
                    visit(other)
            doing.pop()
            done.add(name)

    for name in graph:
        visit(name)

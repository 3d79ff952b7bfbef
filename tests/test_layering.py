"""Who may import whom: a ladder without cycles, and a core without effects."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import farm_executor

ROOT = Path(farm_executor.__file__).parent

# From the lowest step to the highest. A package stands for all its modules, but for those with a step of their own.
STEPS = [
    ("_record", "_version"),
    ("errors",),
    ("core",),
    ("data",),
    ("wire",),
    ("arguments", "current", "extras"),
    ("progress",),
    ("client.farm", "server"),
    ("client", "admin"),
    ("launch",),
    ("lfarm", "demo", "doctor", "explain", "integrations", "observe"),
    ("dashboard", "joblib", "metrics", "telemetry"),
    ("cli",),
    ("__main__", ""),
]
# And within the larger packages: a module imports from lower floors, or from its own floor where there is no cycle.
FLOORS = {
    "client": [
        ("launching", "notebook", "observing", "protocol", "settings", "tracing"),
        ("lifetime",),
        ("supply",),
        ("backing",),
        ("check", "map", "stream"),
        ("front",),
        ("executor",),
    ],
    "client.farm": [
        (
            "budget",
            "carrying",
            "discovery",
            "functions",
            "inlet",
            "interrupt",
            "liveness",
            "locks",
            "output",
            "own_modules",
            "voice",
        ),
        ("records", "future", "packages", "reactor", "shared"),
        ("repeated", "spreading"),
        ("call", "hearing", "sharing"),
        ("about", "cancels", "chosen_modules", "dispatch", "kills", "lane", "observer", "parcels"),
        ("inlets", "missing", "ringing", "session", "shipping", "wording"),
        ("crew", "link", "settling"),
        ("servers",),
        ("broadcasts", "statistics"),
        ("outcomes", "stopping"),
        ("sight",),
        ("engine",),
    ],
    "data": [
        (
            "atoms",
            "awaiting",
            "hints",
            "importing",
            "kept",
            "memory",
            "modules",
            "packages",
            "refused",
            "shared",
            "streamed",
            "tokens",
        ),
        ("byvalue",),
        ("failure", "payload"),
        ("blocks",),
    ],
    "server": [
        (
            *(
                "asking",
                "carried",
                "channel",
                "childhood",
                "depot",
                "descriptors",
                "keeping",
                "log",
                "machine",
                "manager",
            ),
            *(
                "memory",
                "modules",
                "namespaces",
                "offspring",
                "originals",
                "output",
                "packages",
                "progress",
                "records",
                "reports",
            ),
            "spans",
            "tether",
        ),
        ("shared",),
        ("handed",),
        ("sent",),
        ("marks", "outcomes", "stderr", "streaming", "words"),
        ("forwarding", "lane"),
        ("process", "worker"),
        ("shelves",),
        ("guest", "session"),
        ("counts", "dialler", "door"),
        ("workers",),
        ("sessions",),
        ("census",),
        ("admin",),
        ("supervisor",),
    ],
    "launch": [
        ("back", "background", "child", "ends", "forms", "held", "kinship", "path", "place", "probing", "relay"),
        ("attending", "errand", "far", "frozen"),
        ("near",),
        ("cluster", "gateway", "granted", "local"),
        ("dask", "engine", "opened", "ray", "slurm"),
        ("remote",),
        ("ssh",),
        ("command",),
    ],
    "lfarm": [
        ("checks", "log"),
        ("servers", "tasks"),
        ("submission",),
        ("task_options",),
        ("kernel",),
        ("channel", "parts", "promise", "sharing", "streams"),
        ("cognate", "seeking"),
    ],
    "observe": [
        ("model", "series"),
        ("exposition", "frame", "page", "recorder", "watching"),
        ("overview", "serving", "top"),
    ],
    "integrations": [
        ("inside", "reused"),
        ("arrays",),
        ("backend",),
    ],
    "wire": [
        ("address", "cores", "layered", "race", "trace", "trusted", "versions", "waker", "whose"),
        ("keygen", "polling", "sealed", "tls"),
        ("security", "sockets"),
        ("memfd",),
        ("memory_objects", "ring"),
        ("connection",),
        ("dialling",),
        ("advice",),
    ],
}
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
# These are programs that use the package as users do, and import it late.
ALLOWED = {("farm_executor.demo", "farm_executor"), ("farm_executor.doctor", "farm_executor")}


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


def _step(module):
    """The number of a module's step: that of the longest name in STEPS that it falls under."""
    steps = {f"farm_executor.{name}".rstrip("."): number for number, names in enumerate(STEPS) for name in names}
    name = module
    while name not in steps and "." in name:
        name = name.rpartition(".")[0]
    assert name != "farm_executor" or module == name, f"{module} has no step"
    return name, steps[name]


def _floor(package, module):
    own = module.removeprefix(f"farm_executor.{package}.")
    return next(number for number, names in enumerate(FLOORS[package]) if own in names)


@functools.cache
def _imports(path):
    return frozenset(_found_imports(path))


def _found_imports(path):
    """Every module that is imported, whatever the form and wherever in the file."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def _package_imports(module):
    return [name for name in _imports(MODULES[module]) if name in MODULES and (module, name) not in ALLOWED]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_steps_or_from_its_own(module):
    name, step = _step(module)
    for imported in _package_imports(module):
        other, lower = _step(imported)
        assert lower < step or other == name, f"{module} imports {imported}"


@pytest.mark.parametrize("package", FLOORS)
def test_within_a_package_a_module_imports_only_from_its_floor_and_those_below(package):
    prefix = f"farm_executor.{package}."
    modules = [name for name in MODULES if name.startswith(prefix) and _step(name)[0] == f"farm_executor.{package}"]
    assert sorted(name.removeprefix(prefix) for name in modules) == sorted(sum(FLOORS[package], ()))
    for module in modules:
        for imported in _package_imports(module):
            if imported in modules:
                assert _floor(package, imported) <= _floor(package, module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("farm_executor.core")])
def test_the_core_imports_nothing_with_effects(module):
    assert not {name.split(".")[0] for name in _imports(MODULES[module])} & IMPURE


def test_only_what_opens_connections_imports_socket_and_ssl():
    importers = {
        library: {name for name, path in MODULES.items() if library in set(_imports(path))}
        for library in ("socket", "ssl")
    }

    wire = {
        f"farm_executor.wire.{name}"
        for name in ("dialling", "layered", "memfd", "race", "sealed", "sockets", "tls", "waker")
    }
    # These two run where the package may be missing.
    elsewhere = {"farm_executor.launch.ends", "farm_executor.launch.far"}
    assert importers == {
        "socket": {"farm_executor.server.channel", *elsewhere, *wire},
        "ssl": {"farm_executor.wire.tls"},
    }


def test_a_program_that_does_not_encrypt_does_not_import_what_does():
    code = "import farm_executor.wire.dialling, farm_executor.client.farm.engine, sys; print('ssl' in sys.modules)"
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

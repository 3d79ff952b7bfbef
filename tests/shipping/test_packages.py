"""Packages that a task imports and that a server lacks or has in another version."""

from pathlib import Path

import pytest
from shipping.elsewhere import Elsewhere, Program

BEGIN = """
import sys; sys.path.append("site-packages")
"""


def install(folder: Path, package: str, version: str, *modules: str) -> None:
    """Make a folder look as if a package had been installed there."""
    data = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    data.mkdir(parents=True)
    (data / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    for module in modules:
        (folder / f"{module}.py").write_text(f"def f(): return {version!r}\n")
    (data / "RECORD").write_text("".join(f"{module}.py,sha256=00,1\n" for module in modules))


@pytest.fixture
def program(tmp_path, there):
    folder = tmp_path / "program"
    folder.mkdir()
    with Elsewhere(folder, "--path", str(there), workers=2) as server:
        program = Program(folder, server)
        for package, module in [("alpha", "alpha"), ("beta-tools", "beta"), ("gamma", "gamma"), ("delta", "delta")]:
            install(folder / "site-packages", package, "1.0", module)
        install(there, "alpha", "1.0", "alpha")
        install(there, "beta-tools", "2.0", "beta")
        install(there, "delta", "1.0", "delta")
        yield program


WARNED = """
import logging
lines = []
class Handler(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("packages differ"):
            lines.append(record.getMessage())
logging.getLogger("farm_executor").addHandler(Handler())
"""


def test_all_are_said_at_the_first_task_that_imports_one(program):
    program.write({"helpers.py": "import alpha, beta\ndef f(): return beta.f()"})
    code = f"""{BEGIN}{WARNED}
import helpers, gamma
def harmless():
    import alpha, delta
print(farm.submit(harmless).result(), lines)
print(farm.submit(helpers.f).result(), *lines)
farm.broadcast(helpers.f)
print(len(lines))
"""
    first, second, third = program.script(code).splitlines()
    assert first == "None []"
    assert second == (
        f"2.0 packages differ server={program.server.address} packages=beta-tools is 2.0, here 1.0, "
        "gamma is missing, here 1.0; to have the same there: python -m pip install beta-tools==1.0 gamma==1.0"
    )
    assert third == "1"


def test_the_error_of_one_that_is_missing_names_all(program):
    program.write({"helpers.py": "import gamma, beta\ndef f(): pass"})
    code = f"""{BEGIN}
import helpers, traceback
error = farm.submit(helpers.f).exception()
print(error)
"""
    printed = program.script(code)
    assert "No module named 'gamma'; this program has it installed" in printed
    assert "python -m pip install gamma==1.0; on that server" in printed
    assert "gamma is missing, here 1.0" in printed
    assert "beta-tools is 2.0, here 1.0" in printed


def test_what_a_function_of_the_script_itself_imports_counts(program):
    code = f"""{BEGIN}{WARNED}
import beta
def task():
    return beta.f()
print(farm.submit(task).result(), len(lines))
"""
    assert program.script(code) == "2.0 1"


def test_what_packages_import_in_turn_does_not_count(program):
    (program.folder / "site-packages" / "alpha.py").write_text("import beta\ndef f(): return beta.f()")
    code = f"""{BEGIN}{WARNED}
import alpha
def task():
    import alpha, beta
    return beta.f()
print(farm.submit(task).result(), len(lines))
"""
    assert program.script(code) == "2.0 0"


def test_one_without_data_is_not_judged(program, there):
    for file in there.glob("beta_tools-*/*"):
        file.unlink()
    next(there.glob("beta_tools-*")).rmdir()
    code = f"""{BEGIN}{WARNED}
import beta
print(farm.submit(beta.f).result(), len(lines))
"""
    assert program.script(code) == "2.0 0"

"""Which modules exist in this process only."""

import importlib
import importlib.util
import os
import subprocess
import sys
import types

import pytest

from farm_executor.data.importing import exist_here_only


def load(name, path, text="def f(): pass\n"):
    """importlib's recipe for a module from a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def modules():
    before, path = dict(sys.modules), list(sys.path)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.path[:] = path


def test_a_file_that_is_not_on_the_path(tmp_path):
    load("a_plugin", tmp_path / "a_plugin.py")
    load("other_name", tmp_path / "file.py")

    assert {"a_plugin", "other_name"} <= exist_here_only()


def test_a_file_of_another_name_on_the_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    load("not_its_name", tmp_path / "on_the_path.py")
    load("on_the_path", tmp_path / "on_the_path.py")

    assert "not_its_name" in exist_here_only()
    assert "on_the_path" not in exist_here_only()


def test_a_file_whose_name_leads_to_another_file(tmp_path, monkeypatch):
    (tmp_path / "on" / "twice.py").parent.mkdir()
    (tmp_path / "on" / "twice.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "on")
    load("twice", tmp_path / "off" / "twice.py")

    assert "twice" in exist_here_only()


def test_a_module_that_is_made():
    sys.modules["made_here"] = types.ModuleType("made_here")

    assert "made_here" in exist_here_only()


def test_a_package_of_which_only_files_are_there(tmp_path):
    load("pack", tmp_path / "pack" / "__init__.py")
    load("pack.inner", tmp_path / "pack" / "inner.py")

    assert {"pack", "pack.inner"} <= exist_here_only()


def test_what_is_imported_in_the_usual_ways_is_found_everywhere(tmp_path, monkeypatch):
    package = tmp_path / "usual"
    package.mkdir()
    made = 'import sys, types\nsys.modules["usual.made"] = types.ModuleType("usual.made")\n'
    (package / "__init__.py").write_text(made)
    (package / "inner.py").write_text("")
    (tmp_path / "spaces" / "inner").mkdir(parents=True)
    (tmp_path / "spaces" / "inner" / "leaf.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("usual.inner", "spaces.inner.leaf", "os.path", "collections.abc", "_json", "zipimport"):
        importlib.import_module(name)

    assert not {name for name in exist_here_only() if name.startswith(("usual", "spaces", "os", "coll", "_json"))}
    assert not exist_here_only() & {"sys", "builtins", "__main__", "zipimport", "farm_executor.data.payload"}


def test_stand_ins_and_lazy_modules_are_left_as_they_are(tmp_path, monkeypatch):
    class Strange:
        def __getattr__(self, name):
            raise RuntimeError(name)

    (tmp_path / "lazy_one.py").write_text("raise RuntimeError('it was loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.find_spec("lazy_one")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lazy_one"] = module
    spec.loader.exec_module(module)
    sys.modules["strange"] = Strange()
    sys.modules["none"] = None
    sys.modules["alias"] = os

    assert not exist_here_only() & {"lazy_one", "strange", "none", "alias"}


def test_a_module_stays_what_it_was_though_the_program_goes_to_another_directory(tmp_path):
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import os, beside\nos.chdir('elsewhere')\n"
        "from farm_executor.data.importing import exist_here_only\nprint('beside' in exist_here_only())"
    )
    root = os.path.dirname(os.path.dirname(importlib.util.find_spec("farm_executor").origin))
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    assert out.stdout == "False\n", out.stderr


def test_a_module_that_comes_in_place_of_another_is_seen(tmp_path):
    load("first_plugin", tmp_path / "first_plugin.py")
    assert "first_plugin" in exist_here_only()
    del sys.modules["first_plugin"]
    load("second_plugin", tmp_path / "second_plugin.py")

    assert "second_plugin" in exist_here_only()
    assert "first_plugin" not in exist_here_only()

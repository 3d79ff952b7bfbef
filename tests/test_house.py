"""The measures of `house`: what they count, and what they do not."""

import ast

import house
import pytest

FILES = {
    "core/scheduler.py": "class Scheduler:\n    def _friend(self): ...\n",
    "client/farm/link.py": "class Link:\n"
    "    def __init__(self):\n        self.fixed = self.state = self._hidden = 0\n"
    "    def change(self):\n        self.state, other.fixed = 1, 2\n",
    "client/users.py": '"""A docstring, not code."""\nimport os\n\n# a reason\nos._hidden\nx = 1  # at its end\n',
}


@pytest.fixture
def package(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def _found(package):
    return {each.name.partition(" ")[0]: each for each in house.measure(package)}


def test_a_tidy_package_keeps_its_limits(package):
    assert all(each.kept for each in house.measure(package))


def test_the_attributes_that_change_are_those_assigned_after_construction(package):
    assert _found(package)["changing"].where == ["state"]


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        ("link._hidden", True),
        ("self.link._hidden", True),
        ("from farm_executor.client.farm.link import _hidden", True),
        ("self._hidden", False),  # inherited
        ("super()._hidden", False),
        ("future._state", False),  # none of ours has it
        ("task._friend", False),  # the scheduler's
        ("pair._replace()", False),
        ("me._mine = self._mine = 1; me._mine", False),
    ],
)
def test_private_accesses_between_modules(package, line, counted):
    (package / "client/users.py").write_text(f"{line}\n")
    assert _found(package)["private"].value == counted


def test_overloads_and_setters_are_one_method():
    text = "class A:\n    def f(self): ...\n    if True:\n        def f(self): ...\n    class B:\n        x = 1"
    assert house.methods(ast.parse(text).body[0]) == {"f"}


def test_whole_lines_of_comments_are_counted_beside_lines_of_code(package):
    module = house.Module(package / "client/users.py", package)
    assert house.comments_and_code(module) == (1, 3)


@pytest.mark.parametrize(
    ("text", "measure"),
    [
        ("x = 1\n" * 601, "lines"),
        ("class A:\n" + "".join(f"    def f{i}(self): ...\n" for i in range(41)), "methods"),
    ],
)
def test_what_passes_a_limit_is_named(package, text, measure):
    (package / "client/users.py").write_text(text)
    found = _found(package)[measure]
    assert not found.kept
    assert "client/users.py" in found.where[0]

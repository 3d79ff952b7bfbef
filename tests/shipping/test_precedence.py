"""Whose module is taken where both sides have one, and what ``ship=`` changes."""

import os

import pytest
from shipping.elsewhere import Elsewhere, Program

from farm_executor import FarmExecutor

MINE = "import os\ndef f(): return 'client'\ndef where(): return os.path.dirname(os.path.abspath(__file__))\n"


@pytest.fixture
def program(tmp_path, there):
    folder = tmp_path / "program"
    folder.mkdir()
    with Elsewhere(folder, "--path", str(there)) as server:
        yield Program(folder, server)


def test_another_one_on_the_server_is_not_taken(program, there):
    (there / "helpers.py").write_text(MINE.replace("client", "server"))
    program.write({"helpers.py": MINE})
    assert program.script("import helpers; print(farm.submit(helpers.f).result())") == "client"


def test_the_same_one_on_the_server_is_taken(program, there):
    (there / "helpers.py").write_text(MINE)
    program.write({"helpers.py": MINE})
    assert program.script("import helpers; print(farm.submit(helpers.where).result())") == str(there)


def test_one_of_the_server_that_has_extension_modules_is_taken(program, there):
    for folder, text in [(there, MINE.replace("client", "server")), (program.folder, MINE)]:
        (folder / "pkg").mkdir()
        (folder / "pkg" / "__init__.py").write_text(text)
        (folder / "pkg" / "_fast.abi3.so").write_bytes(b"not loaded")
    assert program.script("import pkg; print(farm.submit(pkg.f).result())") == "server"


def test_a_regular_package_of_the_server_goes_before_a_folder(program, there):
    (there / "space").mkdir()
    (there / "space" / "__init__.py").write_text("value = 'server'")
    program.write({"space/inner.py": "value = 'client'"})
    code = """
        def task():
            import space
            return space.value
        print(farm.submit(task).result())
    """
    assert program.script(code) == "server"


def test_off_sends_nothing_and_the_error_says_so(program):
    program.write({"helpers.py": MINE})
    code = """
        import helpers
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], ship="off")
        print(farm.submit(helpers.f).exception())
    """
    printed = program.script(code)
    assert "No module named 'helpers'" in printed
    assert f"it is this program's own, from {program.folder}/helpers.py, and is not sent" in printed


def test_what_is_named_is_all_that_is_sent(program):
    program.write({"helpers.py": MINE, "other.py": MINE})
    code = """
        import helpers, other
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], ship=[SHIP])
        print(farm.submit(helpers.f).result(), type(farm.submit(other.f).exception()).__name__)
    """
    for ship in ("'helpers'", "'./helpers.py'", "__import__('pathlib').Path('helpers.py')"):
        assert program.script(code.replace("SHIP", ship)) == "client TaskExecutionError"


def test_a_module_that_is_named_is_sent_with_all_its_data(program):
    program.write(
        {"pkg/__init__.py": "import os\ndef size(): return os.stat(os.path.dirname(__file__) + '/big').st_size"}
    )
    (program.folder / "pkg" / "big").write_bytes(os.urandom(3 << 20))
    code = """
        import pkg
        farm = FarmExecutor(os.environ["FARM_ADDRESS"], ship=SHIP)
        outcome = farm.submit(pkg.size)
        print(outcome.exception() or outcome.result())
    """
    assert "No such file" in program.script(code.replace("SHIP", "'auto'"))
    assert program.script(code.replace("SHIP", "['auto', 'pkg']")) == str(3 << 20)


def test_an_installed_package_that_is_named_is_sent(program, tmp_path):
    program.write({"site-packages/third.py": "def f(): return 'sent'"})
    code = """
        import sys; sys.path.append("site-packages")
        import third
        print(type(FarmExecutor(os.environ["FARM_ADDRESS"]).submit(third.f).exception()).__name__)
        print(FarmExecutor(os.environ["FARM_ADDRESS"], ship=["third"]).submit(third.f).result())
    """
    assert program.script(code).split() == ["TaskExecutionError", "sent"]


@pytest.mark.parametrize(
    ("ship", "error", "text"),
    [
        (3, TypeError, 'ship must be "auto", "off", or names and paths of modules, not 3'),
        ([3], TypeError, 'ship must be "auto", "off", or names and paths of modules, not [3]'),
        (b"auto", TypeError, "ship must be"),
        ("Auto", ValueError, "ship: there is no module 'Auto'"),
        (["auto", "nope_nope"], ValueError, "ship: there is no module 'nope_nope'"),
        (["/no/such"], ValueError, "ship: there is no '/no/such'"),
        (["json"], ValueError, "ship: json cannot be sent"),
        (["sys"], ValueError, "ship: sys cannot be sent"),
        (["cloudpickle"], ValueError, "ship: cloudpickle cannot be sent"),
        (["os.path"], ValueError, "ship: there is no module 'os.path'"),
    ],
)
def test_what_ship_does_not_take(ship, error, text):
    with pytest.raises(error, match="ship") as caught:
        FarmExecutor(["127.0.0.1:1"], ship=ship)
    assert text in str(caught.value)

"""What README and the pages on servers say of two machines, followed to the letter on two: see `two_hosts.py`.

Nothing is left out or put in its place, as the tests of the documentation must, which have one machine: `ssh` and
`scp` lead to the hosts, keys are copied to them, servers listen on all addresses there, and the same port. Only
what is to be installed is there already, as no network leads to an index.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_docs

pytestmark = pytest.mark.skipif(
    "FARM_EXECUTOR_TESTS_HOSTS" not in os.environ, reason="two_hosts.py runs these, on hosts of its own"
)
HOSTS = ("hostA", "hostB")
DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
DEADLINE = 60.0


def _section(page, title):
    """The blocks of a page's section, without those of sections within it."""
    text = page.read_text("utf-8")
    start = text[: text.index(f"\n{title}\n")].count("\n") + 2
    end = next((n for n, line in enumerate(text.splitlines(), 1) if n > start and re.match("##+ ", line)), 10**9)
    return [block for block in test_docs._blocks(page) if start < block.line < end]


def _run(*command):
    # The tests have a key of their own: here it is the one in the new home directory.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def _shell(command):
    return _run("bash", "-ec", command)


def _python(*blocks):
    """Run blocks as one program; return what it prints."""
    return _run(sys.executable, "-c", "".join(block.text for block in blocks))


def _transcript(block):
    for command, shown in test_docs._transcript(block):
        printed = _shell(command)
        if shown:
            test_docs._compare(shown, printed)


@contextlib.contextmanager
def _serving(command):
    """Run a server on each host until the test has ended it, or to the end of the test if that fails."""
    with contextlib.ExitStack() as resources:
        for host in HOSTS:
            server = subprocess.Popen(
                ["ssh", "-tt", host, command], stdout=subprocess.PIPE, text=True, stdin=subprocess.PIPE
            )
            resources.callback(_hang_up, server)
            assert server.stdout.readline().startswith("serving on ")
        yield
        for host in HOSTS:
            with contextlib.suppress(AssertionError):  # it may have been ended, as the page says
                _shell(f"ssh {host} farm-executor end {command.split()[2].replace('0.0.0.0', host)}")


def _hang_up(server):
    with server:
        server.terminate()


def test_readmes_farm_of_two_machines():
    first = next(block for block in test_docs._blocks(README) if block.language == "python")
    over_ssh, copy_key, serve, check = _section(README, "## A farm of two machines")
    imports = dataclasses.replace(first, text=first.text.partition("\n\n")[0] + "\n")

    assert _python(imports, over_ssh) == "1024\n"
    _shell(re.sub(r"(?m)^python -m pip install .*\n", "", copy_key.text))
    with _serving(serve.text.strip()):
        assert _python(first) == "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n1024\n"
        _transcript(check)


def test_the_page_on_servers_of_two_machines():
    page = DOCS / "how-to" / "servers-on-two-machines.md"
    (copy_key,) = _section(page, "## One key for all")
    serve, program, printed = _section(page, "### Directly, encrypted")

    _shell(copy_key.text)
    ((command, _),) = test_docs._transcript(serve)
    with _serving(command):
        assert _python(program) == printed.text

    serve, tunnels, program, printed = _section(page, "### Through ssh tunnels")
    ((command, _),) = test_docs._transcript(serve)
    with _serving(command):
        _shell(tunnels.text)
        assert _python(program) == printed.text


def test_over_ssh():
    page = DOCS / "how-to" / "servers-over-ssh.md"
    (by_hand,) = _section(page, "## Before you start")
    (program,) = _section(page, "## Use them")

    assert _shell(by_hand.text).startswith("farm-executor 0.")
    assert _python(program) == "5050\n"

"""What README.md and docs/ say is true: what they show runs, their links lead somewhere, and nothing is left out.

The fenced blocks of a page are run in order, in an empty directory that also holds the scripts of docs/examples:

* ``python`` in one interpreter for the whole page, as its ``__main__``;
* ``pycon`` in that same interpreter, by doctest;
* ``shell``, a command a line, and ``console``, ``$ command`` followed by its output, by bash. A
  ``farm-executor serve`` or ``launch`` stays up until the page ends; what would install something or needs another
  machine (`NOT_RUN`) is passed over.

A ``lisp`` block is not run: it is what the next one translates.

Notes to this test stand in HTML comments, which no reader sees:

* ``<!-- test: servers=hostA:11111,hostB:11111 -->``: servers that the page takes for granted.
* ``<!-- test: ports=127.0.0.1:11111 -->``: addresses at which the page starts servers itself.
* ``<!-- test: at hostA -->`` before a block that starts a server: it is the one of that host.
* ``<!-- test: output -->`` before a ``text`` block: it is what the ``python`` block before it prints. As in all
  expected output, ``...`` stands for anything.
* ``<!-- test: ssh -->`` before a block: every host of it is reached by ssh; it is not run where there is no sshd.
* ``<!-- test: skip, REASON -->`` before a block: it is not run.
* ``<!-- test: needs pandas, sklearn -->`` before a block: it is run where these modules are installed, as they are
  in the session ``recipes``, where one that is missing is an error.

No page uses its ports: an address such as ``hostA:11111``, or ``"hostA", 11111``, becomes the one of the server
that the page has there, and one at which nobody listens if there is none.
"""

import ast
import contextlib
import doctest
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import sshd
from items import Result, TaskItem

import farm_executor
import farm_executor.lfarm
from farm_executor import start_server
from farm_executor.cli import _parser
from farm_executor.core.batches import decode_results, decode_tasks, encode_results, encode_tasks
from farm_executor.core.frames import FrameType, encode_frame, encode_payload, payload_of
from farm_executor.core.handshake import ClientHandshake, Security, ServerHandshake, encode_hello
from farm_executor.core.reader import FrameReader
from farm_executor.core.seal import CLIENT, SERVER, Seal
from farm_executor.data.payload import dumps, loads
from farm_executor.launch.ssh import SSH_VARIABLE
from farm_executor.wire.address import parse_address
from farm_executor.wire.dialling import connect
from farm_executor.wire.security import client_key
from farm_executor.wire.versions import local_versions

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
PACKAGE = Path(farm_executor.__file__).parent

LANGUAGES = {"python", "pycon", "shell", "console", "text", "lisp", "ini", "yaml"}
NOT_RUN = {"nox", "pip", "scp", "ssh", "ssh-keygen"}
NOBODY = "127.0.0.1:1"
DEADLINE = 120.0  # seconds until a page that hangs is ended; a page takes one or two, one over pandas ten or more
ADDRESS = re.compile(r'\b([A-Za-z][\w.-]*|\d+(?:\.\d+){3})(:|", )(\d{4,5})\b')

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a farm's servers need fork")


def _name(page):
    return page.relative_to(ROOT).as_posix()


# -- reading pages ----------------------------------------------------------------------------------------


@dataclass
class Block:
    language: str
    line: int  # of its opening fence, from 1
    text: str
    note: str  # the test's note before it


def _blocks(page):
    """The fenced blocks of a page, but those of directives."""
    found, opened, note = [], None, ""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = re.match(r"( *)(```+)([^`]*)$", line)
        if opened is None and fence:
            opened = (fence, number, [])
        elif opened is not None and fence and fence[2] == opened[0][2] and not fence[3].strip():
            indent, language = len(opened[0][1]), opened[0][3].strip()
            if not language.startswith("{"):
                text = "".join(line[indent:] + "\n" for line in opened[2])
                found.append(Block(language, opened[1], text, note))
            opened, note = None, ""
        elif opened is not None:
            opened[2].append(line)
        elif comment := re.fullmatch(r"\s*<!-- test: (.*) -->", line):
            note = comment[1]
        elif line.strip():
            note = ""
    assert opened is None, f"{_name(page)}: the block at line {opened[1]} does not end"
    return found


def _lacks(block):
    """The modules that a block needs and that are not installed."""
    needed = re.findall(r"\w+", block.note.removeprefix("needs ")) if block.note.startswith("needs ") else []
    lacking = [name for name in needed if importlib.util.find_spec(name) is None]
    assert not (lacking and os.environ.get("RECIPES")), f"{lacking} are not installed"
    return lacking


def _prose(page):
    """The page's text without fenced blocks and inline code."""
    text = re.sub(r"^( *)(```+)[^`\n]*\n.*?^\1\2 *$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def _transcript(block):
    """The commands of a block with the output that they show; None where nothing is shown."""
    if block.language == "shell":
        lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
        return [(line, None) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    commands = []
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], ""))
        else:
            assert commands, f"output before the first command in line {block.line}"
            commands[-1] = (commands[-1][0], commands[-1][1] + line + "\n")
    return commands


# -- running pages ----------------------------------------------------------------------------------------

MARK = "=== end of block ==="
DRIVER = f"""\
def _drive():
    import doctest, json, sys, __main__
    for line in iter(sys.stdin.readline, ""):
        block = json.loads(line)
        source = "\\n" * block["line"] + block["text"]
        if block["language"] == "python":
            exec(compile(source, block["page"], "exec"), vars(__main__))
        else:
            test = doctest.DocTestParser().get_doctest(source, {{}}, block["page"], block["page"], 0)
            test.globs = vars(__main__)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
            runner.run(test, clear_globs=False)
            if runner.failures:
                sys.exit(1)
        print({MARK!r}, flush=True)
_drive()
"""


class PageRun:
    """One page while its blocks are run."""

    def __init__(self, page, folder, resources):
        self.page, self.folder, self.resources = page, folder, resources
        self.servers = {}
        self.interpreter = None
        self.printed = ""
        scripts = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "PATH": scripts + os.pathsep + os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONWARNINGS": "error",
        }
        for script in EXAMPLES:
            shutil.copy(script, folder)

    def start_servers(self):
        for note in re.findall(r"<!-- test: servers=(\S+) -->", self.page.read_text("utf-8")):
            for address in note.split(","):
                server = start_server("127.0.0.1", 0, background=True, workers=2)
                self.resources.callback(server.end)
                self.servers[address] = server.address
        for note in re.findall(r"<!-- test: ports=(\S+) -->", self.page.read_text("utf-8")):
            with contextlib.ExitStack() as held:  # all of them at once, or they would be the same
                for address in note.split(","):
                    host, port = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()
                    self.servers[address] = f"{host}:{port}"

    def start_ssh(self):
        server = sshd.Sshd()
        self.resources.callback(server.end)
        self.environment[SSH_VARIABLE] = server.ssh

    def real(self, text):
        """The text with the addresses of this page's servers."""
        for shown in [shown for shown in self.servers if shown.startswith("unix:")]:
            text = text.replace(shown, self.servers[shown])

        def replace(match):
            host, separator, port = match.groups()
            if host == "0.0.0.0":  # where a server listens, never where it is reached
                return match[0]
            real_host, _, real_port = self.servers.get(f"{host}:{port}", NOBODY).partition(":")
            return real_host + separator + real_port

        return ADDRESS.sub(replace, text)

    def run(self, block):
        if block.language in ("python", "pycon"):
            self.printed = self.interpret(block)
        elif block.language in ("shell", "console"):
            host = block.note.partition("at ")[2] if block.note.startswith("at ") else ""
            for command, shown in _transcript(block):
                self.command(command, shown, host)
        elif block.language == "text" and block.note == "output" and self.printed is not None:
            _compare(self.real(block.text), self.printed)

    def interpret(self, block):
        if self.interpreter is None:
            self.interpreter = self.resources.enter_context(self.start_interpreter())
        order = {"page": str(self.page), "line": block.line, "language": block.language}
        order["text"] = self.real(block.text)
        with contextlib.suppress(BrokenPipeError):
            self.interpreter.stdin.write(json.dumps(order) + "\n")
            self.interpreter.stdin.flush()
        printed = ""
        while not printed.endswith(MARK + "\n"):
            line = self.interpreter.stdout.readline()
            assert line, f"the interpreter has ended; it had printed:\n{printed}"
            printed += line
        return printed.removesuffix(MARK + "\n")

    @contextlib.contextmanager
    def start_interpreter(self):
        # Warnings on standard error come when they come: pages show what goes to standard output.
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=self.environment,
        ) as process:
            try:
                with _killed_if_late(process):
                    yield process
                    rest, _ = process.communicate()
            finally:
                process.kill()
        assert process.returncode == 0, rest
        assert not rest

    def command(self, command, shown, host):
        words = shlex.split(command)
        name = words[2] if words[:2] == ["python", "-m"] and words[2] != "farm_executor" else words[0]
        if name in NOT_RUN:
            return
        if words[:2] == ["farm-executor", "serve"] and not set(command) & set(";|&"):
            self.serve(words, shown, host)
            return
        if words[:2] == ["farm-executor", "launch"] and "--help" not in words:
            self.launch(words, shown)
            return
        process = subprocess.run(
            ["bash", "-c", self.real(command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if words[0] == "python" else subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=self.environment,
            timeout=DEADLINE,
        )
        assert process.returncode == 0, f"{command}\n{process.stdout}"
        if shown:
            _compare(self.real(shown), process.stdout)

    def serve(self, words, shown, host):
        """Start a server on a free port, and remember the address that the page gives it."""
        back = "--back" in words
        at = next((number for number, word in enumerate(words) if ADDRESS.fullmatch(word)), len(words))
        address = (words[at:] or ["127.0.0.1:11111"])[0]
        process = subprocess.Popen(
            [*words[:at], self.real(address) if back else "127.0.0.1:0", *words[at + 1 :]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=self.environment,
        )
        self.resources.callback(_end, process)
        with _killed_if_late(process):
            line = process.stdout.readline()
        assert line.startswith("dialling " if back else "serving on "), line
        if back:
            return
        real = line.split()[2].rstrip(",")
        self.servers[f"{host}:{address.rpartition(':')[2]}" if host else address] = real
        if shown:
            _compare(shown.replace(address, real), line)

    def launch(self, words, shown):
        """Start servers over ssh, and remember the addresses that the page gives them."""
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=self.folder, env=self.environment)
        self.resources.callback(_end, process)
        for line in shown.splitlines():
            with _killed_if_late(process):
                asked, address = process.stdout.readline().split()
            assert asked == line.split()[0]
            self.servers[line.split()[1]] = address


def _compare(shown, printed):
    checker = doctest.OutputChecker()
    printed = re.sub(r"^ +[~^]+\n", "", printed, flags=re.M)  # in tracebacks, from Python 3.11 on
    difference = checker.output_difference(doctest.Example("", shown), printed, doctest.ELLIPSIS)
    assert checker.check_output(shown, printed, doctest.ELLIPSIS), difference


@contextlib.contextmanager
def _killed_if_late(process):
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _end(process):
    with process:
        process.terminate()
        process.terminate()  # the first one would let clients finish
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_what_a_page_shows_runs(page, tmp_path, no_leaks):
    blocks = _blocks(page)
    with contextlib.ExitStack() as resources:
        run = PageRun(page, tmp_path, resources)
        run.start_servers()
        if any(block.note == "ssh" for block in blocks) and not sshd.WHY_NOT:
            run.start_ssh()
        for block in blocks:
            where = f"{_name(page)}, line {block.line}"
            assert block.language in LANGUAGES, f"{where}: a block's language is one of {sorted(LANGUAGES)}"
            if re.match(r"skip, \S", block.note) or (block.note == "ssh" and sshd.WHY_NOT):
                continue
            if _lacks(block):
                run.printed = None  # there is no output to be compared with what the page shows
                continue
            try:
                run.run(block)
            except Exception as error:
                raise AssertionError(f"{where}: {error}") from error


@pytest.mark.parametrize("script", EXAMPLES, ids=_name)
def test_an_example_is_shown_and_run_by_a_page(script):
    texts = [page.read_text("utf-8") for page in PAGES]

    used = (  # as a program, by one, or by pytest
        f"\n$ python {script.name}\n",
        f"\nimport {script.stem}\n",
        f"\n$ python -m pytest -q {script.name}\n",
    )

    assert any(f"examples/{script.name}\n" in text and any(use in text for use in used) for text in texts)


# -- links ------------------------------------------------------------------------------------------------


def _anchors(page):
    """The anchors of a page's headings, made as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_within_the_documentation_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)

    assert broken == []


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in PAGES[1:]:
        for toctree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            names = [line for line in toctree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}

    assert listed == {page.resolve() for page in PAGES[1:]} - {(DOCS / "index.md").resolve()}


def test_the_figures_beside_the_readmes_promises_are_on_the_pages_that_they_name():
    text = (ROOT / "README.md").read_text("utf-8")
    cited = re.findall(r"\| \[([^\]]+)\]\((docs/[^)#]+)#[^)]*\) \|", text)
    missing = [
        (figure, page)
        for claim, page in cited
        for figure in re.findall(r"\d[\d,.]*(?<=\d)", claim)
        if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)", (ROOT / page).read_text("utf-8"))
    ]

    assert len(cited) > 5
    assert missing == []


# -- nothing is left out ----------------------------------------------------------------------------------


def test_every_public_name_is_in_the_api_reference():
    text = (DOCS / "reference" / "api.md").read_text("utf-8")
    documented = re.findall(r"^\.\. \w+:: farm_executor\.(\w+)", text, re.M)

    assert sorted(documented) == sorted(farm_executor.__all__)


def test_every_name_of_lfarm_is_in_its_reference():
    """Also each symbol that lfarm's packages export for users, whether or not it is here."""
    text = (DOCS / "reference" / "lfarm.md").read_text("utf-8")
    tables = text.partition("\n## Kernels and tasks\n")[0]
    symbols = re.findall(r"\S+", LFARM_EXPORTS)

    assert [name for name in farm_executor.lfarm.__all__ if not re.search(rf"`{name}[`(]", text)] == []
    assert [symbol for symbol in symbols if not re.search(rf"[`:]{re.escape(symbol)}`", tables)] == []


LFARM_EXPORTS = """
    make-kernel check-kernel end-kernel kernel-worker-count kernel-name make-channel submit-task submit-timeout
    cancel-timeout receive-result try-receive-result do-fast-receives kill-tasks task-categories-running *kernel*
    *kernel-spin-count* *task-category* *task-priority* *debug-tasks-p* kernel channel no-kernel-error
    kernel-creation-error task-killed-error deftask deftask* submit-task* broadcast-task broadcast-task*
    task-execution-error invalid-task-error kernel-bindings kernel-context task-handler-bind transfer-error
    invoke-transfer-error promise future speculate delay force fulfill fulfilledp chain plet pmap pmapcar pmap-into
    preduce preduce-partial pmap-reduce start-server ping end-server start-local-servers end-local-servers
    start-remote-servers end-remote-servers *remote-lisp* *ssh-executable* *ssh-options* *ssh-user* *boot-form*
    *log-level* *log-stream* *auth* gss-auth-client gss-auth-server ssl-auth-client ssl-auth-server
"""


def test_every_error_is_explained():
    text = (DOCS / "reference" / "errors.md").read_text("utf-8")

    errors = [name for name in farm_executor.errors.__all__ if name != "BroadcastOutcome"]  # which is part of one
    assert [name for name in errors if f"`{name}`" not in text] == []


def test_every_command_and_option_is_in_the_cli_reference():
    text = (DOCS / "reference" / "cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^## `farm-executor (\w+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    (commands,) = [action.choices for action in _parser()[0]._actions if action.choices]
    options = {
        name: {action.option_strings[-1] for action in parser._actions if action.option_strings}
        for name, parser in commands.items()
    }
    common = set.intersection(*(of_one for name, of_one in options.items() if name not in ("explain", "keygen")))
    head = text.partition("\n## ")[0]

    assert set(sections) == set(commands)
    assert [option for option in common if f"`{option}" not in head] == []
    assert [
        f"{name} {option}"
        for name in commands
        for option in options[name] - common
        if f"`{option}" not in sections[name]
    ] == []


def test_every_frame_type_is_in_the_protocol_with_its_number():
    text = (DOCS / "reference" / "protocol.md").read_text("utf-8")

    documented = re.findall(r"^\| (\d+) \| `([A-Z_]+)`", text, re.M)

    assert documented == [(str(int(kind)), kind.name) for kind in FrameType]


def _log_events():
    """Each log call of the package: the message up to the first field, the level, the fields' names."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func.value) in ("logger", "self._ration")
                and node.func.attr in ("debug", "info", "warn", "warning", "error", "exception", "critical")
            ):
                level = {"exception": "error", "warn": "warning"}.get(node.func.attr, node.func.attr)
                message = node.args[0].value
                yield re.split(r" \w+=%", message)[0], level.upper(), tuple(re.findall(r"(\w+)=%", message))


def test_every_log_event_is_documented():
    text = (DOCS / "reference" / "logging.md").read_text("utf-8")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| .*\|$", text, re.M)]
    documented = {(row[0].strip("`"), row[1], tuple(re.findall(r"`(\w+)`", row[2]))) for row in rows}

    assert {row for row in documented if row[1].isupper()} == set(_log_events())


def _keys(text, title):
    """The keys in the first column of the table whose head begins so."""
    table = re.search(rf"^\| {title} \|.*\n\| -.*\n((?:\|.*\n)+)", text, re.M)
    return set(re.findall(r"^\| `(\w+)`", table[1], re.M))


def test_every_field_of_a_hello_and_of_a_status_is_documented():
    protocol = (DOCS / "reference" / "protocol.md").read_text("utf-8")
    api = (DOCS / "reference" / "api.md").read_text("utf-8")
    of_role = {role: protocol.partition(f"### {role}\n")[2] for role in ("control", "lane")}
    hello = {
        "role": "control",
        "versions": local_versions()._asdict(),
        "allow_version_mismatch": False,
        "client": "test",
        "heartbeat": 5.0,
        "resume_seconds": 0.0,
        "max_memory": 2**30,
        "features": ["beside", "modules", "rings"],
        "host": "h",
        "user": "u",
        "program": "p",
        "label": "l",
    }
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        address = parse_address(server.address)
        said = farm_executor.status(address.host, address.port)
        key = client_key(None, None, address)
        control, session = connect(address, key, hello, 10.0)
        lane, worker = connect(
            address, key, {"role": "lane", "session": session["session"], "slot": 0, "lane": 1}, 10.0
        )
        lane.close()
        control.close()

    assert _keys(api, "key") == set(said)
    assert _keys(of_role["control"], "client's key") == {*hello, "resume"}
    assert _keys(of_role["control"], "server's key") == {*session, "beside", "ends"}  # the last two on Linux only
    assert _keys(of_role["lane"], "server's key") == set(worker)


def test_every_refusal_is_in_the_protocol():
    source = "".join(path.read_text("utf-8") for path in (PACKAGE / "server").glob("*.py"))
    codes = set(re.findall(r'[._]refuse\(guest, "(\w+)"', source)) | set(re.findall(r'Refused\("(\w+)"', source))

    assert _keys((DOCS / "reference" / "protocol.md").read_text("utf-8"), "code") == codes


def test_the_tests_that_hold_the_promises_of_security_are_there():
    rows = re.findall(r"^\|.*`test_\w+\.py`.*$", (DOCS / "explanation" / "security.md").read_text("utf-8"), re.M)
    promised = [
        (module, name)
        for row in rows
        for module, names in re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", row)
        for name in re.findall(r"`(test_\w+)`", names)
    ]
    missing = [
        name
        for module, name in promised
        if not any(f"def {name}(" in path.read_text("utf-8") for path in (ROOT / "tests").rglob(module))
    ]

    assert len(promised) > 15
    assert missing == []


# -- the protocol's worked example ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    """The hex blocks of the protocol's worked example, by the name in the note before each."""
    text = (DOCS / "reference" / "protocol.md").read_text("utf-8")
    blocks = re.findall(r"<!-- test: bytes (\S+) -->\n```text\n(.*?)```", text, re.S)
    return {
        name: bytes.fromhex("".join(line.partition("  ")[0] for line in body.splitlines())) for name, body in blocks
    }


KEY = b"0123456789abcdef"
NONCES = bytes(range(32)), bytes(range(32, 64))


def _joined(buffers):
    return b"".join(map(bytes, buffers))


def _one_frame(data):
    (frame,) = FrameReader().receive_data(data)
    return frame


def test_the_documented_handshake_is_ours(example):
    client = ClientHandshake(KEY, NONCES[0], Security.SEALED)
    server = ServerHandshake({KEY: {Security.SEALED}}, NONCES[1])
    preamble = client.start()
    answer = server.receive_data(preamble)
    proof = client.receive_data(answer)
    acceptance = server.receive_data(proof)
    client.receive_data(acceptance)

    assert client.done
    assert server.done
    assert example["client-preamble"] == preamble
    assert example["server-preamble"] == answer
    assert example["client-proof"] == proof
    assert example["server-proof"] == acceptance
    assert example["hello-head"] == Seal(client.secret, CLIENT).head(example["hello"])
    assert example["hello-answer-head"] == Seal(server.secret, SERVER).head(example["hello-answer"])


def test_the_documented_frames_are_ours(example):
    assert example["hello"] == _joined(encode_hello({"role": "admin", "command": "ping"}))
    assert example["hello-answer"] == _joined(encode_hello({}))
    assert example["init"] == _joined(encode_payload(FrameType.INIT, dumps(None, out_of_band=False)))
    assert example["ready"] == _joined(encode_payload(FrameType.READY, [b""]))
    assert example["function"] == _joined(encode_payload(FrameType.FUNCTION, dumps(pow, out_of_band=False), seq=7))
    assert example["tasks"] == _joined(encode_tasks(0, [TaskItem(7, dumps(((2, 10), {})))]))
    assert example["results"] == _joined(encode_results(0, [Result(dumps(1024))], 25))
    assert example["recall"] == _joined(encode_frame(FrameType.RECALL, count=3))
    assert example["recalled"] == _joined(encode_frame(FrameType.RECALLED, count=2, seq=41))


def test_the_documented_frames_mean_what_the_page_says(example):
    function = _one_frame(example["function"])
    (task,) = decode_tasks(_one_frame(example["tasks"]))
    busy, (result,) = decode_results(_one_frame(example["results"]))

    assert (function.seq, loads(payload_of(function))) == (7, pow)
    assert (task[0], loads(task[1])) == (7, ((2, 10), {}))
    assert (busy, result[1], loads(result[0])) == (25, False, 1024)


def test_the_documented_bulk_frame_is_ours(example):
    """The page shows its header and body, and tells of the segment."""
    item = TaskItem(7, [b"P" * 100, bytes(65536)])

    assert _joined(encode_tasks(5, [item])).startswith(example["bulk"] + b"P" * 100)

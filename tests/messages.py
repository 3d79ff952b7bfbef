"""Write docs/reference/messages.md: every error and warning by its text, with what to do.

``python tests/messages.py`` writes it; `test_messages.py` fails while it is not what would be written. The texts of
errors are read from the source, when they are raised from the table of docs/reference/errors.md, what a log event
means from docs/reference/logging.md. What to do is said here, where the text itself does not say it.
"""

# ruff: noqa: E501 (texts are not code)

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "farm_executor"
REFERENCE = ROOT / "docs" / "reference"
PAGE = REFERENCE / "messages.md"

HEAD = """\
# Messages

Every error of the package's own classes, and every warning, by its text: search this page for some words of what you see.
`…` stands for what differs from case to case.
[When something goes wrong](../how-to/when-something-goes-wrong.md) begins with symptoms instead; [find out why a task failed](../how-to/debugging-failures.md) is about a task's own exceptions and pickle's errors.

Without a browser, `farm-executor explain "some words"` prints what this page says, and `python program.py 2>&1 | farm-executor explain` what it says of each message in a program's output.

This page is made from the package's source, by `python tests/messages.py`.
"""

# For each class of error, what helps in general; in the order of the page.
ERRORS = {
    "AddressError": "Use one of the [forms of addresses](api.md#addresses).",
    "AuthenticationError": "Have both sides use the same key file: [keys](../how-to/keys.md).",
    "VersionMismatchError": "Install the same version of farm_executor on both sides, for the same minor version "
    "of Python; `mismatches` lists every difference.",
    "RemoteProtocolError": "The other side is not a farm server, or of another version, or something between the two "
    "changes what is sent. Check the port, and take proxies out of the way. If both are of the same version and "
    "nothing is in between, it is a bug: [say so](../how-to/when-something-goes-wrong.md#still-stuck).",
    "LocalProtocolError": "This is a bug: [say so](../how-to/when-something-goes-wrong.md#still-stuck).",
    "WorkerLostError": "[Find out why a task failed](../how-to/debugging-failures.md); "
    "[what happens to a task](../explanation/delivery.md) tells how often it is tried.",
    "TaskExecutionError": "A module or a class is missing on that side: [code and packages on "
    "servers](../how-to/code-on-servers.md).",
    "TaskKilledError": "Somebody has asked for it: [end tasks that run](../how-to/end-tasks-that-run.md).",
    "TaskTimeoutError": "Give it more time, or find out why it takes so long: "
    "[end tasks that run](../how-to/end-tasks-that-run.md).",
    "InvalidTaskError": "Pass a function, or its name as `package.module:function`.",
    "BroadcastError": "`outcomes` has what came of each worker: [call a function on every "
    "worker](../how-to/call-every-worker.md).",
    "SharedMemoryError": "Share less, `close()` what is done with, or raise the server's `--max-shared`: "
    "[share large data](../how-to/share-large-data.md#limits).",
    "FarmFullError": "Wait for some results, or raise `max_pending_bytes`: "
    "[submit more than memory holds](../how-to/swap-process-pool.md#submit-more-than-memory-holds).",
    "NoKernelError": "`make_kernel`, then `use_kernel` or `set_kernel`: [lfarm's names](lfarm.md).",
    "KernelCreationError": "Its `__cause__` says why; check the servers with `farm-executor ping`.",
    "BrokenFarmError": "The farm has ended; its text and its `__cause__` say why. Make another one when the cause is "
    "gone.",
}

# Texts that are put together while the program runs.
PUT_TOGETHER = {
    "AuthenticationError": [
        "the server holds another key than …. Copy the key file from the server's machine, mode 600, and name it "
        "with key_file= or --key-file",
    ],
    "VersionMismatchError": ["the server … runs other versions: python …"],
    "WorkerLostError": [
        "the worker exited with code … while it received or ran this task, in each of … attempts",
        "the worker was killed by signal … while it received or ran this task",
        "the worker was killed by signal 9 (SIGKILL, perhaps by the system for want of memory)",
        "the worker was killed because it held … of memory (more than max_memory_per_worker=…)",
        "the worker had been stopped, as by SIGSTOP, for … s, and was killed",
        "the worker could not be reached any more",
        "this task may have begun there, and was to be attempted only once",
    ],
    "TaskKilledError": ["the task was killed while it ran"],
    "TaskTimeoutError": ["the task was killed because it ran for more than its timeout of … s"],
    "BrokenFarmError": ["the initializer failed on server …, worker pid …: …"],
    "NoKernelError": ["there is no current kernel"],
}

# Those of Python's own classes that are seen most, by their text: the class, and what to do.
OF_PYTHON = {
    "…, of type …, cannot be sent to a worker…": (
        "TypeError",
        "The function or that argument cannot be pickled, or something in it; create it in the task, or in an "
        "[initializer](../how-to/initializer-and-globals.md). The class of the error is pickle's own.",
    ),
    "cannot pickle … object, which belongs to one process; …": (
        "TypeError",
        "Locks, files, connections, generators and their like belong to the process that has made them; the text "
        "says what to do instead.",
    ),
    "… objects should only be shared between processes through inheritance, and a farm's workers do not inherit; …": (
        "RuntimeError",
        "Locks, queues and events of `multiprocessing` cannot be passed: [what to look out "
        "for](../how-to/swap-process-pool.md#what-to-look-out-for).",
    ),
    "no worker could be had within … s from: …": (
        "TimeoutError",
        "`connect_timeout` has passed, and no server has answered; the text has each with its error: [nothing "
        "happens](../how-to/when-something-goes-wrong.md#nothing-happens).",
    ),
    "not every server has answered within … s: …": (
        "TimeoutError",
        "`connect` or `make_kernel` had a timeout, and those servers have not answered; the others can be used.",
    ),
    "after … s … tasks run and … wait; kill_workers() would end them": (
        "TimeoutError",
        "`shutdown(timeout=...)` has not waited for what runs; it goes on.",
    ),
    "cannot schedule new futures after shutdown": (
        "RuntimeError",
        "The executor has ended, often with its `with` block: submit before that, or make another one.",
    ),
    "cannot schedule new futures after interpreter shutdown": (
        "RuntimeError",
        "The program is ending: submit before its last line, not in a function that runs at its exit.",
    ),
    "module … uses a farm while it is imported. Workers import it, too": (
        "RuntimeError",
        "Move that use into a function, or below a guard: [what to look out "
        "for](../how-to/swap-process-pool.md#what-to-look-out-for).",
    ),
    "this would wait for ever: a callback of a future, or a signal handler": (
        "RuntimeError",
        "Callbacks run in the farm's own thread, which has to be free for results to come.",
    ),
    "cannot listen on …: …": (
        "OSError",
        "The port is in use, or the address is not this machine's; port 0 takes a free one.",
    ),
}

# What to do about one text, where neither it nor its class says so.
ABOUT_ONE = {
    "the worker exited with code …": "Something in the task called `os._exit` or ended the process; `stderr` of the "
    "error has the last lines that it wrote.",
    "the worker was killed by signal … while": "SIGSEGV and SIGABRT come from extension modules: the error's "
    "`stderr` has the stack.",
    "the worker was killed by signal 9": "Give each worker less to hold, have fewer workers, or [bound their "
    "memory](../how-to/limit-memory.md), so that one ends before the system chooses.",
    "the worker was killed because it held": "Raise `max_memory_per_worker`, or have tasks hold less: "
    "[limit memory](../how-to/limit-memory.md).",
    "the worker could not be reached": "The machine or the network was away for longer than `resume_timeout`: "
    "[connections that break](../explanation/delivery.md#connections-that-break).",
    "this task may have begun": "`max_attempts=1` forbids a second attempt; find out from its effects whether it ran.",
    "the initializer failed": "The traceback that follows is the initializer's: [initializer and "
    "globals](../how-to/initializer-and-globals.md).",
    "this future belongs to the process": "After `os.fork` make an executor of the child's own.",
    "cannot start the embedded farm": "The system has no process, file or memory left; see `ulimit -u` and `-n`.",
    "a lost worker cannot be replaced": "The system has no process or file left; see `ulimit -u` and `-n`.",
    "the embedded farm has no worker": "The system has no process or file left; see `ulimit -u` and `-n`.",
}

# What to do about events of the log.
EVENTS = {
    "farm_executor: still dialling": "[Nothing happens](../how-to/when-something-goes-wrong.md#nothing-happens) goes "
    "through it: is the server up, the port open, the key the same?",
    "farm_executor: server set aside": "Give that server the version or the key of the program, or remove it.",
    "farm_executor: waiting for servers": "Start them; `connect_timeout` sets an end.",
    "farm_executor: waiting for more servers": "The cluster's reason is in the line; ask for fewer or for less time.",
    "farm_executor: no servers": "The error is in the line: the port is in use, or the cluster refuses.",
    "connection lost": "Nothing, if it comes back; if it happens often, look at the network.",
    "session lost": "Find out whether the server or the network went away; its tasks run elsewhere.",
    "worker lost": "[Find out why a task failed](../how-to/debugging-failures.md).",
    "gave up": "Keep the servers up until the program has ended, or call `shutdown` before its end.",
    "name not found": "Correct the spelling, or look at the machine's resolver.",
    "packages differ": "Install the program's versions there: [packages](../how-to/code-on-servers.md#packages).",
    "too many modules": "Name those that are wanted, with `ship=`: [say what "
    "travels](../how-to/code-on-servers.md#say-what-travels).",
    "module has a name of Python's": "Rename it.",
    "module sent in part": "Name the module, with `ship=`, or put the data where servers can read them.",
    "module changed since it was sent": "Make a new executor: [edit and "
    "run](../how-to/code-on-servers.md#edit-and-run-as-in-a-notebook).",
    "output not taken": "Look at the traceback: your callable has raised, or standard error is closed.",
    "log records lost": 'Have tasks log less, or handlers be quicker; `logs="server"` leaves records there.',
    "output lost": "Have tasks print less, or read standard error faster.",
    "no dashboard": "Choose another port, or install `farm_executor[dashboard]`.",
    "too few descriptors": "Raise the limit: `ulimit -n`, or `LimitNOFILE=` for a service.",
    "accept failed": "The server has no descriptor left, or somebody makes many connections: `ulimit -n`, a firewall.",
    "dismissed": "If it is your client, copy the server's key to it; if it is not, somebody has tried to get in.",
    "worker frozen": "Something has stopped the process, such as a debugger or `kill -STOP`.",
    "worker ends": "Read `why`; a wrong key is that of a client with another one.",
    "cannot start a worker": "The system has no process or memory left: `ulimit -u`, or fewer workers.",
    "certificate expired": "Make a new key file with `farm-executor keygen`: [change a "
    "key](../how-to/keys.md#change-a-key).",
    "job ended": "Ask for more `time=`, if it was its wall time.",
    "still no client waits": "Start the program, or correct the address of `--back`.",
    "server offers too many workers": "Give `max_workers`, if you want more than 4,096.",
    "progress cannot be shown any more": "Look at the traceback: your callable has raised.",
    "modules of clients cannot be taken": "Give the server a temporary folder that it can write to: `TMPDIR`.",
    "folders of modules do not answer": "A network file system hangs; results are not affected.",
}
OUR_BUG = "This is a bug: [say so](../how-to/when-something-goes-wrong.md#still-stuck), with the traceback."


def text_of(node: ast.expr | None) -> str:
    """The text that an expression gives, with an ellipsis for what is not written there."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "…"


def texts_in_source() -> Iterator[tuple[str, str]]:
    """The class and the text of each error that the package makes."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                text = re.sub("…+", "…", text_of(node.args[0]))
                if node.func.id in ERRORS and len(re.findall(r"[a-z]{2,}", text)) > 2:
                    yield node.func.id, text


def rows_of(page: Path) -> list[list[str]]:
    """The cells of all rows of a page's tables."""
    found = re.findall(r"^\|(.*)\|$", page.read_text("utf-8"), re.M)
    return [[cell.strip() for cell in row.split("|")] for row in found]


def anchor(text: str) -> str:
    """What a link to a text ends with: its first words."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())[:9])


def about(text: str) -> str:
    """What to do about one text, as the end of a line."""
    return next((f"<br>{advice}" for start, advice in ABOUT_ONE.items() if text.startswith(start)), "")


def written() -> str:
    """The whole page."""
    when = {row[0].strip("`"): row[2] for row in rows_of(REFERENCE / "errors.md") if len(row) == 3}
    texts: dict[str, set[str]] = {kind: set(PUT_TOGETHER.get(kind, ())) for kind in ERRORS}
    for kind, text in texts_in_source():
        texts[kind].add(text)
    used: set[str] = set()

    def entry(text: str, advice: str) -> str:
        name = anchor(text)
        while name in used:
            name += "-2"
        used.add(name)
        shown = f"`` {text} ``" if "`" in text else f"`{text}`"
        return f"({name})=\n{shown}{advice}\n\n"

    page = HEAD
    for kind, general in ERRORS.items():
        reason = when[kind].replace("](#", "](errors.md#")
        page += f"\n## {kind}\n\n{reason[:1].upper()}{reason[1:]}.\n\n**What to do.** {general}\n\n"
        page += "".join(entry(text, about(text)) for text in sorted(texts[kind], key=str.lower))
    page += "\n## Errors of Python's own classes\n\n"
    page += "Those that are seen most; others name the argument that is wrong, and say what it should be.\n\n"
    page += "".join(entry(text, f" ({kind})<br>{advice}") for text, (kind, advice) in OF_PYTHON.items())
    page += "\n## Warnings and errors in the log\n\n"
    page += (
        "From the loggers below `farm_executor`; [log events](logging.md) has all of them, with their fields.\n\n"
    )
    levels = ("WARNING", "ERROR", "CRITICAL")
    for row in sorted((row for row in rows_of(REFERENCE / "logging.md") if row[1] in levels), key=str):
        event, level, meaning = row[0].strip("`"), row[1], row[3]
        advice = EVENTS.get(event, OUR_BUG if level != "WARNING" else "")
        sentence = f"{meaning[:1].upper()}{meaning[1:]}."
        page += entry(event, f" ({level})<br>{sentence}" + (f"<br>**What to do.** {advice}" if advice else ""))
    return re.sub(r"\n{3,}", "\n\n", page).rstrip("\n").replace("<br>", "\\\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(written(), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")

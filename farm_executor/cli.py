"""The command line: ``farm-executor serve | keygen | launch | ping | status | top | end | doctor | ...``.

This module owns the words and the exit codes; what is done is done elsewhere.

Exit codes: 0 for success, 1 when the answer is no (nobody answers, a task failed), 2 when the command line or the
set-up is wrong (an address, a key, a port in use), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import logging
import os
import platform
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from farm_executor import admin, demo, doctor, explain
from farm_executor._version import __version__
from farm_executor.core.environment import variable
from farm_executor.errors import AddressError, AuthenticationError, FarmError
from farm_executor.extras import MissingExtraError
from farm_executor.launch import command as launch
from farm_executor.launch.local import check_exposure, default_slots, is_encrypted
from farm_executor.wire.address import DEFAULT_PORT, Address, parse_address
from farm_executor.wire.advice import explained
from farm_executor.wire.security import (
    KEY_FILE_VARIABLE,
    automatic_secret,
    default_key_file,
    is_readable_key,
    monitor_content,
    read_key,
    replace_key,
    server_keys,
    write_key,
)
from farm_executor.wire.sockets import bound_address, listen_everywhere, resolve

__all__ = ["main"]

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
YES, NO, WRONG, INTERRUPTED = 0, 1, 2, 130
_WRONG = (AddressError, AuthenticationError, OSError, ValueError, MissingExtraError)

_KEYS = f"""\
The key: client and server prove to each other that they hold the same one. For one user on one machine it is found
by itself (~/.config/farm_executor/key, made on first use). Elsewhere copy that file, mode 600, and if it is at
another place name it with --key-file or in the environment variable {KEY_FILE_VARIABLE}.
With a key file that `farm-executor keygen` has made, all that travels over TCP is encrypted (TLS 1.3)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser, commands = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        import argcomplete  # of the extra `completion`

        argcomplete.autocomplete(parser)
    words = sys.argv[1:] if arguments is None else arguments
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in commands:
        close = difflib.get_close_matches(command, commands, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(commands)}"
        parser.error(f"there is no command {command!r}: {hint}")
    options = parser.parse_args(words)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names from elsewhere may have what a terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    _log([logging.WARNING, logging.INFO, logging.DEBUG][min(options.verbose, 2)], options.run is _serve)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        return NO
    except (FarmError, OSError, ValueError, MissingExtraError) as error:
        print(f"farm-executor: {error}", file=sys.stderr)
        return WRONG if isinstance(error, _WRONG) else NO


def _parser() -> tuple[argparse.ArgumentParser, Sequence[str]]:
    """The parser, and the commands that it knows."""
    parser = argparse.ArgumentParser(
        prog="farm-executor",
        description="Run and manage the servers of a farm, and see one at work.",
        epilog="`farm-executor COMMAND --help` describes each.",
    )
    parser.add_argument("--version", action="version", version=f"farm-executor {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = _command(commands, "serve", _serve, "Start a server; it runs until it is told to end.", epilog=_SERVE)
    serve.add_argument("address", nargs="?", help=f"HOST:PORT (default: {DEFAULT_ADDRESS})")
    serve.add_argument(
        "--back",
        metavar="HOST:PORT",
        help="dial a client that waits there, FarmExecutor('back://HOST:PORT'), and listen nowhere",
    )
    serve.add_argument("--workers", type=int, help="how many workers each client may have (default: one per CPU)")
    serve.add_argument("--name", default="", help="a label, shown by `status`")
    serve.add_argument("--certificate", metavar="FILE", help="a certificate of your own for TLS, PEM")
    serve.add_argument("--private-key", metavar="FILE", help="its private key, PEM (default: in the same file)")
    serve.add_argument("--client-ca", metavar="FILE", help="who signs the certificates that clients must have, PEM")
    serve.add_argument(
        "--insecure", action="store_true", help="listen, unencrypted, on an address that others can reach"
    )
    serve.add_argument(
        "--max-shared", type=int, metavar="BYTES", help="of shared objects, in all (default: half of the memory)"
    )
    serve.add_argument("--no-monitors", action="store_true", help="let nobody in with a monitor's key")
    serve.add_argument(
        "--path",
        metavar="DIR",
        action="append",
        default=[],
        help="also look for tasks' modules there; may be given several times",
    )
    serve.add_argument(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an environment variable of each worker; {slot} in it is the worker's number from 0 on; may be given "
        "several times",
    )
    text = "Start servers on other machines, over ssh or on a cluster; they run until this command ends."
    launch.add_arguments(_command(commands, "launch", launch.main, text, epilog=launch.EPILOG))
    keygen = commands.add_parser("keygen", **_texts("Make a key file for TLS.", _KEYGEN))
    keygen.set_defaults(run=_keygen, verbose=0)
    keygen.add_argument("file", nargs="?", help="the file to make (default: the user's own key file)")
    keygen.add_argument(
        "--monitor", action="store_true", help="print a key for those who may only look, made from that of the file"
    )
    for name, run, text in (
        ("ping", _ping, "Ask whether servers answer: exit code 0 if all do, 1 if not."),
        ("status", _status, "Show the clients of servers, and their workers."),
        ("end", _end, "End servers: they take no new clients; those connected are served to their end."),
    ):
        command = _command(commands, name, run, text, epilog=f"{_EXAMPLES[name]}\n\n{_KEYS}")
        several = f"one or more of HOST:PORT (default: {DEFAULT_ADDRESS})"
        command.add_argument("address", nargs="*", default=[DEFAULT_ADDRESS], help=several)
        command.add_argument("--timeout", type=float, default=3.0, help="seconds to wait (default: %(default)s)")
        command.add_argument("--json", action="store_true", help="print a line of JSON for each server")
        if name == "status":
            command.add_argument("--metrics", action="store_true", help="print what Prometheus scrapes")
    text = "Compare the packages that are installed here with those of servers: exit code 0 if all are alike."
    doctor.add_arguments(
        _command(commands, "doctor", doctor.main, text, epilog=f"{_EXAMPLES['doctor']}\n\n{_KEYS}")
    )
    watch = _command(commands, "top", _top, _TOP_TEXT, epilog=f"{_EXAMPLES['top']}\n\n{_KEYS}")
    watch.add_argument("address", nargs="*", default=[DEFAULT_ADDRESS], help=several)
    watch.add_argument(
        "-i",
        "--interval",
        type=float,
        default=1.0,
        help="seconds between two looks, 0.5 to 60 (default: %(default)s)",
    )
    watch.add_argument("--timeout", type=float, default=3.0, help="seconds to wait (default: %(default)s)")
    watch.add_argument(
        "--once", action="store_true", help="print one table of what happens in an interval, and end"
    )
    watch.add_argument("--json", action="store_true", help="print a line of JSON for each server and interval")
    page = _command(commands, "dashboard", _dashboard, _PAGE_TEXT, epilog=f"{_EXAMPLES['dashboard']}\n\n{_KEYS}")
    page.add_argument("address", nargs="*", default=[DEFAULT_ADDRESS], help=several)
    page.add_argument("--listen", default="127.0.0.1:8787", help="HOST:PORT of the page (default: %(default)s)")
    page.add_argument("--host", action="append", default=[], help="another name by which it may be asked")
    page.add_argument(
        "--insecure", action="store_true", help="serve it, unencrypted, on an address that others can reach"
    )
    page.add_argument("--timeout", type=float, default=3.0, help="seconds to wait (default: %(default)s)")
    text = "Say what an error or a warning means, and what to do about it."
    explaining = commands.add_parser("explain", **_texts(text, explain.EXAMPLES))
    explaining.set_defaults(run=explain.main, verbose=0)
    explain.add_arguments(explaining)
    text = "Analyse the whole standard library on a farm."
    demo.add_arguments(_command(commands, "demo", demo.main, text, epilog=f"{_EXAMPLES['demo']}\n\n{_KEYS}"))
    return parser, list(commands.choices)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, epilog: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, **_texts(text, epilog))
    parser.set_defaults(run=run)
    if name == "serve":
        several = "a file that holds a key; may be given several times, and each key admits"
        parser.add_argument("--key-file", metavar="FILE", action="append", help=several)
    else:
        parser.add_argument("--key-file", metavar="FILE", help="the file that holds the key")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log more; twice for everything")
    return parser


def _texts(text: str, epilog: str) -> dict[str, Any]:
    return {
        "help": text,
        "description": text,
        "epilog": epilog,
        "formatter_class": _Formatter,
    }


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs to the terminal's width, and leaves indented ones, which are examples, alone."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if part.startswith("    ") else fill(part, width, indent) for part in paragraphs)


_TOP_TEXT = "Show how servers do, as it changes: their workers, clients, queues and deaths. It only looks."
_PAGE_TEXT = "Serve a page that shows how servers do, for browsers, until it is told to end. It only looks."
_EXAMPLES = {
    "dashboard": """\
    farm-executor dashboard hostA hostB:22222
    farm-executor dashboard --key-file monitor.key 'farm://nodes?all'""",
    "ping": """\
    farm-executor ping && echo up
    farm-executor ping 127.0.0.1:11111 --timeout 60   # as soon as it answers""",
    "status": """\
    farm-executor status
    farm-executor status hostA hostB:22222
    farm-executor status 127.0.0.1:11111 --json | python -m json.tool""",
    "top": """\
    farm-executor top hostA hostB:22222
    farm-executor top --once --key-file monitor.key 'farm://nodes?all'""",
    "end": """\
    farm-executor end 127.0.0.1:11111""",
    "doctor": """\
    farm-executor doctor 127.0.0.1:11111
    farm-executor doctor hostA hostB 'ssh://me@hostC?python=~/venv/bin/python'""",
    "demo": """\
    farm-executor demo                                # on a farm of this machine
    farm-executor demo --servers 127.0.0.1:11111 127.0.0.1:22222""",
}

_SERVE = f"""\
SIGTERM or Ctrl-C: take no new clients, let those connected take their work elsewhere, and end when what runs has
ended. Once more: end at once. SIGHUP, as when the terminal is closed, does the former only.

{_KEYS}

Tasks can import what is installed for this Python, and the modules in the current folder and in those of --path.

Anyone who holds the key can run any code as the user who started the server. Where other machines can
connect, it needs encryption: a key file for TLS, or a certificate of your own. Or let it listen on a loopback
address and let clients come through an ssh tunnel; or use --insecure in a network that you trust.

    farm-executor serve                                   # for this machine alone
    farm-executor serve 0.0.0.0:11111 --key-file lab.key  # made by `farm-executor keygen lab.key`"""

_KEYGEN = f"""\
It holds a certificate, its private key and a secret, for servers and clients alike. Copy it, mode 600, to every
machine of the farm, as ~/.config/farm_executor/key or to another place: then name it with --key-file or key_file=,
or in the environment variable {KEY_FILE_VARIABLE}. A file that exists is not written over.
Anyone who holds it can run any code as the users who started the servers.
To make one needs the package cryptography: python -m pip install cryptography.

With --monitor nothing is made: a key is printed for those who may look at the servers that have the key in FILE,
with `status` and `top`, and do nothing else.

    farm-executor keygen lab.key
    farm-executor keygen --monitor lab.key > monitor.key"""


def _log(level: int, serving: bool) -> None:
    """Have our own log on standard error; the root logger, which workers inherit, is for tasks to configure."""
    logger = logging.getLogger("farm_executor")
    if not logger.hasHandlers():
        logger.setLevel(level)
        handler: logging.Handler = logging.StreamHandler()
        if serving:
            from farm_executor.server.log import DroppingHandler  # late: servers need a system with fork

            handler = DroppingHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


def _serve(options: argparse.Namespace) -> int:
    from farm_executor.server.manager import ServiceManager  # late: they need a system with fork
    from farm_executor.server.output import open_missing_streams, say
    from farm_executor.server.supervisor import serve

    open_missing_streams()
    manager = ServiceManager()
    if options.back and options.address:
        raise ValueError("--back dials, and an address is to listen at: give one of them")
    address = parse_address(options.back or options.address or DEFAULT_ADDRESS, any_port=not options.back)
    if options.back and (address.path or address.every):
        raise AddressError(f"{options.back!r}: --back takes HOST:PORT")
    files = (options.key_file, options.certificate, options.private_key, options.client_ca)
    doing = "dial" if options.back else "listen on"
    check_exposure(address, options.insecure, server_keys(None, *files, make=False), doing)
    if options.workers is not None and options.workers < 1:
        raise ValueError("--workers must be at least 1")
    env = [variable(text) for text in options.env]
    slots = options.workers or default_slots()
    listeners: list[Any] = [] if options.back else listen_everywhere(address)
    try:
        keys = server_keys(None, *files)  # now that nothing is in the way of one that is to be made
    except BaseException:
        for listener in listeners:
            listener.close()
        if address.path:
            os.unlink(address.path)
        raise
    if options.back:
        from farm_executor.server.dialler import Dialler

        listeners.append(Dialler([address], keys[0], options.name or f"{platform.node()}:{os.getpid()}"))
    else:
        address = bound_address(listeners[0], address)
    where = f"dialling {address}" if options.back else f"serving on {address}"

    def greet() -> None:
        encrypted = "" if address.path or not is_encrypted(keys) else ", TLS"
        say(f"{where}, {_count(slots, 'worker')} for each client{encrypted}")
        manager.tell("READY=1", f"STATUS={where}")

    serve(
        listeners,
        on_ready=greet,
        on_drain=lambda: manager.tell("STOPPING=1", "STATUS=waiting for what runs"),
        address=f"back://{address}" if options.back else str(address),
        keys=keys,
        slots=slots,
        name=options.name,
        module_path=[os.path.abspath(folder) for folder in options.path] + _current_folder(),
        monitors=not options.no_monitors,
        max_shared=options.max_shared,
        env=env,
    )
    if address.path:
        os.unlink(address.path)
    return YES


def _current_folder() -> list[str]:
    """For tasks' imports, as `python -m` has it."""
    return [] if getattr(sys.flags, "safe_path", False) else [os.getcwd()]


def _keygen(options: argparse.Namespace) -> int:
    from farm_executor.wire.keygen import make_key_file_content

    path = Path(options.file) if options.file else default_key_file()
    if options.monitor:
        _print_secret(monitor_content(path))
        return YES
    if path == default_key_file() and (secret := automatic_secret(path)):
        replace_key(path, make_key_file_content(secret))
        print(
            f"upgraded {path}: its secret is the same, and there is a certificate now. Copy it, mode 600, to every "
            "server and client of the farm, and start its servers again"
        )
        return YES
    if not options.file and is_readable_key(path) and read_key(path).tls:
        print(f"{path} has a certificate already: copy it, mode 600, to every server and client of the farm")
        return YES
    content = make_key_file_content()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        write_key(path, content)
    except FileExistsError:
        raise FileExistsError(
            f"{path} exists, and a key file is not written over: name another, or move it away first"
        ) from None
    print(f"made {path}: copy it, mode 600, to every server and client of the farm")
    return YES


def _print_secret(content: bytes) -> None:
    """Print a key; a file that the shell has made for it becomes the user's alone first."""
    sys.stdout.flush()
    descriptor = sys.stdout.fileno()
    if hasattr(os, "fchmod") and stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content + b"\n")


def _ping(options: argparse.Namespace) -> int:
    def ping(address: Address) -> dict[str, Any]:
        admin.ask_until_answered(address, "ping", options.timeout, key_file=options.key_file)
        return {"address": str(address), "alive": True}

    return _ask_each(options, ping, lambda address, answer: f"{address} answers", {"alive": False})


def _status(options: argparse.Namespace) -> int:
    if options.metrics:
        return _metrics(options)

    def status(address: Address) -> dict[str, Any]:
        data = admin.ask(address, "status", options.timeout, key_file=options.key_file)
        return {**data, "address": str(address), "listens": data["address"]}

    return _ask_each(options, status, _describe_status, {})


def _metrics(options: argparse.Namespace) -> int:
    from farm_executor.observe.exposition import ServerCollector, exposition  # late: it needs an extra
    from farm_executor.observe.watching import Watching

    watching = Watching(_machines_of(options), options.key_file, options.timeout)
    try:
        watching.tick(options.timeout)
        servers = list(watching.servers.values())
        sys.stdout.write(exposition(ServerCollector(lambda: servers)).decode())
        return YES if all(server.state in ("open", "draining") for server in servers) else NO
    finally:
        watching.close()


def _top(options: argparse.Namespace) -> int:
    from farm_executor.observe.top import top  # late: only this command needs it

    answered = top(
        _machines_of(options),
        key_file=options.key_file,
        interval=options.interval,
        timeout=options.timeout,
        once=options.once,
        as_json=options.json,
    )
    return YES if answered else NO


def _dashboard(options: argparse.Namespace) -> int:
    from farm_executor.observe.exposition import ServerCollector, exposition  # late: they need extras
    from farm_executor.observe.overview import Overview
    from farm_executor.observe.serving import Served
    from farm_executor.observe.watching import Watching

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    watching = Watching(_machines_of(options), options.key_file, options.timeout)
    collector = ServerCollector(lambda: list(watching.servers.values()))
    page = Served(
        Overview(watching),
        lambda: exposition(collector),
        options.listen,
        exposed=options.insecure,
        hosts=tuple(options.host),
    )
    print(page.url, flush=True)
    try:
        page.wait()
    finally:
        page.close()
        watching.close()
    return YES


def _describe_status(address: Address, data: dict[str, Any]) -> str:
    label = f" {data['name']!r}" if data["name"] else ""
    state = "takes no new clients" if data["draining"] else "open"
    slots = _count(data["slots"], "slot")
    lines = [
        f"{address}{label}: {state}, pid {data['pid']}, up {data['seconds']:.0f} s, {slots}",
        "  " + ", ".join(f"{name} {version}" for name, version in data["versions"].items()),
    ]
    columns = data["workers"]["columns"]
    workers = [dict(zip(columns, row, strict=False)) for row in data["workers"]["rows"]]
    for session in data["sessions"]:
        lines.append(f"  client {_named(session)}")
        for worker in workers:
            if worker.get("session") == session["id"]:
                told = f"worker pid {worker.get('pid')}, {worker.get('state')}, up {worker.get('up')} s"
                lines.append(f"    slot {worker.get('slot')}: {told}")
    if data["sessions_left_out"]:
        lines.append(f"  and {data['sessions_left_out']} more")
    elif not data["sessions"]:
        lines.append("  no clients")
    return "\n".join(lines)


def _named(session: dict[str, Any]) -> str:
    """A client by all of its names."""
    label = f"{session['label']!r} " if session["label"] else ""
    whose = f"{session['program']} of {session['user']}@{session['host']}, " if session["program"] else ""
    return f"{label}{whose}{session['client']}"


def _end(options: argparse.Namespace) -> int:
    def end(address: Address) -> dict[str, Any]:
        admin.ask(address, "end", options.timeout, key_file=options.key_file)
        return {"address": str(address), "ended": True}

    return _ask_each(options, end, lambda address, answer: f"{address}: shutting down", {})


def _ask_each(
    options: argparse.Namespace,
    ask: Callable[[Address], dict[str, Any]],
    describe: Callable[[Address, dict[str, Any]], str],
    failed: dict[str, Any],
) -> int:
    """Ask each of the servers, one after the other, and print what comes of it; return the worst exit code.

    Args:
        options: The command line's.
        ask: Asks one server; the answer is what is printed as JSON.
        describe: Says the same for people.
        failed: What JSON says of a server that does not answer, beside its address and the error.
    """
    code = YES
    for address in _machines_of(options):
        try:
            answer = ask(address)
        except (OSError, FarmError) as error:
            wrong = isinstance(error, AuthenticationError)
            code = max(code, WRONG if wrong else NO)
            if options.json:
                print(json.dumps({"address": str(address), **failed, "error": explained(error, address)}))
            elif wrong:
                print(f"farm-executor: {error}", file=sys.stderr)
            else:
                print(f"{address} does not answer: {explained(error, address)}", file=sys.stderr)
        else:
            print(json.dumps(answer) if options.json else describe(address, answer), flush=True)
    return code


def _machines(text: str) -> list[Address]:
    """The server that is meant, or with ?all one for each machine that the name stands for."""
    address = parse_address(text)
    return resolve(address) if address.every else [address]


def _machines_of(options: argparse.Namespace) -> list[Address]:
    return [machine for text in options.address for machine in _machines(text)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

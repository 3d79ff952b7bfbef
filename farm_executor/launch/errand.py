"""What a job that is to become a server is sent through its standard input, whoever has granted it.

This module owns the job's first lines, which must run where farm_executor may be missing, what is sent along then,
what is made of a failure that a job reports, and the key that is made for its server. It must not know who grants
the job, nor what its server does, which is in `granted`.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import os
import shutil
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farm_executor._version import __version__
from farm_executor.core.messages import MAX_MESSAGE
from farm_executor.core.text import one_line
from farm_executor.errors import AuthenticationError, BrokenFarmError, FarmError, VersionMismatchError
from farm_executor.launch.place import private_directory
from farm_executor.wire.security import Key, read_key, write_key

__all__ = [
    "COMMAND",
    "LISTEN",
    "PYTHON",
    "check_keys",
    "errand",
    "explained",
    "fresh_key",
    "is_sent",
    "read_content",
    "sent",
]

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SENT = ("farm_executor", "cloudpickle", "tblib")  # pure Python, all of it

LISTEN = "0.0.0.0"  # any of this machine's addresses may be the one that leads here from the jobs

# This goes on the command line: no secrets. Nothing is imported from the current directory.
COMMAND = (
    "import sys; sys.path[:] = filter(None, sys.path); import json; exec(json.loads(sys.stdin.buffer.readline()))"
)
_BOOT = """\
config = json.loads(sys.stdin.buffer.readline())
import os
sent = config.pop("sent", "")
asks = config.pop("asks", False)
def take(sent):
    import base64, importlib.util, zlib
    texts = json.loads(zlib.decompress(base64.b64decode(sent)))
    class Sent:
        def find_spec(self, name, path=None, target=None):
            if name in texts:
                spec = importlib.util.spec_from_loader(name, self, is_package=texts[name][0])
                spec.origin, spec.has_location = "<sent " + name + ">", True
                return spec
        def create_module(self, spec):
            return None
        def exec_module(self, module):
            exec(compile(texts[module.__name__][1], module.__spec__.origin, "exec"), module.__dict__)
        def get_source(self, name):
            return texts[name][1]
    sys.meta_path.append(Sent())
config["host"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or config["host"]
node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
config["name"] = config["name"] or node + ":" + (os.environ.get("SLURM_JOB_ID") or str(os.getpid()))
while True:
    if sent:
        take(sent)
    try:
        import importlib.util
        for name in ("cloudpickle", "tblib"):  # which are not imported before the first task
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError("No module named " + repr(name), name=name)
        from farm_executor.launch.granted import run_granted
        break
    except Exception as error:
        words = {"error": type(error).__name__ + ": " + str(error)}
        if isinstance(error, ImportError):
            words["missing"] = str(error.name)
    try:
        from farm_executor._version import __version__
        words["version"] = __version__
    except Exception:
        pass
    words["python"] = "%d.%d" % sys.version_info[:2]
    words["asks"] = asks and not sent and "missing" in words
    print(config["mark"] + json.dumps(words), flush=True)
    sent = words["asks"] and sys.stdin.buffer.readline()
    if not sent:
        os._exit(1)
run_granted(config)
os._exit(0)
"""


def errand(**config: Any) -> bytes:
    """Return what goes down a job's standard input.

    Args:
        config: See `granted.run_granted`; and ``sent``, what `sent` returns, or ``asks``, whether a job that lacks
            it may wait for it as one more line of its standard input.
    """
    return b"".join(json.dumps(line).encode() + b"\n" for line in (_BOOT, config))


@functools.cache
def sent() -> str:
    """Return what an errand may carry for an interpreter that lacks farm_executor.

    It holds the text of every module of farm_executor and of what that needs, by name, and whether it is a package.
    Nothing is written to a disk there, and so nothing is left.

    Raises:
        OSError: It cannot be read here.
    """
    texts: dict[str, tuple[bool, str]] = {}
    for package in SENT:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for place in spec.submodule_search_locations or ():
            for path in sorted(Path(place).rglob("*.py")):
                parts = (package, *path.relative_to(place).with_suffix("").parts)
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                texts[name] = parts[-1] == "__init__", path.read_text(encoding="utf-8")
    return base64.b64encode(zlib.compress(json.dumps(texts).encode())).decode()


def is_sent(word: Mapping[str, Any]) -> bool:
    """Return whether a job has reported that it lacks what `sent` holds."""
    return word.get("missing") in SENT and word.get("version", __version__) == __version__


def explained(who: str, python: str, word: Mapping[str, Any]) -> FarmError:
    """Return the error for a failure that a job has reported."""
    error = one_line(str(word.get("error")), MAX_MESSAGE)
    begin = f"cannot start {who}"
    if "missing" not in word:
        return BrokenFarmError(f"{begin}: {error}")
    missing, there = one_line(str(word["missing"]), MAX_MESSAGE), one_line(str(word.get("python", "")), MAX_MESSAGE)
    has = one_line(str(word.get("version", "")), MAX_MESSAGE)
    if (has and has != __version__) or (there and there != PYTHON):
        mismatches = {"python": (PYTHON, there), "farm_executor": (__version__, has or "none")}
        return VersionMismatchError(
            f"{begin}: {python or 'the interpreter'} there is Python {there} with "
            f"{f'farm_executor {has}' if has else 'no farm_executor'}, and this program is Python {PYTHON} with "
            f"farm_executor {__version__} ({error}); run both with the same minor version of Python, and install "
            "this version of farm_executor there",
            {name: pair for name, pair in mismatches.items() if pair[0] != pair[1]},
        )
    return BrokenFarmError(
        f"{begin}: {python or 'the Python'} there lacks {missing} ({error}); install farm_executor there, for the "
        "same minor version of Python as here"
    )


def check_keys() -> None:
    """Check, without taking time, that keys can be made here.

    Raises:
        BrokenFarmError: What makes them is not installed.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise BrokenFarmError(
            "servers on a cluster are reached over its network, where everything is encrypted; to make the key for "
            "that needs the package cryptography: python -m pip install 'farm_executor[tls]'"
        )


def fresh_key() -> str:
    """Return a new key with a certificate, as the content of its file.

    Raises:
        BrokenFarmError: None can be made.
    """
    from farm_executor.wire import keygen

    try:
        return keygen.make_key_file_content().decode()
    except AuthenticationError as error:
        raise BrokenFarmError(f"no key can be made for servers on a cluster: {error}") from error


def read_content(content: str) -> Key:
    """Read a key from the content of its file: certificates are read from files only.

    Raises:
        BrokenFarmError: There is no place for a file.
    """
    try:
        folder = private_directory()
        try:
            path = os.path.join(folder, "key")
            write_key(path, content.encode())
            return read_key(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise BrokenFarmError(f"no place for a key file: {error}") from error

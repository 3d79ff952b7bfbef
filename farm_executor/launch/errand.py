"""What a job that is to become a server is sent through its standard input, whoever has granted it.

This module owns the job's first lines, which must run where farm_executor may be missing, and the key that is made
for its server. It must not know who grants the job, nor what its server does, which is in `granted`.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from farm_executor.core.messages import MAX_MESSAGE
from farm_executor.core.text import one_line
from farm_executor.errors import AuthenticationError, BrokenFarmError
from farm_executor.launch.place import private_directory
from farm_executor.wire.security import Key, read_key, write_key

__all__ = ["COMMAND", "LISTEN", "errand", "explained", "fresh_key", "read_content"]

LISTEN = "0.0.0.0"  # any of this machine's addresses may be the one that leads here from the jobs

# This goes on the command line: no secrets. Nothing is imported from the current directory.
COMMAND = (
    "import sys; sys.path[:] = filter(None, sys.path); import json; exec(json.loads(sys.stdin.buffer.readline()))"
)
_BOOT = """\
config = json.loads(sys.stdin.buffer.readline())
import os
config["host"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or config["host"]
node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
config["name"] = config["name"] or node + ":" + (os.environ.get("SLURM_JOB_ID") or str(os.getpid()))
try:
    from farm_executor.launch.granted import run_granted
except Exception as error:
    words = {"error": type(error).__name__ + ": " + str(error)}
    if isinstance(error, ImportError):
        words["missing"] = str(error.name)
    print(config["mark"] + json.dumps(words), flush=True)
    os._exit(1)
run_granted(config)
os._exit(0)
"""


def errand(**config: Any) -> bytes:
    """Return what goes down a job's standard input; see `granted.run_granted` for the configuration."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in (_BOOT, config))


def explained(who: str, python: str, word: dict[str, Any]) -> str:
    """Return the error for a failure that a job has reported."""
    error = one_line(str(word.get("error")), MAX_MESSAGE)
    if "missing" in word:
        return (
            f"cannot start {who}: {python or 'the Python'} there lacks {word['missing']} ({error}); install "
            "farm_executor there, for the same minor version of Python as here"
        )
    return f"cannot start {who}: {error}"


def fresh_key() -> str:
    """Return a new key with a certificate, as the content of its file.

    Raises:
        BrokenFarmError: None can be made.
    """
    from farm_executor.wire import keygen

    try:
        return keygen.make_key_file_content().decode()
    except AuthenticationError:
        raise BrokenFarmError(
            "servers on a cluster are reached over its network, where everything is encrypted; to make the key for "
            "that needs the package cryptography: python -m pip install 'farm_executor[tls]'"
        ) from None


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

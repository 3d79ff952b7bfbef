"""The remote end of a server started over ssh.

This module owns the remote directory and the few messages to the near end, `ssh`. It must not know how it came to
be run. Each message is a line on standard output: a mark, which no shell's start-up files print, and a JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import Any

from farm_executor.launch.local import default_slots
from farm_executor.server.supervisor import serve
from farm_executor.wire.address import Address
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import listen

__all__ = ["run_remote"]


def run_remote(config: dict[str, Any]) -> None:
    """Serve until standard input ends, as it does with ssh or the process that started it; then clean up.

    Args:
        config: ``mark``; ``path``, of the socket, in a directory that must not exist yet; ``key``, in hexadecimal
            digits; ``slots``, 0 for one per CPU; ``embedded``, see `Supervisor`; ``name``; ``env``, see
            `core.environment`.
    """
    # Messages get a descriptor of their own; anything printed from now on, mostly by tasks, goes to standard error,
    # which the user sees.
    words = os.dup(1)
    os.dup2(2, 1)

    def say(**word: Any) -> None:
        with contextlib.suppress(OSError):  # the near end is gone
            os.write(words, f"{config['mark']}{json.dumps(word)}\n".encode())

    path = config["path"]
    directory = os.path.dirname(path)
    try:
        os.mkdir(directory, 0o700)
        listener = listen(Address(path=path))
    except OSError as error:
        say(error=str(error))
        return
    serve(
        [listener],
        on_ready=lambda: say(ready=True),
        address=f"unix:{path}",
        keys=[Key(bytes.fromhex(config["key"]))],
        slots=config["slots"] or default_slots(),
        name=config["name"],
        owner=0,
        embedded=config["embedded"],
        env=[(name, value) for name, value in config["env"]],
        tunnelled=True,
    )
    shutil.rmtree(directory, ignore_errors=True)
    # ssh may not end by itself while a process left behind by a task holds its streams open; so tell the near end.
    say(ended=True)

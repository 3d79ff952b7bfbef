"""The far end of a server that was started over ssh: what Python does over there.

This module owns the far end's directory and its few words to the near end, `ssh`. It must not know how it came
here. Each word is a line on standard output: a mark, which no shell's start-up files print, and a JSON object.
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
    """Serve until standard input ends, which is when ssh does, or whoever started it; then clean up.

    Args:
        config: ``mark``; ``path``, the socket's, in a directory that must not be there yet; ``key``, in
            hexadecimal digits; ``slots``, 0 for one per CPU; ``embedded``, see `Supervisor`; ``name``.
    """
    words = os.dup(1)
    os.dup2(2, 1)  # from now on what is printed, by tasks above all, is the user's to see

    def say(**word: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
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
        tunnelled=True,
    )
    shutil.rmtree(directory, ignore_errors=True)
    # A process that a task has left behind may keep ssh from ending by itself.
    say(ended=True)

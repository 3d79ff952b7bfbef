"""The far end of a server that a cluster's scheduler grants: in the job, on the node.

This module owns what the job does and the few words that it says to the near end, such as `slurm`. It must not know
which scheduler it is, nor how it came to be run. Each word is a line on standard output: a mark, which nothing else
prints, and a JSON object.

The server dials the program back: where the job could be started, that way is open, and it is often the only one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any

from farm_executor.core.environment import shares
from farm_executor.errors import BrokenFarmError
from farm_executor.launch.errand import read_content
from farm_executor.server.dialler import Dialler
from farm_executor.server.supervisor import serve
from farm_executor.wire.address import Address

__all__ = ["run_granted"]

DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def run_granted(config: dict[str, Any]) -> None:
    """Serve until standard input ends, as it does with the job or the program that asked for it.

    Args:
        config: ``mark``; ``key``, the content of a key file; ``host`` and ``port``, where the program waits;
            ``slots``; ``name``; ``gpus`` of each worker; ``env``, see `core.environment`; ``patience``, see
            `Dialler`.
    """
    # Messages get a descriptor of their own; anything printed from now on, mostly by tasks, goes to standard error.
    words = os.dup(1)
    os.dup2(2, 1)

    def say(**word: Any) -> None:
        with contextlib.suppress(OSError):  # the near end is gone
            os.write(words, f"{config['mark']}{json.dumps(word)}\n".encode())

    try:
        key = read_content(config["key"])
    except BrokenFarmError as error:
        say(error=str(error))
        return
    env: list[tuple[str, str | Sequence[str]]] = []
    for name in DEVICES if config["gpus"] else ():
        if parts := shares(os.environ.get(name, ""), config["gpus"]):
            env.append((name, parts))
    env += [(name, value) for name, value in config["env"]]
    where = Address(config["host"], config["port"])
    serve(
        [Dialler(where, key, config["name"], config.get("patience"))],
        on_ready=lambda: say(ready=True, name=config["name"]),
        on_drain=lambda: say(draining=True),
        address=f"back://{where}",
        keys=[key],
        slots=config["slots"],
        name=config["name"],
        owner=0,
        env=env,
        spare_workers=True,
    )

"""The far end of a server that a cluster's scheduler grants: in the job, on the node.

This module owns what the job does and the few words that it says to the near end, such as `slurm`. It must not know
which scheduler it is, nor how it came to be run. Each word is a line on standard output: a mark, which nothing else
prints, and a JSON object.

Where the job could be started, the way back to the program is mostly open, and often the only one: so the server
dials it, unless it is told of other ways.
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
from farm_executor.server.door import Listener
from farm_executor.server.supervisor import serve
from farm_executor.wire.address import Address
from farm_executor.wire.sockets import listen, own_host

__all__ = ["run_granted"]

DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def run_granted(config: dict[str, Any]) -> None:
    """Serve until standard input ends, as it does with the job or the program that asked for it.

    Args:
        config: ``mark``; ``key``, the content of a key file; ``host`` and ``port``, where the program waits;
            ``slots``; ``name``; ``gpus`` of each worker; ``env``, see `core.environment`; ``patience``, see
            `Dialler`; ``via``, the ways on which program and server may meet, see `forms.WAYS`; ``tunnel``, the
            unix socket of this machine that leads to the program by way of the engine.
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
    where, via = Address(config["host"], config["port"]), config["via"]
    server = os.urandom(16).hex()
    ways = {where: "back"} if "back" in via else {}
    if "tunnel" in config:
        ways[Address(path=config["tunnel"])] = "engine"
    told: dict[Address, str] = {}

    def failed(address: Address, error: Exception) -> None:
        if told.get(address) != str(error):  # not each time: it goes on for as long as nobody waits
            told[address] = str(error)
            say(tried=ways[address], error=f"{address}: {error}" if ways[address] == "back" else str(error))

    listeners: list[Listener] = []
    at: list[Any] = []
    if ways:  # it forks: before there is a socket that only this process is to have
        listeners.append(Dialler([*ways], key, config["name"], config.get("patience"), server, failed))
    if "direct" in via:
        try:
            listener = listen(Address(own_host(config["host"]), 0))
        except OSError as error:
            say(tried="direct", error=str(error))
            if not ways:
                say(error=str(error))
                return
        else:
            listeners.append(listener)
            at = list(listener.getsockname()[:2])
    serve(
        listeners,
        on_ready=lambda: say(ready=True, name=config["name"], server=server, at=at),
        on_drain=lambda: say(draining=True),
        address=f"back://{where}",
        keys=[key],
        slots=config["slots"],
        name=config["name"],
        owner=0,
        env=env,
        spare_workers=True,
    )

"""The command ``farm-executor launch``: servers that are started elsewhere, for as long as it runs.

This module owns its words and what it prints; the launchers do the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import signal
import sys
from typing import Any

from farm_executor.errors import AddressError
from farm_executor.launch.ssh import SSH_VARIABLE, end_servers, start_servers
from farm_executor.wire.address import parse_address, parse_addresses
from farm_executor.wire.security import KEY_FILE_VARIABLE

__all__ = ["EPILOG", "add_arguments", "main"]

EPILOG = f"""\
SIGTERM or Ctrl-C: all stop at once. If one fails, the reason is printed, all servers are stopped, and the exit code
is 1 or 2.

Over ssh, it prints for each server this machine's end of a tunnel, an address for FarmExecutor on this machine, and
for this user alone. Nothing listens on the network, there or here. ssh must get there without asking for anything.
{SSH_VARIABLE} holds the command to use instead of ssh, such as "ssh -F FILE". farm_executor must be installed
there, for python3 or for the Python that the address names.

The key of such a server is made for it, and clients find it beside the printed address; {KEY_FILE_VARIABLE} and
--key-file have no effect on it.

On a cluster, it prints for each server that has come a port of this machine, an address for FarmExecutor wherever
that port can be reached: such programs need nothing of Slurm's, Dask's or Ray's. The key is the user's own, or that
of --key-file, made by `farm-executor keygen`; servers are sent it.

    farm-executor launch ssh://hostA 'ssh://me@hostB?workers=4&python=~/venv/bin/python'
    farm-executor launch 'slurm://gpu?nodes=4&per=8' --listen 0.0.0.0:11111 --key-file lab.key"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    ssh = "ssh://[USER@]HOST[:PORT][?workers=N&python=PATH&env=NAME=VALUE]"
    parser.add_argument(
        "address", nargs="+", help=f"{ssh}, or an address that begins with slurm://, dask://, ray:// or back://"
    )
    parser.add_argument(
        "--workers", type=int, help="over ssh: how many workers each client may have, unless the address says it"
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:0",
        help="on clusters: where programs find the servers, the first at this port, others at the following ones "
        "(default: any free ports, for this machine alone)",
    )


def main(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    if options.workers is not None and options.workers < 1:
        raise ValueError("--workers must be at least 1")
    over_ssh, elsewhere = [], []
    for address in parse_addresses(options.address):
        if address.ssh is not None:
            workers = address.ssh.workers or options.workers or 0
            over_ssh.append(address._replace(grant=address.ssh._replace(workers=workers)))
        elif getattr(address.grant, "max", 0):
            raise AddressError(f"{str(address)!r}: max= is for FarmExecutor, which knows what waits: say how many")
        elif address.grant is not None:
            elsewhere.append(address)
        else:
            raise AddressError(f"{str(address)!r}: only servers over ssh and on clusters are launched: ssh://HOST")
    where = parse_address(options.listen, any_port=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what it runs with &
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        watched: list[Any] = []
        if elsewhere:
            from farm_executor.launch.opened import Opened  # late: it is for systems with fork

            opened = Opened(elsewhere, where, options.key_file, lambda *each: print(*each, flush=True))
            stack.callback(opened.end)
            opened.start()
            watched.append(opened)
        servers = start_servers(over_ssh)
        stack.callback(end_servers, servers)
        for server in servers:
            print(f"{server} {server.address}", flush=True)
        with selectors.DefaultSelector() as selector:
            for one in (*watched, *servers):
                selector.register(one, selectors.EVENT_READ)
            ended = {key.fileobj for key, _ in selector.select()}
        if elsewhere and opened.failure is not None:
            raise opened.failure
        for server in servers:
            if server in ended:
                print(f"farm-executor: a server has ended: {server.wait()}", file=sys.stderr)
        return 1
    return 0

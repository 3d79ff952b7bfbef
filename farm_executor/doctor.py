"""``farm-executor doctor``: compare the packages of this Python with those of servers.

This module owns which packages are compared, and the exit code. The comparison is `FarmExecutor.check`'s.
"""

from __future__ import annotations

import argparse
import json

from farm_executor.core.shipment import MAX_PACKAGES, Package

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `main` reads, but for `--key-file`, which every command has."""
    add = parser.add_argument
    add("address", nargs="+", help="a server's address in any form that FarmExecutor takes, ssh:// included")
    add("--timeout", type=float, default=30.0, help="seconds to wait for answers (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object instead of a table")


def main(options: argparse.Namespace) -> int:
    """Compare, and print the result.

    Returns:
        0 if all servers have what is installed here, 1 if some differ or do not answer.

    Raises:
        FarmError: The farm cannot be used, as with a wrong key.
    """
    from farm_executor import FarmExecutor
    from farm_executor.client.check import check_farm
    from farm_executor.client.front import backing_of, options_of

    with FarmExecutor(options.address, key_file=options.key_file, ship="off", allow_version_mismatch=True) as farm:
        found = check_farm(backing_of(farm).start_engine(), options_of(farm), _installed(), options.timeout)
        farm.shutdown(wait=False, cancel_futures=True)
    if options.json:
        answer = {"here": found.here, "servers": found.servers, "unanswered": found.unanswered}
        print(json.dumps({**answer, "differences": found.differences}))
    else:
        print(found)
    return 1 if found.differences or found.unanswered else 0


def _installed() -> dict[str, Package]:
    from importlib.metadata import distributions

    every = [(each.metadata["Name"], each.version) for each in distributions()]
    packages = [Package(name, version) for name, version in every if name and version]
    return {each.name.lower().replace("-", "_"): each for each in packages[:MAX_PACKAGES]}

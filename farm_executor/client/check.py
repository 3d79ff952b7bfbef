"""Compares the packages of this program with those of its servers: `FarmExecutor.check`.

This module owns the comparison and how it is shown. It must not know frames: servers are asked by ordinary calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from farm_executor.core.shipment import Package
from farm_executor.data.packages import PYTHON, UNKNOWN, survey
from farm_executor.errors import FarmError

if TYPE_CHECKING:
    from farm_executor.client.protocol import Farm
    from farm_executor.core.options import TaskOptions

__all__ = ["FarmCheck", "check_farm"]

MARK = "*"
MISSING = "-"


@dataclass(frozen=True)
class FarmCheck:
    """The packages of this program beside those of each server; ``str`` makes a table of them.

    Attributes:
        here: The version of each package here, by its name, and of Python, under "Python".
        servers: The same for each server that has answered, by its address. A version is empty where the package is
            missing, and "?" where it is there, but nothing says in which version.
        unanswered: Why a server has not answered, by its address.
    """

    here: Mapping[str, str]
    servers: Mapping[str, Mapping[str, str]]
    unanswered: Mapping[str, str] = field(default_factory=dict)

    @property
    def differences(self) -> dict[str, dict[str, str]]:
        """What each server has instead of what is here, by its address; empty if all is alike.

        Python differs if its minor version does.
        """
        found = {
            server: {name: version for name, version in there.items() if self._differs(name, version)}
            for server, there in self.servers.items()
        }
        return {server: those for server, those in found.items() if those}

    def _differs(self, name: str, version: str) -> bool:
        here = self.here[name]
        if name == PYTHON:
            return version.split(".")[:2] != here.split(".")[:2]
        return version not in (here, UNKNOWN)

    def __str__(self) -> str:
        """Return a table, in which what differs comes first and is marked, and what to do about it."""
        # In a program with many packages, the few that matter must not have to be looked for.
        differences = self.differences
        differing = {name for those in differences.values() for name in those}
        names = sorted(self.here, key=lambda name: (name != PYTHON, name not in differing, name.lower()))
        rows = [["", "here", *self.servers]]
        for name in names:
            row = [name, self.here[name]]
            for server, there in self.servers.items():
                marked = f" {MARK}" if name in differences.get(server, ()) else ""
                row.append((there[name] or MISSING) + marked)
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if differing:
            lines += ["", f"{MARK} differs from here; {MISSING} is missing. To have the same:"]
        for server, those in differences.items():
            wanted = [f"{name}=={self.here[name]}" for name in sorted(those, key=str.lower) if name != PYTHON]
            if wanted:
                lines.append(f"{server}: python -m pip install {' '.join(wanted)}")
            if PYTHON in those:
                lines.append(f"{server}: a server that runs Python {self.here[PYTHON]}")
        lines += [f"{server} has not answered: {why}" for server, why in self.unanswered.items()]
        return "\n".join(lines)


def check_farm(
    engine: Farm, options: TaskOptions, packages: Mapping[str, Package], timeout: float | None
) -> FarmCheck:
    """Compare these packages, given by the name of a module of each, with those of each server of a farm.

    Raises:
        RuntimeError, FarmError: See `FarmExecutor.check`.
    """
    from farm_executor.client.farm.broadcasts import outcomes_of

    # Also where this program's modules are not sent: the function is the farm's own, and servers have it.
    wanted = {package.name: module for module, package in packages.items()}
    broadcast = engine.broadcast(survey, (wanted,), options, persistent=False)
    try:
        outcomes = outcomes_of(broadcast, timeout)
    finally:
        # A server that answers only after this time must not be asked a question whose answer nobody waits for.
        broadcast.cancel()
    # The workers of a server have the same packages: one answer is enough. Others may be busy for longer than the
    # caller would wait.
    servers = {each.server: each.value for each in reversed(outcomes) if each.error is None}
    broken = next((each.error for each in outcomes if isinstance(each.error, FarmError)), None)
    if broken is not None and not servers:
        raise broken  # such as a wrong key, which no waiting mends
    problems = {each.server: str(each.error) for each in reversed(outcomes) if each.server not in servers}
    return FarmCheck(
        here=survey(wanted),
        servers={each.server: servers[each.server] for each in outcomes if each.server in servers},
        unanswered=problems,
    )

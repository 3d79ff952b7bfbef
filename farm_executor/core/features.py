"""The features that hellos name: what an end of a connection can do that the protocol's version does not imply.

This module owns their names and limits. It must not know what a feature does.

Each end lists those that it has; what both have listed may be used between them. So a new frame or message needs no
new version of the protocol: an end that lacks the feature is not sent any.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ALWAYS",
    "BESIDE",
    "COUNTS",
    "DETAILS",
    "FUNCTIONS",
    "HEADERS",
    "MAX_FEATURE",
    "MAX_FEATURES",
    "MODULES",
    "OUTPUT",
    "RECORDS",
    "REFERENCES",
    "REPORTS",
    "RINGS",
    "SHARING",
    "STREAMS",
    "is_feature",
    "shared",
]

BESIDE = "beside"
"""Lanes between programs on one machine go over a unix socket, where the client has come by TCP."""

COUNTS = "counts"
"""A heartbeat is answered with packed numbers, which cost a large farm's client a tenth of what JSON does."""

DETAILS = "details"
"""Tasks may ask what is known of them, and hear that they are no longer wanted."""

FUNCTIONS = "functions"
"""The buffers of a large function go to a server once, for all its workers; not in `ALWAYS`: it takes Linux."""

HEADERS = "headers"
"""Calls may have a header: what travels with them and is no argument."""

MODULES = "modules"
"""Workers may ask for modules of the client's."""

OUTPUT = "output"
"""What workers write comes to the client; it names this only if it wants that."""

RECORDS = "records"
"""What tasks log comes to the client; it names this only if it wants that."""

REFERENCES = "references"
"""A buffer of a call may stand for that of a shared object, which the server has."""

REPORTS = "reports"
"""Tasks may report how far they have come."""

RINGS = "rings"
"""Large segments go through shared memory where both ends are on one machine; not in `ALWAYS`: it takes Linux."""

SHARING = "sharing"
"""Objects may be shared: sent once to a server, for all its workers."""

STREAMS = "streams"
"""What a task yields comes item by item."""

ALWAYS = (BESIDE, COUNTS, DETAILS, HEADERS, REFERENCES, REPORTS, SHARING, STREAMS)
"""Those that both ends of this version have in any case."""

MAX_FEATURES = 64  # in one hello: far more than there will be, and little to keep
MAX_FEATURE = 32  # characters in a name
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def is_feature(name: str) -> bool:
    """Return whether a feature may have this name: lower-case ASCII letters, digits and hyphens."""
    return 0 < len(name) <= MAX_FEATURE and set(name) <= _LETTERS


def shared(mine: Iterable[str], theirs: Iterable[str]) -> frozenset[str]:
    """Return the features that both ends have."""
    return frozenset(mine) & frozenset(theirs)

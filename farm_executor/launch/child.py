"""A server's own process, from the parent's first line to its end.

This module owns the child's side of `local`. It must not know how it was started, nor import what only the parent
needs, because a client waits until the server is up.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

from farm_executor.server.childhood import Parent
from farm_executor.server.output import open_missing_streams
from farm_executor.server.supervisor import serve
from farm_executor.wire.security import server_keys
from farm_executor.wire.sockets import Socket

__all__ = ["run"]


def run(listeners: Sequence[int], parent: BinaryIO) -> None:
    """Serve as configured through standard input until it ends, as it does with the parent; then clean up.

    Args:
        listeners: The sockets' descriptors. They listen by the time the parent's configuration arrives.
        parent: Standard input as a buffered file, which may already have read ahead.
    """
    open_missing_streams()
    line = parent.readline()
    if not line:
        return  # the parent could not make the socket listen, or has died
    config: dict[str, Any] = json.loads(line)
    directory = config.pop("directory")
    key = config.pop("key")
    keys = server_keys(None if key is None else bytes.fromhex(key), **config.pop("files"))
    kin = Parent(**config.pop("parent", {}))
    for descriptor in (kin.tracker, config.get("requests")):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    sys.path[:], sys.argv[:] = config.pop("path"), config.pop("argv")
    # What has been imported stays, so it need not be looked at again, neither here nor by the workers, whose memory
    # remains shared where nothing is written to.
    gc.freeze()
    gc.enable()
    serve([Socket(fileno=listener) for listener in listeners], keys=keys, owner=0, parent=kin, **config)
    if directory:
        _remove(directory)


def _remove(directory: str) -> None:
    """Remove a directory of files unless the parent has; importing `shutil` would take longer than this."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)

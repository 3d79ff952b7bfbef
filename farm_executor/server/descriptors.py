"""The limit on a server's open descriptors: raised as far as the system allows, and restored for tasks.

This module owns that limit. It must not know what the descriptors are.
"""

from __future__ import annotations

import contextlib
import resource
import sys

__all__ = ["DescriptorLimit"]

ENOUGH = 1 << 16
OF_MACOS = 10240  # macOS may refuse more, whatever hard limit it reports


class DescriptorLimit:
    """The soft limit, raised towards the hard limit as far as that is of use.

    Attributes:
        limit: The present soft limit.
    """

    def __init__(self) -> None:
        self._before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._hard = hard
        self.limit = self._before if self._before != resource.RLIM_INFINITY else sys.maxsize
        most = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
        for wanted in (most, min(most, OF_MACOS)):
            if wanted > self.limit:
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                    self.limit = wanted

    def restore(self) -> None:
        """Restore the limit in a worker: programs that tasks start may close or select up to it."""
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._before, self._hard))

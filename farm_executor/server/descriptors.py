"""How many descriptors a server may have: all that the system allows, while tasks find the limit as it was.

This module owns that limit. It must not know what the descriptors are.
"""

from __future__ import annotations

import contextlib
import resource
import sys

__all__ = ["DescriptorLimit"]

ENOUGH = 1 << 16
OF_MACOS = 10240  # which may refuse more, whatever it says the hard limit is


class DescriptorLimit:
    """The soft limit, raised to the hard one as far as that can be of use.

    Attributes:
        limit: What it is now.
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
        """In a worker: as it was, because programs that tasks start may close or select up to it."""
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._before, self._hard))

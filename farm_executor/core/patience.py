"""Decide whether to poll before sleeping, and for how long.

This module owns the rule. It must not know what is awaited, and it has no clock: durations are passed in.

Waking a sleeping process takes longer than many a task, so what is about to come is better polled for than slept
for. But polling keeps a core from other work, so it has to pay: after a few waits that were longer than that, it is
only tried now and then.
"""

from __future__ import annotations

__all__ = ["LONGEST", "RARELY", "Patience"]

LONGEST = 200e-6
"""Seconds to poll at most. A round trip to a worker that is awake takes 40 µs; on a machine that is four times as
slow it still fits."""

MARGIN = (
    3.0  # times the usual wait: round trips scatter that much, and a miss costs more than the sleep that it saves
)

ENOUGH_MISSES = 2
"""Misses from which on waits are slept through, where a hit makes up for half of them: fewer than half of the waits
are short then."""

MOST_MISSES = 8  # a few hits in a row are enough to begin again, however long the waits were before

RARELY = 64
"""Waits of which one is polled for when polling has not paid for long. It costs `LONGEST` at most, and the others
take longer than that, so less than a 64th of the time is polled in vain."""


class Patience:
    """Learns from each wait how long to poll in the next.

    Args:
        cores: How many the process may use. With fewer than two, polling would keep away what it waits for.
    """

    __slots__ = ("_able", "_misses", "_skip", "_usual")

    def __init__(self, cores: float) -> None:
        self._able = cores >= 2
        self._misses = 0
        self._skip = 0
        self._usual = LONGEST

    def window(self) -> float:
        """Return for how many seconds to poll in the wait that begins now; 0.0 is to sleep at once.

        After any other value, `came` or `missed` has to be called before the next wait.
        """
        if not self._able:
            return 0.0
        if self._skip:
            self._skip -= 1
            return 0.0
        window = MARGIN * self._usual
        return window if window < LONGEST else LONGEST  # min() takes several times as long

    def came(self, after: float) -> None:
        """Learn that it came while it was polled for, so many seconds after the wait began."""
        self._misses //= 2
        self._usual += (after - self._usual) / 8

    def missed(self) -> None:
        """Learn that nothing came within the window."""
        self._misses = min(self._misses + 1, MOST_MISSES)
        self._usual = min(2 * self._usual, LONGEST)
        if self._misses >= ENOUGH_MISSES:
            self._skip = min(8 << self._misses, RARELY) - 1

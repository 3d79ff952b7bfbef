"""Turn the bytes of one stream into lines, as they arrive, with notes of what is missing.

This module owns where a line ends, and what is shown of one that is written over. It must not know who writes, nor
where the lines go.

A line ends with a newline alone: other characters at which Python splits lines may be part of a text, or of binary
data. Of a line that carriage returns have started over, only the last state is shown, as a terminal would.
"""

from __future__ import annotations

import codecs

__all__ = ["MAX_LINE", "Lines"]

MAX_LINE = 64 * 1024  # characters; a longer line comes in pieces


class Lines:
    """One stream; see the module.

    Attributes:
        offset: The number of bytes, from the stream's beginning, that have been fed or are missing.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self.offset = 0

    @property
    def has_rest(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)

    def feed(self, offset: int, data: bytes) -> list[str]:
        """Take the bytes that begin at that offset; return the lines that they complete, without newlines.

        Bytes between the last ones and these are missing, which one of the lines says. Bytes that have come before
        are ignored.
        """
        lines: list[str] = []
        # The line that has begun ends here: nobody knows what its rest was.
        if offset > self.offset:
            lines += self.end()
            lines.append(f"[{offset - self.offset} bytes lost]")
        elif offset < self.offset:
            data = data[self.offset - offset :]
            offset = self.offset
        self.offset = offset + len(data)
        *whole, rest = (self._rest + self._decoder.decode(data)).split("\n")
        lines += [_last_state(line) for line in whole]
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        # Nothing of the earlier states is needed, however long a progress bar goes on.
        self._rest = _last_state(rest) + "\r" if rest.endswith("\r") else _last_state(rest)
        if self._rest == "\r":
            self._rest = ""
        return lines

    def end(self) -> list[str]:
        """Return the line that has begun, if any, as it stands."""
        # Bytes of a character that has begun are replaced: what follows, if anything does, is another line.
        rest = self._rest + self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._rest = ""
        return [_last_state(rest)] if rest else []


def _last_state(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line

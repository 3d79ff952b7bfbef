"""Counts how often each task has run, whatever has become of its worker and of its outcome."""

import os
from collections import Counter
from pathlib import Path


class Book:
    """A file in which every run of a task leaves a line (`tasks.note`).

    Attributes:
        path: To be given to tasks.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = "book") -> None:
        self._file = Path(folder) / name
        self._file.touch()
        self.path = str(self._file)

    def runs(self) -> Counter[str]:
        """How often each has run."""
        return Counter(self._file.read_text().split())

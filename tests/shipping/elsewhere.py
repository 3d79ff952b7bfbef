"""Programs with modules of their own, and a server on which their files do not exist."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from server.serving import KEY, Serving

ROOT = str(Path(__file__).parents[2])
HIDE = 'mount -t tmpfs none "$0" && exec "$@"'


NOBODY = 65534
# What a server that is root's at first runs, so that it is another user's.
BECOME_NOBODY = f"""
import os
os.chdir("/")
key_file = sys.argv[sys.argv.index("--key-file") + 1]
for path in key_file, os.path.dirname(key_file):
    os.chown(path, {NOBODY}, {NOBODY})
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""


def _works(*command: str) -> bool:
    if sys.platform != "linux":
        return False
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


CAN_HIDE = _works("unshare", "--mount", "sh", "-c", HIDE, "/mnt", "true")
CAN_SWITCH = _works(
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *(sys.executable, "-c", f"open({__file__!r})"),
)


class Elsewhere(Serving):
    """A server that sees nothing of a folder; where the system does not allow that, it does not look there.

    Args:
        folder: The folder.
        workers: How many.
        arguments: Further ones of the command line.
        before, key: See `Serving`.
    """

    def __init__(self, folder: Path, *arguments: str, workers: int = 1, before: str = "", key: bytes = KEY) -> None:
        within = ["unshare", "--mount", "sh", "-c", HIDE, str(folder)] if CAN_HIDE else []
        before = f"import os; os.chdir('/')\n{before}"
        super().__init__(*arguments, workers=workers, within=within, before=before, key=key)


class Program:
    """A program's folder, and how it is run.

    Args:
        folder: An empty one.
        server: Where its tasks go; None if the program says so itself.
    """

    def __init__(self, folder: Path, server: Serving | None) -> None:
        self.folder = folder
        self.server = server
        self._reach = (
            {"FARM_ADDRESS": server.address, "FARM_EXECUTOR_KEY_FILE": str(server.key_file)} if server else {}
        )

    def write(self, files: dict[str, str]) -> None:
        """Make files of these names."""
        for name, text in files.items():
            self.file(name, text)

    def file(self, name: str, text: str) -> Path:
        """Make one file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def run(
        self,
        *arguments: str,
        python: str = sys.executable,
        cwd: Path | None = None,
        stdin: str | None = None,
        path: Sequence[str] = (),
        programs: str = "",
        fails: bool = False,
    ) -> str:
        """Run Python with these arguments; return what it printed, with ``fails`` to standard error."""
        process = subprocess.run(
            [python, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd or self.folder,
            check=False,
            env={
                **os.environ,
                "PATH": programs or os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join([*path, ROOT]),
                **self._reach,
            },
        )
        assert (process.returncode != 0) == fails, process.stdout + process.stderr
        return process.stderr if fails else process.stdout.strip()

    def script(self, text: str, *arguments: str, name: str = "script.py") -> str:
        """Run a script in the program's folder; return what it printed."""
        self.file(name, BEGIN + textwrap.dedent(text))
        return self.run(name, *arguments)


BEGIN = "import os\nfrom farm_executor import FarmExecutor\nfarm = FarmExecutor(os.environ['FARM_ADDRESS'])\n"

"""The exceptions of farm_executor.

::

    FarmError
    ├── AddressError (also ValueError)          the address is not one of the accepted forms
    ├── AuthenticationError                     the two sides do not hold the same key, or none was found
    ├── VersionMismatchError                    client and server cannot understand each other's pickles or frames
    ├── ProtocolError
    │   ├── LocalProtocolError                  our bug: we were about to break the protocol
    │   └── RemoteProtocolError                 the peer's: a bad frame, one too large, one out of order
    ├── TaskError                               one task failed; the farm goes on
    │   ├── TaskExecutionError                  its code raised, or its call or outcome could not be carried
    │   ├── TaskKilledError                     somebody killed it
    │   ├── TaskTimeoutError (also TimeoutError)
    │   ├── InvalidTaskError (also TypeError)   what was submitted cannot be called
    │   └── WorkerLostError (also BrokenExecutor)   its worker died, in each of its attempts
    ├── BroadcastError                          a call on every worker failed on some
    ├── NoKernelError                           there is no current kernel (`farm_executor.lfarm`)
    ├── KernelCreationError                     its servers have not all answered
    ├── SharedMemoryError                       a server cannot hold a shared object
    ├── FarmFullError                           it holds as many bytes of calls as it may
    └── BrokenFarmError (also BrokenExecutor)   the farm itself failed: every future settles with it

A lost connection is not an exception: it is logged and redialled.
This module imports nothing of the package.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import Any

from farm_executor._record import NamedTuple

__all__ = [
    "FarmError",
    "AddressError",
    "AuthenticationError",
    "VersionMismatchError",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "TaskError",
    "TaskExecutionError",
    "TaskKilledError",
    "TaskTimeoutError",
    "InvalidTaskError",
    "WorkerLostError",
    "BroadcastError",
    "BroadcastOutcome",
    "NoKernelError",
    "KernelCreationError",
    "SharedMemoryError",
    "FarmFullError",
    "BrokenFarmError",
]


class FarmError(Exception):
    """The root of the package's own exceptions."""


class AddressError(FarmError, ValueError):
    """An address is not one of the accepted forms; the message names it and them."""


class AuthenticationError(FarmError):
    """The key is missing, readable by others, or not the server's."""


class VersionMismatchError(FarmError):
    """Client and server differ in a version that both must share.

    Attributes:
        mismatches: For each differing name the client's and the server's version.
    """

    def __init__(self, message: str, mismatches: dict[str, tuple[str, str]] | None = None) -> None:
        super().__init__(message, mismatches or {})
        self.mismatches: dict[str, tuple[str, str]] = mismatches or {}

    def __str__(self) -> str:
        return str(self.args[0])


class ProtocolError(FarmError):
    """The wire protocol was violated."""


class LocalProtocolError(ProtocolError):
    """This side was about to send something that the protocol forbids: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol forbids; its connection is closed."""


class TaskError(FarmError):
    """One task failed for a reason that concerns no other.

    Attributes:
        output: The end of what the task has written, as by ``future.output``; empty where that does not come here.
        last_lines: The last 20 lines of it at most, without anything that could control a terminal; these are part
            of the text.
    """

    output = ""
    last_lines = ""

    def __str__(self) -> str:
        return self._with_output(super().__str__())

    def _with_output(self, text: str) -> str:
        return f'{text}\nthe last that it wrote:\n"""\n{self.last_lines}\n"""' if self.last_lines else text


class TaskExecutionError(TaskError):
    """A task failed on its worker.

    When the task's own exception can be rebuilt here, the future raises that one and this stands at the end of
    its ``__cause__`` chain. When it cannot, the future raises this.

    Attributes:
        remote_traceback: The traceback as the worker printed it; empty when there was none.
        type_name: The qualified name of the original exception's class.
        server: The address of the server, as the client was given it.
        pid: The worker's process id there; 0 when unknown.
        attempt: Which attempt this was, from 1.
    """

    def __init__(
        self,
        message: str,
        *,
        remote_traceback: str = "",
        type_name: str = "",
        server: str = "",
        pid: int = 0,
        attempt: int = 1,
    ) -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback
        self.type_name = type_name
        self.server = server
        self.pid = pid
        self.attempt = attempt

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.server:
            text += f" [server {self.server}, worker pid {self.pid}, attempt {self.attempt}]"
        if self.remote_traceback:
            text += f'\n"""\n{self.remote_traceback}"""'
        return self._with_output(text)

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException's own reduction restores args and __dict__, which is all the state there is.
        return (type(self), self.args, self.__dict__)


class TaskKilledError(TaskError):
    """The task was killed while it ran."""


class TaskTimeoutError(TaskError, TimeoutError):
    """The task was killed because it ran past its deadline."""


class InvalidTaskError(TaskError, TypeError):
    """The submitted task is not callable, here or on a worker."""


class WorkerLostError(TaskError, BrokenExecutor):
    """The worker died, or its connection was lost, while it ran the task, in every attempt allowed.

    Only the task that ran fails with this; the farm starts another worker and goes on.

    Attributes:
        server: The address of the server, as the client was given it; empty when there is none to name.
        slot: The worker's place there; None when unknown.
        pid: The worker's process id there; 0 when unknown.
        exit_code: Of the last attempt's process; negative for the signal that killed it, None when unknown.
        stderr: The last lines that it wrote to standard error, at most 20. An embedded farm's workers write to
            this program's own; of theirs this has only what Python says of a crash.
    """

    def __init__(
        self,
        *args: Any,
        server: str = "",
        slot: int | None = None,
        pid: int = 0,
        exit_code: int | None = None,
        stderr: str = "",
    ) -> None:
        super().__init__(*args)
        self.server = server
        self.slot = slot
        self.pid = pid
        self.exit_code = exit_code
        self.stderr = stderr

    def __str__(self) -> str:
        text = str(self.args[0]) if len(self.args) == 1 else Exception.__str__(self)
        if self.server:
            text += f" [server {self.server}, slot {self.slot}, worker pid {self.pid}]"
        if self.last_lines:  # these end with what it wrote to standard error
            return self._with_output(text)
        if self.stderr:
            text += f'\nthe last that it wrote to standard error:\n"""\n{self.stderr}\n"""'
        return text


class BroadcastOutcome(NamedTuple):
    """The outcome of a broadcast on one worker.

    Attributes:
        server: The server's address.
        slot: The worker's place there; None if the server has not answered, so that its workers are not known.
        value: What the call returned there; None if it failed.
        error: Why it failed; None if it did not. A TimeoutError for a worker that has not answered in time.
    """

    server: str
    slot: int | None
    value: Any
    error: BaseException | None


class BroadcastError(FarmError):
    """A call on every worker failed on some of them. The first failure is its cause.

    Attributes:
        outcomes: The outcome on each worker, successes included.
    """

    def __init__(self, message: str, outcomes: list[BroadcastOutcome] | None = None) -> None:
        super().__init__(message, outcomes or [])
        self.outcomes: list[BroadcastOutcome] = outcomes or []

    def __str__(self) -> str:
        return str(self.args[0])


class NoKernelError(FarmError):
    """There is no current kernel; the message says how to make one."""


class KernelCreationError(FarmError):
    """A kernel could not be made; its ``__cause__`` says why."""


class SharedMemoryError(FarmError):
    """A server cannot hold an object that the task needs, or its worker cannot map it; the message says why."""


class FarmFullError(FarmError):
    """The farm holds as many bytes of calls as ``max_pending_bytes`` allows, and was told not to wait."""


class BrokenFarmError(FarmError, BrokenExecutor):
    """The farm cannot go on: every unsettled future settles with this, and so does each later submit."""

"""Context variables that travel, and tasks that look at them."""

from contextvars import ContextVar

user: ContextVar[object] = ContextVar("user", default="nobody")
other: ContextVar[object] = ContextVar("named differently", default="none")


def look(_=None):
    return user.get(), other.get()


async def look_async():
    return look()


def change():
    before = user.get()
    user.set("changed by a task")
    return before


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("must not travel")

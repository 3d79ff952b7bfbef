"""Whose request the program is working on."""

from contextvars import ContextVar

user = ContextVar("user", default="nobody")


def whose():
    return f"working for {user.get()}"

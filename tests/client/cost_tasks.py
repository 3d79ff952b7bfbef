"""Counts the calls of the package's functions, here or in a worker."""

import sys

calls = 0


def _note(frame, event, argument):
    global calls
    if event == "call" and "farm_executor" in frame.f_globals.get("__name__", ""):
        calls += 1


def start_counting():
    """Count from now on, in this thread."""
    global calls
    calls = 0
    sys.setprofile(_note)


def stop_counting():
    """Return how many there were."""
    sys.setprofile(None)
    return calls

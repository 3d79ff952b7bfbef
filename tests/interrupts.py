"""Ctrl-C at any place, one after the other."""

import gc
import signal
import sys


def strike_at_line(number, call, files=("",)):
    """Ctrl-C just before that line of all that the call runs in files whose names end so.

    Returns:
        Whether there were so many lines, and so an interrupt.
    """
    left = number

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.endswith(tuple(files)):
            return None
        if event == "line" and left >= 0:
            left -= 1
            if left < 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    interrupted = False
    gc.disable()  # an interrupt in a destructor that it runs is lost, as Python has nobody to raise it to
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        sys.settrace(before)
        gc.enable()
    assert interrupted == (left < 0), "an interrupt is never lost, and there is none of itself"
    return interrupted

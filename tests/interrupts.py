"""Ctrl-C at any place, one after the other."""

import dis
import functools
import gc
import signal
import sys


def strike_at_line(number, call, files=("",), signum=signal.SIGINT):
    """Ctrl-C, or that other signal, just before that line of all that the call runs in files whose names end so.

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
                signal.raise_signal(signum)
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
    if signum == signal.SIGINT:
        assert interrupted == (left < 0), "an interrupt is never lost, and there is none of itself"
    return left < 0


def at_each_step(handler, call, files):
    """Run the handler wherever Python might run one in all that the call runs in files of such paths.

    It is run on top of whatever the thread is about to do. Twice at each place, as what it does may cause the call
    to do more of the same.

    Returns:
        At how many places that was.
    """
    places = {}

    def trace(frame, event, argument):
        if not any(part in frame.f_code.co_filename for part in files):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            place = frame.f_code, frame.f_lasti
            if place not in places:
                places[place] = 2 if frame.f_lasti in _where_python_looks(frame.f_code) else 0
            if places[place]:
                places[place] -= 1
                handler()  # which is not traced itself
        return trace

    before = sys.gettrace()
    gc.disable()  # there are enough destructors
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return len(places)


@functools.cache
def _where_python_looks(code):
    """The offsets of the bytecodes before which it looks whether a signal has come, or garbage is to be collected.

    That is at the start of a function, when it jumps back, and after calls, also those of a with statement.
    """
    offsets, after_call = set(), True
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if after_call or name == "RESUME" or name.startswith(("JUMP_BACKWARD", "JUMP_ABSOLUTE")):
            offsets.add(instruction.offset)
        after_call = "CALL" in name or "WITH" in name
    return offsets

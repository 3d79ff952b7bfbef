"""Decisions without side effects: no sockets, threads, clocks, files, pickles or logging in here."""

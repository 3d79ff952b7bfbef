"""Decisions without effects: no sockets, threads, clocks, files, pickles or logging in here."""

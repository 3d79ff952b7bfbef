"""Launchers: they start servers somewhere."""

"""Launchers, which start servers on this machine or on others."""

"""Watching servers: what viewers share, and `farm-executor top`. Nothing here can change anything on a server."""

"""Connections: addresses, sockets, keys, encryption, and the frames on them."""

"""The server: what runs on a machine that executes tasks."""

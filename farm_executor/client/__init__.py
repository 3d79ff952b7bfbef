"""The client: what runs in the program that submits."""

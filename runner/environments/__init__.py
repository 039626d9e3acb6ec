"""Environments to run a recorded command in: which interpreter, which packages, from where."""

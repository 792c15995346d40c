# _build.py is written by the build.
version: str
compiled: bool

"""Plug-ins as somebody else would write them: a backend, a driver for the SQLite backend, a hook."""

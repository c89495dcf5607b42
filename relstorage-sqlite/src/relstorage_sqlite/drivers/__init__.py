"""Drivers of the SQLite backend. The contract between them and the backend is ``open_session(settings, role)``."""

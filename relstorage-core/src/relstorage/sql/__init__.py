"""Named statements: the only place where SQL is written.

``contract`` declares every statement the core executes: its parameters and columns. ``standard`` has the text that most
databases understand, once per history mode. A dialect overrides texts by name, and renders parameters the way its
driver wants them.
"""

from relstorage.sql.contract import Statements
from relstorage.sql.statement import Dialect, Statement

__all__ = ["Dialect", "Statement", "Statements"]

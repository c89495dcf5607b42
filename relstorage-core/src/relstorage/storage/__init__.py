"""What ZODB sees: ``RelStorage``, one instance for each ZODB connection."""

from relstorage.storage.distribution import refuse_other_distribution
from relstorage.storage.relstorage import RelStorage

__all__ = ["RelStorage"]

refuse_other_distribution()

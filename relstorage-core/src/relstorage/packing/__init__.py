"""Remove what nobody needs, while others go on writing.

A pack is a run with an id that is recorded in the database. ``mark`` reads every record in one snapshot and lists the garbage,
bound to the run. ``sweep`` removes what is listed in short transactions under the commit lock, and before each it looks at
what was committed since the mark: whatever became reachable leaves the list. Only a complete mark is ever swept.
"""

from relstorage.packing.pack import PackReport, check_references, pack
from relstorage.packing.progress import PackProgress

__all__ = ["PackProgress", "PackReport", "check_references", "pack"]

"""Remove what nobody needs, while others go on writing.

A pack is a run with an id that is recorded in the database. ``mark`` reads in one snapshot what refers to what, and
lists the garbage, bound to the run. ``rescue`` looks at what was committed since and takes what became reachable off
the list. Then the list is final: votes refuse references to it, and ``sweep`` removes it in short transactions. Only a
complete mark is ever swept.
"""

from relstorage.packing.pack import PackReport, check_references, pack
from relstorage.packing.progress import PackProgress

__all__ = ["PackProgress", "PackReport", "check_references", "pack"]

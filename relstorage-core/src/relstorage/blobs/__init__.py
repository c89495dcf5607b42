"""Where blob files live on disk.

``SharedBlobs`` is a directory that is the only place of the blobs and that all processes share. ``CachedBlobs`` is a
bounded local cache of blobs that the database keeps. Both hold a transaction's files in a private directory until the
commit.
"""

from relstorage.blobs.cached import CachedBlobs
from relstorage.blobs.shared import SharedBlobs

__all__ = ["CachedBlobs", "SharedBlobs"]

"""Open a database: the only module that knows every part."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from relstorage.blobs import CachedBlobs, SharedBlobs
from relstorage.cache import CODECS, Tracer, open_cache
from relstorage.database import Database
from relstorage.hooks import make_hooks
from relstorage.options import Options, declared, split_keywords
from relstorage.plugins import Plugins, installed
from relstorage.storage import RelStorage

log = logging.getLogger(__name__)

#: Options that only some backends, or caches that are no part of this distribution, make use of.
_NOT_EVERYWHERE = frozenset(
    {
        "cache_local_dir",
        "cache_module_name",
        "cache_prefix",
        "cache_servers",
        "commit_lock_id",
        "replica_conf",
        "replica_timeout",
        "revert_when_stale",
        "ro_replica_conf",
    }
)


def open(backend: str = "sqlite", /, **values: Any) -> RelStorage:
    """Return a storage on a database of this backend.

    The keyword arguments are the options of the backend and of the storage by name; their reference is
    ``docs/reference/options.md``. Raise ``ConfigurationError`` for an unknown option or a value that cannot be used,
    a ``PluginError`` if backend or driver cannot be had, and a ``LayoutError`` if the database is another than the
    options say.
    """
    plugins = installed()
    plugin = plugins.load("relstorage.backends", backend)
    backend_options, options = split_keywords(plugin.options_class, values)
    return _open(plugins, plugin, backend_options, options)


def open_storage(backend: str, backend_options: Any, options: Options) -> RelStorage:
    """Return a storage, given the name of the backend, an instance of its options class, and the storage's options."""
    plugins = installed()
    return _open(plugins, plugins.load("relstorage.backends", backend), backend_options, options)


def _open(plugins: Plugins, backend: Any, backend_options: Any, options: Options) -> RelStorage:
    driver = plugins.driver_for(backend, backend_options.driver)
    adapter = backend.adapter(backend_options, options, driver)
    identity = adapter.schema.prepare(options.create_schema and not options.read_only)
    hooks = make_hooks(plugins)
    # The variable and the format are ZEO's, so that its tools read the file.
    trace_path = os.environ.get("ZEO_CACHE_TRACE")
    tracer = Tracer(trace_path) if trace_path else None
    new_cache = partial(
        open_cache,
        options.cache_local_mb * 1_000_000,
        object_max=options.cache_local_object_max,
        log_limit=options.cache_delta_size_limit,
        codec=CODECS.get(options.cache_local_compression),
        trace=tracer,
    )
    database = Database(
        adapter, new_cache=new_cache, blobs=_blobs(options), hooks=hooks, options=options, identity=identity
    )
    if tracer is not None:
        database.closing.callback(tracer.close)
    _tell_without_effect(options, adapter)
    hooks.relstorage_opened(
        database_name=adapter.name, backend=adapter.backend, driver=adapter.driver, keep_history=adapter.keep_history
    )
    return RelStorage(database)


def _tell_without_effect(options: Options, adapter: Any) -> None:
    """Log which options were set that nothing here reads, so that nobody relies on them."""
    for declaration in declared(Options):
        name = declaration.name
        unused = name in _NOT_EVERYWHERE and name not in adapter.uses_options
        if unused and getattr(options, name) != declaration.default:
            log.warning(
                "The option %r is set for %s and has no effect with the backend %r",
                declaration.key,
                adapter.name,
                adapter.backend,
            )


def _blobs(options: Options) -> SharedBlobs | CachedBlobs | None:
    if options.blob_dir is None:
        return None
    if options.shared_blob_dir:
        return SharedBlobs(options.blob_dir)
    return CachedBlobs(
        options.blob_dir,
        max_size=options.blob_cache_size,
        check_percent=options.blob_cache_size_check,
        external_cleaner=options.blob_cache_size_check_external,
    )

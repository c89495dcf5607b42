"""The plug-in: what the entry point ``postgresql`` names."""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from relstorage.interfaces import IBackend
from relstorage.options import Options
from relstorage_postgresql import dsn
from relstorage_postgresql.adapter import PostgresAdapter
from relstorage_postgresql.drivers.settings import SessionSettings
from relstorage_postgresql.options import PostgresOptions
from relstorage_postgresql.servers import ServerList, Servers


@implementer(IBackend)
class PostgresBackend:
    """PostgreSQL 12 or newer."""

    name = "postgresql"
    title = "PostgreSQL"
    sections = ("postgresql",)
    schemes = ("postgresql", "postgres")
    options_class = PostgresOptions
    drivers = ("postgresql.psycopg", "postgresql.psycopg2", "postgresql.psycopg2cffi", "postgresql.pg8000")
    requires = "relstorage-postgresql"

    def adapter(self, options: PostgresOptions, storage_options: Options, driver: Any) -> PostgresAdapter:
        parameters = dsn.parse(options.dsn)
        listed = to_read = None
        timeout = storage_options.replica_timeout
        if storage_options.ro_replica_conf is not None:
            to_read = ServerList(storage_options.ro_replica_conf, parameters, timeout, writable=False)
        if storage_options.replica_conf is not None:
            listed = ServerList(storage_options.replica_conf, parameters, timeout, writable=True)
            parameters = dict(listed.in_order()[0].parameters)
        settings = SessionSettings(
            parameters=parameters,
            name=dsn.describe(parameters, options.schema),
            schema=options.schema,
            lock_timeout=storage_options.commit_lock_timeout,
            pooled=options.transaction_pooling,
        )
        return PostgresAdapter(
            storage_options.keep_history,
            driver,
            settings,
            Servers(driver, settings, listed, to_read),
            options.early_lock_release,
        )


backend = PostgresBackend()

"""Real database servers for the tests, the benchmarks and the demonstration. `debian` finds or installs the programs,
`postgresql` and `pgbouncer` run them: each server is private, lives in a directory of its own below the system's
temporary directory, and is gone when its `with` block or its process ends.

    from servers.postgresql import PostgresServer

    with PostgresServer.create() as server:
        print(server.dsn())

Only the standard library is used: this works before anything is installed. Linux only, because it reads /proc.
"""

"""The servers that tests run on do what tests ask of them, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def postgres(new_postgres: Callable[..., Any]) -> Iterator[Any]:
    with new_postgres() as server:
        yield server


@pytest.fixture
def table(postgres: Any) -> Any:
    """A server whose database has a table."""
    postgres.psql("CREATE TABLE notes (text text); INSERT INTO notes VALUES ('first')", user="zodb")
    return postgres


def notes(server: Any) -> list[str]:
    return server.psql("SELECT text FROM notes").splitlines()


def state_of(process: int) -> str:
    """Return the letter that the system has for the state of a process; empty if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def eventually(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_so()


def family(server: Any) -> list[int]:
    from servers.processes import descendants

    return [server.process, *descendants(server.process)]


def test_the_owner_of_the_database_is_an_ordinary_role(postgres: Any) -> None:
    assert postgres.psql("SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user", "zodb") == "zodb|f"
    assert postgres.psql("SELECT datdba::regrole FROM pg_database WHERE datname = 'zodb'") == "zodb"


def test_nobody_gets_in_without_the_password(postgres: Any) -> None:
    from servers.addresses import psql
    from servers.daemon import ServerError

    wrong = type(postgres.address())(postgres.port, "zodb", "guessed", "zodb")

    with pytest.raises(ServerError, match="password authentication failed") as caught:
        psql(wrong, "SELECT 1")
    assert "guessed" not in str(caught.value)


def test_a_commit_is_flushed_to_disk_unless_somebody_says_otherwise(postgres: Any) -> None:
    assert postgres.psql("SHOW fsync") == postgres.psql("SHOW synchronous_commit") == "on"


def test_settings_are_those_asked_for(new_postgres: Callable[..., Any]) -> None:
    with new_postgres(settings={"lock_timeout": "7s", "fsync": False}) as server:
        server.set(work_mem="5MB")

        assert server.psql("SHOW lock_timeout; SHOW fsync; SHOW work_mem").split() == ["7s", "off", "5MB"]


def test_a_server_that_was_restarted_has_its_data_on_the_same_port(table: Any) -> None:
    before = table.dsn(), table.process

    table.restart()

    assert notes(table) == ["first"]
    assert table.dsn() == before[0] and table.process != before[1]


def test_a_server_that_crashed_has_what_was_committed(table: Any) -> None:
    processes = family(table)

    table.kill()

    assert len(processes) > 3
    assert all(state_of(process) in ("", "Z") for process in processes)
    table.start()
    assert notes(table) == ["first"]
    assert "not properly shut down" in table.log


def test_a_server_that_hangs_goes_on_later(table: Any) -> None:
    table.pause()

    assert all(eventually(lambda process=process: state_of(process) == "T") for process in family(table))
    table.resume()
    assert notes(table) == ["first"]


def test_a_server_that_hangs_can_be_stopped(table: Any) -> None:
    table.pause()

    table.stop()

    assert table.process is None


def test_a_server_that_does_not_start_says_why(new_postgres: Callable[..., Any]) -> None:
    from servers.daemon import ServerError

    with pytest.raises(ServerError, match=r"instead of starting(.|\n)*invalid value for parameter"):
        new_postgres(settings={"shared_buffers": "nonsense"})


def test_a_standby_follows_its_primary_and_takes_over(table: Any) -> None:
    with table.make_standby() as standby:
        table.psql("INSERT INTO notes VALUES ('second')")
        standby.wait_for(table)
        assert notes(standby) == ["first", "second"]

        table.kill()
        standby.promote()

        standby.psql("INSERT INTO notes VALUES ('third')", user="zodb")
        assert notes(standby) == ["first", "second", "third"]


def test_a_promoted_standby_waits_for_no_other(table: Any) -> None:
    with table.make_standby(synchronous=True) as first:
        assert table.psql("SELECT sync_state FROM pg_stat_replication") == "sync"
        with table.make_standby() as second:
            table.kill()
            first.kill()
            second.promote()

            assert second.psql("SHOW synchronous_standby_names") == ""


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_clients_of_pgbouncer_share_a_connection(postgres: Any, new_pgbouncer: Callable[..., Any], mode: str) -> None:
    with new_pgbouncer(postgres.dsn(), mode) as bouncer:
        first, second = (bouncer.psql("SELECT pg_backend_pid()") for _ in range(2))

        assert first == second
        assert bouncer.psql("SHOW POOLS", dbname="pgbouncer").splitlines()[-1].endswith(f"|{mode}")


def test_a_pgbouncer_that_crashed_starts_again(postgres: Any, new_pgbouncer: Callable[..., Any]) -> None:
    with new_pgbouncer(postgres.dsn()) as bouncer:
        bouncer.kill()
        assert bouncer.process is None

        bouncer.start()

        assert bouncer.psql("SELECT current_user") == "zodb"


def test_nothing_is_left_of_a_server_that_was_closed(new_postgres: Callable[..., Any]) -> None:
    with new_postgres() as server:
        processes, directory = family(server), server.socket_directory
        server.kill()

    assert not directory.exists()
    assert all(state_of(process) in ("", "Z") for process in processes)


def test_nothing_is_left_of_a_server_whose_test_was_killed(new_postgres: Callable[..., Any]) -> None:
    program = (
        "from servers.postgresql import PostgresServer; from servers.processes import descendants; import time\n"
        "server = PostgresServer.create()\n"
        "print(server.socket_directory, server.process, *descendants(server.process), flush=True)\n"
        "time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        directory, *processes = test.stdout.readline().split()
        assert Path(directory).is_dir() and len(processes) > 3

        test.send_signal(signal.SIGKILL)

    assert eventually(lambda: not Path(directory).exists())
    assert all(state_of(int(process)) in ("", "Z") for process in processes)


def test_an_address_survives_its_connection_string() -> None:
    from servers.addresses import Address

    address = Address(4711, "o'neil", "a \\ b='", "some base", "/run/pg")

    assert Address.parse(address.dsn) == address


def test_who_may_not_install_is_told_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    from bootstrap import BootstrapError
    from servers.debian import Package, provide

    if shutil.which("apt-get") is None:
        pytest.skip("not a Debian")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(BootstrapError, match="Type: sudo apt-get update && sudo apt-get install -y no-such-package$"):
        provide([Package("no-such-package", ("no-such-program",))])

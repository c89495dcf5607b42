"""What the sessions of every driver do alike: values, transactions, what is known after a failure, connections."""

from __future__ import annotations

import signal
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
from postgresql_drivers import DRIVERS, TEXT_DRIVERS, usable_driver
from postgresql_target import Postgres

from relstorage.errors import (
    Disconnected,
    DriverError,
    Failure,
    PluginUnavailable,
    RelStorageError,
    UnableToAcquireCommitLockError,
)
from relstorage.plugins import BACKENDS, installed
from relstorage_postgresql import dsn
from relstorage_postgresql.drivers.failures import AlreadyThere
from relstorage_postgresql.drivers.settings import SessionSettings
from relstorage_postgresql.statements import call

ADD = call("add", "INSERT INTO thing VALUES (:oid, :state)", "oid state")
SUM = call("sum", "SELECT :oid + :tid", "oid tid", "sum")
PREPARED = call("prepared", "SELECT count(*) FROM pg_prepared_statements", "", "count")
OIDS = call("oids", "SELECT oid FROM thing ORDER BY oid", "", "oid")
WAIT = call("wait", "SELECT pg_sleep(60)::text", "", "void")
ZERO = call("divide", "SELECT 1 / :oid", "oid", "quotient")


@pytest.fixture
def settings(postgres_address, tmp_path):
    """The settings of sessions on an empty schema with one table."""
    target = Postgres()
    target.address = postgres_address
    database = target.new_database(tmp_path)
    made = SessionSettings(dsn.parse(postgres_address), "the database", schema=database["schema"])
    with target.connect(database) as connection:
        connection.execute("CREATE TABLE thing (oid bigint PRIMARY KEY, state bytea)")
    yield made
    target.remove_database(database)


@pytest.fixture(params=DRIVERS)
def driver(request, missing):
    return usable_driver(request.param, missing)


@pytest.fixture
def connect(driver, settings):
    """Return a function that opens a session."""
    with ExitStack() as stack:

        def connect(**changes):
            session = driver.open_session(replace(settings, **changes), "store")
            stack.callback(session.close)
            return session

        yield connect


@pytest.fixture
def session(connect):
    return connect()


only_text = pytest.mark.parametrize("driver", TEXT_DRIVERS, indirect=True)


@pytest.fixture
def messages(session, monkeypatch):
    """The texts that a session of a text driver sends."""
    sent = []
    query = session.query

    def noted(text):
        sent.append(text)
        return query(text)

    monkeypatch.setattr(session, "query", noted)
    return sent


# --- values


def test_values_come_as_the_types_of_python(session):
    types = call("types", "SELECT :oid, :state, :name, :packed, NULL", "oid state name packed", "a b c d e")
    for _ in range(3):
        row = session.row(types, (-5, b"\0\xff\\'", "a'\\%", True))
        assert tuple(row) == (-5, b"\0\xff\\'", "a'\\%", True, None)
        assert [type(cell) for cell in row] == [int, bytes, str, bool, type(None)]


def test_lists_go_to_the_server_whole(session):
    lists = call("lists", "SELECT oid, state FROM unnest(:oids, :states) u (oid, state)", "oids states", "oid state",
                 "oids states")  # fmt: skip
    rows = [(1, b"a"), (2, None), (3, b"\\")]
    for _ in range(3):
        assert list(map(tuple, session.rows(lists, ([1, 2, 3], [b"a", None, b"\\"])))) == rows


def test_a_parameter_may_be_used_twice_and_another_not_at_all(session):
    twice = call("twice", "SELECT :oid, :oid", "oid", "a b")
    for number in range(3):
        assert tuple(session.row(twice, (number,))) == (number, number)


def test_bytes_are_read_in_the_old_form_too(connect, settings):
    session = connect(parameters=dsn.with_setting(settings.parameters, "bytea_output", "escape"))
    value = bytes(range(256))
    assert tuple(session.row(call("back", "SELECT :state", "state", "state"), (value,))) == (value,)


def test_strings_that_are_not_standard_change_nothing(connect, settings):
    session = connect(parameters=dsn.with_setting(settings.parameters, "standard_conforming_strings", "off"))
    back = call("back", "SELECT :state, :name", "state name", "state name")
    assert tuple(session.row(back, (b"\\\x01'", "\\n'"))) == (b"\\\x01'", "\\n'")


def test_run_tells_how_many_rows_were_changed(session):
    for number in range(3):
        session.run(ADD, (number, b""))
    remove = call("remove", "DELETE FROM thing WHERE oid >= :oid", "oid")
    assert session.run(remove, (1,)) == 2


def test_a_stream_brings_all_rows(session):
    session.begin_snapshot()
    numbers = call("numbers", "SELECT n, 'x'::bytea FROM generate_series(1, :limit) n", "limit", "n x")
    assert [row[0] for row in session.stream(numbers, (1000,))] == list(range(1, 1001))


def test_a_batch_returns_the_last_rows_that_there_are(session):
    session.begin_write()
    assert session.batch((SUM, (1, 2)), (SUM, (3, 4)), (ADD, (1, b"")))[0][0] == 7
    session.commit()
    assert session.rows(OIDS)[0][0] == 1


def test_a_batch_without_rows_is_executed(session):
    assert session.batch((ADD, (1, b"")), (ADD, (2, b""))) == []
    assert len(session.rows(OIDS)) == 2


# --- round trips


@only_text
def test_a_transaction_begins_with_its_first_statement(session, messages):
    session.begin_write()
    session.row(SUM, (1, 2))
    session.row(SUM, (3, 4))
    assert len(messages) == 2
    assert messages[0].startswith("BEGIN ")


@only_text
def test_a_finish_is_one_message(session, messages):
    session.begin_write()
    session.run(ADD, (1, b"a"))
    messages.clear()
    rows = session.finish([(ADD, (2, b"b"))], [(OIDS, ())])
    assert [row[0] for row in rows] == [1, 2]
    assert len(messages) == 1
    assert not session.in_transaction


@only_text
def test_what_is_executed_again_is_prepared(session):
    for number in range(4):
        assert session.row(SUM, (number, 1))[0] == number + 1
    assert session.row(PREPARED)[0] == 1


@only_text
def test_nothing_is_prepared_behind_a_transaction_pooler(connect):
    session = connect(pooled=True)
    for number in range(4):
        assert session.row(SUM, (number, 1))[0] == number + 1
    assert session.row(PREPARED)[0] == 0


@only_text
def test_a_statement_is_prepared_later_where_the_server_did_not_get_to_it(session):
    session.row(SUM, (1, 1))
    with pytest.raises(DriverError, match="division by zero"):
        session.batch((ZERO, (0,)), (SUM, (1, 2)))
    assert session.row(SUM, (1, 3))[0] == 4
    assert session.row(PREPARED)[0] == 1


# --- failures


def test_after_a_failure_before_the_commit_it_is_known_that_nothing_was_committed(session):
    session.begin_write()
    session.run(ADD, (1, b""))
    with pytest.raises(DriverError, match="division by zero"):
        session.finish([(ZERO, (0,))], [(OIDS, ())])
    assert session.in_transaction
    session.rollback()
    assert session.rows(OIDS) == []


def test_after_a_failure_behind_the_commit_another_session_has_to_tell(session):
    session.begin_write()
    with pytest.raises(Disconnected, match="just after a commit"):
        session.finish([(ADD, (1, b""))], [(ZERO, (0,))])
    assert not session.in_transaction
    assert len(session.rows(OIDS)) == 1


def test_a_connection_that_ends_in_a_finish_leaves_it_to_another_session(connect):
    session = connect()
    session.begin_write()
    session.run(ADD, (1, b""))
    end = call("end", "SELECT pg_terminate_backend(pg_backend_pid())", "", "ended")
    with pytest.raises(Disconnected):
        session.finish([(end, ())], [(OIDS, ())])
    assert session.lost
    assert not session.in_transaction


@only_text
def test_a_transaction_with_a_failed_statement_cannot_be_committed(session):
    session.begin_write()
    session.run(ADD, (1, b""))
    with pytest.raises(DriverError):
        session.row(ZERO, (0,))
    with pytest.raises(DriverError, match="cannot be committed after"):
        session.commit()
    assert session.rows(OIDS) == []


def test_the_second_row_of_a_key_is_told_from_other_failures(session):
    session.run(ADD, (1, b""))
    with pytest.raises(AlreadyThere):
        session.run(ADD, (1, b""))


def test_a_lock_is_waited_for_as_long_as_was_said(connect):
    holder, waiter = connect(), connect()
    holder.begin_write()
    holder.run(ADD, (1, b""))
    waiter.begin_write(0.05)
    with pytest.raises(UnableToAcquireCommitLockError):
        waiter.run(ADD, (1, b""))
    waiter.rollback()
    holder.rollback()
    waiter.begin_write()
    waiter.run(ADD, (1, b""))
    waiter.commit()


def test_a_connection_that_the_server_ended_is_noticed_between_transactions(connect):
    session, other = connect(), connect()
    session.begin_snapshot()
    pid = session.row(call("pid", "SELECT pg_backend_pid()::bigint", "", "pid"))[0]
    session.rollback()
    assert not session.lost
    other.row(call("end", "SELECT pg_terminate_backend(:pid::int, 10000)", "pid", "ended"), (pid,))
    # The end arrives a moment after the process is gone.
    for _ in range(1000):
        if session.lost:
            break
        other.row(SUM, (1, 1))
    assert session.lost
    with pytest.raises(Disconnected):
        session.begin_snapshot()


def test_a_connection_that_the_server_ends_meanwhile_is_an_error_of_its_own(connect):
    session, other = connect(), connect()
    session.begin_snapshot()
    pid = session.row(call("pid", "SELECT pg_backend_pid()::bigint", "", "pid"))[0]
    other.row(call("end", "SELECT pg_terminate_backend(:pid::int, 10000)", "pid", "ended"), (pid,))
    with pytest.raises(Disconnected):
        session.row(SUM, (1, 2))
    session.rollback()
    assert session.lost


# libpq waits by itself where psycopg 3 executes one statement, and signals wait for it.
@only_text
class Interruption(BaseException):
    """What a signal, or a greenlet's end, raises in the middle."""


@pytest.mark.parametrize("end", ["rollback", "commit", None])
def test_a_transaction_that_another_was_to_follow_is_ended_all_the_same(connect, end):
    # As after an interruption between a beginning and its first statement.
    session, other = connect(), connect()
    session.begin_snapshot()
    assert session.rows(OIDS) == []
    session.begin_snapshot()
    if end is not None:
        getattr(session, end)()
    other.run(ADD, (1, b""))
    session.begin_snapshot()
    assert [tuple(row) for row in session.rows(OIDS)] == [(1,)]


def test_a_stream_that_is_closed_late_leaves_later_transactions_alone(session):
    numbers = call("numbers", "SELECT n, 'x'::bytea FROM generate_series(1, :limit) n", "limit", "n x")
    session.begin_snapshot()
    rows = session.stream(numbers, (10000,))
    next(rows)
    session.rollback()
    session.begin_snapshot()
    assert session.rows(OIDS) == []
    rows.close()
    assert session.rows(OIDS) == []


def test_an_interruption_while_the_end_is_looked_for_closes_the_session(session, monkeypatch):
    if not hasattr(session, "_drain"):
        pytest.skip("the driver waits for the answer to a ROLLBACK")

    def interrupted():
        raise Interruption

    session.begin_snapshot()
    session.rows(OIDS)
    session.rollback()
    deadline = time.monotonic() + 10
    monkeypatch.setattr(session, "_drain", interrupted)
    with pytest.raises(Interruption):
        # Its answer is here within a moment.
        while time.monotonic() < deadline:
            assert not session.lost
    assert session.lost


def test_an_interruption_in_the_middle_closes_the_session(session):
    def interrupt(number, frame):
        raise Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        session.begin_write()
        session.row(SUM, (1, 2))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interruption):
            session.row(WAIT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert session.lost
    assert not session.in_transaction
    with pytest.raises(Disconnected):
        session.row(SUM, (1, 2))


def test_the_fastest_driver_that_works_is_chosen(monkeypatch, missing):
    plugins = installed()
    backend = plugins.load(BACKENDS, "postgresql")
    for name in DRIVERS:
        driver = usable_driver(name, missing)
        assert plugins.driver_for(backend, "auto") is driver
        monkeypatch.setattr(driver, "check", _not_installed)
    with pytest.raises(PluginUnavailable) as caught:
        plugins.driver_for(backend, "auto")
    assert tuple(caught.value.attempts) == backend.drivers


def _not_installed():
    raise ImportError("not here")


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("SELECT pg_terminate_backend(pg_backend_pid())", Failure.DISCONNECTED),
        ("SET LOCAL lock_timeout = 1; LOCK TABLE thing", Failure.LOCK_TIMEOUT),
        ("SELECT 1 / 0", Failure.OTHER),
    ],
)
def test_a_driver_knows_what_its_own_exceptions_mean(driver, connect, text, failure):
    other = connect()
    other.begin_write()
    other.script("LOCK TABLE thing")
    session = connect()
    session.begin_write()
    with pytest.raises(RelStorageError) as raised:
        session.script(text)
    if driver.name != "postgresql.psycopg":
        assert driver.classify(raised.value.__cause__) is failure
    assert driver.classify(KeyError("x")) is Failure.OTHER


@pytest.fixture
def secret(settings):
    """The password that the server wants; any, with two blanks in it, if it wants none."""
    return settings.parameters.get("password", "blue  sky")


def test_no_error_shows_the_password(driver, settings, secret):
    parameters = {**settings.parameters, "password": secret, "dbname": secret}
    with pytest.raises(Disconnected) as raised:
        driver.open_session(replace(settings, parameters=parameters), "load")
    assert "***" in str(raised.value)
    assert secret.split()[-1] not in str(raised.value)


def test_no_error_of_a_statement_shows_the_password(connect, settings, secret):
    session = connect(parameters={**settings.parameters, "password": secret})
    with pytest.raises(DriverError) as raised:
        session.script(f"""DO $$ BEGIN RAISE EXCEPTION 'the {secret}'; END $$""")
    assert "the ***" in str(raised.value)


# --- connections


def test_parameters_may_have_any_characters(connect, settings):
    session = connect(parameters=dsn.with_setting(settings.parameters, "test.name", "a ä'\\ %25 &=?"))
    assert session.script("SELECT current_setting('test.name')")[0][0] == "a ä'\\ %25 &=?"


def test_a_role_and_a_schema_hold_from_the_start(session, settings):
    assert session.script("SELECT current_schema()")[0][0] == settings.schema


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "psycopg2cffi"], indirect=True)
def test_the_next_server_is_tried_where_one_refuses(connect, settings):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        parameters = dict(settings.parameters)
        for name, value in (("host", parameters["host"]), ("port", parameters.get("port", "5432"))):
            parameters[name] = f"{'127.0.0.1' if name == 'host' else nobody.getsockname()[1]},{value}"
        assert connect(parameters=parameters).row(SUM, (1, 2))[0] == 3


@pytest.fixture
def silent():
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def test_a_server_that_does_not_answer_is_given_up(driver, settings, silent):
    parameters = {"host": "127.0.0.1", "port": silent, "dbname": "b", "sslmode": "disable", "connect_timeout": "2"}
    with pytest.raises(Disconnected, match="Connecting to the database"):
        driver.open_session(replace(settings, parameters=parameters), "load")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "psycopg2cffi"], indirect=True)
def test_the_next_server_is_tried_where_one_does_not_answer(connect, settings, silent):
    own = settings.parameters
    parameters = {
        **own, "host": f"127.0.0.1,{own['host']}", "port": f"{silent},{own.get('port', '5432')}", "connect_timeout": "2"
    }  # fmt: skip
    assert connect(parameters=parameters).row(SUM, (1, 2))[0] == 3


def test_the_time_to_connect_does_not_limit_what_comes_later(connect, settings):
    session = connect(parameters={**settings.parameters, "connect_timeout": "2"})
    assert session.script("SELECT pg_sleep(2.5)", "SELECT 1")[0][0] == 1


def test_other_threads_run_while_a_session_waits(connect):
    holder, waiter = connect(), connect()
    holder.begin_write()
    holder.run(ADD, (1, b""))
    waiter.begin_write()
    failures = []

    def wait():
        try:
            waiter.run(ADD, (1, b""))
        except AlreadyThere as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    holder.commit()
    thread.join(60)
    assert len(failures) == 1


def test_a_closed_session_can_be_closed_again_and_rolled_back(session):
    session.begin_write()
    session.run(ADD, (1, b""))
    session.close()
    session.rollback()
    session.close()
    assert session.lost


# --- names


@pytest.mark.parametrize("name", TEXT_DRIVERS)
def test_the_name_that_relstorage_gives_to_a_driver_for_gevent_selects_it(name, missing):
    assert usable_driver(f"gevent {name}", missing).name == f"postgresql.{name}"

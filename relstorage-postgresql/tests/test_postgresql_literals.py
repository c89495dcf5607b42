"""Values that become SQL literals arrive at the server as they were, whatever its settings."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from relstorage_postgresql.drivers.literals import literal
from relstorage_postgresql.drivers.pg8000 import decode_bytea

VALUES = {
    "bigint": some.integers(-(2**63), 2**63 - 1),
    "oid": some.integers(0, 2**32 - 1),
    "boolean": some.booleans(),
    "bytea": some.binary(max_size=300),
    "text": some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"])),
}
VALUES.update({f"{name}[]": some.lists(some.none() | each, max_size=8) for name, each in VALUES.items()})
ODD_TEXT = "'\\ \" {a,b} NULL null $1 :oid %s -- /* \n;"


@pytest.fixture(scope="module", params=["on", "off"])
def server(request, postgres_address):
    """A connection on which plain strings do, or do not, take a backslash for itself."""
    options = f"-c standard_conforming_strings={request.param} -c escape_string_warning=on"
    with psycopg.connect(postgres_address, autocommit=True, options=options) as connection:
        yield connection


@pytest.mark.parametrize("type_name", sorted(VALUES))
def test_the_server_reads_the_value_that_was_written(server, type_name):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(VALUES[type_name])
    @example(None)
    def check(value):
        ((read,),) = server.execute(f"SELECT {literal(value, type_name)}::{type_name}".encode()).fetchall()
        assert read == value

    check()


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("text", ODD_TEXT),
        ("text[]", [ODD_TEXT, None, "", "NULL"]),
        ("bytea", bytes(range(256))),
        ("bytea[]", [bytes(range(256)), None, b"", b"\\x00"]),
        ("bigint", -(2**63)),
        ("bigint[]", []),
    ],
)
def test_what_sql_could_take_for_something_else_arrives(server, type_name, value):
    ((read,),) = server.execute(f"SELECT {literal(value, type_name)}::{type_name}".encode()).fetchall()
    assert read == value


def test_a_negative_number_does_not_begin_a_comment(server):
    assert server.execute(f"SELECT 1 -{literal(-1, 'bigint')}::bigint").fetchone() == (2,)


def test_a_text_with_a_zero_byte_is_refused():
    with pytest.raises(ValueError, match="number 0"):
        literal("a\0'; DROP TABLE object_state", "text")


@pytest.mark.parametrize("form", ["hex", "escape"])
def test_both_forms_of_bytea_are_understood(server, form):
    value = bytes(range(256)) + rb"\x41\101\\"
    with server.transaction():
        server.execute(f"SET LOCAL bytea_output = {form}")
        (text,) = server.execute("SELECT %b::bytea::text", [value]).fetchone()
    assert decode_bytea(text) == value

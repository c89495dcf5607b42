"""Connection strings: what they mean, that libpq agrees, and that no secret gets out of them."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from relstorage.errors import ConfigurationError
from relstorage_postgresql import dsn

settings.register_profile("printed seed", print_blob=True)
settings.load_profile("printed seed")

KEYWORDS = sorted(dsn.PARAMETERS - {"requiressl"})
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
parameters = st.dictionaries(st.sampled_from(KEYWORDS), text, max_size=8)
# What makes a difference to a parser of connection strings, more often than chance would have it.
awkward = st.text(st.sampled_from("ab'\\= \t\n\v\f\r\x1c\xa0%@:/?#&,[]+-*\"ü20"), max_size=12)


def libpq_parses(conninfo):
    """Return what libpq reads, without the parameters that this libpq lacks, or None where it refuses."""
    psycopg = pytest.importorskip("psycopg")
    from psycopg.conninfo import conninfo_to_dict

    try:
        return conninfo_to_dict(conninfo)
    except (psycopg.Error, UnicodeError):
        return None


def libpq_keywords():
    pq = pytest.importorskip("psycopg").pq
    return {each.keyword.decode() for each in pq.Conninfo.get_defaults()}


# --- keywords and values


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", {}),
        (" \n ", {}),
        ("host=db dbname=zodb", {"host": "db", "dbname": "zodb"}),
        ("host = db\n\tport= 5433 ", {"host": "db", "port": "5433"}),
        ("password='a b' user=u", {"password": "a b", "user": "u"}),
        (r"password='it\'s \\ here'", {"password": r"it's \ here"}),
        (r"password=a\ b\'c", {"password": "a b'c"}),
        ("password='a'user=b", {"password": "a", "user": "b"}),
        ("password=a=b'c", {"password": "a=b'c"}),
        ("password=''", {"password": ""}),
        ("host=", {"host": ""}),
        ("host=a host=b", {"host": "b"}),
        ("host=/run/postgresql", {"host": "/run/postgresql"}),
        ("dbname=a\\", {"dbname": "a"}),
        ("new_parameter=1", {"new_parameter": "1"}),
        ("requiressl=1", {"sslmode": "require"}),
        ("requiressl=0", {"sslmode": "prefer"}),
    ],
)
def test_keywords_and_values_are_read(written, meant):
    assert dsn.parse(written) == meant


@pytest.mark.parametrize("written", ["host", "host db", "=db", "host=a b", "password='a", r"password='a\'", "a=b\0"])
def test_what_is_not_keywords_and_values_is_refused(written):
    with pytest.raises(ConfigurationError):
        dsn.parse(written)


def test_the_place_of_a_mistake_is_named():
    with pytest.raises(ConfigurationError, match="from its character 7 on"):
        dsn.parse("host=a sesame")


def test_the_order_of_parameters_is_kept():
    assert list(dsn.parse("user=a host=b dbname=c")) == ["user", "host", "dbname"]


@given(parameters)
def test_what_is_written_is_read_again(meant):
    assert dsn.parse(dsn.format(meant)) == meant


@given(parameters)
def test_libpq_reads_what_is_written(meant):
    known = libpq_keywords()
    meant = {name: value for name, value in meant.items() if name in known}
    assert libpq_parses(dsn.format(meant)) == meant


@given(st.lists(st.tuples(st.sampled_from(["host", " user", "password "]), awkward)))
@example([("host", "\\")])
@example([("host", "'a'"), ("user", "b")])
def test_libpq_reads_the_same_in_any_keywords_and_values(pairs):
    written = " ".join(f"{name}={value}" for name, value in pairs)
    try:
        ours = dsn.parse(written)
    except ConfigurationError:
        ours = None
    # libpq refuses a keyword that it does not know; this is not for us to decide.
    assume(ours is None or ours.keys() <= libpq_keywords())
    assert libpq_parses(written) == ours


@pytest.mark.parametrize("wrong", [{"ho st": "a"}, {"": "a"}, {"a=b": "c"}, {"password": "sesame\0"}])
def test_what_cannot_be_written_is_refused_without_showing_it(wrong):
    with pytest.raises(ConfigurationError) as refused:
        dsn.format(wrong)
    assert "sesame" not in str(refused.value)


# --- URIs


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", {}),
        ("/", {}),
        ("/zodb", {"dbname": "zodb"}),
        ("db", {"host": "db"}),
        ("db:5433/zodb", {"host": "db", "port": "5433", "dbname": "zodb"}),
        ("db:/zodb", {"host": "db", "dbname": "zodb"}),
        ("user@db", {"user": "user", "host": "db"}),
        ("user:@db", {"user": "user", "host": "db"}),
        (":p@db", {"password": "p", "host": "db"}),
        ("u%40x:p%2F%3Aw@db", {"user": "u@x", "password": "p/:w", "host": "db"}),
        ("u:p%C3%BC@db", {"user": "u", "password": "pü", "host": "db"}),
        ("u:p#:?=&[w@db", {"user": "u", "password": "p#:?=&[w", "host": "db"}),
        ("@db", {"host": "db"}),
        ("a,b:5433,[::1]:5434/zodb", {"host": "a,b,::1", "port": ",5433,5434", "dbname": "zodb"}),
        ("[2001:db8::1]/zodb", {"host": "2001:db8::1", "dbname": "zodb"}),
        ("%2Frun%2Fpostgresql/zodb", {"host": "/run/postgresql", "dbname": "zodb"}),
        ("/zodb?host=/run/postgresql&user=u", {"dbname": "zodb", "host": "/run/postgresql", "user": "u"}),
        ("db?sslmode=require&", {"host": "db", "sslmode": "require"}),
        ("db?ssl=true", {"host": "db", "sslmode": "require"}),
        ("db/?password=a+b@c/?", {"host": "db", "password": "a+b@c/?"}),
        ("db?options=-c%20x%3Dy", {"host": "db", "options": "-c x=y"}),
        ("db?user=", {"host": "db", "user": ""}),
        ("db/a%20b", {"host": "db", "dbname": "a b"}),
        ("a?host=b", {"host": "b"}),
    ],
)
def test_a_uri_is_read_as_libpq_reads_it(scheme, written, meant):
    uri = f"{scheme}://{written}"
    assert dsn.parse(uri) == meant
    assert libpq_parses(uri) == meant


@pytest.mark.parametrize(
    "written",
    [
        "[::1/zodb",
        "[]/zodb",
        "[::1]x/zodb",
        "%zz",
        "u:%@db",
        "db/%00",
        "%E9@db",
        "db?sslmode",
        "db?sslmode=a=b",
        "db?&user=a",
    ],
)
def test_a_uri_that_libpq_refuses_is_refused(written):
    uri = f"postgresql://{written}"
    assert libpq_parses(uri) is None
    with pytest.raises(ConfigurationError):
        dsn.parse(uri)


@pytest.mark.parametrize(
    ("uri", "encoded"),
    [
        ("postgresql://u:qzx/xzq@db/zodb", "%2F"),
        ("postgresql://u:qzx@xzq@db/zodb", "%40"),
        ("postgresql://u:1/qzx@db/zodb", "%2F"),
        ("postgresql://db:qzx/zodb", "number"),
        ("postgresql://u:qzx%zz@db", "%25"),
        ("postgresql://u:qz qzx@db", "%20"),
        ("postgresql://db?password=qzx&xzq", "%26"),
        ("postgresql://db?password=qzx=xzq", "%3D"),
        ("postgresql://db?qzx%20xzq=1", "not a word"),
    ],
)
def test_a_password_that_is_not_encoded_is_refused_without_showing_it(uri, encoded):
    with pytest.raises(ConfigurationError) as refused:
        dsn.parse(uri)
    assert encoded in str(refused.value)
    assert not re.search("[qx]z|z[qx]", str(refused.value))


@given(
    text,
    text,
    st.lists(
        st.tuples(st.sampled_from(["a", "db.example.com", "/run/x", "::1", ""]), st.integers(0, 65535)), max_size=3
    ),
    text,
    parameters,
)
def test_libpq_reads_the_same_in_an_encoded_uri(user, password, servers, database, arguments):
    known = libpq_keywords()
    hosts = ",".join(f"[{host}]:{port}" if host == "::1" else f"{quote(host, '')}:{port}" for host, port in servers)
    query = "&".join(f"{name}={quote(value, '')}" for name, value in arguments.items() if name in known)
    uri = f"postgresql://{quote(user, '')}:{quote(password, '')}@{hosts}/{quote(database, '')}?{query}"
    read = dsn.parse(uri)
    assert read == libpq_parses(uri)
    if "password" not in arguments:
        assert read.get("password", "") == password


@given(awkward)
@example("u:p?q@h")
@example("[a,b:1/c")
def test_libpq_reads_the_same_in_any_uri(rest):
    uri = f"postgresql://{rest}"
    try:
        ours = dsn.parse(uri)
    except ConfigurationError:
        # Some that libpq reads are refused, because what it would read is part of a password.
        return
    assume(ours.keys() <= libpq_keywords())
    # Before version 18 libpq took blanks around a part of a URI for a part of it.
    assume(" " not in rest or pytest.importorskip("psycopg").pq.version() >= 180000)
    assert libpq_parses(uri) == ours


def test_blanks_around_a_part_of_a_uri_do_not_count():
    assert dsn.parse("postgresql:// u : p @ db : 5433 / zodb ?user= v ") == {
        "user": "v",
        "password": "p",
        "host": "db",
        "port": "5433",
        "dbname": "zodb",
    }
    with pytest.raises(ConfigurationError, match="dbname cannot be decoded"):
        dsn.parse("postgresql://db/a b")


def test_every_parameter_of_the_installed_libpq_is_known():
    assert libpq_keywords() <= dsn.PARAMETERS


def test_every_parameter_that_libpq_hides_is_a_secret():
    pq = pytest.importorskip("psycopg").pq
    hidden = {each.keyword.decode() for each in pq.Conninfo.get_defaults() if each.dispchar == b"*"}
    assert "password" in hidden
    assert hidden <= dsn.SECRETS


# --- names


@pytest.mark.parametrize(
    ("written", "schema", "name"),
    [
        ("host=db.example.com port=5432 dbname=zodb user=u password=p", None, "postgresql:db.example.com:5432/zodb"),
        ("host=db dbname=zodb", "site", "postgresql:db/zodb/site"),
        ("host=/run/postgresql dbname=zodb", None, "postgresql:[/run/postgresql]/zodb"),
        ("host=/run/postgresql port=5433 dbname=zodb", None, "postgresql:[/run/postgresql]:5433/zodb"),
        ("postgresql://[::1]:5432/zodb", None, "postgresql:[::1]:5432/zodb"),
        ("hostaddr=10.0.0.1 dbname=zodb", None, "postgresql:10.0.0.1/zodb"),
        ("host=a hostaddr=10.0.0.1", None, "postgresql:a"),
        ("postgresql://a,b:5433/zodb", None, "postgresql:a,b:5433/zodb"),
        ("host=a,b port=5433", None, "postgresql:a:5433,b:5433"),
        ("service=main", None, "postgresql:[service main]"),
        ("dbname=zodb", None, "postgresql:/zodb"),
        ("", None, "postgresql:"),
        ("host=db passfile=/x sslkey=/y sslpassword=z options='-c a=b'", None, "postgresql:db"),
    ],
)
def test_a_database_has_a_name_for_people(written, schema, name):
    assert dsn.describe(dsn.parse(written), schema) == name


@given(parameters)
def test_a_name_shows_nothing_but_the_place_of_the_database(meant):
    hidden = {
        name: value for name, value in meant.items() if name not in ("host", "hostaddr", "port", "dbname", "service")
    }
    place = {name: value for name, value in meant.items() if name not in hidden}
    assert dsn.describe(meant) == dsn.describe(place)


# --- secrets in texts

secrets = st.one_of(text, awkward, st.text("\\", max_size=5)).filter(bool)


def spellings(secret):
    quoted = dsn.format({"password": secret}).removeprefix("password=")
    yield secret
    yield quoted
    yield repr(quoted)
    yield re.sub(r"(\W)", r"\\\1", secret)
    yield secret.replace("'", "''")
    yield repr(secret)
    yield ascii(secret)
    yield quote(secret)
    yield quote(secret, safe="")
    yield quote(secret, safe="!*'();:@&=+$,/?[]#").replace("%20", "+")
    yield "".join(f"%{byte:02x}" for byte in secret.encode())


@given(secrets, st.sampled_from(sorted(dsn.SECRETS)))
@example("\\" * 30, "password")
@example("\\'", "password")
@example("it's 50% \\o/ ü", "password")
def test_no_spelling_of_a_secret_is_left_in_a_text(secret, name):
    for spelling in spellings(secret):
        masked = dsn.mask(spelling, {name: secret, "host": "db"})
        assert re.fullmatch(r"""['"\\]*(\*\*\*['"\\]*)+""", masked)


def test_a_text_without_a_secret_stays():
    assert dsn.mask("connection to db failed", dsn.parse("host=db password=sesame")) == "connection to db failed"
    assert dsn.mask("connection to db failed", {"host": "db", "password": ""}) == "connection to db failed"


def test_the_rest_of_a_text_stays():
    told = "FATAL: \"password='it\\'s\\\\1'\" for postgresql://u:it%27s%5C1@db"
    assert dsn.mask(told, {"password": r"it's\1"}) == "FATAL: \"password='***'\" for postgresql://u:***@db"


def test_a_secret_that_contains_another_is_removed_as_a_whole():
    assert dsn.mask("x open sesame y", {"password": "sesame", "sslpassword": "open sesame"}) == "x *** y"


def test_masking_takes_no_time_for_awkward_passwords():
    dsn.mask("\\" * 200_000 + "x", {"password": "\\" * 40 + "a" + "\\" * 40})


def test_the_path_of_a_key_stays_for_the_operator():
    told = 'private key file "/etc/zodb.key" has group or world access'
    assert dsn.mask(told, {"sslkey": "/etc/zodb.key", "password": "x9"}) == told


# --- settings from the start of a session


def options_of(parameters, **environment):
    return dsn.with_setting(parameters, "search_path", '"My \\Site"', environment)["options"]


def test_a_setting_joins_the_options():
    assert options_of({}) == r'-c search_path="My\ \\Site"'
    assert options_of({"options": "-c a=b"}) == r'-c a=b -c search_path="My\ \\Site"'


def test_a_setting_does_not_hide_the_options_of_the_environment():
    assert options_of({}, PGOPTIONS="-c a=b").startswith("-c a=b -c search_path=")
    assert options_of({"options": "-c c=d"}, PGOPTIONS="-c a=b").startswith("-c c=d -c search_path=")


def test_a_setting_leaves_the_other_parameters_and_the_mapping():
    before = {"host": "db"}
    assert dsn.with_setting(before, "a", "b", {}) == {"host": "db", "options": "-c a=b"}
    assert before == {"host": "db"}

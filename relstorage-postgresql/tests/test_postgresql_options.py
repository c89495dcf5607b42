"""The options of PostgreSQL, by every way to configure it, and what becomes of them without libpq."""

from __future__ import annotations

import dataclasses
import io
import ssl
from importlib import metadata
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import ZConfig

from relstorage.config import zconfig, zodburi
from relstorage.errors import ConfigurationError, UnknownPlugin
from relstorage.options import OptionNames, Options, split_keywords
from relstorage.plugins import DRIVERS, GROUPS, Plugins
from relstorage_postgresql import dsn
from relstorage_postgresql.options import PostgresOptions
from relstorage_postgresql.without_libpq import for_pg8000

SCHEMA = """
<schema>
  <import package="ZODB"/>
  <section type="ZODB.storage" name="*" attribute="storage"/>
</schema>
"""


@pytest.fixture
def opened(monkeypatch):
    calls = []
    for module in (zconfig, zodburi):
        monkeypatch.setattr(module, "open_storage", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def resolve():
    """Return the resolver of URIs, for a process that has only these options of the backend."""
    backend = SimpleNamespace(name="postgresql", options_class=PostgresOptions)

    class Installed(Plugins):
        def backend_for_scheme(self, scheme):
            if scheme not in ("postgresql", "postgres"):
                raise UnknownPlugin(scheme)
            return backend

    return zodburi.Resolver(Installed)


@pytest.fixture
def options_of(resolve, opened):
    """Return a function that returns the options of a URI: the backend's and the storage's."""

    def options_of(uri):
        resolve(uri)[0]()
        return opened.pop()[1:]

    return options_of


@pytest.fixture
def parameters_of(options_of):
    return lambda uri: dsn.parse(options_of(uri)[0].dsn)


def from_file(section, opened):
    schema = ZConfig.loadSchemaFile(io.StringIO(SCHEMA))
    text = f"%import relstorage\n<relstorage>\n{section}\n</relstorage>\n"
    ZConfig.loadConfigFile(schema, io.StringIO(text), url="file:///etc/zodb.conf")[0].storage.open()
    return opened.pop()[1:]


# --- every way


def test_every_option_means_the_same_by_every_way(options_of, opened):
    by_file = from_file(
        "<postgresql>\ndsn host='db' dbname=zodb\ndriver psycopg2\nschema Site\ntransaction-pooling yes\n"
        "early_lock_release no\n</postgresql>",
        opened,
    )
    by_uri = options_of(
        "postgresql://?dsn=host%3D%27db%27+dbname%3Dzodb&driver=psycopg2&schema=Site&transaction_pooling=yes"
        "&early-lock-release=no"
    )
    by_keywords = split_keywords(
        PostgresOptions,
        {
            "dsn": "host='db' dbname=zodb",
            "driver": "psycopg2",
            "schema": "Site",
            "transaction_pooling": True,
            "early_lock_release": False,
        },
    )
    assert by_file == by_uri == by_keywords


def test_nothing_is_required():
    options = PostgresOptions()
    assert (options.dsn, options.schema, options.transaction_pooling, options.early_lock_release, options.driver) == (
        "",
        None,
        False,
        True,
        "auto",
    )


def test_no_parameter_of_libpq_has_the_name_of_an_option():
    assert not dsn.PARAMETERS & {*OptionNames(PostgresOptions, Options)}


@pytest.mark.parametrize("schema", ["", "x" * 64, "ü" * 32, "a\0b"])
def test_a_name_that_no_schema_can_have_is_refused(schema):
    with pytest.raises(ConfigurationError, match="'schema' cannot have this value"):
        PostgresOptions(schema=schema)


def test_a_name_of_a_schema_is_taken_as_it_is():
    assert PostgresOptions(schema=' My "Site"').schema == ' My "Site"'


# --- URIs


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
@pytest.mark.parametrize(
    ("rest", "meant"),
    [
        ("db/zodb", {"host": "db", "dbname": "zodb"}),
        ("u:p%40ss@db:5433/zodb", {"user": "u", "password": "p@ss", "host": "db", "port": "5433", "dbname": "zodb"}),
        ("u:p#[ss@db/zodb", {"user": "u", "password": "p#[ss", "host": "db", "dbname": "zodb"}),
        ("[::1]:5433/zodb", {"host": "::1", "port": "5433", "dbname": "zodb"}),
        ("a:1,b:2/zodb", {"host": "a,b", "port": "1,2", "dbname": "zodb"}),
        ("/zodb?host=/run/postgresql", {"dbname": "zodb", "host": "/run/postgresql"}),
        ("%2Frun%2Fpostgresql/zodb", {"host": "/run/postgresql", "dbname": "zodb"}),
        ("?service=main&connect_timeout=3", {"service": "main", "connect_timeout": "3"}),
        ("db?sslmode=require", {"host": "db", "sslmode": "require"}),
        ("db?ssl_mode=require", {"host": "db", "sslmode": "require"}),
        ("db?SSL-mode=require", {"host": "db", "sslmode": "require"}),
        ("db?options=-c%20a%3Db&application_name=x+y", {"host": "db", "options": "-c a=b", "application_name": "x y"}),
        ("db?target_session_attrs=read-write&keep_history=0", {"host": "db", "target_session_attrs": "read-write"}),
        ("", {}),
    ],
)
def test_a_uri_becomes_a_connection_string(parameters_of, scheme, rest, meant):
    assert parameters_of(f"{scheme}://{rest}") == meant


def test_no_character_of_a_password_is_lost_in_a_uri(parameters_of):
    password = "".join(map(chr, range(1, 300))) + "\U0001f511℀"
    assert parameters_of(f"postgresql://u:{quote(password, safe='')}@db")["password"] == password
    assert parameters_of(f"postgresql://db?password={quote(password, safe='')}")["password"] == password


@pytest.mark.parametrize("name", sorted(dsn.PARAMETERS - {"host", "requiressl"}))
def test_every_parameter_of_libpq_may_be_an_argument(parameters_of, name):
    assert parameters_of(f"postgresql://db?{name}=1") == {"host": "db", name: "1"}


def test_arguments_are_options_too(options_of):
    backend, storage = options_of(
        "postgresql://db?schema=site&keep_history=false&connection_pool_size=3&sslmode=prefer"
    )
    assert backend == PostgresOptions(dsn="host=db sslmode=prefer", schema="site")
    assert storage == Options(keep_history=False)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("db?host=other", "gives the connection parameter 'host' twice"),
        ("db?sslmode=a&ssl_mode=b", "gives the connection parameter 'sslmode' twice"),
        ("db?dsn=dbname%3Dzodb", "the option 'dsn' and connection parameters too"),
        ("?dsn=dbname%3Dzodb&sslmode=require", "the option 'dsn' and connection parameters too"),
        ("db?sslmod=require", "there is no option 'sslmod'"),
        ("db?shema=x", "did you mean 'schema'?"),
        ("db:x/zodb", "a port that is not a number"),
    ],
)
def test_a_wrong_uri_is_refused(resolve, rest, said):
    with pytest.raises(ConfigurationError) as refused:
        resolve(f"postgresql://{rest}")
    assert said in str(refused.value)


def test_a_uri_without_slashes_is_refused(resolve):
    with pytest.raises(ConfigurationError, match="lacks the '//' after 'postgresql:'"):
        resolve("postgresql:db/zodb")


# --- the driver in the scheme


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
@pytest.mark.parametrize("driver", ["psycopg2", "pg8000", "somebody-elses"])
def test_a_scheme_may_name_the_driver(options_of, scheme, driver):
    backend, _ = options_of(f"{scheme}+{driver}://db/zodb?sslmode=require")
    assert backend == PostgresOptions(dsn="host=db dbname=zodb sslmode=require", driver=driver)


@pytest.mark.parametrize("argument", ["psycopg2", "psycopg"])
def test_a_driver_in_the_scheme_and_in_an_argument_is_refused(resolve, argument):
    with pytest.raises(ConfigurationError, match="gives driver both before and after"):
        resolve(f"postgresql+psycopg2://db?driver={argument}")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_zodburi_finds_the_schemes_of_our_drivers(scheme):
    names = {each.name for each in metadata.entry_points(group="zodburi.resolvers")}
    drivers = {name.partition(".")[2] for name in GROUPS[DRIVERS].first_party if name.startswith("postgresql.")}
    assert drivers
    assert {scheme, *(f"{scheme}+{driver}" for driver in drivers)} <= names


# --- secrets

SECRET = "qzx-qzx"


def leaks(problem):
    """Tell whether an exception or one that led to it shows the secret or a half of it."""
    while problem is not None:
        if "qzx" in str(problem) or "qzx" in repr(problem):
            return True
        problem = problem.__cause__ or (None if problem.__suppress_context__ else problem.__context__)
    return False


def test_the_connection_string_is_not_shown(options_of):
    backend, storage = options_of(f"postgresql://u:{SECRET}@db")
    assert SECRET in backend.dsn
    assert SECRET not in f"{backend!r}{backend}{backend!s}{storage!r}"
    assert SECRET not in repr(dataclasses.replace(backend, schema="x"))


@pytest.mark.parametrize(
    "rest",
    [
        "u:qzx?qzx@db/zodb",
        "u:12?qzx@db/zodb",
        "u:qzx/qzx@db/zodb",
        "u:12/qzx@db/zodb",
        "u:qzx@qzx@db/zodb",
        "u:qzx%zz@db/zodb",
        "u:qzx%00@db/zodb",
        "u:qzx%E9@db/zodb",
        "u:qzx qzx@db/zodb",
        "u:qzx@[db/zodb",
        "u:qzx@db:port/zodb",
        "db?password=qzx&password=qzx",
        "db?password=qzx&qzx%20qzx=1",
        "db?password=qzx&schema=",
        "u:qzx@db?password=qzx",
        "u:qzx@db?nosuch=1",
        "?dsn=password%3Dqzx%20qzx",
        "?dsn=password%3D'qzx",
        "db?password=qzx&dsn=password%3Dqzx",
        "db?password=qzx%00",
    ],
)
def test_an_error_of_a_uri_shows_no_password(resolve, rest):
    with pytest.raises(ConfigurationError) as refused:
        resolve(f"postgresql://{rest}")
    assert not leaks(refused.value)


@pytest.mark.parametrize(
    "value", [f"host=a password={SECRET} b", f"postgresql://u:{SECRET}@h:x", f"password='{SECRET}"]
)
def test_an_error_of_a_connection_string_says_what_is_wrong_without_showing_it(value):
    with pytest.raises(
        ConfigurationError, match="'dsn' cannot have this value: the (connection string|URI)"
    ) as refused:
        PostgresOptions(dsn=value)
    assert not leaks(refused.value)


def test_a_connection_string_that_is_no_string_is_not_shown():
    with pytest.raises(ConfigurationError, match="not a value of the type libpq connection string") as refused:
        PostgresOptions(dsn={"password": SECRET})
    assert not leaks(refused.value)


def test_an_error_in_a_file_has_its_line_and_shows_no_password(opened):
    with pytest.raises(ZConfig.DataConversionError, match="'=' and value") as wrong:
        from_file(f"<postgresql>\nschema x\ndsn password={SECRET} {SECRET}\n</postgresql>", opened)
    assert wrong.value.lineno == 5
    assert "qzx" not in str(wrong.value)


# --- without libpq

NOTHING = {"HOME": "/nowhere"}


def keywords(text, **environment):
    return for_pg8000(dsn.parse(text), {**NOTHING, **environment})


def test_parameters_become_keywords_of_pg8000():
    assert keywords(
        "host=db port=5433 dbname=zodb user=u password=p connect_timeout=3 application_name=a options='-c x=y'"
    ) == {
        "host": "db",
        "port": 5433,
        "database": "zodb",
        "user": "u",
        "password": "p",
        "timeout": 3,
        "application_name": "a",
        "ssl_context": None,
        "tcp_keepalive": True,
        "startup_params": {"client_encoding": "UTF8", "options": "-c x=y"},
    }


def test_the_environment_gives_what_the_parameters_leave_out():
    environment = {
        "PGHOST": "db",
        "PGPORT": "5433",
        "PGUSER": "u",
        "PGPASSWORD": "p",
        "PGDATABASE": "zodb",
        "PGAPPNAME": "a",
        "PGOPTIONS": "-c x=y",
        "PGCONNECT_TIMEOUT": "3",
        "PGSSLMODE": "disable",
    }
    found = keywords("", **environment)
    assert found == {
        **keywords("host=db port=5433 dbname=zodb user=u password=p connect_timeout=3 application_name=a"),
        "ssl_context": False,
        "startup_params": {"client_encoding": "UTF8", "options": "-c x=y"},
    }
    assert keywords("host=other password=q", **environment)["host"] == "other"
    assert keywords("host=other password=q", **environment)["password"] == "q"


def test_a_parameter_that_is_given_empty_is_not_taken_from_the_environment():
    assert keywords("user=u dbname=''", PGDATABASE="zodb")["database"] == "u"


def test_the_database_is_named_like_the_user():
    assert keywords("host=db user=u")["database"] == "u"


def test_the_user_of_the_process_connects(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    assert keywords("host=db")["user"] == "somebody"


def test_a_directory_of_sockets_becomes_a_socket_without_encryption():
    found = keywords("host=/run/pg port=5433 user=u sslmode=require")
    assert found["unix_sock"] == "/run/pg/.s.PGSQL.5433"
    assert found["ssl_context"] is False
    assert not {"host", "port"} & found.keys()
    assert keywords("host=@pg user=u")["unix_sock"] == "\0pg/.s.PGSQL.5432"


def test_an_address_takes_the_place_of_the_host():
    assert keywords("host=db hostaddr=10.0.0.1 user=u")["host"] == "10.0.0.1"


def test_without_a_host_the_usual_socket_is_taken_if_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr("relstorage_postgresql.without_libpq._SOCKET_DIRECTORIES", (str(tmp_path),))
    assert keywords("user=u")["host"] == "localhost"
    tmp_path.joinpath(".s.PGSQL.5432").write_text("")
    assert keywords("user=u")["unix_sock"] == f"{tmp_path}/.s.PGSQL.5432"


@pytest.mark.parametrize(
    "text",
    [
        "host=a,b",
        "host=a port=1,2",
        "service=main",
        "target_session_attrs=read-write",
        "channel_binding=require",
        "require_auth=scram-sha-256",
        "requirepeer=postgres",
        "gssencmode=require",
        "sslcertmode=require",
        "sslcrl=/x",
        "sslnegotiation=direct",
        "replication=database",
        "host=a hostaddr=10.0.0.1 sslmode=verify-full",
        "port=x",
        "connect_timeout=x",
        "sslmode=often",
        "sslmode=require ssl_min_protocol_version=SSLv3",
        "sslmode=require sslrootcert=system",
        "sslmode=require sslcert=/nowhere/crt",
        "sslmode=verify-full",
        "sslmode=verify-ca sslrootcert=/nowhere/crt",
    ],
)
def test_what_pg8000_cannot_do_is_refused(text):
    with pytest.raises(ConfigurationError):
        keywords(f"host=db user=u {text} password={SECRET}" if "host" not in text else f"{text} user=u")


def test_what_the_environment_demands_is_not_ignored_either():
    with pytest.raises(ConfigurationError, match="'require_auth'"):
        keywords("host=db user=u", PGREQUIREAUTH="scram-sha-256")


def test_what_pg8000_does_anyway_is_accepted():
    keywords("host=db user=u target_session_attrs=any channel_binding=prefer gssencmode=prefer keepalives_idle=3")


@pytest.mark.parametrize(
    ("text", "context"),
    [("sslmode=disable", False), ("sslmode=allow", None), ("sslmode=prefer", None), ("", None)],
)
def test_encryption_may_be_left_to_the_server(text, context):
    assert keywords(f"host=db user=u {text}")["ssl_context"] is context


AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBoDCCAUWgAwIBAgIUW85p5o2oJFeApBCi1Vq1q9L4kq0wCgYIKoZIzj0EAwIw
JDEiMCAGA1UEAwwZcmVsc3RvcmFnZSB0ZXN0IGF1dGhvcml0eTAgFw0yNjExMjIy
MTAzNDFaGA8yMTI2MTAyOTIxMDM0MVowJDEiMCAGA1UEAwwZcmVsc3RvcmFnZSB0
ZXN0IGF1dGhvcml0eTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOlqYEkCoMFp
RjJfMzi+4Kgp8SYM3TjUwLr4xhSahnGw5xEAFSIvr2RooLJWZmQlBBKDPFDiSO29
VmVe/uJqerCjUzBRMB0GA1UdDgQWBBShs8uU+mP0SIJPZIhV8IBQvaybNjAfBgNV
HSMEGDAWgBShs8uU+mP0SIJPZIhV8IBQvaybNjAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0kAMEYCIQCNZh7RFYE8GAkTwLh0F8xyzTKROcvH633HmkABTtqo
rwIhAL7X9sJFcvFLTI/dqls09ACzKXMxmQ0017I8KVOTsj5s
-----END CERTIFICATE-----
"""


@pytest.mark.parametrize(
    ("text", "verify", "check_hostname"),
    [
        ("sslmode=require", ssl.CERT_NONE, False),
        ("sslmode=require sslrootcert=CA", ssl.CERT_REQUIRED, False),
        ("sslmode=verify-ca sslrootcert=CA", ssl.CERT_REQUIRED, False),
        ("sslmode=verify-full sslrootcert=CA", ssl.CERT_REQUIRED, True),
        ("sslrootcert=system", ssl.CERT_REQUIRED, True),
    ],
)
def test_encryption_is_verified_as_libpq_does(tmp_path, text, verify, check_hostname):
    path = tmp_path / "authority.crt"
    path.write_text(AUTHORITY)
    context = keywords(f"host=db user=u {text.replace('CA', str(path))}")["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (verify, check_hostname)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_an_authority_in_the_home_directory_is_used(tmp_path):
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "root.crt").write_text(AUTHORITY)
    context = keywords("host=db user=u sslmode=require", HOME=str(tmp_path))["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)
    assert len(context.get_ca_certs()) == 1


def test_versions_of_tls_are_bounded():
    context = keywords(
        "host=db user=u sslmode=require ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.3"
    )["ssl_context"]
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3


# --- the password file


@pytest.fixture
def passfile(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "pgpass"
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("db:5432:zodb:u:p", "p"),
        ("*:*:*:*:p", "p"),
        (r"db:5432:zodb:u:p\:\\q", r"p:\q"),
        ("db:5432:zodb:u:p:rest", "p"),
        ("# a comment\n\nother:5432:zodb:u:q\ndb:*:zodb:u:p\n*:*:*:*:r", "p"),
        ("db:5433:zodb:u:p", None),
        ("db:5432:other:u:p", None),
        ("db:5432:zodb:other:p", None),
        ("db:5432:zodb", None),
        ("#*:*:*:*:p", None),
    ],
)
def test_the_password_file_is_read(passfile, line, password):
    assert keywords(f"host=db dbname=zodb user=u passfile={passfile(line)}").get("password") == password


def test_the_password_file_is_the_environments_or_in_the_home_directory(passfile, tmp_path):
    path = passfile("*:*:*:*:p")
    assert keywords("host=db user=u", PGPASSFILE=path)["password"] == "p"
    assert "password" not in keywords("host=db user=u", HOME=str(tmp_path))
    (tmp_path / "pgpass").rename(tmp_path / ".pgpass")
    assert keywords("host=db user=u", HOME=str(tmp_path))["password"] == "p"


def test_a_password_file_that_others_can_read_is_not_used(passfile):
    assert "password" not in keywords(f"host=db user=u passfile={passfile('*:*:*:*:p', 0o640)}")


def test_a_usual_socket_is_localhost_in_a_password_file(passfile):
    path = passfile("localhost:*:*:*:p\n/srv/pg:*:*:*:q")
    assert keywords(f"host=/var/run/postgresql user=u passfile={path}")["password"] == "p"
    assert keywords(f"host=/srv/pg user=u passfile={path}")["password"] == "q"


def test_a_password_that_is_given_wins_over_the_file(passfile):
    assert keywords(f"host=db user=u password=q passfile={passfile('*:*:*:*:p')}")["password"] == "q"

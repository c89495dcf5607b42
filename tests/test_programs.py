"""A storage configured as people configure it, and used through the program it was configured for: a buildout that is
really run, Zope answering requests, Pyramid committing at the end of a request, URIs with whatever a path contains.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import transaction
import ZODB
import zodburi
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid_zodbconn import get_connection
from webtest import TestApp
from ZODB.blob import Blob

PROGRAMS = Path(sys.executable).parent

# What plone.recipe.zope2instance documents for SQLite, and options that RelStorage's users have in their files.
BUILDOUT = """\
[buildout]
parts = instance
offline = true
newest = false

[instance]
recipe = plone.recipe.zope2instance
user = admin:admin
zodb-temporary-storage = off
eggs =
    relstorage-sqlite
rel-storage =
    type sqlite3
    data-dir ${buildout:directory}/var/data
    blob-dir ${buildout:directory}/var/blobs
    keep-history true
    shared-blob-dir false
    blob-cache-size 100MB
    cache-local-mb 50
    cache-local-dir-count 20
    commit-lock-timeout 60
    poll-interval 0
    name main
    driver sqlite3
    pragmas-cache_size 16MB
"""

SECTION = """\
%import relstorage
<relstorage>
  keep-history false
  blob-dir {directory}/blobs
  <sqlite3>
    data-dir {directory}/data
  </sqlite3>
</relstorage>
"""

# Leaves a folder and a blob behind, and prints what was there.
INSTANCE_SCRIPT = """\
import json
import transaction
from OFS.Folder import manage_addFolder
from ZODB.blob import Blob

storage = app._p_jar.db().storage
found = app.hasObject("made")
if not found:
    manage_addFolder(app, "made", title="By a buildout")
    app.made.picture = Blob(b"picture")
    transaction.commit()
with app.made.picture.open() as file:
    picture = file.read().decode()
told = {"found": found, "picture": picture, "name": storage.getName(), "undo": len(app._p_jar.db().undoInfo(0, 100))}
print("TOLD", json.dumps(told))
"""

# Takes its own change back as the tab "Undo" does.
UNDO_SCRIPT = """\
import json
import transaction

app.title = "kept"
transaction.commit()
app.title = "undone"
transaction.get().note("Change the title")
transaction.commit()
database = app.Control_Panel.Database["main"]
[change] = [each["id"] for each in database.undoable_transactions() if " Change the title" in each["id"]]
database.manage_undo_transactions([change])
app._p_jar.sync()
print("TOLD", json.dumps(app.title))
"""

# Answers requests as a server would, and prints the bodies.
ZOPE_PROGRAM = """\
import json
import sys
from webtest import TestApp
from Zope2.Startup.run import make_wsgi_app

client = TestApp(make_wsgi_app({}, sys.argv[1]))
client.authorization = ("Basic", ("admin", "secret"))
print("TOLD", json.dumps([client.get(path).text for path in sys.argv[2:]]))
"""


def told_by(*command: str | Path) -> Any:
    """Run a program and return what it told us by a line of its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    lines = re.findall("^TOLD (.*)$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and lines, done.stdout + done.stderr
    return json.loads(lines[-1])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory whose name has to be escaped somewhere."""
    path = tmp_path / "Müller & Söhne, 50%+"
    path.mkdir()
    return path


@contextmanager
def database_at(uri: str) -> Iterator[ZODB.DB]:
    """Open a URI as zodburi's documentation says."""
    factory, keywords = zodburi.resolve_uri(uri)
    with closing(ZODB.DB(factory(), **keywords)) as db:
        yield db
    transaction.abort()


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance that zc.buildout has made."""
    directory = tmp_path_factory.mktemp("buildout")
    (directory / "buildout.cfg").write_text(BUILDOUT)
    (directory / "var").mkdir()
    # -U: nothing from the user's own defaults.
    command = [PROGRAMS / "buildout", "-U"]
    done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return directory


def test_the_file_that_a_buildout_writes_has_our_section(instance: Path) -> None:
    text = (instance / "parts" / "instance" / "etc" / "zope.conf").read_text()
    assert "%import relstorage" in text
    assert f"data-dir {instance}/var/data" in text


def test_an_instance_made_by_a_buildout_keeps_objects_and_blobs(instance: Path) -> None:
    script = instance / "script.py"
    script.write_text(INSTANCE_SCRIPT)
    program = instance / "bin" / "instance"
    assert told_by(program, "run", script)["found"] is False
    told = told_by(program, "run", script)
    assert (told["found"], told["picture"], told["name"]) == (True, "picture", "main")
    assert told["undo"] > 0
    assert (instance / "var" / "data" / "main.sqlite3").exists()


def test_zope_undoes_a_transaction(instance: Path) -> None:
    script = instance / "undo.py"
    script.write_text(UNDO_SCRIPT)
    assert told_by(instance / "bin" / "instance", "run", script) == "kept"


@pytest.fixture
def zope(directory: Path) -> Callable[..., list[str]]:
    """Return a function that starts Zope for some requests and returns the bodies of the answers."""
    home = directory / "instance"
    make = [PROGRAMS / "mkwsgiinstance", "-d", home, "-u", "admin:secret", "-p", sys.executable]
    subprocess.run(make, check=True, capture_output=True)
    configuration = home / "etc" / "zope.conf"
    text, replaced = re.subn(
        "<filestorage>.*?</filestorage>",
        lambda _: SECTION.format(directory=directory),
        configuration.read_text(),
        flags=re.DOTALL,
    )
    assert replaced == 1
    configuration.write_text(text)
    program = directory / "program.py"
    program.write_text(ZOPE_PROGRAM)
    return lambda *paths: told_by(sys.executable, program, configuration, *paths)


def test_what_is_made_through_zope_is_there_after_a_restart(zope: Callable[..., list[str]]) -> None:
    add = "/manage_addProduct/OFSP/manage_addFolder?id=made&title=By+the+web"
    _, title = zope(add, "/made/title_or_id")
    assert title == "By the web"
    assert zope("/made/title_or_id") == ["By the web"]


@pytest.fixture
def pyramid() -> Callable[..., list[str]]:
    """Return a function that starts a counter in Pyramid, for some requests, and returns the bodies of the answers."""

    def count(request: Any) -> Response:
        root = get_connection(request).root()
        root["count"] = root.get("count", 0) + 1
        return Response(str(root["count"]), status=int(request.params.get("status", 200)))

    def serve(uri: str, *paths: str) -> list[str]:
        settings = {"zodbconn.uri": uri, "tm.manager_hook": "pyramid_tm.explicit_manager"}
        with Configurator(settings={**settings, "tm.commit_veto": "pyramid_tm.default_commit_veto"}) as config:
            config.include("pyramid_tm")
            config.include("pyramid_zodbconn")
            config.add_route("count", "/")
            config.add_view(count, route_name="count")
        application = config.make_wsgi_app()
        client = TestApp(application)
        bodies = [client.get(path, status="*").text for path in paths]
        application.registry._zodb_databases[""].close()
        return bodies

    return serve


def test_pyramid_commits_at_the_end_of_a_request(pyramid: Callable[..., list[str]], directory: Path) -> None:
    uri = f"sqlite://{quote(str(directory))}/data?keep_history=false&connection_pool_size=3"
    assert pyramid(uri, "/", "/") == ["1", "2"]
    assert pyramid(uri, "/") == ["3"]


def test_pyramid_aborts_a_request_that_fails(pyramid: Callable[..., list[str]], directory: Path) -> None:
    uri = f"sqlite://{quote(str(directory))}/data"
    assert pyramid(uri, "/", "/?status=500", "/") == ["1", "2", "2"]


def test_pyramid_takes_a_zconfig_uri(pyramid: Callable[..., list[str]], directory: Path) -> None:
    file = directory / "zodb.conf"
    file.write_text(f"<zodb>\n{SECTION.format(directory=directory)}</zodb>\n")
    assert pyramid(f"zconfig://{file}", "/") == ["1"]
    assert pyramid(f"zconfig://{file}", "/") == ["2"]
    assert (directory / "data" / "main.sqlite3").exists()


@pytest.mark.parametrize("write", [quote, lambda path: path.replace("%", "%25")], ids=["encoded", "as typed"])
def test_a_path_may_have_any_characters(directory: Path, write: Callable[[str], str]) -> None:
    with database_at(f"sqlite://{write(str(directory))}/data?keep_history=false") as db:
        assert not db.supportsUndo()
    assert (directory / "data" / "main.sqlite3").exists()


def test_arguments_of_a_uri_reach_storage_and_database(directory: Path) -> None:
    place = quote(str(directory), safe="")
    uri = (
        f"sqlite:///{place[3:]}%2Fdata?keep_history=false&blob_dir={place}%2Fblobs&shared_blob_dir=true&cache_local_mb=1"
        "&connection_pool_size=3&connection_cache_size=55&database_name=main&pragmas.cache_size=4MB&read_only=no"
    )
    with database_at(uri) as db:
        assert (db.getPoolSize(), db.getCacheSize(), db.database_name) == (3, 55, "main")
        with db.transaction() as connection:
            connection.root()["picture"] = Blob(b"picture")
    assert [path for path in (directory / "blobs").rglob("*.blob")]
    with database_at(uri) as db, db.transaction() as connection, connection.root()["picture"].open() as file:
        assert file.read() == b"picture"


def test_a_database_can_be_opened_by_uri_and_by_file(directory: Path) -> None:
    with database_at(f"sqlite://{quote(str(directory))}/data?keep_history=false") as db, db.transaction() as connection:
        connection.root()["value"] = 1
    file = directory / "zodb.conf"
    file.write_text(f"<zodb>\n{SECTION.format(directory=directory)}</zodb>\n")
    with database_at(f"zconfig://{file}") as db, db.transaction() as connection:
        assert connection.root()["value"] == 1

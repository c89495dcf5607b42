"""The programs that people configure a storage through: Zope, plone.recipe.zope2instance, Pyramid, zodburi, ZODB."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import transaction
import ZODB
import zodburi
from plone.recipe.zope2instance import make
from plone.recipe.zope2instance.recipe import Recipe
from zc.buildout.testing import Buildout
from ZODB.config import databaseFromString, databaseFromURL
from ZODB.DemoStorage import DemoStorage

from relstorage.errors import UnknownPlugin
from relstorage.storage import RelStorage

SECTION = """
    %import relstorage
    <relstorage>
      keep-history false
      blob-dir {directory}/blobs
      cache-local-mb 5
      <sqlite3>
        data-dir {directory}/data
        <pragmas>
          cache_size 4MB
        </pragmas>
      </sqlite3>
    </relstorage>
"""

# Zope opens the database once to make its root folder, and zconsole again for this.
ZOPE_SCRIPT = """
import transaction
from OFS.Folder import manage_addFolder

if "found" not in app.objectIds():
    manage_addFolder(app, "found")
    transaction.commit()
storage = app._p_jar.db().storage
print("opened", type(storage).__module__)
print("folders", "found" in app.objectIds())
"""


@pytest.fixture
def directory(tmp_path):
    """A directory with what has to be escaped somewhere, and with a place for the data."""
    path = tmp_path / "my data"
    path.mkdir()
    return path


def remember(db, value):
    with db.transaction() as connection:
        connection.root()["value"] = value


def remembered(db):
    with db.transaction() as connection:
        return connection.root().get("value")


def database_from(uri):
    factory, keywords = zodburi.resolve_uri(uri)
    return ZODB.DB(factory(), **keywords)


def test_zodb_reads_a_file(directory):
    file = directory / "zodb.conf"
    file.write_text(f"<zodb main>\ncache-size 100\n{SECTION.format(directory=directory)}\n</zodb>\n")
    for value in (None, 1):
        db = databaseFromURL(str(file))
        assert isinstance(db.storage, RelStorage)
        assert remembered(db) == value
        remember(db, 1)
        db.close()


def test_a_storage_wrapper_of_zodb_takes_our_section(directory):
    db = databaseFromString(f"<zodb>\n<demostorage>\n{SECTION.format(directory=directory)}\n</demostorage>\n</zodb>\n")
    assert isinstance(db.storage, DemoStorage)
    remember(db, 1)
    assert remembered(db) == 1
    db.close()


def test_two_databases_of_one_file_are_two(directory):
    sections = ""
    for name in ("one", "two"):
        directory.joinpath(name).mkdir()
        sections += f"<zodb {name}>\n{SECTION.format(directory=directory / name)}\n</zodb>\n"
    file = directory / "zodb.conf"
    file.write_text(sections)
    for number, name in enumerate(("one", "two")):
        db = database_from(f"zconfig://{file}#{name}")
        remember(db, number)
        db.close()
    for number, name in enumerate(("one", "two")):
        db = database_from(f"zconfig://{file}#{name}")
        assert remembered(db) == number
        db.close()


@pytest.mark.parametrize("form", ["sqlite://{}/data?", "sqlite://?data_dir={}/data&"])
def test_zodburi_opens_a_uri(directory, form):
    uri = form.format(quote(str(directory))) + "keep_history=false&connection_cache_size=123&database_name=main"
    for value in (None, 1):
        db = database_from(uri)
        assert isinstance(db.storage, RelStorage)
        assert (db.getCacheSize(), db.database_name) == (123, "main")
        assert not db.supportsUndo()
        assert remembered(db) == value
        remember(db, 1)
        db.close()


def test_a_uri_may_keep_changes_in_memory(directory):
    uri = f"sqlite://{quote(str(directory))}/data"
    db = database_from(uri)
    remember(db, "kept")
    db.close()
    db = database_from(f"{uri}?demostorage=true")
    assert remembered(db) == "kept"
    remember(db, "forgotten")
    assert remembered(db) == "forgotten"
    db.close()
    db = database_from(uri)
    assert remembered(db) == "kept"
    db.close()


def test_demo_uris_take_ours(directory):
    db = database_from(f"demo:(sqlite://{quote(str(directory))}/data)/(memory://)")
    assert isinstance(db.storage, DemoStorage)
    remember(db, 1)
    assert remembered(db) == 1
    db.close()


def test_the_uri_of_a_backend_that_is_not_installed_says_what_to_type():
    with pytest.raises(UnknownPlugin, match="Try: pip install relstorage-oracle"):
        zodburi.resolve_uri("oracle://?user=a&password=b&dsn=c")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:pkg_resources is deprecated:UserWarning")
def test_pyramid_opens_a_uri(directory):
    from pyramid.config import Configurator
    from pyramid.response import Response
    from pyramid_zodbconn import get_connection
    from webtest import TestApp

    def count(request):
        root = get_connection(request).root()
        root["count"] = root.get("count", 0) + 1
        request.tm.commit()
        return Response(str(root["count"]))

    uri = f"sqlite://{quote(str(directory))}/data?keep_history=false&connection_pool_size=3"
    for seen in ("1", "2"):
        with Configurator(settings={"zodbconn.uri": uri}) as config:
            config.include("pyramid_zodbconn")
            config.add_request_method(lambda request: transaction.manager, "tm", reify=True)
            config.add_route("count", "/")
            config.add_view(count, route_name="count")
        app = config.make_wsgi_app()
        assert TestApp(app).get("/").text == seen
        app.registry._zodb_databases[""].close()


def run_zope(configuration: Path, directory: Path) -> str:
    """Let Zope open the database that its configuration names, and return what our script printed."""
    script = directory / "script.py"
    script.write_text(ZOPE_SCRIPT)
    zconsole = Path(sys.executable).with_name("zconsole")
    done = subprocess.run([zconsole, "run", configuration, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_instance(home: Path) -> Path:
    mkwsgiinstance = Path(sys.executable).with_name("mkwsgiinstance")
    command = [mkwsgiinstance, "-d", home, "-u", "admin:admin", "-p", sys.executable]
    subprocess.run(command, check=True, capture_output=True)
    return home / "etc" / "zope.conf"


def test_zope_opens_a_section_of_zope_conf(directory):
    configuration = make_instance(directory / "instance")
    text, replaced = re.subn(
        r"<filestorage>.*?</filestorage>",
        lambda _: SECTION.format(directory=directory),
        configuration.read_text(),
        flags=re.DOTALL,
    )
    assert replaced == 1
    configuration.write_text(text)
    said = run_zope(configuration, directory)
    assert "opened relstorage.storage" in said
    assert "folders True" in said
    assert (directory / "data" / "main.sqlite3").exists()


def test_the_zope2instance_recipe_writes_a_file_that_zope_opens(directory):
    buildout = Buildout()
    buildout["buildout"]["directory"] = str(directory)
    buildout["buildout"]["parts-directory"] = str(directory / "parts")
    buildout["buildout"]["bin-directory"] = str(directory / "bin")
    buildout["instance"] = {
        "recipe": "plone.recipe.zope2instance",
        "user": "admin:admin",
        "zodb-temporary-storage": "off",
        "template-cache": "off",
        "rel-storage": "\n".join(
            [
                "type sqlite3",
                f"data-dir {directory}/data",
                "keep-history false",
                "cache-local-mb 5",
                "cache-local-dir-count 20",
                f"blob-dir {directory}/blobs",
                "pragmas-cache_size 4MB",
                "pragmas-threads 2",
            ]
        ),
    }
    recipe = Recipe(buildout, "instance", buildout["instance"])
    make.make_instance("admin:admin", recipe.options["location"], "4")
    recipe.build_zope_conf()
    configuration = Path(recipe.options["location"]) / "etc" / "zope.conf"
    assert "%import relstorage" in configuration.read_text()
    said = run_zope(configuration, directory)
    assert "opened relstorage.storage" in said
    assert "folders True" in said

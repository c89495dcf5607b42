"""Every example in the documentation works. The fenced blocks of one document run from top to bottom in a directory of
their own, so that a later one may use what an earlier one made.

`python` is executed, `shell` is run by bash, and a block whose first line is a comment with a file name (`# zodb.conf`)
is written to that file; a ZConfig file is also opened, as its name or its content demands. A block whose first line
names a file of the repository (`# tests/example_plugin/pyproject.toml`) is an excerpt, with `# ...` where something is
left out, and has to be in that file. `console` shows what a reader types on a machine, and is not run. Directories
below /srv are the reader's: here they are moved into the temporary directory, and /srv/zope holds a small FileStorage.
The reader's PostgreSQL database on db.example.com is here one that is made for the document; a document is skipped at
its first use where there is no server.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
import pytest
import transaction
import ZODB
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from ZODB.blob import Blob, BlobStorage
from ZODB.config import databaseFromFile
from ZODB.FileStorage import FileStorage
from Zope2.Startup.options import ZopeWSGIOptions

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "relstorage-*")
DOCUMENTS = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w.-]+\.\w+)\n")
EXCERPT = re.compile(r"# (\w[\w.-]*/[\w./-]+)\n")
LEFT_OUT = re.compile(r"^ *# \.\.\.\n", re.MULTILINE)
SHOWN_ONLY = {"console", "text", "json", "sql"}
# How the documents write their PostgreSQL database.
KEYWORDS = "host=db.example.com dbname=zodb user=zodb password=secret"
AUTHORITY = "zodb:secret@db.example.com/zodb"


class Block(NamedTuple):
    """One fenced block: its language, its text, and the line on which the text begins."""

    language: str
    text: str
    line: int


def blocks(document: Path, directory: Path) -> Iterator[Block]:
    text = document.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(2)) + 1
        yield Block(match[1], match[2].replace("/srv/", f"{directory}/srv/"), line)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's machine: a working directory, and /srv with Zope's Data.fs."""
    monkeypatch.chdir(tmp_path)
    # By itself, psql goes on after an error, and reports success.
    (tmp_path / "psqlrc").write_text("\\set ON_ERROR_STOP on\n")
    monkeypatch.setenv("PSQLRC", str(tmp_path / "psqlrc"))
    (tmp_path / "srv" / "zodb").mkdir(parents=True)
    (tmp_path / "srv" / "zope" / "var").mkdir(parents=True)
    var = tmp_path / "srv" / "zope" / "var"
    database = ZODB.DB(BlobStorage(str(var / "blobs"), FileStorage(str(var / "Data.fs"))))
    with closing(database), database.transaction() as connection:
        connection.root()["picture"] = Blob(b"picture")
    yield tmp_path
    transaction.abort()


@pytest.fixture
def on_the_server(request: pytest.FixtureRequest) -> Iterator[Callable[[Block], Block]]:
    """Return a function that puts an empty database of a real server in the place of the one that a block names."""
    with ExitStack() as made:
        database: list[dict[str, str]] = []

        def replaced(block: Block) -> Block:
            if "db.example.com" not in block.text:
                return block
            if not database:
                database.append(made.enter_context(new_database(request.getfixturevalue("postgres_address"))))
            keywords, authority = make_conninfo(**database[0]), written_in_uri(database[0])
            if block.language == "zconfig":
                keywords, authority = (text.replace("$", "$$") for text in (keywords, authority))
            text = block.text.replace(KEYWORDS, keywords).replace(AUTHORITY, authority)
            assert "db.example.com" not in text, f"line {block.line}: not one of the ways to write the database"
            return block._replace(text=text)

        yield replaced


@contextmanager
def new_database(address: str) -> Iterator[dict[str, str]]:
    """Make a database beside the one at this address, and return where it is, by libpq's keywords."""
    name = f"documentation_{os.getpid()}_{os.urandom(4).hex()}"
    with closing(psycopg.connect(address, autocommit=True)) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield {**{word: str(value) for word, value in conninfo_to_dict(address).items()}, "dbname": name}
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def written_in_uri(database: dict[str, str]) -> str:
    parts = {word: quote(value, safe="") for word, value in database.items()}
    password = f":{parts['password']}" if "password" in parts else ""
    port = f":{parts['port']}" if "port" in parts else ""
    return f"{parts['user']}{password}@{parts['host']}{port}/{parts['dbname']}"


def run_python(block: Block, document: Path, namespace: dict[str, Any]) -> None:
    # Empty lines in front, so that a traceback names the line of the document.
    code = compile("\n" * (block.line - 1) + block.text, str(document), "exec")
    exec(code, namespace)


def programs_of_postgresql() -> list[str]:
    from servers.debian import POSTGRESQL

    found = POSTGRESQL.find()
    return [] if found is None else [str(found)]


def run_shell(block: Block, document: Path) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), *programs_of_postgresql(), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-eu", "-c", block.text],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{document}:{block.line}: status {done.returncode}\n{done.stdout}"


def open_zope_configuration(text: str, directory: Path) -> None:
    # An example shows the part of zope.conf that matters; where the instance is, it leaves out.
    path = directory / "whole-zope.conf"
    path.write_text(f"instancehome {directory}\n{text}")
    for database in ZopeWSGIOptions(configfile=str(path))().configroot.databases:
        database.config.storage.open().close()


def write_file(block: Block, document: Path, directory: Path) -> None:
    name = FILE_NAME.match(block.text)
    assert name, f"{document}:{block.line}: the first line must be a comment with the file's name"
    (directory / name[1]).write_text(block.text)
    if name[1] == "zope.conf":
        open_zope_configuration(block.text, directory)
    elif block.language == "zconfig" and "<zodb" in block.text:
        databaseFromFile(io.StringIO(block.text)).close()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_the_examples_of_a_document_work_from_top_to_bottom(
    document: Path, directory: Path, on_the_server: Callable[[Block], Block]
) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for shown in blocks(document, directory):
        if EXCERPT.match(shown.text) or shown.language in SHOWN_ONLY:
            continue
        block = on_the_server(shown)
        if block.language == "python":
            run_python(block, document, namespace)
        elif block.language == "shell":
            run_shell(block, document)
        else:
            write_file(block, document, directory)


def excerpts() -> Iterator[Any]:
    for document in DOCUMENTS:
        for match in BLOCK.finditer(document.read_text()):
            named = EXCERPT.match(match[2])
            if named:
                label = f"{document.relative_to(ROOT)}-{named[1]}"
                yield pytest.param(ROOT / named[1], match[2][named.end() :], id=label)


@pytest.mark.parametrize("path, excerpt", list(excerpts()))
def test_an_excerpt_is_in_the_file_that_it_names(path: Path, excerpt: str) -> None:
    text, position = path.read_text(), 0
    for part in LEFT_OUT.split(excerpt):
        found = text.find(part.strip("\n"), position)
        assert found >= 0, f"{path} does not have, after what was shown before:\n{part}"
        position = found + len(part.strip("\n"))


def links(document: Path) -> Iterator[Path]:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            yield document.parent / target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    assert [target for target in links(document) if not target.exists()] == []

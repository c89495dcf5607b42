"""Content for a Zope instance, made through Zope itself. `zconsole run zope.conf zope_content.py DOCUMENTS SEED`
executes this file with `app` bound to the instance's root object; what it creates is what years of use leave behind:
folders, pages, scripts, users, files, blobs, a catalog, sessions, many transactions with their undo information, and
garbage from deletions.

The same DOCUMENTS and SEED give the same content; only times, transaction ids included, differ.
"""

from __future__ import annotations

import random
import sys
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import transaction
from OFS.DTMLMethod import addDTMLMethod
from OFS.Folder import manage_addFolder
from OFS.Image import manage_addFile, manage_addImage
from Products.BTreeFolder2.BTreeFolder2 import manage_addBTreeFolder
from Products.PageTemplates.ZopePageTemplate import manage_addPageTemplate
from Products.PythonScripts.PythonScript import manage_addPythonScript
from Products.Transience.Transience import TransientObjectContainer
from Products.ZCatalog.ZCatalog import manage_addZCatalog
from ZODB.blob import Blob

# fmt: off
WORDS = [
    "archive", "border", "canvas", "delta", "ember", "forest", "garden", "harbour", "island", "journey", "kernel",
    "ladder", "meadow", "north", "orbit", "paper", "quarry", "river", "signal", "timber", "union", "valley",
    "window", "yard", "zenith",
]
# fmt: on

# The smallest valid GIF: one white pixel.
PIXEL = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")

DOCUMENTS_PER_TRANSACTION = 20
DOCUMENTS_PER_SECTION = 250


def text(source: random.Random, words: int) -> str:
    """Return a sentence of so many words."""
    return " ".join(source.choices(WORDS, k=words)).capitalize() + "."


def commit(user: str, path: str, description: str, **extension: Any) -> None:
    """Commit with everything that an undo log shows."""
    current = transaction.get()
    current.setUser(user, path)
    current.note(description)
    for name, value in extension.items():
        current.setExtendedInfo(name, value)
    transaction.commit()


def make_site(app: Any, source: random.Random) -> Any:
    """Create the site's folder with its templates, scripts, users and session container."""
    manage_addFolder(app, "site", "Demonstration")
    site = app.site
    site._setProperty("language", "en", "string")
    site._setProperty("topics", list(WORDS[:8]), "lines")
    addDTMLMethod(site, "header", "Header", file="<h1><dtml-var title_or_id></h1>")
    manage_addPageTemplate(
        site, "view", "View", '<html><body tal:content="here/title_or_id">Title</body></html>', "utf-8"
    )
    manage_addPythonScript(site, "total")
    site.total.ZPythonScript_edit("numbers", "return sum(numbers)")
    for number in range(25):
        app.acl_users._doAddUser(f"user{number:02d}", f"secret-{source.randrange(10**9)}", ["Manager"], [])
    commit("admin", "/", "Create the site", request_type="demonstration")

    site._setObject("sessions", TransientObjectContainer("sessions", "Sessions"))
    for number in range(50):
        session = site.sessions.new_or_existing(f"session-{number:04d}")
        session.set("basket", [source.choice(WORDS) for _ in range(5)])
    commit("admin", "/site", "Start the sessions")
    return site


def make_catalog(site: Any) -> Any:
    """Create a catalog with one index of every common kind."""
    manage_addZCatalog(site, "catalog", "Catalog")
    catalog = site.catalog
    catalog.addIndex("getId", "FieldIndex")
    catalog.addIndex("topics", "KeywordIndex")
    catalog.addIndex("modified", "DateIndex")
    catalog.addIndex("public", "BooleanIndex")
    catalog.manage_addProduct["ZCTextIndex"].manage_addLexicon(
        "lexicon",
        "Lexicon",
        [
            SimpleNamespace(group="Word Splitter", name="Whitespace splitter"),
            SimpleNamespace(group="Case Normalizer", name="Case Normalizer"),
        ],
    )
    catalog.addIndex("title", "ZCTextIndex", SimpleNamespace(index_type="Okapi BM25 Rank", lexicon_id="lexicon"))
    catalog.addColumn("getId")
    catalog.addColumn("title")
    commit("admin", "/site/catalog", "Create the catalog")
    return catalog


def make_documents(site: Any, catalog: Any, documents: int, source: random.Random) -> None:
    """Fill BTree folders with files, a twentieth of them with a blob, all of them catalogued."""
    section = None
    for number in range(documents):
        if number % DOCUMENTS_PER_SECTION == 0:
            section_id = f"section-{number // DOCUMENTS_PER_SECTION:04d}"
            manage_addBTreeFolder(site, section_id, text(source, 3))
            section = site[section_id]
        document_id = f"document-{number:06d}"
        body = text(source, source.randrange(20, 200)).encode()
        manage_addFile(section, document_id, body, text(source, 4), content_type="text/plain")
        document = section[document_id]
        document.topics = source.sample(WORDS, 3)
        document.public = source.random() < 0.5
        document.modified = datetime.fromtimestamp(source.randrange(10**9, 17 * 10**8), timezone.utc)
        if number % 20 == 0:
            document.attachment = Blob(source.randbytes(source.randrange(100, 60_000)))
        if number % 50 == 0:
            manage_addImage(section, f"image-{number:06d}", PIXEL, "Pixel")
        catalog.catalog_object(document, "/".join(document.getPhysicalPath()))
        if number % DOCUMENTS_PER_TRANSACTION == DOCUMENTS_PER_TRANSACTION - 1:
            path = f"/site/{section.getId()}"
            commit(f"user{number % 25:02d}", path, f"Add documents up to {document_id}", batch=number)
    commit("admin", "/site", "Add the last documents")

    # Larger than the 64 KB that OFS.Image keeps in one object: a chain of persistent parts.
    manage_addFile(site, "large", source.randbytes(1_000_000), "One megabyte", content_type="application/octet-stream")
    site.film = Blob(source.randbytes(5_000_000))
    commit("admin", "/site", "Add a large file and a large blob")


def revise(site: Any, catalog: Any, documents: int, source: random.Random) -> None:
    """Edit single documents and replace blobs, so that there are old revisions."""
    for turn in range(max(20, documents // 50)):
        number = source.randrange(documents)
        section = site[f"section-{number // DOCUMENTS_PER_SECTION:04d}"]
        document = section[f"document-{number:06d}"]
        document.manage_edit(text(source, 5), "text/plain", filedata=text(source, 30).encode())
        catalog.catalog_object(document, "/".join(document.getPhysicalPath()))
        if hasattr(document, "attachment"):
            with document.attachment.open("w") as attachment:
                attachment.write(source.randbytes(2_000))
        commit(f"user{turn % 25:02d}", "/".join(document.getPhysicalPath()), f"Edit {document.getId()}")


def discard(site: Any, catalog: Any, documents: int, source: random.Random) -> None:
    """Delete a tenth of the documents: their objects and blobs stay in the file as garbage until a pack."""
    for turn, number in enumerate(source.sample(range(documents), documents // 10), 1):
        section = site[f"section-{number // DOCUMENTS_PER_SECTION:04d}"]
        document = section[f"document-{number:06d}"]
        catalog.uncatalog_object("/".join(document.getPhysicalPath()))
        section._delObject(document.getId())
        if turn % DOCUMENTS_PER_TRANSACTION == 0:
            commit("admin", f"/site/{section.getId()}", "Delete documents")
    commit("admin", "/site", "Delete the last documents")


def fill(app: Any, documents: int, seed: int) -> None:
    """Make all of it in the order in which a site comes to be."""
    # The catalog draws its document ids from the module.
    random.seed(seed)
    source = random.Random(seed)
    site = make_site(app, source)
    catalog = make_catalog(site)
    make_documents(site, catalog, documents, source)
    revise(site, catalog, documents, source)
    discard(site, catalog, documents, source)


# zconsole leaves its own words in sys.argv: zconsole run zope.conf zope_content.py DOCUMENTS SEED
fill(app, int(sys.argv[4]), int(sys.argv[5]))  # type: ignore[name-defined]  # noqa: F821  zconsole defines app

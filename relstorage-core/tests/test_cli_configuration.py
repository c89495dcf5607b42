"""From an argument of the command line to storages."""

from __future__ import annotations

import pytest
from ZConfig import ConfigurationSyntaxError
from ZODB.FileStorage import FileStorage

from relstorage.cli.configuration import configured_storages, conversion_storages
from relstorage.cli.running import Unusable


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "some.conf"
        path.write_text(text.replace("HERE", str(tmp_path)))
        return str(path)

    return write


def test_every_storage_of_a_file_is_found_in_its_order(write):
    path = write(
        """
        <filestorage first>
          path HERE/1.fs
        </filestorage>
        <mappingstorage second>
        </mappingstorage>
        <zodb>
          <mappingstorage third>
          </mappingstorage>
        </zodb>
        """
    )
    assert [each.name for each in configured_storages(path)] == ["first", "second", "third"]


def test_the_databases_of_zope_are_found_without_zope(write):
    path = write(
        """
        %define INSTANCE HERE
        instancehome $INSTANCE
        <environment>
          A b
        </environment>
        <zodb_db main>
          mount-point /
          <filestorage>
            path $INSTANCE/Data.fs
          </filestorage>
        </zodb_db>
        <eventlog>
          level info
        </eventlog>
        <zodb_db other>
          mount-point /other
          <mappingstorage inner>
          </mappingstorage>
        </zodb_db>
        """
    )
    found = configured_storages(path)
    assert [each.section.config.getSectionType() for each in found] == ["filestorage", "mappingstorage"]


def test_an_error_in_a_configuration_of_zope_has_the_line_of_the_file(write):
    path = write("instancehome /srv\n<environment>\n  A b\n</environment>\n<zodb_db main>\n  <<\n</zodb_db>\n")
    with pytest.raises(ConfigurationSyntaxError, match="line 6"):
        configured_storages(path)


def test_a_file_without_storages_is_refused(write):
    path = write("")
    with pytest.raises(Unusable, match="describes no storage"):
        configured_storages(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Unusable, match="There is no file .*nowhere.conf"):
        configured_storages(str(tmp_path / "nowhere.conf"))


def test_a_scheme_that_nobody_knows_is_refused_without_showing_a_password():
    pytest.importorskip("zodburi")
    with pytest.raises(Unusable) as caught:
        configured_storages("nosuch://user:secret@host/path?password=secret")
    assert "nosuch://host/path" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("rest", "shown"),
    [
        ("u:se/cret@host/path", "nosuch://host/path"),
        ("u:se@cret@host/path", "nosuch://host/path"),
        ("u:se?cret@host/path", "nosuch://..."),
        ("host/path?password=se@cret", "nosuch://..."),
        ("host/path?password=secret", "nosuch://host/path"),
    ],
)
def test_no_part_of_a_password_is_shown(rest, shown):
    pytest.importorskip("zodburi")
    with pytest.raises(Unusable) as caught:
        configured_storages(f"nosuch://{rest}")
    assert caught.value.message.endswith(f" {shown}.")


def test_a_file_storage_below_a_blob_storage_can_be_opened_read_only(write, tmp_path):
    FileStorage(str(tmp_path / "Data.fs")).close()
    path = write(
        """
        <blobstorage source>
          blob-dir HERE/blobs
          <filestorage>
            path HERE/Data.fs
          </filestorage>
        </blobstorage>
        <mappingstorage destination>
        </mappingstorage>
        """
    )
    source, _ = conversion_storages(path)
    with source.read_only().opened() as storage:
        assert storage.isReadOnly()

"""The options of a storage, and how any part declares options.

An option is declared once, as a field of an options class. Everything that reads or shows options goes through the
declarations: ZConfig keys, URI parameters and keyword arguments arrive here as names with strings or typed values, and
leave as one frozen object; the reference page is written from the same declarations.

Names may be spelled with dashes or underscores, in any case. ``None`` stands for the default.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar
from urllib.parse import SplitResult

from relstorage.errors import ConfigurationError

log = logging.getLogger(__name__)


# --- the types that a value may have


@dataclass(frozen=True)
class OptionType:
    """How the values of an option are written.

    ``convert`` takes a string or a typed value, and raises ``ValueError``. Of the value of a secret option only a
    ``ConfigurationError`` is shown, which must not contain it.
    """

    name: str
    convert: Callable[[Any], Any]
    nested: bool = False
    """Whether the value is a mapping of free names, written as a section of its own."""


_TRUE = frozenset(["true", "yes", "on", "1", "t"])
_FALSE = frozenset(["false", "no", "off", "0", "f"])
_SIZE = re.compile(r"(\d+)\s*(|b|kb|mb|gb)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{value!r} is neither true nor false; write 'true' or 'false'")


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(str(value).strip())
    except ValueError:
        raise ValueError(f"{value!r} is not a whole number") from None


def _to_count(value: Any) -> int:
    number = _to_int(value)
    if number < 0:
        raise ValueError(f"{value!r} is negative")
    return number


def _to_seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number of seconds") from None
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{value!r} is not a number of seconds from 0 up")
    return seconds


def _to_percent(value: Any) -> int:
    number = _to_int(value.strip().removesuffix("%") if isinstance(value, str) else value)
    if not 0 <= number <= 100:
        raise ValueError(f"{value!r} is not a percentage from 0 to 100")
    return number


def _to_byte_size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return _to_count(value)
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size; write a number of bytes, or one with KB, MB or GB, such as '10MB'")
    return int(match[1]) * _UNITS[match[2].lower()]


def _to_string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value


def _to_path(value: Any) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{value!r} is not a path")
    return os.path.abspath(os.path.expanduser(path))


def _to_directory(value: Any) -> str:
    path = _to_path(value)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise ValueError(f"{path!r} is not a directory")
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise ValueError(f"{path!r} does not exist and cannot be made, because {parent!r} is not a directory either")
    return path


def _to_words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    if not isinstance(value, Iterable):
        raise ValueError(f"{value!r} is not a list of words")
    return tuple(_to_string(word) for word in value)


def _to_mapping(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a mapping of names to values")
    return {str(key): str(item) for key, item in value.items()}


BOOL = OptionType("boolean", _to_bool)
INT = OptionType("integer", _to_int)
COUNT = OptionType("integer from 0 up", _to_count)
PERCENT = OptionType("percentage", _to_percent)
SECONDS = OptionType("seconds", _to_seconds)
BYTE_SIZE = OptionType("byte size", _to_byte_size)
STRING = OptionType("string", _to_string)
PATH = OptionType("path", _to_path)
DIRECTORY = OptionType("directory", _to_directory)
WORDS = OptionType("words", _to_words)
MAPPING = OptionType("names and values", _to_mapping, nested=True)


def choice(*words: str) -> OptionType:
    """Return the type of an option whose value is one of a few words, in any case."""
    by_word = {word.lower(): word for word in words}

    def convert(value: Any) -> str:
        try:
            return by_word[str(value).strip().lower()]
        except KeyError:
            raise ValueError(f"{value!r} is none of {', '.join(words)}") from None

    return OptionType("one of " + ", ".join(words), convert)


# --- declaring


@dataclass(frozen=True)
class OptionDeclaration:
    """All that is known about an option."""

    name: str
    """As a keyword argument, an attribute and a URI parameter: ``keep_history``."""
    type: OptionType
    default: Any
    doc: str
    """One sentence."""
    unit: str = ""
    aliases: tuple[str, ...] = ()
    """Former names and other spellings that mean the same."""
    required: bool = False
    secret: bool = False
    """Whether the value must not be shown."""

    @property
    def key(self) -> str:
        """The name in a ZConfig file: ``keep-history``."""
        return self.name.replace("_", "-")

    def convert(self, value: Any) -> Any:
        """Return the typed value of a string or a typed value.

        It raises ``ConfigurationError``, which is a ``ValueError``, and shows the value unless it is secret.
        """
        if value is None:
            return self.default
        try:
            return self.type.convert(value)
        except ValueError as reason:
            hidden = self.secret and not isinstance(reason, ConfigurationError)
            shown = f"not a value of the type {self.type.name}" if hidden else reason
            raise ConfigurationError(f"the option {self.key!r} cannot have this value: {shown}") from None


@dataclass(frozen=True)
class RemovedOption:
    """An option that is still accepted and no longer does anything. ``instead`` is a sentence that says what to do."""

    name: str
    instead: str

    @property
    def key(self) -> str:
        return self.name.replace("_", "-")

    def warn(self, stacklevel: int = 2) -> None:
        """Tell the developer and the operator that the option has no effect."""
        sentence = f"The option {self.key!r} no longer has an effect. {self.instead}"
        warnings.warn(sentence, DeprecationWarning, stacklevel=stacklevel + 1)
        log.warning("%s", sentence)


def option(
    type: OptionType,
    default: Any = None,
    doc: str = "",
    *,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    required: bool = False,
    secret: bool = False,
) -> Any:
    """Declare an option as a field of an options class."""
    facts = dict(type=type, doc=" ".join(doc.split()), unit=unit, aliases=aliases, required=required, secret=secret)
    if type.nested:
        return field(default_factory=dict, repr=not secret, metadata={"option": facts})
    return field(default=default, repr=not secret, metadata={"option": facts})


options_class = dataclass(frozen=True, init=False)
"""The decorator of an options class. The constructor comes from ``DeclaredOptions``."""


@options_class
class DeclaredOptions:
    """Values of declared options. The constructor takes every spelling of a name, and strings or typed values."""

    removed: ClassVar[tuple[RemovedOption, ...]] = ()

    def __init__(self, **values: Any):
        names = OptionNames(type(self))
        self._fill(names.resolve(values)[type(self)])

    def _fill(self, values: Mapping[str, Any]) -> None:
        missing = [each.key for each in declared(type(self)) if each.required and values.get(each.name) is None]
        if missing:
            raise ConfigurationError(f"these options are required and missing: {', '.join(missing)}")
        for each in declared(type(self)):
            value = values.get(each.name)
            if value is None and each.type.nested:
                value = {}
            # The class is frozen; this is its constructor.
            object.__setattr__(self, each.name, each.convert(value))


@options_class
class BackendOptions(DeclaredOptions):
    """What every backend has an option for; the base of the options class of each."""

    driver: str = option(STRING, "auto", "The driver that reaches the database; 'auto' takes the first that works.")

    @classmethod
    def from_uri(cls, parts: SplitResult, arguments: dict[str, str]) -> dict[str, str]:
        """Return the options, by name, that a URI gives in other ways than as an argument with the option's name.

        The parts are still percent-encoded; the scheme is without the driver. ``arguments`` are those behind the ``?``,
        decoded. An argument that is not an option, and that the backend understands, has to be taken out of them.
        """
        if parts.netloc or parts.path.strip("/"):
            raise ConfigurationError(
                f"write '{parts.scheme}://?' and the options after it; this backend reads nothing before the '?'"
            )
        return {}


def declared(options_class: type[DeclaredOptions]) -> tuple[OptionDeclaration, ...]:
    """Return the declarations of an options class, in the order in which they are written there."""
    return _declared(options_class)  # type: ignore[arg-type]  # mypy takes how an instance is hashed for how a class is


@cache
def _declared(options_class: type[DeclaredOptions]) -> tuple[OptionDeclaration, ...]:
    return tuple(
        OptionDeclaration(
            name=each.name, default={} if each.default is MISSING else each.default, **each.metadata["option"]
        )
        for each in fields(options_class)  # type: ignore[arg-type]  # options_class makes every subclass a dataclass
    )


def spelled(name: str) -> str:
    """Return a name as it is declared: ``Keep-History`` is ``keep_history``."""
    return name.strip().lower().replace("-", "_")


AnyOptions = TypeVar("AnyOptions", bound=DeclaredOptions)


class OptionNames:
    """Every name that one or several options classes accept."""

    def __init__(self, *classes: type[DeclaredOptions]):
        self.classes = classes
        self._found: dict[str, tuple[type[DeclaredOptions], OptionDeclaration | RemovedOption]] = {}
        for each_class in classes:
            for removed in each_class.removed:
                self._found[removed.name] = (each_class, removed)
            for each in declared(each_class):
                for name in (*map(spelled, each.aliases), each.name):
                    self._found[name] = (each_class, each)

    def __contains__(self, name: str) -> bool:
        return spelled(name) in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def find(self, name: str) -> OptionDeclaration | RemovedOption:
        """Return what is known about a name, or raise ``ConfigurationError`` with a suggestion."""
        return self._find(name)[1]

    def resolve(self, values: Mapping[str, Any]) -> dict[type[DeclaredOptions], dict[str, Any]]:
        """Return the values of each class under their declared names.

        ``pragmas.cache_size`` is the value of ``cache_size`` within the nested option ``pragmas``. Removed options
        warn and are left out.
        """
        resolved: dict[type[DeclaredOptions], dict[str, Any]] = {each: {} for each in self.classes}
        given: dict[str, str] = {}
        for name, value in values.items():
            outer, dot, inner = name.partition(".")
            owner, found = self._find(outer if dot else name)
            if isinstance(found, RemovedOption):
                found.warn(stacklevel=3)
                continue
            target = resolved[owner]
            if dot and found.type.nested:
                target.setdefault(found.name, {})[inner] = value
                continue
            if dot:
                raise ConfigurationError(f"the option {found.key!r} has no parts; write it without '.{inner}'")
            if value is None:
                continue
            if found.name in target:
                other = given.get(found.name, f"{found.name}.*")
                raise ConfigurationError(f"{name!r} and {other!r} are the same option; give it once")
            target[found.name] = value
            given[found.name] = name
        return resolved

    def _find(self, name: str) -> tuple[type[DeclaredOptions], OptionDeclaration | RemovedOption]:
        try:
            return self._found[spelled(name)]
        except KeyError:
            raise ConfigurationError(self.unknown(name)) from None

    def unknown(self, name: str, also: Iterable[str] = ()) -> str:
        """Return the sentence about a name that nobody declared. ``also`` are names that the caller knows besides."""
        near = difflib.get_close_matches(spelled(name), [*self._found, *also], n=1)
        suggestion = f"; did you mean {near[0].replace('_', '-') if '-' in name else near[0]!r}?" if near else ""
        return f"there is no option {name!r}{suggestion}"


def split_keywords(backend_options_class: type[AnyOptions], values: Mapping[str, Any]) -> tuple[AnyOptions, Options]:
    """Return the options of the backend and of the storage that one flat set of names and values describes."""
    resolved = OptionNames(backend_options_class, Options).resolve(values)
    return backend_options_class(**resolved[backend_options_class]), Options(**resolved[Options])


# --- the storage


@options_class
class Options(DeclaredOptions):
    """The options of a storage, whatever its backend."""

    name: str | None = option(STRING, None, "The name of the storage in messages; by default the database's own.")
    read_only: bool = option(BOOL, False, "Whether the storage refuses to write.")
    keep_history: bool = option(
        BOOL, True, "Whether old revisions stay until a pack, so that undo and history work; it must fit the database."
    )
    create_schema: bool = option(
        BOOL,
        True,
        "Whether opening makes missing tables and migrates old ones; otherwise it only verifies them.",
    )

    blob_dir: str | None = option(
        PATH, None, "The directory of blobs; without one the storage does not support blobs.", aliases=("blobdir",)
    )
    shared_blob_dir: bool = option(
        BOOL, False, "Whether blobs live only in blob-dir, which all processes share, rather than in the database."
    )
    blob_cache_size: int | None = option(
        BYTE_SIZE,
        None,
        "How much blob-dir keeps of blobs that live in the database; by default all.",
        unit="bytes",
    )
    blob_cache_size_check: int = option(
        PERCENT, 10, "After how much new data, in percent of blob-cache-size, the blob cache is cleaned.", unit="%"
    )
    blob_cache_size_check_external: bool = option(
        BOOL, False, "Whether a process of its own, rather than a thread, cleans the blob cache."
    )
    blob_chunk_size: int = option(
        BYTE_SIZE,
        1 << 20,
        "The size of the pieces in which blobs are written to databases that store them in pieces.",
        unit="bytes",
        aliases=("blob_cache_chunk_size",),
    )

    replica_conf: str | None = option(
        PATH, None, "A file with one database server a line, the primary first; read again when it changes."
    )
    ro_replica_conf: str | None = option(
        PATH, None, "A file with one server a line to read from; writes go to the servers of replica-conf."
    )
    replica_timeout: float = option(
        SECONDS, 600.0, "How long a replica is used before the first server is tried again.", unit="seconds"
    )
    revert_when_stale: bool = option(
        BOOL, False, "Whether reading goes on, with a warning, on a replica that is behind what was already read."
    )

    commit_lock_timeout: float = option(
        SECONDS,
        30.0,
        "How long a commit waits for locks before it fails and may be retried.",
        unit="seconds",
    )
    commit_lock_id: int = option(
        INT, 0, "The number of the commit lock, where a server numbers its locks for all users."
    )

    cache_local_mb: int = option(
        COUNT,
        10,
        "The size of the state cache that a process has for all connections; 0 turns it off.",
        unit="10^6 bytes",
    )
    cache_local_object_max: int = option(
        BYTE_SIZE, 16384, "States of at least this size, after compression, are not kept in the cache.", unit="bytes"
    )
    cache_local_compression: str = option(
        choice("none", "zlib", "bz2"), "none", "How states are compressed in the cache."
    )
    cache_local_dir: str | None = option(PATH, None, "The directory of the cache that outlives the process, if any.")
    cache_prefix: str = option(
        STRING, "", "What begins the database's keys and files in caches; by default the database's own name."
    )
    cache_delta_size_limit: int = option(
        COUNT, 100_000, "How many recent changes the cache remembers, so that connections of different views share it."
    )
    cache_servers: tuple[str, ...] = option(
        WORDS, (), "The servers of a cache that processes share, as host:port; without any there is no such cache."
    )
    cache_module_name: str = option(
        STRING, "relstorage.pylibmc_wrapper", "The client library of the shared cache, by its plug-in's name or alias."
    )

    pack_gc: bool = option(
        BOOL,
        True,
        "Whether a pack removes what cannot be reached; turn it off where databases refer to each other.",
    )
    pack_prepack_only: bool = option(BOOL, False, "Whether a pack stops when it has marked what to remove.")
    pack_skip_prepack: bool = option(BOOL, False, "Whether a pack starts with what an earlier one has marked.")
    pack_batch_timeout: float = option(
        SECONDS,
        15.0,
        "How long a transaction of a pack may take that removes something; 0.05 is the most that it takes.",
        unit="seconds",
    )

    removed: ClassVar[tuple[RemovedOption, ...]] = (
        RemovedOption("poll_interval", "Every transaction begins with a poll."),
        RemovedOption("pack_commit_busy_delay", "A pack holds the commit lock briefly; see 'pack-batch-timeout'."),
        RemovedOption("pack_duty_cycle", "A pack holds the commit lock briefly; see 'pack-batch-timeout'."),
        RemovedOption("pack_max_delay", "A pack holds the commit lock briefly; see 'pack-batch-timeout'."),
        RemovedOption("pack_dry_run", "Run 'zodbpack --dry-run'."),
        RemovedOption("cache_local_storage", "There is one kind of state cache."),
        RemovedOption("cache_local_dir_count", "'cache-local-dir' holds one file for each database."),
        RemovedOption("cache_local_dir_read_count", "'cache-local-dir' holds one file for each database."),
        RemovedOption("cache_local_dir_compress", "Use 'cache-local-compression'."),
        RemovedOption("cache_local_dir_write_max_size", "The file is not larger than 'cache-local-mb'."),
    )

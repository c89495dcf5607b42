"""Every statement that the core executes, declared once: what it is for, its parameters, its columns.

A field of type ``Statement`` is one statement. A field of type ``tuple[Statement, ...]`` is a sequence that is executed
in order with the same parameters, of which each step takes the leading ones it uses (``Statement.fit``). The history
modes differ in how many steps a sequence has, none included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from relstorage.sql.statement import Dialect, Statement, names_in

#: Most polls find fewer changes than this.
FEW_CHANGES = 20
#: How many bytes of states are worth reading before somebody asks for them.
READ_AHEAD_BYTES = 500_000
#: The parameters that are lists in every statement.
LISTS = frozenset({"oids", "tids"})


def _one(doc: str, parameters: str = "", columns: str = "", small: bool = False) -> Any:
    facts = {"doc": doc, "parameters": tuple(parameters.split()), "columns": tuple(columns.split()), "small": small}
    return field(metadata=facts)


def _steps(doc: str, parameters: str = "") -> Any:
    return field(metadata={"doc": doc, "parameters": tuple(parameters.split()), "columns": (), "steps": True})


def _used(text: str, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """Return the declared parameters up to the last one that the text uses; drivers count what they are given."""
    used = names_in(text)
    return parameters[: max((n for n, name in enumerate(parameters, 1) if name in used), default=0)]


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The statements of one dialect and one history mode."""

    # --- current objects
    current_state: Statement = _one("The current revision of an object.", "oid", "state tid")
    current_states: Statement = _one("The current revisions of many objects.", "oids", "zoid state tid")
    current_tid: Statement = _one("The tid of an object's current revision.", "oid", "tid")
    current_tids: Statement = _one("The tids of the current revisions of many objects.", "oids", "zoid tid")
    current_records: Statement = _one("All current records from an oid on, in oid order.", "oid", "zoid state tid")
    current_range: Statement = _one(
        f"""The current revisions between two oids, included, in oid order. What the states have beyond
        {READ_AHEAD_BYTES} bytes may be left out.""",
        "first last",
        "zoid state tid",
        small=True,
    )
    object_count: Statement = _one("How many current objects there are.", "", "objects")

    # --- revisions
    revision_state: Statement = _one("The state of one revision.", "oid tid", "state")
    state_before: Statement = _one("The newest revision of an object below a tid.", "oid tid", "state tid")
    following_tid: Statement = _one("The tid of the revision that follows another.", "oid tid", "tid")
    history: Statement = _one(
        "The newest revisions of an object, newest first.", "oid limit", "tid username description extension size"
    )

    # --- changes
    newest_tid: Statement = _one("The largest tid there ever was; 0 in an empty database.", "", "tid")
    changes_since: Statement = _one(
        "What has a larger tid, in tid order. The oid is NULL for a transaction without current objects and -1 when "
        "everything may have changed.",
        "tid",
        "zoid tid",
    )
    few_changes_since: tuple[Statement, ...] = _steps(
        f"""What ``changes_since`` answers where that is less than {FEW_CHANGES} rows, in any order; else at least so
        many rows, of which no use is made. For a database that finds few of them faster if it knows that they are few.
        What the transaction ``own`` has stored may be left out: who asks knows it. None or one step.""",
        "tid own",
    )
    removals_since: Statement = _one(
        "A row if objects were removed after a tid, or a sweep is under way.", "tid", "found"
    )
    removed_among: Statement = _one(
        "Which of these objects were removed after a tid (-1: any may have been) or, final = 1, a sweep is to remove.",
        "tid oids",
        "zoid final",
    )

    # --- transactions
    transactions_between: Statement = _one(
        "Transactions in tid order, bounds included.", "start stop", "tid packed username description extension"
    )
    records_of: Statement = _one("The records of one transaction, in oid order.", "tid", "zoid state")
    undoable_transactions: Statement = _one(
        "Unpacked transactions, newest first, below a tid.", "tid limit", "tid username description extension"
    )
    is_undoable: Statement = _one("One row if the transaction exists and is not packed.", "tid", "tid")

    # --- commit
    has_transaction: Statement = _one("One row if a transaction with this tid was committed.", "tid", "tid")
    begin_transaction: tuple[Statement, ...] = _steps(
        "Record the transaction.", "tid packed username description extension"
    )
    clear_blobs: tuple[Statement, ...] = _steps("Forget the blob that a commit replaces.", "oid tid")
    put: tuple[Statement, ...] = _steps("Make a state the current revision of an object.", "oid tid state")
    put_revision: tuple[Statement, ...] = _steps(
        "Add a revision that may be older than the current one (restore).", "oid tid state"
    )
    remove: tuple[Statement, ...] = _steps("Remove an object by a new revision or for good.", "oid tid")
    note_removed: Statement = _one("Tell the polls that an object is gone; -1 for everything.", "oid tid")

    # --- blobs
    put_blob_chunk: Statement = _one(
        "Add one chunk of a blob: its bytes, or what the database knows them by.", "oid tid number chunk"
    )
    copy_blob: Statement = _one("Give a revision the blob of an older one.", "oid tid from_tid")
    blob_chunk: Statement = _one("One chunk of a blob, as ``put_blob_chunk`` added it.", "oid tid number", "chunk")
    has_blob: Statement = _one("One row if the database keeps a blob for this revision.", "oid tid", "tid")
    blob_revisions: Statement = _one("Every revision with a blob, in oid order.", "", "zoid tid")

    # --- pack: marking
    all_revisions: Statement = _one(
        "Every revision, by oid and tid, with its state.", "", "zoid tid state"
    )
    pack_objects: tuple[Statement, ...] = _steps(
        """About so many of the next objects behind an oid, as one value: of each its oid, its newest tid and how many
        bytes its states have, 8 bytes each with the highest first, in oid order; NULL or nothing when there are no
        more. For a database that can tell the states apart which refer to nothing. None or one step.""",
        "oid limit",
    )
    pack_states: tuple[Statement, ...] = _steps(
        """Where there is ``pack_objects``: every revision of the objects that have several, or one without a state;
        and of the others those whose state may refer to something. By oid and tid, with the state. ``zeros`` are the
        bytes with which every oid begins: what has neither them nor a reference that says so refers to no object.
        None or one step.""",
        "zeros",
    )
    object_revisions: Statement = _one("Every revision of some objects.", "oids", "zoid tid state")
    revision_tids: Statement = _one("The tids of every revision of some objects.", "oids", "zoid tid")
    records_since: Statement = _one("Every revision with a larger tid.", "tid", "zoid tid state")
    pack_begin: Statement = _one(
        "Record a new pack run.", "run pack_tid view_tid phase collect started", ""
    )
    pack_found: Statement = _one("Record what a run's mark saw.", "run pack_tid view_tid")
    pack_phase: Statement = _one("Change a run's phase.", "run phase")
    pack_progress: Statement = _one("Record how much a run has removed.", "run removed checked_tid")
    pack_run: Statement = _one(
        "The newest pack run.", "", "run pack_tid view_tid phase collect started removed checked_tid"
    )
    pack_add_garbage: Statement = _one("Record a revision to remove; whole = 1: with its object.", "run zoid tid whole")
    pack_add_list: tuple[Statement, ...] = _steps(
        """What ``pack_add_garbage`` does, for each place of two lists that are in the order of oid and tid. None or
        one step, where a database can take lists.""",
        "run whole oids tids",
    )
    pack_garbage: Statement = _one("The next revisions to remove, by oid and tid.", "run limit", "zoid tid whole")
    pack_done: tuple[Statement, ...] = _steps(
        "Take what was removed, up to this revision, off the list. None or one step, as there is ``pack_remove_next``.",
        "run oid tid",
    )
    pack_is_garbage: Statement = _one("Which of these objects a run is to remove.", "run oids", "zoid")
    pack_count_garbage: Statement = _one("How much a run is to remove.", "run", "revisions objects")
    pack_rescue: Statement = _one("Take objects off the list.", "run oids")
    pack_forget_run: tuple[Statement, ...] = _steps("Forget a run and its list.", "run")

    # --- pack: sweeping
    pack_window: Statement = _one(
        "The last of the next transactions between two tids, to seal and tidy them by; NULL if there is none.",
        "start stop limit",
        "tid",
    )
    pack_seal: tuple[Statement, ...] = _steps(
        "Refuse undo of the transactions up to a tid, after another.", "tid start"
    )
    remove_object: tuple[Statement, ...] = _steps("Remove an object whose current revision is this one.", "oid tid")
    remove_revision: tuple[Statement, ...] = _steps("Remove one revision that is not current.", "oid tid")
    pack_finish: tuple[Statement, ...] = _steps(
        "Tidy up after the last removal: transactions up to a tid, after another.", "tid start"
    )
    pack_remove_next: tuple[Statement, ...] = _steps(
        """All that removes the next entries of the list, in one statement, where a database can do that: what
        ``remove_object`` and ``remove_revision`` do with each, then under the commit lock what notes the removals with
        a new tid, and what takes the entries off the list and counts them as the run's progress. ``limit`` is about how
        many. It returns how many entries and how many objects it were. None or one step.""",
        "run limit",
    )
    prune_removed: Statement = _one("Forget removals up to a tid.", "tid")

    # --- surveying
    newest_transaction: Statement = _one(
        "The largest tid of a transaction whose records are here; 0 without any.", "", "tid"
    )
    revision_count: Statement = _one("How many revisions there are.", "", "revisions")
    object_facts: Statement = _one(
        "Every object in oid order with its current tid; present = 0 where that revision says that the object is "
        "removed, NULL where there is no such revision.",
        "",
        "zoid tid present",
    )
    revision_facts: Statement = _one(
        "Every revision, by oid and tid, with its state and what was recorded of it; no md5 where none is kept.",
        "",
        "zoid tid state size md5",
    )

    # --- meta
    get_meta: Statement = _one("A fact about the database.", "name", "value")
    set_meta: Statement = _one("Record a fact about the database.", "name value")

    @classmethod
    def render(cls, dialect: Dialect, texts: Mapping[str, str | tuple[str, ...]]) -> Statements:
        """Return the set made of these texts.

        Raise ValueError for a name that is missing or not declared, or a text that breaks its declaration.
        """
        declared = {f.name: f for f in fields(cls)}
        if set(texts) != set(declared):
            missing, extra = sorted(set(declared) - set(texts)), sorted(set(texts) - set(declared))
            raise ValueError(f"the statements do not keep the contract: missing {missing}, unknown {extra}")
        rendered: dict[str, Any] = {}
        for name, text in texts.items():
            facts = declared[name].metadata
            if facts.get("steps"):
                rendered[name] = tuple(
                    dialect.render(f"{name}.{n}", step, parameters, lists=LISTS.intersection(parameters))
                    for n, step in enumerate(text)
                    for parameters in [_used(step, facts["parameters"])]
                )
            else:
                parameters = facts["parameters"]
                lists = LISTS.intersection(parameters)
                one = dialect.render(name, str(text), parameters, facts["columns"], lists)
                rendered[name] = one._replace(small=facts["small"])
        return cls(**rendered)

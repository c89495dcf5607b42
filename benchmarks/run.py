"""Measure ZODB storages against each other. Any number of ZConfig files come in; every workload is done by every
contender in turn, round by round, in a rotating order, so that whatever disturbs the machine disturbs all alike. A
table and JSON come out.

    python benchmarks/run.py --contender upstream=benchmarks/configs/relstorage43-sqlite-hf.conf@rs43 \\
        --contender ours=benchmarks/configs/sqlite-hf.conf@ours --baseline upstream --json result.json
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
from contenders import Contender, ContenderFailed, Place, parse_contender, parse_floor
from environments import make_environment
from report import Series, as_json, lines_of, remarks, table_of
from rich.console import Console
from rich.progress import Progress
from subject import Sizes
from workloads import WORKLOADS as ALONE
from writers import WORKLOADS as TOGETHER

WORKLOADS = {**ALONE, **TOGETHER}


class Run:
    """One run of the program: who takes part, how much each does, and what came of it."""

    def __init__(self, contenders: list[Contender], sizes: Sizes, directory: Path, limit: float) -> None:
        self.contenders = contenders
        self.results: dict[str, dict[str, Series]] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self._sizes = dataclasses.asdict(sizes)
        self._directory = directory
        self._limit = limit

    def measure(self, workload: str, rounds: int, tick: Any) -> None:
        """Do all rounds of one workload; *tick* is called after each round of each contender."""
        series = self.results[workload] = {each.name: Series() for each in self.contenders}
        places: dict[str, Place] = {}
        try:
            for number in range(rounds):
                start = number % len(self.contenders)
                for each in self.contenders[start:] + self.contenders[:start]:
                    found = series[each.name]
                    if not (found.absent or found.failed):
                        self._one_round(each, workload, number, places, found)
                    tick()
        finally:
            for place in places.values():
                place.close()

    def _one_round(
        self, contender: Contender, workload: str, number: int, places: dict[str, Place], series: Series
    ) -> None:
        if contender.name not in places:
            place = self._place(contender, workload, number)
            places[contender.name] = place
            answer = place.start()
            self.versions.setdefault(contender.name, {}).update(answer.get("versions", {}))
            if not _usable(answer, series):
                return
        answer = places[contender.name].run()
        if _usable(answer, series):
            series.rounds.append(answer["samples"])
            series.notes.append(answer["notes"])
        if WORKLOADS[workload].fresh:
            places.pop(contender.name).close()

    def profile(self, contender: Contender, workload: str) -> str:
        """Run one round under the profiler, after one without, and return the functions that took longest."""
        series = Series()
        place = self._place(contender, workload, 0)
        try:
            answer = place.start()
            if _usable(answer, series) and not WORKLOADS[workload].fresh:
                answer = place.run()
            if _usable(answer, series):
                answer = place.run(profile=True)
            if not _usable(answer, series):
                raise ContenderFailed(series.failed or series.absent)
            return answer["profile"]
        finally:
            place.close()

    def _place(self, contender: Contender, workload: str, number: int) -> Place:
        position = self.contenders.index(contender)
        directory = self._directory / f"contender{position}" / f"{workload}-{number}"
        return Place(contender, workload, directory, self._sizes, self._limit)


def _usable(answer: dict[str, Any], series: Series) -> bool:
    series.absent = answer.get("not_available")
    series.failed = answer.get("error")
    return not (series.absent or series.failed)


def _pairs(option: str, values: tuple[str, ...], names: set[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` options that add to contenders."""
    found = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or name not in names:
            raise click.UsageError(f"{option} is NAME=COMMAND with the name of a contender, not {value!r}")
        found[name] = rest
    return found


def _select(only: str | None) -> list[str]:
    """Read ``--only``: workload names or beginnings of them."""
    if only is None:
        return list(WORKLOADS)
    chosen: list[str] = []
    for word in only.split(","):
        found = [word] if word in WORKLOADS else [name for name in WORKLOADS if name.startswith(word)]
        if not found:
            raise click.UsageError(f"there is no workload {word!r}; there are: {', '.join(WORKLOADS)}")
        chosen += [name for name in found if name not in chosen]
    return chosen


def _gather(contender: tuple[str, ...], floor: tuple[str, ...], **commands: tuple[str, ...]) -> list[Contender]:
    try:
        found = [parse_contender(text) for text in contender] + [parse_floor(text) for text in floor]
    except (ValueError, OSError) as exc:
        raise click.UsageError(str(exc)) from exc
    names = {each.name for each in found}
    if len(names) < len(found):
        raise click.UsageError("two contenders have the same name")
    for option, values in commands.items():
        given = _pairs(f"--{option}", values, names)
        found = [dataclasses.replace(each, **{option: given.get(each.name)}) for each in found]
    if not found:
        raise click.UsageError("name at least one --contender")
    return found


@click.command(context_settings={"max_content_width": 120})
@click.option("--contender", multiple=True, metavar="NAME=CONFIG[@PYTHON]", help="A ZConfig file and who opens it.")
@click.option(
    "--floor", multiple=True, metavar="KIND:ARGUMENT", help="The least: sqlite3:FULL, zodb:FULL or libpq:CONNINFO."
)
@click.option(
    "--baseline", multiple=True, metavar="NAME",
    help="What ratios refer to (default: the first contender); each further one gets a table of its own.",
)  # fmt: skip
@click.option("--server", multiple=True, metavar="NAME=COMMAND", help="Run COMMAND beside each database of NAME.")
@click.option("--before", multiple=True, metavar="NAME=COMMAND", help="Run COMMAND before a database of NAME is used.")
@click.option("--after", multiple=True, metavar="NAME=COMMAND", help="Run COMMAND after a database of NAME was used.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--only", metavar="WORKLOADS", help="Workload names, or how they begin, separated by commas.")
@click.option("--objects", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--size", default=128, show_default=True, help="Bytes of data in an object.")
@click.option("--commits", default=200, show_default=True, help="Commits in a round of commit_one.")
@click.option("--writer-commits", default=50, show_default=True, help="Commits of each writing process in a round.")
@click.option("--pack-objects", default=5000, show_default=True, help="Objects before a pack; half are garbage.")
@click.option("--convert-transactions", default=500, show_default=True, help="Transactions to copy, of ten objects.")
@click.option("--blob-mib", default=16, show_default=True, help="Size of the large blob.")
@click.option("--seed", default=20260, show_default=True, help="Of the random data.")
@click.option("--directory", type=click.Path(file_okay=False), help="Where databases are made; it chooses the disk.")
@click.option("--limit", default=600.0, show_default=True, help="Seconds that one step of a worker may take.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write all figures to this file.")
@click.option(
    "--bars", multiple=True, type=click.Path(exists=True, dir_okay=False),
    help="JSON: workload to the largest good ratio; for each --baseline in turn.",
)  # fmt: skip
@click.option("--profile", metavar="WORKLOAD", help="Profile one workload of every contender instead of measuring.")
@click.option(
    "--make-environment", nargs=2, multiple=True, metavar="NAME REQUIREMENTS",
    help="Make or update the environment NAME with pip before anything else.",
)  # fmt: skip
def main(
    contender: tuple[str, ...],
    floor: tuple[str, ...],
    baseline: tuple[str, ...],
    server: tuple[str, ...],
    before: tuple[str, ...],
    after: tuple[str, ...],
    rounds: int,
    only: str | None,
    objects: int,
    size: int,
    commits: int,
    writer_commits: int,
    pack_objects: int,
    convert_transactions: int,
    blob_mib: int,
    seed: int,
    directory: str | None,
    limit: float,
    json_path: str | None,
    bars: tuple[str, ...],
    profile: str | None,
    make_environment: tuple[tuple[str, str], ...],
) -> None:
    """Measure ZODB storages against each other, interleaved in one run.

    In configuration files and commands $DIR is a private directory with a subdirectory data, $CACHE a directory that
    is emptied before cold reads, $PORT a free port, $NAME an identifier that no other database has, $WORKLOAD the
    workload, and $BIN the directory of the contender's Python.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a log or a file has no edge to fold at
    for name, requirements in make_environment:
        console.print(f"environment {name}: {_make(name, requirements)}")
    if make_environment and not contender and not floor:
        return
    contenders = _gather(contender, floor, server=server, before=before, after=after)
    baselines = baseline or (contenders[0].name,)
    for name in baselines:
        if name not in {each.name for each in contenders}:
            raise click.UsageError(f"--baseline {name} is not one of the contenders")
    if len(bars) > len(baselines):
        raise click.UsageError("there are more --bars than baselines")
    sizes = Sizes(
        objects=objects, size=size, commits=commits, writer_commits=writer_commits, pack_objects=pack_objects,
        convert_transactions=convert_transactions, blob_size=blob_mib * 1024 * 1024, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-", dir=directory) as base:
        run = Run(contenders, sizes, Path(base), limit)
        if profile:
            _profile(run, profile, console)
            return
        workloads = _select(only)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("", total=len(workloads) * rounds * len(contenders))
            for workload in workloads:
                progress.update(task, description=workload)
                run.measure(workload, rounds, lambda: progress.advance(task))
        document = {
            "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": {"platform": platform.platform(), "processors": os.cpu_count()},
            "rounds": rounds,
            "sizes": dataclasses.asdict(sizes),
            "baseline": baselines[0],
            "versions": run.versions,
            "results": as_json(run.results, {name: WORKLOADS[name].unit for name in workloads}, baselines[0]),
        }
    if json_path:
        Path(json_path).write_text(json.dumps(document, indent=1) + "\n")
    largest = [json.loads(Path(path).read_text()) for path in bars]
    for name, goals in zip_longest(baselines, largest, fillvalue={}):
        _show_table(console, run, workloads, name, goals)
    _show_remarks(console, run)
    if any(series.failed for each in run.results.values() for series in each.values()):
        raise SystemExit(1)


def _make(name: str, requirements: str) -> Path:
    try:
        return make_environment(name, requirements)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc


def _profile(run: Run, workload: str, console: Console) -> None:
    if workload not in ALONE or workload == "open_process":
        raise click.UsageError(f"{workload!r} cannot be profiled; choose a workload that one process does")
    for each in run.contenders:
        console.rule(f"{workload}: {each.name}")
        try:
            console.print(run.profile(each, workload), markup=False, highlight=False, soft_wrap=True)
        except ContenderFailed as exc:
            raise click.ClickException(str(exc)) from exc


def _show_table(console: Console, run: Run, workloads: list[str], baseline: str, bars: dict[str, float]) -> None:
    names = [each.name for each in run.contenders]
    lines = [line for name in workloads for line in lines_of(name, WORKLOADS[name].unit, run.results[name])]
    console.print(table_of(lines, names, baseline, bars))


def _show_remarks(console: Console, run: Run) -> None:
    for remark in remarks(run.results):
        console.print(remark, markup=False, highlight=False)
    for name, found in run.versions.items():
        console.print(f"{name}: {', '.join(f'{key} {value}' for key, value in found.items())}", highlight=False)


if __name__ == "__main__":
    main()

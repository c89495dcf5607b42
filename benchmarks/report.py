"""From samples to figures. Each contender's rounds of a workload come in; medians, percentiles and ratios go out as a
table for people and as JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass
class Series:
    """All rounds of one contender in one workload; *absent* and *failed* hold the reason if there are none."""

    rounds: list[list[float]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    absent: str | None = None
    failed: str | None = None

    @property
    def samples(self) -> list[float]:
        """Every sample of every round."""
        return [sample for each in self.rounds for sample in each]

    @property
    def latencies(self) -> list[float]:
        """Durations of single commits, where the workload knows them."""
        return [latency for each in self.notes for latency in each.get("latencies", ())]


@dataclass(frozen=True)
class Figures:
    """What is reported of one series, in seconds per unit."""

    median: float
    minimum: float
    maximum: float
    p50: float
    p99: float
    round_medians: list[float]


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the sample below or at which *percent* of all samples lie (nearest rank)."""
    ordered = sorted(samples)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def figures(samples: Sequence[float], round_medians: list[float]) -> Figures:
    return Figures(
        median=statistics.median(samples),
        minimum=min(samples),
        maximum=max(samples),
        p50=percentile(samples, 50),
        p99=percentile(samples, 99),
        round_medians=round_medians,
    )


def figures_of(series: Series) -> Figures | None:
    """Return the figures of a series that has samples."""
    if series.failed or not series.samples:
        return None
    return figures(series.samples, [statistics.median(each) for each in series.rounds])


@dataclass(frozen=True)
class Line:
    """One line of the table: one figure of every contender."""

    label: str
    unit: str
    values: dict[str, float]
    missing: dict[str, str]

    def ratio(self, name: str, baseline: str) -> float | None:
        """Return how many times the baseline's time *name* takes."""
        if name in self.values and self.values.get(baseline):
            return self.values[name] / self.values[baseline]
        return None


def lines_of(workload: str, unit: str, series: dict[str, Series]) -> list[Line]:
    """Return the lines of one workload: the median, and the 99th percentile where single commits were timed."""
    missing = {name: "failed" if each.failed else "n/a" for name, each in series.items() if not figures_of(each)}
    found = {name: result for name, each in series.items() if (result := figures_of(each)) is not None}
    lines = [Line(workload, unit, {name: each.median for name, each in found.items()}, missing)]
    if workload == "commit_one":
        lines.append(Line("commit_one p99", unit, {name: each.p99 for name, each in found.items()}, missing))
    latencies = {name: percentile(each.latencies, 99) for name, each in series.items() if each.latencies}
    if latencies:
        lines.append(Line(f"{workload} p99", unit, latencies, missing))
    return lines


def duration(seconds: float) -> str:
    """Write a duration with three digits and the unit that fits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table_of(lines: Sequence[Line], names: Sequence[str], baseline: str, bars: dict[str, float]) -> Table:
    """Return the table; a ratio is coloured where *bars* names the most it may be."""
    table = Table(title=f"median time, and ratio to {baseline} (smaller is better)")
    table.add_column("workload", no_wrap=True)
    table.add_column("per", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    if bars:
        table.add_column("bar", justify="right", no_wrap=True)
    for line in lines:
        cells = [_cell(line, name, baseline, bars) for name in names]
        if bars:
            bar = bars.get(line.label)
            cells.append("" if bar is None else f"≤ {bar:g}")
        table.add_row(line.label, line.unit, *cells)
    return table


def _cell(line: Line, name: str, baseline: str, bars: dict[str, float]) -> str:
    if name not in line.values:
        return line.missing.get(name, "n/a")
    text = duration(line.values[name])
    ratio = line.ratio(name, baseline)
    if ratio is None or name == baseline:
        return text
    bar = bars.get(line.label)
    colour = "" if bar is None or name.startswith("floor ") else "green" if ratio <= bar else "red"
    shown = f"{ratio:.2f}×"
    return f"{text}  [{colour}]{shown}[/{colour}]" if colour else f"{text}  {shown}"


def remarks(results: dict[str, dict[str, Series]]) -> list[str]:
    """Return why figures are missing, and how many commits had to be repeated."""
    reasons: dict[tuple[str, str], list[str]] = {}
    retried = []
    for workload, series in results.items():
        for name, each in series.items():
            if each.failed:
                reasons.setdefault((name, "FAILED: " + each.failed.strip().splitlines()[-1]), []).append(workload)
            elif each.absent:
                reasons.setdefault((name, f"n/a: {each.absent}"), []).append(workload)
            retries = sum(note.get("retries", 0) for note in each.notes)
            if retries:
                retried.append(f"{name}: {workload}: {retries} retries for {len(each.latencies)} commits")
    return [f"{name}: {', '.join(workloads)}: {reason}" for (name, reason), workloads in reasons.items()] + retried


def as_json(results: dict[str, dict[str, Series]], units: dict[str, str], baseline: str) -> dict[str, Any]:
    """Return all figures, ratios and reasons."""
    answer: dict[str, Any] = {}
    for workload, series in results.items():
        base = figures_of(series[baseline])
        entries: dict[str, Any] = {}
        for name, each in series.items():
            found = figures_of(each)
            entry: dict[str, Any] = {"not_available": each.absent, "failed": each.failed}
            if found is not None:
                entry.update(asdict(found))
                entry["retries"] = sum(note.get("retries", 0) for note in each.notes)
            if each.latencies:
                entry["commit_p50"] = percentile(each.latencies, 50)
                entry["commit_p99"] = percentile(each.latencies, 99)
            if found is not None and base is not None:
                pairs = list(zip(found.round_medians, base.round_medians, strict=False))
                entry["ratio"] = found.median / base.median
                entry["round_ratios"] = [ours / theirs for ours, theirs in pairs]
            entries[name] = entry
        answer[workload] = {"unit": units[workload], "contenders": entries}
    return answer

"""The benchmark program gives figures for what works, reasons for what does not, and fails loudly on a wrong result."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
FILESTORAGE = "<zodb main>\n<filestorage>\npath $DIR/Data.fs\n</filestorage>\n</zodb>\n"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Import modules of the program by name."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def subject(module, tmp_path: Path):
    """A small FileStorage to work on."""
    parts = module("subject")
    sizes = parts.Sizes(objects=10, pack_objects=20, commits=3)
    return parts.Subject(FILESTORAGE.replace("$DIR", str(tmp_path)), str(tmp_path), str(tmp_path / "cache"), sizes)


def run(tmp_path: Path, *arguments: str, config: str = FILESTORAGE) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "contender.conf"
    path.write_text(config)
    command = [sys.executable, str(FOLDER / "run.py"), "--contender", f"a={path}", "--contender", f"b={path}"]
    command += ["--rounds", "2", "--objects", "5", "--commits", "2", "--directory", str(tmp_path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_program_writes_medians_and_ratios(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = run(tmp_path, "--only", "cold,commit_one", "--baseline", "a", "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())["results"]["commit_one"]["contenders"]
    assert found["b"]["ratio"] == pytest.approx(found["b"]["median"] / found["a"]["median"])
    assert len(found["b"]["round_ratios"]) == 2


def test_each_baseline_gets_a_table_with_its_bars(tmp_path: Path) -> None:
    bars = tmp_path / "bars.json"
    bars.write_text('{"cold": 0.125}')
    done = run(tmp_path, "--only", "cold", "--baseline", "a", "--baseline", "b", "--bars", str(bars))
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.split("ratio to b")
    assert "ratio to a" in first and "0.125" in first and "0.125" not in second


def test_a_missing_feature_is_reported_with_its_reason(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "counter_4,prefetch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a: counter_4: n/a: only one process can open the database" in done.stdout
    assert "a: prefetch: n/a: the storage has no prefetch" in done.stdout


def test_a_contender_that_cannot_open_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "cold", config="<zodb main>\n<nonsense>\n</nonsense>\n</zodb>\n")
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "nonsense" in done.stdout


def test_a_workload_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "lukewarm")
    assert done.returncode == 2
    assert "there is no workload 'lukewarm'" in done.stderr


def test_a_lost_increment_is_an_error(module, subject) -> None:
    writers = module("writers")
    with subject.database() as db, subject.connection(db) as connection:
        connection.root()["counter"] = counter = module("bench_objects").Counter()
        counter.value = 4 * subject.sizes.writer_commits - 1
        connection.transaction_manager.commit()

    class Acknowledged:
        rounds, count = 1, 4

        def run(self, watch) -> None:
            """Every increment was acknowledged."""

    subject.prepared = Acknowledged()
    with pytest.raises(module("subject").WrongResult, match="updates were lost"):
        writers.counter(subject, module("subject").Stopwatch())


def test_a_pack_that_leaves_garbage_is_an_error(module, subject, monkeypatch: pytest.MonkeyPatch) -> None:
    workloads = module("workloads")
    workloads.make_garbage(subject)
    monkeypatch.setattr("ZODB.DB.pack", lambda self: None)
    with pytest.raises(module("subject").WrongResult, match="records remain after the pack"):
        workloads.pack(subject, module("subject").Stopwatch())


def test_a_pack_that_removes_the_garbage_is_accepted(module, subject) -> None:
    workloads = module("workloads")
    workloads.make_garbage(subject)
    watch = module("subject").Stopwatch()
    workloads.pack(subject, watch)
    assert len(watch.samples) == 1


def test_percentiles_are_samples(module) -> None:
    percentile = module("report").percentile
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0


def test_only_the_named_workloads_may_have_bars(module) -> None:
    known = {*module("workloads").WORKLOADS, *module("writers").WORKLOADS}
    for path in FOLDER.joinpath("bars").glob("*.json"):
        assert {name.removesuffix(" p99") for name in json.loads(path.read_text())} <= known


@pytest.mark.parametrize("path", sorted(FOLDER.joinpath("configs").glob("*.conf")), ids=lambda path: path.name)
def test_every_sample_configuration_keeps_its_data_in_a_private_place(path: Path) -> None:
    assert any(placeholder in path.read_text() for placeholder in ("$DIR", "$PORT", "dbname=$NAME"))


def test_the_floor_is_a_column_of_its_own(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = run(tmp_path, "--only", "warm", "--floor", "sqlite3:OFF", "--floor", "zodb:OFF", "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())["results"]["warm"]["contenders"]
    assert found["floor zodb:OFF"]["median"] > 0
    assert found["floor sqlite3:OFF"]["not_available"] == "the floor has no statement for it"


def test_several_processes_write_to_the_floor_and_lose_nothing(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = "--writer-commits", "5", "--floor", "sqlite3:OFF", "--json", str(result)
    done = run(tmp_path, "--only", "writers_disjoint_4,counter_4", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    for each in json.loads(result.read_text())["results"].values():
        assert each["contenders"]["floor sqlite3:OFF"]["median"] > 0


def test_the_name_of_a_floor_tells_no_password(module) -> None:
    contender = module("contenders").parse_floor("libpq:dbname=bench password=secret")
    assert "secret" not in contender.name


@pytest.mark.parametrize("text", ["libpq:", "sqlite3:password=secret", "mysql:x"])
def test_a_floor_that_does_not_exist_is_refused_without_its_argument(module, text: str) -> None:
    with pytest.raises(ValueError, match="a floor is") as caught:
        module("contenders").parse_floor(text)
    assert "secret" not in str(caught.value)


def test_arrays_have_the_binary_form_of_the_server(module) -> None:
    pytest.importorskip("psycopg")
    libpq = module("bare_libpq")
    assert libpq.bigints([7]) == bytes.fromhex("00000001 00000000 00000014 00000001 00000001 00000008 0000000000000007")
    assert libpq.byteas([b"ab"]) == bytes.fromhex("00000001 00000000 00000011 00000001 00000001 00000002") + b"ab"


@pytest.mark.parametrize("workload", ["open", "add", "prefetch", "commit_one", "empty_transaction", "counter_4"])
def test_the_statements_of_the_floor_run_on_postgresql(tmp_path: Path, postgres_address: str, workload: str) -> None:
    pytest.importorskip("psycopg")
    result = tmp_path / "result.json"
    options = "--writer-commits", "3", "--floor", f"libpq:{postgres_address}", "--json", str(result)
    done = run(tmp_path, "--only", workload, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())["results"][workload]["contenders"]["floor libpq"]
    assert found["median"] > 0


def test_the_floor_leaves_nothing_on_the_server(tmp_path: Path, postgres_address: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    done = run(tmp_path, "--only", "blob_upload_small,cold", "--floor", f"libpq:{postgres_address}")
    assert done.returncode == 0, done.stdout + done.stderr
    with psycopg.connect(postgres_address) as connection:
        assert not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'bench%'").fetchall()

"""The benchmarks run and give the figures that are promised; how good they are is not for tests to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA_PATH = {
    "csv_vs_psql_gzip", "csv_vs_psql_null", "json_vs_copy_null", "json_vs_sketch",
    "csv_rss_mb", "json_rss_mb", "idle_rss_mb", "rows",
}  # fmt: skip
LATENCY = {"p50_s", "p95_s", "per_minute", "cpu_s_per_request", "plain_p50_s", "p50_vs_plain", "launcher"}
FAULTS = {"kills", "restarts", "requests", "lost", "doubled", "stuck", "orphans", "max_recovery_s"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scene")


def benchmark(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_data_path_gives_its_figures_on_the_last_line(home: Path) -> None:
    out = benchmark("data-path", "--rows", "2000", "--rounds", "1", "--json", "--home", str(home))
    figures = json.loads(out.splitlines()[-1])
    assert set(figures) >= DATA_PATH
    assert figures["rows"] == 2000
    assert all(value > 0 for name, value in figures.items() if name in DATA_PATH - {"csv_vs_psql_gzip"})
    assert figures["csv_rss_mb"] >= figures["idle_rss_mb"] * 0.9


def test_staging_and_pdf(home: Path) -> None:
    for name, key in (("staging", "staged_vs_straight"), ("pdf", "pages")):
        out = benchmark(name, "--rows", "2000", "--rounds", "1", "--json", "--home", str(home))
        assert json.loads(out.splitlines()[-1])[key] > 0


@pytest.mark.slow
def test_latency_gives_its_figures(home: Path) -> None:
    """One contestant stands for all: the one with most around it."""
    counts = ("--only", "celery", "--requests", "1", "--flood", "10")
    figures = json.loads(benchmark("latency", *counts, "--json", "--home", str(home / "latency")).splitlines()[-1])
    assert set(figures) >= LATENCY
    assert (figures["celery_requests"], figures["celery_flood"], figures["launcher"]) == (1, 2, "warm")
    assert all(figures[f"celery_{name}"] > 0 for name in ("p50_s", "p95_s", "per_minute", "cpu_s_per_request"))
    assert figures["celery_p50_s"] < 60
    assert [figures[name] for name in ("p50_s", "plain_p50_s", "p50_vs_plain")] == [None, None, None], "not measured"


@pytest.mark.slow
def test_api_gives_its_figures(home: Path) -> None:
    counts = ("--clients", "3", "--seconds", "1", "--rows", "2000")
    figures = json.loads(benchmark("api", *counts, "--json", "--home", str(home)).splitlines()[-1])
    assert figures["clients"] == 3
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] < 60_000
    assert figures["p99_vs_idle"] == pytest.approx(figures["p99_ms"] / figures["idle_p99_ms"], abs=0.01)


@pytest.mark.slow
def test_faults_gives_its_figures(home: Path) -> None:
    counts = ("--kills", "1", "--seed", "1", "--rate", "4", "--only", "worker")
    figures = json.loads(benchmark("faults", *counts, "--json", "--home", str(home)).splitlines()[-1])
    assert set(figures) >= FAULTS
    assert (figures["kills"], figures["restarts"]) == (1, 1)
    assert [figures[name] for name in ("lost", "doubled", "stuck", "orphans")] == [0, 0, 0, 0]
    assert 0 < figures["max_recovery_s"] < 180
    assert figures["requests"] > 0


def test_the_command_lists_what_there_is() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert {"data-path", "staging", "pdf", "latency", "growth", "api", "faults"} <= set(listed.split())

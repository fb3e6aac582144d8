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


def test_the_command_lists_what_there_is() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert {"data-path", "staging", "pdf"} <= set(listed.split())

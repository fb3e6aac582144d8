"""A check of ours is not green because tests were skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Tests of its own, which know nothing of this project's.
_TESTS = """
import pytest

def test_as_the_program_is_missing():
    pytest.skip("the age command is not installed")

@pytest.fixture
def network():
    pytest.skip("the npm package cannot be installed")

def test_without_network(network):
    raise AssertionError

@pytest.mark.skipif(True, reason="some other reason")
def test_marked():
    raise AssertionError

@pytest.mark.xfail
def test_that_is_known_to_fail():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"CI": "1"}, "1 skipped, 1 xfailed, 2 errors"), ({}, "3 skipped, 1 xfailed"), ({"CI": ""}, "3 skipped")],
    ids=["check", "machine of somebody's own", "empty is not set"],
)
def test_where_ci_is_set_only_named_reasons_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    (tmp_path / "test_them.py").write_text(_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name in ("CI", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "pytest", "-p", "export_pipeline_tests.skips", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert said in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert ("does not allow" in done.stdout) is bool(environment.get("CI"))

"""Every kind of store that needs no server passes the one suite; `integration/test_store_s3.py` does it for S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from export_pipeline.vault import keys
from export_pipeline.vault.store import Vault
from export_pipeline_tests.store_suite import StoreSuite


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    keys.create(tmp_path / "age.txt")
    return tmp_path / "age.txt"


class TestLocal(StoreSuite):
    @pytest.fixture
    def vault(self, tmp_path: Path, key_file: Path) -> Vault:
        return Vault((tmp_path / "store").as_uri(), key_file)


class TestMemory(StoreSuite):
    @pytest.fixture
    def vault(self, key_file: Path) -> Vault:
        return Vault("memory:///", key_file)

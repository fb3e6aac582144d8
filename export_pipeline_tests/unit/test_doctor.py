"""What the doctor says before anything was ever started."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from export_pipeline import doctor
from export_pipeline.settings import Settings


@pytest.mark.parametrize("home", ["state", "not/made/yet"])
def test_a_state_folder_that_is_not_made_yet_has_the_room_of_its_disk(tmp_path: Path, home: str) -> None:
    nowhere = SecretStr("postgresql://127.0.0.1:1/x")
    found = list(doctor.examine(Settings(_env_file=None, home=tmp_path / home, database_url=nowhere)))
    assert (found[1].check, found[1].verdict.value) == ("database", "bad")
    assert found[0].check == "state folder"
    assert "GiB free" in found[0].message
    assert not (tmp_path / home).exists()

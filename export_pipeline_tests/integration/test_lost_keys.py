"""A lost age key is not replaced behind anybody's back: what it sealed would stay closed without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from pyrage import x25519

from export_pipeline import doctor, supervisor, wiring
from export_pipeline.demo import install_sample
from export_pipeline.doctor import Finding
from export_pipeline.errors import KeyUnusable
from export_pipeline.models import Actor
from export_pipeline.settings import Settings
from export_pipeline.vault import keys
from export_pipeline.wiring import Services
from export_pipeline_tests.exporting import execute

ME = Actor(id="tester")
LOST = "1 stored files are sealed for its keys"


def store_one(services: Services) -> None:
    made = services.intake.request(user_id="user-0004", data_types=["user_clicks"], actor=ME)
    execute(services, made.request_id)


def said(settings: Settings, check: str) -> Finding:
    [found] = [finding for finding in doctor.examine(settings) if finding.check == check]
    return found


def start(settings: Settings) -> None:
    with supervisor.start(settings):
        pass


def test_the_embedded_default_makes_no_key_beside_files_of_a_lost_one(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path / "home", ui_port=0, api_port=0)
    key = wiring.key_file(settings)
    with wiring.connect(settings) as services:
        install_sample(services)
        store_one(services)
        key.unlink()
        # Whoever only looks goes on, and makes nothing.
        with wiring.connect(settings) as other:
            assert len(other.requests.search()) == 1
        assert said(settings, "stored files").verdict.value == "bad"
        for act in (wiring.apply_migrations, start):
            with pytest.raises(KeyUnusable, match=LOST) as refused:
                act(settings)
            assert "`export-pipeline keys new`" in refused.value.hint
        assert not key.exists()

        assert keys.create(key)  # knowingly
        wiring.apply_migrations(settings)
        found = said(settings, "stored files")
        assert (found.verdict.value, found.message[:1]) == ("bad", "1")
        assert said(settings, "key and store").verdict.value == "good"


def test_with_a_database_of_ones_own_migrate_makes_none_either(services: Services) -> None:
    store_one(services)
    assert said(services.settings, "stored files").verdict.value == "good"
    wiring.key_file(services.settings).unlink()
    with pytest.raises(KeyUnusable, match=LOST):
        wiring.apply_migrations(services.settings)
    assert not wiring.key_file(services.settings).exists()


def test_keys_of_the_environment_need_no_file(services: Services) -> None:
    store_one(services)
    identity = wiring.key_file(services.settings).read_text()
    wiring.key_file(services.settings).unlink()
    chosen = services.settings.model_copy(update={"keys": SecretStr(identity)})
    wiring.apply_migrations(chosen)
    assert said(chosen, "stored files").verdict.value == "good"
    others = services.settings.model_copy(update={"keys": SecretStr(str(x25519.Identity.generate()))})
    assert said(others, "stored files").verdict.value == "bad"


def remove(services: Services) -> None:
    with services.database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_requests SET status = 'deleted', file_url = NULL")


def for_the_recipient(services: Services) -> None:
    with services.database.connect() as connection:
        connection.execute("UPDATE export_pipeline.export_metadata SET content_encoding = 'age'")


@pytest.mark.parametrize("settle", [remove, for_the_recipient])
def test_files_that_no_key_of_ours_opens_need_none(services: Services, settle: Callable[[Services], None]) -> None:
    store_one(services)
    settle(services)
    wiring.key_file(services.settings).unlink()
    wiring.apply_migrations(services.settings)
    assert wiring.key_file(services.settings).exists()

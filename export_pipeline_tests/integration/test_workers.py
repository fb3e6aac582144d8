"""`export-pipeline worker` begins only where it has all that the other machines have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from export_pipeline import supervisor
from export_pipeline.errors import ConfigurationError, KeyUnusable
from export_pipeline.settings import Settings


@pytest.fixture
def shared(settings: Settings) -> Settings:
    """Of a machine that has everything."""
    return settings.model_copy(update={"storage_url": (settings.home / "shared").as_uri()})


@pytest.mark.parametrize(
    ("lacking", "match"),
    [
        ({"launcher": "default"}, "no workers.*EXPORT_PIPELINE_LAUNCHER"),
        ({"workers": 0}, "EXPORT_PIPELINE_WORKERS"),
        ({"database_url": None}, "the same EXPORT_PIPELINE_DATABASE_URL"),
        ({"storage_url": None}, "the same EXPORT_PIPELINE_STORAGE_URL"),
    ],
)
def test_what_is_of_one_machine_only_is_refused(shared: Settings, lacking: dict[str, object], match: str) -> None:
    with (
        pytest.raises(ConfigurationError, match=match),
        supervisor.start_workers(shared.model_copy(update=lacking)),
    ):
        pass


@pytest.mark.parametrize("name", ["age.txt", "pseudonyms.txt", "signing.txt"])
def test_a_missing_key_is_told_before_any_run_fails_of_it(shared: Settings, name: str) -> None:
    (shared.home / "keys" / name).unlink()
    with pytest.raises(KeyUnusable, match=name), supervisor.start_workers(shared):
        pass


@pytest.mark.parametrize("start", [supervisor.start, supervisor.start_workers], ids=["up", "worker"])
def test_one_at_a_time_for_a_state_folder(shared: Settings, start: Callable[..., object]) -> None:
    with (
        supervisor._alone(shared),
        pytest.raises(ConfigurationError, match="already running"),
        start(shared),  # type: ignore[attr-defined]
    ):
        pass

"""A policy in the source hides rows from our role: that must be an error, never a complete-looking export."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from pydantic import SecretStr

from export_pipeline import sample_source, wiring
from export_pipeline.errors import SourceRefused
from export_pipeline.models import Actor
from export_pipeline.settings import Settings

_ROLE = "row_security_reader"


@pytest.fixture
def reading_as_role(settings: Settings, sample_url: str) -> Iterator[wiring.Services]:
    """An installation whose source role may read everything, but not past row-level security."""
    with psycopg.connect(sample_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {_ROLE} LOGIN PASSWORD 'reader'")
        admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {_ROLE}")
        host = admin.info.get_parameters()["host"]
        source = f"postgresql://{_ROLE}:reader@/{admin.info.dbname}?host={host}&port={admin.info.port}"
        with wiring.connect(settings.model_copy(update={"source_url": SecretStr(source)})) as services:
            yield services
        admin.execute(f"DROP OWNED BY {_ROLE}")
        admin.execute(f"DROP ROLE {_ROLE}")


@pytest.mark.parametrize("policy", ["", "CREATE POLICY even ON user_feedback USING (feedback_id % 2 = 0)"])
def test_hidden_rows_are_an_error(reading_as_role: wiring.Services, sample_url: str, policy: str) -> None:
    services = reading_as_role
    with psycopg.connect(sample_url) as admin:
        admin.execute("ALTER TABLE user_feedback ENABLE ROW LEVEL SECURITY")
        admin.execute(policy)
    request = services.intake.request(
        user_id=sample_source.HEAVY_USER, data_types=["user_profile", "user_feedback"], actor=Actor(id="admin")
    )
    run = services.run(request.request_id, "run-1", reopen=False)
    try:
        plan = run.plan()
        assert run.collect(plan, "user_profile").rows == 1
        with pytest.raises(SourceRefused, match=r"SQLSTATE 42501.*BYPASSRLS"):
            run.collect(plan, "user_feedback")
    finally:
        run.close()

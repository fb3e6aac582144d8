"""A request is claimed soon after it was written, also when the sensor has just looked."""

from __future__ import annotations

from export_pipeline_tests.running import Running

#: Seconds. The sensor's minimum interval is one; its regular rounds are five apart.
SOON = 3.0


def test_one_after_the_other_none_waits_for_the_next_regular_round(running: Running) -> None:
    waited = []
    for _ in range(10):
        request_id = running.insert(data_types=["user_clicks"])
        assert running.wait(request_id).status == "completed"
        asked, claimed, *_ = running.stack.services.requests.trail(request_id)
        assert claimed.action == "export_claimed"
        waited.append((claimed.timestamp - asked.timestamp).total_seconds())
    assert sorted(waited)[-2] < SOON, "one hiccup of the machine is forgiven"

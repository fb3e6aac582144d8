"""What one op of a run hands to the next."""

from __future__ import annotations

from typing import Any

import pytest

from export_pipeline.db.pool import Database
from export_pipeline.db.tickets import TicketStore
from export_pipeline.errors import DatabaseError


@pytest.fixture
def tickets(database: Database) -> TicketStore:
    return TicketStore(database)


@pytest.mark.parametrize(
    "ticket", [{"rows": 2**60, "names": ["a", 'quo"te', "Ünï"], "none": None, "half": 0.5}, [], "completed", 0, None]
)
def test_a_ticket_comes_back_as_it_was(ticket: Any, tickets: TicketStore) -> None:
    tickets.put("run", "step", "result", ticket)
    assert tickets.get("run", "step", "result") == ticket


def test_a_step_that_runs_again_replaces_its_ticket(tickets: TicketStore) -> None:
    tickets.put("run", "step", "result", 1)
    tickets.put("run", "step", "result", 2)
    assert tickets.get("run", "step", "result") == 2


def test_tickets_are_apart_by_run_step_and_output(tickets: TicketStore) -> None:
    places = [(run, step, output) for run in "ab" for step in "cd" for output in "ef"]
    for place in places:
        tickets.put(*place, "".join(place))
    assert [tickets.get(*place) for place in places] == ["".join(place) for place in places]


def test_a_missing_ticket_is_named_by_step_and_run(tickets: TicketStore) -> None:
    tickets.put("run", "step", "result", 1)
    with pytest.raises(DatabaseError, match="Step step of run other left no ticket"):
        tickets.get("other", "step", "result")

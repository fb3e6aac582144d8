"""Figures for Prometheus. No label ever holds an id."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from export_pipeline.db.listing import Count, Listing
from export_pipeline.db.pool import Database
from export_pipeline.db.requests import DUE_SOON, Deadlines, QueueState, RequestStore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Counting reads every request: scrapers that come more often get the count of before.
_FRESH_S = 10.0
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_Figures = TypeVar("_Figures")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The figures of one process and of the queue.

    Args:
        database: Our tables.
    """

    def __init__(self, database: Database) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Queue(database))
        self._seconds = Histogram(
            "export_pipeline_http_request_duration_seconds",
            "Seconds until the end of the answer.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._answers = Counter(
            "export_pipeline_http_requests",
            "Answers by status.",
            ["method", "route", "status"],
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one call; a method that nobody knows is one label, not a label each."""
        method = method if method in _METHODS else "other"
        self._seconds.labels(method, route).observe(seconds)
        self._answers.labels(method, route, str(status)).inc()

    def exposition(self) -> bytes:
        """Write all figures down.

        Raises:
            DatabaseUnavailable: The queue cannot be asked.
        """
        return generate_latest(self._registry)


class _Queue(Collector):
    """What the tables say, asked when somebody scrapes."""

    def __init__(self, database: Database) -> None:
        self._state = RequestStore(database).queue
        self._counts = _Kept(Listing(database).counts)
        self._deadlines = _Kept(lambda: RequestStore(database).deadlines(DUE_SOON))

    def describe(self) -> list[Metric]:
        """Nothing: the registry would ask the database for the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Ask."""
        yield from _queue(self._state())
        yield _requests(self._counts.get())
        yield _due(self._deadlines.get())


def _queue(state: QueueState) -> Iterator[Metric]:
    length = GaugeMetricFamily("export_pipeline_queue_length", "Requests on their way.", labels=["status"])
    length.add_metric(["pending"], state.pending)
    length.add_metric(["claimed"], state.claimed)
    length.add_metric(["processing"], state.processing)
    yield length
    yield GaugeMetricFamily(
        "export_pipeline_queue_oldest_waiting_seconds",
        "Since the oldest request was made that waits for its run.",
        value=state.oldest_waiting_seconds,
    )


def _requests(counts: list[Count]) -> Metric:
    family = GaugeMetricFamily("export_pipeline_requests", "Requests there are.", labels=["status", "format"])
    for count in counts:
        family.add_metric([count.status, count.format], count.requests)
    return family


def _due(deadlines: Deadlines) -> Metric:
    family = GaugeMetricFamily(
        "export_pipeline_requests_due", "Gdpr requests without a file that are overdue, or due soon.", labels=["when"]
    )
    family.add_metric(["overdue"], deadlines.overdue)
    family.add_metric(["within_7_days"], deadlines.soon)
    return family


class _Kept(Generic[_Figures]):
    """Figures that are counted again only after a while.

    Args:
        count: Counts.
    """

    def __init__(self, count: Callable[[], _Figures]) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._kept: tuple[float, _Figures] | None = None

    def get(self) -> _Figures:
        """The figures of a moment ago, at most."""
        with self._lock:
            if self._kept is None or time.monotonic() >= self._kept[0]:
                self._kept = (time.monotonic() + _FRESH_S, self._count())
            return self._kept[1]

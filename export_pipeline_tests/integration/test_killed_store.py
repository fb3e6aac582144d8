"""A process that is killed while it stores leaves nothing that can be read, and nothing for ever."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from export_pipeline.errors import SealBroken
from export_pipeline.models import Actor, RequestStatus
from export_pipeline.vault import keys
from export_pipeline.vault.seal import unseal
from export_pipeline.vault.store import Vault
from export_pipeline.wiring import Services, key_file
from export_pipeline_tests.exporting import execute

ME = Actor(id="tester")
KILLS = 50
#: Seconds: what a store of this size takes here, so that kills fall before, into and behind it.
LONGEST = 0.12
CANARY = b"c4n4ry-51b2"
CONTENT = CANARY * 100
PIECES = 8_000
#: A seed for each run of the suite would find more, once; the same seed finds the same, always.
MOMENTS = random.Random(20261124)


def store(url: str, file: Path, key: str, begun: Connection) -> None:
    """The victim: runs in a process of its own."""
    vault = Vault(url, file)

    def chunks() -> Iterator[bytes]:
        begun.send(None)
        yield from (CONTENT for _ in range(PIECES))

    vault.store(key, chunks())


def kill_while_storing(url: str, file: Path, key: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["export_pipeline_tests.integration.test_killed_store"])
    theirs, ours = context.Pipe()
    victim = context.Process(target=store, args=[url, file, key, theirs])
    victim.start()
    ours.recv()
    time.sleep(MOMENTS.uniform(0, LONGEST))
    victim.kill()
    victim.join()


def whole(sealed: bytes, ring: keys.KeyRing) -> bool:
    """Whether it opens; and never does it hold anything in the clear."""
    assert CANARY not in sealed
    try:
        return sum(map(len, unseal([sealed], ring))) == len(CONTENT) * PIECES
    except SealBroken:
        return False


def test_fifty_kills(services: Services) -> None:
    vault, file = services.vault(), key_file(services.settings)
    root, ring = services.settings.home / "storage", keys.load(file)
    request = services.intake.request(user_id="user-0004", data_types=["user_clicks"], actor=ME)
    services.intake.cancel(request.request_id, ME)
    outcomes = []
    for number in range(KILLS):
        kill_while_storing(root.as_uri(), file, f"{request.request_id}/run-{number}/export.age")
        named = set(vault.keys())
        for found in vault.listing():
            sealed = (root / found.key).read_bytes()
            assert whole(sealed, ring) or found.key not in named, "what has its name is whole"
            outcomes.append("whole" if found.key in named else "half")
        for found in vault.listing():
            os.utime(root / found.key, (0, 0))
        if number % 10 == 9:
            assert services.retention.purge().foreign == 0
            assert vault.listing() == []
    assert "half" in outcomes, "no kill came in the middle: nothing was shown"
    services.intake.retry(request.request_id, ME)
    assert execute(services, request.request_id, "last").status is RequestStatus.COMPLETED
    assert [found.key for found in vault.listing()] == [f"{request.request_id}/last/export.age"]

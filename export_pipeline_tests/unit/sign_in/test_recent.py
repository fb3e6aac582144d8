"""A proof that was checked counts for a moment, as what it was, by whom it was, with the keys that there were."""

from __future__ import annotations

import pytest

from export_pipeline.errors import NotAuthenticated
from export_pipeline.identity import Principal
from export_pipeline.sign_in import recent
from export_pipeline.sign_in.recent import LIFETIME_S, Recent

ANNA, BEN = Principal(id="anna", roles=frozenset()), Principal(id="ben", roles=frozenset())


class Scene:
    """A clock and keys that a test can change."""

    def __init__(self) -> None:
        self.now, self.keys = 100.0, "first"
        self.recent = Recent(lambda: self.keys, clock=lambda: self.now)


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.recent.check("token", "proof", lambda _: ANNA)
    return made


def test_counts_for_a_moment(scene: Scene) -> None:
    assert scene.recent.find("token", "proof") == ANNA
    scene.now += LIFETIME_S
    assert scene.recent.find("token", "proof") == ANNA
    scene.now += 0.001
    assert scene.recent.find("token", "proof") is None


@pytest.mark.parametrize(("kind", "proof"), [("session", "proof"), ("token", "proof "), ("token", "")])
def test_no_other_proof_counts(scene: Scene, kind: str, proof: str) -> None:
    assert scene.recent.find(kind, proof) is None


def test_other_keys_make_it_forgotten(scene: Scene) -> None:
    scene.keys = "second"
    assert scene.recent.find("token", "proof") is None


def test_keys_that_change_during_the_check_make_it_forgotten(scene: Scene) -> None:
    def check(_: str) -> Principal:
        scene.keys = "second"
        return BEN

    assert scene.recent.check("token", "other", check) == BEN
    assert scene.recent.find("token", "other") is None


def test_what_was_refused_is_not_remembered(scene: Scene) -> None:
    def refuse(_: str) -> Principal:
        raise NotAuthenticated("No.", reason="expired")

    with pytest.raises(NotAuthenticated):
        scene.recent.check("token", "other", refuse)
    assert scene.recent.find("token", "other") is None


def test_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_MOST", 2)
    scene = Scene()
    for proof in ("a", "b", "a", "c"):
        scene.recent.check("token", proof, lambda _: ANNA)
    assert [scene.recent.find("token", proof) is not None for proof in ("a", "b", "c")] == [True, False, True]


def test_no_proof_is_kept(scene: Scene) -> None:
    assert "proof" not in repr(vars(scene.recent))


def test_what_has_ended_is_checked_again(scene: Scene) -> None:
    scene.recent.check("session", "proof", lambda _: BEN)
    scene.recent.forget("token", "proof")
    scene.recent.forget("token", "never seen")
    assert scene.recent.find("token", "proof") is None
    assert scene.recent.find("session", "proof") == BEN
    scene.recent.forget_all()
    assert scene.recent.find("session", "proof") is None


@pytest.mark.parametrize("all", [False, True])
def test_what_ends_during_its_check_is_not_remembered(scene: Scene, all: bool) -> None:
    def check(_: str) -> Principal:
        scene.recent.forget_all() if all else scene.recent.forget("token", "other")
        return BEN

    assert scene.recent.check("token", "other", check) == BEN
    assert scene.recent.find("token", "other") is None
    scene.recent.check("token", "other", lambda _: BEN)
    assert scene.recent.find("token", "other") == BEN

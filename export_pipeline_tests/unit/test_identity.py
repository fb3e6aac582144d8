"""The table of roles and scopes, walked cell by cell against a second copy that is written here by hand."""

from __future__ import annotations

import itertools

import pytest

from export_pipeline.errors import NotAllowed
from export_pipeline.identity import SCOPES, Principal, Role, Scope, allowed, require

#: Scope: who may do it to their own data / to somebody else's. s subject, o operator, p approver, u auditor, a admin.
TABLE = """
request                so     / o
read                   sopua  / opua
download               so     / o
revoke                 soa    / oa
cancel                 soa    / oa
retry                  soa    / oa
delete                 soa    / oa
extend                 -      / op
approve                -      / p
read_audit             ua     / ua
read_data_types        sopua  / sopua
administer_data_types  a      / a
read_metrics           oua    / oua
read_dagster           oua    / oua
launch_dagster         a      / a
"""
LETTERS = {"s": Role.SUBJECT, "o": Role.OPERATOR, "p": Role.APPROVER, "u": Role.AUDITOR, "a": Role.ADMIN}


def expected() -> dict[tuple[Scope, bool], set[Role]]:
    cells = {}
    for line in TABLE.strip().splitlines():
        name, own, _, others = line.split()
        cells[Scope(name), True] = {LETTERS[letter] for letter in own if letter != "-"}
        cells[Scope(name), False] = {LETTERS[letter] for letter in others if letter != "-"}
    return cells


def somebody(*roles: Role) -> Principal:
    return Principal(id="anna", roles=frozenset(roles))


def test_the_second_copy_is_complete() -> None:
    assert set(expected()) == set(itertools.product(Scope, [True, False]))
    assert set(SCOPES) == set(Scope)
    assert set(LETTERS.values()) == set(Role)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("own", [True, False], ids=["own", "foreign"])
def test_every_cell(scope: Scope, role: Role, own: bool) -> None:
    may = role in expected()[scope, own]
    assert allowed(somebody(role), scope, user_id="anna" if own else "berta") is may
    if not own:
        assert allowed(somebody(role), scope, user_id=None) is may


@pytest.mark.parametrize("scope", Scope)
def test_nobody_without_a_role_may_do_anything(scope: Scope) -> None:
    assert not allowed(somebody(), scope, user_id="anna")
    assert not allowed(somebody(), scope)


@pytest.mark.parametrize("scope", Scope)
def test_roles_add_up(scope: Scope) -> None:
    for two in itertools.combinations(Role, 2):
        for user_id in ("anna", "berta", None):
            either = any(allowed(somebody(role), scope, user_id=user_id) for role in two)
            assert allowed(somebody(*two), scope, user_id=user_id) is either


@pytest.mark.parametrize("other", ["Anna", "anna ", "ann", "annab", "\uff41nna", ""])
def test_own_is_exactly_the_same_id(other: str) -> None:
    assert not allowed(somebody(Role.SUBJECT), Scope.READ, user_id=other)


def test_what_is_refused_is_said_without_ids() -> None:
    require(somebody(Role.SUBJECT), Scope.READ, user_id="anna")
    with pytest.raises(NotAllowed) as refused:
        require(somebody(Role.SUBJECT), Scope.READ, user_id="berta")
    assert "berta" not in str(refused.value)
    assert "anna" not in str(refused.value)


def test_a_principal_does_not_print_who_it_is() -> None:
    anna = Principal(id="anna", roles=frozenset({Role.SUBJECT}), email="anna@example.org")
    assert "anna" not in repr(anna)
    assert anna.actor("127.0.0.1", "curl").id == "anna"

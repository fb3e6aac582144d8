"""What happens to a column before it leaves the source: policies become expressions of the SELECT.

Raw values of an altered column never leave the database. The hash is HMAC-SHA-256 (RFC 2104) written with the server's
own `sha256`; its two padded keys travel as session settings, not in the text of a statement.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any

from psycopg import sql

from export_pipeline.errors import ConfigurationError

_BLOCK = 64  # of SHA-256, in bytes
_DATES = ("date", "timestamp without time zone", "timestamp with time zone")
_UNITS = ("hour", "day", "week", "month", "quarter", "year", "decade", "century")
_DEFAULT_KEEP = 1
_SETTING = "export_pipeline.{pad}_{scope}"


class Policy(StrEnum):
    """What a column can become."""

    DROP = "drop"
    MASK = "mask"
    HASH = "hash"
    TRUNCATE = "truncate"
    REPLACE = "replace"


class HashScope(StrEnum):
    """Within what equal values get equal hashes."""

    EXPORT = "export"
    INSTALLATION = "installation"


@dataclass(frozen=True, kw_only=True)
class ColumnPolicy:
    """One column's policy.

    Attributes:
        column: The column.
        policy: What it becomes.
        argument: mask: characters kept at each end; hash: a `HashScope`; truncate: a unit; replace: the new text.
        column_type: The column's type in the source, once the plan knows it.
    """

    column: str
    policy: Policy
    argument: str = ""
    column_type: str = ""

    def stated(self) -> dict[str, str]:
        """For the manifest. The replacing text is stated too: it is nobody's data."""
        return {"column": self.column, "policy": self.policy.value, "argument": self.argument}


def parse(column: str, raw: object) -> ColumnPolicy:
    """Read one policy as the configuration writes it: ``hash`` or ``{hash: installation}``.

    Raises:
        ConfigurationError: There is no such policy, or its argument makes no sense.
    """
    name, argument = next(iter(raw.items())) if isinstance(raw, Mapping) and len(raw) == 1 else (raw, None)
    try:
        policy = Policy(str(name))
    except ValueError:
        raise ConfigurationError(
            f"Column {column}: unknown policy.", hint=f"Use one of {', '.join(Policy)}, or {{policy: argument}}."
        ) from None
    return ColumnPolicy(column=column, policy=policy, argument=_ARGUMENTS[policy](column, argument))


def _no_argument(column: str, argument: object) -> str:
    if argument is not None:
        raise ConfigurationError(f"Column {column}: drop takes no argument.")
    return ""


def _keep(column: str, argument: object) -> str:
    keep = _DEFAULT_KEEP if argument is None else argument
    if not isinstance(keep, int) or isinstance(keep, bool) or not 0 <= keep <= 100:
        raise ConfigurationError(f"Column {column}: mask takes the number of characters to keep, 0 to 100.")
    return str(keep)


def _scope(column: str, argument: object) -> str:
    try:
        return HashScope(str(argument or HashScope.EXPORT)).value
    except ValueError:
        raise ConfigurationError(f"Column {column}: hash takes {' or '.join(HashScope)}.") from None


def _unit(column: str, argument: object) -> str:
    if argument not in _UNITS:
        raise ConfigurationError(f"Column {column}: truncate takes one of {', '.join(_UNITS)}.")
    return str(argument)


def _text(column: str, argument: object) -> str:
    if not isinstance(argument, str) or "\0" in argument:
        raise ConfigurationError(f"Column {column}: replace takes the new text.")
    return argument


_ARGUMENTS = {
    Policy.DROP: _no_argument,
    Policy.MASK: _keep,
    Policy.HASH: _scope,
    Policy.TRUNCATE: _unit,
    Policy.REPLACE: _text,
}


def fit(policy: ColumnPolicy, column_type: str) -> ColumnPolicy:
    """Complete a policy with the type of its column.

    Raises:
        ConfigurationError: The policy does not fit the column's type.
    """
    dated = column_type in _DATES or column_type.startswith("timestamp(")
    if policy.policy is Policy.TRUNCATE and not dated:
        raise ConfigurationError(
            f"Column {policy.column} is of type {column_type}: truncate needs a date or timestamp."
        )
    return replace(policy, column_type=column_type)


def altered_type(policy: ColumnPolicy) -> str:
    """The type that an altered column has in the delivered file."""
    return policy.column_type if policy.policy is Policy.TRUNCATE else "text"


def altered_base_type(policy: ColumnPolicy, base_type: str) -> str:
    """The same for the base type that the catalogue gave."""
    return base_type if policy.policy is Policy.TRUNCATE else "text"


def expression(policy: ColumnPolicy) -> sql.Composable:
    """The SQL for an altered column; NULL stays NULL. A dropped column has none."""
    return _EXPRESSIONS[policy.policy](sql.Identifier(policy.column), policy.argument, policy.column_type)


def _mask(column: sql.Composable, argument: str, _type: str) -> sql.Composable:
    """Ends are kept only where at least as much is hidden as is shown."""
    return sql.SQL(
        "(SELECT CASE WHEN length(v) >= 4 * k"
        " THEN left(v, k) || repeat('*', length(v) - 2 * k) || right(v, k) ELSE repeat('*', length(v)) END"
        " FROM (SELECT {column}::text AS v, {keep}::int AS k) AS masked)"
    ).format(column=column, keep=sql.Literal(int(argument)))


def _hash(column: sql.Composable, argument: str, _type: str) -> sql.Composable:
    pads = {pad: sql.Literal(_SETTING.format(pad=pad, scope=argument)) for pad in ("inner", "outer")}
    return sql.SQL(
        "encode(sha256(decode(current_setting({outer}), 'hex') ||"
        " sha256(decode(current_setting({inner}), 'hex') || convert_to({column}::text, 'UTF8'))), 'hex')"
    ).format(column=column, **pads)


def _truncate(column: sql.Composable, argument: str, column_type: str) -> sql.Composable:
    return sql.SQL("date_trunc({unit}, {column})::{type}").format(
        unit=sql.Literal(argument),
        column=column,
        type=sql.SQL(column_type),  # from the source's catalogue, one of a handful
    )


def _replace(column: sql.Composable, argument: str, _type: str) -> sql.Composable:
    return sql.SQL("CASE WHEN {column} IS NOT NULL THEN {text}::text END").format(
        column=column, text=sql.Literal(argument)
    )


_EXPRESSIONS = {Policy.MASK: _mask, Policy.HASH: _hash, Policy.TRUNCATE: _truncate, Policy.REPLACE: _replace}


def pseudonym(key: bytes, value: str) -> str:
    """What the SQL of `hash` makes of a value, in Python."""
    return hmac.new(key, value.encode(), sha256).hexdigest()


def session_settings(scope: HashScope, key: bytes) -> dict[str, str]:
    """Settings that the hash of one scope reads: name → value.

    Args:
        scope: Whose key it is.
        key: The scope's key, at most 64 bytes.
    """
    padded = key.ljust(_BLOCK, b"\0")
    pads = {"inner": 0x36, "outer": 0x5C}
    return {
        _SETTING.format(pad=name, scope=scope.value): bytes(byte ^ pad for byte in padded).hex()
        for name, pad in pads.items()
    }


def from_ticket(ticket: Mapping[str, Any]) -> ColumnPolicy:
    """Read what `dataclasses.asdict` and JSON made of a policy."""
    return ColumnPolicy(**{**ticket, "policy": Policy(ticket["policy"])})

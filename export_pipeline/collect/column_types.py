"""What follows from a column's base type: which formats may take its text as it is, and which must guard it.

Base types are named as `catalogue.describe` finds them: domains are unwrapped, and what is not built into PostgreSQL
is named by its kind (``anyenum``, ``anyarray``, ``record``, ``anyrange``, ``anymultirange``) or not at all. The sets
below list what is known to be harmless, so a type that nobody thought of is guarded.
"""

from __future__ import annotations

UNKNOWN = ""

_NUMBERS = {"smallint", "integer", "bigint", "real", "double precision", "numeric", "money", "oid"}
_TIMES = {
    "date",
    "interval",
    "time with time zone",
    "time without time zone",
    "timestamp with time zone",
    "timestamp without time zone",
}
_RANGES = {
    f"{kind}{suffix}" for kind in ("int4", "int8", "num", "ts", "tstz", "date") for suffix in ("range", "multirange")
}
_OTHER_SCALARS = {"boolean", "uuid", "bytea", "bit", "bit varying", "inet", "cidr", "macaddr", "macaddr8", "pg_lsn"}
_TEXTS = {"text", "character varying", "character", '"char"', "name", "xml", "tsvector", "tsquery"}

_JSON_WITHOUT_NEWLINES = _NUMBERS | _TIMES | _RANGES | _OTHER_SCALARS | _TEXTS | {"jsonb"}
#: The text of jsonb begins with a sign only where it is a number.
_NEVER_A_FORMULA = _NUMBERS | _TIMES | _RANGES | _OTHER_SCALARS | {"jsonb"}
_KINDS_IN_BRACKETS = {"anyarray", "record", "anyrange", "anymultirange"}
_TEXT_BY_CAST = {"text", "character varying", "name", "json", "anyenum"}


def may_hold_raw_json(base_type: str) -> bool:
    """Whether `row_to_json` may bring raw line breaks: it copies the text of a json value as it stands.

    A type of somebody's own may have a cast to json that `row_to_json` uses, so only built-in types are trusted.
    """
    return _family(base_type).removesuffix("[]") not in _JSON_WITHOUT_NEWLINES


def may_begin_a_formula(base_type: str) -> bool:
    """Whether a value's text may begin with a character that a spreadsheet takes for a formula."""
    if base_type in _KINDS_IN_BRACKETS or base_type.endswith("[]"):
        return False
    return _family(base_type) not in _NEVER_A_FORMULA


def cast_prints(base_type: str) -> bool:
    """Whether ``::text`` gives exactly what the type prints; elsewhere it drops blanks, or means something else."""
    return base_type in _TEXT_BY_CAST


def _family(base_type: str) -> str:
    """The type without its precision."""
    return "numeric" if base_type.startswith("numeric(") else base_type

"""From a request and the configuration to what will be exported. Pure: it reads no database and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from export_pipeline.collect.catalogue import SourceTable
from export_pipeline.collect.policies import ColumnPolicy, Policy, altered_base_type, altered_type, fit, parse
from export_pipeline.collect.statements import Extract
from export_pipeline.errors import ConfigurationError, DataTypeUnusable, InvalidRequest
from export_pipeline.models import DATA_TYPE_PATTERN, MAX_DATA_TYPES, DataTypeConfig, ExportFormat, RequestType


@dataclass(frozen=True, kw_only=True)
class PlannedType:
    """One data type that will be exported.

    Attributes:
        data_type: Its name.
        title: What people read.
        extract: Which rows.
        types: PostgreSQL type of each exported column, in their order.
        note: A warning for those who run the system, such as a missing index; empty when all is well.
    """

    data_type: str
    title: str
    extract: Extract
    types: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """Everything that a run will do.

    Attributes:
        format: The delivered file's format.
        types: What will be exported, in the order of the delivered file.
    """

    format: ExportFormat
    types: tuple[PlannedType, ...]

    def ticket(self) -> dict[str, Any]:
        """As JSON: names of tables and columns, nothing of anybody's data."""
        return asdict(self)

    @classmethod
    def from_ticket(cls, ticket: Mapping[str, Any]) -> ExportPlan:
        """Read what `ticket` wrote."""
        types = tuple(
            PlannedType(
                **{
                    **planned,
                    "extract": Extract.from_ticket(planned["extract"]),
                    "types": tuple(planned["types"]),
                }
            )
            for planned in ticket["types"]
        )
        return cls(format=ExportFormat(ticket["format"]), types=types)


def request_type(name: str) -> RequestType:
    """Read a request type.

    Raises:
        InvalidRequest: There is no such type.
    """
    try:
        return RequestType(name)
    except ValueError:
        raise InvalidRequest("The request type is unknown.", hint=f"Use one of {', '.join(RequestType)}.") from None


def export_format(name: str) -> ExportFormat:
    """Read a format.

    Raises:
        InvalidRequest: There is no such format.
    """
    try:
        return ExportFormat(name)
    except ValueError:
        raise InvalidRequest("The format is unknown.", hint=f"Use one of {', '.join(ExportFormat)}.") from None


def requested_types(
    kind: RequestType, asked: Sequence[str], configs: Sequence[DataTypeConfig]
) -> tuple[DataTypeConfig, ...]:
    """Choose the configurations that a request means: without doubles, in the order asked.

    A gdpr export is every configured data type, whatever was listed: an answer that the law asks for is complete.

    Raises:
        InvalidRequest: Nothing was asked for, or something that is not configured; names it.
    """
    known = {config.data_type: config for config in configs}
    names = list(dict.fromkeys(asked))
    if len(names) > MAX_DATA_TYPES:
        raise InvalidRequest(f"More than {MAX_DATA_TYPES} data types were asked for.")
    if unknown := [name for name in names if name not in known]:
        # What was typed may be anything: only names that could be a data type are repeated.
        shown = ", ".join(name if DATA_TYPE_PATTERN.fullmatch(name) else "(not a name)" for name in unknown[:5])
        raise InvalidRequest(f"Unknown data type: {shown}.", hint=f"Known are: {', '.join(known) or 'none'}.")
    if kind is RequestType.GDPR:
        names += [name for name in known if name not in names]
    if not names:
        raise InvalidRequest("No data type was asked for.", hint=f"Known are: {', '.join(known) or 'none'}.")
    return tuple(known[name] for name in names)


#: The profile that applies to every export.
_ALWAYS = "always"
#: In a profile, every exported column that it does not name.
_OTHERS = "*"


def require_profile(profile: str | None, configs: Sequence[DataTypeConfig]) -> None:
    """Make sure that every data type knows the profile: to export one of them unaltered would be a leak.

    Raises:
        InvalidRequest: One does not; names it.
        DataTypeUnusable: One has a policy in it that is none; names both.
    """
    if profile and (without := [config.data_type for config in configs if profile not in config.anonymization]):
        raise InvalidRequest(
            f"The anonymization profile is not configured for {', '.join(without)}.",
            hint="Add it to the data types, or leave `anonymize` out.",
        )
    for config in configs if profile else ():
        _profile(config, profile, [_OTHERS])


def column_policies(
    config: DataTypeConfig, kind: RequestType, profile: str | None, columns: Sequence[str]
) -> dict[str, ColumnPolicy]:
    """Choose each column's policy: `always` first, then the profile, then pseudonyms for other people's data.

    Args:
        config: The data type.
        kind: The request's type.
        profile: The profile that the request asks for.
        columns: The columns of the export.

    Raises:
        DataTypeUnusable: A policy is wrong.
    """
    chosen: dict[str, ColumnPolicy] = {}
    for name in (_ALWAYS, profile):
        chosen = {**_profile(config, name, columns), **chosen}
    if kind is RequestType.GDPR:
        chosen = {**{column: parse(column, Policy.HASH.value) for column in config.third_party}, **chosen}
    return chosen


def _profile(config: DataTypeConfig, name: str | None, columns: Sequence[str]) -> dict[str, ColumnPolicy]:
    raw = config.anonymization.get(name or "", {})
    where = f"Data type {config.data_type}, profile {name}"
    if not isinstance(raw, Mapping):
        raise DataTypeUnusable(f"{where}: it must map columns to policies.", hint=_MEND)
    try:
        explicit = {column: parse(column, policy) for column, policy in raw.items() if column != _OTHERS}
        others = {column: parse(column, raw[_OTHERS]) for column in columns} if _OTHERS in raw else {}
    except ConfigurationError as error:
        raise DataTypeUnusable(f"{where}: {error.message}", hint=error.hint or _MEND) from None
    return {**others, **explicit}


def plan_type(
    config: DataTypeConfig,
    table: SourceTable | None,
    *,
    matchable: bool,
    kind: RequestType = RequestType.CUSTOM,
    profile: str | None = None,
    escape_formulas: bool = False,
) -> PlannedType:
    """Check one configuration against what the source has.

    Args:
        config: The configuration.
        table: What the source says; None when there is no such table.
        matchable: Whether the user's id can be a value of the user column.
        kind: The request's type.
        profile: The anonymization profile that the request asks for.
        escape_formulas: Whether CSV must be safe to open in a spreadsheet.

    Raises:
        ConfigurationError: Table or column is absent, named twice, or not readable; says which.
    """
    where = f"Data type {config.data_type}: "
    if table is None:
        raise ConfigurationError(f"{where}the source has no table {config.table_name}.", hint=_NO_TABLE)
    if not table.readable:
        raise ConfigurationError(f"{where}the table {config.table_name} may not be read.", hint=_GRANT)
    columns = config.columns_to_export or tuple(table.columns)
    named = [column for raw in config.anonymization.values() if isinstance(raw, Mapping) for column in raw]
    needed = (*columns, config.user_id_column, *config.order_by, *config.third_party)
    if not all(isinstance(column, str) for column in needed):  # an array of SQL may hold NULL, or arrays
        raise ConfigurationError(f"{where}its lists of columns must be plain lists of names.", hint=_MEND)
    named = [name for name in named if name != _OTHERS]
    if absent := [name for name in (*needed, *named) if name not in table.columns]:
        raise ConfigurationError(f"{where}{config.table_name} has no column {', '.join(absent)}.", hint=_MEND)
    if len(set(columns)) < len(columns):
        raise ConfigurationError(f"{where}a column is listed twice.", hint=_MEND)
    policies = {
        column: fit(policy, table.columns[column])
        for column, policy in column_policies(config, kind, profile, columns).items()
        if column in columns
    }
    left = tuple(column for column in columns if column not in policies or policies[column].policy is not Policy.DROP)
    if not left:
        raise ConfigurationError(f"{where}every column is dropped.", hint=_MEND)
    types = tuple(altered_type(policies[column]) if column in policies else table.columns[column] for column in left)
    return PlannedType(
        data_type=config.data_type,
        title=config.title or config.data_type.replace("_", " ").capitalize(),
        extract=_extract(
            config,
            table,
            dict(zip(left, types, strict=True)),
            policies,
            matchable=matchable,
            escape_formulas=escape_formulas,
        ),
        types=types,
        note="" if table.user_column_indexed else f"no index begins with {config.user_id_column}",
    )


def _extract(
    config: DataTypeConfig,
    table: SourceTable,
    columns: Mapping[str, str],
    policies: Mapping[str, ColumnPolicy],
    *,
    matchable: bool,
    escape_formulas: bool,
) -> Extract:
    order_by = config.order_by or table.key
    return Extract(
        schema=table.schema,
        table=table.table,
        columns=tuple(columns),
        user_id_column=config.user_id_column,
        order_by=order_by,
        by_address=not order_by and table.has_ctid,
        matchable=matchable,
        policies=tuple(policies.values()),
        types=tuple(columns.values()),
        base_types=tuple(
            altered_base_type(policies[column], table.base_types[column])
            if column in policies
            else table.base_types[column]
            for column in columns
        ),
        escape_formulas=escape_formulas,
    )


_MEND = "Mend it with `export-pipeline data-types apply FILE.yaml`."
#: A fresh installation has the data types of the sample, and its source is the embedded database, which is empty.
_NO_TABLE = (
    "Name your database in EXPORT_PIPELINE_SOURCE_URL and your tables by `export-pipeline data-types apply FILE.yaml`; "
    "`export-pipeline demo` makes sample data in the embedded database."
)
_GRANT = "GRANT SELECT on it to the role of the source URL."

"""From a request and the configuration to what will be exported. Pure: it reads no database and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from export_pipeline.collect.catalogue import SourceTable
from export_pipeline.collect.statements import Extract
from export_pipeline.errors import ConfigurationError, InvalidRequest
from export_pipeline.models import MAX_DATA_TYPES, DataTypeConfig, ExportFormat, RequestType


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
        shown = ", ".join(name if name.isascii() and name.isidentifier() else "(not a name)" for name in unknown[:5])
        raise InvalidRequest(f"Unknown data type: {shown}.", hint=f"Known are: {', '.join(known) or 'none'}.")
    if kind is RequestType.GDPR:
        names += [name for name in known if name not in names]
    if not names:
        raise InvalidRequest("No data type was asked for.", hint=f"Known are: {', '.join(known) or 'none'}.")
    return tuple(known[name] for name in names)


def plan_type(config: DataTypeConfig, table: SourceTable | None, *, matchable: bool) -> PlannedType:
    """Check one configuration against what the source has.

    Args:
        config: The configuration.
        table: What the source says; None when there is no such table.
        matchable: Whether the user's id can be a value of the user column.

    Raises:
        ConfigurationError: Table or column is absent, named twice, or not readable; says which.
    """
    where = f"Data type {config.data_type}: "
    if table is None:
        raise ConfigurationError(f"{where}the source has no table {config.table_name}.", hint=_MEND)
    if not table.readable:
        raise ConfigurationError(f"{where}the table {config.table_name} may not be read.", hint=_GRANT)
    columns = config.columns_to_export or tuple(table.columns)
    needed = (*columns, config.user_id_column, *config.order_by)
    if not all(isinstance(column, str) for column in needed):  # an array of SQL may hold NULL, or arrays
        raise ConfigurationError(f"{where}columns_to_export and order_by must be plain lists of names.", hint=_MEND)
    if absent := [column for column in needed if column not in table.columns]:
        raise ConfigurationError(f"{where}{config.table_name} has no column {', '.join(absent)}.", hint=_MEND)
    if len(set(columns)) < len(columns):
        raise ConfigurationError(f"{where}a column is listed twice.", hint=_MEND)
    order_by = config.order_by or table.key
    return PlannedType(
        data_type=config.data_type,
        title=config.title or config.data_type.replace("_", " ").capitalize(),
        extract=Extract(
            schema=table.schema,
            table=table.table,
            columns=columns,
            user_id_column=config.user_id_column,
            order_by=order_by,
            by_address=not order_by and table.has_ctid,
            matchable=matchable,
        ),
        types=tuple(table.columns[column] for column in columns),
        note="" if table.user_column_indexed else f"no index begins with {config.user_id_column}",
    )


_MEND = "Mend it with `export-pipeline data-types apply FILE.yaml`."
_GRANT = "GRANT SELECT on it to the role of the source URL."

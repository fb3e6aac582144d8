"""The YAML file that configures data types, checked before anything of it is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from export_pipeline.collect import policies
from export_pipeline.errors import ConfigurationError, DataTypeUnusable
from export_pipeline.models import DATA_TYPE_PATTERN, DataTypeConfig

_Name = Annotated[str, Field(min_length=1, max_length=100)]


class DataTypeFields(BaseModel):
    """What a data type is, without its name; the field names are those of the table `data_type_configs`."""

    model_config = ConfigDict(extra="forbid")

    table_name: Annotated[str, Field(min_length=1, max_length=255)]
    user_id_column: _Name = "user_id"
    columns_to_export: tuple[_Name, ...] = ()
    is_sensitive: bool = False
    requires_approval: bool = False
    order_by: tuple[_Name, ...] = ()
    title: str = ""
    anonymization: dict[_Name, dict[_Name, Any]] = Field(default_factory=dict)
    third_party: tuple[_Name, ...] = ()

    @field_validator("anonymization")
    @classmethod
    def _policies(cls, profiles: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for columns in profiles.values():
            for column, policy in columns.items():
                try:
                    policies.parse(column, policy)
                except ConfigurationError as error:
                    raise ValueError(str(error)) from None
        return profiles

    @classmethod
    def of(cls, config: DataTypeConfig) -> DataTypeFields:
        """The fields of a configuration.

        Raises:
            DataTypeUnusable: SQL wrote into a field what the file could not; names it.
        """
        try:
            return cls.model_validate({name: getattr(config, name) for name in cls.model_fields})
        except ValidationError as error:
            raise DataTypeUnusable(
                f"Data type {config.data_type} is not usable: {_faults(error)}.",
                hint="Mend its row, or replace it by PUT or `export-pipeline data-types apply`.",
            ) from None


class _Entry(DataTypeFields):
    data_type: _Name

    @field_validator("data_type")
    @classmethod
    def _usable(cls, name: str) -> str:
        if not DATA_TYPE_PATTERN.fullmatch(name):
            raise ValueError("use letters, digits, dashes and underscores, beginning with a letter")
        return name


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data_types: tuple[_Entry, ...] = Field(min_length=1)

    @field_validator("data_types")
    @classmethod
    def _unique(cls, entries: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
        names = [entry.data_type for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError("a data type is configured twice")
        return entries


def config(data_type: str, fields: DataTypeFields) -> DataTypeConfig:
    """Name a data type."""
    return DataTypeConfig(data_type=data_type, **fields.model_dump())


def load(file: Path) -> list[DataTypeConfig]:
    """Read the file.

    Raises:
        ConfigurationError: It cannot be read, is no YAML, or an entry is wrong; says which and why.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{file} is not valid YAML{where}.") from None
    try:
        entries = _File.model_validate(content).data_types
    except ValidationError as error:
        raise ConfigurationError(f"{file} is not a data type configuration: {_faults(error)}.") from None
    return [DataTypeConfig(**entry.model_dump()) for entry in entries]


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg'].rstrip('.')}" for fault in faults)

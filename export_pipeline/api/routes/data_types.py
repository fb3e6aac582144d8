"""What can be asked for, and its administration."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from export_pipeline.api.conditional import NOT_MODIFIED, IfNoneMatch, conditional
from export_pipeline.api.dependencies import Caller, ServicesDep, require
from export_pipeline.api.openapi import documented
from export_pipeline.api.schemas import DataType, DataTypeChanged, DataTypes
from export_pipeline.data_type_file import DataTypeFields, config
from export_pipeline.errors import ConfigurationError, InvalidRequest, RequestNotFound
from export_pipeline.identity import Scope
from export_pipeline.models import DATA_TYPE_PATTERN, ExportFormat, RequestType

router = APIRouter(prefix="/api/exports/data-types", tags=["data types"])
_Name = Annotated[
    str, Path(description="The data type.", pattern=f"^{DATA_TYPE_PATTERN.pattern}$", examples=["user_profile"])
]
_Reader = Annotated[Caller, Depends(require(Scope.READ_DATA_TYPES, everybody=True))]
_Administrator = Annotated[Caller, Depends(require(Scope.ADMINISTER_DATA_TYPES, everybody=True))]


@router.get("", operation_id="list_data_types", response_model=DataTypes, responses={**documented(400), **NOT_MODIFIED})
def list_data_types(services: ServicesDep, _: _Reader, if_none_match: IfNoneMatch = None) -> Response:
    """What can be asked for: data types, formats, request types."""
    configured = [DataType.of(one) for one in services.data_types.all()]
    answer = DataTypes(data_types=configured, formats=list(ExportFormat), request_types=list(RequestType))
    return conditional(answer, if_none_match, personal=False)


@router.get(
    "/{data_type}",
    operation_id="get_data_type",
    response_model=DataTypeFields,
    responses={**documented(400, 404, 409), **NOT_MODIFIED},
)
def get_data_type(
    data_type: _Name, services: ServicesDep, _: _Administrator, if_none_match: IfNoneMatch = None
) -> Response:
    """The whole configuration of a data type, as `PUT` takes it."""
    found = next((one for one in services.data_types.all() if one.data_type == data_type), None)
    if found is None:
        raise _unknown()
    return conditional(DataTypeFields.of(found), if_none_match, personal=False)


@router.put("/{data_type}", operation_id="put_data_type", responses=documented(400, 413))
def put_data_type(
    data_type: _Name, fields: DataTypeFields, services: ServicesDep, caller: _Administrator
) -> DataTypeChanged:
    """Make or replace a data type. Whether its table and columns exist, `export-pipeline doctor` tells."""
    try:
        changed = services.data_types.apply([config(data_type, fields)], caller.actor)
    except ConfigurationError as error:
        raise InvalidRequest(error.message, hint=error.hint) from None
    return DataTypeChanged(data_type=data_type, changed=bool(changed))


@router.delete("/{data_type}", operation_id="delete_data_type", responses=documented(400, 404))
def delete_data_type(data_type: _Name, services: ServicesDep, caller: _Administrator) -> DataTypeChanged:
    """Remove a data type: nobody can ask for it any more. Files that hold it stay."""
    if not services.data_types.remove(data_type, caller.actor):
        raise _unknown()
    return DataTypeChanged(data_type=data_type, changed=True)


def _unknown() -> RequestNotFound:
    return RequestNotFound("There is no such data type.")

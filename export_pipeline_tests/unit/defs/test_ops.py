"""What the ops tell Dagster."""

import dagster as dg
import pytest

from export_pipeline.collect.statements import Extract
from export_pipeline.defs.ops import plan_export
from export_pipeline.models import ExportFormat
from export_pipeline.plan import ExportPlan, PlannedType


class Run:
    """Stands for `ExportRun` and its lazy maker: plans what it is given."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def get(self) -> "Run":
        return self

    def plan(self) -> ExportPlan:
        extract = Extract(schema="public", table="t", columns=("a",), user_id_column="a")
        types = [PlannedType(data_type=name, title=name, extract=extract, types=("text",)) for name in self._names]
        return ExportPlan(format=ExportFormat.JSON, types=tuple(types))


@pytest.mark.parametrize(
    "names",
    [
        ["orders", "Orders", "order_lines"],
        ["a-b", "a_b", "a--b"],
        ["type_1", "a-b"],
        ["class", "context", "config", "input", "meta", "type", "a_0"],
    ],
)
def test_every_data_type_has_a_step_of_its_own(names: list[str]) -> None:
    @dg.op
    def same(data_type: str) -> str:
        return data_type

    @dg.job(resource_defs={"export_run": dg.ResourceDefinition.hardcoded_resource(Run(names))})
    def plans() -> None:
        _, data_types = plan_export()
        data_types.map(same)

    done = plans.execute_in_process()
    assert sorted(done.output_for_node("same").values()) == sorted(names)

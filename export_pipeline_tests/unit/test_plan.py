"""Plans: what was asked against what is configured and what the source has."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from export_pipeline.collect.catalogue import SourceTable
from export_pipeline.errors import ConfigurationError, InvalidRequest
from export_pipeline.models import MAX_DATA_TYPES, DataTypeConfig, ExportFormat, RequestType
from export_pipeline.plan import ExportPlan, PlannedType, export_format, plan_type, request_type, requested_types

CONFIGS = [DataTypeConfig(data_type=name, table_name=name) for name in ("clicks", "profile", "user-notes")]
TABLE = SourceTable(
    schema="app",
    table="user clicks",
    columns={"id": "bigint", "user_id": "text", "at": "timestamp with time zone"},
    base_types={"id": "bigint", "user_id": "text", "at": "timestamp with time zone"},
    key=("id",),
    has_ctid=True,
    readable=True,
    user_column_indexed=True,
)
CONFIG = DataTypeConfig(data_type="user_clicks", table_name='app."user clicks"')


def names(kind: RequestType, *asked: str) -> list[str]:
    return [config.data_type for config in requested_types(kind, asked, CONFIGS)]


def planned(
    config: DataTypeConfig = CONFIG, table: SourceTable | None = TABLE, *, matchable: bool = True
) -> PlannedType:
    return plan_type(config, table, matchable=matchable)


class TestWords:
    def test_known_words(self) -> None:
        assert [request_type(kind.value) for kind in RequestType] == list(RequestType)
        assert [export_format(name.value) for name in ExportFormat] == list(ExportFormat)

    @pytest.mark.parametrize("word", ["", "JSON", "json ", "ada@example.org", "gdpr\0"])
    def test_unknown_words_are_refused_and_not_repeated(self, word: str) -> None:
        for read in (request_type, export_format):
            with pytest.raises(InvalidRequest, match="Use one of") as caught:
                read(word)
            assert not word or word not in caught.value.message
            assert caught.value.__suppress_context__

    def test_hints_name_every_choice(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            export_format("x")
        assert all(name.value in caught.value.hint for name in ExportFormat)


class TestRequestedTypes:
    def test_in_the_order_asked_and_without_doubles(self) -> None:
        asked = ["profile", "clicks", "profile", "clicks", "clicks"]
        assert names(RequestType.CUSTOM, *asked) == ["profile", "clicks"]

    @pytest.mark.parametrize("kind", [kind for kind in RequestType if kind is not RequestType.GDPR])
    def test_nothing_asked_is_refused(self, kind: RequestType) -> None:
        with pytest.raises(InvalidRequest, match=r"No data type.*clicks, profile, user-notes"):
            names(kind)

    def test_gdpr_is_everything_and_what_was_listed_comes_first(self) -> None:
        assert names(RequestType.GDPR) == ["clicks", "profile", "user-notes"]
        assert names(RequestType.GDPR, "profile") == ["profile", "clicks", "user-notes"]

    @pytest.mark.parametrize("kind", RequestType)
    def test_unknown_types_are_named_whatever_the_kind(self, kind: RequestType) -> None:
        with pytest.raises(InvalidRequest, match=r"Unknown data type: nothing, user-things\. Known are: clicks"):
            names(kind, "clicks", "nothing", "user-things")

    @pytest.mark.parametrize("name", ["ada@example.org", "a b", "1", "", "x" * 101, "é", "a\nb", "'; --"])
    def test_what_could_be_no_name_is_not_repeated(self, name: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            names(RequestType.CUSTOM, name)
        assert caught.value.message == "Unknown data type: (not a name)."

    def test_only_some_unknown_types_are_named(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            names(RequestType.CUSTOM, *(f"n{number}" for number in range(MAX_DATA_TYPES)))
        assert caught.value.message == "Unknown data type: n0, n1, n2, n3, n4."

    def test_case_matters(self) -> None:
        with pytest.raises(InvalidRequest):
            names(RequestType.CUSTOM, "Clicks")

    def test_too_many_are_refused(self) -> None:
        with pytest.raises(InvalidRequest, match=f"More than {MAX_DATA_TYPES}"):
            names(RequestType.CUSTOM, *(f"n{number}" for number in range(MAX_DATA_TYPES + 1)))

    def test_doubles_do_not_count(self) -> None:
        assert names(RequestType.CUSTOM, *["clicks"] * (MAX_DATA_TYPES + 1)) == ["clicks"]

    @pytest.mark.parametrize("kind", RequestType)
    def test_an_installation_without_types_says_so(self, kind: RequestType) -> None:
        with pytest.raises(InvalidRequest, match="Known are: none"):
            requested_types(kind, [], [])


class TestPlanType:
    def test_every_column_in_the_tables_order_by_its_key(self) -> None:
        plan = planned()
        assert (plan.data_type, plan.title, plan.note) == ("user_clicks", "User clicks", "")
        assert plan.types == ("bigint", "text", "timestamp with time zone")
        extract = plan.extract
        assert (extract.schema, extract.table, extract.user_id_column) == ("app", "user clicks", "user_id")
        assert (extract.columns, extract.order_by) == (("id", "user_id", "at"), ("id",))
        assert (extract.by_address, extract.matchable) == (False, True)

    def test_configured_columns_in_their_order(self) -> None:
        plan = planned(replace(CONFIG, columns_to_export=("at", "id")))
        assert plan.extract.columns == ("at", "id")
        assert plan.types == ("timestamp with time zone", "bigint")

    def test_a_configured_title_and_order(self) -> None:
        plan = planned(replace(CONFIG, title="Your clicks", order_by=("at", "id")))
        assert (plan.title, plan.extract.order_by) == ("Your clicks", ("at", "id"))

    def test_without_a_key_rows_are_ordered_by_address_where_they_have_one(self) -> None:
        assert planned(table=replace(TABLE, key=())).extract.by_address
        view = planned(table=replace(TABLE, key=(), has_ctid=False)).extract
        assert (view.by_address, view.order_by) == (False, ())
        ordered = planned(replace(CONFIG, order_by=("at",)), replace(TABLE, key=())).extract
        assert (ordered.by_address, ordered.order_by) == (False, ("at",))

    def test_an_id_that_cannot_be_a_value_matches_nothing(self) -> None:
        assert not planned(matchable=False).extract.matchable

    def test_a_missing_index_is_noted(self) -> None:
        assert planned(table=replace(TABLE, user_column_indexed=False)).note == "no index begins with user_id"

    @pytest.mark.parametrize(
        ("config", "table", "words"),
        [
            (CONFIG, None, "the source has no table.*EXPORT_PIPELINE_SOURCE_URL.*`export-pipeline demo`"),
            (CONFIG, replace(TABLE, readable=False), "may not be read.*GRANT SELECT"),
            (replace(CONFIG, columns_to_export=("id", "nope", "no")), TABLE, "has no column nope, no"),
            (replace(CONFIG, user_id_column="owner"), TABLE, "has no column owner"),
            (replace(CONFIG, order_by=("when",)), TABLE, "has no column when"),
            (replace(CONFIG, columns_to_export=("ID",)), TABLE, "has no column ID"),
            (replace(CONFIG, columns_to_export=("id", "at", "id")), TABLE, "listed twice"),
            (replace(CONFIG, columns_to_export=(None,)), TABLE, "plain lists of names"),  # type: ignore[arg-type]
            (replace(CONFIG, order_by=(["id"],)), TABLE, "plain lists of names"),  # type: ignore[arg-type]
            (CONFIG, replace(TABLE, columns={}), "has no column user_id"),
        ],
    )
    def test_what_is_wrong_is_said_with_the_data_types_name(
        self, config: DataTypeConfig, table: SourceTable | None, words: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=f"Data type user_clicks: .*{words}") as caught:
            planned(config, table)
        assert caught.value.hint


def test_a_plan_survives_the_way_through_json() -> None:
    plan = ExportPlan(
        format=ExportFormat.CSV,
        types=(planned(), planned(replace(CONFIG, data_type="b", order_by=("at", "id")), matchable=False)),
    )
    assert ExportPlan.from_ticket(json.loads(json.dumps(plan.ticket()))) == plan
    assert ExportPlan.from_ticket(plan.ticket()) == plan


def test_an_empty_plan_survives_too() -> None:
    plan = ExportPlan(format=ExportFormat.JSON, types=())
    assert ExportPlan.from_ticket(json.loads(json.dumps(plan.ticket()))) == plan

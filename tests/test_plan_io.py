"""Plan files: what is written comes back, and what is no plan is refused with its place in the file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import hand_made_plan, plans

from autoplan.errors import AutoplanError, PlanError
from autoplan.plan import Plan, plan_json, plan_schema, read_plan, write_plan

RAW = json.loads(plan_json(hand_made_plan()))


def refused(path: Path, raw: object) -> PlanError:
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    return caught.value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(plan=plans())
def test_a_plan_survives_its_file(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    assert read_plan(path) == plan
    assert read_plan(path).hash() == plan.hash()


def test_the_same_plan_gives_the_same_bytes_whatever_the_order_of_its_maps() -> None:
    plan = hand_made_plan()
    turned = {
        kind: dict(reversed(list(choices.items()))) for kind, choices in reversed(list(plan.layouts.items()))
    }
    assert plan_json(plan) == plan_json(hand_made_plan(layouts=turned))


def test_a_plan_file_reads_from_the_top_and_ends_in_one_newline() -> None:
    lines = plan_json(hand_made_plan()).splitlines(keepends=True)
    assert lines[:3] == ["{\n", '  "format": "autoplan.plan/1",\n', '  "model": "tiny",\n']
    assert lines[-1] == "}\n"


def test_writing_replaces_the_file_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("x" * 100_000)
    write_plan(hand_made_plan(), path)
    assert read_plan(path) == hand_made_plan()
    assert os.listdir(tmp_path) == ["plan.json"]


def test_writing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "plan.json")
    write_plan(hand_made_plan(), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert read_plan(tmp_path / "plan.json") == hand_made_plan()


def test_writing_to_a_device_does_not_replace_it() -> None:
    write_plan(hand_made_plan(), "/dev/null")
    assert not Path("/dev/null").is_file()


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no such file or directory") as caught:
        write_plan(hand_made_plan(), tmp_path / "missing" / "plan.json")
    assert str(tmp_path / "missing") in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^plan file: got '.*none\.json', expected a file that can be read"):
        read_plan(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "field", "value", "expected"),
    [
        ({"pp": "two"}, "pp", "two", "an integer"),
        ({"pp": 1.5}, "pp", 1.5, "an integer"),
        ({"stages": {"units": []}}, "stages", {"units": []}, "a list"),
        ({"stages": [{"units": ["a", 3]}]}, "stages[0].units[1]", 3, "a string"),
        ({"stages": [{"recompute": []}]}, "stages[0].units", None, "a value"),
        ({"stages": [{"units": [], "recomputed": ["a"]}]}, "stages[0].recomputed", ["a"], "units, recompute"),
        ({"precision": "fp8"}, "precision", "fp8", "one of bf16, fp32, fp64"),
        ({"schedule": "2f2b"}, "schedule", "2f2b", "one of gpipe, 1f1b, interleaved, zb-h1, zbv, dualpipe-v"),
        ({"format": "autoplan.plan/9"}, "format", "autoplan.plan/9", "one of autoplan.plan/1"),
        ({"layouts": {"block": {"linear": 3}}}, "layouts[...][...]", {"block": {"linear": 3}}, "a string"),
        ({"micro_batches": 4}, "micro_batches", 4, "one of the fields format, model"),
        ({"zero": 7}, "zero", 7, "0, 1, 2 or 3"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(
    change: dict[str, object], field: str, value: object, expected: str, tmp_path: Path
) -> None:
    error = refused(tmp_path / "plan.json", {**RAW, **change})
    assert error.field == f"{tmp_path / 'plan.json'}: {field}"
    assert error.value == value
    assert expected in error.expected
    assert error.remedy
    assert "\n" not in str(error)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    raw = {name: value for name, value in RAW.items() if name != "model"}
    assert refused(tmp_path / "plan.json", raw).field.endswith("plan.json: model")


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"pp": 1,}', "[]", "null", "3", '{"pp": ' + "9" * 5000 + "}"]
)
def test_text_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    error = refused(tmp_path / "plan.json", text)
    assert error.field.startswith(str(tmp_path / "plan.json"))


def test_broken_json_is_shown_where_it_breaks(tmp_path: Path) -> None:
    error = refused(tmp_path / "plan.json", '{"model": "tiny", "pp": 2,}')
    assert "trailing comma in object (byte 26)" in str(error)
    assert '"pp": 2,}' in str(error)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data())
def test_a_mutated_file_gives_a_plan_or_our_error(data: st.DataObject, tmp_path: Path) -> None:
    """Replace, drop or add a field anywhere, or spoil bytes: never another exception."""
    raw = json.loads(plan_json(data.draw(plans())))
    stage = data.draw(st.sampled_from(raw["stages"]))
    holder = data.draw(st.sampled_from([raw, stage, raw["layouts"]]))
    name = data.draw(st.sampled_from([*holder, "unheard_of"]))
    if data.draw(st.booleans()):
        holder[name] = data.draw(_json)
    else:
        holder.pop(name, None)
    text = bytearray(json.dumps(raw).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "plan.json"
    path.write_bytes(text)
    try:
        plan = read_plan(path)
    except AutoplanError as error:
        assert "\n" not in str(error)
        assert str(path) in error.field
    else:
        write_plan(plan, path)
        assert read_plan(path) == plan


def test_the_schema_names_every_field_and_refuses_others() -> None:
    schema = plan_schema()
    definition = schema["$defs"]["Plan"]
    assert set(definition["properties"]) == set(Plan.__struct_fields__)
    assert definition["additionalProperties"] is False
    assert re.match(r"https://json-schema\.org/", schema["$schema"])

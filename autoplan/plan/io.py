"""Plans as files: JSON that is the same byte for byte for the same plan, and errors that say where.

A file that is not a plan never shows a decoder's traceback: the error names the file, the field
(``stages[0].units[1]``), the value that stands there, what was expected, and what to do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec

from autoplan.errors import PlanError
from autoplan.plan.plan import Plan, StagePlan
from autoplan.plan.schedule import Schedule
from autoplan.plan.validate import validate_plan
from autoplan.precision import Precision

__all__ = ["plan_json", "plan_schema", "read_plan", "write_plan"]

_REWRITE = "correct it, or write the plan again with `autoplan search --out`"
_ARTICLES = {"int": "an integer", "str": "a string", "array": "a list", "object": "an object"}
_CHOICES: dict[str, list[str]] = {
    "format": [str(msgspec.structs.fields(Plan)[0].default)],
    "precision": [member.value for member in Precision],
    "schedule": [member.value for member in Schedule],
    "cp_order": ["plain", "zigzag"],
}


def read_plan(path: str | Path) -> Plan:
    """The plan in ``path``, checked with ``validate_plan``. Raises PlanError for anything else."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(
            "plan file", str(path), "a file that can be read", f"correct the path ({_reason(error)})"
        ) from None
    raw = _parse(str(path), text)
    _refuse_unknown(str(path), raw)
    try:
        plan = msgspec.convert(raw, Plan)
    except msgspec.ValidationError as error:
        raise _located(str(path), raw, str(error)) from None
    try:
        validate_plan(plan)
    except PlanError as error:
        raise PlanError(f"{path}: {error.field}", error.value, error.expected, error.remedy) from None
    return plan


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write ``plan`` to ``path``, all of it or nothing: a file already there is replaced in one step."""
    target = Path(path)
    data = plan_json(plan).encode()
    try:
        if target.exists() and not target.is_file():  # a pipe or a device takes the bytes as they are
            target.write_bytes(data)
        else:
            _replace(target.resolve(), data)
    except OSError as error:
        raise PlanError(
            "plan file", str(path), "a path that can be written", f"choose another path ({_reason(error)})"
        ) from None


def plan_json(plan: Plan) -> str:
    """The text of a plan file: fields in the order of ``Plan``, keys of its maps sorted, one final newline.

    ``asked``, ``policies`` and a stage's ``device`` are left out where they are empty.
    """
    packed = msgspec.json.encode(plan, order="deterministic")
    data = msgspec.json.decode(packed)
    for part, name in (
        (data, "asked"),
        (data, "policies"),
        *((stage, name) for stage in data["stages"] for name in ("policies", "device")),
    ):
        if not part[name]:
            del part[name]
    packed = msgspec.json.encode(data)
    return msgspec.json.format(packed, indent=2).decode() + "\n"


def plan_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a plan file. Fields it does not name are refused."""
    schema = msgspec.json.schema(Plan)
    for definition in schema["$defs"].values():
        if definition.get("type") == "object":
            definition["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _parse(path: str, text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        position = re.search(r"\(byte (\d+)\)", str(error))
        at = int(position[1]) if position else len(text)
        seen = text[max(0, at - 12) : at + 12].decode(errors="replace")
        reason = str(error).removeprefix("JSON is malformed: ")
        raise PlanError(path, seen, f"JSON ({reason})", _REWRITE) from None


def _refuse_unknown(path: str, raw: Any) -> None:
    """msgspec passes over fields that it does not know; a misspelt decision must not vanish so."""
    if not isinstance(raw, dict):
        return
    _check_names(f"{path}: ", raw, Plan)
    stages = raw.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(stage, dict):
            _check_names(f"{path}: stages[{index}].", stage, StagePlan)


def _check_names(prefix: str, raw: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    known = struct.__struct_fields__
    for name, value in raw.items():
        if name not in known:
            raise PlanError(
                prefix + name, value, f"one of the fields {', '.join(known)}", "remove or rename it"
            )


def _located(path: str, raw: Any, message: str) -> PlanError:
    """msgspec's sentence, ``Expected `int`, got `str` - at `$.stages[0]```, as an error of ours."""
    what, _, where = message.partition(" - at ")
    steps = re.findall(r"\[\.\.\.\]|\[\d+\]|[^.\[\]$`]+", where.removeprefix("`key in "))
    field, value = "", raw
    for step in steps:
        field += step if step.startswith("[") else f".{step}"
        value = _step_into(value, step)
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        field, value = f"{field}.{missing[1]}", None
        expected = "a value"
    elif kinds := re.match(r"Expected `([^`]+)`", what):
        expected = " or ".join(_ARTICLES.get(kind, kind) for kind in kinds[1].split(" | "))
    else:
        expected = (
            f"one of {', '.join(_CHOICES.get(field.lstrip('.'), ['the values in `autoplan show --schema`']))}"
        )
    return PlanError(f"{path}: {field.lstrip('.')}" if field else path, value, expected, _REWRITE)


def _step_into(value: Any, step: str) -> Any:
    """One step of a msgspec path. ``[...]`` stands for a key that it does not name: stay at the whole."""
    if step == "[...]":
        return value
    if isinstance(value, list):
        return value[int(step[1:-1])]
    return value.get(step) if isinstance(value, dict) else value


def _replace(target: Path, data: bytes) -> None:
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(data)
        os.replace(draft, target)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()

"""The JSON Schema of profile files, made from the types that read them."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec

from autoplan.hardware.cluster import Cluster
from autoplan.hardware.profile_file import Mix

__all__ = ["profile_schema"]


def profile_schema() -> dict[str, Any]:
    """The schema (2020-12) of a profile, as TOML reads it.

    A file is a whole profile (``Cluster``), changes to another one (``extends``), or a cluster of
    several types of device (``Mix``). Checks that a schema cannot make (sources that exist, curves
    that rise, levels that multiply out) are made when a profile is loaded.
    """
    (cluster, mix), definitions = msgspec.json.schema_components(
        [Cluster, Mix], ref_template="#/$defs/{name}"
    )
    definitions["Changes"] = _changes(definitions)
    definitions["DeviceChanges"] = _all_optional(definitions["Device"])
    definitions["HostLinkChanges"] = _all_optional(definitions["HostLink"])
    host = definitions["DeviceChanges"]["properties"]["host"]
    definitions["DeviceChanges"]["properties"]["host"] = _with_ref(host, "HostLink", "HostLinkChanges")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "autoplan hardware profile",
        "description": "Format 2. Bytes, seconds, FLOP, watts and US dollars, without prefixes.",
        "oneOf": [cluster, {"$ref": "#/$defs/Changes"}, mix],
        "$defs": definitions,
    }
    return json.loads(json.dumps(schema))  # defaults as JSON has them


def _changes(definitions: dict[str, Any]) -> dict[str, Any]:
    """A profile that extends another: everything but its name may be left out."""
    changes = _all_optional(definitions["Cluster"])
    changes["title"] = "Changes"
    changes["description"] = "A profile as another one with changes: tables are merged, all else is replaced."
    changes["properties"] = {
        "extends": {"type": "string", "description": "name of the profile that is changed"},
        **changes["properties"],
        "device": {"$ref": "#/$defs/DeviceChanges"},
    }
    changes["required"] = ["extends", "name"]
    return changes


def _all_optional(definition: dict[str, Any]) -> dict[str, Any]:
    copied = copy.deepcopy(definition)
    copied["required"] = []
    return copied


def _with_ref(value: Any, old: str, new: str) -> Any:
    """``value`` with references to ``old`` made references to ``new``."""
    if isinstance(value, dict):
        return {
            key: f"#/$defs/{new}"
            if key == "$ref" and inner == f"#/$defs/{old}"
            else _with_ref(inner, old, new)
            for key, inner in value.items()
        }
    return [_with_ref(inner, old, new) for inner in value] if isinstance(value, list) else value

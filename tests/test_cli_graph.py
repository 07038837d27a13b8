"""``autoplan graph``: its text against files kept here, its JSON against the graph, its DOT against itself."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from autoplan.cli.main import main
from autoplan.graph import ModelGraph
from autoplan.graph.axes.notation import axes_text
from autoplan.graph.sources import load_source
from autoplan.graph.trace import trace
from autoplan.plan import Precision
from autoplan.report import graph_dot, graph_json, graph_text

HERE = Path(__file__).parent
WINDOWS = f"{HERE / 'small_models.py'}:windows"


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    source = load_source(WINDOWS, None)
    with torch.device("meta"):
        model = source.build()
    return trace(model, source.example_batch(2), source.loss, Precision("fp32"), source.name)


def check(name: str, text: str) -> None:
    """Compare with ``golden/name``; run once with UPDATE_GOLDEN=1 to accept a change on purpose."""
    path = HERE / "golden" / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_text_of_a_graph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", WINDOWS, "--precision", "fp32", "--micro-batch", "2"]) == 0
    check("graph_text.txt", capsys.readouterr().out)


def test_the_text_of_a_mixture_of_experts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "mixtral-8x7b", "--seq", "64", "--kind", "DecoderLayer_0"]) == 0
    check("graph_text_moe.txt", capsys.readouterr().out)


def test_a_summary_has_the_chain_and_a_line_for_each_kind(graph: ModelGraph) -> None:
    text = graph_text(graph, ops=False)
    assert "3 × (Mixer_0, Mixer_1)" in text  # blocks that take turns share a line
    assert "tied: prologue head.weight = epilogue head.weight" in text
    for kind in graph.kinds:
        assert f"\n{kind} × {graph.count(kind)}" in text
    assert "layer_norm" not in text


def test_one_kind_alone(graph: ModelGraph) -> None:
    text = graph_text(graph, ["Mixer_1"])
    assert "\nMixer_1 × 3" in text and "\nMixer_0 × 3" not in text and "\nfree" not in text


def test_the_json_holds_what_the_graph_does(graph: ModelGraph, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", WINDOWS, "--precision", "fp32", "--micro-batch", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == graph_json(graph)
    assert data["parameters"] == graph.parameter_count
    assert [unit["kind"] for unit in data["units"]] == [unit.kind for unit in graph.units]
    for name, block in graph.kinds.items():
        ops = data["kinds"][name]["ops"]
        assert sum(op["flops_forward"] for op in ops) == block.flops_forward
        assert sum(op["flops_backward"] for op in ops) == block.flops_backward
        assert sum(item["bytes"] for op in ops for item in op["saved"]) == block.saved_bytes
        assert [op["axes"] for op in ops] == [axes_text(block, op) for op in block.ops]
        assert {op["output"] for op in ops} <= set(data["kinds"][name]["values"])


def test_the_drawing_has_every_op_once_and_no_loose_edge(graph: ModelGraph) -> None:
    dot = graph_dot(graph)
    nodes = re.findall(r"^    (\w+) \[label=", dot, re.MULTILINE)
    assert len(nodes) == len(set(nodes))
    edges = re.findall(r"^    (\w+) -> (\w+);", dot, re.MULTILINE)
    assert {end for edge in edges for end in edge} <= set(nodes)
    for block in graph.kinds.values():
        for op in block.ops:
            assert f'label="{op.name}\\n' in dot
    assert dot.count("{") == dot.count("}")


def test_out_writes_the_same_text(tmp_path: Path, graph: ModelGraph) -> None:
    out = tmp_path / "graph.txt"
    assert main(["graph", WINDOWS, "--precision", "fp32", "--micro-batch", "2", "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == graph_text(graph)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--kind", "Nothing_0"],
            "--kind: got 'Nothing_0', expected one of prologue, Mixer_0, Mixer_1, epilogue",
        ),
        (["--json", "--summary"], "--summary"),
        (["--dot", "--json"], "not allowed with"),
        (["--out", "no/such/directory/graph.txt"], "--out"),
        (["--micro-batch", "0"], "--micro-batch"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", WINDOWS, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0

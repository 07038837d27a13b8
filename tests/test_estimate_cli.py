"""``autoplan estimate``: one configuration, a table of runs, and what is said when it cannot be."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplan.cli.main import main
from autoplan.cost.transformer.price_rows import PREDICTED, price_rows, read_row

ONE = ["estimate", "llama3-70b", "--cluster", "h100-sxm", "--nodes", "8", "--tp", "8", "--global-batch", "64"]

ROW = {
    "model": "llama3-8b", "layers": "32", "hidden": "4096", "ffn_hidden": "14336", "gated_mlp": "1",
    "heads": "32", "kv_heads": "8", "head_dim": "128", "vocab": "128256", "seq_len": "8192",
    "gpu": "H100-SXM-80GB", "gpus": "8", "tp": "1", "sp": "0", "pp": "1", "vpp": "1", "cp": "2", "ep": "1",
    "dp": "4", "zero_stage": "1", "precision": "bf16", "recompute": "none", "flash_attention": "1",
    "micro_batch": "1", "global_batch": "128",
}  # fmt: skip

DEEPSEEK = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "vocab_size": 129280, "tie_word_embeddings": False, "max_position_embeddings": 163840,
}  # fmt: skip


def estimate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_has_the_keys_of_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(capsys, *ONE, "--pp", "4", "--vpp", "5")
    assert found["plan"]["tp"] == 8 and found["plan"]["schedule"] == "interleaved"
    assert found["plan"]["num_micro_batches"] == 32 and len(found["plan"]["stages"]) == 4
    result = found["estimate"]
    assert sum(result["parts"].values()) == pytest.approx(result["step_time_s"])
    assert result["tokens_per_s_per_gpu"] * 64 == pytest.approx(result["tokens_per_s"])
    assert 0 < result["mfu"] < result["mfu_full_attention"] < 1
    assert result["peak_memory_bytes"] == max(stage["total_bytes"] for stage in result["stages"])
    assert result["fits"] is True and result["reason"] == ""


def test_the_report_names_parts_and_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ONE, "--pp", "4"]) == 0
    out = capsys.readouterr().out
    for word in (
        "llama3-70b (70.6 G parameters)",
        "tp 8 × pp 4 × dp 2",
        "MFU",
        "bubble",
        "fits: yes",
        "stage",
    ):
        assert word in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_what_does_not_fit_is_priced_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(
        capsys, "estimate", "llama3-405b", "--cluster", "h100-sxm", "--nodes", "1", "--global-batch", "8"
    )
    assert found["estimate"]["fits"] is False
    assert "stage 0 needs" in found["estimate"]["reason"]
    assert found["estimate"]["step_time_s"] > 0


@pytest.mark.parametrize(
    "words", [["--pp", "4"], ["--pp", "4", "--vpp", "5"], ["--pp", "4", "--schedule", "zb-h1"], ["--pp", "1"]]
)
def test_the_simulated_step_is_near_the_closed_form(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    found = estimate(capsys, *ONE, *words, "--trace", str(path))
    trace = json.loads(path.read_text())
    assert trace["otherData"]["schedule"] == found["plan"]["schedule"]
    assert trace["otherData"]["step_time_s"] == pytest.approx(found["estimate"]["step_time_s"], rel=0.03)
    passes = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(passes) >= 2 * found["plan"]["num_micro_batches"] * found["plan"]["pp"] * found["plan"]["vpp"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tp", "7"], "divides the 64 devices"),
        (["--tp", "16", "--cp", "3"], "divides the 64 devices"),
        (["--pp", "8", "--vpp", "32"], "at most 80 layers"),
        (["--tp", "8", "--dp", "3"], "a multiple of micro-batch x dp = 3"),
        (["--ep", "2"], "1 for a model without experts"),
        (["--schedule", "zbv", "--vpp", "3"], "2 chunks a rank for zbv"),
        (["--schedule", "1f1b", "--vpp", "2", "--pp", "2"], "1 for 1f1b"),
        (["--precision", "fp7"], "--precision"),
        (["--precision", "mxfp8"], "peak_flops.mxfp8"),
        (["--micro-batch", "0"], "--micro-batch"),
    ],
)
def test_the_impossible_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    asked = ["estimate", "llama3-70b", "--cluster", "h100-sxm", "--nodes", "8", "--global-batch", "64"]
    assert main([*asked, *words]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_heads_that_tensor_ranks_cannot_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 6,
        "intermediate_size": 256, "vocab_size": 100,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    words = [
        "estimate",
        str(path),
        "--cluster",
        "h100-sxm",
        "--nodes",
        "1",
        "--tp",
        "4",
        "--global-batch",
        "8",
    ]
    assert main(words) == 2
    assert "a divisor of the heads (6)" in capsys.readouterr().err


def test_deepseeks_config_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """671 B parameters, 37 B of them for a token (DeepSeek-V3, arXiv:2412.19437, abstract), without MTP."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK))
    found = estimate(
        capsys, "estimate", str(tmp_path), "--cluster", "gb200-nvl72", "--gpus", "256", "--pp", "4", "--ep", "64",
        "--global-batch", "4096", "--precision", "mxfp8",
    )  # fmt: skip
    assert found["estimate"]["parameters"] == pytest.approx(671e9, rel=0.001)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
        {
            "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8,
            "num_experts_per_tok": 2, "tie_word_embeddings": False,
        },
    ],
)  # fmt: skip
def test_configs_have_their_models_parameters(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    words = [
        "estimate",
        str(path),
        "--cluster",
        "h100-sxm",
        "--nodes",
        "1",
        "--global-batch",
        "64",
        "--seq",
        "1024",
    ]
    expected = {"gpt2": 124_439_808, "mixtral": 46_702_792_704}[config["model_type"]]
    assert estimate(capsys, *words)["estimate"]["parameters"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"hidden_size": "wide"}', '{"hidden_size": 64}', '{"hidden_size": -1}']
)
def test_a_wrong_config_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["estimate", str(path), "--cluster", "h100-sxm", "--nodes", "1", "--global-batch", "8"]) == 2
    assert capsys.readouterr().err.startswith("autoplan: error: ")


def test_a_table_keeps_its_columns_and_gains_the_predicted(tmp_path: Path) -> None:
    source, out = tmp_path / "runs.csv", tmp_path / "priced.csv"
    with source.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*ROW, "mine"])
        writer.writeheader()
        writer.writerow({**ROW, "mine": "a, b"})
        writer.writerow({**ROW, "gpu": "TPU-v4", "mine": "c"})
        writer.writerow({"model": "x", "mine": "d"})
    assert main(["estimate", "--table", str(source), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open(newline="")))
    assert list(rows[0]) == [*ROW, "mine", *PREDICTED]
    assert [row["mine"] for row in rows] == ["a, b", "c", "d"]
    assert (
        float(rows[0]["pred_step_time_s"]) > 0 and rows[0]["pred_error"] == "" and rows[0]["pred_fits"] == "1"
    )
    assert rows[1]["pred_step_time_s"] == "" and "TPU-v4" in rows[1]["pred_error"]
    assert "gpu" in rows[2]["pred_error"]


@pytest.mark.parametrize(
    ("delimiter", "encoding", "style"),
    [
        (",", "utf-8-sig", str.upper),
        ("\t", "utf-16", str.title),
        (";", "latin-1", lambda name: f" {name.replace('_', ' ')} "),
        ("|", "utf-8", lambda name: name.replace("_", "-")),
    ],
)
def test_tables_of_other_programs_are_read(
    tmp_path: Path, delimiter: str, encoding: str, style: Callable[[str], str]
) -> None:
    """Other delimiters, encodings and headers, numbers as 4.096e3, and a note beyond the csv module's limit."""
    source, out = tmp_path / "runs.csv", tmp_path / "priced.csv"
    row = {**ROW, "hidden": "4.096e3", "gpus": "8.0", "notes": "é" * 150_000}
    with source.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([[style(name) for name in row], list(row.values())])
    assert main(["estimate", "--table", str(source), "--out", str(out)]) == 0
    header, cells = list(csv.reader(io.StringIO(out.read_text(encoding="utf-8").replace("é", ""))))
    assert header == [*map(style, row), *PREDICTED]
    (plain,) = price_rows([ROW])
    assert cells[header.index("pred_step_time_s")] == plain.columns()["pred_step_time_s"]


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, "tensors"),
        ({"notes": "read from nvidia-smi"}, "device"),
        ({"notes": "allocated on the LAST rank"}, "last"),
        ({"task": "pretrain (CI functional test)"}, "last"),
        ({"framework": "Megatron-DeepSpeed", "flash_attention": "0"}, "device"),
        (
            {"framework": "Megatron-DeepSpeed", "flash_attention": "0", "notes": "max_memory_allocated"},
            "tensors",
        ),
    ],
)
def test_memory_is_what_the_program_reports(changes: dict[str, str], counts: str) -> None:
    read = read_row({**ROW, **changes})
    assert read.memory_of == counts
    assumed = any(word.startswith("mem_gb=") for word in read.assumed)
    assert assumed == (counts == "device" and "nvidia" not in changes.get("notes", ""))


def test_blanks_are_the_usual_choice_and_said_so() -> None:
    blank = {"model", "gpu", "gpus", "layers", "hidden", "global_batch"}
    (row,) = price_rows([{name: value if name in blank else "" for name, value in ROW.items()}])
    assert row.error == "" and row.step_s is not None
    said = " ".join(row.assumed)
    for name in (
        "heads=32",
        "kv_heads=32",
        "tp=1",
        "dp=8",
        "precision=bf16",
        "recompute=none",
        "seq_len=4096",
    ):
        assert name in said


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3-8b"),
        ("Llama 2 70B", "llama2-70b"),
        ("GPT-3 175B", "gpt3-175b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("Llama-3.2-1B", "llama3.2-1b"),
    ],
)
def test_a_name_alone_gives_the_dimensions_of_a_known_size(name: str, size: str) -> None:
    bare = {"gpu": "h100-sxm", "gpus": "64", "global_batch": "128", "seq_len": "4096", "recompute": "full"}
    said, known = price_rows([{**bare, "model": name}, {**bare, "model": size}])
    assert said.error == "" and said.step_s == known.step_s is not None
    (other,) = price_rows([{**bare, "model": "Llama-9-8B"}])
    assert "layers" in other.error


def test_blanks_that_do_not_fit_become_the_least_that_does() -> None:
    """What a table tells of did run: where recomputation is blank, the least that fits is assumed."""
    large = {**ROW, "micro_batch": "8", "recompute": ""}
    (row,) = price_rows([large])
    (none,) = price_rows([{**large, "recompute": "none"}])
    (full,) = price_rows([{**large, "recompute": "full"}])
    assert none.fits is False and full.fits and row.fits
    assert any(word.startswith("recompute=") and "to fit" in word for word in row.assumed)
    assert none.step_s is not None and full.step_s is not None and row.step_s is not None
    assert none.step_s < row.step_s <= full.step_s
    (hopeless,) = price_rows([{**ROW, "micro_batch": "1024", "global_batch": "8192", "recompute": ""}])
    assert hopeless.fits is False and not any("to fit" in word for word in hopeless.assumed)


def test_offload_frees_the_device_and_waits_for_a_slow_link() -> None:
    stays, leaves = price_rows([ROW, {**ROW, "offload_layers": ROW["layers"], "offload_optimizer": "1"}])
    assert stays.memory_bytes is not None and leaves.memory_bytes is not None
    assert leaves.memory_bytes < 0.7 * stays.memory_bytes
    assert stays.step_s is not None and leaves.step_s is not None and leaves.step_s > stays.step_s
    assert leaves.parts is not None and leaves.parts["host_copies"] > 0
    (noted,) = price_rows([{**ROW, "notes": "cpu_offloading_num_layers=2"}])
    assert any(word.startswith("offload_layers=2") for word in noted.assumed)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("precision", "mxfp8"), ("precision", "NVFP4"), ("precision", "fp8-cs"), ("precision", "FP16"),
        ("zero_stage", "fsdp"), ("zero_stage", "fsdp(2)"), ("zero_stage", "hsdp"), ("zero_stage", "ZeRO-3"),
        ("recompute", "selective"), ("recompute", "full"), ("recompute", "moe_act+layernorm"), ("sp", ""),
        ("gpu", "h100-sxm"), ("gpu", "H800"), ("gpu", "NVIDIA A100 80GB"), ("gpu", "GB200-NVL72"), ("dp", ""),
        ("vpp", ""), ("task", "lora"), ("params_b", "8.03"), ("gated_mlp", ""), ("gpus", "8.0"),
    ],
)  # fmt: skip
def test_every_way_to_write_a_column_is_understood(column: str, text: str) -> None:
    (row,) = price_rows([{**ROW, column: text}])
    assert row.error == "" and row.step_s is not None and row.step_s > 0


def test_one_cluster_can_stand_in_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "runs.csv"
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(ROW))
    writer.writeheader()
    writer.writerow({**ROW, "gpu": "nobody knows"})
    source.write_text(buffer.getvalue())
    assert main(["estimate", "--table", str(source), "--out", "-", "--cluster", "a100-80-sxm"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["pred_error"] == "" and float(row["pred_step_time_s"]) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "missing.csv", "--out", "x.csv"], "--table"),
        (["--table", "missing.csv"], "--out"),
        (["llama3-8b", "--table", "missing.csv", "--out", "x.csv"], "MODEL"),
        (["--out", "x.csv"], "--out"),
        ([], "MODEL"),
        (["llama3-8b"], "--cluster"),
        (["no-such-model", "--cluster", "h100-sxm", "--global-batch", "8"], "MODEL"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words]) == 2
    assert message in capsys.readouterr().err


cells = st.one_of(
    st.just(""), st.integers(-3, 300).map(str), st.sampled_from(["nan", "inf", "1e30", "-1", "x", "0", "1.5", "é", "\x00"]),
    st.text(max_size=6),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *ROW,
                "params_b",
                "experts",
                "top_k",
                "notes",
                "framework",
                "task",
                "offload_layers",
                "offload_optimizer",
            ]
        ),
        cells,
    )
)
def test_no_row_stops_the_run(changes: dict[str, str]) -> None:
    good, odd = price_rows([ROW, {**ROW, **changes}])
    assert good.error == "" and good.step_s is not None
    assert (odd.error == "") == (odd.step_s is not None)
    assert odd.step_s is None or 0 < odd.step_s < float("inf")
    assert set(odd.columns()) == set(PREDICTED)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_no_file_is_a_traceback(tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "odd.csv"
    source.write_bytes(data)
    assert main(["estimate", "--table", str(source), "--out", str(tmp_path / "out.csv")]) in (0, 2)

"""The formulas behind ``autoplan estimate`` against their papers, the traced graphs and the simulator."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autoplan.cost.pipeline import StageSeconds, compiled, simulate
from autoplan.cost.transformer.configuration import Configuration, Recompute
from autoplan.cost.transformer.formats import FORMATS
from autoplan.cost.transformer.one import estimate_one
from autoplan.cost.transformer.price import price_configurations
from autoplan.cost.transformer.row_fields import Fields
from autoplan.cost.transformer.row_model import row_model, shape_of_size
from autoplan.cost.transformer.saved_bytes import layer_saved_bytes
from autoplan.cost.transformer.shape import Hybrid, Transformer
from autoplan.cost.transformer.software import SOFTWARE
from autoplan.cost.transformer.step_memory import in_flight
from autoplan.graph.sources.sizes import SIZES
from autoplan.hardware import Cluster

H100 = Cluster.of("h100-sxm", nodes=64)
GPT = Transformer(
    layers=24, hidden=4096, heads=32, key_heads=32, head_size=128, ffn=16_384, gated=False,
    vocabulary=51_200, tied=True, vectors=13.0,
)  # fmt: skip
PLAIN = dataclasses.replace(SOFTWARE["megatron"])


def step_s(shape: Transformer, c: Configuration, cluster: Cluster = H100, **options: Any) -> float:
    return float(price_configurations(shape, c, cluster, **options).step_s[0])


@pytest.mark.parametrize("seq", [1024, 2048, 8192])
def test_flops_are_narayanans(seq: int) -> None:
    """72 B s l h^2 (1 + s / 6h + V / 12 l h), attention in full (Narayanan et al., 2021, appendix)."""
    L, h, V = GPT.layers, GPT.hidden, GPT.vocabulary
    per_token = 72 * L * h**2 * (1 + seq / (6 * h) + V / (12 * L * h))
    assert 3 * GPT.forward_flops_per_token(seq, full_attention=True) == pytest.approx(per_token, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "per_sbh"),
    [
        ({}, lambda a, s, h, t: 34 + 5 * a * s / h),
        ({"tp": 8}, lambda a, s, h, t: 10 + 24 / t + 5 * a * s / (h * t)),
        ({"tp": 8, "sp": True}, lambda a, s, h, t: (34 + 5 * a * s / h) / t),
        ({"tp": 8, "sp": True, "recompute": Recompute.SELECTIVE}, lambda a, s, h, t: 34 / t),
        ({"recompute": Recompute.FULL}, lambda a, s, h, t: 2),
    ],
)
def test_a_layer_keeps_what_korthikanti_counts(options: dict[str, Any], per_sbh: Any) -> None:
    """Korthikanti et al., 2022, table 2; the paper leaves out dropout's mask of the second residual (1 of 34)."""
    s, b, t = 2048, 4, options.get("tp", 1)
    c = Configuration(seq=s, micro_batch=b, micro_batches=1, flash=False, **options)
    found = float(layer_saved_bytes(GPT, c, FORMATS["fp16"], PLAIN, mixture=False))
    expected = per_sbh(GPT.heads, s, GPT.hidden, t) * s * b * GPT.hidden
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["llama3-8b", "gpt2-xl", "mixtral-8x7b", "qwen2.5-7b"])
def test_dimensions_make_the_published_parameters(name: str) -> None:
    published = {
        "llama3-8b": 8_030_261_248,
        "gpt2-xl": 1_557_611_200,
        "mixtral-8x7b": 46_702_792_704,
        "qwen2.5-7b": 7_615_616_512,
    }
    assert float(shape_of_size(SIZES[name]).parameters) == pytest.approx(published[name], rel=1e-9)


@pytest.mark.parametrize("family", ["rotary", "gpt", "moe"])
def test_the_traced_graph_has_the_same_flops_and_parameters(family: str) -> None:
    import torch

    from autoplan.cost.flops import model_flops
    from autoplan.graph.sources.builtin import build_decoder
    from autoplan.graph.sources.sizes import DecoderConfig
    from autoplan.graph.trace import trace

    config = DecoderConfig("rotary", 512, 64, 2, 4, 2, 16, 128, 32, "none: for tests")
    if family == "gpt":
        config = DecoderConfig("gpt", 512, 64, 2, 4, 4, 16, 256, 32, "none: for tests", tied=True)
    if family == "moe":
        config = dataclasses.replace(config, experts=4, experts_per_token=2)
    with torch.device("meta"):
        model = build_decoder(config)
    ids = torch.empty((2, 32), dtype=torch.int64, device="meta")
    graph = trace(model, {"input_ids": ids, "labels": ids})
    shape = shape_of_size(config)
    assert float(shape.parameters) == sum(p.numel() for p in model.parameters())
    for full in (False, True):
        expected = 3 * 2 * 32 * float(shape.forward_flops_per_token(32, full_attention=full))
        assert model_flops(graph, full_attention=full) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("pp", "vpp", "m"), [(4, 1, 16), (8, 1, 8), (4, 2, 16), (4, 3, 8)])
def test_equal_stages_take_what_the_simulator_says(pp: int, vpp: int, m: int) -> None:
    """Without ends and sends, the closed form of the step is the simulated one."""
    shape = dataclasses.replace(GPT, vocabulary=1, layers=pp * vpp * 8)
    c = Configuration(seq=512, micro_batch=1, micro_batches=m, pp=pp, vpp=vpp, dp=1, zero=0)
    prices = price_configurations(shape, c, H100)
    waits = ("bubble", "pp_comm", "dp_comm", "optimizer", "overhead")
    busy = sum(float(seconds[0]) for name, seconds in prices.parts.items() if name not in waits)
    bubble = float(prices.parts["bubble"][0])
    chunk = busy / m / vpp
    run = simulate(
        compiled("interleaved" if vpp > 1 else "1f1b", pp, vpp, m),
        StageSeconds(
            forward_s=[chunk / 3] * (pp * vpp),
            backward_s=[2 * chunk / 3] * (pp * vpp),
            send_s=[0.0] * (pp * vpp - 1),
        ),
    )
    assert bubble == pytest.approx(float(run.step_s) - busy, rel=0.02)  # the ends of the chain remain


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zb-h1", "zbv", "dualpipe-v"])
def test_in_flight_is_the_closed_form(schedule: str) -> None:
    from autoplan.cost.pipeline import closed_forms

    pp, m = 4, 16
    vpp = {"interleaved": 3, "zbv": 2, "dualpipe-v": 2}.get(schedule, 1)
    c = Configuration(seq=1, micro_batch=1, micro_batches=m, pp=pp, vpp=vpp)
    for rank in range(pp):
        expected = closed_forms.in_flight(schedule, pp, vpp, m, rank) / vpp
        assert float(in_flight(c, rank, schedule)) == pytest.approx(expected)


def test_parts_add_up_and_batches_of_configurations_agree_with_single_ones() -> None:
    shape = shape_of_size(SIZES["mixtral-8x7b"])
    many = Configuration(
        seq=4096, micro_batch=[1, 2, 1], micro_batches=[16, 8, 32], tp=[1, 2, 4], sp=[False, True, True],
        pp=[1, 2, 4], vpp=[1, 1, 2], ep=[8, 4, 2], dp=[16, 8, 4], zero=[3, 1, 0], recompute=[0, 1, 2],
    )  # fmt: skip
    prices = price_configurations(shape, many, H100)
    assert sum(prices.parts.values()) == pytest.approx(prices.step_s)
    for index in range(3):
        one = Configuration(
            **{
                f.name: np.atleast_1d(getattr(many.as_arrays(), f.name))[index]
                for f in dataclasses.fields(many)
            }
        )
        single = price_configurations(shape, one, H100)
        assert float(single.step_s[0]) == pytest.approx(float(prices.step_s[index]), rel=1e-12)
        assert float(np.ravel(single.memory.total)[0]) == pytest.approx(
            float(prices.memory.total[index]), rel=1e-12
        )


def test_unfused_attention_is_slow_where_heads_are_unaligned() -> None:
    """BLOOM's 13,824 hidden values in 128 heads of 108 took 1.4 times as long as in 96 heads of 144."""
    old = {"formats": FORMATS["fp16"], "software": SOFTWARE["megatron-deepspeed"]}
    cluster = Cluster.of("a100-80-sxm-4-opa", nodes=48)

    def of_heads(heads: int, **options: Any) -> float:
        shape = dataclasses.replace(
            GPT, layers=78, hidden=13_824, heads=heads, key_heads=heads, head_size=13_824 // heads, ffn=55_296
        )
        c = Configuration(2048, 2, 128, tp=4, pp=12, dp=8, zero=1, recompute=Recompute.FULL, **options)
        return step_s(shape, c, cluster, **old)

    assert of_heads(128, flash=False) == pytest.approx(1.4 * of_heads(96, flash=False), rel=0.1)
    assert of_heads(128, flash=True) == pytest.approx(of_heads(96, flash=True), rel=0.1)


def test_a_hybrid_model_is_the_sum_of_its_layers() -> None:
    """All layers attention-and-MLP in pairs cost as much as half as many ordinary layers; state-space mixers
    make their parameters (Nemotron-H-56B, arXiv:2504.03624: 56 B) and no scores that grow with the length."""
    plain = dataclasses.replace(GPT, vectors=2.0)
    pairs = dataclasses.replace(plain, layers=48, vectors=1.0, hybrid=Hybrid(0.5, 0.5, 0.0, 1, 1, 1, 1))
    assert pairs.parameters == pytest.approx(plain.parameters, rel=1e-9)
    assert pairs.forward_flops_per_token(4096, full_attention=False) == pytest.approx(
        plain.forward_flops_per_token(4096, full_attention=False)
    )
    c = Configuration(seq=4096, micro_batch=1, micro_batches=8, tp=4, sp=True, dp=8, zero=1)
    assert step_s(pairs, c) == pytest.approx(step_s(plain, c), rel=0.02)
    memory = [float(np.ravel(price_configurations(s, c, H100).memory.allocated)[0]) for s in (pairs, plain)]
    assert memory[0] == pytest.approx(memory[1], rel=0.02)

    row = {"model": "nemotron-h-56b", "layers": "118", "hidden": "8192", "ffn_hidden": "32768", "heads": "64",
           "kv_heads": "8", "vocab": "131072", "seq_len": "8192", "gpu": "H100-SXM-80GB", "gpus": "64", "tp": "8"}  # fmt: skip
    nemotron = row_model(Fields(row))
    assert float(nemotron.parameters) == pytest.approx(56e9, rel=0.02)
    short, long = (nemotron.forward_flops_per_token(s, full_attention=False) for s in (1024, 8192))
    assert long - short == pytest.approx(10 * 2 * 7168 * 64 * 128)


configurations = st.builds(
    lambda tp, pp, vpp, cp, dp, zero, recompute, batch, m, flash: Configuration(
        seq=4096, micro_batch=batch, micro_batches=m, tp=tp, sp=tp > 1, pp=pp, vpp=vpp if pp > 1 else 1, cp=cp,
        dp=dp, zero=zero, recompute=recompute, flash=flash,
    ),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 4, 8, 32]),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(configurations, st.floats(1.0, 4.0), st.sampled_from(sorted(SOFTWARE)))
def test_more_of_anything_is_never_slower(c: Configuration, factor: float, program: str) -> None:
    device, levels = H100.device, H100.levels
    base = step_s(GPT, c, software=SOFTWARE[program])
    faster = [
        replace(H100, device=replace(device, memory_bytes_per_s=device.memory_bytes_per_s * factor)),
        replace(
            H100, device=replace(device, peak_flops={k: v * factor for k, v in device.peak_flops.items()})
        ),
        *(
            replace(
                H100,
                levels=tuple(
                    replace(lv, bandwidth_bytes_per_s=lv.bandwidth_bytes_per_s * factor) if i == at else lv
                    for i, lv in enumerate(levels)
                ),
            )
            for at in range(len(levels))
        ),
    ]
    for cluster in faster:
        assert step_s(GPT, c, cluster, software=SOFTWARE[program]) <= base * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(configurations, st.floats(1.0, 8.0))
def test_more_memory_is_never_infeasible(c: Configuration, factor: float) -> None:
    device = H100.device
    larger = replace(
        H100,
        device=replace(
            device,
            memory_bytes=int(device.memory_bytes * factor),
            usable_bytes=int(device.usable_bytes * factor),
        ),
    )
    fits = bool(np.ravel(price_configurations(GPT, c, H100).fits)[0])
    assert not fits or bool(np.ravel(price_configurations(GPT, c, larger).fits)[0])


@settings(max_examples=40, deadline=None)
@given(configurations)
def test_recomputing_more_keeps_less_and_sharding_more_keeps_less(c: Configuration) -> None:
    def total(**changes: Any) -> float:
        return float(
            np.ravel(price_configurations(GPT, dataclasses.replace(c, **changes), H100).memory.allocated)[0]
        )

    kept = [total(recompute=again) for again in Recompute]
    assert kept[0] >= kept[1]
    assert total(zero=0) >= total(zero=1) >= total(zero=2)


def test_one_estimate_tells_every_stage_and_why_it_does_not_fit() -> None:
    c = Configuration(seq=8192, micro_batch=4, micro_batches=8, pp=4, dp=2, tp=8, sp=True)
    estimate = estimate_one(
        shape_of_size(SIZES["llama3-70b"]), c, H100, FORMATS["bf16"], SOFTWARE["megatron-core"], "1f1b"
    )
    assert [stage.stage for stage in estimate.stages] == [0, 1, 2, 3]
    assert sum(stage.layers for stage in estimate.stages) == 80
    assert sum(estimate.parts.values()) == pytest.approx(estimate.step_time_s)
    for stage in estimate.stages:
        assert sum(stage.owners.values()) == pytest.approx(stage.total_bytes)
    assert not estimate.fits
    assert "stage 0 needs" in estimate.reason and "activations" in estimate.reason
    assert estimate.mfu < estimate.mfu_full_attention < 1

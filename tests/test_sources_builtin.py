"""The built-in sizes are the published models, and their modules compute what the originals compute."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from autoplan.errors import ModelError
from autoplan.graph.sources import builtin_names, load_source
from autoplan.graph.sources.builtin import build_decoder
from autoplan.graph.sources.grouped_mm import grouped_mm, grouped_mm_weight
from autoplan.graph.sources.sizes import ALIASES, SIZES, DecoderConfig

# Totals of the published checkpoints' safetensors (Hugging Face), or of the papers where marked.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
# Language Models are Few-Shot Learners, table D.1, printed to four digits.
PUBLISHED_MILLIONS = {"gpt3-6.7b": 6_660, "gpt3-13b": 12_850, "gpt3-175b": 174_600}

TINY = DecoderConfig("rotary", 97, 32, 2, 4, 2, 8, 48, 16, "none: for tests")
TINY_MOE = dataclasses.replace(TINY, experts=4, experts_per_token=2)
TINY_GPT = DecoderConfig("gpt", 97, 32, 2, 4, 4, 8, 128, 16, "none: for tests", tied=True)


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in load_source(name).build().parameters())


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, :5] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("name", builtin_names())
def test_parameter_count_is_the_published_one(name: str) -> None:
    if name in PUBLISHED:
        assert parameters(name) == PUBLISHED[name]
    else:
        assert parameters(name) == pytest.approx(PUBLISHED_MILLIONS[name] * 1e6, rel=5e-4)


def test_every_size_names_its_source_and_every_alias_a_size() -> None:
    assert all(config.source for config in SIZES.values())
    assert set(ALIASES.values()) <= set(SIZES)
    assert load_source("GPT2-1.5b").name == "gpt2-xl"


def test_names_need_no_torch() -> None:
    code = "import sys, autoplan.graph.sources as s; s.builtin_names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_example_batch_is_meta_tokens_of_the_asked_length() -> None:
    source = load_source("llama3-8b", seq=128)
    made = source.example_batch(3)
    assert source.tokens_per_sample == 128 and source.loss is None
    assert {name: (tuple(t.shape), t.dtype, t.device.type) for name, t in made.items()} == {
        "input_ids": ((3, 128), torch.int64, "meta"),
        "labels": ((3, 128), torch.int64, "meta"),
    }
    assert load_source("llama3-8b").tokens_per_sample == 8192


def test_rotary_decoder_is_hugging_face_llama() -> None:
    transformers = pytest.importorskip("transformers")
    ours = build_decoder(TINY)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=64,
        )
    )  # fmt: skip
    theirs.load_state_dict(
        {
            name if name.startswith("lm_head") else f"model.{name}": value
            for name, value in ours.state_dict().items()
        }
    )
    loss, expected = ours(**batch()), theirs(**batch()).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_mixture_of_experts_is_hugging_face_mixtral() -> None:
    transformers = pytest.importorskip("transformers")
    ours = build_decoder(TINY_MOE)
    theirs = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, num_local_experts=4, num_experts_per_tok=2,
            max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    )  # fmt: skip
    state = {}
    for name, value in ours.state_dict().items():
        name = name if name.startswith("lm_head") else f"model.{name}"
        if name.endswith("gate_proj_EDF"):
            up = ours.state_dict()[name.removeprefix("model.").replace("gate_proj", "up_proj")]
            state[name.replace("gate_proj_EDF", "experts.gate_up_proj")] = torch.cat(
                (value, up), -1
            ).transpose(1, 2)
        elif name.endswith("down_proj_EFD"):
            state[name.replace("down_proj_EFD", "experts.down_proj")] = value.transpose(1, 2)
        elif not name.endswith("up_proj_EDF"):
            state[name] = value
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours(**batch()), theirs(**batch()).loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, TINY_MOE, TINY_GPT], ids=["rotary", "moe", "gpt"])
def test_exported_graph_trains_as_the_module_does(config: DecoderConfig) -> None:
    torch.manual_seed(0)
    module = build_decoder(config).double()
    graph = torch.export.export(module, (), batch(), strict=False).module()
    other = batch(seed=1)
    loss = module(**other)
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    exported = graph(**other)
    exported.backward()
    assert exported.item() == loss.item()
    for name, parameter in graph.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama3-405b", "gpt3-175b", "mixtral-8x22b", "qwen2.5-72b"])
def test_largest_sizes_export_under_fake_tensors(name: str) -> None:
    config = dataclasses.replace(SIZES[name], layers=2)
    with FakeTensorMode():
        ids = torch.zeros(2, 256, dtype=torch.int64)
        program = torch.export.export(
            build_decoder(config), (), {"input_ids": ids, "labels": ids}, strict=False
        )
    loss = next(iter(program.graph.find_nodes(op="output"))).args[0][0]
    assert loss.meta["val"].shape == ()


def test_grouped_mm_has_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    end_E = torch.tensor([3, 3, 7])
    x_PD = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    w_EDF = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.cat((x_PD[:3] @ w_EDF[0], x_PD[3:] @ w_EDF[2]))
    torch.testing.assert_close(grouped_mm(x_PD, w_EDF, end_E), expected)
    torch.autograd.gradcheck(lambda x, w: grouped_mm(x, w, end_E), (x_PD, w_EDF))
    y_PF = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, y: grouped_mm_weight(x, y, end_E), (x_PD, y_PF))


def test_grouped_mm_obeys_the_rules_of_custom_operators() -> None:
    inputs = (
        torch.randn(7, 4, requires_grad=True),
        torch.randn(3, 4, 5, requires_grad=True),
        torch.tensor([3, 3, 7]),
    )
    torch.library.opcheck(grouped_mm, inputs)


def test_grouped_mm_counts_one_expert_for_each_row() -> None:
    x_PD, w_EDF = torch.randn(7, 4, requires_grad=True), torch.randn(3, 4, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        grouped_mm(x_PD, w_EDF, torch.tensor([3, 3, 7])).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 7 * 4 * 5


@pytest.mark.parametrize(
    ("spec", "seq", "said"),
    [
        ("llama3-9b", None, "did you mean llama3-8b?"),
        ("nonsense", None, "mixtral-8x7b"),
        ("llama3-8b", 0, "--seq: got 0, expected an integer of at least 1"),
        ("gpt2", 2048, "at most the 1024 positions of gpt2; use --seq 1024"),
    ],
)
def test_wrong_names_and_lengths_are_refused(spec: str, seq: int | None, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_source(spec, seq)
    assert said in str(caught.value) and "\n" not in str(caught.value)

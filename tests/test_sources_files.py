"""Models from Hugging Face configs and from the user's factories, and what is said when they are wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autoplan.errors import ModelError
from autoplan.graph.sources import ModelSource, load_source

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
}

FACTORIES = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
    def forward(self, x, y=None, flag=True):
        return self.linear(x)

class WithBatch(Plain):
    def example_batch(self, samples):
        return {"x": torch.randn(samples, 4)}

class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
    def forward(self, input_ids, labels):
        return self.embedding(input_ids).sum()

def loss(output, batch): return output.sum()
def with_tensor(): return Plain(), torch.randn(8, 4)
def with_function(): return Plain(), lambda samples: (torch.randn(samples, 4),)
def with_loss(): return Plain(), {"x": torch.randn(8, 4)}, loss
def number(): return 3
def number_batch(): return Plain(), 3
def too_many(): return Plain(), tuple(torch.randn(2, 4) for _ in range(5))
def unknown(): return Plain(), {"z": torch.randn(2, 4)}
def disagree(): return Plain(), (torch.randn(2, 4), torch.randn(3, 4))
def needs(argument): return Plain()
def breaks(): raise ValueError("two\\nlines")
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "some_factories.py"
    file.write_text(FACTORIES)
    yield file
    sys.modules.pop("some_factories", None)


def written(directory: Path, **changes: Any) -> Path:
    fields = {name: value for name, value in {**LLAMA, **changes}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def refusal(spec: str | Path, seq: int | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        source = load_source(str(spec), seq)
        with torch.device("meta"):
            source.build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def built(source: ModelSource) -> torch.nn.Module:
    with torch.device("meta"):
        return source.build()


@pytest.mark.parametrize("architectures", [LLAMA["architectures"], None])
def test_hugging_face_llama(tmp_path: Path, architectures: list[str] | None) -> None:
    pytest.importorskip("transformers")
    source = load_source(str(written(tmp_path, architectures=architectures)))
    module = built(source)
    assert source.name == tmp_path.name and source.tokens_per_sample == 64
    assert type(module).__name__ == "LlamaForCausalLM"
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert module.config.use_cache is False and module.config._attn_implementation == "sdpa"
    assert load_source(str(tmp_path / "config.json"), 16).tokens_per_sample == 16


def test_hugging_face_llama_exports_with_its_loss(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    source = load_source(str(written(tmp_path)), 16)
    with FakeTensorMode():
        module = source.build()
        batch = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in source.example_batch(2).items()}
        assert module(**batch).loss.shape == ()


def test_hugging_face_other_tasks(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    bert = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 48}
    (tmp_path / "config.json").write_text(
        json.dumps({**bert, "num_hidden_layers": 1, "num_attention_heads": 4})
    )
    batch = load_source(str(tmp_path), 8).example_batch(3)
    assert {name: tuple(t.shape) for name, t in batch.items()} == {"input_ids": (3, 8), "labels": (3,)}
    resnet = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
    (tmp_path / "config.json").write_text(json.dumps(resnet))
    source = load_source(str(tmp_path))
    batch = source.example_batch(3)
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "pixel_values": (3, 3, 224, 224),
        "labels": (3,),
    }
    assert source.tokens_per_sample == 0 and built(source)(**batch).loss.shape == ()


def test_wrong_configs_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = tmp_path / "config.json"
    assert "expected a directory with a config.json" in refusal(tmp_path)
    assert "a file or directory that exists" in refusal(tmp_path / "no" / "config.json")
    config.write_text('{"a": 1,,}')
    assert "line 1 column 9" in refusal(config)
    config.write_text("[]")
    assert "a Hugging Face config with a model_type" in refusal(config)
    assert "model_type: got 'unheard'" in refusal(written(tmp_path, model_type="unheard"))
    assert "architectures: got 'Unheard'" in refusal(written(tmp_path, architectures=["Unheard"]))
    assert "architectures: got 'LlamaModel'" in refusal(written(tmp_path, architectures=["LlamaModel"]))
    assert "fields that make a model" in refusal(written(tmp_path, hidden_size="wide"))


def test_missing_transformers_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'pip install "autoplan[hf]"' in refusal(written(tmp_path))


@pytest.mark.parametrize(
    ("name", "structure"),
    [("with_tensor", torch.Tensor), ("with_function", tuple), ("with_loss", dict), ("WithBatch", dict)],
)
def test_factories_keep_the_structure_of_their_batch(factories: Path, name: str, structure: type) -> None:
    source = load_source(f"{factories}:{name}")
    batch = source.example_batch(3)
    assert isinstance(batch, structure)
    (tensor,) = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
    assert (tuple(tensor.shape), tensor.device.type) == ((3, 4), "meta")
    assert built(source)(tensor).shape == (3, 4)
    assert (source.loss is not None) == (name == "with_loss") and source.tokens_per_sample == 0


def test_factory_of_a_language_model_takes_seq(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_source(f"{factories}:Language", 32)
    assert tuple(source.example_batch(2)["labels"].shape) == (2, 32) and source.tokens_per_sample == 32
    monkeypatch.chdir(factories.parent)
    assert load_source("some_factories:Language", 32).name == "Language"
    assert "give --seq" in refusal(f"{factories}:Language")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("number", "got 'int', expected an nn.Module"),
        ("number_batch", "example batch: got 'int', expected a tensor, a tuple of tensors"),
        ("too_many", "got '5 tensors', expected the arguments of forward(x, y, flag)"),
        ("unknown", "got 'z', expected the arguments of forward(x, y, flag)"),
        ("disagree", "the same first dim"),
        ("needs", "it raised TypeError"),
        ("breaks", "it raised ValueError: two lines"),
        ("Plain", "return (module, example_batch) from the factory"),
        ("absent", "name one of its functions, such as loss, with_tensor"),
    ],
)
def test_wrong_factories_are_refused(factories: Path, name: str, said: str) -> None:
    assert said in refusal(f"{factories}:{name}")


def test_wrong_places_are_refused(factories: Path, tmp_path: Path) -> None:
    assert "a Python file that exists" in refusal(tmp_path / "absent.py:f")
    assert "a function of that file" in refusal(factories)
    assert "No module named 'no_such_module'" in refusal("no_such_module.inner:f")
    (tmp_path / "broken_factory.py").write_text("def f(:\n")
    assert "its import raised SyntaxError" in refusal(tmp_path / "broken_factory.py:f")
    assert "leave --seq out" in refusal(f"{factories}:with_tensor", 32)

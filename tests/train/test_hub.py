"""Models of Hugging Face: numbers of transformers are met, what is written is read back, and what is not known is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from gewu.core.errors import InputError, StoreError
from gewu.train import hub
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat
from gewu.train.step import Trainer

MODELS = Path(__file__).parent / "models"
NAMES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3-moe")


def trainer_of(config: ModelConfig, layout: str = "", devices=None) -> Trainer:
    return Trainer(config, Layout.of(layout), Optimiser(), Precision.of("fp32"), devices)


def logits(trainer: Trainer, params, tokens) -> np.ndarray:
    return np.asarray(trainer.outputs(params, trainer.prepare({"tokens": np.array(tokens, np.int32)}))["logits"])


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    reference = json.loads((MODELS / name / "logits.json").read_text())
    model = hub.read(MODELS / name)
    trainer = trainer_of(model.config)
    found = logits(trainer, model.params(trainer), reference["tokens"])
    # float32 sums of 32 products in another order; logits are of size 5
    np.testing.assert_allclose(found, np.array(reference["logits"]), rtol=0, atol=1e-5)
    assert model.stop == (2,) and model.tokenizer is None


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_was_read(name, tmp_path):
    model = hub.read(MODELS / name)
    trainer = trainer_of(model.config, "scan")
    hub.write(tmp_path, model.config, model.params(trainer), stop=2, shard_bytes=20_000)
    again = hub.read(tmp_path)
    assert again.config == model.config and again.stop == model.stop
    assert len(list(tmp_path.glob("*.safetensors"))) > 1  # in pieces
    assert again.tensors.keys() == model.tensors.keys()
    for key, value in model.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], value)


@pytest.mark.parametrize("layout", ["fsdp=2 tp=2 dp=2", "tp=2 sp scan"])
def test_weights_go_straight_into_pieces(layout, eight):
    model = hub.read(MODELS / "qwen2")
    whole, cut = trainer_of(model.config), trainer_of(model.config, layout, eight)
    params = model.params(cut)
    assert {leaf.sharding for leaf in flat(params).values()} == set(flat(cut.shardings.params).values())
    tokens = json.loads((MODELS / "qwen2" / "logits.json").read_text())["tokens"] * 2
    np.testing.assert_allclose(logits(cut, params, tokens), logits(whole, model.params(whole), tokens), rtol=0, atol=1e-5)


def test_biases_and_bfloat16(tmp_path):
    config = ModelConfig(
        vocab=32, width=16, layers=2, heads=2, kv_heads=1, head_width=8, hidden=24, length=16, bias=True, tied=False
    )
    trainer = trainer_of(config)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * np.arange(leaf.size).reshape(leaf.shape) % 1, trainer.init(1).params)
    hub.write(tmp_path, config, params, dtype="bfloat16")
    model = hub.read(tmp_path)
    assert model.config == config
    for name, leaf in flat(model.params(trainer)).items():  # 8 bits of mantissa
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(flat(params)[name]), rtol=2**-8, atol=1e-6)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    shutil.copytree(MODELS / "llama", place)
    return place


def change(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architectures": ["LlamaForCausalML"]}, "did you mean 'LlamaForCausalLM'"),
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"logit_softcap": 30.0}, "logit_softcap"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "llama3"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "mlp_bias"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "different kinds"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"vocab_size": 50}, "vocab_size is 50, but the embedding has 48"),
        ({"intermediate_size": 28}, "down_proj|gate_proj"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"tie_word_embeddings": True, "mlp_bias": False}, None),
    ],
)
def test_what_is_not_known_is_refused_by_name(folder, values, said):
    change(folder, **values)
    if said is None:  # a copy of the embedding that is not used
        assert hub.read(folder).config.tied
        return
    with pytest.raises(InputError, match=said):
        hub.read(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights"):
        hub.read(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + b"0" * 100)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(InputError, match="pickled weights"):
        hub.read(folder)


def test_a_file_cut_short_is_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-4])
    with pytest.raises(StoreError, match="fit its place"):
        hub.read(folder)


def test_a_tokeniser_of_another_vocabulary_is_refused(folder):
    tokenizer = {"model": {"vocab": {"a": 0, "b": 47}}, "added_tokens": [{"id": 48, "content": "<end>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="token 48, but the model has a vocabulary of 48"):
        hub.read(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": "x"}}}))
    with pytest.raises(InputError, match="holds no vocabulary"):
        hub.read(folder)


def test_an_index_does_not_lead_out_of_the_folder(folder):
    (folder / hub.INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))
    with pytest.raises(InputError, match="in this folder"):
        hub.read(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm": "layer"}, "norm"),
        ({"activation": "gelu"}, "activation"),
        ({"causal": False}, "causal"),
        ({"qk_norm": True, "bias": True}, "bias"),
        ({"experts": 4, "router": "sigmoid"}, "router"),
    ],
)
def test_a_model_that_nobody_else_has_is_not_written(changes, said, tmp_path):
    config = ModelConfig(vocab=32, width=16, layers=2, heads=2, **changes)
    with pytest.raises(InputError, match=said):
        hub.write(tmp_path, config, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_is_written(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    reference = json.loads((MODELS / name / "logits.json").read_text())
    model = hub.read(MODELS / name)
    trainer = trainer_of(model.config)
    hub.write(tmp_path, model.config, model.params(trainer))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(reference["tokens"])).logits.numpy()
    np.testing.assert_allclose(theirs, np.array(reference["logits"]), rtol=0, atol=1e-5)

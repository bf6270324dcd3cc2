"""Models of Hugging Face, in and out: config.json, safetensors and tokenizer.json of Llama- and Qwen-like decoders.

`read` looks at the configuration and at the headers of the files only; `Pretrained.params` then brings the weights onto the
devices of a trainer, each device's pieces from a view of the mapped file, so that no host holds the model. A tensor there is a
part of a parameter here: queries, keys and values of a layer lie side by side in `qkv`, gate and up in `up`, experts in a stack.
Rotary angles turn pairs (i, i + C/2) in both.

    LlamaForCausalLM, MistralForCausalLM (window), Qwen2ForCausalLM (qkv_bias), Qwen3ForCausalLM (qk_norm)
    MixtralForCausalLM, Qwen3MoeForCausalLM (qk_norm)                                  experts, weights normalised over the chosen

Whatever would change the numbers and is not known here is refused by name: scaled rotary angles, layers of mixed kinds, biases in
some projections only, quantised or pickled weights, keys that no version of these models is known to have.

Reference: the modelling files of transformers 5, against whose logits the tests compare.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from gewu.core.errors import InputError, did_you_mean
from gewu.core.files import read_capped, rolled, write_atomic
from gewu.formats import safetensors
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.spec import flat, specs, unflat, unstacked

KINDS: Final = ("Llama", "Mistral", "Qwen2", "Qwen3", "Mixtral", "Qwen3Moe")
INDEX: Final = "model.safetensors.index.json"
SIZES: Final = {
    "vocab": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_width": "head_dim", "hidden": "intermediate_size",
    "length": "max_position_embeddings", "eps": "rms_norm_eps", "tied": "tie_word_embeddings",
}  # fmt: skip
"""Fields of `ModelConfig` by their names there."""
DEFAULTS: Final = {
    "hidden_act": "silu", "pretraining_tp": 1, "rope_scaling": None, "quantization_config": None, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": True, "router_jitter_noise": 0.0, "shared_expert_intermediate_size": 0,
    "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0,
}  # fmt: skip
"""Keys of which only one value is computed here."""
READ: Final = {
    "architectures", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "rope_theta", "rope_parameters",
    "num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "router_aux_loss_coef", "eos_token_id",
}  # fmt: skip
IDLE: Final = {
    "model_type", "attention_dropout", "bos_token_id", "pad_token_id", "dtype", "torch_dtype", "initializer_range", "use_cache",
    "transformers_version", "output_router_logits", "auto_map", "unk_token_id", "sep_token_id", "id2label", "label2id",
}  # fmt: skip
"""Keys that do not change what the model computes."""


class Part(NamedTuple):
    """A tensor of a file as a part of a parameter of one layer.

    Attributes:
        name: in the file.
        shape: it is reshaped to this, then its axes are taken in the order `axes`.
        place: where it then lies in the parameter: first index of each axis.
        stored: its shape in the file.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    place: tuple[int, ...]
    stored: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Its shape inside the parameter."""
        return tuple(self.shape[axis] for axis in self.axes)

    def inside(self, tensor: Any) -> Any:
        """Return a view of the tensor of the file as the part."""
        return tensor.reshape(self.shape).transpose(self.axes)

    def outside(self, param: Any) -> Any:
        """Return the tensor of the file from the whole parameter."""
        cut = param[tuple(slice(lo, lo + n) for lo, n in zip(self.place, self.size, strict=True))]
        return cut.transpose(np.argsort(self.axes)).reshape(self.stored)


@dataclass(frozen=True)
class Pretrained:
    """A model in a folder.

    Attributes:
        config: the model.
        tensors: views of the mapped files, by name.
        tokenizer: path of tokenizer.json, or None.
        stop: numbers of the tokens that end a text.
    """

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, Any]
    tokenizer: Path | None
    stop: tuple[int, ...]

    def params(self, trainer: Any) -> Any:
        """Return the parameters of a trainer of this model, float32, each device's pieces read from the files."""
        tree, rows = _parts(self.config), _rows(self.config, trainer.layout)

        def load(name: str, param: Any, sharding: Any) -> Any:
            def piece(where: Any) -> Any:
                box = [slice(*cut.indices(size)[:2]) for cut, size in zip(where, param.shape, strict=True)]
                if not param.stacked:
                    return self._piece(tree[name], box)
                names = [name.replace("/", f"/{row}/", 1) for row in rows[box[0]]]
                return np.stack([self._piece(tree[one], box[1:]) for one in names])

            return jax.make_array_from_callback(param.shape, sharding, piece)

        cuts = flat(trainer.shardings.params)
        return unflat({name: load(name, param, cuts[name]) for name, param in flat(trainer.specs).items()})

    def _piece(self, parts: list[Part], box: list[slice]) -> Any:
        """Return a box of a parameter, float32, from what its parts have of it."""
        out = np.empty([cut.stop - cut.start for cut in box], np.float32)
        for part in parts:
            ends = zip(box, part.place, part.size, strict=True)
            both = [(max(cut.start, lo), min(cut.stop, lo + n)) for cut, lo, n in ends]
            if all(lo < hi for lo, hi in both):
                target = tuple(slice(lo - cut.start, hi - cut.start) for (lo, hi), cut in zip(both, box, strict=True))
                source = tuple(slice(lo - first, hi - first) for (lo, hi), first in zip(both, part.place, strict=True))
                out[target] = part.inside(self.tensors[part.name])[source]
        return out


def read(folder: str | Path) -> Pretrained:
    """Read a model of Hugging Face; weights stay in their files until `Pretrained.params`.

    Args:
        folder: with config.json, model.safetensors (or its pieces and their index) and perhaps tokenizer.json.

    Raises:
        InputError: a model or a key that is not known here, pickled weights, vocabularies of different sizes, tensors that miss,
            are too many or have another shape; each is named.
        StoreError: a damaged file.
    """
    folder = Path(folder)
    file = folder / "config.json"
    found = _json(file)
    config = config_of(found, file)
    tensors = _open(folder)
    _check(config, tensors, folder)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists() and (highest := _highest(tokenizer)) >= config.vocab:
        message = f"has token {highest}, but the model has a vocabulary of {config.vocab}"
        raise InputError(message, file=tokenizer, hint="the tokeniser belongs to another model")
    stop = found.get("eos_token_id")
    ends = () if stop is None else tuple(stop) if isinstance(stop, list) else (stop,)
    return Pretrained(folder, config, tensors, tokenizer if tokenizer.exists() else None, ends)


def write(
    folder: str | Path, config: ModelConfig, params: Any, tokenizer: bytes | None = None, *, stop: int | None = None,
    dtype: str = "float32", shard_bytes: int = 5_000_000_000, layout: Layout | None = None,
) -> None:  # fmt: skip
    """Write a model as transformers reads it; the folder must exist.

    Args:
        params: of a trainer: a stack or a list of layers, whole arrays.
        tokenizer: content of tokenizer.json.
        stop: number of the token that ends a text.
        dtype: "float32", "bfloat16" or "float16".
        shard_bytes: largest size of one file of weights.
        layout: where the layers of a stack are in the order of an interleaved pipeline.

    Raises:
        InputError: no model of Hugging Face computes what this one does; what is in the way is named.
    """
    folder, file = Path(folder), Path(folder) / "config.json"
    kind, leaves, rows = kind_of(config), flat(params), np.argsort(_rows(config, layout))
    kept = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(jax.numpy.bfloat16)

    def leaf(name: str) -> Any:
        if name in leaves:
            return np.asarray(leaves[name])
        layers, number, rest = name.split("/", 2)
        return np.asarray(leaves[f"{layers}/{rest}"][int(rows[int(number)])])

    items = [(name, part) for name, parts in _parts(config).items() for part in parts]
    bytes_ = lambda item: math.prod(item[1].stored) * kept.itemsize  # noqa: E731
    groups = list(rolled(items, shard_bytes, bytes_))
    where: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {part.name: part.outside(leaf(own)).astype(kept) for own, part in group}
        safetensors.write(folder / name, tensors, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    if len(groups) > 1:
        total = sum(map(bytes_, items))
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    _write_json(file, _written(config, kind, dtype, stop))
    if tokenizer is not None:
        write_atomic(folder / "tokenizer.json", tokenizer)


def config_of(found: Mapping[str, Any], file: Path) -> ModelConfig:
    """Return the model of a config.json.

    Raises:
        InputError: something that is not computed here.
    """
    kinds = [f"{kind}ForCausalLM" for kind in KINDS]
    names = found.get("architectures") or [None]
    if names[0] not in kinds:
        hint = did_you_mean(names[0], kinds)
        raise InputError("is not known", file=file, key="architectures", value=names[0], allowed=", ".join(kinds), hint=hint)
    kind = names[0].removesuffix("ForCausalLM")
    for key, value in found.items():
        known = key in SIZES.values() or key in READ or key in IDLE or key in DEFAULTS or key.startswith("_")
        if not known and value is not None:
            raise InputError("this key is not known, so the model may compute otherwise", file=file, key=key, value=value)
        if key in DEFAULTS and value is not None and value != DEFAULTS[key] and not (key.endswith("_bias") and kind == "Llama"):
            raise InputError("is not supported", file=file, key=key, value=value, allowed=repr(DEFAULTS[key]))
    for name, key in SIZES.items():
        value, needed = found.get(key), name in ("vocab", "width", "layers", "heads", "hidden")
        if (needed or value is not None) and not (isinstance(value, int | float) and (value > 0 or name == "tied")):
            raise InputError("is no size", file=file, key=key, value=value, allowed="a positive number")
    values: dict[str, Any] = {name: found[key] for name, key in SIZES.items() if found.get(key) is not None}
    plain = {"tied": False, "eps": 1e-6, "length": 2048, "kv_heads": values["heads"]}
    values = plain | {"head_width": values["width"] // values["heads"]} | values
    biases = {bool(found.get("attention_bias")), bool(found.get("mlp_bias"))}
    if len(biases) > 1:
        raise InputError("only some projections have biases", file=file, key="mlp_bias", allowed="as attention_bias")
    if kind in ("Mixtral", "Qwen3Moe"):
        wide = found.get("moe_intermediate_size") if kind == "Qwen3Moe" else values["hidden"]
        values |= {
            "experts": found.get("num_local_experts") or found.get("num_experts"), "top_k": found.get("num_experts_per_tok"),
            "expert_hidden": wide, "capacity": 0.0, "balance": float(found.get("router_aux_loss_coef") or 0.0),
        }  # fmt: skip
        if not all(isinstance(values[name], int) for name in ("experts", "top_k", "expert_hidden")):
            raise InputError("sizes of the experts are not given", file=file, key="num_experts_per_tok")
        if kind == "Qwen3Moe" and found.get("norm_topk_prob") is not True:
            raise InputError("is not supported", file=file, key="norm_topk_prob", value=False, allowed="true")
    window, theta = _window(found, kind, file), _theta(found, file)
    return ModelConfig(
        **values, rope_theta=theta, window=window, bias=True in biases, qkv_bias=kind == "Qwen2", qk_norm=kind.startswith("Qwen3")
    )


def _theta(found: Mapping[str, Any], file: Path) -> float:
    rope = found.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or set(rope) - {"rope_type", "rope_theta"}:
        raise InputError("scaled angles are not supported", file=file, key="rope_parameters", value=rope, allowed="default")
    return float(rope.get("rope_theta", found.get("rope_theta") or 10000.0))


def _window(found: Mapping[str, Any], kind: str, file: Path) -> int:
    """Return how far back attention looks, 0 for all; all layers must do alike."""
    window, first = found.get("sliding_window") or 0, 0
    if kind.startswith("Qwen"):
        first = found.get("max_window_layers", 0) if window and found.get("use_sliding_window") else found["num_hidden_layers"]
        window = 0 if first >= found["num_hidden_layers"] else window
    layers = set(found.get("layer_types") or ())
    if layers - {"sliding_attention" if window else "full_attention"} or (window and first > 0):
        value = sorted(layers) or first
        raise InputError("layers of different kinds are not supported", file=file, key="layer_types", value=value)
    return int(window)


def kind_of(c: ModelConfig) -> str:
    """Return the model of Hugging Face that computes what this one does.

    Raises:
        InputError: none does.
    """
    wanted = {
        "norm": "rms", "activation": "swiglu", "positions": "rope", "causal": True, "inputs": (), "classes": 0, "targets": 0,
        "shared_hidden": 0, "router": "softmax",
    }  # fmt: skip
    if c.experts or c.qk_norm or c.window:
        wanted |= {"bias": False, "qkv_bias": False}
    for key, value in wanted.items():
        if getattr(c, key) != value:
            raise InputError("no model of Hugging Face is like this one", key=key, value=getattr(c, key), allowed=repr(value))
    if c.experts:
        return "Qwen3Moe" if c.qk_norm else "Mixtral"
    return "Qwen3" if c.qk_norm else "Mistral" if c.window else "Qwen2" if c.qkv_bias and not c.bias else "Llama"


def _written(c: ModelConfig, kind: str, dtype: str, stop: int | None) -> dict[str, Any]:
    """Return the config.json."""
    found: dict[str, Any] = {key: getattr(c, name) for name, key in SIZES.items()}
    found |= {"num_key_value_heads": c.K, "head_dim": c.C, "intermediate_size": c.expert_F if kind == "Mixtral" else c.F}
    model_type = "qwen3_moe" if kind == "Qwen3Moe" else kind.lower()
    found |= {
        "architectures": [f"{kind}ForCausalLM"], "model_type": model_type, "hidden_act": "silu", "torch_dtype": dtype,
        "rope_theta": c.rope_theta, "eos_token_id": stop, "bos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    found |= {"attention_bias": c.bias, "mlp_bias": c.bias} if kind == "Llama" else {"sliding_window": c.window or None}
    if kind.startswith("Qwen"):
        found |= {"use_sliding_window": c.window > 0, "max_window_layers": 0 if c.window else c.layers}
    if c.experts:
        found |= {"num_experts_per_tok": c.top_k, "router_aux_loss_coef": c.balance}
        found["num_local_experts" if kind == "Mixtral" else "num_experts"] = c.experts
    if kind == "Qwen3Moe":
        found |= {"moe_intermediate_size": c.expert_F, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return found


def _rows(c: ModelConfig, at: Layout | None) -> list[int]:
    """Return which layer of the model each row of a stack is."""
    if at is None or at.interleave == 1:
        return list(range(c.layers))
    from gewu.train.pipeline import order

    return [int(row) for row in order(c.layers, at)]


def _parts(c: ModelConfig) -> dict[str, list[Part]]:
    """Return of which tensors each parameter of `unstacked(specs(c))` is made."""
    made = dict[str, list[Part]]()
    for name, param in flat(unstacked(specs(c))).items():
        *path, leaf = name.split("/")
        prefix = f"model.layers.{path[1]}." if path else ""
        made[name] = [part._replace(name=prefix + part.name) for part in _leaf(leaf, param.shape, c)]
    return made


def _leaf(leaf: str, shape: tuple[int, ...], c: ModelConfig) -> Iterator[Part]:
    """Yield the parts of one parameter, without the prefix of their layer."""
    D, K, G, C, F, E = c.width, c.K, c.G, c.C, c.F, c.experts
    plain = {
        "embed": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight",
        "norm1": "input_layernorm.weight", "norm2": "post_attention_layernorm.weight",
        "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
        "out_bias": "self_attn.o_proj.bias", "down_bias": "mlp.down_proj.bias",
    }  # fmt: skip
    mixtral = E and not c.qk_norm
    mlp = "block_sparse_moe." if mixtral else "mlp."
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    both, heads = ((0, gate), (1, up)), (("q", 0, G), ("k", G, 1), ("v", G + 1, 1))
    experts = [(e, f"{mlp}experts.{e}.") for e in range(E)]
    # name, shape, order of axes, place
    linear: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]] = {
        "qkv": [(f"self_attn.{x}_proj", (K, n, C, D), (3, 0, 1, 2), (0, 0, first, 0)) for x, first, n in heads],
        "out": [("self_attn.o_proj", (D, K, G * C), (1, 2, 0), (0, 0, 0))],
        "up": [(f"mlp.{x}", (F, 1, D), (2, 1, 0), (0, n, 0)) for n, x in both],
        "down": [(f"mlp.{down}", (D, F), (1, 0), (0, 0))],
        "router": [(f"{mlp}gate", (E, D), (1, 0), (0, 0))],
        "experts_up": [(f"{at}{x}", (1, c.expert_F, 1, D), (0, 3, 2, 1), (e, 0, n, 0)) for e, at in experts for n, x in both],
        "experts_down": [(f"{at}{down}", (1, D, c.expert_F), (0, 2, 1), (e, 0, 0)) for e, at in experts],
    }
    if leaf in plain:
        yield Part(plain[leaf], shape, tuple(range(len(shape))), (0,) * len(shape), shape)
        return
    for name, whole, axes, place in linear[leaf.removesuffix("_bias")]:
        rows = 1 if leaf == "out" else len(whole) - 1  # how many axes the rows of the file have
        stored = (math.prod(whole[:rows]), math.prod(whole[rows:]))
        if leaf.endswith("_bias"):  # as the weight, without its input
            yield Part(f"{name}.bias", whole[:-1], tuple(axis for axis in axes if axis < rows), place[1:], stored[:1])
        else:
            yield Part(f"{name}.weight", whole, axes, place, stored)


def _open(folder: Path) -> dict[str, Any]:
    """Return views of all tensors of the model, by name."""
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.exists():
        where = _json(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(name, str) and name == Path(name).name for name in where.values()):
            raise InputError("is no map of tensors to files in this folder", file=index, key="weight_map")
        names = sorted(set(where.values()))
    elif single.exists():
        names = [single.name]
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
        if pickled:
            hint = "reading them can run any program; convert them to safetensors where you trust them"
            raise InputError("pickled weights are refused", file=folder / pickled[0], hint=hint)
        raise InputError("there are no weights", file=folder, allowed=f"model.safetensors or {INDEX}")
    found: dict[str, Any] = {}
    for name in names:
        tensors = safetensors.read(folder / name)
        if twice := sorted(found.keys() & tensors.keys()):
            raise InputError("is in two files", file=folder / name, key=twice[0])
        found |= tensors
    return found


def _check(c: ModelConfig, tensors: Mapping[str, Any], folder: Path) -> None:
    """Compare the tensors with those that the model needs."""
    parts = {part.name: part for group in _parts(c).values() for part in group}
    rows = tensors["model.embed_tokens.weight"].shape[0] if "model.embed_tokens.weight" in tensors else c.vocab
    if rows != c.vocab:
        message = f"vocab_size is {c.vocab}, but the embedding has {rows} rows"
        raise InputError(message, file=folder / "config.json", hint="the weights belong to another configuration")
    if missing := [name for name in parts if name not in tensors]:
        raise InputError(f"{len(missing)} tensors of the model are missing", file=folder, key=missing[0])
    spare = {"lm_head.weight"} if c.tied else set()  # a copy of the embedding
    extra = [name for name in tensors if name not in parts and name not in spare and not name.endswith("rotary_emb.inv_freq")]
    if extra:
        raise InputError(f"{len(extra)} tensors are none of the model's", file=folder, key=extra[0])
    for name, part in parts.items():
        found = tuple(tensors[name].shape)
        if found != part.stored:
            raise InputError("has another shape", file=folder, key=name, value=found, allowed=str(part.stored))
        if tensors[name].dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise InputError("quantised weights are not supported", file=folder, key=name, value=tensors[name].dtype.name)


def _highest(file: Path) -> int:
    """Return the highest number of a token in a tokenizer.json."""
    found = _json(file, 1 << 28)
    try:
        vocabulary = found["model"]["vocab"]
        numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return max([int(n) for n in numbers] + [int(token["id"]) for token in found.get("added_tokens", ())], default=-1)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"holds no vocabulary: {error!r}", file=file, key="model.vocab") from None


def _json(file: Path, limit: int = 1 << 26) -> dict[str, Any]:
    try:
        found = json.loads(read_capped(file, limit))
    except ValueError as error:
        raise InputError(f"is no JSON: {error}", file=file) from None
    if not isinstance(found, dict):
        raise InputError("holds no object", file=file)
    return found


def _write_json(file: Path, value: Any) -> None:
    write_atomic(file, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

"""The engine `train`: a model of text, pictures, series or tables, on one process or many; or the plan of one that is too large.

A job names data and a model; what it becomes is a result directory that other programs read: for text it holds config.json,
model.safetensors and tokenizer.json of Hugging Face beside the numbers. Weights are checkpointed beside the result while it
trains (`NAME.checkpoints`) and a killed run goes on from there, on any layout.

MFU is the arithmetic that the model needs in a second (`plan.model_flops`: 6 for each weight and token, and attention; nothing
that is computed twice: PaLM, arXiv:2204.02311) over the peak, which is measured by one matrix product.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core import schema
from gewu.core.context import Context
from gewu.core.errors import InputError, ResourceError
from gewu.core.figure import Figure
from gewu.train.config import ACTIVATIONS, NORMS, POSITIONS, ROUTERS

SUMMARY: Final = "Large models: trained on text, pictures, series and tables, or planned for machines that are not here"
TASKS: Final = ("train", "plan", "generate", "evaluate")
REFERENCES: Final = {
    "transformer2017": "@inproceedings{transformer2017, author = {Vaswani, A. and others}, title = {Attention Is All You Need}, "
    "booktitle = {NeurIPS}, year = {2017}, eprint = {1706.03762}}",
    "adamw2019": "@inproceedings{adamw2019, author = {Loshchilov, I. and Hutter, F.}, title = {Decoupled Weight Decay "
    "Regularization}, booktitle = {ICLR}, year = {2019}, eprint = {1711.05101}}",
    "muon2025": "@article{muon2025, author = {Liu, J. and others}, title = {Muon is Scalable for LLM Training}, journal = "
    "{arXiv:2502.16982}, year = {2025}}",
    "adafactor2018": "@inproceedings{adafactor2018, author = {Shazeer, N. and Stern, M.}, title = {Adafactor: Adaptive Learning "
    "Rates with Sublinear Memory Cost}, booktitle = {ICML}, year = {2018}, eprint = {1804.04235}}",
    "megatron2021": "@inproceedings{megatron2021, author = {Narayanan, D. and others}, title = {Efficient Large-Scale Language "
    "Model Training on GPU Clusters Using Megatron-LM}, booktitle = {SC}, year = {2021}, eprint = {2104.04473}}",
    "wdbc1993": "@inproceedings{wdbc1993, author = {Street, W. N. and Wolberg, W. H. and Mangasarian, O. L.}, title = {Nuclear "
    "Feature Extraction for Breast Tumor Diagnosis}, booktitle = {SPIE 1905}, pages = {861}, year = {1993}}",
    "lorenz1963": "@article{lorenz1963, author = {Lorenz, E. N.}, title = {Deterministic Nonperiodic Flow}, journal = "
    "{J. Atmos. Sci.}, volume = {20}, pages = {130}, year = {1963}}",
    "bpe2016": "@inproceedings{bpe2016, author = {Sennrich, R. and Haddow, B. and Birch, A.}, title = {Neural Machine "
    "Translation of Rare Words with Subword Units}, booktitle = {ACL}, year = {2016}, eprint = {1508.07909}}",
}


@dataclass(frozen=True)
class Config:
    """The `[train]` table of a job."""

    task: str = schema.field("train", choices=TASKS, meaning="train, plan without hardware, or use a trained model")
    data: tuple[str, ...] = schema.field(
        (), file=True, folder=True, builtin_prefixes=("lorenz",), meaning="text, a store, a CSV file, or lorenz (chaos)",
        absent="for the documents of examples/train-text.toml run `make documents` first",
    )  # fmt: skip
    text: str = schema.field("text", meaning="field of a sample that holds its text")
    tokenizer: str = schema.field(
        "bytes", file=True, builtin_prefixes=("bytes", "train:"), meaning="bytes, train:VOCABULARY, or a tokenizer.json"
    )
    label: str = schema.field("", meaning="column of the classes: the model tells the class of a sample")
    columns: tuple[str, ...] = schema.field((), meaning="columns that are a table; none given: all others")
    picture: tuple[int, ...] = schema.field((), minimum=1, meaning="height and width of pictures, channels too for columns")
    picture_columns: tuple[str, ...] = schema.field((), meaning="columns laid out as a picture: row, column, channel")
    series: tuple[str, ...] = schema.field((), meaning="columns that are a series; the first is forecast")
    context: int = schema.field(64, minimum=1, meaning="series: time steps that are seen")
    horizon: int = schema.field(16, minimum=1, meaning="series: time steps that are forecast")
    patch: int = schema.field(1, minimum=1, meaning="pixels or time steps along the edge of a token")
    validation: float = schema.field(0.05, minimum=0.0, maximum=0.5, meaning="share held out: by a hash, for series at the end")
    on_damage: str = schema.field("stop", choices=("stop", "skip", "count"), meaning="damaged samples of a store")

    width: int = schema.field(256, minimum=1, meaning="width D of the stream of tokens")
    layers: int = schema.field(4, minimum=1, meaning="layers")
    heads: int = schema.field(4, minimum=1, meaning="heads of queries")
    kv_heads: int = schema.field(0, minimum=0, meaning="heads of keys and values; 0: as many as of queries")
    length: int = schema.field(256, minimum=1, meaning="tokens of a row")
    hidden: int = schema.field(0, minimum=0, meaning="inner width of the MLP; 0: by the activation")
    experts: int = schema.field(0, minimum=0, meaning="experts; 0 for a dense model")
    top_k: int = schema.field(2, minimum=1, meaning="experts that work on a token")
    expert_hidden: int = schema.field(0, minimum=0, meaning="inner width of an expert; 0: as the MLP")
    shared_hidden: int = schema.field(
        0, minimum=0, meaning="inner width of the expert that sees all tokens; 0 for none", expert=True
    )
    capacity: float = schema.field(
        1.25, minimum=0.0, meaning="places of an expert over its even share; 0 drops nothing", expert=True
    )
    balance: float = schema.field(0.01, minimum=0.0, meaning="weight of the loss that balances experts", expert=True)
    router: str = schema.field("softmax", choices=ROUTERS, meaning="how experts are weighted", expert=True)
    head_width: int = schema.field(0, minimum=0, meaning="width of a head; 0: width / heads", expert=True)
    norm: str = schema.field("rms", choices=NORMS, meaning="normalisation", expert=True)
    activation: str = schema.field("swiglu", choices=ACTIVATIONS, meaning="of the MLP", expert=True)
    positions: str = schema.field("rope", choices=POSITIONS, meaning="how tokens know where they stand", expert=True)
    rope_theta: float = schema.field(10000.0, exclusive_minimum=0.0, meaning="base of the rotary angles", expert=True)
    window: int = schema.field(0, minimum=0, meaning="tokens that attention looks back; 0 for all", expert=True)
    tied: bool = schema.field(True, meaning="output embedding is the input embedding", expert=True)
    bias: bool = schema.field(False, meaning="biases in all projections", expert=True)
    qkv_bias: bool = schema.field(False, meaning="biases of queries, keys and values", expert=True)
    qk_norm: bool = schema.field(False, meaning="norm of each query and key", expert=True)
    init: str = schema.field(
        "", file=True, folder=True, meaning="folder of a model in Hugging Face form to begin from, or to use"
    )

    batch: int = schema.field(16, minimum=1, meaning="rows of a step, over all devices")
    steps: int = schema.field(0, minimum=0, meaning="steps; 0: by epochs")
    epochs: float = schema.field(1.0, exclusive_minimum=0.0, meaning="times that the data are seen, where steps is 0")
    optimiser: str = schema.field("adamw", choices=("adamw", "muon", "adafactor"), meaning="optimiser")
    learning_rate: float = schema.field(1e-3, exclusive_minimum=0.0, meaning="highest learning rate")
    schedule: str = schema.field("cosine", choices=("constant", "cosine", "linear", "wsd"), meaning="of the learning rate")
    warmup: int = schema.field(0, minimum=0, meaning="steps of warm-up; 0: a twentieth of all")
    weight_decay: float = schema.field(0.1, minimum=0.0, meaning="decoupled weight decay, of matrices")
    clip: float = schema.field(1.0, minimum=0.0, meaning="largest norm of all gradients; 0 for none")
    precision: str = schema.field("fp32", choices=("fp32", "bf16", "fp8"), meaning="type of the operands of products")
    seed: int = schema.field(1, minimum=0, maximum=2**31 - 1, meaning="of weights, order and samples")
    evaluate_every: int = schema.field(0, minimum=0, meaning="steps between validations; 0: a twentieth of all")
    evaluate_batches: int = schema.field(
        8, minimum=1, meaning="batches of a validation on the way; the last takes eight times more"
    )
    on_nan: str = schema.field("stop", choices=("stop", "rewind"), meaning="when a loss is not finite")

    layout: str = schema.field("auto", meaning='auto, or axes such as "fsdp=4 tp=2 sp micro=4"')
    processes: int = schema.field(1, minimum=1, maximum=4096, meaning="processes on this machine, watched and restarted")
    restarts: int = schema.field(
        3, minimum=0, meaning="times that all processes begin again after one was lost; then with those left", expert=True
    )
    hang_timeout_s: float = schema.field(
        300.0, unit="s", exclusive_minimum=0.0, meaning="silence after which a process counts as hung"
    )
    checkpoint_every: int = schema.field(100, minimum=0, meaning="steps between checkpoints of the weights; 0 for none")
    checkpoints: str = schema.field("", meaning="folder of the weights' checkpoints; none given: beside the result")
    keep: int = schema.field(2, minimum=1, meaning="checkpoints that are kept", expert=True)
    peak_tflops: float = schema.field(0.0, unit="Tflop/s", minimum=0.0, meaning="of a device, for MFU; 0: measured", expert=True)

    prompts: tuple[str, ...] = schema.field((), meaning="texts that the trained model goes on with")
    new_tokens: int = schema.field(128, minimum=1, meaning="tokens of each continuation")
    temperature: float = schema.field(0.8, minimum=0.0, meaning="of sampling; 0 takes the likeliest")
    top_p: float = schema.field(0.95, exclusive_minimum=0.0, maximum=1.0, meaning="probability that sampling keeps", expert=True)

    machine: str = schema.field("h100", meaning="plan: name of the machine, of gewu.train.machines")
    devices: int = schema.field(2048, minimum=1, meaning="plan: devices")
    vocab: int = schema.field(0, minimum=0, meaning="plan: vocabulary")
    compile_devices: int = schema.field(2048, minimum=0, meaning="plan: virtual devices to compile for at most; 0: traced only")

    def check(self) -> None:
        """Refuse what no single key can tell."""
        if self.task in ("train", "evaluate") and not self.data:
            raise InputError("must be named", key="data", allowed="files, folders, a store, or lorenz")
        if self.task in ("generate", "evaluate") and not self.init:
            raise InputError("must name the folder of a trained model", key="init", hint="a result of the engine is one")
        if self.task == "plan" and not self.vocab:
            raise InputError("must be given for a plan", key="vocab", allowed="1 or more")
        if self.tokenizer.startswith("train:") and not self.tokenizer[6:].isdecimal():
            raise InputError("is no vocabulary to train", key="tokenizer", value=self.tokenizer, allowed="train:NUMBER")
        if self.picture_columns and (len(self.picture) != 3 or math.prod(self.picture) != len(self.picture_columns)):
            allowed = f"height, width, channels with {len(self.picture_columns)} numbers in all"
            raise InputError("does not lay out the columns", key="picture", value=self.picture, allowed=allowed)


def run(config: Config, ctx: Context) -> None:
    """Train, plan, generate or evaluate."""
    if config.task == "plan":
        _plan(config, ctx)
    elif config.processes > 1 and ctx.ranks.size == 1:
        _supervise(config, ctx)
    else:
        if ctx.ranks.size > 1:
            join(ctx.ranks)
        if config.task == "train":
            train(config, ctx, Place.of(config, ctx))
        else:
            _use(config, ctx)


def join(ranks: Any) -> None:
    """Make the ranks of an MPI run the processes of one JAX program; the root's host coordinates them."""
    import jax

    hosts = ranks.allgather(socket.gethostname())
    with socket.socket() as free:
        free.bind(("", 0))
        address = ranks.bcast(f"{'127.0.0.1' if len({*hosts}) == 1 else hosts[0]}:{free.getsockname()[1]}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, ranks.size, ranks.rank, initialization_timeout=120)


def train(config: Config, ctx: Context, place: Place) -> bool:
    """Train and record; return whether the run was stopped before its end."""
    import jax

    from gewu.train import memory, plan
    from gewu.train.fit import Fit, Progress, measure_peak
    from gewu.train.material import material
    from gewu.train.precision import Precision
    from gewu.train.record import held_loss, report
    from gewu.train.spec import count
    from gewu.train.step import Trainer

    memory.keep()
    with ctx.phase("reading the data"):
        found = material(config)
    steps = config.steps or max(1, round(config.epochs * found.per_epoch))
    precision = Precision.of(config.precision)
    optimiser = optimiser_of(config, steps)
    layout = layout_of(config, found.model, optimiser, precision)
    trainer = Trainer(found.model, layout, optimiser, precision)
    ctx.cite(*_methods(config, found))
    tokens = config.length if found.kind == "text" else found.model.prefix
    flops = plan.model_flops(found.model, config.batch, tokens) / config.batch
    peak = config.peak_tflops * 1e12 * layout.devices or measure_peak(precision.compute, layout.devices)
    ctx.log(
        f"{count(trainer.specs):,} parameters on {layout}, {jax.process_count()} process(es), {steps} steps, {peak:.3g} flop/s"
    )

    store, state, extra = _checkpoints(config, ctx, place, trainer)
    stream = found.stream(config, extra.get("data"))
    fit = Fit(
        trainer, stream, steps, ctx, flops=flops / tokens if found.kind == "text" else flops, peak_flops=peak,
        validate=partial(held_loss, trainer, stream, most=config.evaluate_batches) if config.validation else None,
        every=config.evaluate_every or max(1, steps // 20), checkpoints=store, save_every=config.checkpoint_every,
        on_nan=config.on_nan, begin=int(state.step), rows=config.batch if found.kind != "text" else 0,
        progress=Progress.of(extra["progress"]) if extra else Progress(),
    )  # fmt: skip
    try:
        with ctx.phase("training"):
            state, stopped = fit.go(state)
        if not stopped:
            report(config, ctx, found, fit, state)
            with ctx.phase("samples and model"):
                if found.kind == "text":
                    _continuations(config, ctx, found.source.tokenizer, trainer, state.params)
                _write_model(ctx, found, trainer, state, place)
        return stopped
    finally:
        stream.close()
        if store is not None:
            store.close()


def layout_of(config: Config, model: Any, optimiser: Any, precision: Any) -> Any:
    """Return the layout that the job names, or the best one for the devices there are.

    Raises:
        ResourceError: it does not fit, or none does; the message names the bytes that miss.
    """
    import jax

    from gewu.train import plan
    from gewu.train.mesh import Layout

    devices = len(jax.devices())
    named = None if config.layout == "auto" else Layout.of(config.layout)
    if not model.vocab or model.inputs:  # rows of a few tokens: small models, for which no plan is made
        return named or Layout(dp=math.gcd(devices, config.batch))
    here = this_machine(named.devices if named else devices)
    if named is None and devices > 1:
        return plan.choose(model, devices, here, config.batch, config.length, precision, optimiser)[0].layout
    layout = named or Layout()
    needed = plan.estimate(model, layout, config.batch, config.length, precision, optimiser).memory
    if needed.total <= here.memory:
        return layout
    if named is None:
        return plan.choose(model, 1, here, config.batch, config.length, precision, optimiser)[0].layout
    parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in needed._asdict().items())
    raise ResourceError(
        f"the model does not fit: {int(needed.total - here.memory)} bytes miss on each device", key="layout", value=str(layout),
        allowed=f"{here.memory / 1e9:.1f} GB; it takes {parts}", hint="take more devices, a smaller batch, or remat=layer",
    )  # fmt: skip


def this_machine(devices: int) -> Any:
    """Return what is here as a machine of the plan: its whole memory, shared by the devices of this host; speeds are nominal."""
    import jax

    from gewu.train.machines import Link, Machine, machine

    first = jax.devices()[0]
    if first.platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / max(1, min(devices, len(jax.local_devices())))
        return Machine("processor", 2e11, memory, 2e10, (Link(0, 2e9, 50e-6),))
    return replace(machine("h100"), memory=float((first.memory_stats() or {}).get("bytes_limit", 80e9)))


def optimiser_of(config: Config, steps: int) -> Any:
    """Return the optimiser of a job."""
    from gewu.train.optim import Optimiser

    return Optimiser(
        config.optimiser, config.learning_rate, config.schedule if steps > 1 else "constant", steps=steps,
        warmup=config.warmup or min(max(1, steps // 20), steps - 1), weight_decay=config.weight_decay, clip=config.clip,
    )  # fmt: skip


def _methods(config: Config, found: Any) -> list[str]:
    cited = ["transformer2017", {"adamw": "adamw2019", "muon": "muon2025", "adafactor": "adafactor2018"}[config.optimiser]]
    cited += ["bpe2016"] * config.tokenizer.startswith("train:") + ["lorenz1963"] * ("lorenz" in config.data)
    return cited + ["wdbc1993"] * any(Path(path).name == "breast-cancer.csv" for path in config.data)


@dataclass(frozen=True)
class Place:
    """Where a run keeps what is too large for its own checkpoints.

    Attributes:
        result: the result directory, None where nothing is kept.
        weights: folder of the weights' checkpoints, None without.
        run: identity of the run; a run that is resumed has that of before.
    """

    result: Path | None
    weights: Path | None
    run: str

    @classmethod
    def of(cls, config: Config, ctx: Context) -> Place:
        """Return the place of this run, the same on all ranks."""
        mark = ctx.stream("run.txt")  # there already when the run is resumed
        run = ""
        if mark is not None:
            if not mark.exists():
                ctx.file("run.txt", os.urandom(8).hex().encode())
            run = mark.read_text()
        result, run = ctx.ranks.bcast((mark.parent if mark else None, run))
        weights = Path(config.checkpoints) if config.checkpoints else result.with_suffix(".checkpoints") if result else None
        return cls(result, weights, run)

    def clear(self, ctx: Context) -> None:
        """Remove the weights' checkpoints of an earlier run."""
        ctx.ranks.barrier()  # all have seen whose they are
        if ctx.ranks.is_root and self.weights is not None:
            shutil.rmtree(self.weights, ignore_errors=True)
        ctx.ranks.barrier()


def _checkpoints(config: Config, ctx: Context, place: Place, trainer: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return the checkpoints, the state to begin from, and what was kept beside it."""
    store = _store(config, place, trainer)
    if store is not None and store.latest() is not None:
        try:
            state, extra = store.load(trainer.abstract())
            ctx.log(f"goes on behind step {int(state.step)}")
            return store, state, extra
        except InputError:  # they are of another run
            if config.checkpoints:
                raise
            place.clear(ctx)
            store = _store(config, place, trainer)
    state = trainer.init(config.seed)
    from gewu.train.material import pretrained

    if given := pretrained(config):
        state = state._replace(params=given.params(trainer))
    return store, state, {}


def _store(config: Config, place: Place, trainer: Any) -> Any:
    if place.weights is None or not config.checkpoint_every:
        return None
    from gewu.train.checkpoint import Checkpoints

    layers = None
    if trainer.layout.interleave > 1:
        from gewu.train.pipeline import order

        layers = order(trainer.config.layers, trainer.layout)
    return Checkpoints(place.weights, config.keep, identity=place.run, layers=layers)


def _write_model(ctx: Context, found: Any, trainer: Any, state: Any, place: Place) -> None:
    """Write the model into the result: for text in Hugging Face form where there is one, else its parameters by name."""
    import jax

    from gewu.formats import safetensors
    from gewu.train import hub
    from gewu.train.record import whole
    from gewu.train.spec import flat

    ctx.file("model.json", json.dumps(asdict(found.model), indent=1).encode())
    if place.result is None:
        return
    params, names = jax.tree.map(whole, state.params), ["model.safetensors"]
    if ctx.ranks.is_root:
        try:
            if found.kind != "text":
                raise InputError("is no model of text")
            tokenizer = found.source.tokenizer
            if hasattr(tokenizer, "write"):
                tokenizer.write(place.result / "tokenizer.json")
                names.append("tokenizer.json")
            hub.write(place.result, found.model, params, stop=tokenizer.end, shard_bytes=1 << 60, layout=trainer.layout)
            names.append("config.json")
        except InputError as error:
            ctx.log(f"the model is written as gewu keeps it, not in Hugging Face form: {error}")
            safetensors.write(place.result / "model.safetensors", {name: np.asarray(x) for name, x in flat(params).items()})
    for name in names:
        ctx.stream(name)


def _continuations(config: Config, ctx: Context, tokenizer: Any, trainer: Any, params: Any) -> None:
    """Let the model go on with the prompts, and record what it says."""
    if not config.prompts:
        return
    from gewu.train.generate import generate

    prompts = [tokenizer.encode(text) for text in config.prompts]
    made = generate(
        trainer, params, prompts, config.new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed,
        stop=(tokenizer.end,),
    )  # fmt: skip
    rows = [{"prompt": text, "continuation": tokenizer.decode(tokens)} for text, tokens in zip(config.prompts, made, strict=True)]
    ctx.file("samples.json", json.dumps(rows, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def _use(config: Config, ctx: Context) -> None:
    """Evaluate a trained model on held-out text, or let it go on with prompts."""
    from gewu.train.material import material, pretrained, tokenizer_name, tokenizer_of
    from gewu.train.precision import Precision
    from gewu.train.record import held_loss
    from gewu.train.step import Trainer

    given = pretrained(config)
    found = material(config) if config.task == "evaluate" else None
    tokenizer = found.source.tokenizer if found else tokenizer_of(tokenizer_name(config), [])
    model = given.config.with_(length=max(given.config.length, config.length))
    optimiser, precision = optimiser_of(config, 1), Precision.of(config.precision)
    trainer = Trainer(model, layout_of(config, model, optimiser, precision), optimiser, precision)
    with ctx.phase("reading the model"):
        params = given.params(trainer)
    if found:
        with ctx.phase("validation"):
            stream = found.stream(config)
            loss = held_loss(trainer, stream, params, 10**9)
            stream.close()
        ctx.number("validation_loss", loss, "nat")
        ctx.number("perplexity", math.exp(min(loss, 700.0)), "1")
        ctx.number("bits_per_byte", loss / math.log(2) / found.source.bytes_per_token, "bit")
    _continuations(config, ctx, tokenizer, trainer, params)


def _plan(config: Config, ctx: Context) -> None:
    """Trace, compile and project the step of a model for a machine that is not here."""
    from gewu.train import plan
    from gewu.train.machines import machine
    from gewu.train.material import MODEL_KEYS, model_of
    from gewu.train.mesh import Layout
    from gewu.train.precision import Precision
    from gewu.train.record import record_plan

    if ctx.ranks.size > 1:
        raise InputError("is made by one process", key="task", value="plan", hint="leave mpirun away")
    ctx.cite("megatron2021")
    model = model_of(vocab=config.vocab, length=config.length, **{key: getattr(config, key) for key in MODEL_KEYS})
    where, precision, optimiser = (
        machine(config.machine),
        Precision.of(config.precision),
        optimiser_of(config, config.steps or 1000),
    )
    task = (config.batch, config.length, precision, optimiser)
    with ctx.phase("choosing a layout"):
        choices = plan.choose(model, config.devices, where, *task) if config.layout == "auto" else []
    layout = choices[0].layout if choices else Layout.of(config.layout)
    ctx.log(f"{layout} on {layout.devices} devices of {where.name}")
    with ctx.phase("tracing and compiling"):
        study = plan.study(model, layout, *task, where, compile_devices=config.compile_devices)
    record_plan(ctx, study, choices, where)


def _supervise(config: Config, ctx: Context) -> None:
    """Train with several processes of this machine, which are watched; record what they found."""
    from gewu.train import elastic
    from gewu.train.member import replay

    place = Place.of(config, ctx)
    arguments = {"config": asdict(config), "place": [place.result and str(place.result), place.weights and str(place.weights)]}

    def event(told: dict[str, Any]) -> None:
        getattr(ctx, told["call"])(*told["arguments"], **told["numbers"])

    found = elastic.run(
        "gewu.train.member:member", json.loads(json.dumps(arguments | {"run": place.run})), config.processes,
        hang_timeout_s=config.hang_timeout_s, event=event,
        stop=lambda: ctx.stop_requested, warn=ctx.warn, replaced=config.restarts, memory=True,
    )  # fmt: skip
    if found["stopped"]:
        ctx.checkpoint({"run": place.run})
    else:
        replay(found, ctx)


def figures(result: Any) -> Iterator[Figure]:
    """Yield the figures of a report."""
    from gewu.train import figures as pictures

    return pictures.figures(result)

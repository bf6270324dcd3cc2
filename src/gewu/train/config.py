"""What a model is: one frozen dataclass, from which parameters, cost and files follow.

A decoder of `layers` blocks h + attention(norm(h)), h + mlp(norm(h)), over one stream of tokens. Text enters through an
embedding, other inputs (pictures, series, tables) through encoders that make tokens of width D; what leaves is the next token,
a class or a number. Symbols of the room: B rows, T tokens of a row, D width, H heads, K key and value heads, G = H / K queries
for each of them, C width of a head, F inner width of the MLP, E experts, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from gewu.core.errors import InputError

NORMS: Final = ("rms", "layer")
ACTIVATIONS: Final = ("swiglu", "gelu")
POSITIONS: Final = ("rope", "learned", "none")
ROUTERS: Final = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Input:
    """One field of a sample that is not text, and how it becomes tokens.

    Args:
        name: of the field in a batch.
        kind: "patches" (pictures B × height × width × channels), "series" (B × time × channels), "table" (B × columns).
        shape: of the field without B.
        patch: pixels or time steps of one token along an axis; not used by tables, where each column is a token.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    patch: int = 1

    @property
    def tokens(self) -> int:
        """How many tokens it becomes."""
        if self.kind == "table":
            return self.shape[0]
        axes = self.shape[:2] if self.kind == "patches" else self.shape[:1]
        count = 1
        for size in axes:
            count *= size // self.patch
        return count


@dataclass(frozen=True)
class ModelConfig:
    """A model.

    Args:
        vocab: V; 0 for a model without text.
        width: D.
        layers: L.
        heads: H.
        kv_heads: K; 0 for H (no grouping).
        head_width: C; 0 for D / H.
        hidden: F; 0 for 4 D with gelu, 8/3 D rounded up to 64 with swiglu.
        length: most positions of a row.
        norm, activation, positions: see `NORMS`, `ACTIVATIONS`, `POSITIONS`.
        rope_theta: base of the rotary angles.
        window: tokens that attention looks back, itself included; 0 for all.
        causal: False lets every token see every other (encoders).
        tied: output embedding is the input embedding.
        bias: biases in all projections; `qkv_bias` in those of queries, keys and values only.
        qk_norm: RMS norm of each query and key over C.
        eps: of the norms.
        experts: E; 0 for a dense model. top_k of them work on each token.
        expert_hidden: F of an expert; shared_hidden: F of the expert that sees every token, 0 for none.
        capacity: places of an expert / its even share of tokens; 0 drops no token (dropless).
        balance: weight of the load-balancing loss.
        router: "softmax" or "sigmoid" (weights normalised over the chosen).
        inputs: fields that are not text.
        classes: width of a head that classifies the whole row (from the mean of its tokens); 0 for none.
        targets: numbers that are predicted for the whole row; 0 for none.

    Raises:
        InputError: sizes that do not fit together.
    """

    vocab: int = 0
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 0
    head_width: int = 0
    hidden: int = 0
    length: int = 1024
    norm: str = "rms"
    activation: str = "swiglu"
    positions: str = "rope"
    rope_theta: float = 10000.0
    window: int = 0
    causal: bool = True
    tied: bool = True
    bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    eps: float = 1e-5
    experts: int = 0
    top_k: int = 2
    expert_hidden: int = 0
    shared_hidden: int = 0
    capacity: float = 1.25
    balance: float = 0.01
    router: str = "softmax"
    inputs: tuple[Input, ...] = ()
    classes: int = 0
    targets: int = 0

    def __post_init__(self) -> None:
        for key in ("width", "layers", "heads", "length"):
            self._refuse(key, getattr(self, key) < 1, "1 or more")
        for key, allowed in (("norm", NORMS), ("activation", ACTIVATIONS), ("positions", POSITIONS), ("router", ROUTERS)):
            self._refuse(key, getattr(self, key) not in allowed, ", ".join(allowed))
        self._refuse("kv_heads", self.heads % self.K != 0, f"a divisor of heads = {self.heads}")
        self._refuse("head_width", not self.head_width and self.width % self.heads != 0, "given, where heads do not divide width")
        self._refuse("head_width", self.positions == "rope" and self.C % 2 != 0, "even, for rotary positions")
        self._refuse("top_k", self.experts > 0 and not 1 <= self.top_k <= self.experts, f"1 to {self.experts}")
        self._refuse("vocab", not (self.vocab or self.inputs), "positive, or inputs given")
        self._refuse("classes", not (self.vocab or self.classes or self.targets), "positive, or vocab or targets")

    def _refuse(self, key: str, bad: bool, allowed: str) -> None:
        if bad:
            raise InputError("the model's sizes do not fit together", key=key, value=getattr(self, key), allowed=allowed)

    @property
    def K(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    @property
    def G(self) -> int:
        """Query heads for each key head."""
        return self.heads // self.K

    @property
    def C(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.heads

    @property
    def F(self) -> int:
        """Inner width of the dense MLP."""
        return self.hidden or (4 * self.width if self.activation == "gelu" else -(-8 * self.width // 3 // 64) * 64)

    @property
    def expert_F(self) -> int:
        """Inner width of an expert."""
        return self.expert_hidden or self.F

    @property
    def gates(self) -> int:
        """Matrices side by side in `up`: 2 with a gate, else 1."""
        return 2 if self.activation == "swiglu" else 1

    @property
    def prefix(self) -> int:
        """Tokens that the inputs put before the text."""
        return sum(item.tokens for item in self.inputs)

    def with_(self, **changes: Any) -> ModelConfig:
        """Return the model with other values of some fields."""
        return replace(self, **changes)

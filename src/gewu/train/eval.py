"""How good a model is: text by perplexity and bits per byte, answers by likelihood, classes by AUC, numbers by their errors.

perplexity      exp(mean of -log p) over all tokens that count, each with the same weight, whatever the batches
bits per byte   sum of -log2 p / bytes of the text: does not depend on the tokeniser
AUC             P(score of a positive > score of a negative), ties count half: the rank statistic of Mann and Whitney
R2              1 - sum of squared errors / sum of squared deviations from the mean
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import ConvergenceError, InputError
from gewu.train.mesh import ROWS


class Text(NamedTuple):
    """How well a text is predicted.

    Attributes:
        loss: mean of -log p of a token, nats.
        tokens: how many counted.
        perplexity: exp(loss).
        bits_per_byte: 0 where the bytes are not known.
    """

    loss: float
    tokens: int
    perplexity: float
    bits_per_byte: float


def text(trainer: Any, params: Any, batches: Iterable[Mapping[str, Any]], bytes_: int = 0) -> Text:
    """Return how well a model predicts a text.

    Args:
        trainer: of the model; params: of its state.
        batches: dicts of "tokens", "targets" ... as `Trainer.prepare` takes them.
        bytes_: length of the text that the targets stand for, in UTF-8.

    Raises:
        InputError: no token counts.
        ConvergenceError: the loss is not finite.
    """
    losses, counts = [], []
    for number, batch in enumerate(batches):
        _, metrics = trainer.loss(params, trainer.prepare(batch))
        losses.append(float(metrics["loss"]))
        counts.append(float(metrics["tokens"]) if (np.asarray(batch["targets"]) >= 0).any() else 0.0)
        if not math.isfinite(losses[-1]):
            raise ConvergenceError("the loss is not finite", key=f"batch {number}", value=losses[-1])
    tokens = sum(counts)
    if not tokens:
        raise InputError("no token of the text counts", key="targets", allowed="one that is not negative")
    total = math.fsum(loss * count for loss, count in zip(losses, counts, strict=True))
    loss = total / tokens
    # a model that is worse than any code still has a number
    return Text(loss, int(tokens), math.exp(min(loss, 700.0)), total / math.log(2) / bytes_ if bytes_ else 0.0)


def accuracy(logits: Any, label: Any) -> float:
    """Return the share of rows whose largest logit is at their label; logits (n, classes), label int (n,)."""
    return float((np.argmax(logits, 1) == np.asarray(label)).mean())


def auc(score: Any, positive: Any) -> float:
    """Return the area under the ROC curve; 0.5 is chance.

    Args:
        score: (n,), larger for positives.
        positive: bool (n,).

    Raises:
        InputError: all rows are of one kind, or a score is NaN.
    """
    score, positive = np.asarray(score, np.float64), np.asarray(positive, bool)
    p = int(positive.sum())
    n = len(positive) - p
    if not p or not n or np.isnan(score).any():
        raise InputError("needs rows of both kinds and finite scores", key="auc", value=f"{p} positive, {n} negative rows")
    _, where, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[where]  # equal scores share the mean of their ranks
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * n))


class Errors(NamedTuple):
    """Errors of predicted numbers: root of the mean square, mean magnitude, R2; float64 (targets,) each."""

    rmse: NDArray[np.float64]
    mae: NDArray[np.float64]
    r2: NDArray[np.float64]


def errors(said: Any, truth: Any) -> Errors:
    """Return the errors of predictions (n, targets); R2 is NaN for a target that never changes."""
    said, truth = np.asarray(said, np.float64), np.asarray(truth, np.float64)
    error, spread = said - truth, ((truth - truth.mean(0)) ** 2).sum(0)
    r2 = 1 - np.divide((error**2).sum(0), spread, out=np.full(spread.shape, np.nan), where=spread > 0)
    return Errors(np.sqrt((error**2).mean(0)), np.abs(error).mean(0), r2)


@lru_cache(maxsize=4)
def _likelihood(trainer: Any) -> Any:
    def picked(logits: Any, targets: Any) -> Any:
        logp = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1)
        return jnp.where(targets >= 0, logp, 0.0).sum(1)

    return jax.jit(picked)


def likelihoods(
    trainer: Any, params: Any, contexts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], rows: int = 8
) -> Any:
    """Return log p(answer | context) of pairs of tokens, float64 (n,), in nats.

    Args:
        contexts: not empty; answers: of the same number.
        rows: pairs computed at a time.

    Raises:
        InputError: an empty context or answer, or a pair longer than the model.
    """
    share = trainer.layout.size(*ROWS) * trainer.layout.micro
    rows = -(-rows // share) * share
    for number, pair in enumerate(zip(contexts, answers, strict=True)):
        length = sum(map(len, pair))
        if not all(map(len, pair)) or length > trainer.config.length + 1:
            allowed = f"two parts, together at most {trainer.config.length + 1}"
            raise InputError("a pair is empty or too long", key=f"pair {number}", value=length, allowed=allowed)
    width = -(-max((len(a) + len(b) - 1 for a, b in zip(contexts, answers, strict=True)), default=1) // 32) * 32
    found = np.zeros(len(contexts))
    for first in range(0, len(contexts), rows):
        tokens, targets = np.zeros((2, rows, min(width, trainer.config.length)), np.int32)
        targets[:] = -1
        for row, (context, answer) in enumerate(zip(contexts[first : first + rows], answers[first : first + rows], strict=True)):
            whole = np.array([*context, *answer], np.int32)
            tokens[row, : len(whole) - 1] = whole[:-1]
            targets[row, len(context) - 1 : len(whole) - 1] = answer
        logits = trainer.outputs(params, trainer.prepare({"tokens": tokens}))["logits"]
        part = np.asarray(_likelihood(trainer)(logits, targets), np.float64)
        found[first : first + rows] = part[: len(contexts) - first]
    return found


def choices(trainer: Any, params: Any, questions: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], rows: int = 8) -> Any:
    """Return which answer each question gets: the one of the largest mean log-likelihood of a token, int (n,)."""
    contexts = [context for context, answers in questions for _ in answers]
    answers = [answer for _, several in questions for answer in several]
    mean = likelihoods(trainer, params, contexts, answers, rows) / np.array([len(answer) for answer in answers])
    ends = np.cumsum([len(several) for _, several in questions])[:-1]
    return np.array([int(np.argmax(part)) for part in np.split(mean, ends)])

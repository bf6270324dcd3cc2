"""What a model has to beat: a few lines of linear algebra or counting on the same samples.

text      bigrams: p(b | a) = (n_ab + k p(b)) / (n_a + k), p(b) from counts plus one, k = 20
classes   logistic regression, L2, by Newton steps under a bound of the curvature (Böhning 1992)
series    persistence (the last value goes on) and ridge regression on the window
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 4_000_000


def bigrams(train: Iterable[dict[str, Any]], held: Iterable[dict[str, Any]], vocab: int, strength: float = 20.0) -> float:
    """Return the mean loss of bigram statistics on held-out batches, nats a token.

    Args:
        train: batches that are counted, up to `MOST_TOKENS`.
        held: batches that are judged.
        vocab: V.
        strength: pseudo-counts of the unigram behind each first token.
    """
    pairs: list[NDArray[Any]] = []
    for batch in train:
        pairs.append(_pairs(batch, vocab))
        if sum(map(len, pairs)) >= MOST_TOKENS:
            break
    code, count = np.unique(np.concatenate(pairs), return_counts=True)
    second = np.bincount(code % vocab, count, vocab) + 1.0
    second /= second.sum()
    first = np.bincount(code // vocab, count, vocab)
    judged = np.concatenate([_pairs(batch, vocab) for batch in held])
    place = np.minimum(np.searchsorted(code, judged), len(code) - 1)
    seen = np.where(code[place] == judged, count[place], 0)
    p = (seen + strength * second[judged % vocab]) / (first[judged // vocab] + strength)
    return float(-np.log(p).mean())


def _pairs(batch: dict[str, Any], vocab: int) -> NDArray[np.int64]:
    known = batch["targets"] >= 0
    return batch["tokens"][known].astype(np.int64) * vocab + batch["targets"][known]


def logistic(x: Any, label: Any, classes: int, penalty: float = 1.0, rounds: int = 600) -> NDArray[np.float64]:
    """Return the weights (features + 1, classes) of logistic regression, the last of them constants.

    Args:
        x: (n, features), standardised; NaN counts as the mean.
        label: int (n,).
        classes: how many there are.
        penalty: L2, as a count of samples.
        rounds: steps.
    """
    x = _with_one(x)
    y = np.eye(classes)[np.asarray(label)]
    w = np.zeros((x.shape[1], classes))
    ridge = penalty * np.eye(x.shape[1])
    ridge[-1, -1] = 1e-6
    bound = 0.5 * x.T @ x + ridge  # of the curvature, for every weight
    for _ in range(rounds):
        w -= np.linalg.solve(bound, x.T @ (softmax(x @ w) - y) + ridge @ w)
    return w


def softmax(z: Any) -> NDArray[np.float64]:
    """Return probabilities (n, classes) of logits."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def predict(x: Any, w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what linear weights, the last of which are constants, say to samples."""
    return np.asarray(_with_one(x) @ w)


def auc(score: Any, positive: Any) -> float:
    """Return the probability that a positive sample scores higher than another; ties count half (Mann-Whitney)."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - 0.5 * (count - 1))[place]
    n = int(np.sum(positive))
    return float((rank[np.asarray(positive, bool)].sum() - 0.5 * n * (n + 1)) / max(1, n * (len(rank) - n)))


def ridge(x: Any, y: Any, penalty: float = 1e-3) -> NDArray[np.float64]:
    """Return the weights (features + 1, k) of ridge regression of y (n, k) on x (n, features)."""
    x = _with_one(x)
    return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y))


def _with_one(x: Any) -> NDArray[np.float64]:
    x = np.nan_to_num(np.asarray(x, np.float64).reshape(len(x), -1))
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)

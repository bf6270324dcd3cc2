"""Evaluation: means are exact, ranks are counted, answers are scored token by token."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, InputError
from gewu.train import eval as score
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.step import Trainer

CONFIG = ModelConfig(vocab=24, width=16, layers=1, heads=2, hidden=24, length=32)


@cache
def made(layout: str = ""):
    trainer = Trainer(CONFIG, Layout.of(layout), Optimiser(), Precision.of("fp32"))
    return trainer, {name: leaf for name, leaf in trainer.init(3).params.items()} | {
        "embed": trainer.init(3).params["embed"] * 20
    }


def logp(rows) -> np.ndarray:
    """Log-probabilities by NumPy from the model's logits, float64 (b, t, V)."""
    trainer, params = made()
    logits = np.asarray(trainer.outputs(params, trainer.prepare({"tokens": np.array(rows, np.int32)}))["logits"], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_every_token_has_the_same_weight_whatever_the_batches():
    trainer, params = made()
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 24, (2, 4, 32)).astype(np.int32)
    targets[:2, 3:] = -1  # the first batch has few tokens
    targets[3, 20:] = -1
    batches = [{"tokens": tokens[k : k + 2], "targets": targets[k : k + 2]} for k in (0, 2)]
    nothing = {"tokens": tokens[:2], "targets": np.full((2, 32), -1, np.int32)}
    found = score.text(trainer, params, [*batches, nothing], bytes_=100)
    each = np.take_along_axis(logp(tokens), np.maximum(targets, 0)[..., None], -1)[..., 0][targets >= 0]
    assert found.tokens == len(each) == 6 + 32 + 20
    # float32 sums of some 50 numbers of size 3
    assert found.loss == pytest.approx(-each.mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(-each.mean()), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(-each.sum() / math.log(2) / 100, rel=1e-5)
    with pytest.raises(InputError, match="no token"):
        score.text(trainer, params, [nothing])
    with pytest.raises(ConvergenceError, match="batch 0"):
        score.text(trainer, params | {"embed": params["embed"] * np.nan}, batches)


def test_accuracy_and_auc():
    assert score.accuracy([[1, 2], [3, 0], [0, 1], [5, 4]], [1, 0, 0, 0]) == 0.75
    assert score.auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert score.auc([1, 1, 1], [True, False, True]) == 0.5
    rng = np.random.default_rng(1)
    s, y = rng.integers(0, 9, 200) / 3, rng.random(200) < 0.3  # many ties
    pairs = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
    assert score.auc(s, y) == pytest.approx(pairs.mean(), abs=1e-12)
    for bad in (([1, 2], [True, True]), ([1, np.nan], [True, False])):
        with pytest.raises(InputError, match="both kinds"):
            score.auc(*bad)


def test_errors_of_numbers():
    truth = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [6.0, 5.0]])
    found = score.errors(truth + np.array([[1, 0], [-1, 0], [1, 2], [-1, 2]]), truth)
    np.testing.assert_allclose(found.rmse, [1, math.sqrt(2)])
    np.testing.assert_allclose(found.mae, [1, 1])
    assert found.r2[0] == pytest.approx(1 - 4 / 14) and np.isnan(found.r2[1])


@pytest.mark.parametrize("layout", ["", "dp=2 tp=2"])
def test_answers_are_scored_token_by_token(layout, eight):
    trainer, params = made(layout)
    contexts, answers = [[1, 2, 3], [4], [5, 6]], [[7, 8], [9], list(range(20))]
    found = score.likelihoods(trainer, params, contexts, answers, rows=2)
    for context, answer, value in zip(contexts, answers, found, strict=True):
        row = [*context, *answer]
        each = logp([row + [0] * (32 - len(row))])[0]
        steps = list(pairwise(row))[len(context) - 1 :]
        expected = sum(each[len(context) - 1 + k, new] for k, (_, new) in enumerate(steps))
        assert value == pytest.approx(expected, rel=1e-5)


def test_the_likeliest_answer_is_chosen_by_its_mean():
    trainer, params = made()
    after = logp([[1, 2, 3] + [0] * 29])[0, 2]
    best, worst = int(after.argmax()), int(after.argmin())
    questions = [([1, 2, 3], [[worst], [best]]), ([1, 2, 3], [[best], [worst], [worst]])]
    assert score.choices(trainer, params, questions).tolist() == [1, 0]
    with pytest.raises(InputError, match="pair 0"):
        score.likelihoods(trainer, params, [[1] * 30], [[1] * 4])
    with pytest.raises(InputError, match="pair 1"):
        score.likelihoods(trainer, params, [[1], []], [[1], [2]])

"""Batches of text and rows: what a target is, what is held out, that a stream goes on where it stopped; baselines."""

import json
from collections import Counter

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.data.packing import Packer
from gewu.train import baseline, samples
from gewu.train.samples import Bytes, RowStream, TextStream, labelled, lorenz, read_table, texts, windows, with_targets


def folder(path, n=40):
    path.mkdir()
    for k in range(n):
        (path / f"{k}.txt").write_text(f"document number {k} says " + "abcdefg "[: k % 8 + 1] * (k + 3))
    return str(path)


def source(tmp_path, share=0.2):
    return texts([folder(tmp_path / "texts")], "text", lambda _: Bytes(), share, 1)


def test_a_target_is_the_next_token_of_the_same_document():
    (row,) = Packer(8, eos=9).rows([[1, 2, 3], [4, 5]])
    found = with_targets({name: array[None] for name, array in row.items()})
    assert found["tokens"].tolist() == [[1, 2, 3, 9, 4, 5, 9]]
    assert found["targets"].tolist() == [[2, 3, 9, -1, 5, 9, -1]]
    assert found["segments"].tolist() == [[1, 1, 1, 1, 2, 2, 2]]
    assert found["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]


def test_every_document_is_on_one_side_and_equal_ones_on_the_same(tmp_path):
    found = source(tmp_path)
    assert len(found.train) + len(found.held) == 40 and 0 < len(found.held) < 20
    assert found.bytes_per_token == 1.0 and not found.refused
    documents = [
        (side, document) for side in (found.train, found.held) for document in side.batch(np.arange(len(side)))["tokens"]
    ]
    for side, document in documents:
        data = bytes(document.astype(np.uint8))
        assert samples.held_out(data, 0.2, 1) == (side is found.held)


def test_a_stream_goes_on_where_it_stopped_bit_by_bit(tmp_path):
    found = source(tmp_path)
    whole = TextStream(found, 4, 32, seed=3)
    batches = [next(whole) for _ in range(9)]
    first = TextStream(found, 4, 32, seed=3)
    for _ in range(4):
        next(first)
    rest = TextStream(found, 4, 32, seed=3, state=json.loads(json.dumps(first.state())))
    for want in batches[4:]:
        got = next(rest)
        assert all((got[name] == want[name]).all() for name in want)
    assert any((batches[0]["tokens"] != next(TextStream(found, 4, 32, seed=4))["tokens"]).ravel())


def test_one_epoch_trains_on_every_token_but_those_at_the_cuts(tmp_path):
    found = source(tmp_path)
    held = list(TextStream(found, 4, 32, seed=3).held(10**6))
    tokens = sum(len(document) + 1 for document in found.held.batch(np.arange(len(found.held)))["tokens"])
    counted = sum(int((batch["targets"] >= 0).sum()) for batch in held)
    rows = sum(int((batch["segments"][:, 0] > 0).sum()) for batch in held)
    # each document loses its first token as a target, each row at most one more, where a document goes on in the next row
    assert tokens - len(found.held) - rows <= counted <= tokens - len(found.held)
    assert all(batch["tokens"].shape == (4, 32) for batch in held)
    again = list(TextStream(found, 4, 32, seed=9).held(10**6))
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(held, again, strict=True))


def test_json_lines_and_a_long_text_are_documents_too(tmp_path):
    lines = tmp_path / "some.jsonl"
    lines.write_text("".join(json.dumps({"text": f"line {k}", "n": k}) + "\n" for k in range(5)))
    assert list(samples.documents(str(lines), "text", Counter())) == [f"line {k}" for k in range(5)]
    with pytest.raises(InputError, match=r"body.*text"):
        list(samples.documents(str(lines), "body", Counter()))
    long = tmp_path / "long.txt"
    long.write_text("".join(f"sentence {k}\n" for k in range(4000)))
    parts = list(samples.documents(str(long), "text", Counter()))
    assert "".join(parts) == long.read_text() and len(parts) == 4


def test_what_is_no_text_is_counted(tmp_path):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("good text")
    (tmp_path / "mixed" / "b.txt").write_bytes(b"bad \xff\x00\x9f")
    refused = Counter()
    assert list(samples.documents(str(tmp_path / "mixed"), "text", refused)) == ["good text"]
    assert refused.total() == 1


def test_nothing_to_hold_out_is_refused(tmp_path):
    with pytest.raises(InputError, match="held-out"):
        texts([folder(tmp_path / "few", 2)], "text", lambda _: Bytes(), 1e-6, 1)


def test_rows_are_standardised_by_the_training_part_and_shuffled_by_the_seed(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(3, 2, 200), "b": rng.normal(size=200), "kind": rng.choice(["x", "y", "z"], 200)}
    columns["a"][7] = np.nan
    rows = labelled(columns, ["a", "b"], "kind", rng.normal(size=(200, 4, 4, 1)), 0.25, 1, 2)
    assert rows.classes == ("x", "y", "z") and [item.tokens for item in rows.inputs] == [4, 2]
    table = rows.arrays["table"][~rows.held]
    assert np.allclose(np.nanmean(table, 0), 0, atol=1e-6) and np.allclose(np.nanstd(table, 0), 1, atol=1e-6)
    stream = RowStream(rows, 16, seed=5)
    batches = [next(stream) for _ in range(12)]
    other = RowStream(rows, 16, seed=5)
    next(other)
    rest = RowStream(rows, 16, seed=5, state=json.loads(json.dumps(other.state())))
    assert all((next(rest)["picture"] == want["picture"]).all() for want in batches[1:])
    held = list(stream.held(100))
    assert sum(int(batch["_count"]) for batch in held) == rows.held.sum() and {len(batch["label"]) for batch in held} == {16}


def test_windows_do_not_look_over_the_cut():
    x = np.arange(100.0)[:, None]
    rows = windows(x, 8, 3, 0.3, 4)
    value = rows.arrays["value"] * rows.scale[1] + rows.scale[0]
    assert value[~rows.held].max() < 70 <= value[rows.held].min() - 8
    assert rows.inputs[0].tokens == 2 and len(value) == (70 - 10) + (30 - 10)
    with pytest.raises(InputError, match="context"):
        windows(x, 40, 3, 0.3, 4)


def test_the_system_of_lorenz_is_integrated_to_fourth_order():
    found = lorenz(400)
    assert found.shape == (400, 3)
    # dx/dt = 10 (y - x), by central differences of second order in dt = 0.02: its error is dt^2 / 6 x''' ~ 1
    slope = (found[2:, 0] - found[:-2, 0]) / 0.04
    assert np.abs(slope - 10 * (found[1:-1, 1] - found[1:-1, 0])).max() < 4.0
    assert found[:, 0].min() < -5 and found[:, 0].max() > 5  # both wings of the attractor


def test_tables_are_read_and_damaged_ones_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("# a comment\nx,kind\n1.5,a\n,b\n")
    found = read_table(str(path))
    assert found["kind"].tolist() == ["a", "b"] and found["x"][0] == 1.5 and np.isnan(found["x"][1])
    path.write_text("x,y\n1,2\n3\n")
    with pytest.raises(InputError, match="row 2"):
        read_table(str(path))


def test_logistic_regression_is_at_its_optimum():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 4))
    label = (x @ [1.0, -2.0, 0.5, 0.0] + rng.logistic(size=300) > 0).astype(int)
    w = baseline.logistic(x, label, 2)
    one = np.concatenate([x, np.ones((300, 1))], 1)
    penalty = np.diag([1.0, 1, 1, 1, 1e-6])
    slope = one.T @ (baseline.softmax(one @ w) - np.eye(2)[label]) + penalty @ w
    assert np.abs(slope).max() < 1e-8
    assert (baseline.predict(x, w).argmax(1) == label).mean() > 0.75


def test_ridge_finds_the_weights_and_bigrams_the_entropy_of_a_chain():
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(500, 3)), rng.normal(size=(3, 2))
    assert np.allclose(baseline.ridge(x, x @ w + 1.5, 1e-9)[:3], w) and np.allclose(baseline.ridge(x, x @ w + 1.5, 1e-9)[3], 1.5)
    moves = rng.choice([1, 2], size=(64, 1001), p=[0.75, 0.25])
    chain = np.cumsum(moves, 1) % 7
    batch = {"tokens": chain[:, :-1].astype(np.int32), "targets": chain[:, 1:].astype(np.int32)}
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    # 32,000 pairs: the estimate's standard deviation is 0.48 / sqrt(32,000) = 0.003
    assert baseline.bigrams([{k: v[:32] for k, v in batch.items()}], [{k: v[32:] for k, v in batch.items()}], 7) == pytest.approx(
        entropy, abs=0.01
    )

"""Facts and Croissant metadata of a store: counted right, of the format's shape; values shown harmlessly whatever they hold."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError, StoreError
from gewu.data import card
from gewu.data.fields import Schema
from gewu.data.figures import EXCERPT, THUMBNAIL, shown
from gewu.data.storewriter import StoreWriter

pytest.importorskip("duckdb")
PIL = pytest.importorskip("PIL.Image")
COUNT = 150
SCHEMA = Schema.of(
    {"text": "text", "picture": "image", "forces": "float64[*,3]", "energy": "float64", "language": "text", "n": "int32?"},
    units={"forces": "eV/Å", "energy": "eV"},
    meanings={"energy": "total energy"},
)


def picture(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    PIL.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def sample(k: int) -> dict[str, Any]:
    rng = np.random.default_rng(k)
    text = "</pre><script>alert(1)</script> $title & \x00\u202e" * (k + 1)
    some = {"text": text, "picture": picture(40, 30), "forces": rng.normal(size=(k % 7 + 1, 3)), "energy": float(k)}
    return some | {"language": ("de", "en", "fr")[k % 3], "n": k if k % 2 else None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "a.store"
    with StoreWriter(path, SCHEMA, ("energy", "language", "n"), shard_bytes=200_000) as writer:
        for k in range(COUNT):
            writer.add(sample(k))
    return path


@pytest.fixture(scope="module")
def facts(root: Path) -> card.Facts:
    return card.describe(root, rows=3)


def test_the_facts_count_every_sample(facts: card.Facts) -> None:
    assert facts.snapshot.samples == COUNT
    assert facts.snapshot.shards > 1
    assert dict(facts.labels["language"]) == {"de": 50, "en": 50, "fr": 50}
    assert list(facts.histograms) == ["length", "energy", "n", "forces"]
    energy = facts.histograms["energy"]
    np.testing.assert_array_equal(energy.counts, np.histogram(np.arange(COUNT), card.BINS)[0])
    assert (energy.edges[0], energy.edges[-1], energy.unit, energy.meaning) == (0.0, COUNT - 1.0, "eV", "total energy")
    assert facts.histograms["n"].counts.sum() == COUNT // 2
    length = facts.histograms["length"]
    assert length.counts.sum() == COUNT
    np.testing.assert_allclose(np.diff(np.log(length.edges)), np.log(length.edges[1] / length.edges[0]))
    forces = np.concatenate([sample(k)["forces"].ravel() for k in range(COUNT)])
    np.testing.assert_array_equal(facts.histograms["forces"].counts, np.histogram(forces, card.BINS)[0])
    assert [shown["energy"] for shown in facts.samples] == [0.0, 74.0, 149.0]


def test_numbers_that_are_not_finite_and_columns_of_one_value_are_counted(tmp_path: Path) -> None:
    schema = Schema.of({"x": "float64", "one": "int8", "none": "float32?", "yes": "bool", "v": "float32[*]"})
    with StoreWriter(tmp_path / "b.store", schema, ("x", "one", "none", "yes")) as writer:
        for x in (np.nan, np.inf, 1.0, 2.0):
            writer.add({"x": float(x), "one": 7, "none": None, "yes": x == 1, "v": np.float32([x])})
    facts = card.describe(tmp_path / "b.store")
    assert (facts.histograms["x"].counts.sum(), facts.histograms["x"].edges[0], facts.histograms["x"].edges[-1]) == (2, 1.0, 2.0)
    assert facts.histograms["one"].counts[0] == 4
    assert "none" not in facts.histograms
    assert facts.histograms["v"].counts.sum() == 2
    assert facts.labels["yes"] == [("false", 3), ("true", 1)]


def test_a_text_column_of_many_values_is_not_listed(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "c.store", Schema.of({"id": "text"}), ("id",)) as writer:
        for k in range(3 * card.MOST_VALUES):
            writer.add({"id": f"sample {k}"})
    assert card.describe(tmp_path / "c.store").labels == {}


def test_no_store_and_a_damaged_one_are_refused(tmp_path: Path, root: Path) -> None:
    with pytest.raises(InputError, match="holds no version"):
        card.describe(tmp_path)
    with pytest.raises(InputError, match="no such version"):
        card.describe(root, version=9)
    with StoreWriter(tmp_path / "d.store", Schema.of({"n": "int64"})) as writer:
        writer.add({"n": 1})
    (version,) = (tmp_path / "d.store" / "versions").glob("*.json")
    version.write_bytes(version.read_bytes().replace(b'"samples": 1', b'"samples": 2'))
    with pytest.raises(StoreError, match="damaged"):
        card.describe(tmp_path / "d.store")


REQUIRED = {  # of the Croissant specification 1.0, by class
    "sc:Dataset": {"@context", "@type", "conformsTo", "description", "license", "name", "url", "creator", "datePublished"},
    "cr:FileObject": {"@id", "@type", "name", "contentUrl", "contentSize", "encodingFormat", "sha256"},
    "cr:FileSet": {"@id", "@type", "name", "includes", "encodingFormat"},
    "cr:RecordSet": {"@id", "@type", "field"},
    "cr:Field": {"@id", "@type", "name", "dataType", "source"},
}
DATA_TYPES = {"sc:Text", "sc:Integer", "sc:Float", "sc:Boolean", "sc:ImageObject", "sc:MediaObject"}


def check_croissant(about: dict[str, Any]) -> None:
    """Assert what the specification asks of the shape of metadata, by its own rules and no code of gewu."""
    ids: dict[str, str] = {}

    def visit(node: dict[str, Any]) -> None:
        assert REQUIRED[node["@type"]] <= node.keys(), node
        if "@id" in node:
            assert node["@id"] not in ids, f"two nodes are {node['@id']}"
            ids[node["@id"]] = node["@type"]
        for child in (*node.get("distribution", ()), *node.get("recordSet", ()), *node.get("field", ())):
            visit(child)

    visit(about)
    assert about["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert about["@context"]["@vocab"] == "https://schema.org/"
    assert about["@context"]["cr"] == "http://mlcommons.org/croissant/"
    for record in about["recordSet"]:
        for field in record["field"]:
            assert field["dataType"] in DATA_TYPES
            assert ids[field["source"]["fileSet"]["@id"]] == "cr:FileSet"
            assert field["source"]["extract"] == {"column": field["name"]}


def test_the_metadata_have_the_shape_of_croissant(root: Path, facts: card.Facts) -> None:
    more = {"license": "CC0-1.0", "url": "https://example.org/a", "creator": {"@type": "sc:Person", "name": "A"}}
    about = card.metadata(facts, "a", "A try", **more, datePublished="2026-01-31", citeAs="")
    check_croissant(json.loads(json.dumps(about)))
    assert "citeAs" not in about
    files = {node["@id"]: node for node in about["distribution"] if node["@type"] == "cr:FileObject"}
    assert len(files) == facts.snapshot.shards + 1
    for place, node in files.items():
        data = (root / place).read_bytes()
        assert (node["sha256"], node["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")
    sets = [node for node in about["distribution"] if node["@type"] == "cr:FileSet"]
    assert [len(list(root.glob(node["includes"]))) for node in sets] == [facts.snapshot.shards] * 2
    samples, catalogue = about["recordSet"]
    fields = {field["name"]: field for field in samples["field"]}
    assert fields["energy"]["description"] == "total energy; type float64; unit eV"
    assert (fields["forces"]["dataType"], fields["forces"]["repeated"]) == ("sc:Float", True)
    assert (fields["picture"]["dataType"], fields["n"]["dataType"]) == ("sc:ImageObject", "sc:Integer")
    assert [field["name"] for field in catalogue["field"]] == ["length", "hash", "energy", "language", "n"]


def drawn(text: str) -> Any:
    head, _, data = text.partition("base64,")
    assert head == "data:image/png;"
    return PIL.open(io.BytesIO(base64.b64decode(data)))


def test_long_values_are_cut_and_pictures_shrunk() -> None:
    assert len(shown("x" * 10**6)) < 2 * EXCERPT
    assert shown(np.arange(100.0)).startswith("float64[100]: 0, 1, 2, ")
    assert len(shown(np.arange(10.0**6))) < 200
    assert (shown(None), shown(2.5), shown(["a"])) == ("None", "2.5", "['a']")
    assert drawn(shown(picture(600, 300))).size == (THUMBNAIL, THUMBNAIL // 2)


@pytest.mark.parametrize("spoil", [lambda data: data[:40], lambda data: b"", lambda data: b"<svg onload=alert(1)>" * 9])
def test_bytes_that_are_no_picture_are_counted_not_drawn(spoil: Any) -> None:
    data = spoil(picture(40, 30))
    assert shown(data) == f"{len(data):,} bytes"


def test_a_picture_that_claims_a_billion_points_is_not_drawn() -> None:
    sink = io.BytesIO()
    PIL.new("1", (1, 1)).save(sink, "PNG")
    head = bytearray(sink.getvalue())
    head[16:24] = (100_000).to_bytes(4, "big") * 2
    assert shown(bytes(head)) == f"{len(head):,} bytes"

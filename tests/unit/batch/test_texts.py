"""Texts, pairs of image and text, kept columns: the vectors that the encoder gives, and nothing lost on the way."""

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import formula
from kit.inputs import draw_photos
from kit.jobs import embed_job

import clip
from clip.batch import part_in_work as part_module
from clip.batch.verify import verify
from clip.encoder import Encoder
from clip.errors import InputError, StoreError, StoreMismatchError, TooManyFailuresError
from clip.jobs.export import ExportJob
from clip.jobs.options import Columns
from clip.jobs.verify import VerifyJob
from clip.records import Item, Row
from clip.sources.source import Source
from clip.store.export import export
from clip.store.manifest import Manifest, write_manifest
from clip.store.part_writer import PartWriter
from clip.store.parts import Parts, embedding_schema
from clip.store.plan import write_plan
from clip.store.writer import StoreWriter
from clip.text.tokens import MAX_WORD, Tokenized, Tokenizing

TEXTS = [
    "a red boat",
    "",
    "Ein Müller & 犬 🐕",
    "two  dogs\ton a beach",
    'a, "quoted" one',
    *(f"number {n}" for n in range(9)),
]
LONG = "very " * 90 + "long"


@pytest.fixture(scope="module")
def encoder(text_weights: Path) -> Encoder:
    return Encoder(str(text_weights), device="cpu", threads=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image for each text, of which the last is none."""
    names = [f"{n}.png" for n in range(len(TEXTS))]
    return draw_photos(tmp_path_factory.mktemp("pairs") / "photos", names[:-1], wider=1, broken=names[-1:])


def embedded(
    output: Path, text_weights: Path, *inputs: str | Path, **choices: Any
) -> tuple[pa.Table, list[dict[str, Any]]]:
    choices = {"threads": 1, "shard_size": 4} | choices
    report = clip.embed(embed_job(source=inputs, output=output, model=str(text_weights), **choices))
    rows, failures = pq.read_table(output / "embeddings"), pq.read_table(output / "failures").to_pylist()
    assert (report.read, report.written, report.failed) == (rows.num_rows + len(failures), rows.num_rows, len(failures))
    return rows, failures


def unit(features: Any) -> np.ndarray:
    vectors = features.float().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors_in(rows: pa.Table, column: str = "embedding") -> np.ndarray:
    return np.array(rows.column(column).to_pylist(), np.float32)


def write_rows(path: Path, columns: dict[str, list[Any]]) -> Path:
    """A list or a table of these columns, by the path's ending."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path, row_group_size=5)
    elif path.suffix == ".ndjson":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(f"{text}\n" for text in next(iter(columns.values()))))
    return path


@pytest.mark.parametrize("ending", ["txt", "csv", "tsv", "ndjson", "parquet"])
def test_texts_of_each_form_have_the_encoders_vectors(
    text_weights: Path, encoder: Encoder, tmp_path: Path, ending: str
) -> None:
    path = write_rows(tmp_path / f"captions.{ending}", {"caption": TEXTS, "key": [f"k{n}" for n in range(len(TEXTS))]})
    rows, failures = embedded(tmp_path / "out", text_weights, path, texts=True)
    assert not failures
    assert rows.column_names == ["id", "path", "embedding", "text"]
    assert rows.column("id").to_pylist() == [f"captions.{ending}!{n}" for n in range(len(TEXTS))]
    assert rows.column("text").to_pylist() == TEXTS
    assert np.abs(vectors_in(rows) - unit(encoder.encode_text(TEXTS))).max() < 1e-5
    assert len(list((tmp_path / "out/embeddings").iterdir())) == 4, "14 texts in shards of 4"
    if ending != "txt":
        rows, _ = embedded(tmp_path / "keyed", text_weights, path, texts=True, column="caption", id_column="key")
        assert rows.column("id").to_pylist() == [f"k{n}" for n in range(len(TEXTS))]


def test_the_vectors_are_those_of_the_model_that_load_gives(text_weights: Path, tmp_path: Path) -> None:
    rows, _ = embedded(
        tmp_path / "out", text_weights, write_rows(tmp_path / "a.txt", {"": TEXTS}), texts=True, normalize=False
    )
    model, _ = clip.load(str(text_weights), device="cpu")
    expected = model.encode_text(clip.tokenize(TEXTS)).detach().numpy()
    assert np.abs(vectors_in(rows) - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


def test_a_line_is_a_text_whatever_ends_it(text_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\n two \nthree".encode())
    rows, _ = embedded(tmp_path / "out", text_weights, tmp_path / "a.txt", texts=True)
    assert rows.column("text").to_pylist() == ["one", "", " two ", "three"]


def test_texts_on_stdin_and_in_several_files_by_a_pattern(text_weights: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "clip",
        "embed",
        "-",
        "--text",
        "-o",
        str(tmp_path / "out"),
        "-m",
        str(text_weights),
    ]
    ran = subprocess.run(command, input="a\nb\n", text=True, stderr=subprocess.PIPE, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "listed 2 texts, the first '-!0' ('a')" in ran.stderr
    assert "texts/s" in ran.stderr
    assert pq.read_table(tmp_path / "out/embeddings").column("id").to_pylist() == ["-!0", "-!1"]
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "c.csv", {"text": [f"{name}0", f"{name}1"]})
    rows, _ = embedded(tmp_path / "several", text_weights, str(tmp_path / "*/c.csv"), texts=True)
    assert rows.column("id").to_pylist() == ["a/c.csv!0", "a/c.csv!1", "b/c.csv!0", "b/c.csv!1"]
    assert rows.column("text").to_pylist() == ["a0", "a1", "b0", "b1"]


def test_texts_that_cannot_be_read_are_failure_rows(text_weights: Path, encoder: Encoder, tmp_path: Path) -> None:
    word = "x" * (MAX_WORD + 1)
    path = write_rows(tmp_path / "a.ndjson", {"text": ["good", None, 7, LONG, word, "also good"]})
    (tmp_path / "latin.csv").write_bytes("text\ncafé\n".encode("latin-1"))
    rows, failures = embedded(tmp_path / "out", text_weights, path, tmp_path / "latin.csv", texts=True)
    assert rows.column("id").to_pylist() == ["a.ndjson!0", "a.ndjson!5"]
    assert [(row["id"], row["error"]) for row in failures] == [
        ("a.ndjson!1", "InputError"),
        ("a.ndjson!2", "InputError"),
        ("a.ndjson!3", "TextTooLongError"),
        ("a.ndjson!4", "InputError"),
        ("latin.csv!0", "InputError"),
    ]
    for row, told in zip(
        failures, ["no text", "no text", "more than 77 tokens", "a word of 10,001 characters", "not UTF-8"], strict=True
    ):
        assert told in row["message"]
    rows, failures = embedded(tmp_path / "cut", text_weights, path, texts=True, long_text="cut")
    assert len(failures) == 3
    expected = unit(encoder.encode_text(clip.tokenize([LONG], truncate=True)))
    assert np.abs(vectors_in(rows)[1] - expected[0]).max() < 1e-5
    assert rows.column("text").to_pylist()[1] == LONG, "the whole text is told"
    with pytest.raises(TooManyFailuresError, match="of 6 texts failed"):
        embedded(tmp_path / "stopped", text_weights, path, texts=True, max_failures="2")


def test_a_text_that_is_cut_has_a_warning_in_its_row_and_is_counted(
    text_weights: Path, photos: Path, tmp_path: Path
) -> None:
    warning = "the text has more than 77 tokens, and its tail is left out"
    fits = "a " * 75  # the tokens that there is room for
    (tmp_path / "7.png").write_bytes((photos / "7.png").read_bytes() + b"behind the image")
    paths = [*(str(photos / f"{n}.png") for n in (0, 1)), str(tmp_path / "7.png"), str(photos / "2.png")]
    path = write_rows(tmp_path / "a.csv", {"file": paths, "said": [LONG, fits, LONG, fits + "a"]})
    for kind in ({"texts": True, "column": "said"}, {"text_column": "said"}):
        choices = {"threads": 1, "long_text": "cut", "keep": ("file",), "shard_size": 3, **kind}
        job = embed_job(source=path, output=tmp_path / "".join(kind), model=str(text_weights), **choices)
        assert clip.embed(job).warned == 3
        rows = pq.read_table(tmp_path / "".join(kind) / "embeddings")
        told = rows.column("warning").to_pylist()
        assert told[:2] == [warning, None]
        assert told[3] == warning
        behind = "16 bytes behind the end of the image (other data) are left out; " if "text_column" in kind else ""
        assert told[2] == behind + warning
        assert rows.column("file").to_pylist() == paths
        assert clip.embed(job).resumed == 4
        assert not verify(VerifyJob(output=tmp_path / "".join(kind), sample=4)).problems
    rows, _ = embedded(tmp_path / "whole", text_weights, path, texts=True, column="said")
    assert "warning" not in rows.column_names, "where nothing is cut"


def test_an_output_of_cut_texts_without_the_column_is_resumed_as_it_is(tmp_path: Path) -> None:
    manifest = Manifest(dim=4, columns=Columns(texts=True), long_text="cut", run="a")
    assert embedding_schema(Manifest.from_json(manifest.to_json())).names == ["id", "path", "embedding", "text"]
    newer = replace(manifest, text_warnings=True)
    assert embedding_schema(Manifest.from_json(newer.to_json())).names[-2:] == ["warning", "text"]
    write_manifest(tmp_path, manifest)
    assert StoreWriter(tmp_path, newer).schema == embedding_schema(manifest)


@pytest.mark.parametrize("form", ["csv", "ndjson", "parquet", "bytes", "struct"])
def test_pairs_have_the_vectors_of_their_pictures_and_of_their_texts(
    text_weights: Path, encoder: Encoder, photos: Path, tmp_path: Path, form: str
) -> None:
    paths = [photos / f"{n}.png" for n in range(len(TEXTS))]
    image: list[Any] = [str(path) for path in paths]
    if form == "bytes":
        image = [path.read_bytes() for path in paths]
    elif form == "struct":
        image = [{"bytes": path.read_bytes() if n % 2 else None, "path": str(path)} for n, path in enumerate(paths)]
    texts: list[str | None] = [LONG if n == 3 else None if n == 5 and form != "csv" else t for n, t in enumerate(TEXTS)]
    ending = form if form in ("csv", "ndjson") else "parquet"
    path = write_rows(
        tmp_path / f"a.{ending}", {"image": image, "key": list(map(str, range(len(TEXTS)))), "said": texts}
    )
    rows, failures = embedded(tmp_path / "out", text_weights, path, column="image", text_column="said", id_column="key")
    last = len(TEXTS) - 1  # which is no image
    bad = [3, last] if form == "csv" else [3, 5, last]
    assert [int(row["id"]) for row in failures] == bad
    good = [n for n in range(len(TEXTS)) if n not in bad]
    assert list(map(int, rows.column("id").to_pylist())) == good
    assert rows.column("text").to_pylist() == [TEXTS[n] for n in good]
    assert np.abs(vectors_in(rows, "text_embedding") - unit(encoder.encode_text([TEXTS[n] for n in good]))).max() < 1e-5
    assert np.abs(vectors_in(rows) - encoder.embed([paths[n] for n in good])).max() < 1e-5
    report = verify(VerifyJob(output=tmp_path / "out", sample=20))
    assert (report.sampled, report.problems) == (len(TEXTS), ())
    assert report.min_cosine is not None
    assert report.min_cosine > 0.99999


def test_all_frames_of_a_pair_have_its_text(text_weights: Path, tmp_path: Path) -> None:
    frames = [formula.picture(n, 40, 30) for n in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    path = write_rows(tmp_path / "a.csv", {"image": [str(tmp_path / "a.gif")], "text": ["moving"]})
    rows, _ = embedded(tmp_path / "out", text_weights, path, text_column="text", frames="all")
    assert rows.num_rows == 3
    assert len(np.unique(vectors_in(rows, "text_embedding"), axis=0)) == 1
    assert len(np.unique(vectors_in(rows), axis=0)) == 3


@pytest.mark.parametrize("isolate", [False, True])
def test_kept_columns_of_lists_are_texts_and_those_of_tables_have_their_types(
    text_weights: Path, photos: Path, tmp_path: Path, isolate: bool
) -> None:
    paths = [str(photos / f"{n}.png") for n in range(4)]
    (tmp_path / "a.ndjson").write_text(
        "".join(
            json.dumps({"path": path, "tag": tag}) + "\n"
            for path, tag in zip(paths, ["é", 1.5, {"a": [1]}, None], strict=True)
        )
    )
    rows, _ = embedded(tmp_path / "list", text_weights, tmp_path / "a.ndjson", keep=("tag",), isolate=isolate)
    assert rows.column("tag").to_pylist() == ["é", "1.5", '{"a": [1]}', None]
    made = datetime(2024, 5, 17, 12, 30, 0, 250_000)
    held: dict[str, Any] = {
        "n": pa.array([1, None, 3, 4], pa.int16()),
        "score": pa.array([0.1, 1e300, -0.0, float("nan")], pa.float64()),
        "made": pa.array([made, None, made, made], pa.timestamp("us")),
        "day": pa.array([date(2024, 5, 17)] * 4, pa.date32()),
        "ok": pa.array([True, False, None, True]),
        "tag": pa.array(["a", "b", "a", None]).dictionary_encode(),
        "price": pa.array([Decimal("1.50")] * 4, pa.decimal128(10, 2)),
        "image": pa.array([Path(path).read_bytes() for path in paths]),
    }
    pq.write_table(pa.table(held), tmp_path / "a.parquet")
    keep = ("score", "n", "made", "day", "ok", "tag", "price")
    rows, _ = embedded(tmp_path / "table", text_weights, tmp_path / "a.parquet", keep=keep, isolate=isolate)
    assert rows.column_names[-len(keep) :] == list(keep)
    for name in ("score", "n", "ok"):
        assert rows.schema.field(name).type == held[name].type, name
        assert str(rows.column(name).to_pylist()) == str(held[name].to_pylist())
    assert rows.column("made").to_pylist() == ["2024-05-17 12:30:00.250000", None, *["2024-05-17 12:30:00.250000"] * 2]
    assert rows.column("day").to_pylist() == ["2024-05-17"] * 4
    assert rows.column("tag").to_pylist() == ["a", "b", "a", None]
    assert rows.column("price").to_pylist() == ["1.50"] * 4
    assert not verify(VerifyJob(output=tmp_path / "table", sample=4)).problems


KEPT_ROWS = st.lists(
    st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.floats(width=32), st.none() | st.text()),
    min_size=1,
    max_size=6,
)


@given(KEPT_ROWS)
@settings(max_examples=60, deadline=None)
def test_a_kept_value_comes_through_the_plan_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int | None, float | None, str | None]]
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    integers, floats, texts = map(list, zip(*rows, strict=True))
    held = {"n": pa.array(integers, pa.int64()), "x": pa.array(floats, pa.float32()), "t": pa.array(texts, pa.string())}
    pq.write_table(pa.table({"path": ["a.png"] * len(rows), **held}), folder / "a.parquet")
    source = Source((str(folder / "a.parquet"),), columns=Columns(keep=tuple(held))).with_types()
    plan = write_plan(folder, source.shards(9, Counter()), Counter())
    made = [
        Row("a", "a.png", 1, 1, "PNG", 1, values=entry.values)
        for entry in plan.shard(0).entries
        if isinstance(entry, Item)
    ]
    schema = embedding_schema(Manifest(dim=1, columns=source.columns))
    (folder / "embeddings").mkdir()
    (folder / "failures").mkdir()
    with PartWriter(Parts(folder, schema, ""), plan.shard(0)) as part:
        part.add(made, {"embedding": np.zeros((len(made), 1), np.float32)}, [])
    stored = pq.read_table(folder / "embeddings")
    for name, column in held.items():
        assert stored.column(name).type == column.type
        assert str(stored.column(name).to_pylist()) == str(column.to_pylist())


@pytest.mark.parametrize(
    ("name", "columns", "choices", "told"),
    [
        ("a.txt", {"": ["x.png"]}, {"keep": ("tag",)}, "has no column 'tag', as plain lists have none"),
        ("a.csv", {"path": ["x.png"], "a": ["b"]}, {"keep": ("tag",)}, "has no column 'tag' among path, a"),
        (
            "a.csv",
            {"text": ["x"], "a": ["b"]},
            {"texts": True, "column": "caption"},
            "has no column 'caption' among text, a",
        ),
        (
            "a.csv",
            {"text": ["x"], "caption": ["b"]},
            {"texts": True},
            "2 columns that may be the texts among text, caption",
        ),
        ("a.parquet", {"path": ["x.png"], "a": ["b"]}, {"keep": ("tag",)}, "has no column 'tag' among path, a"),
        (
            "a.parquet",
            {"path": ["x.png"], "a": [[1]]},
            {"keep": ("a",)},
            "is of list<.*expected texts, numbers or times",
        ),
        ("a.parquet", {"path": ["x.png"], "a": [b"b"]}, {"keep": ("a",)}, "is of binary, expected texts, numbers"),
        (
            "a.parquet",
            {"path": ["x.png"], "a": [1]},
            {"text_column": "a"},
            "'a' is of int64, expected texts.*columns.text",
        ),
        ("a.parquet", {"text": [1]}, {"texts": True}, "'text' is of int64, expected texts.*columns.entry"),
    ],
)
def test_columns_that_are_not_there_are_told(
    text_weights: Path, tmp_path: Path, name: str, columns: dict[str, list[Any]], choices: dict[str, Any], told: str
) -> None:
    path = write_rows(tmp_path / name, columns)
    with pytest.raises(InputError, match=told):
        embedded(tmp_path / "out", text_weights, path, **choices)


def test_what_has_no_columns_is_refused_where_they_are_asked_for(
    text_weights: Path, photos: Path, tmp_path: Path
) -> None:
    for source in (photos, photos / "0.png", str(photos / "*.png")):
        for choices in ({"keep": ("tag",)}, {"text_column": "said"}, {"texts": True}):
            with pytest.raises(InputError, match=r"found neither a list nor a table, expected|matches no"):
                embedded(tmp_path / "out", text_weights, source, **choices)
    typed = write_rows(tmp_path / "a.parquet", {"path": [str(photos / "0.png")], "n": [1]})
    listed = write_rows(tmp_path / "b.csv", {"path": [str(photos / "1.png")], "n": ["one"]})
    with pytest.raises(InputError, match="'n' holds texts, as in every list, expected int64"):
        embedded(tmp_path / "out", text_weights, typed, listed, keep=("n",))
    rows, _ = embedded(tmp_path / "out", text_weights, listed, typed, keep=("n",))
    assert rows.column("n").to_pylist() == ["one", "1"]


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"texts": True, "isolate": True}, "texts: found options of images too. Leave out isolate"),
        ({"texts": True, "text_column": "a"}, r"texts: found options of images too. Leave out columns\.text"),
        ({"texts": True, "orient": "exif"}, r"texts: found options of images too. Leave out decode\.orient"),
        ({"keep": ("Width", "kept_width")}, "keep: found 'kept_width', which it has already"),
        ({"keep": ("a", "a")}, "keep: found 'a'"),
        ({"long_text": "other"}, "long_text: found 'other'"),
    ],
)
def test_options_that_do_not_go_together(choices: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        embed_job(source="a.csv", output="out", **choices)


def test_later_tables_are_cast_to_the_types_of_the_first(text_weights: Path, photos: Path, tmp_path: Path) -> None:
    def table(name: str, numbers: pa.Array) -> Path:
        images = [(photos / f"{n}.png").read_bytes() for n in range(len(numbers))]
        pq.write_table(pa.table({"image": images, "n": numbers}), tmp_path / name)
        return tmp_path / name

    first, second = (
        table("a.parquet", pa.array([1, 2], pa.int32())),
        table("b.parquet", pa.array([3, None], pa.int16())),
    )
    rows, failures = embedded(tmp_path / "out", text_weights, first, second, keep=("n",))
    assert (rows.column("n").to_pylist(), failures) == ([1, 2, 3, None], [])
    assert rows.schema.field("n").type == pa.int32()
    third = table("c.parquet", pa.array(["4", "70"]))
    rows, _ = embedded(tmp_path / "texts", text_weights, third, first, keep=("n",))
    assert rows.column("n").to_pylist() == ["4", "70", "1", "2"]
    for other in (third, table("d.parquet", pa.array([4, 5], pa.int64())), table("e.parquet", pa.array([0.5]))):
        with pytest.raises(InputError, match=r"column 'n' is of .*, expected int32 as in the first table"):
            embedded(tmp_path / "refused", text_weights, first, other, keep=("n",))


def test_tables_that_are_read_by_other_columns_are_another_input(
    text_weights: Path, photos: Path, tmp_path: Path
) -> None:
    images = [(photos / f"{n}.png").read_bytes() for n in range(3)]
    columns = {"image": images, "one": ["a", "b", "c"], "two": ["d", "e", "f"], "key": ["x", "y", "z"]}
    path = write_rows(tmp_path / "a.parquet", columns)
    choices: dict[str, Any] = {"text_column": "one", "keep": ("key", "two")}
    embedded(tmp_path / "out", text_weights, path, **choices)
    others = {
        "keep is": {"text_column": "two", "keep": ("key", "one")},
        'changed since, as its id_column was null and is "key"': {**choices, "id_column": "key"},
        'changed since, as its text_column was "one" and is "two"': {**choices, "text_column": "two"},
    }
    for told, other in others.items():
        with pytest.raises(StoreMismatchError, match=told):
            embedded(tmp_path / "out", text_weights, path, **other)
    with pytest.raises(StoreMismatchError, match="keep is"):
        embedded(tmp_path / "out", text_weights, path, **choices | {"keep": ("two", "key")})
    rows, _ = embedded(tmp_path / "out", text_weights, path, **choices | {"id_column": "key"}, update=True)
    assert rows.column("id").to_pylist() == ["x", "y", "z"]


def test_a_bad_value_in_a_table_costs_its_own_row_only(text_weights: Path, photos: Path, tmp_path: Path) -> None:
    bad = pa.array([b"good", b"caf\xe9", b"fine", None]).view(pa.string())
    images = [(photos / f"{n}.png").read_bytes() for n in range(4)]
    table = pa.table({"image": images, "said": bad, "key": bad})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, failures = embedded(tmp_path / "pairs", text_weights, tmp_path / "a.parquet", text_column="said")
    assert rows.column("text").to_pylist() == ["good", "fine"]
    assert [row["id"] for row in failures] == ["a.parquet!1", "a.parquet!3"]
    rows, failures = embedded(tmp_path / "kept", text_weights, tmp_path / "a.parquet", keep=("said",), id_column="key")
    assert rows.column("said").to_pylist() == ["good", "caf\\xe9", "fine"]
    assert rows.column("id").to_pylist() == ["good", "caf\\xe9", "fine"]
    assert [(row["id"], row["message"][:17]) for row in failures] == [("a.parquet!3", "its row has no id")]
    rows, failures = embedded(tmp_path / "texts", text_weights, tmp_path / "a.parquet", texts=True, column="said")
    assert [row["id"] for row in failures] == ["a.parquet!1", "a.parquet!3"]


def test_half_a_character_in_json_is_a_failure_row_or_spelt_out(
    text_weights: Path, photos: Path, tmp_path: Path
) -> None:
    path = str(photos / "0.png")
    (tmp_path / "a.ndjson").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in (
                {"path": path, "text": "\ud800 x", "key": "\ud800", "tag": "\udfff"},
                {"path": "\ud800.png", "text": "good", "key": "b", "tag": {"deep": "\ud800"}},
                {"path": path, "text": ["a", "b"], "key": "c", "tag": "\0"},
            )
        )
    )
    given: dict[str, Any] = {"id_column": "key", "keep": ("tag",)}
    rows, failures = embedded(
        tmp_path / "texts", text_weights, tmp_path / "a.ndjson", texts=True, column="text", **given
    )
    assert rows.column("text").to_pylist() == ["good"]
    assert [row["id"] for row in failures] == ["\\xed\\xa0\\x80", "c"], "a list is no text"
    rows, failures = embedded(tmp_path / "pairs", text_weights, tmp_path / "a.ndjson", text_column="text", **given)
    assert rows.num_rows == 0
    rows, failures = embedded(tmp_path / "images", text_weights, tmp_path / "a.ndjson", column="path", **given)
    assert rows.column("tag").to_pylist() == ["\\xed\\xbf\\xbf", "\0"]
    assert [row["id"] for row in failures] == ["b"]


def test_a_pathological_text_is_not_encoded_to_its_end() -> None:
    word = "".join(chr(97 + n * n % 26) for n in range(9_000))
    texts = {"fail": f"{word}\x1f{word}\x1f{word}", "cut": f"{word} {word}" * 200}
    for choice, text in texts.items():
        found = Tokenizing("texts", 77, choice)(Item("a", "a.txt", 1, values=(text,)))  # type: ignore[arg-type]
        if choice == "fail":
            assert not isinstance(found, Tokenized)
        else:
            assert isinstance(found, Tokenized)
            assert np.array_equal(found.ids, clip.tokenize([word], truncate=True)[0].numpy())


def test_repeated_ids_are_compared_with_their_own_rows(text_weights: Path, photos: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", {"file": [str(photos / "0.png")] * 3, "said": ["one", "two", "three"]})
    embedded(tmp_path / "out", text_weights, path, text_column="said", duplicate_ids="keep")
    assert not verify(VerifyJob(output=tmp_path / "out", sample=3)).problems


def test_utf_16_is_read_by_its_mark_and_repeated_columns_are_told(text_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\ntwo\n".encode("utf-16"))
    rows, _ = embedded(tmp_path / "out", text_weights, tmp_path / "a.txt", texts=True)
    assert rows.column("text").to_pylist() == ["one", "two"]
    (tmp_path / "a.txt").write_bytes("one\ntwo\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="looks like UTF-16 without a byte order mark, expected UTF-8"):
        embedded(tmp_path / "out", text_weights, tmp_path / "a.txt", texts=True)
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    with pytest.raises(InputError, match="has 2 columns 'text' among text, text, expected one"):
        embedded(tmp_path / "out", text_weights, tmp_path / "a.csv", texts=True, column="text")


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.bool_(), pa.null(), pa.decimal128(9, 2), pa.date32()),
        *(pa.date64(), pa.timestamp("ns"), pa.timestamp("s", "Europe/Berlin"), pa.time32("ms"), pa.time64("ns")),
        *(pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())),
        *(pa.duration("s"), pa.binary(), pa.binary(4), pa.list_(pa.int8()), pa.struct([("a", pa.int8())])),
    ],
    ids=str,
)
def test_a_column_of_any_type_is_kept_or_refused_before_the_run(
    text_weights: Path, photos: Path, tmp_path: Path, kind: pa.DataType
) -> None:
    values = {"date32[day]": [2_932_897, None], "bool": [True, None], "decimal128(9, 2)": [Decimal("1.5"), None]}
    if pa.types.is_nested(kind) or str(kind).startswith(("fixed", "binary", "duration")):
        column = pa.array([None, None], kind)
    elif pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        column = pa.array([40_000_001, None], width).cast(kind)
    elif pa.types.is_dictionary(kind) or "string" in str(kind):
        column = pa.array(["a", None]).cast(kind)
    else:
        column = pa.array(values.get(str(kind), [None if pa.types.is_null(kind) else 7, None]), kind)
    images = [(photos / f"{n}.png").read_bytes() for n in range(2)]
    pq.write_table(pa.table({"image": images, "n": column}), tmp_path / "a.parquet")
    if pa.types.is_nested(kind) or str(kind).startswith(("fixed", "binary", "duration")):
        with pytest.raises(InputError, match="expected texts, numbers or times to keep"):
            embedded(tmp_path / "out", text_weights, tmp_path / "a.parquet", keep=("n",))
        return
    rows, failures = embedded(tmp_path / "out", text_weights, tmp_path / "a.parquet", keep=("n",))
    assert (rows.num_rows, failures) == (2, [])
    assert rows.column("n").to_pylist()[1] is None
    assert clip.Store(tmp_path / "out").table().num_rows == 2
    assert not verify(VerifyJob(output=tmp_path / "out", sample=2)).problems
    for form in ("npy", "csv"):
        export(ExportJob(output=tmp_path / "out", target=tmp_path / form, format=form))  # type: ignore[arg-type]


def test_a_kept_value_alone_tells_one_input_from_another(text_weights: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", {"text": ["one", "two"], "tag": ["a", "b"]})
    embedded(tmp_path / "out", text_weights, path, texts=True, keep=("tag",))
    write_rows(path, {"text": ["one", "two"], "tag": ["a", "c"]})
    with pytest.raises(StoreMismatchError, match="1 changed since"):
        embedded(tmp_path / "out", text_weights, path, texts=True, keep=("tag",))


def test_a_text_or_a_kept_value_that_changed_is_done_again_and_no_other(text_weights: Path, tmp_path: Path) -> None:
    columns = {"text": list(TEXTS), "key": [f"k{n}" for n in range(len(TEXTS))], "tag": ["a"] * len(TEXTS)}
    path = write_rows(tmp_path / "a.csv", columns)
    choices: dict[str, Any] = {"texts": True, "id_column": "key", "keep": ("tag",), "long_text": "cut"}
    embedded(tmp_path / "out", text_weights, path, **choices)
    parts = [part.stat().st_ino for part in sorted((tmp_path / "out/embeddings").iterdir())]
    columns["text"][5], columns["tag"][9] = "another", "b"
    write_rows(path, columns)
    with pytest.raises(StoreMismatchError, match="2 changed since"):
        embedded(tmp_path / "out", text_weights, path, **choices)
    rows, _ = embedded(tmp_path / "out", text_weights, path, **choices, update=True)
    fresh, _ = embedded(tmp_path / "fresh", text_weights, path, **choices)
    assert np.abs(vectors_in(rows) - vectors_in(fresh)).max() < 1e-5
    assert rows.drop(["embedding"]).equals(fresh.drop(["embedding"]))
    now = [part.stat().st_ino for part in sorted((tmp_path / "out/embeddings").iterdir())]
    assert [index for index, (a, b) in enumerate(zip(parts, now, strict=True)) if a != b] == [1, 2]
    with pytest.raises(StoreMismatchError, match="long_text"):
        embedded(tmp_path / "out", text_weights, path, **choices | {"long_text": "fail"})
    with pytest.raises(StoreMismatchError, match="keep is"):
        embedded(tmp_path / "out", text_weights, path, **choices | {"keep": ()})


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_a_run_that_ended_early_is_gone_on_with(
    text_weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    paths = [str(photos / f"{n}.png") for n in range(len(TEXTS))]
    path = write_rows(tmp_path / "a.csv", {"file": paths, "said": TEXTS, "tag": [f"t{n}" for n in range(len(TEXTS))]})
    choices: dict[str, Any] = {"keep": ("tag",)}
    choices |= {"texts": True, "column": "said"} if kind == "texts" else {"text_column": "said"}
    whole, failures = embedded(tmp_path / "whole", text_weights, path, **choices)
    finish = part_module.PartInWork.finish

    def end(part: Any, *counts: Any) -> None:
        if part.shard.index == 2:
            raise KeyboardInterrupt
        finish(part, *counts)

    with monkeypatch.context() as patch:
        patch.setattr(part_module.PartInWork, "finish", end)
        with pytest.raises(KeyboardInterrupt):
            embedded(tmp_path / "out", text_weights, path, **choices)
    parts = {part.name: part.stat().st_ino for part in (tmp_path / "out/embeddings").iterdir()}
    assert len(parts) == 2
    rows, failed = embedded(tmp_path / "out", text_weights, path, **choices)
    assert parts.items() <= {part.name: part.stat().st_ino for part in (tmp_path / "out/embeddings").iterdir()}.items()
    assert rows.equals(whole)
    assert failed == failures


def test_exports_have_both_vectors_of_pairs(text_weights: Path, photos: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    count = 6
    paths = [str(photos / f"{n}.png") for n in range(count)]
    path = write_rows(tmp_path / "a.csv", {"image": paths, "said": TEXTS[:count], "caption": ["c"] * count})
    rows, _ = embedded(tmp_path / "out", text_weights, path, text_column="said", keep=("caption",))
    images, texts = vectors_in(rows), vectors_in(rows, "text_embedding")

    def exported(form: Any, output: str = "out") -> Path:
        target = tmp_path / f"{output}-{form}"
        export(ExportJob(output=tmp_path / output, target=target, format=form))
        return target

    target = exported("npy")
    assert np.array_equal(np.load(target / "vectors.npy"), images)
    assert np.array_equal(np.load(target / "text_vectors.npy"), texts)
    found = load_file(exported("safetensors") / "vectors.safetensors")
    assert np.array_equal(found["embedding"], images)
    assert np.array_equal(found["text_embedding"], texts)
    with (exported("csv") / "vectors.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["text"] for line in lines] == TEXTS[:count]
    assert np.array_equal(
        np.array([[line[f"t{n}"] for n in range(texts.shape[1])] for line in lines], np.float32), texts
    )
    with pytest.raises(StoreError, match="has a column 'caption'"):
        exported("clip-retrieval")
    embedded(tmp_path / "plain", text_weights, path, text_column="said")
    target = exported("clip-retrieval", "plain")
    several = sorted((target / "text_emb").iterdir())
    assert [one.name for one in several] == ["text_emb_0.npy", "text_emb_1.npy"]
    assert np.abs(np.concatenate([np.load(one) for one in several]) - texts).max() < 1e-3
    metadata = pq.read_table(target / "metadata/metadata_0.parquet")
    assert metadata.column("caption").to_pylist() == TEXTS[:4]
    assert metadata.column("image_path").to_pylist() == paths[:4]
    embedded(tmp_path / "texts", text_weights, path, texts=True, column="said")
    target = exported("clip-retrieval", "texts")
    assert sorted(one.name for one in target.iterdir()) == ["export.json", "metadata", "text_emb"]


def test_tokens_are_those_of_tokenize() -> None:
    tokenizing = Tokenizing("texts", 77, "fail")
    for text in TEXTS:
        found = tokenizing(Item("a", "a.txt", 1, values=(text,)))
        assert isinstance(found, Tokenized)
        assert np.array_equal(found.ids, clip.tokenize([text])[0].numpy())
        assert found.warning is None

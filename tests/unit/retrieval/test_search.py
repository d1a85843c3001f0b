"""clip.Index and `clip search`: queries of texts, images and vectors, and what the command makes of the hits."""

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import checkpoints, formula, loopback
from kit.in_process import Run
from kit.jobs import change_job, embed_job
from kit.programs import command
from PIL import Image

import clip
from clip.cli import main
from clip.errors import ImageError, InputError, StoreError, StoreMismatchError, TextTooLongError
from clip.jobs.index import IndexJob
from clip.jobs.search import SearchJob

NAMES = [f"{n}.png" for n in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos, one of them turned by EXIF, and what came of them under --orient exif."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "photos").mkdir()
    for n, name in enumerate(NAMES):
        formula.picture(n, 40 + 8 * n, 40).save(folder / "photos" / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    formula.quarters(40, 32).save(folder / "photos/turned.png", exif=exif)
    job = embed_job(
        source=folder / "photos", output=folder / "out", model=str(checkpoints.write(folder)), threads=1, orient="exif"
    )
    assert clip.embed(job).written == 7
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> clip.Encoder:
    return clip.Encoder(folder / "tiny-vit.pt", device="cpu", threads=1)


@pytest.fixture
def index(folder: Path) -> clip.Index:
    return clip.Index(folder / "out", device="cpu")


def unit(vector: Any) -> np.ndarray:
    wide = np.asarray(vector, np.float64)
    return wide / np.linalg.norm(wide)


def expected(folder: Path, query: np.ndarray) -> dict[str, float]:
    """The cosines of all rows to a query."""
    table = clip.Store(folder / "out").table()
    vectors = np.array(table.column("embedding").to_pylist())
    return dict(zip(table.column("id").to_pylist(), (vectors @ unit(query)).tolist(), strict=True))


def of(hits: list[clip.Hit]) -> dict[str, float]:
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return {hit.id: hit.score for hit in hits}


def texts(encoder: clip.Encoder, *some: str) -> list[np.ndarray]:
    return [unit(row) for row in encoder.encode_text(list(some)).numpy()]


def test_a_text_finds_the_rows_of_the_highest_cosine(folder: Path, index: clip.Index, encoder: clip.Encoder) -> None:
    (boat,) = texts(encoder, "a red boat")
    found = of(index.search(text="a red boat", k=7))
    assert found == pytest.approx(expected(folder, boat), abs=1e-6)
    assert list(of(index.search(text="a red boat", k=3))) == list(found)[:3]


@pytest.mark.parametrize("form", ["path", "text", "bytes", "image", "array"])
def test_an_image_finds_itself(folder: Path, index: clip.Index, form: str) -> None:
    path = folder / "photos/3.png"
    forms: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "image": formula.picture(3, 64, 40),
        "array": np.asarray(formula.picture(3, 64, 40)),
    }
    hit = index.search(image=forms[form], k=1)[0]
    assert (hit.id, hit.path) == ("3.png", str(path))
    assert hit.score == pytest.approx(1, abs=1e-6)


def test_an_image_is_read_as_the_run_read_its_images(folder: Path, index: clip.Index) -> None:
    hit = index.search(image=folder / "photos/turned.png", k=1)[0]
    assert (hit.id, hit.score) == ("turned.png", pytest.approx(1, abs=1e-6))
    assert of(index.search(image=formula.quarters(40, 32), k=7))["turned.png"] < 0.9999


def test_several_are_averaged_and_negative_texts_are_subtracted(
    folder: Path, index: clip.Index, encoder: clip.Encoder
) -> None:
    cat, dog, car, bus = texts(encoder, "a cat", "a dog", "a car", "a bus")
    photo = unit(encoder.embed([folder / "photos/2.png"])[0])
    vector = np.arange(1.0, 33)
    query = (cat + dog + photo + unit(vector)) / 4 - (car + bus) / 2
    found = index.search(
        text=["a cat", "a dog"], image=[folder / "photos/2.png"], vector=vector, negative=("a car", "a bus"), k=7
    )
    assert of(found) == pytest.approx(expected(folder, query), abs=1e-6)


def test_hits_can_be_limited_by_score_and_by_columns(index: clip.Index) -> None:
    hits = index.search(text="a cat", k=7)
    assert index.search(text="a cat", k=7, min_score=hits[2].score) == hits[:3]
    assert index.search(text="a cat", k=7, min_score=2) == []
    wide = index.search(text="a cat", k=7, where="width > 60 AND format = 'PNG'")
    assert wide == [hit for hit in hits if hit.id in ("3.png", "4.png", "5.png")]
    assert index.search(text="a cat", k=2, where="width > 60", min_score=wide[1].score) == wide[:2]


def test_weights_multiply_vectors_and_those_below_0_are_avoided(
    folder: Path, index: clip.Index, encoder: clip.Encoder, run: Run
) -> None:
    cat, dog, snow = texts(encoder, "a cat", "3:10 to Yuma", "snow")
    photo = unit(encoder.embed([folder / "photos/2.png"])[0])
    query = (2 * cat + dog + 0.5 * photo) / 3 - 1.5 * snow
    found = index.search(
        text=[clip.Weighted("a cat", 2), "3:10 to Yuma", clip.Weighted("snow", -1.5)],
        image=clip.Weighted(folder / "photos/2.png", 0.5),
        k=7,
    )
    assert of(found) == pytest.approx(expected(folder, query), abs=1e-6)
    flags = ("-t", "2:a cat", "-t", "3:10 to Yuma", "-t", "-1.5:snow", "-i", f".5:{folder}/photos/2.png")
    said = run("search", folder / "out", *flags, "-n", 7, "--json")[1]
    assert [json.loads(line) for line in said.splitlines()] == [dataclasses.asdict(hit) for hit in found]


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf"), -2000])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match=r"weight: found .*, expected a number of up to 1000, above or below 0"):
        clip.Weighted("a cat", weight)


def test_rows_like_a_row_are_the_others(folder: Path, index: clip.Index, run: Run) -> None:
    vector = index.read_vector(index.find_row("3.png"))
    expected = [hit for hit in index.search(vector=vector, k=7) if hit.id != "3.png"]
    assert index.search(like="3.png", k=7) == expected
    said = run("search", folder / "out", "--like", "3.png", "-n", 2, "--plain")[1]
    assert said.splitlines() == [hit.path for hit in expected[:2]]
    with pytest.raises(InputError, match=r"like: found 'no.png', expected an id of .*out\. Pass a hit's id"):
        index.search(like="no.png")


def test_an_image_may_be_on_a_server(folder: Path, index: clip.Index) -> None:
    expected = index.search(image=folder / "photos/3.png", k=2)
    with loopback.serving((folder / "photos/3.png").read_bytes()) as server:
        assert index.search(image=f"{server.url}/3.png", k=2) == expected
    with loopback.serving(b"", "404") as server, pytest.raises(InputError, match=r"/no\.png: cannot be read"):
        index.search(image=f"{server.url}/no.png")


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, InputError, "query: found nothing to look for"),
    "only a negative": ({"negative": "x"}, InputError, "query: found nothing to look for"),
    "what cancels out": ({"text": "x", "negative": "x"}, InputError, "query: its parts cancel out"),
    "no hits asked for": ({"text": "x", "k": 0}, InputError, "k: found 0, expected at least 1"),
    "a score that is none": ({"text": "x", "min_score": float("nan")}, InputError, "min_score: found nan"),
    "a text too long": ({"text": "word " * 99}, TextTooLongError, "text 0 of 1: found 101 tokens"),
    "a column that is not there": ({"text": "x", "where": "height_px > 3"}, InputError, '"height_px" not found'),
    "no such image": ({"image": "no.jpg"}, InputError, "no.jpg: cannot be read"),
    "an unreadable image": ({"image": b"no image"}, ImageError, "image: starts with b'no image'"),
    "a vector of NaN": ({"vector": [float("nan")] * 32}, InputError, "vector: has a norm of nan"),
    "an infinite vector": ({"vector": [float("inf")] * 32}, InputError, "vector: has a norm of"),
    "a vector of zeros": ({"vector": [0] * 32}, InputError, "vector: has a norm of 0.0"),
    "a vector too short": ({"vector": [1.0]}, InputError, r"vector: found an array of shape \(1,\), expected \(32,\)"),
    "a number": ({"vector": 3}, InputError, r"vector: found an array of shape \(\), expected \(32,\)"),
    "a vector of words": ({"vector": ["x"] * 32}, InputError, "vector: cannot be read"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_a_wrong_query_is_refused_in_one_line(index: clip.Index, what: str) -> None:
    query, error, words = WRONG[what]
    with pytest.raises(error, match=words) as caught:
        index.search(**query)
    assert "\n" not in str(caught.value)


def test_a_truncated_image_is_refused(index: clip.Index, folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.png"
    half.write_bytes((folder / "photos/5.png").read_bytes()[:-900])
    with pytest.raises(ImageError, match=r"half\.png: .*truncated"):
        index.search(image=half)
    with Image.open(half) as image, pytest.raises(ImageError, match=r"image: cannot be decoded \(.*truncated"):
        index.search(image=image)


def test_vectors_of_any_length_are_cosines_all_the_same(folder: Path, tmp_path: Path) -> None:
    model = str(folder / "tiny-vit.pt")
    job = embed_job(source=folder / "photos", output=tmp_path, model=model, threads=1, orient="exif")
    clip.embed(change_job(job, normalize=False, dtype="float16"))
    found = of(clip.Index(tmp_path, device="cpu").search(text="a cat", k=7))
    assert found == pytest.approx(of(clip.Index(folder / "out", device="cpu").search(text="a cat", k=7)), abs=2e-3)


def test_an_output_without_rows_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    clip.embed(embed_job(source=tmp_path / "in", output=tmp_path / "out", model=str(folder / "tiny-vit.pt")))
    with pytest.raises(StoreError, match=r"holds no vectors\. Embed images into it"):
        clip.Index(tmp_path / "out")


def test_other_weights_than_the_run_had_are_refused(folder: Path, tmp_path: Path) -> None:
    other = checkpoints.write(tmp_path, "tiny-vit", projection=0.5)
    index = clip.Index(folder / "out", model=str(other), device="cpu")
    with pytest.raises(StoreMismatchError, match=r"have sha256 .*, expected .* Pass the run's weights as model"):
        index.search(text="a cat")
    assert index.search(vector=np.ones(32), k=1)  # needs none


def test_the_command_writes_hits_in_four_forms(run: Run, folder: Path, index: clip.Index) -> None:
    hits = index.search(text="a cat", k=3)
    query = ("search", folder / "out", "-t", "a cat", "-n", 3)
    code, said, error = run(*query, "--json")
    assert (code, error) == (0, "")
    assert [clip.Hit(**json.loads(line)) for line in said.splitlines()] == hits
    assert list(json.loads(said.splitlines()[0])) == ["id", "path", "score"]
    rows = list(csv.DictReader(io.StringIO(run(*query, "--csv")[1])))
    assert [clip.Hit(row["id"], row["path"], float(row["score"])) for row in rows] == hits
    assert run(*query, "--plain")[1] == "".join(f"{hit.path}\n" for hit in hits)
    lines = run(*query)[1].splitlines()
    assert [line.split() for line in lines] == [
        ["score", "id", "path"],
        *([f"{hit.score:.4f}", hit.id, hit.path] for hit in hits),
    ]


def test_the_command_takes_all_that_a_query_has(
    run: Run, folder: Path, index: clip.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = np.arange(1.0, 33)
    (tmp_path / "v.json").write_text(json.dumps(vector.tolist()))
    np.save(tmp_path / "v.npy", vector[None].astype(np.float32))
    path = folder / "photos/1.png"
    expected = index.search(text="a cat", image=path, vector=vector, negative="a dog", k=7, where="width > 50")
    for name in ("v.json", "v.npy"):
        flags = ("-t", "a cat", "-i", path, "--vector", tmp_path / name, "--not", "a dog", "--where", "width > 50")
        code, said, error = run("search", folder / "out", *flags, "--json", "--device", "cpu")
        found = [json.loads(line) for line in said.splitlines()]
        assert (code, [hit["id"] for hit in found]) == (0, [hit.id for hit in expected])
        assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        assert error == "4 hits of 10 asked for: 7 rows, fewer by --where\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert json.loads(run("search", folder / "out", "-i", "-", "--json", "-n", 1)[1])["id"] == "1.png"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "v.json").read_bytes())))
    assert run("search", folder / "out", "--vector", "-", "-n", 1)[0] == 0


REFUSED = {
    "nothing to look for": ([], 2, "query: found nothing to look for"),
    "stdin twice": (["-i", "-", "--vector", "-"], 2, "query: found '-' twice"),
    "two forms": (["-t", "x", "--json", "--csv"], 2, "found several of --json, --csv, --plain and --print0"),
    "no hits": (["-t", "x", "-n", "0"], 2, "-n: found 0"),
    "no such column": (["-t", "x", "--where", "nope"], 2, '"nope" not found'),
    "a text too long": (["-t", "word " * 99], 2, "found 101 tokens"),
    "an unreadable image": (["-i", __file__], 2, "expected a format that Pillow decodes"),
    "no vector": (["--vector", __file__], 2, "cannot be read"),
    "a vector that is none": (["--vector", "/dev/null"], 2, "cannot be read"),
    "a sheet of no format": (["-t", "x", "--contact-sheet", "x.doc"], 2, "--contact-sheet: found 'x.doc'"),
    "a sheet too large": (["-t", "x", "-n", "1001", "--contact-sheet", "x.png"], 2, "1,001 hits, expected at most"),
    "a sheet nowhere": (["-t", "x", "--contact-sheet", "/no/such/folder/x.png"], 1, "cannot be written"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_the_command_refuses_in_one_line(run: Run, folder: Path, what: str) -> None:
    flags, code, words = REFUSED[what]
    found, said, error = run("search", folder / "out", *flags)
    assert (found, said if code == 2 else "", words in error) == (code, "", True), error
    assert error.count("\n") <= 4  # click tells how to get help before it
    assert "Traceback" not in error


def test_the_command_refuses_a_folder_that_is_no_output_and_other_weights(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    code, _, error = run("search", tmp_path, "-t", "x")
    assert (
        code,
        f"holds no vectors, expected the output of clip embed. If it holds your images, run `clip embed {tmp_path}"
        in error,
    ) == (1, True)
    assert "nowhere: is not there" in run("search", tmp_path / "nowhere", "-t", "x")[2]
    other = checkpoints.write(tmp_path, projection=0.5)
    code, _, error = run("search", folder / "out", "-t", "x", "-m", other)
    assert (code, "Pass the run's weights as --model" in error) == (2, True)


def test_names_do_nothing_to_a_terminal(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(folder / "photos/1.png", tmp_path / "in/\x1b[2Jé\n.png")
    clip.embed(embed_job(source=tmp_path / "in", output=tmp_path / "out", model=str(folder / "tiny-vit.pt")))
    lines = run("search", tmp_path / "out", "-t", "x")[1].splitlines()
    assert len(lines) == 2
    assert lines[1].split()[1] == r"\x1b[2Jé\n.png"


def test_a_contact_sheet_shows_the_hits_and_names_those_it_cannot_read(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, colour in {"red.png": (250, 0, 0), "green.png": (0, 250, 0), "gone.png": (0, 0, 250)}.items():
        Image.new("RGB", (50, 40), colour).save(tmp_path / "in" / name)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "in/green.png", "green.png")
    (tmp_path / "in/green.png").unlink()
    source = [tmp_path / "in", tmp_path / "in.tar"]
    clip.embed(embed_job(source=source, output=tmp_path / "out", model=str(folder / "tiny-vit.pt")))
    (tmp_path / "in/gone.png").unlink()
    query = ("search", tmp_path / "out", "-t", "x", "--json", "--contact-sheet", tmp_path / "hits.png")
    code, said, error = run(*query)
    assert code == 0
    assert "hits.png: 3 hits, 1 of them cannot be read any more" in error
    colours = {"in/red.png": (250, 0, 0), "in.tar!green.png": (0, 250, 0), "in/gone.png": (225, 225, 225)}
    with Image.open(tmp_path / "hits.png") as sheet:
        for rank, line in enumerate(said.splitlines()):
            assert sheet.getpixel((16 + 240 * rank + 5, 48 + 5)) == colours[json.loads(line)["id"]]
    shutil.rmtree(tmp_path / "in")
    assert "hits.png: 3 hits, 2 of them cannot be read any more" in run(*query)[2], "the archive is there"
    shutil.rmtree(tmp_path / "out/_plan")
    assert "hits.png: 0 hits\n" in run(*query, "--min-score", "2")[2]


def test_texts_and_pairs_with_kept_columns_can_be_searched(run: Run, folder: Path, tmp_path: Path) -> None:
    lines = [f"{n}.png,{text},{n}" for n, text in enumerate(["a cat", "a dog", "a boat"])]
    (tmp_path / "list.csv").write_text("\n".join(["file,caption,year", *lines]))
    model = {"model": str(folder / "tiny-vit.pt"), "keep": ("year",), "id_column": "file"}
    clip.embed(embed_job(source=tmp_path / "list.csv", output=tmp_path / "t", texts=True, column="caption", **model))
    clip.embed(
        embed_job(
            source=tmp_path / "list.csv",
            output=tmp_path / "p",
            column="file",
            text_column="caption",
            root=str(folder / "photos"),
            **model,
        )
    )
    query = ("-t", "a boat", "--json", "-n", 2, "--where", "text <> 'a dog' AND year >= '0'")
    code, said, _ = run("search", tmp_path / "t", *query)
    best, other = map(json.loads, said.splitlines())
    assert (code, best["id"], other["id"]) == (0, "2.png", "0.png")
    assert best["score"] == pytest.approx(1, abs=1e-6)
    code, said, _ = run("search", tmp_path / "p", "-i", folder / "photos/0.png", *query[2:])
    best, other = map(json.loads, said.splitlines())
    assert (code, best["id"], other["id"]) == (0, "0.png", "2.png")  # by the images
    assert best["score"] == pytest.approx(1, abs=1e-4)
    sheet = ("--contact-sheet", tmp_path / "x.png")
    assert run("search", tmp_path / "p", "-t", "x", *sheet)[2].endswith("x.png: 3 hits\n")
    code, said, error = run("search", tmp_path / "t", "-t", "x", *sheet)
    assert (code, said) == (2, "")
    assert "holds texts, expected images" in error


def test_the_command_makes_the_index_and_says_whether_it_had_to(run: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out", tmp_path / "out", ignore=shutil.ignore_patterns("_index"))
    vector = tmp_path / "v.json"
    vector.write_text(json.dumps([1.0] * 32))
    made = f"{tmp_path}/out/_index/exact.index: being made, as none fits the present parts\n"
    assert run("search", tmp_path / "out", "--vector", vector, "-n", 1)[2] == made
    assert run("search", tmp_path / "out", "--vector", vector, "-n", 1)[2] == ""
    shutil.rmtree(tmp_path / "out/_index")
    code, said, error = run("index", tmp_path / "out")
    assert (code, said) == (0, "")
    assert error.startswith(f"{tmp_path}/out/_index/exact.index: 7 rows, 0.0 MB, made in ")
    code, said, error = run("index", tmp_path / "out", "--json")
    assert error == f"{tmp_path}/out/_index/exact.index: 7 rows, 0.0 MB, whole and up to date\n"
    report = json.loads(said)
    assert (report["rows"], report["made"]) == (7, False)
    sizes = [(tmp_path / "out/_index" / name).stat().st_size for name in ("exact.index", "rows.index")]
    assert report["size_bytes"] == sum(sizes)


def test_each_field_of_a_job_has_a_flag_and_each_flag_a_field() -> None:
    forms = {"as_json", "as_csv", "plain", "print0", "words", "previews", "opens", "explains"}
    jobs: dict[str, tuple[type, set[str]]] = {
        "search": (SearchJob, forms),
        "index": (IndexJob, {"as_json"}),
        "classify": (clip.ClassifyJob, {"as_json", "format"}),
    }
    for name, (job, more) in jobs.items():
        parameters = {parameter.name: parameter.default for parameter in main.cli.commands[name].params}
        found = {field.name: field.default for field in dataclasses.fields(job)}
        assert parameters.keys() == found.keys() | more
        for field in found.keys() - {"output", "source", "labels"}:
            given = parameters[field]
            given = given if isinstance(given, (str, int, float)) else None
            assert (found[field] or None) == (given or None), field


def test_a_search_by_vector_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones(32))
    search = command("run_without_torch", "search", folder / "out", "--vector", tmp_path / "v.npy")
    done = subprocess.run(search, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.count("\n")) == (0, 8), done.stderr + done.stdout

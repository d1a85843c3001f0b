"""Search, classify and the page's tiles: the hits of `clip search`, and of the machine nothing but the index's rows."""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job
from kit.served import Answer, Served, serving
from PIL import Image

import clip
from clip import ClassifyJob, DuplicatesJob, Index, classify, embed
from clip.errors import StoreMismatchError
from clip.jobs.serve import ServeJob
from clip.serve import duplicates
from clip.serve.models import Models

LABELS = ("a dog", "a cat", "a house")
ODD = "<img src=x onerror=alert(1)> \"' 猫 صورة.png"


@pytest.fixture(scope="module")
def output(text_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    photos = draw_photos(folder / "photos", number_names(12), wider=3)
    shutil.copy(next(iter(sorted(photos.iterdir()))), photos / ODD)
    embed(embed_job(source=photos, output=folder / "out", model=str(text_weights), shard_size=5))
    return folder / "out"


@pytest.fixture(scope="module")
def served(output: Path) -> Iterator[Served]:
    with serving(ServeJob(index=(output,), decoders="threads"), loaded=False) as served:
        served.service._load_first()
        assert served.service.load_error is None
        yield served


def test_the_hits_are_those_of_the_index(served: Served, output: Path) -> None:
    index = Index(output)
    image = (output.parent / "photos" / ODD).read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    asked = {"text": ["a dog", "a house"], "image": uri, "negative": "a cat", "k": 5, "where": "width > 0"}
    found = served.post("/v1/search", asked)
    expected = index.search(text=["a dog", "a house"], image=image, negative="a cat", k=5, where="width > 0")
    assert [hit["id"] for hit in found.json["hits"]] == [hit.id for hit in expected]
    assert [hit["score"] for hit in found.json["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert found.json["rows"] == len(index)
    first = found.json["hits"][0]
    assert index.rows.column("id")[first["row"]].as_py() == first["id"]
    assert "path" not in first["columns"]


def test_more_like_a_row_by_its_number_or_its_id(served: Served) -> None:
    by_row = served.post("/v1/search", {"like": [3], "k": 4}).json["hits"]
    assert (by_row[0]["row"], by_row[0]["score"]) == (3, pytest.approx(1.0))
    assert served.post("/v1/search", {"like": by_row[0]["id"], "k": 4}).json["hits"] == by_row
    both = served.post("/v1/search", {"like": ODD, "k": 2}).json["hits"]
    assert {hit["id"] for hit in both} == {"00.png", ODD}, (
        "an image and its copy; a name as it is: the page sets it as text"
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "query"),
        ({"like": "../../etc/passwd"}, "like"),
        ({"like": 13}, "like"),
        ({"like": -1}, "like"),
        ({"text": "a", "index": "other"}, "index"),
        ({"text": "a", "where": "width >"}, "where"),
        ({"text": "a", "where": "EXISTS (SELECT * FROM read_text('/etc/passwd'))"}, "where"),
        ({"text": "a", "k": 0}, "k"),
        ({"text": "a", "k": 10_000}, "k"),
        ({"text": "a", "negative": "a"}, "query"),
        ({"text": ["a"] * 65}, "query"),
        ({"image": "data:image/png;base64,AAAA"}, "image"),
        ({"text": 3}, "text"),
        ({"text": "a", "min_score": "high"}, "min_score"),
    ],
)
def test_a_query_that_cannot_be_answered_says_why(body: dict[str, object], param: str, served: Served) -> None:
    answer = served.post("/v1/search", body)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_labels_get_the_probabilities_of_classify(served: Served, output: Path) -> None:
    report = classify(ClassifyJob(source=output, labels=LABELS, k=3))
    answer = served.post("/v1/classify", {"like": list(range(13)), "labels": list(LABELS)})
    ids = Index(output).rows.column("id").to_pylist()
    for own_id, result in zip(ids, answer.json["results"], strict=True):
        expected = next(row.top for row in report.rows if row.id == own_id)
        assert [entry["label"] for entry in result] == [label for label, _ in expected]
        assert [entry["probability"] for entry in result] == pytest.approx([p for _, p in expected], abs=1e-6)
    image = (output.parent / "photos" / ODD).read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    by_image = served.post("/v1/classify", {"image": uri, "labels": list(LABELS)}).json["results"]
    assert by_image[0][0]["probability"] == pytest.approx(
        answer.json["results"][ids.index(ODD)][0]["probability"], abs=1e-5
    )
    assert served.post("/v1/classify", {"image": uri, "labels": ["one"]}).status == 400
    assert served.post("/v1/classify", {"labels": list(LABELS)}).status == 400


def test_a_tile_is_a_small_jpeg_of_its_row_and_there_are_no_others(served: Served, output: Path) -> None:
    ids = Index(output).rows.column("id").to_pylist()
    for row, own_id in enumerate(ids):
        answer = served.get(f"/v1/indexes/out/rows/{row}/tile")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(answer.body)) as tile, Image.open(output.parent / "photos" / own_id) as image:
            assert tile.size == (224, 224)
            middle = np.asarray(image.convert("RGB").resize((1, 1), Image.Resampling.BOX))
            np.testing.assert_allclose(np.asarray(tile.resize((1, 1), Image.Resampling.BOX)), middle, atol=45)
    for path in ("13", "-1", "..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "0%00", "1e1"):
        answer = served.get(f"/v1/indexes/out/rows/{path}/tile")
        assert answer.status == 404
        assert answer.error
    for path in ("/page/../../../pyproject.toml", "/page/..%2fserver.py", "/page/server.py", "/page//etc/passwd"):
        assert served.get(path).status == 404
    assert served.get("/v1/indexes/none/rows/0/tile").status == 400


def test_a_row_whose_image_is_gone_has_no_tile_and_says_so(served: Served, output: Path) -> None:
    tiles = served.service.galleries.find("out").tiles
    name = Index(output).rows.column("id")[1].as_py()
    path = output.parent / "photos" / name
    data = path.read_bytes()
    with tiles._lock:
        tiles._cache.clear()
    path.unlink()
    try:
        assert served.get("/v1/indexes/out/rows/1/tile").error["param"] == "row"
    finally:
        path.write_bytes(data)
    assert served.get("/v1/indexes/out/rows/1/tile").status == 200, "it is looked for again"


def test_the_page_and_its_files_allow_nothing_from_elsewhere(served: Served) -> None:
    page = served.get("/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml")):
        assert f'"page/{name}"' in page.body.decode()
        answer = served.get(f"/page/{name}")
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, kind)
        assert "http://" not in answer.body.decode().replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in served.get("/page/page.js").body.decode()
    (index,) = served.get("/v1/indexes").json["data"]
    assert (index["name"], index["rows"], index["kind"]) == ("out", 13, "images")


def test_without_an_index_the_page_is_there_and_search_says_how_to_get_one(text_weights: Path) -> None:
    with serving(ServeJob(models=(str(text_weights),), decoders="threads")) as served:
        assert served.get("/").status == 200
        assert served.get("/v1/indexes").json["data"] == []
        assert "--index OUT" in served.post("/v1/search", {"text": "a"}).error["message"]


def test_an_index_is_searched_with_its_own_model_or_not_at_all(output: Path, text_weights: Path) -> None:
    own = Models(ServeJob(index=(output,)))
    assert [model.name for model in own.all] == [str(text_weights)]
    both = Models(ServeJob(models=("sketch",), index=(output, output)))
    assert [model.name for model in both.all] == ["sketch", str(text_weights)]
    assert both.of_index == [both.all[1]] * 2
    changed = Models(ServeJob(models=(f"{text_weights}=sketch",), index=(output,), decoders="threads"))
    with pytest.raises(StoreMismatchError, match="sha256"):
        changed.load(changed.first)


def find_duplicates(served: Served, query: str = "") -> Answer:
    """Ask until the search is over."""
    while (answer := served.get(f"/v1/indexes/out/duplicates{query}")).status in (202, 429):
        pass
    return answer


def test_duplicates_are_those_of_the_library_without_paths(served: Served, output: Path) -> None:
    answer = find_duplicates(served)
    assert answer.status == 200
    report = clip.find_duplicates(DuplicatesJob(output=output))
    (group,) = answer.json["data"]
    (expected,) = report.groups
    assert [image["id"] for image in group["images"]] == [image.id for image in expected.images]
    assert {image["id"] for image in group["images"]} == {"00.png", ODD}
    ids = Index(output).rows.column("id").to_pylist()
    assert all(ids[image["row"]] == image["id"] for image in group["images"])
    assert [(image["keep"], image["like"]) for image in group["images"]] == [(True, "bytes"), (False, "bytes")]
    assert "path" not in group["images"][0]
    assert (answer.json["report"]["group_count"], answer.json["report"]["duplicates"]) == (1, 1)
    assert find_duplicates(served, "?start=1").json["data"] == []
    assert find_duplicates(served, "?count=0").json["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("?level=none", "level"), ("?start=-1", "start"), ("?count=1000", "count"), ("?start=x", "start")],
)
def test_duplicates_that_cannot_be_asked_for(query: str, param: str, served: Served) -> None:
    answer = served.get(f"/v1/indexes/out/duplicates{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


def test_one_search_for_duplicates_at_a_time_and_one_that_fails_says_why(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "wait"
    os.mkfifo(pipe)
    monkeypatch.setattr(duplicates, "WORK", f'open({str(pipe)!r}).read(); print(\'["error", "the reason"]\')')
    searches = duplicates.DuplicateSearches(None)
    first = searches.find("out", output, "edited")
    assert first is not None and first.is_running
    assert searches.find("out", output, "edited") is first
    assert searches.find("out", output, "same") is None, "another one is running"
    pipe.write_text("")
    first._reader.join()
    assert (first.is_running, first.error) == (False, "the reason")
    searches.forget("out", "edited")
    monkeypatch.setattr(duplicates, "WORK", "import os; os.abort()")
    crashed = searches.find("out", output, "edited")
    assert crashed is not None and crashed is not first
    crashed._reader.join()
    assert "ended with code -6" in (crashed.error or "")
    searches.close()

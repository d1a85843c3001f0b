"""clip.classify: the drop-in model's probabilities, ensembles as the paper has them, and nothing lost."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kit import checkpoints, formula
from kit.in_process import Run
from kit.jobs import change_job, embed_job
from kit.outputs import change_manifest, write_part
from PIL import Image

import clip
from clip.errors import ClipError, InputError, StoreError, StoreMismatchError, TextTooLongError
from clip.jobs.classify import TEMPLATE
from clip.retrieval.prompts import OPENAI7, read_labels, read_templates, split_labels

LABELS = ("cat", "dog", "boat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in folders of their kinds, one unreadable, their tiny model, and what came of them."""
    folder = tmp_path_factory.mktemp("classify")
    for n, name in enumerate(["cat/0.png", "cat/1.png", "dog/2.png", "elk/3.png", "4.png"]):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        formula.picture(n, 40, 40 + n).save(folder / "photos" / name)
    (folder / "photos/dog/bad.png").write_bytes(b"no image")
    model = str(checkpoints.write(folder))
    clip.embed(embed_job(source=folder / "photos", output=folder / "out", model=model, threads=1))
    return folder


def classify(folder: Path, source: str = "out", **choices: Any) -> clip.ClassifyReport:
    model = {} if source == "out" else {"model": str(folder / "tiny-vit.pt")}
    options = {"labels": LABELS, "device": "cpu", **model, **choices}
    return clip.classify(clip.ClassifyJob(source=folder / source, **options))


def by_id(report: clip.ClassifyReport) -> dict[str, dict[str, float]]:
    return {row.id: dict(row.top) for row in report.rows if row.top}


def drop_in(folder: Path, texts: list[str]) -> dict[str, dict[str, float]]:
    """`model(image, text)[0].softmax(-1)`, an image at a time."""
    model, preprocess = clip.load(folder / "tiny-vit.pt", device="cpu")
    found: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "photos").rglob("[0-9].png")):
        with torch.no_grad():
            logits = model(preprocess(Image.open(path)).unsqueeze(0), clip.tokenize(texts))[0]
        own_id = path.relative_to(folder / "photos").as_posix()
        found[own_id] = dict(zip(LABELS, logits.softmax(-1)[0].tolist(), strict=True))
    return found


def assert_close(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for own_id, probabilities in found.items():
        assert probabilities == pytest.approx(expected[own_id], abs=tolerance)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)


@pytest.mark.parametrize("source", ["out", "photos"])
@pytest.mark.parametrize("template", ["{}", "a photo of a {}", "the {}, {}."])
def test_one_template_gives_the_probabilities_of_the_drop_in_model(folder: Path, source: str, template: str) -> None:
    expected = drop_in(folder, [template.replace("{}", label) for label in LABELS])
    assert max(p for row in expected.values() for p in row.values()) < 0.9999  # else all would agree
    assert_close(by_id(classify(folder, source, template=(template,))), expected, 1e-5)


def test_without_a_template_it_is_a_photo_of_a(folder: Path) -> None:
    assert by_id(classify(folder)) == by_id(classify(folder, template=("a photo of a {}",)))
    assert TEMPLATE == "a photo of a {}"


def test_several_templates_are_averaged_as_in_the_paper(folder: Path, tmp_path: Path) -> None:
    model, _ = clip.load(folder / "tiny-vit.pt", device="cpu")
    weights = []
    for label in LABELS:  # openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb, zeroshot_classifier
        with torch.no_grad():
            features = model.encode_text(clip.tokenize([template.replace("{}", label) for template in OPENAI7]))
        features /= features.norm(dim=-1, keepdim=True)
        mean = features.mean(dim=0)
        weights.append(mean / mean.norm())
    table = clip.Store(folder / "out").table()
    logits = model.logit_scale.exp() * torch.tensor(table.column("embedding").to_pylist()) @ torch.stack(weights).T
    probabilities = logits.softmax(-1).tolist()
    ids = table.column("id").to_pylist()
    expected = {own_id: dict(zip(LABELS, row, strict=True)) for own_id, row in zip(ids, probabilities, strict=True)}
    assert_close(by_id(classify(folder, templates="openai7")), expected, 1e-5)
    (tmp_path / "seven.txt").write_text("\n\n".join(OPENAI7) + "\n", "utf-8")
    assert by_id(classify(folder, templates=str(tmp_path / "seven.txt"))) == by_id(classify(folder, template=OPENAI7))


def test_the_seven_templates_are_those_of_openai() -> None:
    assert OPENAI7 == (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )


def test_many_labels_are_encoded_some_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = by_id(classify(folder, templates="openai7"))
    monkeypatch.setattr("clip.retrieval.classify.BATCH_TEXTS", 8)
    monkeypatch.setattr("clip.retrieval.classify.BATCH_CELLS", 4)
    assert_close(by_id(classify(folder, templates="openai7")), whole, 1e-6)


@pytest.mark.parametrize("source", ["out", "photos"])
def test_nothing_is_lost(folder: Path, source: str) -> None:
    rows: list[clip.Classified] = []
    model = None if source == "out" else str(folder / "tiny-vit.pt")
    job = clip.ClassifyJob(source=folder / source, labels=LABELS, k=2, model=model)
    report = clip.classify(job, rows.append)
    assert (report.read, report.classified, report.failed, report.rows) == (6, 5, 1, ())
    assert [row.id for row in rows] == ["4.png", "cat/0.png", "cat/1.png", "dog/2.png", "elk/3.png", "dog/bad.png"]
    assert all(len(row.top) == 2 for row in rows[:-1])
    assert (rows[-1].top, rows[-1].stage, rows[-1].error) == ((), "open", "ImageError")
    assert rows[-1].path == str(folder / "photos/dog/bad.png")
    assert classify(folder, source, k=2).rows == tuple(rows)
    assert len(classify(folder, k=99).rows[0].top) == 3


def test_several_outputs_are_classified_one_after_another(folder: Path, tmp_path: Path) -> None:
    job = embed_job(
        source=folder / "photos/cat", output=tmp_path / "cats", model=str(folder / "tiny-vit.pt"), threads=1
    )
    clip.embed(job)
    report = clip.classify(clip.ClassifyJob(source=(tmp_path / "cats", folder / "out"), labels=LABELS, k=2))
    alone = clip.classify(clip.ClassifyJob(source=tmp_path / "cats", labels=LABELS, k=2))
    assert report.rows == alone.rows + classify(folder, k=2).rows
    assert (report.read, report.classified, report.failed) == (8, 7, 1)


def test_outputs_of_different_runs_and_outputs_beside_images_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    job = embed_job(
        source=folder / "photos/cat", output=tmp_path / "cats", model=str(folder / "tiny-vit.pt"), threads=1
    )
    clip.embed(change_job(job, orient="exif"))
    with pytest.raises(StoreMismatchError, match="policies"):
        clip.classify(clip.ClassifyJob(source=(folder / "out", tmp_path / "cats"), labels=LABELS))
    with pytest.raises(InputError, match=r"is an output, .* is none"):
        clip.classify(clip.ClassifyJob(source=(folder / "out", folder / "photos"), labels=LABELS))


def test_an_image_that_is_listed_twice_has_two_rows(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{folder}/photos/4.png\n{folder}/photos/4.png\n")
    job = clip.ClassifyJob(source=tmp_path / "list.txt", labels=LABELS, model=str(folder / "tiny-vit.pt"))
    assert clip.classify(job).read == 2


def test_raw_vectors_in_fp16_give_the_same(folder: Path, tmp_path: Path) -> None:
    job = embed_job(source=folder / "photos", output=tmp_path, model=str(folder / "tiny-vit.pt"), threads=1)
    clip.embed(change_job(job, **{"normalize": False, "dtype": "float16"}))
    report = clip.classify(clip.ClassifyJob(source=tmp_path, labels=LABELS))
    assert_close({k: dict(sorted(v.items())) and v for k, v in by_id(report).items()}, by_id(classify(folder)), 0.05)


def test_the_truth_of_folders_is_counted(folder: Path) -> None:
    report = classify(folder, truth="folder-names")
    truths = {row.id: row.truth for row in report.rows}
    assert truths["cat/0.png"] == "cat"
    assert (truths["elk/3.png"], truths["4.png"], truths["dog/bad.png"]) == ("elk", None, None)
    assert (report.evaluated, report.unknown) == (3, ("elk",))
    predicted = {row.id: row.top[0][0] for row in report.rows if row.top}
    correct = sum(predicted[own_id] == own_id.split("/")[0] for own_id in ("cat/0.png", "cat/1.png", "dog/2.png"))
    assert (report.correct, report.accuracy) == (correct, correct / 3)
    assert sum(count for _, _, count in report.confusion) == 3
    assert ("dog", predicted["dog/2.png"], 1) in report.confusion
    assert classify(folder).accuracy is None


def test_the_truth_of_archives_is_the_folder_inside(folder: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "a"), "zip", folder / "photos")
    model = str(folder / "tiny-vit.pt")
    report = clip.classify(
        clip.ClassifyJob(source=tmp_path / "a.zip", labels=LABELS, truth="folder-names", model=model)
    )
    assert (report.read, report.evaluated, report.unknown) == (6, 3, ("elk",))


def test_the_truth_may_be_a_column(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out", tmp_path / "out")
    (part,) = (tmp_path / "out/embeddings").iterdir()
    kinds = pa.array(["cat", None, "boat", "fish", "dog"])
    write_part(part, pq.read_table(part).append_column("kind", kinds))
    report = clip.classify(clip.ClassifyJob(source=tmp_path / "out", labels=LABELS, truth="kind"))
    assert [row.truth for row in report.rows] == ["cat", None, "boat", "fish", "dog", None]
    assert (report.evaluated, report.unknown) == (3, ("fish",))


@pytest.mark.parametrize("part", ["embeddings", "failures"])
def test_a_part_that_is_gone_is_an_error_and_not_fewer_rows(folder: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(folder / "out", tmp_path / "out")
    next((tmp_path / "out" / part).iterdir()).unlink()
    with pytest.raises(StoreError, match=r"parts hold 0 rows, expected \d as the manifest says\. Run clip verify"):
        clip.classify(clip.ClassifyJob(source=tmp_path / "out", labels=LABELS))


WRONG: dict[str, tuple[dict[str, Any], type[ClipError], str]] = {
    "one label": ({"labels": "cat"}, InputError, "labels: found 1 in 'cat', expected at least 2"),
    "a label twice": ({"labels": "cat,dog, cat"}, InputError, "labels: 'cat' appears twice"),
    "no place for a label": ({"template": ("a photo",)}, InputError, r"template: 'a photo' has no \{\}"),
    "no such set": ({"templates": "openai8"}, InputError, "templates: found 'openai8', expected a file or one of"),
    "two kinds of templates": (
        {"template": ("{}",), "templates": "openai7"},
        InputError,
        "templates: found template too",
    ),
    "no label asked for": ({"k": 0}, InputError, "k: found 0"),
    "no such column": ({"truth": "nope"}, InputError, "truth: .* has no column 'nope', expected one of"),
    "a label too long": ({"labels": ("cat", "dog " * 99)}, TextTooLongError, "found 105 tokens"),
    "random weights": ({"untrained": 3}, InputError, "untrained: found 3"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_arguments_are_refused_in_one_line(folder: Path, what: str) -> None:
    choices, error, words = WRONG[what]
    with pytest.raises(error, match=words) as caught:
        classify(folder, **choices)
    assert "\n" not in str(caught.value)


def test_other_weights_and_empty_outputs_are_refused(folder: Path, tmp_path: Path) -> None:
    other = checkpoints.write(tmp_path, projection=0.5)
    with pytest.raises(StoreMismatchError, match="Pass the run's weights as model"):
        classify(folder, model=str(other))
    shutil.copytree(folder / "out", tmp_path / "out")
    for name in ("embeddings", "failures"):
        shutil.rmtree(tmp_path / "out" / name)
    change_manifest(tmp_path / "out", counts=None)  # a run that has written nothing yet
    with pytest.raises(StoreError, match=r"holds no vectors\. Embed images into it"):
        clip.classify(clip.ClassifyJob(source=tmp_path / "out", labels=LABELS))


def test_labels_come_from_files_and_texts(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffcat\r\n\r\n  great white shark \nÜber, alles\n".encode())
    assert read_labels(file) == read_labels(str(file)) == ("cat", "great white shark", "Über, alles")
    assert read_labels("cat, dog,,a boat ") == ("cat", "dog", "a boat")
    assert split_labels((str(file), "dog, a boat")) == ("cat", "great white shark", "Über, alles", "dog", "a boat")
    assert read_templates((), None) == (TEMPLATE,)
    for name, content, words in (("e.txt", b"", "is empty"), ("l.txt", b"\xff", "cannot be read")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_templates((), str(tmp_path / name))


def test_the_command_writes_a_line_per_image_and_a_table(run: Run, folder: Path) -> None:
    report = classify(folder, truth="folder-names", k=2)
    flags = ("--labels", "cat,dog,boat", "-k", 2, "--truth", "folder-names", "--device", "cpu")
    code, said, error = run("classify", folder / "out", *flags)
    assert code == 3
    rows = [json.loads(line) for line in said.splitlines()]
    for row, expected in zip(rows, report.rows, strict=True):
        assert (row["id"], row["path"], row.get("truth")) == (expected.id, expected.path, expected.truth)
        assert [(top["label"], top["probability"]) for top in row.get("top", ())] == [
            (label, round(probability, 7)) for label, probability in expected.top
        ]
    assert rows[-1].keys() == {"id", "path", "stage", "error", "message"}
    lines = error.splitlines()
    assert lines[0] == "read 6 = classified 5, failed 1"
    assert lines[1] == "of 5, 3 have a truth that is a label; others: 'elk'"
    assert lines[2].split() == ["truth", *LABELS]
    counts = {(truth, predicted): count for truth, predicted, count in report.confusion}
    for line, truth in zip(lines[3:6], LABELS, strict=True):
        assert line.split() == [truth, *(str(counts.get((truth, label), 0)) for label in LABELS)]
    assert lines[6] == f"correct {report.correct} of 3: {report.accuracy:.2%}"
    summary = json.loads(run("classify", folder / "out", *flags, "--json")[2])
    assert (summary["read"], summary["accuracy"], summary["labels"]) == (6, report.accuracy, list(LABELS))
    assert [tuple(entry) for entry in summary["confusion"]] == list(report.confusion)


def test_the_command_classifies_images_and_names_the_most_frequent_mistakes(run: Run, folder: Path) -> None:
    labels = ",".join(["cat", "dog", *map(str, range(20))])
    flags = ("-m", folder / "tiny-vit.pt", "--labels", labels, "--truth", "folder-names")
    code, said, error = run("classify", folder / "photos", *flags)
    assert (code, said.count("\n")) == (3, 6)
    wrong = [line for line in error.splitlines() if re.fullmatch(r" +\d+  (cat|dog) predicted as .*", line)]
    rows = [json.loads(line) for line in said.splitlines()]
    evaluated = [row for row in rows if row.get("truth") in ("cat", "dog")]
    assert len(wrong) == len(
        {(row["truth"], row["top"][0]["label"]) for row in evaluated} - {("cat", "cat"), ("dog", "dog")}
    )
    (folder / "photos/dog/bad.png").rename(folder / "bad")
    try:
        assert run("classify", folder / "photos", *flags)[0] == 0
    finally:
        (folder / "bad").rename(folder / "photos/dog/bad.png")


def test_improbable_labels_are_other(folder: Path, run: Run) -> None:
    sure = classify(folder)
    assert dict(sure.counts).keys() <= set(LABELS)
    assert sum(count for _, count in sure.counts) == sure.classified
    bound = sorted(row.top[0][1] for row in sure.rows if row.label)[2]
    doubted = classify(folder, other=bound)
    assert [row.label for row in doubted.rows if row.label] == [
        row.label if row.top[0][1] >= bound else "other" for row in sure.rows if row.label
    ]
    assert dict(doubted.counts)["other"] == 2
    none = classify(folder, other=1.0, truth="folder-names")
    assert (none.correct, {label for _, label, _ in none.confusion}) == (0, {"other"})
    with pytest.raises(InputError, match="from 0 to 1"):
        classify(folder, other=1.5)
    code, out, said = run("classify", folder / "out", "--labels", "cat,dog", "--other", "1", "--truth", "folder-names")
    assert (code, [json.loads(line).get("label") for line in out.splitlines()].count("other")) == (3, 5)
    assert re.search(r"^truth +cat +dog +other$", said, re.MULTILINE)


def test_a_terminal_gets_a_table_and_counts_and_csv_can_be_asked_for(run: Run, folder: Path) -> None:
    code, out, said = run("classify", folder / "out", "--labels", "cat,dog", "--format", "table")
    lines = out.splitlines()
    assert (code, len(lines)) == (3, 6)
    assert sum(bool(re.match(r" +[0-9.]+%  (cat|dog)  .*[0-9]\.png$", line)) for line in lines) == 5
    assert sum(line.startswith(" failed  ") for line in lines) == 1
    counts = re.findall(r"^([0-9]+)  (cat|dog)$", said, re.MULTILINE)
    assert sum(int(count) for count, _ in counts) == 5
    _, out, _ = run("classify", folder / "out", "--labels", "cat,dog", "--format", "csv")
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 6
    assert {row["label"] for row in rows} <= {"cat", "dog", ""}
    flags = ("--labels", "cat", "--labels", "dog", "--format", "csv")
    assert run("classify", folder / "out", *flags)[1] == out, "labels of all flags count"
    assert [bool(row["error"]) for row in rows].count(True) == 1


def test_vectors_alone_decide(folder: Path) -> None:
    """The label of an image whose vector is a label's is that label."""
    encoder = clip.Encoder(folder / "tiny-vit.pt", device="cpu")
    features = encoder.encode_text([TEMPLATE.replace("{}", label) for label in LABELS]).numpy()
    assert encoder.logit_scale == pytest.approx(np.exp(4.6052), rel=1e-6)
    from clip.retrieval.classify import Classifier

    (found,) = Classifier(encoder, LABELS, (TEMPLATE,)).predict(features)
    assert found.argmax(axis=1).tolist() == [0, 1, 2]
    assert found.sum(axis=1) == pytest.approx(1)

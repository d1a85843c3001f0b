"""What a run holds of encoded images is bounded by bytes, whatever its input is; tables are read by bytes."""

import io
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.budgets import WatchedBudget
from kit.forms import pack_tar, pack_zip
from kit.jobs import change_job, embed_job
from PIL import Image

import clip
from clip.batch import run as run_module
from clip.records import ContainerPart
from clip.sources import parquet
from clip.sources.source import Source

IMAGES, LIMIT_BYTES = 40, 2_000_000
WIDTH = 400  # px, which makes images of half a megabyte
SLACK_BYTES = 6_000_000  # for the pixels of two images that are being decoded, and all else


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """Images that no compression makes smaller."""
    noise = random.Random(0)
    found: dict[str, bytes] = {}
    for number in range(IMAGES):
        file = io.BytesIO()
        pixels = noise.randbytes(WIDTH * WIDTH * 3)
        Image.frombytes("RGB", (WIDTH, WIDTH), pixels).save(file, "PNG", compress_level=0)
        found[f"{number:02}.png"] = file.getvalue()
    return found


def write_folder(path: Path, pictures: dict[str, bytes]) -> None:
    path.mkdir()
    for name, data in pictures.items():
        (path / name).write_bytes(data)


def write_parquet(path: Path, pictures: dict[str, bytes]) -> None:
    pq.write_table(
        pa.table({"id": list(pictures), "image": list(pictures.values())}), path, compression="none", write_batch_size=1
    )


FORMS: dict[str, Callable[[Path, dict[str, bytes]], object]] = {
    "folder": write_folder,
    "a.tar": pack_tar,
    "a.zip": pack_zip,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_run_holds_no_more_than_its_budget_and_one_image(
    weights: Path, pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    FORMS[form](tmp_path / form, pictures)
    budgets: dict[int, WatchedBudget] = {}

    def make_budget(limit_bytes: int) -> WatchedBudget:
        return budgets.setdefault(limit_bytes, WatchedBudget(limit_bytes))

    monkeypatch.setattr(run_module, "ByteBudget", make_budget)
    monkeypatch.setattr(parquet, "BYTES_AT_A_TIME", LIMIT_BYTES)
    job = embed_job(
        source=tmp_path / form,
        output=tmp_path / "out",
        model=str(weights),
        workers=2,
        read_budget_bytes=LIMIT_BYTES,
        **({"column": "image", "id_column": "id"} if form == "a.parquet" else {}),
    )
    clip.embed(change_job(job, output=tmp_path / "first", limit=1))  # which imports what is needed
    budgets.clear()
    tracemalloc.start()
    try:
        report = clip.embed(job)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (report.written, report.failed) == (IMAGES, 0)
    largest = max(map(len, pictures.values()))
    budget = budgets[LIMIT_BYTES]
    assert largest < budget.peak_bytes <= LIMIT_BYTES + largest
    assert budget.held_bytes == 0
    assert peak_bytes < LIMIT_BYTES + largest + SLACK_BYTES, "as much is held as the budget counts"


@pytest.mark.parametrize("dictionary", [False, True])
def test_rows_of_a_table_are_read_by_bytes(
    pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool
) -> None:
    values = list(pictures.values())[:1] * IMAGES if dictionary else list(pictures.values())
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet", use_dictionary=dictionary)
    read: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def watch(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in iter_batches(self, *arguments, **options):
            read.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    monkeypatch.setattr(parquet, "BYTES_AT_A_TIME", LIMIT_BYTES)
    source = Source((str(tmp_path / "a.parquet"),))
    parts = [part for shard in source.shards(IMAGES, Counter()) for part in shard.entries]
    assert all(isinstance(part, ContainerPart) for part in parts)
    read.clear()
    assert sum(len(list(source.members(part, 10**9, Counter()))) for part in parts) == IMAGES
    assert max(read) <= LIMIT_BYTES

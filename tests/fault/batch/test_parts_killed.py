"""Eight processes share a run and are killed at random moments: each id is there once, with the same vector.

`make soak` kills a hundred times. One process has a clock that is ten minutes ahead.
"""

import os
from pathlib import Path

import duckdb
import numpy as np
import pytest
from kit import forks
from kit.inputs import draw_photos
from kit.outputs import read_manifest, read_vectors

from clip.batch.verify import verify
from clip.jobs.verify import VerifyJob

PARTS, IMAGES, SHARD_SIZE = 8, 96, 4
KILLS = int(os.environ.get("CLIP_SOAK_PART_KILLS", "12"))
WITHIN_S = 3.0  # as long as eight processes take together on two cores
LEFT = {".lock.guard", "_plan", "embeddings", "failures", "manifest.json"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[list[int]]]:
    """The output of one process, that of eight, and with which codes these ended."""
    folder = tmp_path_factory.mktemp("parts")
    photos = draw_photos(folder / "photos", [f"{n:03}.png" for n in range(IMAGES)], broken=["040.broken.jpg"])
    flags = ["-m", "sketch", "--shard-size", str(SHARD_SIZE), "--threads", "1", "--workers", "1", "--progress", "none"]
    flags += ["--save-seconds", "0", "--batch-size", "2"]
    with forks.Server("serve_parts") as server:
        codes: list[list[int]] = []
        for name, parts, kills in (("one", 1, 0), ("eight", PARTS, KILLS)):
            arguments = [str(photos), "-o", str(folder / name), *flags]
            ended = server.ask(arguments=arguments, parts=parts, kills=kills, seed=0, within_s=WITHIN_S)
            assert ended.code == 0, ended.said
            codes = ended.answer["codes"]
    return folder / "one", folder / "eight", codes


def test_processes_were_killed_and_all_parts_ended_in_order(outputs: tuple[Path, Path, list[list[int]]]) -> None:
    codes = outputs[2]
    assert sum(code == -9 for of_part in codes for code in of_part) >= KILLS / 2
    assert {of_part[-1] for of_part in codes} <= {0, 3}, codes


def test_each_id_is_there_once_with_the_same_vector(outputs: tuple[Path, Path, list[list[int]]]) -> None:
    one, eight, _ = outputs
    found = duckdb.sql(f"SELECT count(*), count(DISTINCT id) FROM '{eight}/embeddings/*.parquet'").fetchall()
    assert found == [(IMAGES, IMAGES)]
    assert duckdb.sql(f"SELECT id FROM '{eight}/failures/*.parquet'").fetchall() == [("040.broken.jpg",)]
    expected, vectors = read_vectors(one), read_vectors(eight)
    assert vectors.keys() == expected.keys()
    assert all(np.array_equal(vectors[own_id], expected[own_id]) for own_id in expected)


def test_nothing_of_the_killed_is_left_and_the_counts_are_written(outputs: tuple[Path, Path, list[list[int]]]) -> None:
    one, eight, _ = outputs
    assert {path.name for path in eight.iterdir()} == LEFT
    names = {str(path.relative_to(eight)) for path in eight.rglob("*")}
    assert names == {str(path.relative_to(one)) for path in one.rglob("*")}
    assert read_manifest(eight)["counts"] == read_manifest(one)["counts"]
    assert verify(VerifyJob(output=eight)).problems == ()

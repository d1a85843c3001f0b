"""Whatever is done to an output at rest, each reader gives what it gave before, or an error that names a file."""

import logging
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.alterations import (
    NEVER_SOUND,
    ON_ANY_FILE,
    ON_OUTPUT,
    ON_PARTS,
    change_json,
    lie_about_rows,
    list_files,
    rewrite,
    unseal,
)
from kit.altered import find_wrong, read_all, write_output
from kit.outputs import write_part

from clip.errors import ClipError
from clip.jobs.verify import Problem

HANG_S = 60  # each reading takes a tenth of a second

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=False
)
SEEDS = st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Fail where a reader waits for a pipe or counts to 10^12, rather than wait with it."""

    def stop(*_: Any) -> NoReturn:
        raise AssertionError("a reader hangs")

    before = signal.signal(signal.SIGALRM, stop)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output(tmp_path_factory.mktemp("sound") / "out")


@pytest.fixture(scope="module")
def expected(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = read_all(sound, tmp_path_factory.mktemp("scratch") / "to")
    assert found["verify"] == ()
    assert not [value for value in found.values() if isinstance(value, ClipError)]
    return found


def copy(sound: Path, folder: Path) -> Path:
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.copytree(sound, folder / "out")  # with times of change, on which the derived files depend
    return folder / "out"


def read(out: Path) -> dict[str, Any]:
    signal.alarm(HANG_S)
    return read_all(out, out.with_name("to"))


def verified(found: dict[str, Any]) -> bool:
    return found["verify"] == ()


@pytest.mark.parametrize("name", ON_ANY_FILE)
@given(seed=SEEDS)
@settings(SETTINGS, max_examples=6)
def test_a_file_that_is_altered_is_noticed_by_verify_and_by_who_needs_it(
    sound: Path, expected: dict[str, Any], tmp_path: Path, name: str, seed: int
) -> None:
    rng, out = random.Random(seed), copy(sound, tmp_path)
    path = rng.choice(list_files(out))
    before = path.read_bytes()
    ON_ANY_FILE[name](path, rng)
    if path.is_file() and name != "device" and path.read_bytes() == before:
        return  # zeros that were there
    found = read(out)
    assert find_wrong(found, expected) == [], path
    remade = path.parent.name == "_index" and name in ("remove", "dangling")
    assert not verified(found) or remade, path


@pytest.mark.parametrize("name", ON_PARTS)
def test_a_part_that_is_written_anew_is_refused(
    sound: Path, expected: dict[str, Any], tmp_path: Path, name: str
) -> None:
    out = copy(sound, tmp_path)
    ON_PARTS[name](out / "embeddings/part-00001.parquet", random.Random(0))
    found = read(out)
    assert find_wrong(found, expected) == []
    assert not verified(found)
    assert all(isinstance(found[reader], ClipError) for reader in ("table", "vectors", "search", "export"))


@pytest.mark.parametrize("name", NEVER_SOUND)
def test_without_checksums_a_part_must_still_have_types_and_no_nulls(
    sound: Path, expected: dict[str, Any], tmp_path: Path, name: str
) -> None:
    out = copy(sound, tmp_path)
    unseal(out)
    assert find_wrong(read(out), expected) == []
    rewrite(NEVER_SOUND[name])(out / "embeddings/part-00001.parquet", random.Random(0))
    found = read(out)
    assert find_wrong(found, expected) == []
    assert not verified(found)


@pytest.mark.parametrize("name", [name for name in NEVER_SOUND if "vector" not in name and "number" not in name])
def test_without_checksums_a_listing_must_still_have_types_and_ids(
    sound: Path, expected: dict[str, Any], tmp_path: Path, name: str
) -> None:
    out = copy(sound, tmp_path)
    unseal(out)
    rewrite(NEVER_SOUND[name])(out / "_plan/shard-00001.parquet", random.Random(0))
    found = read(out)
    assert find_wrong(found, expected) == []
    assert not verified(found)


@given(seed=SEEDS)
@settings(SETTINGS, max_examples=8)
@pytest.mark.parametrize("name", ON_OUTPUT)
def test_parts_in_other_places_and_files_of_others_change_no_result(
    sound: Path, expected: dict[str, Any], tmp_path: Path, name: str, seed: int
) -> None:
    out = copy(sound, tmp_path)
    ON_OUTPUT[name](out, random.Random(seed))
    found = read(out)
    assert find_wrong(found, expected) == []
    assert verified(found) == (name == "foreign files")
    if name == "foreign files":
        assert not [value for value in found.values() if isinstance(value, ClipError)]


@given(seed=SEEDS, sealed=st.booleans())
@settings(SETTINGS, max_examples=25)
@pytest.mark.parametrize("name", ["manifest.json", "_plan/plan.json"])
def test_counts_and_types_that_cannot_be_are_errors(
    sound: Path, tmp_path: Path, name: str, *, seed: int, sealed: bool
) -> None:
    """With a valid checksum, as whoever shares an output can give it: no traceback, no hang."""
    out = copy(sound, tmp_path)
    change_json(out / name, random.Random(seed), sealed=sealed)
    found = read(out)
    assert all(isinstance(value, (ClipError, tuple, list, dict, bytes)) for value in found.values())


@pytest.mark.parametrize("value", ["x", "-1", "null", '{"a": -1}', "9" * 5000, "[" * 10**5])
@pytest.mark.parametrize("key", ["clip.read", "clip.frames", "clip.ignored", "clip.mark"])
def test_counts_in_a_footer_are_counts(
    sound: Path, expected: dict[str, Any], tmp_path: Path, key: str, value: str
) -> None:
    out = copy(sound, tmp_path)
    part = out / "embeddings/part-00001.parquet"
    metadata = {**pq.read_metadata(part).metadata, key.encode(): value.encode()}
    write_part(part, pq.read_table(part), metadata)
    found = read(out)
    assert find_wrong(found, expected) == []
    assert not verified(found)


@pytest.mark.parametrize("rows", [10**12, 2**40, 0, -5, 8, 10])
@pytest.mark.parametrize("folder", ["embeddings", "failures"])
def test_a_footer_that_counts_other_rows_is_an_error(
    sound: Path, expected: dict[str, Any], tmp_path: Path, folder: str, rows: int
) -> None:
    out = copy(sound, tmp_path)
    unseal(out)
    lie_about_rows(out / folder / "part-00000.parquet", rows)
    found = read(out)
    assert find_wrong(found, expected) == []
    assert isinstance(found["verify"], ClipError) or all(isinstance(one, Problem) for one in found["verify"])
    assert not verified(found)

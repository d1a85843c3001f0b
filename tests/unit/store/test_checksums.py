"""Files with a checksum of all their bytes: no bit of them changes unnoticed."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip.errors import StoreError
from clip.store.checksums import TableWriter, check_footer, check_whole, dump_json, load_json
from clip.store.parts import Parts

SEED = "run/embeddings/part-00000.parquet"
SCHEMA = pa.schema([("id", pa.string()), ("path", pa.string()), ("embedding", pa.list_(pa.float32(), 4))])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def write(path: Path, seed: str = SEED, groups: int = 2) -> bytes:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        writer = TableWriter(file, SCHEMA, seed, dictionary=["id", "path"])
        for group in range(groups):
            vectors = pa.array(np.arange(20, dtype=np.float32) + group)
            ids = [f"{group}/{n}" for n in range(5)]
            writer.write(pa.table([ids, ids, pa.FixedSizeListArray.from_arrays(vectors, 4)], schema=SCHEMA))
        writer.note({b"clip.read": "10"})
        writer.close()
    return path.read_bytes()


def test_no_bit_of_a_table_changes_unnoticed(tmp_path: Path) -> None:
    """The whole file's checksum finds each; reading finds those that matter: headers of pages have none."""
    path = tmp_path / "embeddings/part-00000.parquet"
    whole, parts = write(path), Parts(tmp_path, SCHEMA, "run")
    expected = parts.read(path)
    assert parts.check(path)
    quiet = 0
    for bit in range(0, 8 * len(whole), 31):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(
            StoreError, match=r"part-00000\.parquet: cannot be read .* Remove it, and run the job again"
        ):
            parts.check(path)
        try:
            assert parts.read(path).equals(expected), bit
            quiet += 1
        except StoreError:
            pass
    assert quiet < 0.1 * 8 * len(whole) / 31


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_other_readers_read_it_and_see_the_checksums(tmp_path: Path, groups: int) -> None:
    path = tmp_path / "embeddings/part-00000.parquet"
    whole = write(path, groups=groups)
    assert pq.read_table(path).num_rows == 5 * groups
    footer = pq.read_metadata(path)
    assert (footer.num_rows, footer.metadata[b"clip.read"]) == (5 * groups, b"10")
    value = footer.metadata[b"clip.checksum"]
    blank = whole.replace(value, b"0" * 16)
    assert int(value[8:], 16) == zlib.crc32(blank, zlib.crc32(SEED.encode()))


def test_a_table_of_another_run_or_name_does_not_pass(tmp_path: Path) -> None:
    path = tmp_path / "embeddings/part-00001.parquet"
    write(path, seed="run/embeddings/part-00001.parquet")
    Parts(tmp_path, SCHEMA, "run").read(path)
    with pytest.raises(StoreError, match="of another run or name"):
        Parts(tmp_path, SCHEMA, "other").read(path)
    path = path.rename(tmp_path / "embeddings/part-00002.parquet")
    with pytest.raises(StoreError, match="of another run or name"):
        Parts(tmp_path, SCHEMA, "run").read(path)


def test_a_table_without_checksums_is_told_apart() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), file)
    assert check_footer(file, SEED) is None
    assert not check_whole(file, SEED)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\x7fPAR1", bytes(20)])
def test_what_is_no_parquet_file_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="its end is missing, or it is no Parquet file"):
        check_footer(io.BytesIO(data), SEED)


@given(content=st.dictionaries(st.text().filter(lambda key: key != "checksum"), JSON, max_size=5))
def test_an_object_comes_back_with_its_checksum_compared(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(dump_json(content))
    assert load_json(path) == (content, True)
    assert list(json.loads(path.read_text())) == [*content, "checksum"]
    path.write_text(json.dumps(content))
    assert load_json(path) == (content, False)


def test_no_bit_of_an_object_changes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    whole = dump_json({"dim": 4, "name": "é", "more": {"x": [1, None]}})
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            content, carried = load_json(path)
        except ValueError:
            continue
        assert not carried, bit  # the key itself: who needs a checksum says that there is none
        assert "checksum" not in content


@pytest.mark.parametrize("data", ["", "[]", "7", "{", "[" * 100_000, '{"a": 1, "checksum": 7}', '{"checksum": null'])
def test_what_is_no_object_is_an_error(tmp_path: Path, data: str) -> None:
    (tmp_path / "a.json").write_text(data)
    with pytest.raises(ValueError, match=r"it is no object|it is not as|Expecting|nested too deeply"):
        load_json(tmp_path / "a.json")

"""The plan gives the listed entries back, bytes and all, shard by shard; memory holds one shard."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip.errors import StoreError
from clip.records import Failure, Item, Shard, utf8_path
from clip.store import plan
from clip.store.plan import compute_fingerprint, read_plan, recover_listing, write_plan

NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)
ENTRIES = st.builds(
    lambda name, size, listed: (
        Item(utf8_path(os.fsdecode(name)), os.fsdecode(name), size)
        if listed
        else Failure(utf8_path(os.fsdecode(name)), os.fsdecode(name), "read", "OSError", f"broken\n{size}")
    ),
    NAMES,
    st.integers(0, 2**40),
    st.booleans(),
)


def shards(*lists: list[Any]) -> Iterator[Shard]:
    return (Shard(index, entries) for index, entries in enumerate(lists))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=st.lists(st.lists(ENTRIES, min_size=1, max_size=5), max_size=3))
def test_entries_are_read_as_they_were_listed(tmp_path: Path, lists: list[list[Any]]) -> None:
    made = write_plan(tmp_path, shards(*lists), Counter(hidden=2)).adopt()
    assert [made.shard(index).entries for index in range(made.shards)] == lists
    assert (made.entries, made.ignored) == (sum(map(len, lists)), {"hidden": 2})


def test_it_is_written_into_the_output_with_the_keys_of_0_1_0(tmp_path: Path) -> None:
    made = write_plan(tmp_path, shards([Item("a", "x/a", 1)], [Item("b", "x/b", 2)]), Counter()).adopt()
    assert sorted(path.name for path in (tmp_path / "_plan").iterdir()) == [
        "plan.json",
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    content = json.loads((tmp_path / "_plan/plan.json").read_text())
    assert len(content.pop("checksum")) == 8
    assert content == {
        "shards": 2,
        "entries": 2,
        "packs": 0,
        "total": 2,
        "ignored": {},
        "fingerprint": made.fingerprint,
    }


def test_the_fingerprint_is_that_of_ids_sizes_and_times_wherever_they_lie_and_however_they_are_cut(
    tmp_path: Path,
) -> None:
    def fingerprint(*lists: list[Any]) -> str:
        return write_plan(tmp_path, shards(*lists), Counter()).fingerprint

    a, b = Item("a", "x/a", 1), Item("b", "x/b", 2)
    assert fingerprint([a, b]) == fingerprint([a], [b]) == fingerprint([Item("a", "y/a", 1), b])
    unlisted = Failure("b", "x/b", "read", "OSError", "")
    assert fingerprint([b, a]) == fingerprint([a, b]), "an updated output has another order"
    others = [[a], [a, a, b], [a, Item("b", "x/b", 3)], [a, Item("b", "x/b", 2, 5)], [a, Item("c", "x/b", 2)]]
    assert len({fingerprint(entries) for entries in ([a, b], *others, [a, unlisted])}) == 7


def test_a_new_plan_takes_an_olds_place_when_it_is_adopted_and_not_before(tmp_path: Path) -> None:
    write_plan(tmp_path, shards([Item("a", "a", 1)], [Item("b", "b", 1)]), Counter()).adopt()
    second = write_plan(tmp_path, shards([Item("c", "c", 1)]), Counter())
    assert len(list((tmp_path / "_plan").glob("shard-*"))) == 2
    assert second.adopt().shard(0).entries == [Item("c", "c", 1)]
    assert len(list((tmp_path / "_plan").glob("shard-*"))) == 1
    assert not (tmp_path / "_plan.new").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"shards": 1, "packs": 0}', '{"shards": 1, "more": 2}'])
def test_a_damaged_plan_is_named_with_the_way_to_make_it_anew(tmp_path: Path, content: str) -> None:
    write_plan(tmp_path, shards([Item("a", "a", 1)]), Counter()).adopt()
    assert read_plan(tmp_path) is not None
    (tmp_path / "_plan/plan.json").write_text(content)
    with pytest.raises(StoreError, match=r"plan\.json: cannot be read .* Remove .*_plan, and run again"):
        read_plan(tmp_path)
    (tmp_path / "_plan/plan.json").unlink()
    assert read_plan(tmp_path) is None


def test_shards_are_taken_one_at_a_time_and_written_before_the_next(tmp_path: Path) -> None:
    def listed() -> Iterator[Shard]:
        for index in range(3):
            assert len(list((tmp_path / "_plan.new").glob("shard-*.parquet"))) == index
            yield Shard(index, [Item(str(index), str(index), 1)])

    assert write_plan(tmp_path, listed(), Counter()).shards == 3


def test_what_a_listing_that_was_killed_left_is_no_part_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "_plan.new").mkdir()
    (tmp_path / "_plan.new" / "shard-00007.parquet").write_bytes(b"half")
    made = write_plan(tmp_path, shards([Item("a", "a", 1)]), Counter()).adopt()
    assert not (made.folder / "shard-00007.parquet").exists()


def test_an_output_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write_plan(tmp_path / "missing", shards(), Counter())


def test_the_reasons_are_read_when_all_is_listed(tmp_path: Path) -> None:
    ignored: Counter[str] = Counter()

    def listed() -> Iterator[Shard]:
        yield Shard(0, [Item("a", "a", 1)])
        ignored["hidden"] += 1

    assert write_plan(tmp_path, listed(), ignored).ignored == {"hidden": 1}
    assert plan.PLAN == "_plan"


def test_a_shard_has_its_fingerprint_and_the_ids_that_are_carried_over(tmp_path: Path) -> None:
    a, b = Item("a", "x/a", 1), Item("b", "x/b", 2)
    fresh, updated = Shard(0, [a, b]), Shard(1, [a, b], "given", frozenset({"b"}))
    made = write_plan(tmp_path, iter([fresh, updated]), Counter()).adopt()
    assert made.shard(0).fingerprint == compute_fingerprint([a, b]) != compute_fingerprint([b, a])
    assert compute_fingerprint([a, b], "given") != compute_fingerprint([a, b])
    assert made.shard(1) == updated
    assert [(summary.fingerprint, summary.entries, summary.carried_over) for summary in made.summaries()] == [
        (compute_fingerprint([a, b]), 2, 0),
        ("given", 2, 1),
    ]


def test_a_kill_between_the_renames_of_adopting_loses_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(tmp_path, shards([Item("a", "x/a", 1)]), Counter()).adopt()
    new = write_plan(tmp_path, shards([Item("b", "x/b", 1)]), Counter())
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "_plan.new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        new.adopt()
    monkeypatch.undo()
    adopted = read_plan(tmp_path)
    assert adopted is not None
    assert [entry.id for entry in adopted.shard(0).entries] == ["a"]
    write_plan(tmp_path, shards([Item("c", "x/c", 1)]), Counter()).adopt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_plan"]


def test_a_listing_that_was_killed_is_known_to_the_next_and_the_longer_one_of_two(tmp_path: Path) -> None:
    items = [[Item(f"{n}", f"x/{n}", n, n)] for n in range(4)]

    def killed_after(count: int) -> Iterator[Shard]:
        yield from shards(*items[:count])
        raise KeyboardInterrupt

    assert list(recover_listing(tmp_path, "photos")) == []
    for count, expected in ((3, 3), (2, 3), (4, 4)):
        with pytest.raises(KeyboardInterrupt):
            write_plan(tmp_path, killed_after(count), Counter(), inputs="photos")
        assert list(recover_listing(tmp_path, "photos")) == [item for shard in items[:expected] for item in shard]
    assert list(recover_listing(tmp_path, "others")) == [], "another input has nothing to do with it"
    write_plan(tmp_path, shards(*items), Counter()).adopt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_plan"]

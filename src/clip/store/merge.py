"""merge(job): make one output of several, without embedding anything.

Outputs of parts of one run (`clip embed --part`, each with an output of its own) are put together shard by shard. Those
of several runs follow each other: the result has the rows, the ids and the listing of one run over all their inputs, so
that the next `clip embed` of these goes on from it. Ids and paths then start at the folder that holds all images.

A part that stays as it is becomes a hard link, or a copy on another disk. Any other is read, checked and written anew,
as its name and its run go into its checksums.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..atomic_files import atomic_write, open_regular, sync_folder, translate_os_errors
from ..errors import InputError, StoreError, StoreMismatchError
from ..jobs.merge import MergeJob, MergeReport
from ..object_paths import ObjectPath
from ..records import ContainerPart, Entry, Item, Shard, join_root, listed_id, utf8_path
from .lock import hold_lock
from .manifest import COMPARED_KEYS, Manifest
from .parts import EMBEDDINGS, FAILURES
from .plan import Plan, collect_id_hashes, read_plan, write_plan
from .reader import Store
from .writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

# The outputs must agree in what vectors and columns depend on; what decided which entries there are may differ.
FREE_KEYS = {"guards", "delimiter", "quoting", "shard_size"}
MERGED_KEYS = tuple(key for key in COMPARED_KEYS if key not in FREE_KEYS)
# What scores depend on: columns and number types of outputs that are searched together may differ.
SEARCHED_KEYS = tuple(key for key in MERGED_KEYS if key not in {"dtype", "hashes", "keep", "long_text", "normalised"})


@dataclass(frozen=True)
class _Output:
    """An output that is merged, its plan, and the folder in which its images are now seen from the common base."""

    store: Store
    plan: Plan
    prefix: str = ""

    def rename(self, entry: Entry) -> Entry:
        """Return an entry with its id and path from the common base."""
        path = join_root(self.prefix, entry.path)
        if path == entry.path:
            return entry
        if isinstance(entry, ContainerPart):
            is_place = utf8_path(entry.path) == utf8_path(entry.name)
            return replace(entry, path=path, name=f"{self.prefix}/{entry.name}" if is_place else entry.name)
        is_place = utf8_path(entry.path) == utf8_path(entry.id)
        own_id = f"{self.prefix}/{entry.id}" if is_place else entry.id  # else a list or a column gave it
        if isinstance(entry, Item):
            return entry._replace(id=own_id, path=path)
        return replace(entry, id=own_id, path=path)


@dataclass(frozen=True)
class _Piece:
    """A shard of the result, and the output and the shard that it comes from."""

    output: _Output
    index: int
    shard: Shard


def merge(job: MergeJob) -> MergeReport:
    """Write one output that has the rows of several. The same call again goes on with one that was interrupted.

    Raises:  StoreError for an output that is not there, not finished or damaged; StoreMismatchError where two differ in
             what their vectors depend on, or the folder to write holds something else; InputError for an id that
             occurs in two; StoreBusyError.
    """
    target = Path(job.output)
    outputs = [_open(name) for name in job.outputs]
    manifest, outputs = _combine([output.store.manifest for output in outputs], outputs, target)
    with translate_os_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    with hold_lock(target) as lock:
        store = StoreWriter(target, manifest)
        shared = _share(outputs)
        pieces = list(_follow(outputs)) if shared is None else shared
        plan = _plan(store, outputs, pieces)
        linked = copied = 0
        for piece in pieces:
            fingerprint = plan.summary(piece.shard.index).fingerprint
            if not store.is_done(piece.shard.index, fingerprint):
                if _may_link(piece, store, fingerprint):
                    _link(piece, store)
                    linked += 1
                else:
                    _copy(piece, store, replace(piece.shard, fingerprint=fingerprint))
                    copied += 1
                lock.check()
        counts = _count(store, plan, None if shared else outputs)
        store.finish(counts)
    return MergeReport(target, counts["read"], counts["written"], counts["failed"], linked, copied)


def check_alike(first: Store, other: Store, keys: tuple[str, ...] = SEARCHED_KEYS) -> None:
    """Raise StoreMismatchError where two outputs differ in what they must have in common, naming the first field."""
    mine, theirs = first.manifest, other.manifest
    difference = mine.first_difference(theirs, keys)
    has_column = [(manifest.warnings, manifest.text_warnings) for manifest in (mine, theirs)]
    if difference is None and keys != SEARCHED_KEYS and has_column[0] != has_column[1]:
        difference = ("warnings", *has_column)
    if difference is not None:
        key, *values = difference
        found, expected = f"holds a run whose {key} is {values[1]!r:.60}", f"{values[0]!r:.60} as in {first.path}"
        raise StoreMismatchError(other.path, found, expected, "Leave it out, or embed its images again.")


def _open(name: str) -> _Output:
    store = Store(name)
    plan = read_plan(store.path)
    if plan is None:
        raise StoreError(store.path, "holds no complete listing", "one", "Run its job again.")
    if store.manifest.base is None:
        raise StoreError(store.path, "is of version 0.1.0", "paths from a base", "Run its job again with `overwrite`.")
    return _Output(store, plan)


def _combine(manifests: list[Manifest], outputs: list[_Output], target: Path) -> tuple[Manifest, list[_Output]]:
    """Return the manifest of the result, and the outputs with their prefixes. Raises: StoreMismatchError."""
    first = manifests[0]
    for output in outputs[1:]:
        check_alike(outputs[0].store, output.store, (*MERGED_KEYS, "duplicate_ids"))
    bases = [manifest.find_base(output.store.path) for output, manifest in zip(outputs, manifests, strict=True)]
    base = os.path.commonpath(bases) if all(map(os.path.isabs, bases)) else ""
    if len(set(bases)) == 1:
        base = bases[0]
    elif not base:
        found = f"start at {bases[0] or 'no folder'!r} and {bases[1] or 'no folder'!r}"
        raise StoreMismatchError("paths", found, "one disk, or the same place", "Merge those of one place.")
    prefixes = ["" if one == base else os.path.relpath(one, base).replace(os.sep, "/") for one in bases]
    merged = replace(
        first,
        source=tuple(dict.fromkeys(chain.from_iterable(manifest.source for manifest in manifests))),
        globs=tuple(dict.fromkeys(chain.from_iterable(manifest.globs for manifest in manifests))),
        root=first.root if not any(prefixes) else "",
        base=base,
        base_from_output=os.path.relpath(base, target.absolute()) if base else "",
        limit=first.limit if len({manifest.limit for manifest in manifests}) == 1 else None,
        input_fingerprint=None,
        counts=None,
        parts=0,
    )
    return merged, [replace(output, prefix=prefix) for output, prefix in zip(outputs, prefixes, strict=True)]


def _share(outputs: list[_Output]) -> list[_Piece] | None:
    """Return the shards of outputs that are parts of one run, each from the first that has it; None for several runs.

    Raises:  StoreError where none has a shard.
    """
    first = outputs[0].plan
    summaries = first.summaries()
    of_one = all(
        output.store.manifest.run == outputs[0].store.manifest.run
        and not output.prefix
        # Their shards are compared only where the numbers agree.
        and (output.plan.shards, output.plan.fingerprint) == (first.shards, first.fingerprint)
        and output.plan.summaries() == summaries
        for output in outputs
    )
    if not of_one:
        return None
    pieces: list[_Piece] = []
    missing: list[int] = []
    for index, summary in enumerate(summaries):
        owner = next((output for output in outputs if _has(output, index, summary.fingerprint)), None)
        if owner is None:
            missing.append(index)
        else:
            pieces.append(_Piece(owner, index, Shard(index, [], summary.fingerprint)))
    if missing:
        found = f"{len(missing):,} of {len(summaries):,} parts are in none of them, the first is {missing[0]:05}"
        raise StoreError("outputs", found, "all parts of the run", "Finish the parts that are missing.")
    return pieces


def _has(output: _Output, index: int, fingerprint: str) -> bool:
    files = output.store.files
    paths = [files.path(folder, index) for folder in (EMBEDDINGS, FAILURES)]
    return files.has(index) and {files.summarise(path).fingerprint for path in paths} == {fingerprint}


def _follow(outputs: list[_Output]) -> Iterator[_Piece]:
    """Yield the shards of several runs, one after another. Raises: StoreError for one that is not finished."""
    number = 0
    for output in outputs:
        if output.store.manifest.counts is None:
            raise StoreError(output.store.path, "the run is not over", "a finished one", "Run its job again.")
        for index in range(output.plan.shards):
            yield _Piece(output, index, Shard(number, []))
            number += 1


def _plan(store: StoreWriter, outputs: list[_Output], pieces: list[_Piece]) -> Plan:
    """Write the listing of the result. Raises: InputError for an id that occurs twice."""

    def list_shards() -> Iterator[Shard]:
        for piece in pieces:
            shard = piece.output.plan.shard(piece.index)
            entries = [piece.output.rename(entry) for entry in shard.entries]
            fingerprint = shard.fingerprint if entries == shard.entries else ""
            yield Shard(piece.shard.index, entries, fingerprint)

    ignored: Counter[str] = Counter()
    runs = {output.plan.fingerprint: output for output in outputs}
    for output in runs.values():
        ignored.update(output.plan.ignored)
    hashed: list[np.ndarray] = []
    plan = write_plan(store.path, collect_id_hashes(list_shards(), hashed), ignored, has_base=True)
    if store.manifest.duplicate_ids == "error" and (pair := plan.find_repeated(hashed)) is not None:
        plan.discard()
        places = [utf8_path(join_root(store.manifest.base or "", entry.path)) for entry in pair]
        found = f"found as the id of {places[0]} and of {places[1]}"
        raise InputError(repr(pair[0].id), found, "one entry for each id", "Leave one of the outputs out.")
    if not store.has_input(plan.fingerprint):
        plan.discard()
        raise StoreMismatchError(store.path, "holds another run", "nothing, or this merge", "Choose another output.")
    store.begin(plan.fingerprint)
    return plan.adopt()


def _may_link(piece: _Piece, store: StoreWriter, fingerprint: str) -> bool:
    """Whether the files of a shard would be the same in the result, to the bit."""
    of_run = piece.output.store.manifest.run == store.manifest.run != ""
    return of_run and piece.index == piece.shard.index and _has(piece.output, piece.index, fingerprint)


def _link(piece: _Piece, store: StoreWriter) -> None:
    for folder in (FAILURES, EMBEDDINGS):
        source, path = piece.output.store.files.path(folder, piece.index), store.parts.path(folder, piece.index)
        piece.output.store.files.check(source)
        with translate_os_errors(path):
            path.unlink(missing_ok=True)
            if not isinstance(source, ObjectPath):
                with suppress(OSError):  # of another disk, or one without hard links
                    os.link(source, path, follow_symlinks=True)
                    sync_folder(path.parent)
                    continue
            with open_regular(source) as file, atomic_write(path) as copy:
                shutil.copyfileobj(file, copy)


def _copy(piece: _Piece, store: StoreWriter, shard: Shard) -> None:
    """Write a part anew, with the ids and paths that it has from the common base."""
    files = piece.output.store.files
    paths = {folder: files.path(folder, piece.index) for folder in (EMBEDDINGS, FAILURES)}
    for path in paths.values():
        files.check(path)
    entries = piece.output.plan.shard(piece.index).entries
    ids = {entry.id: piece.output.rename(entry).id for entry in entries}
    names = {e.name: renamed.name for e in entries if isinstance(e, ContainerPart)
             if isinstance(renamed := piece.output.rename(e), ContainerPart)}  # fmt: skip
    summary = files.summarise(paths[EMBEDDINGS])
    with store.part(shard) as writer:
        for groups in zip_longest(*map(files.read_groups, paths.values())):
            tables = zip(paths, groups, strict=True)
            writer.add_tables(
                {
                    folder: _rename_rows(table, ids, names, utf8_path(piece.output.prefix)).cast(
                        store.schema if folder == EMBEDDINGS else table.schema
                    )
                    for folder, table in tables
                    if table is not None
                }
            )
        outcomes = summary.rows + files.summarise(paths[FAILURES]).rows
        writer.note(
            (outcomes if summary.read is None else summary.read) - summary.frames, summary.ignored, summary.frames
        )


def _rename_rows(table: pa.Table, ids: dict[str, str], names: dict[str, str], prefix: str) -> pa.Table:
    """Return rows with their ids and paths from the common base; `names` are those of the shard's container."""
    if not prefix:
        return table
    renamed: list[str] = []
    for own_id in table["id"].to_pylist():
        listed = listed_id(own_id, ids)
        container = next((name for name in names if own_id.startswith(f"{name}!")), None)
        if listed in ids:
            renamed.append(ids[listed] + own_id[len(listed) :])
        else:
            renamed.append(own_id if container is None else names[container] + own_id[len(container) :])
    columns: dict[str, Any] = {"id": renamed, "path": [join_root(prefix, path) for path in table["path"].to_pylist()]}
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
    return table


def _count(store: StoreWriter, plan: Plan, finished: list[_Output] | None) -> dict[str, Any]:
    """Count the rows of the result, and compare them with those of runs that are over. Raises: StoreError."""
    written, failed = store.counts(range(plan.shards))
    counts = [output.store.manifest.counts or {} for output in finished or ()]
    expected = sum(count["written"] + count["failed"] for count in counts)
    if finished is not None and written + failed != expected:
        found = f"holds {written + failed:,} rows and failures"
        raise StoreError(store.path, found, f"{expected:,}, as the outputs count", "Verify them, and merge again.")
    ignored = Counter(plan.ignored)
    for index in range(plan.shards):
        ignored.update(store.parts.summarise(store.parts.path(EMBEDDINGS, index)).ignored)
    return {"read": written + failed, "written": written, "failed": failed, "ignored": dict(ignored)}

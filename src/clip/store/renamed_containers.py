"""Rename the rows of an archive or a table that an update finds under another name; nothing of it is read again."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import pyarrow as pa

from ..records import ContainerPart, utf8_path
from .parts import EMBEDDINGS, FAILURES, Parts

if TYPE_CHECKING:
    from ..records import Shard
    from .plan import Plan
    from .writer import StoreWriter


def are_at_its_path(parts: Parts, index: int, part: ContainerPart) -> bool:
    """Whether all rows of a container's shard have its own path, and not those that a table's structs name."""
    own = {utf8_path(part.path)}
    tables = [parts.read_or_empty(parts.path(folder, index), ["path"]) for folder in (EMBEDDINGS, FAILURES)]
    return all(set(table["path"].unique().to_pylist()) <= own for table in tables)


def rename_containers(store: StoreWriter, plan: Plan) -> None:
    """Write the parts anew of shards whose container has another name, under the ids and the path that it has now.

    Raises:  StoreError for a part that cannot be read or written.
    """
    for index, summary in enumerate(plan.summaries()):
        if summary.carried_over == summary.entries == 1:
            shard = plan.shard(index)
            [entry] = shard.entries
            if isinstance(entry, ContainerPart):
                _rename(store, shard, entry)


def _rename(store: StoreWriter, shard: Shard, entry: ContainerPart) -> None:
    was = shard.renamed[entry.id]
    before = was.removesuffix(f"!{entry.start}...") if entry.start else was  # as `ContainerPart.id` makes it
    paths = {folder: store.parts.path(folder, shard.index) for folder in (EMBEDDINGS, FAILURES)}
    summary = store.parts.summarise(paths[EMBEDDINGS])
    with store.part(replace(shard, carried_over=frozenset(), renamed={})) as writer:
        for groups in zip_longest(*map(store.parts.read_groups, paths.values())):
            tables = zip(paths, groups, strict=True)
            writer.add_tables({folder: _replace(table, before, entry) for folder, table in tables if table is not None})
        writer.note((summary.read or 0) - summary.frames, summary.ignored, summary.frames)


def _replace(table: pa.Table, before: str, entry: ContainerPart) -> pa.Table:
    """Return rows with the ids and the path that they have now; ids that a column gave stay."""
    is_own = [own_id == before or own_id.startswith(f"{before}!") for own_id in table["id"].to_pylist()]
    ids = [
        entry.name + own_id[len(before) :] if own else own_id
        for own, own_id in zip(is_own, table["id"].to_pylist(), strict=True)
    ]
    columns = {"id": ids, "path": [utf8_path(entry.path)] * len(ids)}
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
    return table

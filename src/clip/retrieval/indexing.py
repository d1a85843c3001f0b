"""index(job) and open_any(store): the index of an output, exact or IVF, made, brought up to date, checked and opened.

An output with a file ivf.index is searched by it, any other by exact.index.
"""

from __future__ import annotations

import logging
import shutil
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from ..atomic_files import sync_folder, translate_os_errors
from ..errors import ClipError, StoreError
from ..jobs.index import IndexJob, IndexReport, Recall
from ..store.checksummed_file import change_header
from ..store.lock import check_guard
from ..store.reader import Store
from ..store.rows_file import ROWS_FILE, RowsFile, open_derived
from ..vectors import unit_vectors
from .index_file import FILE, ExactIndex, check_index, check_rows, open_index
from .ivf_build import WORK, build
from .ivf_file import IVF_FILE, IvfIndex, IvfLists
from .recall import measure, read_text_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    Tell = Callable[[str, int, int], None]

IVF_LOCK = ".ivf.guard"
READS_MORE = 2.0  # times as much as when the lists were made: then they are worth making anew
_log = logging.getLogger("clip")


def index(job: IndexJob, progress: Tell = lambda _what, _done, _total: None) -> IndexReport:
    """Make the index of an output, unless there is one that is whole and up to date.

    `progress` is called with what is counted ("rows encoded"), how many are done and of how many.

    Raises:  StoreError if there is no output, a part is damaged, or the index cannot be written; StoreBusyError if a
             job keeps changing the parts; MissingExtraError for ivf without faiss; as Encoder for a `model` that is
             named.
    """
    started = time.monotonic()
    store = Store(job.output)
    folder = store.index_folder
    if job.type == "exact" or (job.type is None and not (folder / IVF_FILE).exists()):
        exact, made = check_index(store)
        store.check_rows(len(exact.rows))
        with translate_os_errors(folder):
            (folder / IVF_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder / WORK, ignore_errors=True)
        seconds = time.monotonic() - started
        return IndexReport(folder / FILE, len(exact.rows), _measure_files(folder, FILE), made, seconds)
    rows = check_rows(store, partial(progress, "rows stored"))
    store.check_rows(len(rows))
    found, made = make_ivf(store, rows, job, progress, checks=True)
    if job.type == "ivf":
        with translate_os_errors(folder):
            (folder / FILE).unlink(missing_ok=True)
    size_bytes, seconds = _measure_files(folder, IVF_FILE), time.monotonic() - started
    recall = tuple(Recall(name, **values) for name, values in found.header["measured"].items())
    lists = len(found.centroids)
    return IndexReport(
        *(folder / IVF_FILE, len(rows), size_bytes, made, seconds, "ivf", found.kind, lists, recall),
        _advise(found.header),
    )


def open_any(
    store: Store, model: str | None = None, device: str = "auto", tell: Callable[[str], None] = lambda _: None
) -> ExactIndex | IvfIndex:
    """Return the index by which an output is searched; make it, or bring it up to date, where it is not current.

    `model` and `device` are for texts that measure an IVF index. `tell` is called with a message before that.

    Raises:  as `open_index`; MissingExtraError for an IVF index without faiss.
    """
    path = store.index_folder / IVF_FILE
    if open_derived(path) is None:
        return open_index(store, tell)
    rows = store.find_rows()
    found = None if rows is None else _find_current(store, rows)
    if found is None:
        tell(f"{path}: being brought up to date with the present parts")
        rows = rows or store.make_rows()
        found, _ = make_ivf(store, rows, IndexJob(output=store.path, model=model, device=device), lambda *_: None)
    store.check_rows(len(found.rows))
    return found


def make_ivf(store: Store, rows: RowsFile, job: IndexJob, tell: Tell, *, checks: bool = False) -> tuple[IvfIndex, bool]:
    """Return the IVF index of an output as a job wants it, and whether it was made or changed now.

    With `checks` all of an existing one is checked. Without a type in the job, an existing one keeps its options.

    Raises:  StoreError if it cannot be written, or the rows are damaged; MissingExtraError without faiss.
    """
    folder = store.index_folder
    with translate_os_errors(folder):
        store.make_index_folder()
        with FileLock(check_guard(folder / IVF_LOCK)):
            old = _open_old(store, rows, checks=checks)
            options: dict[str, Any] = {"codes": job.codes, "recall": job.recall, "memory": job.memory}
            if old is not None and job.type is None:
                options = old.header["options"]
            current = None if job.rebuild or old is None else _find_current(store, rows)
            if old is not None and current is not None and old.header["options"] == options:
                return current, False
            if not len(rows):
                raise StoreError(store.path, "holds no vectors", remedy="Embed images into it first.")
            if job.rebuild or (old is not None and old.kind != options["codes"]):
                old = None
            path, header = build(folder / WORK, rows, options["codes"], options["memory"], old, tell)
            merged = open_derived(path)
            if merged is None:
                raise StoreError(path, "is gone", "it as it was written", "Run clip index again.")
            texts = _encode_texts(store, job.model, job.device)
            measured = measure(IvfIndex(merged, rows), texts, options["recall"], tell)
            share = measured["rows"]["share"] if old is None else old.header["first_share"]
            change_header(path, {"measured": measured, "options": options, "first_share": share})
            path.replace(folder / IVF_FILE)
            sync_folder(folder)
            shutil.rmtree(folder / WORK, ignore_errors=True)
            _log.debug("%s: %s", folder / IVF_FILE, header["stamp"])
    current = _find_current(store, rows)
    if current is None:
        raise StoreError(folder / IVF_FILE, "was replaced meanwhile", remedy="Run clip index again.")
    return current, True


def explain(found: ExactIndex | IvfIndex) -> list[str]:
    """Return how an index is searched, in words, and what was measured of it."""
    if isinstance(found, ExactIndex):
        return [f"exact: all {len(found.rows):,} rows are scanned"]
    lists = len(found.centroids)
    measured = [Recall(name, **values) for name, values in found.header["measured"].items()]
    advice = _advise(found.header)
    return [*(describe(one, lists) for one in measured), *([advice] if advice else [])]


def describe(recall: Recall, lists: int) -> str:
    """Return what was measured for queries of one kind, in words."""
    what = "queries like the rows" if recall.queries == "rows" else "text queries"
    reads = f"{recall.lists:,} of {lists:,} lists ({100 * recall.share:.2f} % of the rows) are read"
    again = f"{recall.again:,} rows are compared again as they are stored"
    if not recall.count:
        return f"recall@10 of {what} was not measured, as the model is not on this machine: {reads}, {again}"
    return (
        f"recall@10 of {what} {recall.recall:.4f} by {recall.count:,} of them: {reads}, {again}; "
        f"{recall.milliseconds:.1f} ms"
    )


def _advise(header: dict[str, Any]) -> str:
    """Return what to do about an index that has become worse by updates; empty where it is well."""
    remedy = "Run clip index with --type ivf --rebuild."
    target, share, first = header["options"]["recall"], header["measured"]["rows"]["share"], header["first_share"]
    worst = min((one["recall"] for one in header["measured"].values() if one["count"]), default=1.0)
    if worst < target:
        return f"The recall is {worst:.4f}, and {target} was asked for. {remedy}"
    if first and share > READS_MORE * first:
        return f"A search reads {share / first:.1f} times as much as when the lists were made. {remedy}"
    return ""


def _find_current(store: Store, rows: RowsFile) -> IvfIndex | None:
    """Return the IVF index in OUT; None where there is none of these rows. Raises: StoreError if it is damaged."""
    file = open_derived(store.index_folder / IVF_FILE)
    return None if file is None or file.header.get("stamp") != rows.stamp else IvfIndex(file, rows)


def _open_old(store: Store, rows: RowsFile, *, checks: bool) -> IvfLists | None:
    """Return the lists in OUT, of whichever parts; None where there are none, or they are damaged."""
    try:
        file = open_derived(store.index_folder / IVF_FILE)
        if file is None:
            return None
        if checks or file.header.get("stamp") != rows.stamp:
            file.check_all()
        lists = IvfLists(file, rows.dim)
        return lists if {"options", "parts", "first_share", "trained_rows"} <= lists.header.keys() else None
    except StoreError as exc:
        _log.warning("%s", exc)
        return None


def _encode_texts(store: Store, model: str | None, device: str) -> np.ndarray | None:
    """Return the vectors of the text queries; None where the run's model is not on this machine.

    Shapes:  -> float64 (T, D).
    Raises:  as Encoder for a model that is named.
    """
    from ..batch.replay import load_run_encoder  # here, because it imports torch, which an index does not need

    try:
        encoder = load_run_encoder(store, model, device)
        features = encoder.encode_text(read_text_queries()).float().cpu().numpy()
    except ClipError as exc:
        if model is not None:
            raise
        _log.debug("no text queries: %s", exc)
        return None
    return unit_vectors(features.astype(np.float64))


def _measure_files(folder: Any, name: str) -> int:
    return sum((folder / one).stat().st_size for one in (name, ROWS_FILE))

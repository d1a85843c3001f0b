"""Index(OUT) and search(job): texts, images and vectors -> the nearest rows.

A query is unit(mean(unit vectors) - mean(unit vectors of negative texts)): the difference of centroids, the direction
that separates the two sets best by cosine (Rocchio 1971; Manning, Raghavan and Schütze, Introduction to Information
Retrieval, 9.1.1).
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ImageError, InputError, StoreError
from ..images.decode import decode, read_pixels
from ..jobs.options import Limits
from ..jobs.search import SHEET_ENDINGS, Hit, SearchJob, SearchReport, Weighted, check_search, weigh
from ..records import STDIN, Failure, Item
from ..sources.remote.client import is_remote
from ..sources.remote.client import read as read_url
from ..store.merge import check_alike
from ..store.reader import Store
from ..vectors import usable_norms
from .index_file import ExactIndex, open_index
from .indexing import explain, open_any
from .where import filter_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa
    from numpy.typing import ArrayLike

    from ..encoder import Encoder, ImageLike
    from .ivf_file import Queries
    from .scan import ScanEngine

NPY_MAGIC = b"\x93NUMPY"
MORE_HITS = 20  # that are looked at for copies, beside twice as many as are asked for
CANCELLED = 1e-6  # a difference of a smaller norm is rounding alone


class Index:
    """An output of `clip embed`, ready to be searched, as it was when this object was made."""

    def __init__(
        self,
        output: str | Path,
        *,
        root: str | Path | None = None,
        model: str | None = None,
        device: str = "auto",
        engine: ScanEngine | None = None,
        exact: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Map the index of an output; make it first where none fits the present parts.

        An output that has an IVF index (`clip.index` with `type="ivf"`) is searched by it, but with `exact`.

        The model is loaded with the first text or image: the run's, found by the manifest, or `model` if it has the
        same weights. `engine` does the scan (default: faiss where it is installed); the hits are the same. `tell` is
        called with a message before the index is made, which takes a while for a million rows. `root` is where the
        images are now, if they have moved since.

        Raises:  InputError for a root that is no folder; StoreError if there is no output, or it is empty, or its index
                 or a part is damaged; StoreBusyError if a job keeps changing the parts.
        """
        self.store = Store(output, root)
        self._model, self._device = model, device
        self._engine: ScanEngine | None = engine
        self._index = open_index(self.store, tell) if exact else open_any(self.store, model, device, tell)
        if not len(self):
            raise StoreError(self.store.path, "holds no vectors", remedy="Embed images into it first.")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._index.rows)

    @cached_property
    def encoder(self) -> Encoder:
        """The run's model. Raises: as Encoder; StoreMismatchError if the weights found are not the run's."""
        from ..batch.replay import load_run_encoder  # here, because it imports torch, which a vector does not need

        return load_run_encoder(self.store, self._model, self._device)

    def search(
        self,
        *,
        text: str | Weighted | Sequence[str | Weighted] = (),
        image: ImageLike | Weighted | Sequence[ImageLike | Weighted] = (),
        vector: ArrayLike | None = None,
        like: str | Sequence[str] = (),
        negative: str | Sequence[str] = (),
        k: int = 10,
        min_score: float | None = None,
        where: str | None = None,
    ) -> list[Hit]:
        """Return the k rows of the highest score, the best first; of equal scores the lower id first.

        Exact, but by an IVF index, which misses a row as often as was measured. A score is a row's cosine to the query,
        rounded to nine decimals. Texts, images, the rows whose ids are in `like`, and the vector are averaged; the
        average of `negative` texts is subtracted. A `Weighted` text or image counts as much as its weight says, and is
        subtracted where that is below 0. An image may be a URL. Rows in `like` are no hits. `where` is a condition on
        the other columns, as in SQL; rows of a score below `min_score` are left out.

        Shapes:  vector (D,), of any length but 0.
        Raises:  InputError for a query without a direction, or a wrong `where`, `k` or `min_score`; TextTooLongError;
                 ImageError; as Encoder; StoreError for a damaged index.
        """
        check_search(k, min_score)
        liked = _as_list(like)
        rows = [self.read_vector(self.find_row(own_id)) for own_id in liked]
        query = self.build_query(_as_list(text), _as_list(image), vector, _as_list(negative), rows)
        queries = _name_queries(_as_list(text) or _as_list(negative), [*_as_list(image), *rows], vector)
        hits = self.find(query, k + len(liked), min_score, where, queries)
        return [hit for hit in hits if hit.id not in liked][:k]

    def find(
        self,
        query: np.ndarray,
        k: int,
        min_score: float | None = None,
        where: str | None = None,
        queries: Queries | None = None,
    ) -> list[Hit]:
        """Return the k rows nearest to a direction, as `search` does; shapes and errors as `rank`."""
        return self.list_hits(self.rank(query, k, min_score=min_score, where=where, queries=queries))

    def list_hits(self, nearest: Sequence[tuple[int, float]]) -> list[Hit]:
        """Return the hits of places and scores. Raises: StoreError for a damaged index."""
        found = self._index.rows.take([place for place, _ in nearest], ["id", "path"]).to_pylist()
        return [
            Hit(row["id"], self.store.locate(row["path"]), score)
            for row, (_, score) in zip(found, nearest, strict=True)
        ]

    def rank(
        self,
        query: np.ndarray,
        k: int,
        *,
        min_score: float | None = None,
        where: str | None = None,
        queries: Queries | None = None,
    ) -> list[tuple[int, float]]:
        """Return the places in `rows` of the k rows nearest to a direction, and their scores, as `search` does.

        `queries` says whether the direction is that of images or of texts (default: it may be either), as an IVF index
        reads more for texts.

        Shapes:  query float64 (D,), of unit length.
        Raises:  InputError for a wrong `where`; StoreError for a damaged index.
        """
        rows = None if where is None else filter_rows(self.rows, where)
        if isinstance(self._index, ExactIndex):
            nearest = self._index.find_nearest(query, k, rows=rows, engine=self._engine)
        else:
            nearest = self._index.find_nearest(query, k, rows=rows, queries=queries)
        return [(place, score) for place, score in nearest if min_score is None or score >= min_score]

    @property
    def rows(self) -> pa.Table:
        """All columns but the vectors, in the order of the parts; paths are relative to the output's base."""
        return self._index.rows.table

    @property
    def codes(self) -> np.ndarray:
        """All vectors at unit length, rounded, mapped. Shapes: float16 (N, D). Raises: InputError for an IVF index."""
        if not isinstance(self._index, ExactIndex):
            raise InputError("`exact`", "found an IVF index, which has no such codes", "True", "Pass `exact=True`.")
        return self._index.codes

    def explain(self) -> list[str]:
        """Return how this index is searched, in words, and what recall was measured."""
        return explain(self._index)

    def read_vector(self, place: int) -> np.ndarray:
        """Return the vector of a row at unit length. Shapes: float64 (D,). Raises: StoreError for a damaged index."""
        return self._normalise(f"row {place}", self._index.rows.read_vectors(np.array([place]))[0])

    def find_row(self, own_id: str) -> int:
        """Return the place of the first row of an id. Raises: InputError where there is none."""
        place = self.rows.column("id").index(own_id).as_py()
        if place < 0:
            raise InputError("`like`", f"found {own_id!r}", f"an id of {self.store.path}", "Pass a hit's id.")
        return place

    def build_query(
        self,
        texts: Sequence[str | Weighted],
        images: Sequence[ImageLike | Weighted],
        vector: ArrayLike | None,
        negative: Sequence[str],
        rows: Sequence[np.ndarray] = (),
    ) -> np.ndarray:
        """Return the direction to search in; `rows` are vectors of rows to find others like them.

        Shapes:  rows float64 (D,), of unit length -> float64 (D,), of unit length.
        Raises:  as `search`.
        """
        terms = [(1.0, row) for row in rows]
        if vector is not None:
            terms.append((1.0, self._normalise("`vector`", vector)))
        shown = map(weigh, images)
        terms += [(one.weight, self._normalise("`image`", self._encode_image(one.value))) for one in shown]
        words = [*map(weigh, texts), *(Weighted(text, -1.0) for text in negative)]
        if words:
            features = self.encoder.encode_text([word.value for word in words]).float().cpu().numpy()
            terms += [(word.weight, self._normalise("text", row)) for word, row in zip(words, features, strict=True)]
        wanted = [weight * unit for weight, unit in terms if weight > 0]
        if not wanted:
            raise InputError("query", "found nothing to look for", "a text, an image or a vector", "Pass one.")
        unwanted = [-weight * unit for weight, unit in terms if weight < 0]
        return combine(np.stack(wanted), np.array(unwanted).reshape(-1, self.store.dim))

    def _normalise(self, name: str, vector: ArrayLike) -> np.ndarray:
        """Return a vector at unit length. Shapes: (D,) -> float64 (D,). Raises: InputError if it has no direction."""
        try:
            wide = np.asarray(vector, np.float64)
        except (TypeError, ValueError, OverflowError) as exc:
            raise InputError(name, f"cannot be read ({exc})", f"{self.store.dim} numbers", "Pass them.") from exc
        if wide.shape != (self.store.dim,):
            found = f"found an array of shape {wide.shape}"
            remedy = "Pass one vector of the same model."
            raise InputError(name, found, f"({self.store.dim},), as in {self.store.path}", remedy)
        with np.errstate(over="ignore"):
            scaled = wide / largest if np.isfinite(largest := np.abs(wide).max()) and largest else wide
            norm = np.linalg.norm(scaled)
        if not usable_norms(np.asarray(norm)):
            raise InputError(name, f"has a norm of {norm}", "one above 0, and finite", "Pass another.")
        return scaled / norm

    def _encode_image(self, image: ImageLike) -> np.ndarray:
        """Return the features of an image, read as the run read its images. Shapes: float32 (D,)."""
        if isinstance(image, (str, os.PathLike)):
            name = os.fspath(image)
            try:
                image = read_url(name, Limits.max_bytes) if is_remote(name) else Path(name).read_bytes()
            except (OSError, ValueError) as exc:
                raise InputError(name, f"cannot be read ({exc})", "an image", "Check the path.") from exc
        else:
            name = "`image`"
        settings = self.encoder.settings
        if isinstance(image, bytes):
            options = replace(self.store.manifest.decode, frames="first", pixels=self.encoder.decode)
            item = Item(name, name, len(image))
            (outcome,) = decode(item, image, settings, options=options)
            if isinstance(outcome, Failure):
                raise ImageError(name, outcome.message)
            array = outcome.array
        else:
            try:
                array = read_pixels(image, settings, self.encoder.decode)
            except OSError as exc:
                raise ImageError(name, f"cannot be decoded ({exc})", "a whole image", "Pass another.") from exc
        return self.encoder.encode_pixels(array[None])[0]


def combine(wanted: np.ndarray, unwanted: np.ndarray) -> np.ndarray:
    """Return the direction from the centroid of what is unwanted to that of what is wanted.

    Shapes:  float64 (N, D) with N above 0, and (M, D), of unit length times weights -> float64 (D,), of unit length.
    Raises:  InputError where they cancel each other out.
    """
    difference = wanted.mean(axis=0) - (unwanted.mean(axis=0) if len(unwanted) else 0)
    norm = np.linalg.norm(difference)
    if norm < CANCELLED:
        raise InputError("query", "its parts cancel out", remedy="Leave one of them out.")
    return difference / norm


def _name_queries(texts: Sequence[object], images: Sequence[object], vector: object) -> Queries | None:
    """Return what a query is like: "texts" or "rows"; None where it may be either."""
    if texts:
        return "texts"
    return "rows" if images and vector is None else None


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def search(job: SearchJob, tell: Callable[[str], None] = lambda _: None) -> SearchReport:
    """Return the hits of a query, and write the contact sheet and the page if the job has them. `tell` is Index's.

    Raises:  as Index and its search; InputError for a file that holds no vector; StoreError if the contact sheet or the
             page cannot be written.
    """
    vector = None if job.vector is None else _read_vector(job.vector)
    images = [
        Weighted(sys.stdin.buffer.read(), term.weight) if term.value == STDIN else term
        for term in map(weigh, job.images)
    ]
    indexes = [Index(name, root=job.root, model=job.model, device=job.device, tell=tell) for name in job.outputs]
    first = indexes[0]
    for other in indexes[1:]:
        check_alike(first.store, other.store)
    for name in (*SHEET_ENDINGS, "group_duplicates"):
        if getattr(job, name) and first.store.manifest.kind == "texts":
            raise InputError(f"`{name}`", f"{first.store.path} holds texts", "images", "Leave it out.")
    rows = [_read_like(indexes, own_id) for own_id in job.like]
    query = first.build_query(job.texts, images, vector, job.negative, rows)
    queries = _name_queries([*job.texts, *job.negative], [*images, *rows], vector)
    found = [(hit, index.store) for index in indexes for hit in _find(index, job, query, queries)]
    found = sorted(found, key=lambda pair: (-pair[0].score, pair[0].id, pair[0].path))[: job.k]
    hits = [hit for hit, _ in found]
    how = tuple(line for index in indexes for line in index.explain())
    return SearchReport(tuple(hits), sum(map(len, indexes)), *_write_sheets(job, found), how)


def _find(index: Index, job: SearchJob, query: np.ndarray, queries: Queries | None) -> list[Hit]:
    """Return the hits of one output."""
    k = job.k + len(job.like)
    if not job.group_duplicates:
        hits = index.find(query, k, job.min_score, job.where, queries)
        return [hit for hit in hits if hit.id not in job.like][: job.k]
    from .copies import drop_copies  # here, because few searches ask for it

    ranked = index.rank(query, 2 * k + MORE_HITS, min_score=job.min_score, where=job.where, queries=queries)
    hits = index.list_hits(ranked)
    ranked = [pair for pair, hit in zip(ranked, hits, strict=True) if hit.id not in job.like]
    units = np.array([index.read_vector(place) for place, _ in ranked]).reshape(-1, index.store.dim)
    return index.list_hits(drop_copies(index.store, index.rows, ranked, units, fetch=job.fetch)[: job.k])


def _read_like(indexes: Sequence[Index], own_id: str) -> np.ndarray:
    """Return the vector of a row of the first output that has its id. Raises: InputError where none has."""
    for index in indexes[:-1]:
        if index.rows.column("id").index(own_id).as_py() >= 0:
            return index.read_vector(index.find_row(own_id))
    return indexes[-1].read_vector(indexes[-1].find_row(own_id))


def _write_sheets(job: SearchJob, found: Sequence[tuple[Hit, Store]]) -> tuple[int, str]:
    """Write what a job asks for; return how many images could not be read, and the letters that no font has."""
    missing = ""
    if job.contact_sheet is None and job.html is None:
        return 0, missing
    from .contact_sheet import write_sheet  # here, because few searches ask for it
    from .page import write_page
    from .tiles import load_tiles

    tiles, title, hits = {}, _describe_query(job), [hit for hit, _ in found]
    for store in {id(store): store for _, store in found}.values():
        of_store = {hit.id for hit, own in found if own is store}
        if clashing := of_store.intersection(tiles):
            remedy = "Merge the outputs, which gives ids of their own."
            raise InputError("outputs", f"{min(clashing)!r} is the id of hits in two", "one image for an id", remedy)
        tiles |= load_tiles(store, of_store, fetch=job.fetch)
    if job.contact_sheet is not None:
        missing = write_sheet(Path(job.contact_sheet), tiles, hits, title)
    if job.html is not None:
        write_page(Path(job.html), tiles, hits, title)
    return sum(isinstance(tiles.get(hit.id, ""), str) for hit in hits), missing


def _describe_query(job: SearchJob) -> str:
    """Return the query in words, as the title of the contact sheet."""
    terms = [*map(weigh, job.texts), *(Weighted(Path(weigh(name).value), weigh(name).weight) for name in job.images)]
    terms += [*(Weighted(Path(own_id), 1.0) for own_id in job.like), *(Weighted(text, -1.0) for text in job.negative)]
    words = [*map(_describe_term, terms), *(["+ a vector"] if job.vector else [])]
    return " ".join(words).removeprefix("+ ")


def _describe_term(term: Weighted) -> str:
    name = term.value.name if isinstance(term.value, Path) else repr(term.value)
    times = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} "
    return f"{'-' if term.weight < 0 else '+'} {times}{name}"


def _read_vector(name: str) -> Any:
    """Return the value of a file, JSON or .npy, not yet checked to be a vector. Raises: InputError."""
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        value = np.load(io.BytesIO(data), allow_pickle=False) if data.startswith(NPY_MAGIC) else json.loads(data)
    except (OSError, ValueError, EOFError, RecursionError, MemoryError) as exc:
        found = f"{name!r} cannot be read ({exc})"
        raise InputError("`vector`", found, "a JSON list or a .npy file", "Pass one of them.") from exc
    return value[0] if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == 1 else value

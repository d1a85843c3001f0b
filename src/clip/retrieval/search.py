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
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ImageError, InputError, StoreError
from ..images.decode import decode, read_pixels
from ..jobs.index import IndexJob, IndexReport
from ..jobs.search import SHEET_ENDINGS, Hit, SearchJob, SearchReport, check_search
from ..records import STDIN, Failure, Item
from ..store.merge import check_alike
from ..store.reader import Store
from ..vectors import usable_norms
from .index_file import FILE, check_index, open_index
from .where import filter_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa
    from numpy.typing import ArrayLike

    from ..encoder import Encoder, ImageLike
    from .scan import ScanEngine

NPY_MAGIC = b"\x93NUMPY"
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
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Map the index of an output; make it first where none fits the present parts.

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
        self._index = open_index(self.store, tell)
        if not len(self):
            raise StoreError(self.store.path, "holds no vectors", remedy="Embed images into it first.")

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._index.rows.num_rows

    @cached_property
    def encoder(self) -> Encoder:
        """The run's model. Raises: as Encoder; StoreMismatchError if the weights found are not the run's."""
        from ..batch.replay import load_run_encoder  # here, because it imports torch, which a vector does not need

        return load_run_encoder(self.store, self._model, self._device)

    def search(
        self,
        *,
        text: str | Sequence[str] = (),
        image: ImageLike | Sequence[ImageLike] = (),
        vector: ArrayLike | None = None,
        negative: str | Sequence[str] = (),
        k: int = 10,
        min_score: float | None = None,
        where: str | None = None,
    ) -> list[Hit]:
        """Return the k rows of the highest score, the best first; of equal scores the lower id first. Exact.

        A score is a row's cosine to the query, rounded to nine decimals. Texts, images and the vector are averaged; the
        average of `negative` texts is subtracted. `where` is a condition on the other columns, as in SQL; rows of a
        score below `min_score` are left out.

        Shapes:  vector (D,), of any length but 0.
        Raises:  InputError for a query without a direction, or a wrong `where`, `k` or `min_score`; TextTooLongError;
                 ImageError; as Encoder; StoreError for a damaged index.
        """
        check_search(k, min_score)
        query = self.build_query(_as_list(text), _as_list(image), vector, _as_list(negative))
        return self.find(query, k, min_score, where)

    def find(self, query: np.ndarray, k: int, min_score: float | None = None, where: str | None = None) -> list[Hit]:
        """Return the k rows nearest to a direction, as `search` does; shapes and errors as `rank`."""
        nearest = self.rank(query, k, min_score=min_score, where=where)
        ids, paths = (self.rows.column(name) for name in ("id", "path"))
        return [Hit(ids[place].as_py(), self.store.locate(paths[place].as_py()), score) for place, score in nearest]

    def rank(
        self, query: np.ndarray, k: int, *, min_score: float | None = None, where: str | None = None
    ) -> list[tuple[int, float]]:
        """Return the places in `rows` of the k rows nearest to a direction, and their scores, as `search` does.

        Shapes:  query float64 (D,), of unit length.
        Raises:  InputError for a wrong `where`; StoreError for a damaged index.
        """
        rows = None if where is None else filter_rows(self.rows, where)
        nearest = self._index.find_nearest(query, k, rows=rows, engine=self._engine)
        return [(place, score) for place, score in nearest if min_score is None or score >= min_score]

    @property
    def rows(self) -> pa.Table:
        """All columns but the vectors, in the order of the parts; paths are relative to the output's base."""
        return self._index.rows

    @property
    def codes(self) -> np.ndarray:
        """All vectors at unit length, rounded, mapped. Shapes: float16 (N, D)."""
        return self._index.codes

    def read_vector(self, place: int) -> np.ndarray:
        """Return the vector of a row at unit length. Shapes: float64 (D,). Raises: StoreError for a damaged index."""
        return self._normalise(f"row {place}", self._index.read_vector(place))

    def build_query(
        self, texts: Sequence[str], images: Sequence[ImageLike], vector: ArrayLike | None, negative: Sequence[str]
    ) -> np.ndarray:
        """Return the direction to search in. Shapes: float64 (D,), of unit length. Raises: as `search`."""
        positive = [] if vector is None else [self._normalise("`vector`", vector)[None]]
        if images:
            positive.append(np.stack([self._normalise("`image`", self._encode_image(image)) for image in images]))
        if texts or negative:
            features = self.encoder.encode_text([*texts, *negative]).float().cpu().numpy()
            units = np.stack([self._normalise("text", row) for row in features])
            positive.append(units[: len(texts)])
            unwanted = units[len(texts) :]
        else:
            unwanted = np.empty((0, self.store.dim))
        wanted = np.concatenate([np.empty((0, self.store.dim)), *positive])
        if not len(wanted):
            raise InputError("query", "found nothing to look for", "a text, an image or a vector", "Pass one.")
        return combine(wanted, unwanted)

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
                image = Path(name).read_bytes()
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

    Shapes:  float64 (N, D) with N above 0, and (M, D), of unit length -> float64 (D,), of unit length.
    Raises:  InputError where they cancel each other out.
    """
    difference = wanted.mean(axis=0) - (unwanted.mean(axis=0) if len(unwanted) else 0)
    norm = np.linalg.norm(difference)
    if norm < CANCELLED:
        raise InputError("query", "its parts cancel out", remedy="Leave one of them out.")
    return difference / norm


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def search(job: SearchJob, tell: Callable[[str], None] = lambda _: None) -> SearchReport:
    """Return the hits of a query, and write the contact sheet and the page if the job has them. `tell` is Index's.

    Raises:  as Index and its search; InputError for a file that holds no vector; StoreError if the contact sheet or the
             page cannot be written.
    """
    vector = None if job.vector is None else _read_vector(job.vector)
    images = [sys.stdin.buffer.read() if name == STDIN else name for name in job.images]
    indexes = [Index(name, root=job.root, model=job.model, device=job.device, tell=tell) for name in job.outputs]
    first = indexes[0]
    for other in indexes[1:]:
        check_alike(first.store, other.store)
    for name in SHEET_ENDINGS:
        if getattr(job, name) is not None and first.store.manifest.kind == "texts":
            raise InputError(f"`{name}`", f"{first.store.path} holds texts", "images", "Leave it out.")
    query = first.build_query(job.texts, images, vector, job.negative)
    found = [(hit, index.store) for index in indexes for hit in index.find(query, job.k, job.min_score, job.where)]
    found = sorted(found, key=lambda pair: (-pair[0].score, pair[0].id, pair[0].path))[: job.k]
    hits = [hit for hit, _ in found]
    return SearchReport(tuple(hits), sum(map(len, indexes)), *_write_sheets(job, found))


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
    wanted = [*map(repr, job.texts), *(Path(name).name for name in job.images), *(["a vector"] if job.vector else [])]
    return " + ".join(wanted) + "".join(f" - {text!r}" for text in job.negative)


def _read_vector(name: str) -> Any:
    """Return the value of a file, JSON or .npy, not yet checked to be a vector. Raises: InputError."""
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        value = np.load(io.BytesIO(data), allow_pickle=False) if data.startswith(NPY_MAGIC) else json.loads(data)
    except (OSError, ValueError, EOFError, RecursionError, MemoryError) as exc:
        found = f"{name!r} cannot be read ({exc})"
        raise InputError("`vector`", found, "a JSON list or a .npy file", "Pass one of them.") from exc
    return value[0] if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == 1 else value


def index(job: IndexJob) -> IndexReport:
    """Make the index of an output, unless there is one that is whole and up to date.

    Raises:  StoreError if there is no output, a part is damaged, or the index cannot be written; StoreBusyError if a
             job keeps changing the parts.
    """
    started = time.monotonic()
    store = Store(job.output)
    checked, made = check_index(store)
    store.check_rows(checked.rows.num_rows)
    path = store.index_folder / FILE
    return IndexReport(path, checked.rows.num_rows, path.stat().st_size, made, time.monotonic() - started)

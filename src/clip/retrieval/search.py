"""Index(OUT) and search(job): texts, images and vectors -> the rows that are nearest. Knows nothing about terminals.

A query is unit(mean(unit vectors) - mean(unit vectors of what is not wanted)): the difference of centroids, which of
all directions separates the two sets best by cosine (Rocchio 1971; Manning, Raghavan and Schütze, Introduction to
Information Retrieval, 9.1.1).
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
from ..jobs.index import IndexReport
from ..jobs.search import Hit, SearchReport, check_search
from ..records import STDIN, Failure, Item
from ..store.manifest import INDEX
from ..store.reader import Store
from .index_file import FILE, indexed, opened
from .where import matching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

    from ..encoder import Encoder, ImageLike
    from ..jobs.index import IndexJob
    from ..jobs.search import SearchJob
    from .scan import ScanEngine

NPY_MAGIC = b"\x93NUMPY"
CANCELLED = 1e-6  # the norm of a difference that is rounding and nothing else


class Index:
    """An output of `clip embed`, ready to be searched, as it was when this was made."""

    def __init__(
        self,
        output: str | Path,
        *,
        model: str | None = None,
        device: str = "auto",
        engine: ScanEngine | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Map the index of an output, which is made first where there is none of its parts as they are.

        The model is loaded with the first text or image: that of the run, found by the manifest, or `model` if it has
        the same weights. `engine` is what scans, faiss where it is installed; the hits are the same. `tell` is told
        when the index has to be made: of a million rows that takes a while.

        Raises:  StoreError where there is no output, or nothing in it, or its index or a part is damaged;
                 StoreBusyError where a job changes the parts all the time.
        """
        self.store = Store(output)
        self._model, self._device = model, device
        self._engine: ScanEngine | None = engine
        self._indexed = opened(self.store, tell)
        if not len(self):
            raise StoreError(
                self.store.path,
                "holds no vectors",
                "some to search",
                "Embed images into it.",
            )

    def __len__(self) -> int:
        """How many rows there are."""
        return self._indexed.rows.num_rows

    @cached_property
    def encoder(self) -> Encoder:
        """The model of the run. Raises: what Encoder does; StoreMismatchError where the weights found are others."""
        from ..batch.replay import load_run_encoder  # here, because it brings torch, which a vector needs not

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
        """The k rows of the highest cosine to the query, exactly: the best first, of equal ones the lower id first.

        Texts, images and the vector are averaged; texts `without` are subtracted. `where` is a condition on the other
        columns, as in SQL; rows below `min_score` are left out.

        Shapes:  vector (D,), of any length but 0.
        Raises:  InputError for a query that has no direction, for a condition or a number that makes no sense;
                 TextTooLongError, ImageError; what Encoder does; StoreError for a damaged index.
        """
        check_search(k, min_score)
        rows = None if where is None else matching(self._indexed.rows, where)
        query = self._query(_several(text), _several(image), vector, _several(negative))
        found = self._indexed.nearest(query, k, rows=rows, engine=self._engine)
        ids, paths = (self._indexed.rows.column(name) for name in ("id", "path"))
        # The shortest decimal that is the fp32 number: what is shown, compared and written is the same.
        hits = [Hit(ids[place].as_py(), paths[place].as_py(), float(str(score))) for place, score in found]
        return [hit for hit in hits if min_score is None or hit.score >= min_score]

    def _query(
        self, texts: Sequence[str], images: Sequence[ImageLike], vector: ArrayLike | None, negative: Sequence[str]
    ) -> np.ndarray:
        """Shapes: float64 (D,), of unit length."""
        wanted = [] if vector is None else [self._unit("vector", vector)[None]]
        if images:
            wanted.append(np.stack([self._unit("image", self._features(image)) for image in images]))
        if texts or negative:
            features = self.encoder.encode_text([*texts, *negative]).float().cpu().numpy()
            units = np.stack([self._unit("text", row) for row in features])
            wanted.append(units[: len(texts)])
            unwanted = units[len(texts) :]
        else:
            unwanted = np.empty((0, self.store.dim))
        query = np.concatenate([np.empty((0, self.store.dim)), *wanted])
        if not len(query):
            raise InputError(
                "query",
                "found nothing to look for",
                "a text, an image or a vector",
                "Pass one.",
            )
        centre = query.mean(axis=0) - (unwanted.mean(axis=0) if len(unwanted) else 0)
        if np.linalg.norm(centre) < CANCELLED:
            raise InputError(
                "query",
                "its parts cancel out",
                "a direction to look in",
                "Leave one of them out.",
            )
        return self._unit("query", centre)

    def _unit(self, name: str, vector: ArrayLike) -> np.ndarray:
        """Shapes: (D,) -> float64 (D,). Raises: InputError for what has no direction."""
        try:
            wide = np.asarray(vector, np.float64)
        except (TypeError, ValueError, OverflowError) as exc:
            raise InputError(
                name,
                f"cannot be read ({exc})",
                f"{self.store.dim} numbers",
                "Pass them.",
            ) from exc
        if wide.shape != (self.store.dim,):
            raise InputError(
                name,
                f"found an array {wide.shape}",
                f"({self.store.dim},) as the vectors of {self.store.path} are",
                "Pass one vector of the same model.",
            )
        with np.errstate(over="ignore"):
            scaled = wide / largest if np.isfinite(largest := np.abs(wide).max()) and largest else wide
            norm = np.linalg.norm(scaled)
        if not (np.isfinite(norm) and norm > 0):
            raise InputError(
                name,
                f"has a norm of {norm}",
                "one above 0, and finite",
                "Pass another.",
            )
        return scaled / norm

    def _features(self, image: ImageLike) -> np.ndarray:
        """An image's features, read as the run read its images. Shapes: float32 (D,)."""
        if isinstance(image, (str, os.PathLike)):
            name = os.fspath(image)
            try:
                image = Path(name).read_bytes()
            except (OSError, ValueError) as exc:
                raise InputError(
                    name,
                    f"cannot be read ({exc})",
                    "an image",
                    "Check the path.",
                ) from exc
        else:
            name = "image"
        settings = self.encoder.settings
        if isinstance(image, bytes):
            options = replace(self.store.manifest.decode, frames="first", pixels=self.encoder.decode)
            item = Item(name, name, len(image))
            (found,) = decode(item, image, settings, options=options)
            if isinstance(found, Failure):
                raise ImageError(f"{name}: {found.message.removeprefix('image: ')}")
            array = found.array
        else:
            try:
                array = read_pixels(image, settings, self.encoder.decode)
            except OSError as exc:
                raise ImageError(
                    name,
                    f"cannot be decoded ({exc})",
                    "a whole one",
                    "Pass another.",
                ) from exc
        return self.encoder.encode_pixels(array[None])[0]


def _several(given: Any) -> Sequence[Any]:
    return given if isinstance(given, (list, tuple)) else [given]


def search(job: SearchJob, tell: Callable[[str], None] = lambda _: None) -> SearchReport:
    """The hits of a query, and an image of them where one is asked for. `tell` is told when the index is made first.

    Raises:  as Index and its search; InputError for a file that holds no vector; StoreError where the contact sheet
             cannot be written.
    """
    vector = None if job.vector is None else _vector_in(job.vector)
    images = [sys.stdin.buffer.read() if name == STDIN else name for name in job.images]
    searched = Index(job.output, model=job.model, device=job.device, tell=tell)
    if job.contact_sheet is not None and searched.store.manifest.kind == "texts":
        raise InputError(
            "`contact_sheet`",
            f"{searched.store.path} holds texts",
            "images",
            "Leave it out.",
        )
    hits = searched.search(
        text=job.texts,
        image=images,
        vector=vector,
        negative=job.negative,
        k=job.k,
        min_score=job.min_score,
        where=job.where,
    )
    unreadable = 0
    if job.contact_sheet is not None:
        from .contact_sheet import write_sheet  # here, because few searches ask for it

        unreadable = write_sheet(Path(job.contact_sheet), searched.store, hits, _told(job))
    return SearchReport(tuple(hits), len(searched), unreadable)


def _told(job: SearchJob) -> str:
    """A query in words."""
    wanted = [*map(repr, job.texts), *(Path(name).name for name in job.images), *(["a vector"] if job.vector else [])]
    return " + ".join(wanted) + "".join(f" - {text!r}" for text in job.negative)


def _vector_in(name: str) -> Any:
    """A vector that a file holds, as JSON or .npy; not looked at yet. Raises: InputError."""
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        found = np.load(io.BytesIO(data), allow_pickle=False) if data.startswith(NPY_MAGIC) else json.loads(data)
    except (OSError, ValueError, EOFError, RecursionError, MemoryError) as exc:
        raise InputError(
            f"vector {name}",
            f"cannot be read ({exc})",
            "a JSON list or a .npy file",
            "Write one of them.",
        ) from exc
    return found[0] if len(np.shape(found) if isinstance(found, np.ndarray) else ()) == 2 and len(found) == 1 else found


def index(job: IndexJob) -> IndexReport:
    """Make the index of an output, unless one stands that is whole and up to date.

    Raises:  StoreError where there is no output, a part is damaged, or the index cannot be written; StoreBusyError
             where a job changes the parts all the time.
    """
    started = time.monotonic()
    store = Store(job.output)
    found, made = indexed(store)
    path = store.path / INDEX / FILE
    return IndexReport(path, found.rows.num_rows, path.stat().st_size, made, time.monotonic() - started)

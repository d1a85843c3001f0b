"""POST /v1/search and /v1/classify, and what the page at / needs: the indexes, their duplicates and
tiles, its own files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import Response

from ..errors import InputError
from ..jobs.duplicates import DuplicatesJob
from ..jobs.search import check_search
from ..retrieval.classify import Classifier
from ..retrieval.prompts import read_labels, read_templates
from ..retrieval.search import combine
from .answers import make_json_response
from .bodies import hold, parse_json, read_body
from .duplicates import MAX_GROUPS, parse_level
from .embeddings import drop_with_client, read_in_thread
from .gate import note_items
from .inputs import Input, TextInput, read_image, read_inputs
from .request_error import RequestError
from .service import Embedded

if TYPE_CHECKING:
    from starlette.requests import Request

    from .gallery import Gallery
    from .models import ServedModel
    from .service import Service

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
POLICY = (  # the page loads nothing from elsewhere, and is in nobody's frame
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MAX_HITS = 1_000
MAX_LABELS = 1_000
MAX_TERMS = 64  # texts and images of a query


class Search:
    """The endpoints that search and classify."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def search(self, request: Request) -> Response:
        """Answer /v1/search: texts, images and rows, minus texts -> the nearest rows."""
        with hold(self._service) as held:
            body = await read_body(request, self._service, held)
            fields = await parse_json(body)
            gallery = self._find_gallery(fields.get("index"))
            k = _read_number(fields, "k", 24)
            min_score = fields.get("min_score")
            if min_score is not None and not isinstance(min_score, (int, float)):
                raise InputError("min_score", f"found {min_score!r}"[:80], "a cosine from -1 to 1", "Pass a number.")
            check_search(k, min_score)
            where = _read_text(fields, "where") or None
            wanted, unwanted = await read_in_thread(len(body), _read_query, fields)
            likes = [gallery.index.read_vector(gallery.find_row(row)) for row in _read_list(fields, "like")]
            if not wanted and not likes:
                raise InputError("query", "found nothing to look for", "text, image or like", "Pass one of them.")
            note_items(request, len(wanted) + len(unwanted))
            units = await drop_with_client(request, self._embed(gallery.model, [*wanted, *unwanted]))
            vectors = [*units[: len(wanted)], *likes]
            query = combine(np.stack(vectors), np.array(units[len(wanted) :]).reshape(-1, len(vectors[0])))
            hits = await asyncio.to_thread(gallery.index.rank, query, k, min_score=min_score, where=where)
        gallery.tiles.begin([row for row, _ in hits])
        rows = [gallery.describe_row(row, score) for row, score in hits]
        return make_json_response({"object": "list", "index": gallery.name, "rows": len(gallery.index), "hits": rows})

    async def classify(self, request: Request) -> Response:
        """Answer /v1/classify: images or rows, and labels -> the probability of each label for each image."""
        with hold(self._service) as held:
            body = await read_body(request, self._service, held)
            fields = await parse_json(body)
            rows = _read_list(fields, "like")
            gallery = self._find_gallery(fields.get("index")) if rows else None
            model = gallery.model if gallery else await self._service.find_model(fields.get("model"))
            labels = read_labels(tuple(_read_texts(fields, "labels")))
            if len(labels) > MAX_LABELS:
                raise InputError("labels", f"found {len(labels):,}", f"at most {MAX_LABELS:,}", "Send fewer.")
            templates = read_templates(tuple(_read_texts(fields, "template")), None)
            if len(templates) * len(labels) > MAX_LABELS:
                found = f"found {len(templates)} for {len(labels)} labels"
                raise InputError("template", found, f"at most {MAX_LABELS:,} texts in all", "Send fewer.")
            images = await read_in_thread(len(body), _read_images, fields)
            if not images and not rows:
                raise InputError("image", "found no image to classify", "image or like", "Pass one of them.")
            note_items(request, len(images))
            units = await drop_with_client(request, self._embed(model, images))
            units += [gallery.index.read_vector(gallery.find_row(row)) for row in rows if gallery]
            classifier = await asyncio.to_thread(Classifier, model.encoder, labels, templates)
        (probabilities,) = classifier.predict(np.stack(units))
        results = [
            sorted(({"label": label, "probability": float(p)} for label, p in zip(labels, row, strict=True)), key=_by)
            for row in probabilities
        ]
        return make_json_response({"object": "list", "model": model.name, "results": results})

    async def indexes(self, _: Request) -> Response:
        """Answer what can be searched, and by which models."""
        models = [model.name for model in self._service.models.all]
        data = [gallery.describe() for gallery in self._service.galleries.all.values()]
        return make_json_response({"object": "list", "data": data, "models": models})

    async def duplicates(self, request: Request) -> Response:
        """Answer with groups of duplicates; with 202 and how far the search is while it runs."""
        gallery, asked = self._find_gallery(request.path_params["index"]), request.query_params
        level = parse_level(asked.get("level", DuplicatesJob.level))
        start, count = _parse_number(asked, "start", 0, 2**31), _parse_number(asked, "count", 20, MAX_GROUPS)
        searches = self._service.galleries.duplicates
        search = await asyncio.to_thread(searches.find, gallery.name, gallery.index.store.path, level)
        if search is None:
            raise RequestError(429, "another search for duplicates is running", "overloaded", retry_after_s=5.0)
        if search.error is not None:
            await asyncio.to_thread(searches.forget, gallery.name, level)
            raise RequestError(409, search.error, "no_duplicates")
        if search.report is None:
            what, done, total = search.progress
            state = {"object": "list", "state": "running", "what": what, "done": done, "total": total, "data": []}
            return make_json_response(state, 202)
        groups = await asyncio.to_thread(search.read, start, count)
        for image in (image for group in groups for image in group["images"]):
            image["row"] = gallery.find_row(image["id"])
        found = {"object": "list", "state": "done", "index": gallery.name, "data": groups, "report": search.report}
        return make_json_response(found)

    async def tile(self, request: Request) -> Response:
        """Answer with the small image of a row. Nothing else of the machine can be asked for."""
        gallery = self._find_gallery(request.path_params["index"])
        row = request.path_params["row"]
        if row >= len(gallery.index):
            raise RequestError(404, f"{gallery.name} has no row {row:,}", "not_found", "row")
        if gallery.tiles.reason is not None:
            raise RequestError(404, "the images of this index are not there", "not_found")
        if (future := gallery.tiles.find(row)) is None:
            raise RequestError(429, "too many images are being read", "overloaded", retry_after_s=1.0)
        try:
            tile = await asyncio.shield(asyncio.wrap_future(future))
        except LookupError as exc:
            raise RequestError(404, "the image of this row cannot be read", "not_found", "row") from exc
        return Response(tile, headers={"cache-control": "private, max-age=3600"}, media_type="image/jpeg")

    async def page(self, _: Request) -> Response:
        """Answer with the page."""
        headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
        return Response((PAGE / "index.html").read_bytes(), headers=headers, media_type="text/html")

    async def page_file(self, request: Request) -> Response:
        """Answer with one of the page's own files."""
        name = request.path_params["name"]
        if name not in PAGE_FILES:
            raise RequestError(404, "there is nothing at this path", "not_found")
        headers = {"cache-control": "no-cache"}
        return Response((PAGE / name).read_bytes(), headers=headers, media_type=PAGE_FILES[name])

    def _find_gallery(self, name: object) -> Gallery:
        if not self._service.galleries.is_open:
            message = str(self._service.explain_not_ready())
            raise RequestError(503, message, "not_ready", retry_after_s=1.0)
        return self._service.galleries.find(name)

    async def _embed(self, model: ServedModel, inputs: Sequence[Input]) -> list[np.ndarray]:
        """Return the vectors of items at unit length, float64 (D,)."""
        results = await self._service.embed(model, inputs, truncate=True) if inputs else []
        return [result.vector.astype(np.float64) for result in results if isinstance(result, Embedded)]


def _by(entry: Mapping[str, Any]) -> float:
    return -entry["probability"]


def _read_query(fields: Mapping[str, Any]) -> tuple[list[Input], list[Input]]:
    """Return what a query wants, and the texts that it does not want. Raises: InputError."""
    wanted: list[Input] = [TextInput("text", text) for text in _read_texts(fields, "text")]
    wanted += _read_images(fields)
    if fields.get("input") is not None or fields.get("messages") is not None:
        wanted += read_inputs(fields)
    unwanted: list[Input] = [TextInput("negative", text) for text in _read_texts(fields, "negative")]
    if len(wanted) + len(unwanted) > MAX_TERMS:
        raise InputError("query", f"found {len(wanted) + len(unwanted)} parts", f"at most {MAX_TERMS}", "Send fewer.")
    return wanted, unwanted


def _read_images(fields: Mapping[str, Any]) -> list[Input]:
    images = (
        [("image", fields.get("image"))]
        if not isinstance(fields.get("image"), list)
        else [(f"image[{number}]", value) for number, value in enumerate(fields["image"])]
    )
    inputs: list[Input] = []
    for place, value in images:
        if value is not None and not isinstance(value, str):
            raise InputError(place, f"found a {type(value).__name__}", "a data URI", "Pass one.")
        inputs += [read_image(value, place)] if value else []
    return inputs


def _read_list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    return [] if value in (None, "") else value if isinstance(value, list) else [value]


def _read_texts(fields: Mapping[str, Any], name: str) -> list[str]:
    texts = _read_list(fields, name)
    for text in texts:
        if not isinstance(text, str):
            raise InputError(name, f"found a {type(text).__name__}", "texts", "Pass one, or a list of them.")
    return [text for text in texts if text.strip()]


def _read_text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise InputError(name, f"found a {type(value).__name__}", "a text", "Pass one.")
    return value.strip()


def _parse_number(asked: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Return a number of an address. Raises: InputError."""
    text = asked.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= most):
        raise InputError(name, f"found {text!r}"[:80], f"a number from 0 to {most:,}", "Pass one.")
    return int(text)


def _read_number(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_HITS:
        raise InputError(name, f"found {value!r}"[:80], f"a number from 1 to {MAX_HITS:,}", "Pass one.")
    return value

"""POST /v1/embeddings: OpenAI's, and what other servers have added to it for images; also a body that is an image.

Also POST /v2/embed, which Cohere's clients call.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..errors import InputError
from .answers import AnswerOptions, count_usage, make_embeddings_answer, make_json_response, read_options
from .bodies import hold, parse_form, parse_json, read_body, wait_gone
from .gate import note_items
from .inputs import ImageInput, Input, TextInput, read_image, read_inputs, read_parts
from .service import Embedded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from .service import Service

T = TypeVar("T")
LARGE_BYTES = 100_000  # of a body, whose images a thread decodes from base64
COHERE_TYPES = ("float", "base64")


class Embeddings:
    """The endpoints that embed."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def openai(self, request: Request) -> Response:
        """Answer /v1/embeddings."""
        with hold(self._service) as held:
            body = await read_body(request, self._service, held)
            fields, inputs = await self._read(request, body)
            model = await self._service.find_model(fields.get("model"))
            options = read_options(fields, model.encoder.dim)
            note_items(request, len(inputs))
            work = self._service.embed(model, inputs, truncate=options.truncate, keep_failures=options.keep_failures)
            results = await drop_with_client(request, work)
        answer = make_embeddings_answer(str(fields.get("model") or model.name), results, options)
        return make_json_response(answer)

    async def cohere(self, request: Request) -> Response:
        """Answer /v2/embed."""
        with hold(self._service) as held:
            body = await read_body(request, self._service, held)
            fields = await parse_json(body)
            model = await self._service.find_model(fields.get("model"))
            kinds = _read_cohere_types(fields, model.encoder.dim)
            truncate = _read_cohere_truncate(fields)
            inputs = await read_in_thread(len(body), _read_cohere_inputs, fields)
            note_items(request, len(inputs))
            results = await drop_with_client(request, self._service.embed(model, inputs, truncate=truncate))
        good = [result for result in results if isinstance(result, Embedded)]
        spelt = {kind: [AnswerOptions(kind == "base64").spell(item) for item in good] for kind in kinds}
        tokens, images = count_usage(good)
        answer = {
            "id": secrets.token_hex(16),
            "embeddings": spelt,
            "texts": [item.text for item in inputs if isinstance(item, TextInput)],
            "images": [
                {"width": item.width, "height": item.height, "format": item.format.lower(), "bit_depth": 24}
                for item in good
                if not item.tokens
            ],
            "response_type": "embeddings_by_type",
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens, "images": images}},
        }
        return make_json_response(answer)

    async def _read(self, request: Request, body: bytes) -> tuple[Mapping[str, Any], Sequence[Input]]:
        """Return the fields and the items of a request, by the type of its body. Raises: RequestError, InputError."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("image/") or kind == "application/octet-stream":
            if not body:
                raise InputError("body", "is empty", "an image", "Send the file: curl --data-binary @photo.jpg.")
            return request.query_params, [ImageInput("body", body)]
        if kind == "multipart/form-data":
            return await _read_form(request, body)
        fields = await parse_json(body)
        return fields, await read_in_thread(len(body), read_inputs, fields)


async def _read_form(request: Request, body: bytes) -> tuple[Mapping[str, Any], Sequence[Input]]:
    """Return the fields of a form; files are images, the fields input and text are texts."""
    form = await parse_form(body, request.headers)
    fields: dict[str, Any] = dict(request.query_params)
    inputs: list[Input] = []
    for name, value in form:
        if isinstance(value, bytes):
            inputs.append(ImageInput(f"{name}[{len(inputs)}]", value))
        elif name in ("input", "text", "image"):
            place = f"{name}[{len(inputs)}]"
            is_image = name == "image" or value[:11].lower() == "data:image/"
            inputs.append(read_image(value, place) if is_image else TextInput(place, value))
        else:
            fields[name] = value
    if not inputs:
        raise InputError("form", "has no file and no text", "at least one", "Send them as file=@photo.jpg or text=...")
    return fields, inputs


async def read_in_thread(size_bytes: int, function: Callable[[Mapping[str, Any]], T], fields: Mapping[str, Any]) -> T:
    """Return what a function makes of the fields of a body; of a large one in a thread."""
    if size_bytes < LARGE_BYTES:
        return function(fields)
    return await asyncio.to_thread(function, fields)


async def drop_with_client(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what work returns, and cancel it when the client is gone. Raises: ClientDisconnect."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _read_cohere_inputs(fields: Mapping[str, Any]) -> list[Input]:
    given = [name for name in ("texts", "images", "inputs") if fields.get(name) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found nothing to embed"
        raise InputError("texts", found, "one of texts, images and inputs", "Pass one of them.")
    (name,) = given
    values = fields[name]
    if not isinstance(values, list) or not values:
        raise InputError(name, "found no list, or an empty one", "a list", "Pass one.")
    inputs: list[Input] = []
    for number, value in enumerate(values):
        place = f"{name}[{number}]"
        if name == "inputs":
            content = value.get("content") if isinstance(value, Mapping) else None
            inputs.append(read_parts(content, f"{place}.content"))
        elif not isinstance(value, str):
            raise InputError(place, f"found a {type(value).__name__}", "a string", "Pass one.")
        else:
            inputs.append(TextInput(place, value) if name == "texts" else read_image(value, place))
    return inputs


def _read_cohere_types(fields: Mapping[str, Any], dim: int) -> list[str]:
    kinds = fields.get("embedding_types") or ["float"]
    if not isinstance(kinds, list) or any(kind not in COHERE_TYPES for kind in kinds):
        raise InputError("embedding_types", f"found {kinds!r}"[:80], "float or base64", "Pass one of them.")
    if fields.get("output_dimension") not in (None, dim):
        raise InputError("output_dimension", f"found {fields['output_dimension']!r}"[:80], str(dim), "Leave it out.")
    return list(dict.fromkeys(kinds))


def _read_cohere_truncate(fields: Mapping[str, Any]) -> bool:
    """Return whether long texts lose their ends, as Cohere's do unless another word is sent."""
    word = str(fields.get("truncate") or "END").upper()
    if word not in ("END", "NONE"):
        raise InputError("truncate", f"found {word!r}"[:80], "END or NONE", "Pass one of them.")
    return word == "END"

"""GET /ping and POST /predict: the protocol in which Immich asks its machine-learning server for vectors.

Immich asks several servers in turn, so a task that is not ours gets 422 and Immich goes on to its own server.
Source:  immich-app/immich machine-learning/immich_ml/main.py and models/clip; its models end in a normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from starlette.responses import PlainTextResponse, Response

from .answers import AnswerOptions, dump, make_json_response
from .bodies import hold, parse_form, parse_object, read_body
from .embeddings import drop_with_client
from .gate import note_items
from .inputs import ImageInput, TextInput
from .request_error import RequestError
from .service import Embedded

if TYPE_CHECKING:
    from starlette.requests import Request

    from .inputs import Input
    from .service import Service


class Immich:
    """The endpoints that Immich calls."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ping(self, _: Request) -> Response:
        """Answer whether Immich may ask: its server looks for this word, and tries another server without it."""
        if (reason := self._service.explain_not_ready()) is not None:
            raise RequestError(503, reason, "not_ready", retry_after_s=1.0)
        return PlainTextResponse("pong")

    async def predict(self, request: Request) -> Response:
        """Answer with the vector of an image or a text, as a list in JSON inside a JSON string."""
        with hold(self._service) as held:
            body = await read_body(request, self._service, held)
            form = dict(await parse_form(body, request.headers))
            kind, name = _read_task(form.get("entries"))
            item = _read_item(kind, form.get("image"), form.get("text"))
            model = await self._service.find_model(name)
            note_items(request, 1)
            # Immich's tokenizer cuts long texts.
            (result,) = await drop_with_client(request, self._service.embed(model, [item], truncate=True))
        answer: dict[str, Any] = {}
        if isinstance(result, Embedded):
            answer["clip"] = dump(AnswerOptions().spell(result)).decode()
            if kind == "visual":
                answer |= {"imageHeight": result.height, "imageWidth": result.width}
        return make_json_response(answer)


def _read_task(entries: object) -> tuple[str, str]:
    """Return which half of the model is asked for, and the model's name. Raises: RequestError."""
    if not isinstance(entries, str):
        _refuse("it has no entries")
    tasks = parse_object(entries)
    if list(tasks) != ["clip"] or not isinstance(tasks["clip"], dict):
        _refuse(f"found the tasks {', '.join(tasks)[:80] or 'none'}, and this server has clip alone")
    kinds = tasks["clip"]
    if len(kinds) != 1 or (kind := next(iter(kinds))) not in ("visual", "textual"):
        _refuse("expected one of visual and textual")
    entry = kinds[kind]
    if not isinstance(entry, dict) or not isinstance(name := entry.get("modelName"), str):
        _refuse("it names no model")
    return kind, name


def _read_item(kind: str, image: object, text: object) -> Input:
    if kind == "visual":
        if isinstance(image, bytes):
            return ImageInput("image", image)
        raise RequestError(400, "image: is missing, expected the file of an image", "missing_value", "image")
    if isinstance(text, str):
        return TextInput("text", text)
    raise RequestError(400, "text: is missing, expected a text", "missing_value", "text")


def _refuse(reason: str) -> NoReturn:
    raise RequestError(422, f"entries: {reason}.", "unsupported_task", "entries")

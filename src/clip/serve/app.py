"""The app: which path is answered by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from .answers import make_json_response
from .embeddings import Embeddings
from .gate import Gate, guarded, make_response
from .immich import Immich
from .metrics import CONTENT_TYPE
from .openapi import describe
from .request_error import RequestError
from .search import Search

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from .service import Service

    Endpoint = Callable[[Request], Awaitable[Response]]

REASONS = {404: "there is nothing at this path", 405: "this path takes another method"}
EXPOSED = ["x-request-id", "retry-after", "retry-after-ms"]  # headers that pages of other origins may read


def make_app(service: Service, write: Callable[[str], None] = lambda _: None) -> ASGIApp:
    """Return the ASGI app of a service; `write` takes the lines of the access log."""
    status, embeddings, immich, search = _Status(service), Embeddings(service), Immich(service), Search(service)
    routes = [
        _route("/v1/embeddings", embeddings.openai, "POST"),
        _route("/embeddings", embeddings.openai, "POST"),
        _route("/v2/embed", embeddings.cohere, "POST"),
        _route("/v1/models", status.models, "GET"),
        _route("/models", status.models, "GET"),
        _route("/v1/models/{name:path}", status.model, "GET"),
        _route("/predict", immich.predict, "POST"),
        _route("/ping", immich.ping, "GET"),
        _route("/health/live", status.live, "GET"),
        _route("/health/ready", status.ready, "GET"),
        _route("/health", status.ready, "GET"),
        _route("/metrics", status.metrics, "GET"),
        _route("/openapi.json", status.document, "GET"),
        _route("/v1/search", search.search, "POST"),
        _route("/v1/classify", search.classify, "POST"),
        _route("/v1/indexes", search.indexes, "GET"),
        _route("/v1/indexes/{index}/duplicates", search.duplicates, "GET"),
        _route("/v1/indexes/{index}/rows/{row:int}/tile", search.tile, "GET"),
        _route("/", search.page, "GET"),
        _route("/page/{name}", search.page_file, "GET"),
    ]
    middleware = []
    if service.job.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(service.job.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
        middleware = [cors]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _explain})
    return Gate(app, service, write)


def _route(path: str, endpoint: Endpoint, method: str) -> Route:
    return Route(path, guarded(endpoint), methods=[method])


async def _explain(_: Request, exc: Exception) -> Response:
    """Answer what Starlette refuses by itself in our shape."""
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    response = make_response(RequestError(status, REASONS.get(status, str(exc)), code))
    if isinstance(exc, HTTPException) and exc.headers:
        response.headers.update(exc.headers)  # which methods are allowed
    return response


class _Status:
    """The endpoints that say what the server has, and how it is."""

    def __init__(self, service: Service) -> None:
        self._service = service
        watch = service.metrics.watch
        watch("queue_images", "Images and texts that wait or are worked on.", lambda: service.waiting)
        watch("held_bytes", "Bytes of bodies that are held.", lambda: service.held_bytes)
        watch("ready", "Whether requests are taken.", lambda: service.explain_not_ready() is None)

    async def models(self, _: Request) -> Response:
        """List the models."""
        data = [self._describe(model.name) for model in self._service.models.all]
        return make_json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        return make_json_response(self._describe(self._service.models.find(request.path_params["name"]).name))

    def _describe(self, name: str) -> dict[str, object]:
        model = self._service.models.find(name)
        facts: dict[str, object] = {"loaded": model.is_loaded, "aliases": model.names[1:]}
        if model.is_loaded:
            encoder = model.encoder
            facts |= {"dimensions": encoder.dim, "context_length": encoder.context_length}
            facts |= {"image_size": encoder.resolution_px, "precision": encoder.computed_in}
        created = int(self._service.started)
        return {"id": name, "object": "model", "created": created, "owned_by": "clip-turbo", **facts}

    async def live(self, _: Request) -> Response:
        """Answer whether the process works; where not, only a restart helps."""
        if (reason := self._service.explain_not_live()) is not None:
            raise RequestError(503, reason, "not_live")
        return make_json_response({"status": "live"})

    async def ready(self, _: Request) -> Response:
        """Answer whether requests are taken now."""
        if (reason := self._service.explain_not_ready()) is not None:
            raise RequestError(503, reason, "not_ready", retry_after_s=1.0)
        return make_json_response({"status": "ready"})

    async def document(self, _: Request) -> Response:
        """Answer with the description of the server for programs."""
        return make_json_response(describe(asks_for_key=self._service.job.api_key is not None))

    async def metrics(self, _: Request) -> Response:
        """Answer Prometheus."""
        return Response(self._service.metrics.render(), headers={"content-type": CONTENT_TYPE})

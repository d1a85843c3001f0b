"""GET /openapi.json: the server described for programs, in OpenAPI 3.1. What the words mean: docs/serve.md."""

from __future__ import annotations

from typing import Any

from .. import __version__
from .duplicates import LEVELS, MAX_GROUPS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
IMAGE: Schema = {
    "type": "string",
    "description": "data:image/...;base64,... or base64, or a URL where those are allowed",
}
MANY = [400, 401, 403, 408, 413, 415, 429, 500, 503]  # what each request with a body may be answered
FEW = [401, 403, 500, 503]


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _one_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _refer(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _optional(schema: Schema) -> Schema:
    return _one_of(schema, {"type": "null"})


IMAGE_PART = _object(("type", "image_url"), type={"const": "image_url"}, image_url=_one_of(IMAGE, _object(url=IMAGE)))
TEXT_PART = _object(("type", "text"), type={"const": "text"}, text=TEXT)
PART = _one_of(TEXT_PART, IMAGE_PART)
ITEM = _one_of(
    TEXT,
    _object(("text",), text=TEXT),
    _object(("image",), image=IMAGE),
    PART,
    _object(("content",), content=_one_of(TEXT, _list(PART))),
)
EMBEDDING = _object(
    ("object", "index", "embedding"),
    object={"const": "embedding"},
    index=COUNT,
    embedding=_one_of(_list(NUMBER), TEXT, {"type": "null"}),
)
SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"), message=TEXT, type=TEXT, param=_optional(TEXT), code=_optional(TEXT)
        ),
    ),
    "Item": ITEM,
    "EmbeddingsRequest": _object(
        model=_optional(TEXT),
        input=_one_of(_refer("Item"), _list(_refer("Item"))),
        messages=_list(_object(("role", "content"), role=TEXT, content=_one_of(TEXT, _list(PART)))),
        modality={"enum": ["text", "image"]},
        encoding_format={"enum": ["float", "base64"]},
        dimensions=_optional(COUNT),
        normalized=FLAG,
        truncate=FLAG,
        on_error={"enum": ["fail", "null"]},
    ),
    "Embeddings": _object(
        ("object", "model", "data", "usage"),
        object={"const": "list"},
        model=TEXT,
        data=_list(EMBEDDING),
        usage=_object(("prompt_tokens", "total_tokens"), prompt_tokens=COUNT, total_tokens=COUNT, images=COUNT),
    ),
    "CohereRequest": _object(
        model=_optional(TEXT),
        input_type=TEXT,
        texts=_list(TEXT),
        images=_list(IMAGE),
        inputs=_list(_object(("content",), content=_one_of(TEXT, _list(PART)))),
        embedding_types=_list({"enum": ["float", "base64"]}),
        truncate={"enum": ["NONE", "END"]},
    ),
    "CohereEmbeddings": _object(("id", "embeddings"), id=TEXT, embeddings=OBJECT, texts=_list(TEXT)),
    "SearchRequest": _object(
        index=_optional(TEXT),
        text=_one_of(TEXT, _list(TEXT)),
        image=_one_of(IMAGE, _list(IMAGE)),
        like=_one_of(TEXT, COUNT, _list(_one_of(TEXT, COUNT))),
        negative=_one_of(TEXT, _list(TEXT)),
        k={"type": "integer", "minimum": 1, "maximum": 1000},
        min_score=_optional(NUMBER),
        where=_optional(TEXT),
    ),
    "Hits": _object(("object", "index", "rows", "hits"), object={"const": "list"}, rows=COUNT, hits=_list(OBJECT)),
    "ClassifyRequest": _object(
        ("labels",),
        labels=_list(TEXT),
        template=_one_of(TEXT, _list(TEXT)),
        image=_one_of(IMAGE, _list(IMAGE)),
        like=_one_of(TEXT, COUNT, _list(_one_of(TEXT, COUNT))),
        index=_optional(TEXT),
        model=_optional(TEXT),
    ),
    "Probabilities": _object(("object", "model", "results"), results=_list(_list(OBJECT))),
    "Duplicates": _object(
        ("object", "state", "data"),
        object={"const": "list"},
        state={"enum": ["running", "done"]},
        data=_list(_object(("number", "images"), number=COUNT, images=_list(OBJECT))),
        report=OBJECT,
        what=TEXT,
        done=COUNT,
        total=COUNT,
    ),
    "Model": _object(("id", "object"), id=TEXT, object={"const": "model"}, loaded=FLAG, dimensions=COUNT),
    "List": _object(("object", "data"), object={"const": "list"}, data=_list(OBJECT)),
    "Status": _object(("status",), status=TEXT),
}
EMBEDDINGS_BODY: Schema = {
    "application/json": {"schema": _refer("EmbeddingsRequest")},
    "multipart/form-data": {"schema": _object(file={"type": "string", "format": "binary"}, text=TEXT, model=TEXT)},
    "image/*": {"schema": {"type": "string", "format": "binary"}},
}
PREDICT_BODY: Schema = {
    "multipart/form-data": {
        "schema": _object(("entries",), entries=TEXT, image={"type": "string", "format": "binary"}, text=TEXT)
    }
}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _operation(summary: str, answer: Schema, errors: list[int], body: Schema | None = None, *names: Schema) -> Schema:
    """Describe a method of a path: the content of its answer, the errors it may have, its body and parameters."""
    responses: Schema = {"200": {"description": "The answer", "content": answer}}
    for status in errors:
        responses[str(status)] = {"description": "An error", "content": _json(_refer("Error"))}
    operation: Schema = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    if names:
        operation["parameters"] = list(names)
    return operation


def _in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


def _describe_paths() -> Schema:
    embeddings = _operation("Embed texts and images", _json(_refer("Embeddings")), [*MANY, 404], EMBEDDINGS_BODY)
    models = _operation("List the models", _json(_refer("List")), FEW)
    ready = _operation("Whether requests are taken", _json(_refer("Status")), [403, 500, 503])
    search_body, classify_body = _json(_refer("SearchRequest")), _json(_refer("ClassifyRequest"))
    duplicates = _operation(
        "Groups of duplicates of an index",
        _json(_refer("Duplicates")),
        [*FEW, 400, 404, 409, 429],
        None,
        _in_path("index", {**TEXT, "minLength": 1}),
        _in_query("level", {"enum": list(LEVELS)}),
        _in_query("start", COUNT),
        _in_query("count", {**COUNT, "maximum": MAX_GROUPS}),
    )
    duplicates["responses"]["202"] = {"description": "It is running", "content": _json(_refer("Duplicates"))}
    tile = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    index_and_row = (_in_path("index", {**TEXT, "minLength": 1}), _in_path("row", COUNT))
    return {
        "/v1/embeddings": {"post": embeddings},
        "/embeddings": {"post": embeddings},
        "/v2/embed": {
            "post": _operation(
                "Embed, as Cohere's clients ask",
                _json(_refer("CohereEmbeddings")),
                [*MANY, 404],
                _json(_refer("CohereRequest")),
            )
        },
        "/v1/models": {"get": models},
        "/models": {"get": models},
        "/v1/models/{name}": {
            "get": _operation(
                "Describe a model",
                _json(_refer("Model")),
                [*FEW, 404],
                None,
                _in_path("name", {**TEXT, "minLength": 1}),
            )
        },
        "/predict": {"post": _operation("Embed, as Immich asks", _json(OBJECT), [*MANY, 404, 422], PREDICT_BODY)},
        "/ping": {"get": _operation("Whether Immich may ask", {"text/plain": {"schema": TEXT}}, [403, 500, 503])},
        "/v1/search": {"post": _operation("Search an index", _json(_refer("Hits")), [*MANY, 404], search_body)},
        "/v1/classify": {
            "post": _operation("Classify images", _json(_refer("Probabilities")), [*MANY, 404], classify_body)
        },
        "/v1/indexes": {"get": _operation("List what can be searched", _json(_refer("List")), FEW)},
        "/v1/indexes/{index}/duplicates": {"get": duplicates},
        "/v1/indexes/{index}/rows/{row}/tile": {
            "get": _operation("The small image of a row", tile, [*FEW, 400, 404, 429], None, *index_and_row)
        },
        "/health/live": {"get": _operation("Whether the process works", _json(_refer("Status")), [403, 500, 503])},
        "/health/ready": {"get": ready},
        "/health": {"get": ready},
        "/metrics": {"get": _operation("For Prometheus", {"text/plain": {"schema": TEXT}}, FEW)},
    }


def describe(*, asks_for_key: bool) -> Schema:
    """Return the document; with the scheme of the key where one is asked for."""
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "clip serve", "version": __version__, "license": {"name": "MIT"}},
        "paths": _describe_paths(),
        "components": {"schemas": SCHEMAS},
    }
    if asks_for_key:
        document["components"] = {"schemas": SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"key": []}]
    return document

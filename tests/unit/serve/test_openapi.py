"""The server does what its own OpenAPI document says, whatever is sent that the document allows, and never fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from kit.served import Answer, Served, serving
from starlette.routing import Route

from clip.jobs.serve import ServeJob
from clip.serve.openapi import describe

DOCUMENT = describe(asks_for_key=False)
OPERATIONS = {
    operation.ok().label: operation.ok() for operation in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
}
NOT_DESCRIBED = {"/", "/page/{name}", "/openapi.json"}


@pytest.fixture(scope="module")
def served(text_weights: Path) -> Iterator[Served]:
    with serving(ServeJob(models=(f"tiny={text_weights}",), decoders="threads")) as server:
        yield server


def check(label: str, answer: Answer) -> None:
    """An answer has a status of the document, and the shape that the document gives it."""
    responses = OPERATIONS[label].definition.raw["responses"]
    assert str(answer.status) in responses, (answer.status, answer.body)
    assert answer.status != 500, answer.body
    kind = answer.headers["content-type"].partition(";")[0]
    content = responses[str(answer.status)]["content"]
    assert kind in content
    if kind == "application/json":
        schema: dict[str, Any] = content[kind]["schema"] | {"components": DOCUMENT["components"]}
        jsonschema_rs.validate(schema, answer.json)


@pytest.mark.parametrize("label", OPERATIONS)
def test_what_the_document_allows_is_answered_as_it_says(label: str, served: Served) -> None:
    @given(case=OPERATIONS[label].as_strategy())
    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        kinds = {"image/*": "image/png"}
        headers = {"content-type": kinds.get(case.media_type or "", case.media_type or "application/json")}
        body = case.body if case.media_type == "application/json" else as_bytes(case.body)
        path = quote(case.path, safe="/{}")
        for name, value in (case.path_parameters or {}).items():
            path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
        check(label, served.begin(case.method, path, body, headers=headers).result(120))

    ask()


def as_bytes(body: object) -> bytes:
    """A body that is no JSON, as it is or as a form without a boundary."""
    return body if isinstance(body, bytes) else str(body).encode("utf-8", "replace")


def test_every_path_that_is_answered_is_described(served: Served) -> None:
    app: Any = served.app
    routes = [route for route in app._app.routes if isinstance(route, Route)]
    answered = {
        (route.path.replace(":path", "").replace(":int", ""), method.lower())
        for route in routes
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert {pair for pair in answered if pair[0] not in NOT_DESCRIBED} == described


def test_the_document_is_served_and_names_the_key_where_one_is_asked_for(text_weights: Path) -> None:
    job = ServeJob(models=(f"tiny={text_weights}",), api_key="secret", decoders="threads")
    with serving(job, loaded=False) as server:
        assert server.get("/openapi.json").status == 401
        document = server.get("/openapi.json", authorization="Bearer secret").json
    assert document["security"] == [{"key": []}]
    assert "securitySchemes" in document["components"]
    assert "security" not in DOCUMENT

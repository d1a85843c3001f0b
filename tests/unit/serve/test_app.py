"""The server's answers, in this process: what clients of each kind get for what they send."""

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import draws, loopback
from kit.served import NEVER, PATIENCE_S, Answer, Served, serving

from clip import Encoder
from clip.errors import InputError
from clip.jobs.serve import ServeJob, Traffic
from clip.serve import gate

TEXTS = ["a diagram", "a photo of a dog, and a cat!"]
QUEUE = 40


def png(number: int) -> bytes:
    """An image that no other number has."""
    return draws.png(number, 20 + number % 30, 40)


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def job(weights: Path, **options: Any) -> ServeJob:
    return ServeJob(models=(f"tiny={weights}",), decoders="threads", **options)


@pytest.fixture(scope="module")
def served(text_weights: Path) -> Iterator[Served]:
    with serving(job(text_weights, traffic=Traffic(queue=QUEUE, max_items=60, max_body_bytes=2_000_000))) as served:
        yield served


@pytest.fixture(scope="module")
def encoder(text_weights: Path) -> Encoder:
    return Encoder(text_weights)


def vectors(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.body
    assert [entry["index"] for entry in answer.json["data"]] == list(range(len(answer.json["data"])))
    return np.array([entry["embedding"] for entry in answer.json["data"]])


def test_texts_and_images_get_the_vectors_of_the_encoder(served: Served, encoder: Encoder) -> None:
    images = [png(1), png(2)]
    answer = served.post("/v1/embeddings", {"input": [TEXTS[0], uri(images[0]), TEXTS[1], uri(images[1])]})
    found = vectors(answer)
    np.testing.assert_allclose(found[[0, 2]], encoder.embed_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(found[[1, 3]], encoder.embed_images(images), atol=1e-6)
    body = answer.json
    tokens = int((encoder.tokenize(TEXTS) != 0).sum())
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "images": 2}
    assert (body["object"], body["model"], body["data"][0]["object"]) == ("list", "tiny", "embedding")


def test_openais_sdks_ask_for_base64_and_get_little_endian_float32(served: Served, encoder: Encoder) -> None:
    body = {"input": TEXTS, "model": "tiny", "encoding_format": "base64"}
    answer = served.post("/embeddings", body, user_agent="OpenAI/Python 3.52.0")
    decoded = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer.json["data"]]
    np.testing.assert_allclose(np.stack(decoded), encoder.embed_texts(TEXTS), atol=1e-6)


def test_features_are_not_scaled_where_that_is_asked_for(served: Served, encoder: Encoder) -> None:
    found = vectors(served.post("/v1/embeddings", {"input": TEXTS, "normalized": False}))
    np.testing.assert_allclose(found, encoder.encode_text(TEXTS).numpy(), atol=1e-5)


def test_an_image_may_be_the_body_or_a_file_of_a_form(served: Served, encoder: Encoder) -> None:
    data = png(3)
    expected = encoder.embed_images([data])
    raw = served.post("/v1/embeddings?encoding_format=float", data, content_type="image/png")
    np.testing.assert_allclose(vectors(raw), expected, atol=1e-6)
    form, kind = make_form({"model": "tiny", "text": TEXTS[0]}, {"file": data})
    found = vectors(served.post("/v1/embeddings", form, content_type=kind))
    np.testing.assert_allclose(found, [encoder.embed_texts(TEXTS[:1])[0], expected[0]], atol=1e-6)


def make_form(fields: dict[str, str], files: dict[str, bytes]) -> tuple[bytes, str]:
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts += [
        (f'name="{name}"; filename="blob"\r\nContent-Type: application/octet-stream', data)
        for name, data in files.items()
    ]
    body = b"".join(
        b"--b0undary\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return body + b"--b0undary--\r\n", "multipart/form-data; boundary=b0undary"


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "words"),
    [
        ({"input": ["a", uri(b"no image")]}, 400, "image_decode_error", "input[1]", "starts with b'no image'"),
        ({"input": [uri(png(1)[:100])]}, 400, "image_decode_error", "input[0]", "whole PNG"),
        ({"input": ["a " * 100]}, 400, "context_length_exceeded", "input[0]", "truncate"),
        ({"input": "a", "model": "gpt-4"}, 404, "model_not_found", "model", "tiny"),
        ({"input": "a", "dimensions": 8}, 400, "invalid_value", "dimensions", "32"),
        ({"input": "a", "encoding_format": "bytes"}, 400, "invalid_value", "encoding_format", "base64"),
        ({"input": "a", "embed_dtype": "float16"}, 400, "invalid_value", "embed_dtype", "float32"),
        ({"input": "a", "normalized": "maybe"}, 400, "invalid_value", "normalized", "true or false"),
        ({"input": [1, 2]}, 400, "invalid_value", "input", "check_embedding_ctx_length=False"),
        ({"input": "https://example.com/a.png", "modality": "image"}, 400, "url_not_allowed", "input", "data URI"),
        ({"input": ["a"] * 61}, 400, "too_many_items", "input", "at most 60"),
        ([], 400, "invalid_json", None, "no JSON object"),
        (b'{"input": ', 400, "invalid_json", None, "no JSON"),
        (b"[" * 100_000, 400, "invalid_json", None, "nested too deeply"),
        (b"[" + b"1," * 600_000 + b"1]", 400, "too_many_items", None, "500,000 values"),
        (b'{"input": "\xff"}', 400, "invalid_json", None, "no JSON"),
        (b" " * 2_000_001, 413, "request_too_large", None, "2,000,000 bytes"),
        ([b" " * 1_000_000] * 3, 413, "request_too_large", None, "2,000,000 bytes"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why_in_openais_shape(
    body: Any, status: int, code: str, param: str | None, words: str, served: Served
) -> None:
    answer = served.post("/v1/embeddings", body)
    error = answer.error
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert words in error["message"]
    assert served.service.waiting == served.service.held_bytes == 0


def test_a_body_that_is_compressed_or_of_a_path_that_is_not_there_is_refused(served: Served) -> None:
    assert served.post("/v1/embeddings", b"\x1f\x8b" + bytes(100), content_encoding="gzip").status == 415
    assert served.get("/v1/nothing").error["code"] == "not_found"
    wrong = served.get("/v1/embeddings")
    assert (wrong.status, wrong.headers["allow"], wrong.error["code"]) == (405, "POST", "method_not_allowed")


def test_long_texts_are_cut_where_that_is_asked_for(served: Served, encoder: Encoder) -> None:
    found = vectors(served.post("/v1/embeddings", {"input": ["a " * 100], "truncate": True}))
    expected = encoder.encode_text(encoder.tokenize(["a " * 100], truncate=True)).numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_bad_images_may_be_nulls_beside_the_vectors_of_good_ones(served: Served, encoder: Encoder) -> None:
    body = {"input": [uri(png(1)), uri(b"bad"), "a"], "on_error": "null"}
    answer = served.post("/v1/embeddings", body)
    assert answer.status == 200
    first, bad, last = answer.json["data"]
    assert (bad["embedding"], bad["error"]["param"]) == (None, "input[1]")
    np.testing.assert_allclose(first["embedding"], encoder.embed_images([png(1)])[0], atol=1e-6)
    assert len(last["embedding"]) == 32


def test_requests_in_one_batch_get_their_own_vectors_and_only_the_owner_of_a_bad_image_fails(
    served: Served, encoder: Encoder
) -> None:
    """As many requests as may wait, at once, with bad images among them."""
    images = [b"bad" if number % 10 == 3 else png(number) for number in range(QUEUE)]
    asked = [served.begin("POST", "/v1/embeddings", {"input": [uri(data)]}) for data in images]
    answers = [answer.result(PATIENCE_S) for answer in asked]
    for data, answer in zip(images, answers, strict=True):
        if data == b"bad":
            assert answer.error["param"] == "input[0]"
        else:
            np.testing.assert_allclose(vectors(answer), encoder.embed_images([data]), atol=1e-6)


def test_coheres_shape(served: Served, encoder: Encoder) -> None:
    data = png(5)
    answer = served.post(
        "/v2/embed",
        {"model": "tiny", "input_type": "image", "images": [uri(data)], "embedding_types": ["float", "base64"]},
    )
    expected = encoder.embed_images([data])
    np.testing.assert_allclose(answer.json["embeddings"]["float"], expected, atol=1e-6)
    assert np.frombuffer(base64.b64decode(answer.json["embeddings"]["base64"][0]), "<f4") == pytest.approx(expected[0])
    assert answer.json["images"] == [{"width": 25, "height": 40, "format": "png", "bit_depth": 24}]
    assert answer.json["meta"]["billed_units"] == {"input_tokens": 0, "images": 1}
    texts = served.post("/v2/embed", {"model": "tiny", "input_type": "search_query", "texts": TEXTS})
    np.testing.assert_allclose(texts.json["embeddings"]["float"], encoder.embed_texts(TEXTS), atol=1e-6)
    assert texts.json["texts"] == TEXTS
    parts = [{"content": [{"type": "image_url", "image_url": {"url": uri(data)}}]}]
    mixed = served.post("/v2/embed", {"model": "tiny", "input_type": "image", "inputs": parts})
    np.testing.assert_allclose(mixed.json["embeddings"]["float"], expected, atol=1e-6)
    long = {"model": "tiny", "texts": ["a " * 100]}
    assert served.post("/v2/embed", long).status == 200, "Cohere cuts unless it is told not to"
    assert served.post("/v2/embed", long | {"truncate": "NONE"}).error["code"] == "context_length_exceeded"
    assert served.post("/v2/embed", {"model": "tiny", "texts": ["a"], "images": [uri(data)]}).status == 400
    assert served.post("/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}).error["param"] == "embedding_types"


def test_immichs_protocol(served: Served, encoder: Encoder) -> None:
    """As its server builds requests: server/src/repositories/machine-learning.repository.ts."""
    data = png(7)
    entries = {"clip": {"visual": {"modelName": "tiny"}}}
    form, kind = make_form({"entries": json.dumps(entries)}, {"image": data})
    answer = served.post("/predict", form, content_type=kind)
    assert (answer.json["imageWidth"], answer.json["imageHeight"]) == (27, 40)
    assert isinstance(answer.json["clip"], str)
    np.testing.assert_allclose(json.loads(answer.json["clip"]), encoder.embed_images([data])[0], atol=1e-6)
    entries = {"clip": {"textual": {"modelName": "tiny", "options": {"language": "en"}}}}
    form, kind = make_form({"entries": json.dumps(entries), "text": TEXTS[1]}, {})
    answer = served.post("/predict", form, content_type=kind)
    assert list(answer.json) == ["clip"]
    np.testing.assert_allclose(json.loads(answer.json["clip"]), encoder.embed_texts(TEXTS)[1], atol=1e-6)
    assert served.get("/ping").body == b"pong"


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ('{"facial-recognition": {"detection": {"modelName": "buffalo_l"}}}', 422),
        ('{"clip": {"visual": {"modelName": "tiny"}}, "ocr": {"detection": {"modelName": "x"}}}', 422),
        ('{"clip": {"visual": {}}}', 422),
        ('{"clip": []}', 422),
        ('{"clip": {"visual": {"modelName": "other__openai"}}}', 404),
        ("[", 400),
    ],
)
def test_what_immich_has_to_ask_another_server_for_is_refused(entries: str, status: int, served: Served) -> None:
    form, kind = make_form({"entries": entries}, {"image": png(1)})
    answer = served.post("/predict", form, content_type=kind)
    assert answer.status == status
    assert answer.error


def test_a_model_goes_by_the_names_that_clients_have_for_it() -> None:
    from clip.serve.models import Models

    models = Models(ServeJob(models=("ViT-B/32", "ViT-L/14@336px")))
    for name in ("ViT-B/32", "ViT-B-32__openai", "ViT-B-32", "openai/clip-vit-base-patch32", "vit-b_32", None):
        assert models.find(name) is models.first
    assert models.find("ViT-L-14-336__openai").name == "ViT-L/14@336px"
    with pytest.raises(InputError, match="twice"):
        Models(ServeJob(models=("ViT-B/32", "ViT-B/32")))


def test_models_are_listed_and_described(served: Served) -> None:
    (model,) = served.get("/v1/models").json["data"]
    assert (model["id"], model["object"], model["dimensions"], model["loaded"]) == ("tiny", "model", 32, True)
    assert served.get("/v1/models/tiny").json == model
    assert served.get("/v1/models/none").error["code"] == "model_not_found"


def test_a_request_has_an_id_a_trace_and_a_line_in_the_log(served: Served) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = served.post("/v1/embeddings", {"input": ["a", "b"]}, x_request_id="mine-1", traceparent=trace)
    assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == ("mine-1", trace)
    line = json.loads(served.lines[-1])
    assert (line["status"], line["items"], line["request_id"]) == (200, 2, "mine-1")
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    other = served.post("/v1/embeddings", {"input": "a"}, x_request_id="x\ty", traceparent="00-" + "0" * 32)
    assert len(other.headers["x-request-id"]) == 32
    assert "traceparent" not in other.headers
    assert served.get("/health/live").headers["x-request-id"] != other.headers["x-request-id"]


def test_a_line_of_the_log_in_words_moves_no_cursor() -> None:
    form = gate._choose_format("text")
    assert form is not None
    line = {"time": "2026-11-28T17:37:42Z", "method": "GET", "path": "/\x1b[2J", "status": 404, "seconds": 0.0061}
    assert form({**line, "items": 0}) == "17:37:42 GET /\\u001b[2J 404, 6 ms"
    assert form({**line, "items": 1200}).endswith(", 1,200 items")
    assert gate._choose_format("none") is None
    assert gate._choose_format("auto") is json.dumps, "stderr is no terminal here"


def test_metrics_count_what_happened(served: Served) -> None:
    def read(name: str) -> float:
        lines = served.get("/metrics").body.decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    names = ('clip_requests_total{code="400",route="/v1/embeddings"}', 'clip_images_total{outcome="failed"}')
    before = [read(name) for name in names]
    served.post("/v1/embeddings", {"input": [uri(b"bad")]})
    assert [read(name) - old for name, old in zip(names, before, strict=True)] == [1, 1]
    served.post("/v1/embeddings", {"input": [uri(png(1))]})
    assert read('clip_images_total{outcome="embedded"}') > 0
    assert read('clip_batch_size_count{kind="images"}') > 0
    assert read("clip_decode_seconds_count") > 0
    assert (read("clip_queue_images"), read("clip_ready")) == (0, 1)


class Paused:
    """Holds the model of a server until the block ends."""

    def __init__(self, served: Served) -> None:
        self.served, self.go, self.began = served, threading.Event(), threading.Event()

    def __enter__(self) -> "Paused":
        self._encoder = self.served.service.models.first.encoder
        self._encode = self._encoder.encode_pixels

        def wait(pixels: np.ndarray) -> np.ndarray:
            self.began.set()
            assert self.go.wait(PATIENCE_S)
            return self._encode(pixels)

        self._encoder.encode_pixels = wait  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._encoder.encode_pixels = self._encode  # type: ignore[method-assign]


def test_a_full_queue_answers_429_and_takes_requests_again_when_there_is_room(served: Served) -> None:
    with Paused(served) as paused:
        body = {"input": [uri(png(1))] * QUEUE}
        first = served.begin("POST", "/v1/embeddings", body)
        assert paused.began.wait(PATIENCE_S)
        refused = served.post("/v1/embeddings", {"input": "a"})
        assert (refused.status, refused.error["code"], refused.error["type"]) == (429, "overloaded", "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        assert int(refused.headers["retry-after-ms"]) >= 1
        assert served.get("/health/ready").status == 200
    assert first.result(PATIENCE_S).status == 200
    assert served.post("/v1/embeddings", {"input": "a"}).status == 200
    large = served.post("/v1/embeddings", {"input": ["a"] * 55})
    assert large.status == 200, "more than may wait, and nothing else waits"


def test_the_work_of_a_client_that_is_gone_is_dropped(served: Served) -> None:
    gone = threading.Event()
    sizes: list[int] = []
    with Paused(served) as paused:
        first = served.begin("POST", "/v1/embeddings", {"input": uri(png(1))})
        assert paused.began.wait(PATIENCE_S)
        observe = served.service.batcher._observe
        served.service.batcher._observe = lambda _kind, size, _seconds: sizes.append(size)
        leaving = served.begin("POST", "/v1/embeddings", {"input": [uri(png(2))] * 30}, gone=gone)
        gone.set()
        assert leaving.result(PATIENCE_S).status == 499
        assert served.service.waiting == 1
    assert first.result(PATIENCE_S).status == 200
    assert served.post("/v1/embeddings", {"input": uri(png(3))}).status == 200
    served.service.batcher._observe = observe
    assert sum(sizes) == 2, "what was not begun is not run"


def test_an_engine_that_fails_costs_its_batch_and_nothing_else(served: Served) -> None:
    encoder = served.service.models.first.encoder
    encode = encoder.encode_pixels

    def fail(_: np.ndarray) -> np.ndarray:
        raise RuntimeError("CUDA error: an illegal memory access")

    encoder.encode_pixels = fail  # type: ignore[method-assign]
    try:
        failed = served.post("/v1/embeddings", {"input": uri(png(1))})
    finally:
        encoder.encode_pixels = encode  # type: ignore[method-assign]
    assert (failed.status, failed.error["code"], failed.error["type"]) == (500, "engine_error", "server_error")
    assert "illegal memory" not in failed.error["message"], "a client learns nothing of the machine"
    assert served.post("/v1/embeddings", {"input": uri(png(1))}).status == 200


def test_a_slow_body_ends_and_its_bytes_are_held_no_more(text_weights: Path) -> None:
    traffic = Traffic(body_seconds=0.05, held_bytes=1000)
    with serving(job(text_weights, traffic=traffic), loaded=False) as served:
        answer = served.begin("POST", "/v1/embeddings", [b"{" * 10, NEVER]).result(PATIENCE_S)
        assert (answer.status, answer.error["code"], answer.headers["connection"]) == (408, "body_timeout", "close")
        assert served.service.held_bytes == 0
        held = served.post("/v1/embeddings", b" " * 2000)
        assert (held.status, held.error["code"]) == (429, "overloaded")
        assert served.service.held_bytes == 0


def test_a_server_that_loads_or_drains_says_so(text_weights: Path) -> None:
    with serving(job(text_weights), loaded=False) as served:
        assert served.get("/health/live").status == 200
        for path in ("/health/ready", "/health", "/ping"):
            assert served.get(path).status == 503
        early = served.post("/v1/embeddings", {"input": "a"})
        assert (early.status, early.error["code"]) == (503, "model_not_ready")
        assert int(early.headers["retry-after"]) >= 1
        served.load()
        assert served.get("/health/ready").status == 200
        served.service.is_draining = True
        late = served.post("/v1/embeddings", {"input": "a"})
        assert (late.status, late.error["code"], late.headers["connection"]) == (503, "draining", "close")
        assert served.get("/health/ready").status == 503
        assert served.get("/health/live").status == 200


def test_models_after_the_first_are_loaded_when_they_are_asked_for(text_weights: Path) -> None:
    models = (f"tiny={text_weights}", f"other={text_weights}", "gone=/nowhere/else.pt")
    with serving(ServeJob(models=models, decoders="threads")) as served:
        assert [model["loaded"] for model in served.get("/v1/models").json["data"]] == [True, False, False]
        both = [vectors(served.post("/v1/embeddings", {"input": "a", "model": name})) for name in ("tiny", "other")]
        np.testing.assert_array_equal(*both)
        assert [model["loaded"] for model in served.get("/v1/models").json["data"]] == [True, True, False]
        gone = served.post("/v1/embeddings", {"input": "a", "model": "gone"})
        assert (gone.status, gone.error["code"]) == (503, "model_not_ready")
        assert served.get("/health/ready").status == 200


def test_a_name_that_was_made_to_lead_here_is_refused(text_weights: Path) -> None:
    """By DNS rebinding a page anywhere would search in the user's photos."""
    own = ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "127.9.0.1", "[::1]:8000", "a.localhost", "proxy.example:443")
    others = ("evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "", "[::1")
    with serving(job(text_weights, hosts=("Proxy.example",))) as served:
        assert {host: served.get("/v1/models", host=host).status for host in own} == dict.fromkeys(own, 200)
        refused = [served.get("/v1/models", host=host) for host in others]
        assert [(answer.status, answer.error["code"]) for answer in refused] == [(403, "host_not_allowed")] * len(
            others
        )
    for anyone in ({"host": "0.0.0.0"}, {"api_key": "s3cret"}):
        with serving(job(text_weights, **anyone)) as served:
            asked = served.get("/v1/models", host="evil.example", authorization="Bearer s3cret")
            assert asked.status == 200


def test_with_a_key_only_health_is_open(text_weights: Path) -> None:
    with serving(job(text_weights, api_key="s3cret", cors_origins=("https://a.example",))) as served:
        for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "Basic s3cret"}, {"x_api_key": "ü"}):
            refused = served.post("/v1/embeddings", {"input": "a"}, **headers)
            assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        for headers in ({"authorization": "Bearer s3cret"}, {"x_api_key": "s3cret"}):
            assert served.post("/v1/embeddings", {"input": "a"}, **headers).status == 200
        assert served.get("/metrics").status == 401
        assert served.get("/health/live").status == 200
        asked = {"origin": "https://a.example", "access_control_request_method": "POST"}
        allowed = served.ask("OPTIONS", "/v1/embeddings", **asked)
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = served.ask("OPTIONS", "/v1/embeddings", **asked | {"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


def test_urls_are_fetched_where_that_is_allowed_and_only_from_public_addresses(
    text_weights: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(job(text_weights, allow_urls=True)) as served, loopback.serving(png(4)) as other:
        body = {"input": ["a", {"image_url": {"url": f"{other.url}/a.png"}}]}
        refused = served.post("/v1/embeddings", body)
        assert (refused.status, refused.error["param"]) == (400, "input[1].image_url.url")
        assert "not public" in refused.error["message"]
        assert other.requests == []
        monkeypatch.setattr("clip.serve.fetch.is_public", lambda _: True)
        np.testing.assert_allclose(
            vectors(served.post("/v1/embeddings", body))[1], encoder.embed_images([png(4)])[0], atol=1e-6
        )

"""Thousands of requests with an image of its own each, one in a hundred of them bad: each gets its own answer."""

import base64
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from kit import draws
from kit.server_command import HOST, PATIENCE_S, ServerCommand

from clip import Encoder

REQUESTS = int(os.environ.get("CLIP_SOAK_REQUESTS", "5000"))
CLIENTS = 8
BAD_ONE_IN = 100
CHECKED = 5000  # images whose vectors are held at a time


def draw(number: int) -> bytes:
    """An image that no other number has; each hundredth is cut."""
    data = draws.png(number, 20 + number % 13, 20 + number // 13 % 11)
    return data if number % BAD_ONE_IN else data[: len(data) // 3]


@pytest.fixture
def server(text_weights: Path, tmp_path: Path) -> Iterator[ServerCommand]:
    command = ServerCommand(text_weights, tmp_path, "--workers", "2", "--threads", "1", "--access-log", "none")
    yield command
    command.close()


def test_each_request_gets_the_vector_of_its_own_image_or_the_reason_why_there_is_none(
    server: ServerCommand, text_weights: Path
) -> None:
    encoder = Encoder(text_weights)
    statuses: Counter[int] = Counter()
    for first in range(0, REQUESTS, CHECKED):
        numbers = range(first, min(first + CHECKED, REQUESTS))
        answers = ask_all(server.port, numbers)
        statuses.update(status for status, _ in answers.values())
        good = [number for number in numbers if number % BAD_ONE_IN]
        assert {number for number, (status, _) in answers.items() if status == 200} == set(good)
        for number in set(numbers).difference(good):
            status, body = answers[number]
            assert (status, body["error"]["param"]) == (400, "body"), body
        expected = encoder.embed_images([draw(number) for number in good])
        given = np.stack([decode(answers[number][1]) for number in good])
        np.testing.assert_allclose(given, expected, atol=1e-5)
        of_others = given @ expected.T  # a vector that belongs to another image would be nearest to that
        np.testing.assert_array_equal(of_others.argmax(axis=1), np.arange(len(good)))
    assert statuses == {200: REQUESTS - statuses[400], 400: -(-REQUESTS // BAD_ONE_IN)}


def ask_all(port: int, numbers: range) -> dict[int, tuple[int, dict[str, object]]]:
    """Send an image in each request, over a few connections that are kept; return statuses and bodies."""
    left = iter(numbers)
    answers: dict[int, tuple[int, dict[str, object]]] = {}
    lock = threading.Lock()

    def ask(_: int) -> None:
        connection = HTTPConnection(HOST, port, timeout=PATIENCE_S)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                break
            headers = {"Content-Type": "image/png"}
            connection.request("POST", "/v1/embeddings?encoding_format=base64", draw(number), headers)
            answer = connection.getresponse()
            with lock:
                answers[number] = answer.status, json.loads(answer.read())
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))
    return answers


def decode(body: dict[str, list[dict[str, str]]]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")

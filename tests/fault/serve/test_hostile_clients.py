"""One server on a socket, and clients that mean it ill: it answers others, keeps its memory, and stops in order."""

import base64
import json
import os
import signal
import socket
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from kit import draws, hostile
from kit.server_command import PATIENCE_S, ServerCommand

from clip import Encoder

CONNECTIONS = 30


@pytest.fixture(scope="module")
def server(text_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerCommand]:
    folder = tmp_path_factory.mktemp("server")
    environment = hostile.environment(hostile.write_plugin(folder)) | {"CLIP_QUEUE": "64"}
    flags = ("--header-seconds", "1", "--body-seconds", "1", "--max-connections", str(CONNECTIONS))
    limits = ("--max-seconds", "2", "--max-body-bytes", "3000000", "--workers", "2", "--threads", "1")
    command = ServerCommand(text_weights, folder, *flags, *limits, environment=environment)
    yield command
    command.close()


def read_all(connection: socket.socket) -> bytes:
    """All that a connection still gets, until the other end closes it."""
    whole = b""
    try:
        while piece := connection.recv(65_536):
            whole += piece
    except ConnectionResetError:
        pass
    return whole


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def make_bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that has that many pixels, of one bit each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes(1 + -(-width // 8)) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def make_animation(frames: int) -> bytes:
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


def test_headers_that_do_not_come_end_their_connections(server: ServerCommand) -> None:
    slow = [server.connect() for _ in range(3)]
    slow[1].sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nX-")
    slow[2].sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health")  # and half of another
    answers = [read_all(each).partition(b"\r\n")[0] for each in slow]
    for each in slow:
        each.close()
    assert answers == [b"", b"", b"HTTP/1.1 200 OK"]


def test_more_silent_connections_than_may_be_open_keep_nobody_out(server: ServerCommand) -> None:
    silent = [server.connect() for _ in range(2 * CONNECTIONS)]
    for each in silent:
        each.sendall(b"POST /v1/embeddings HTTP/1.1\r\n")
    for _ in range(5):
        assert server.ask("GET", "/health/ready")[0].status == 200
    assert server.embed("a")[0] == 200
    for each in silent:
        each.close()


def test_a_body_that_does_not_come_or_does_not_end_is_refused(server: ServerCommand) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with server.connect() as half:
        half.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        answer = read_all(half)
    assert b"408" in answer.partition(b"\r\n")[0]
    assert b'"code":"body_timeout"' in answer
    with server.connect() as large:
        large.sendall(head + b"Content-Length: 1000000000\r\n\r\n")
        assert b'"code":"request_too_large"' in read_all(large)
    with server.connect() as endless:
        endless.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + bytes(65_536) + b"\r\n"
        try:
            for _ in range(1000):
                endless.sendall(piece)
        except OSError:
            pass
        else:
            raise AssertionError("65 MB were taken")
    assert server.embed("a")[0] == 200


def test_what_is_no_http_gets_an_error_in_our_shape(server: ServerCommand) -> None:
    for junk in (b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3", b"GET / and more HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 100_000):
        with server.connect() as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            _, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert json.loads(body)["error"]["code"] == "invalid_http"


def test_hostile_images_fail_by_themselves_and_never_keep_the_probe_waiting(
    server: ServerCommand, text_weights: Path
) -> None:
    """They crash and hang decoders, and are larger than any image may be; good ones go in between."""
    good = draws.png(1, 40, 30)
    bad = [
        make_bomb(13_377, 13_377),
        make_bomb(65_535, 65_535),
        hostile.picture("crash"),
        hostile.picture("hang"),
        b"\xff\xd8\xff" + os.urandom(1000),
        b"",
    ]
    expected = Encoder(text_weights).embed_images([good])[0]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.embed, uri(data)) for data in bad]
        among = [pool.submit(server.embed, uri(good)) for _ in range(4)]
        while not all(each.done() for each in asked):
            assert server.ask("GET", "/health/live")[0].status == 200
            time.sleep(0.05)
        for each in asked:
            status, body = each.result()
            assert (status, body["error"]["param"]) == (400, "input[0]"), body
        for each in among:
            status, body = each.result()
            assert status == 200, body
            np.testing.assert_allclose(body["data"][0]["embedding"], expected, atol=1e-6)
    assert server.embed(uri(make_animation(10_000)))[0] == 200, "its first frame is an image"


def test_decoders_that_are_killed_are_started_again(server: ServerCommand) -> None:
    good = uri(draws.png(2, 40, 30))
    tasks = Path(f"/proc/{server.process.pid}/task")
    found = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    assert all(server.embed(good)[0] == 200 for _ in range(4))


def test_sigterm_answers_what_was_begun_refuses_what_comes_and_ends_with_0(server: ServerCommand) -> None:
    """The last test of the module, as the server ends."""
    image = uri(draws.png(3, 200, 200))
    with ThreadPoolExecutor(8) as pool, server.connect() as kept:
        kept.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(65_536).startswith(b"HTTP/1.1 200")
        under_way = [pool.submit(server.embed, *[image] * 8) for _ in range(8)]
        while b"clip_queue_images 0.0" in server.ask("GET", "/metrics")[1]:
            assert not all(each.done() for each in under_way)
        server.process.send_signal(signal.SIGTERM)
        outcomes = [each.exception() or each.result()[0] for each in under_way]
    assert server.process.wait(PATIENCE_S) == 0, Path(server.stderr.name).read_text()
    assert 200 in outcomes
    for outcome in outcomes:  # those that came too late were refused, or found nobody listening
        assert outcome in (200, 429, 503) or isinstance(outcome, OSError)
    assert "Traceback" not in Path(server.stderr.name).read_text()

"""URLs in requests: nothing is fetched from addresses that are not public, however they are written or reached."""

import socket
import threading
from collections.abc import Iterator

import pytest
from kit import loopback

from clip.errors import ImageError
from clip.serve.fetch import fetch, is_public

CONTENT = b"an image" * 100
PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.0.8", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd12:3456::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:0a00:0001::1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_networks_of_ones_own_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2002:0808:0808::1"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.fixture(scope="module")
def canary() -> Iterator[tuple[int, threading.Event]]:
    """A listener that notes whether anybody came."""
    came = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            came.set()
            connection.close()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield port, came
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{}/", "http://[::1]:{}/", "http://0.0.0.0:{}/", "http://localhost:{}/", "http://2130706433:{}/",
        "http://0x7f.1:{}/", "http://0177.0.0.1:{}/", "http://127.1:{}/", "http://[::ffff:127.0.0.1]:{}/",
        "http://example.com@127.0.0.1:{}/", "http://user:secret@127.0.0.1:{}/", "https://127.0.0.1:{}/",
        "http://127.0.0.1:{}\\@example.com/", "http://127.0.0.1\t:{}/", "file:///etc/passwd", "ftp://127.0.0.1:{}/",
        "gopher://127.0.0.1:{}/", "http://", "http://[::1", "http://127.0.0.1:0/", "http://127.0.0.1:99999/",
        "http://127.0.0.1:{}/ HTTP/1.1\r\nHost: a",
    ],
)  # fmt: skip
def test_no_way_to_write_an_address_reaches_this_machine(url: str, canary: tuple[int, threading.Event]) -> None:
    port, came = canary
    with pytest.raises(ImageError):
        fetch(url.replace("{}", str(port)), "input[0]", max_bytes=1000, seconds=5)
    assert not came.is_set()


def allow(address: str) -> bool:
    return address == "127.0.0.1"


def test_an_image_is_fetched_within_its_limits() -> None:
    with loopback.serving(CONTENT) as server:
        url = f"{server.url}/a.png?b=c"
        assert fetch(url, "input", max_bytes=10_000, seconds=60, is_allowed=allow) == CONTENT
        assert server.requests[0][0] == "/a.png?b=c"
        with pytest.raises(ImageError, match="more than 100 bytes"):
            fetch(url, "input", max_bytes=100, seconds=60, is_allowed=allow)
    with loopback.serving(CONTENT, "endless", "404", "stall", "reset") as server:
        for words, seconds in (
            ("more than", 60.0),
            ("answered 404", 60.0),
            ("took too long|Timeout", 0.2),
            ("cannot be fetched", 60.0),
        ):
            with pytest.raises(ImageError, match=words):
                fetch(server.url, "input", max_bytes=900, seconds=seconds, is_allowed=allow)


def test_redirects_are_checked_anew_and_end() -> None:
    with loopback.serving(CONTENT, "redirect") as server:
        assert fetch(server.url, "input", max_bytes=10_000, seconds=60, is_allowed=allow) == CONTENT
    with loopback.serving(CONTENT, *["redirect"] * 10) as server:
        with pytest.raises(ImageError, match="redirects"):
            fetch(server.url, "input", max_bytes=10_000, seconds=60, is_allowed=allow)
        asked = len(server.requests)
        answers = iter([True])
        with pytest.raises(ImageError, match="not public"):
            fetch(server.url, "input", max_bytes=10_000, seconds=60, is_allowed=lambda _: next(answers, False))
        assert len(server.requests) == asked + 1, "the second address was not asked"


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has another address the second time it is asked for."""
    resolve = socket.getaddrinfo
    names: list[str] = []

    def rebind(host: str, *others: object, **more: object) -> object:
        names.append(host)
        if host == "rebinding.example":
            assert names.count(host) == 1
            host = "127.0.0.1"
        return resolve(host, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    with loopback.serving(CONTENT) as server:
        url = f"http://rebinding.example:{server.server_port}/"
        assert fetch(url, "input", max_bytes=10_000, seconds=60, is_allowed=allow) == CONTENT

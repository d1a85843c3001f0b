"""Downloads from a server that cuts, corrupts, stalls and lies: a whole file under the name, or none."""

import hashlib
import os
import socket
from pathlib import Path

import pytest
from kit.loopback import Server, serving

from clip.errors import DownloadError
from clip.weights.download import Patience, fetch, knows_host

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(attempts=3, timeout_s=0.5, first_wait_s=0.01)


def get(server: Server, target: Path, *, size_known: bool = True, patience: Patience = QUICK) -> None:
    fetch(
        f"{server.url}/{SHA256}/a.pt",
        target,
        sha256=SHA256,
        is_whole=lambda: target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256,
        size_bytes=len(CONTENT) if size_known else None,
        patience=patience,
    )


def others(target: Path) -> list[str]:
    """What a download left beside its file, but for the lock."""
    return [path.name for path in target.parent.iterdir() if path != target and not path.name.endswith(".lock")]


@pytest.mark.parametrize("size_known", [True, False], ids=["size known", "size not known"])
@pytest.mark.parametrize(
    "script",
    [
        [],
        ["cut"],
        ["cut", "cut", "cut", "cut"],
        ["reset"],
        ["corrupt"],
        ["stall"],
        ["503", "429", "give"],
        ["redirect"],
        ["cut", "ignore range"],
        ["cut", "wrong part"],
        ["cut", "416"],
        ["no length"],
        ["claims more"],
        ["cut", "redirect"],
    ],
    ids=lambda script: ", ".join(script) or "as it should be",
)
def test_the_file_comes_whole_in_the_end(script: list[str], size_known: bool, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "a.pt"
    with serving(CONTENT, *script) as server:
        get(server, target, size_known=size_known)
    assert target.read_bytes() == CONTENT
    assert others(target) == []


@pytest.mark.parametrize("script", [["claims less"], ["endless"]], ids=lambda script: script[0])
def test_a_lie_about_the_length_does_no_harm_where_the_size_is_known(script: list[str], tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    with serving(CONTENT, *script) as server:
        get(server, target)
    assert target.read_bytes() == CONTENT


def test_what_came_before_a_cut_is_not_fetched_again(tmp_path: Path) -> None:
    with serving(CONTENT, "cut") as server:
        get(server, tmp_path / "a.pt")
        assert [asked for _, asked in server.requests] == [None, f"bytes={len(CONTENT) // 2}-"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (["404"], "404 Not Found"),
        (["403"], "403 Forbidden"),
        (["500"] * 9, "500 Internal Server Error"),
        (["corrupt"] * 9, "another sha256"),
        (["endless"] * 9, "more than 3,000,000 bytes"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_error_says_what_the_server_did_and_leaves_no_file(script: list[str], said: str, tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    with serving(CONTENT, *script) as server, pytest.raises(DownloadError, match=said) as caught:
        get(server, target)
    assert str(caught.value).startswith("http://127.0.0.1")
    assert isinstance(caught.value, RuntimeError)
    assert not target.exists()


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with serving(CONTENT) as server:
        pass  # closed again: nothing listens on its port
    with pytest.raises(DownloadError, match=r"cannot be reached .*refused"):
        get(server, tmp_path / "a.pt", patience=Patience(attempts=1, timeout_s=0.5, first_wait_s=0.01))


def test_a_part_with_other_bytes_is_thrown_away(tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    part = tmp_path / f".a.pt.{SHA256[:8]}.part"
    part.write_bytes(os.urandom(1000))
    with serving(CONTENT) as server:
        get(server, target)
    assert target.read_bytes() == CONTENT


def test_a_part_that_was_whole_gets_its_name_without_a_request(tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    (tmp_path / f".a.pt.{SHA256[:8]}.part").write_bytes(CONTENT)
    with serving(CONTENT) as server:
        get(server, target)
        assert server.requests == []
    assert target.read_bytes() == CONTENT


def test_a_wrong_file_under_the_name_is_replaced_only_by_the_right_one(tmp_path: Path) -> None:
    target = tmp_path / "a.pt"
    target.write_bytes(b"something else")
    with serving(CONTENT, "404") as server:
        with pytest.raises(DownloadError):
            get(server, target)
        assert target.read_bytes() == b"something else"
        get(server, target)
    assert target.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with serving(CONTENT) as server, pytest.raises(DownloadError, match=r"file/a\.pt: cannot be written"):
        get(server, tmp_path / "file" / "a.pt")


def test_a_host_whose_name_is_not_known_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    url = f"http://weights.example/{'0' * 64}/x.pt"
    with pytest.raises(DownloadError, match="the name of its host is not known here"):
        fetch(url, tmp_path / "x.pt", sha256="0" * 64, is_whole=lambda: False)
    assert asked == ["weights.example"]
    assert not knows_host(url)
    monkeypatch.setenv("http_proxy", "http://proxy.example:8080")
    assert knows_host(url), "the proxy asks for the name"

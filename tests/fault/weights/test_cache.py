"""The cache of weights: verified once, never broken, whoever else writes to it and however it ends."""

import hashlib
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kit.loopback import serving
from kit.programs import command

from clip.errors import CheckpointError, DownloadError, WeightsMissingError
from clip.weights import locate

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def url_on(server_url: str) -> str:
    return f"{server_url}/models/{SHA256}/tiny.pt"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a network, but for where a test says otherwise: the server on loopback."""
    monkeypatch.delenv("CLIP_OFFLINE")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed from here on."""
    files: list[Path] = []
    slow = locate.file_sha256
    monkeypatch.setattr(locate, "file_sha256", lambda path: files.append(Path(path)) or slow(path))
    return files


def test_a_file_is_fetched_once_and_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    with serving(CONTENT) as server:
        paths = [locate.ensure_cached(url_on(server.url), tmp_path) for _ in range(3)]
        assert len(server.requests) == 1
    assert paths == [str(tmp_path / "tiny.pt")] * 3
    assert hashed == [], "the download has hashed it already"
    (tmp_path / locate.VERIFIED).unlink()
    assert [locate.is_verified(tmp_path / "tiny.pt", SHA256) for _ in range(3)] == [True] * 3
    assert hashed == [tmp_path / "tiny.pt"]


@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_a_file_that_changed_is_hashed_again(change: str, tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "tiny.pt"
    file.write_bytes(CONTENT)
    assert locate.is_verified(file, SHA256)
    if change == "content":
        file.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    elif change == "time":
        os.utime(file, ns=(1, 1))
    else:
        (tmp_path / "copy").write_bytes(CONTENT)
        stat = file.stat()
        (tmp_path / "copy").replace(file)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert locate.is_verified(file, SHA256) is (change != "content")
    assert len(hashed) == 2


@pytest.mark.parametrize("memory", ["{", "[]", '{"tiny.pt": 3}', ""])
def test_a_broken_memory_means_hashing_again(memory: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(CONTENT)
    (tmp_path / locate.VERIFIED).write_text(memory)
    assert locate.is_verified(tmp_path / "tiny.pt", SHA256)
    assert not locate.is_verified(tmp_path / "tiny.pt", "0" * 64)


def test_a_wrong_file_is_named_and_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").write_bytes(b"another")
    with serving(CONTENT) as server, pytest.warns(UserWarning, match=r"tiny\.pt: found another sha256"):
        locate.ensure_cached(url_on(server.url), tmp_path)
    assert (tmp_path / "tiny.pt").read_bytes() == CONTENT


def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").mkdir()
    with pytest.raises(CheckpointError, match="exists and is not a regular file"):
        locate.ensure_cached(url_on("http://127.0.0.1:9"), tmp_path)


@pytest.mark.parametrize("variable", locate.OFFLINE)
def test_without_the_network_a_warm_cache_works_and_a_cold_one_says_what_to_do(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    url = url_on("http://127.0.0.1:9")
    with pytest.raises(WeightsMissingError, match="forbids") as caught:
        locate.ensure_cached(url, tmp_path)
    assert all(word in str(caught.value) for word in (str(tmp_path / "tiny.pt"), SHA256, url))
    (tmp_path / "tiny.pt").write_bytes(CONTENT)
    assert locate.ensure_cached(url, tmp_path) == str(tmp_path / "tiny.pt")


def test_a_cache_that_cannot_be_written_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.pt").write_bytes(CONTENT)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)  # root, as tests may run, is refused nothing
    assert locate.ensure_cached(url_on("http://127.0.0.1:9"), tmp_path) == str(tmp_path / "tiny.pt")


def child(url: str, root: Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("fetch", url, root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def test_two_processes_fetch_a_file_once(tmp_path: Path) -> None:
    with serving(CONTENT, "slow") as server:
        children = [child(url_on(server.url), tmp_path) for _ in range(2)]
        assert [process.communicate(timeout=60)[0] for process in children] == [f"{tmp_path / 'tiny.pt'}\n"] * 2
        assert len(server.requests) == 1
    assert (tmp_path / "tiny.pt").read_bytes() == CONTENT


def test_after_kill_9_the_rest_is_fetched(tmp_path: Path) -> None:
    part = tmp_path / f".tiny.pt.{SHA256[:8]}.part"
    with serving(CONTENT, "stall") as server:
        process = child(url_on(server.url), tmp_path)
        for _ in range(600):
            if part.exists() and part.stat().st_size > 0:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "tiny.pt").exists()
        left = part.stat().st_size
        assert 0 < left < len(CONTENT)
        locate.ensure_cached(url_on(server.url), tmp_path)
        assert [asked for _, asked in server.requests] == [None, f"bytes={left}-"]
    assert (tmp_path / "tiny.pt").read_bytes() == CONTENT


def test_a_full_disk_is_an_error_with_the_path_and_the_rest_comes_when_there_is_room(tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))  # stands for a disk that is full

    with serving(CONTENT) as server:
        process = child(url_on(server.url), tmp_path, preexec_fn=small)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert f"DownloadError: {tmp_path / 'tiny.pt'}: cannot be written (File too large)" in said
        assert not (tmp_path / "tiny.pt").exists()
        locate.ensure_cached(url_on(server.url), tmp_path)
    assert (tmp_path / "tiny.pt").read_bytes() == CONTENT


def test_the_environments_proxy_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        locate.ensure_cached(f"http://weights.invalid/models/{SHA256}/tiny.pt", tmp_path)
        assert proxy.requests == [(f"http://weights.invalid/models/{SHA256}/tiny.pt", None)]


def test_no_server_at_all_is_a_download_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip.weights.download.time.sleep", lambda _: None)
    with pytest.raises(DownloadError, match="cannot be reached"):
        locate.ensure_cached(url_on("http://127.0.0.1:9"), tmp_path)

"""Servers that break off, stall, lie, refuse, recover and change files: never a wrong vector, and no row is lost."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from fsspec.asyn import get_loop
from kit import clouds, forks, forms
from kit.clouds import Cloud
from kit.forms import ALL, BAD, NAMES, embedded
from kit.jobs import embed_job

import clip
from clip.budgets import ByteBudget
from clip.errors import InputError
from clip.records import Failure, Item, Member
from clip.sources.remote import client, schemes
from clip.sources.remote.client import RequestPatience
from clip.sources.remote.prefetch import prefetch
from clip.sources.source import Source

INTERRUPTED_S = 25.0  # less than a silent request takes by itself; 10 s are promised for Ctrl-C
CALM = RequestPatience(attempts=3, timeout_s=30.0, first_wait_s=0.01)  # on a busy machine an answer may take seconds
QUICK = replace(CALM, timeout_s=1.0, grace_s=0.5)  # for servers that are silent or slow
IMAGE = "/bucket/photos/09.jpg"
BASES = {"http": "{url}/bucket", "s3": "s3://bucket", "gs": "gs://bucket"}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the server: images, and archives of them."""
    folder = tmp_path_factory.mktemp("held")
    photos = forms.draw(folder / "photos")
    forms.write_tar(photos, folder / "a.tar")
    forms.write_tar(photos, folder / "a.tar.gz", "w:gz")
    forms.write_zip(photos, folder / "a.zip")
    forms.write_table(photos, folder / "a.parquet", "bytes")
    return folder


@pytest.fixture(scope="module")
def running() -> Iterator[Cloud]:
    with clouds.running() as cloud:
        cloud.files["/bucket/x"] = b""
        for scheme in BASES:  # a first request takes longer, as libraries set themselves up
            assert client.read(url_of(cloud, scheme, "x"), 1) == b""
        yield cloud


@pytest.fixture
def cloud(running: Cloud, held: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setattr(client, "PATIENCE", CALM)
    monkeypatch.setattr(client, "FIRST_BYTES", 3000)  # so that small archives are read in many requests
    monkeypatch.setattr(client, "MOST_BYTES", 6000)
    running.reset()
    running.put(held, "/bucket")
    return running


def url_of(cloud: Cloud, scheme: str, name: str) -> str:
    return f"{BASES[scheme].format(url=cloud.url)}/{name}"


def outcome(url: str, max_bytes: int = 10**6) -> bytes | str:
    """Return the bytes of an image, or its failure."""
    (found,) = prefetch([Item("id", url, 0)], max_bytes, 2)
    return found.data if isinstance(found, Member) else f"{found.stage} {found.error}: {found.message}"


SLOW = ["stall", "silence", "drip"]
PASSING = ["503", "500", "429", "408", "slow down", "cut", "reset", "claims more", *SLOW]


@pytest.mark.parametrize(
    ("scheme", "word"),
    [(scheme, word) for scheme in ("http", "s3") for word in PASSING] + [("gs", "503"), ("gs", "cut")],
)
def test_what_passes_is_tried_again_and_the_image_is_whole(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, scheme: str, word: str
) -> None:
    if word in SLOW:
        monkeypatch.setattr(client, "PATIENCE", QUICK)
    cloud.scripts[IMAGE] = [word, word]
    assert outcome(url_of(cloud, scheme, "photos/09.jpg")) == cloud.files[IMAGE]
    assert len(cloud.requests) == 3


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("503", "read ConnectionError: the server answered 503 Service Unavailable 3 times, expected the file. "),
        ("cut", "read ConnectionError: the server "),
        ("silence", "read ConnectionError: the server was silent for 1 s 3 times, expected the file. "),
        ("claims more", "read ConnectionError: the server "),
    ],
)
def test_patience_ends_in_a_failure_that_another_run_may_not_have(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, word: str, found: str
) -> None:
    if word in SLOW:
        monkeypatch.setattr(client, "PATIENCE", QUICK)
    cloud.scripts[IMAGE] = [word] * 9
    told = outcome(url_of(cloud, "http", "photos/09.jpg"))
    assert isinstance(told, str)
    assert told.startswith(found)
    assert told.endswith("Try again later, with update=True.")
    assert len(cloud.requests) == 3


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
@pytest.mark.parametrize(
    ("word", "error"), [("404", "FileNotFoundError"), ("403", "PermissionError"), ("400", "OSError")]
)
def test_what_does_not_pass_is_asked_once(cloud: Cloud, scheme: str, word: str, error: str) -> None:
    cloud.scripts[IMAGE] = [word] * 9
    told = outcome(url_of(cloud, scheme, "photos/09.jpg"))
    assert isinstance(told, str)
    assert told.startswith(f"read {error}: the server answered {word}")
    assert len(cloud.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_a_body_is_never_read_beyond_the_cap_whatever_its_length_is_said_to_be(cloud: Cloud, scheme: str) -> None:
    url = url_of(cloud, scheme, "photos/09.jpg")
    cloud.files[IMAGE] = bytes(1000)
    assert outcome(url, 1000) == bytes(1000)
    assert outcome(url, 999) == (
        "read InputError: 1,000 bytes, expected at most 999. Leave it out, or raise max_bytes."
    )
    cloud.scripts[IMAGE] = ["claims most"]
    assert "1,000,000,000,000 bytes, expected at most 5,000" in str(outcome(url, 5000))
    if scheme == "http":
        cloud.scripts[IMAGE] = ["endless"]
        assert "more than 500,000 bytes, expected at most 500,000" in str(outcome(url, 500_000))


def test_a_host_of_no_name_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def unknown(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    told = outcome("http://no.such.host.example/a.jpg")
    assert isinstance(told, str)
    assert told.startswith("read OSError: the server cannot be reached (")
    assert len(asked) == 1


def test_other_places_keep_to_the_cap_and_to_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE", CALM)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/large.jpg", bytes(range(250)) * 10)
    assert outcome("memory://large.jpg", 2500) == bytes(range(250)) * 10
    monkeypatch.setattr("clip.sources.remote.schemes.PIECE_BYTES", 1000)
    assert outcome("memory://large.jpg", 2500) == bytes(range(250)) * 10
    assert "2,500 bytes, expected at most 2,499" in str(outcome("memory://large.jpg", 2499))
    assert str(outcome("memory://none.jpg")).startswith("read FileNotFoundError: ")
    given = type(memory).cat_file

    def changing(*arguments: object, **ends: object) -> bytes:
        found = given(*arguments, **ends)
        memory.pipe_file("/large.jpg", bytes(2500))
        return found

    monkeypatch.setattr(type(memory), "cat_file", changing)
    assert "it changed while it was read 3 times" in str(outcome("memory://large.jpg"))


def test_redirects_are_followed_and_encoded_bodies_are_decoded(cloud: Cloud) -> None:
    cloud.scripts[IMAGE] = ["redirect"]
    assert outcome(url_of(cloud, "http", "photos/09.jpg")) == cloud.files[IMAGE]
    cloud.always = {"gzip"}
    assert outcome(url_of(cloud, "http", "photos/09.jpg")) == cloud.files[IMAGE]
    cloud.files[IMAGE] = bytes(10**7)  # 10 kB as it travels
    assert "more than 1,000,000 bytes" in str(outcome(url_of(cloud, "http", "photos/09.jpg")))
    cloud.files[IMAGE] = b"x" * 1000
    cloud.scripts[IMAGE] = ["cut"] * 9
    assert "the server" in str(outcome(url_of(cloud, "http", "photos/09.jpg")))


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("?sig=a%27b%2Cc%2Fd%2fe%7E+f&g=(h)*'!;=$", None),
        ("?sig=%E9%&x=%zz", None),  # not UTF-8, and not even hexadecimal
        ("?name=a b&sig=%2F", "?name=a%20b&sig=%2F"),
        ("?name=é&sig=%2F", "?name=%C3%A9&sig=%2F"),
    ],
)
def test_a_redirect_is_followed_as_it_is_written(cloud: Cloud, location: str, asked: str | None) -> None:
    """An address may be signed over its raw query; curl asks for the same bytes."""
    sent = location.encode().decode("latin-1")  # as headers are written
    for base in ("", "/bucket/photos/%30%39.jpg", f"{cloud.url}/bucket/photos/09.jpg"):
        cloud.targets.clear()
        cloud.scripts[IMAGE] = [f"to {base}{sent}"]
        assert outcome(url_of(cloud, "http", "photos/09.jpg")) == cloud.files[IMAGE]
        path = base.removeprefix(cloud.url) or IMAGE
        assert cloud.targets[1] == path + (asked or location)


def test_only_what_may_pass_is_worth_another_try(cloud: Cloud) -> None:
    cloud.scripts[IMAGE] = ["403", "503", "503", "503", "400"]
    url = url_of(cloud, "http", "photos/09.jpg")
    assert "Check the credentials, or get an address whose signature has not expired." in str(outcome(url))
    assert "Try again later, with update=True." in str(outcome(url))
    assert str(outcome(url)).endswith("Check the address.")
    cloud.scripts["/bucket/a.tar"] = ["403", "404"]
    for told in ("Check the credentials", "Check the address"):
        with pytest.raises(InputError, match=told):
            entries_of(url_of(cloud, "http", "a.tar"))


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.parquet"])
def test_archives_are_whole_after_all_that_passes(cloud: Cloud, scheme: str, name: str) -> None:
    url = url_of(cloud, scheme, name)
    (pack, *others) = entries_of(url)
    whole = members(pack)
    assert (len(whole), others) == (31, [])
    cloud.requests.clear()
    cloud.scripts[f"/bucket/{name}"] = ["503", "", "cut", "reset", "", "slow down", "claims more", "", "500", "500"]
    assert members(pack) == whole
    assert not cloud.scripts[f"/bucket/{name}"], "all of these happened"
    assert len({asked for _, _, asked in cloud.requests}) > 5


def entries_of(url: str) -> list[object]:
    return [entry for shard in Source((url,)).shards(100, Counter()) for entry in shard.entries]


def members(pack: object) -> list[Member | Failure | Item]:
    return list(Source(()).members(pack, 10**6, Counter()))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.parquet"])
def test_a_file_that_changes_while_it_is_read_gives_what_stands_before_and_one_failure(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, scheme: str, name: str
) -> None:
    monkeypatch.setattr("clip.sources.tables.ROWS_AT_A_TIME", 2)
    (pack,) = entries_of(url_of(cloud, scheme, name))
    whole = members(pack)
    content = cloud.files[f"/bucket/{name}"]
    cloud.requests.clear()
    members(pack)
    asked = len(cloud.requests)
    given = 0
    for after in (asked // 3, asked // 2, asked - 1):
        cloud.files[f"/bucket/{name}"] = content
        cloud.scripts[f"/bucket/{name}"] = [*[""] * after, "change"]
        *before, last = members(pack)
        if name == "a.zip":  # whose members stand each for itself
            before = [one for one in before if isinstance(one, Member)]
            assert all(one in whole for one in before)
            given += len(before)
        else:
            assert before == whole[: len(before)]
            given += len(before)
        assert isinstance(last, Failure)
        assert "changed while it was read" in last.message
    assert given > 5
    cloud.files[f"/bucket/{name}"] = bytes(reversed(content))
    (failure,) = members(pack)
    assert isinstance(failure, Failure)
    assert "it changed since it was listed" in failure.message


@pytest.mark.parametrize(
    ("name", "word"),
    [(name, word) for name in ("a.tar", "a.zip") for word in ("no ranges", "gzip", "no etag")]
    + [("a.parquet", "no ranges")],
)
def test_servers_without_ranges_or_etags_give_the_same(
    cloud: Cloud, name: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pack,) = entries_of(url_of(cloud, "http", name))
    whole = [one.data for one in members(pack) if isinstance(one, Member)]
    cloud.always = {word}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (pack,) = entries_of(url_of(cloud, "http", name))
    cloud.scripts[f"/bucket/{name}"] = ["", "cut", "503"]
    assert [one.data for one in members(pack) if isinstance(one, Member)] == whole
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_no_disk_has_room_for_is_a_failure(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.always = {"no ranges"}
    (pack,) = entries_of(url_of(cloud, "http", "a.tar"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    (failure,) = members(pack)
    assert "the server sends no parts of it, and" in failure.message  # type: ignore[union-attr]


def test_a_run_over_a_server_that_misbehaves_loses_nothing(cloud: Cloud, weights: Path, tmp_path: Path) -> None:
    expected = embedded(tmp_path / "whole", weights, "s3://bucket/photos")
    words = ["503", "cut", "reset", "404", "claims more", "slow down", "403"]
    for number, name in enumerate(ALL):
        cloud.scripts[f"/bucket/photos/{name}"] = [words[number % len(words)]]
    found = embedded(tmp_path / "out", weights, "s3://bucket/photos")
    lasting = {name for number, name in enumerate(ALL) if words[number % len(words)] in ("404", "403")}
    assert found[0] == {name: vector for name, vector in expected[0].items() if name not in lasting}
    assert set(found[1]) == lasting | {BAD}
    report = clip.embed(
        embed_job(source="s3://bucket/photos", output=tmp_path / "out", model=str(weights), shard_size=7, update=True)
    )
    assert (report.read, report.written, report.failed) == (31, 30, 1)


def test_a_listing_that_ends_too_early_is_refused(cloud: Cloud) -> None:
    cloud.page = 7
    cloud.scripts["/bucket"] = ["", "", "503", "503"]
    assert len(entries_of("s3://bucket/photos")) == 31
    cloud.scripts["/bucket"] = ["", "", *["503"] * 9]
    with pytest.raises(InputError, match=r"s3://bucket/photos/: cannot be listed \(the server answered 503 SlowDown"):
        entries_of("s3://bucket/photos")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_part_of_a_zip_whose_server_fails_never_gives_the_other_parts(cloud: Cloud, after: int) -> None:
    url = url_of(cloud, "s3", "a.zip")
    packs = [entry for shard in Source((url,)).shards(10, Counter()) for entry in shard.entries]
    assert len(packs) == 4
    cloud.scripts["/bucket/a.zip"] = [*[""] * after, *["503"] * 3]
    found = members(packs[1])
    assert [one.id for one in found if isinstance(one, Failure)] == ["a.zip!10..."]
    cloud.scripts.clear()
    assert {one.id for one in found if isinstance(one, Member)} <= {one.id for one in members(packs[1])}


def test_what_is_read_ahead_is_bounded_and_in_order(cloud: Cloud) -> None:
    cloud.files = {f"/bucket/{n}.jpg": bytes([n]) * (5_000_000 if n == 3 else 1_000_000) for n in range(20)}
    items = [Item(str(n), f"{cloud.url}/bucket/{n}.jpg", 0) for n in range(20)]
    found = prefetch(items, 10**7, 8, ByteBudget(3_000_000))
    taken = [next(found)]
    time.sleep(0.5)
    assert len(cloud.requests) <= 1 + 4 + 8, "what was taken, what is held, and readers that wait for their turn"
    for one in taken:  # it grows
        assert isinstance(one, Member)
        one.release()
        taken += [following] if (following := next(found, None)) is not None else []
    assert [one.data[0] for one in taken if isinstance(one, Member)] == list(range(20))


def test_local_entries_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip.sources.remote.prefetch.start", lambda _: pytest.fail("asked for something"))
    items = [Item(str(n), f"/here/{n}.jpg", 0) for n in range(300)]
    taken = prefetch(iter(items), 10, 8)
    assert [next(taken), *taken] == items


def test_closing_ends_what_hangs_at_once(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE", RequestPatience(timeout_s=60))
    cloud.scripts[IMAGE] = ["silence"]
    items = [Item("0", f"{cloud.url}/bucket/photos/00.png", 0), Item("1", f"{cloud.url}{IMAGE}", 0)]
    found = prefetch(items * 20, 10**6, 8)
    next(found)
    deadline = time.monotonic() + 30  # half of what a silent request would take
    while len(under_way()) < 2:  # they begin in a thread of their own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found.close()
    while under_way():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def under_way() -> list[object]:
    """Requests for images that are still running."""
    return [task for task in asyncio.all_tasks(get_loop()) if "_Requests" in repr(task)]


def test_a_library_that_ends_a_body_early_without_a_word_is_not_believed(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(_: object) -> bytes:
        return b""

    monkeypatch.setattr(schemes._HttpAnswer, "read", ended)
    told = outcome(url_of(cloud, "http", "photos/09.jpg"))
    assert f"the server sent 0 of {len(cloud.files[IMAGE]):,} bytes 3 times" in str(told)


@pytest.mark.parametrize("form", ["list", "a.tar"])
def test_ctrl_c_ends_a_run_whose_server_hangs(cloud: Cloud, weights: Path, tmp_path: Path, form: str) -> None:
    url = f"{cloud.url}/bucket/{form}"
    if form == "list":
        (tmp_path / "list.txt").write_text("\n".join(f"{cloud.url}/bucket/photos/{name}" for name in ALL))
        url = str(tmp_path / "list.txt")
        cloud.scripts[IMAGE] = ["silence"]
    else:
        cloud.scripts["/bucket/a.tar"] = ["", "silence"]
    command = [sys.executable, "-m", "clip", "embed", url, "-o", str(tmp_path / "out"), "-m", str(weights)]
    environment = {**os.environ, **clouds.environment(cloud)}
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, inherited)
    deadline = time.monotonic() + 60
    while cloud.under_way == 0 or cloud.scripts.get(IMAGE if form == "list" else "/bucket/a.tar"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=INTERRUPTED_S)
    assert process.returncode == 130, message
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def server(running: Cloud) -> Iterator[forks.Server]:  # noqa: ARG001  whose environment the runs have
    with forks.Server("serve_embed") as server:
        yield server


@pytest.mark.parametrize("form", ["list", "a.tar", "a.parquet", "s3://bucket/photos", "here/a.tar", "here/a.parquet"])
def test_a_run_that_was_killed_is_resumed(
    cloud: Cloud, weights: Path, held: Path, server: forks.Server, tmp_path: Path, form: str
) -> None:
    source = f"{cloud.url}/bucket/{form}"
    if form == "list":
        (tmp_path / "list.txt").write_text("\n".join(f"{cloud.url}/bucket/photos/{name}" for name in ALL))
        source = str(tmp_path / "list.txt")
    elif form.startswith("s3://"):
        source = form
    elif form.startswith("here/"):
        source = str(held / form.removeprefix("here/"))
    flags = ("-m", weights, "--shard-size", "7", "--threads", "1")
    whole = embedded(tmp_path / "whole", weights, source)
    assert (len(whole[0]), list(whole[1].values())) == (len(NAMES), [("decode", "OSError")])
    for place in (9, 25):
        out = tmp_path / f"out{place}"
        ended = server.embed(source, "-o", out, *flags, first=[("kill_at_member", place)])
        assert ended.code == -signal.SIGKILL, ended
        assert server.embed(source, "-o", out, *flags).code == 3
        forms.check_same(forms.contents(out), whole, str)

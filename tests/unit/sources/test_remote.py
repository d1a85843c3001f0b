"""Images on servers: the same vectors, failures and ids as beside us, whatever the server and the form."""

import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from kit import clouds, forms, formula
from kit.clouds import Cloud
from kit.forms import BAD, Contents, check_same, embedded
from kit.jobs import embed_job

import clip
from clip.batch.verify import verify
from clip.errors import InputError
from clip.jobs.verify import VerifyJob
from clip.records import ContainerPart, Item
from clip.sources.remote import client
from clip.sources.remote.schemes import get_server
from clip.sources.source import Source

NAMES = [f"{'sub/' if n % 3 else ''}{n:03}.{'jpg' if n % 2 else 'png'}" for n in range(499)]
ALL = [*NAMES, BAD]
FEW = [*NAMES[0:60:3], BAD]
QUICK = client.RequestPatience(attempts=3, timeout_s=30.0, first_wait_s=0.01)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.draw(tmp_path_factory.mktemp("inputs") / "photos", NAMES)


@pytest.fixture(scope="module")
def archives(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in files that hold them."""
    folder = tmp_path_factory.mktemp("archives")
    forms.write_tar(photos, folder / "a.tar", names=ALL)
    forms.write_tar(photos, folder / "a.tar.gz", "w:gz", names=ALL)
    forms.write_zip(photos, folder / "a.zip", names=ALL)
    forms.write_table(photos, folder / "bytes.parquet", "bytes", names=ALL)
    forms.write_table(photos, folder / "struct.parquet", "struct", names=ALL)
    (folder / "few/photos").mkdir(parents=True)
    for name in FEW:
        (folder / "few/photos" / name).write_bytes((photos / name).read_bytes())
    forms.write_tar(photos, folder / "few/a.tar", names=FEW)
    forms.write_zip(photos, folder / "few/a.zip", names=FEW)
    forms.write_table(photos, folder / "few/bytes.parquet", "bytes", names=FEW)
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    found = embedded(tmp_path_factory.mktemp("expected"), weights, photos, shard_size=100)
    assert (len(found[0]), list(found[1])) == (499, [BAD])
    return found


@pytest.fixture(scope="module")
def running() -> Iterator[Cloud]:
    with clouds.running() as cloud:
        yield cloud


@pytest.fixture
def cloud(running: Cloud, photos: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The images, and the files that hold them, on a server; s3:// and gs:// lead to it."""
    monkeypatch.setattr(client, "PATIENCE", QUICK)
    running.reset()
    running.put(photos, "/bucket/photos")
    running.put(archives, "/bucket")
    return running


def own_ids(form: str, base: str) -> Callable[[str], str]:
    """The id that a form gives to an image."""
    numbers = {name: number for number, name in enumerate(ALL)}
    return {
        "folder": str,
        "pattern": str,
        "list": lambda name: f"{base}/photos/{name}",
        "tar": lambda name: f"a.tar!{name}",
        "tar.gz": lambda name: f"a.tar.gz!{name}",
        "zip": lambda name: f"a.zip!{name}",
        "parquet of bytes": lambda name: f"bytes.parquet!{numbers[name]}",
        "struct of bytes": lambda name: f"struct.parquet!{numbers[name]}",
        "parquet of paths": str,
        "struct of paths": str,
    }[form]


FILES = {
    "folder": "photos",
    "pattern": "photos/**/*.[jp][pn]g",
    "tar": "a.tar",
    "tar.gz": "a.tar.gz",
    "zip": "a.zip",
    "parquet of bytes": "bytes.parquet",
    "struct of bytes": "struct.parquet",
}
KEYED = {"list": "csv", "parquet of paths": "paths", "struct of paths": "struct of paths"}


@pytest.mark.parametrize(
    ("form", "where"),
    [(form, where) for form in [*FILES, *KEYED] for where in ("here", "http", "s3")]
    + [(form, "gs") for form in ("folder", "tar", "struct of paths")],
)
def test_the_same_500_images_have_the_same_vectors_failures_and_ids_in_every_form_and_place(
    archives: Path, photos: Path, weights: Path, expected: Contents, cloud: Cloud, tmp_path: Path, form: str, where: str
) -> None:
    if where == "http" and form in ("folder", "pattern"):
        with pytest.raises(InputError, match="a web server lists nothing"):
            Source((f"{cloud.url}/bucket/photos/{'*' if form == 'pattern' else ''}",))
        return
    base = {"here": str(archives), "http": f"{cloud.url}/bucket", "s3": "s3://bucket", "gs": "gs://bucket"}[where]
    choices: dict[str, Any] = {"shard_size": 100}
    if form in KEYED:
        stand = str(photos) if where == "here" else f"{base}/photos"
        if form == "list":
            path = tmp_path / "list.txt"
            path.write_text("".join(f"{stand}/{name}\n" for name in ALL))
        else:
            path = forms.write_table(stand, tmp_path / "named.parquet", KEYED[form], names=ALL)
            choices["id_column"] = "key"
        if where != "here":
            cloud.files[f"/bucket/{path.name}"] = path.read_bytes()
            path = f"{base}/{path.name}"
    elif where == "here" and form in ("folder", "pattern"):
        path = str(photos.parent / FILES[form])
    else:
        path = f"{base}/{FILES[form]}"
    base = str(photos.parent) if where == "here" else base
    check_same(embedded(tmp_path / "out", weights, path, **choices), expected, own_ids(form, base))


def test_fsspecs_other_places(photos: Path, weights: Path, expected: Contents, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(photos) + "/", "/photos", recursive=True)
    found = embedded(tmp_path / "out", weights, "memory://photos", shard_size=100)
    check_same(found, expected, str)
    forms.write_tar(photos, tmp_path / "a.tar", names=ALL)
    memory.put(str(tmp_path / "a.tar"), "/a.tar")
    found = embedded(tmp_path / "tar", weights, "memory://a.tar", shard_size=100)
    check_same(found, expected, lambda name: f"a.tar!{name}")


def listed(*inputs: str, **choices: Any) -> tuple[list[Any], dict[str, int]]:
    ignored: Counter[str] = Counter()
    entries = [entry for shard in Source(inputs, **choices).shards(1000, ignored) for entry in shard.entries]
    return entries, dict(ignored)


def test_a_prefix_is_listed_page_by_page_by_the_rules_of_a_folder(cloud: Cloud) -> None:
    cloud.page = 7
    cloud.files |= dict.fromkeys(
        ["/b/p/a.jpg", "/b/p/.h.jpg", "/b/p/.d/a.jpg", "/b/p/x", "/b/p/t.txt", "/b/p/d/", "/b/pq.jpg"], b"data"
    )
    cloud.files |= {f"/b/p/d/{n:02} +é&?#.PNG": bytes(n) for n in range(20)}
    for scheme in ("s3", "gs"):
        entries, ignored = listed(f"{scheme}://b/p")
        assert [entry.id for entry in entries] == ["a.jpg", *(f"d/{n:02} +é&?#.PNG" for n in range(20))]
        assert ignored == {"hidden": 2, "without an extension": 1, "not an image": 1}
        assert [entry.size_bytes for entry in entries] == [4, *range(20)]
        assert [len(Source(()).read(entry)) for entry in entries] == [4, *range(20)]
        assert {entry.modified_ns // 10**9 for entry in entries} == {clouds.TIME_S}
        assert [entry.id for entry in listed(f"{scheme}://b/p/", globs=("x", "*.txt"))[0]] == ["t.txt", "x"]
        with pytest.raises(InputError, match="nothing but 20 not an image, expected images"):
            listed(f"{scheme}://b/p/d", globs=("*.gif",))


@pytest.mark.usefixtures("cloud")
def test_archives_below_a_prefix_are_read_where_a_glob_asks_for_them() -> None:
    entries, _ = listed("s3://bucket/few", globs=("*.tar", "*.zip"))
    assert [type(entry) for entry in entries] == [ContainerPart] * len(entries)
    assert [entry.name for entry in entries] == ["a.tar", "a.zip"]
    entries, _ = listed("s3://bucket/few/*.{tar,zip}")
    assert [entry.name for entry in entries] == ["a.tar", "a.zip"]


def test_a_name_may_have_a_query_or_what_no_name_of_a_url_may_hold(cloud: Cloud) -> None:
    cloud.files["/b/ü [1]*.tar"] = cloud.files["/bucket/a.tar"]
    cloud.files["/b/a b.png"] = b"data"
    (pack,), _ = listed(f"{cloud.url}/b/%C3%BC%20%5B1%5D%2A.tar?signature=a%2Fb*")
    assert pack.name == "ü [1]*.tar"
    (item,), _ = listed(f"{cloud.url}/b/a b.png")
    assert (item.id, Source(()).read(item)) == ("a b.png", b"data")
    assert Source(()).read(Item("x", f"{cloud.url}/b/a%20b.png?x=%2F", 0)) == b"data"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere://a/b.jpg", "Protocol not known: nowhere"),
        ("file://host/a.jpg", "names a file of another machine"),
        ("http://host/a.html", "nothing that we read"),
        ("http://host/a/", "a web server lists nothing"),
    ],
)
def test_what_leads_nowhere_is_refused_before_anything_is_asked(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Source((name,))


def test_what_is_not_there_is_refused_or_a_failure_row(cloud: Cloud, weights: Path, tmp_path: Path) -> None:
    for base in (f"{cloud.url}/bucket", "s3://bucket", "gs://bucket"):
        for name in ("none.tar", "none.zip", "none.parquet", "none.txt", "none.jpg"):
            with pytest.raises(InputError, match=r"none\.\w+: .*404"):
                listed(f"{base}/{name}")
        with pytest.raises(InputError, match=r"(empty|404)"):
            listed(f"{base.replace(cloud.url, 's3:/')}/none/")
    path = tmp_path / "list.txt"
    urls = [f"{base}/none.jpg" for base in (f"{cloud.url}/bucket", "s3://bucket", "gs://bucket")]
    path.write_text("\n".join([*urls, "nowhere://a.jpg", "http://", "http://[", f"{cloud.url}/bucket/photos/000.png"]))
    found = embedded(tmp_path / "out", weights, path)
    assert (len(found[0]), len(found[1])) == (1, 6)
    assert {found[1][url] for url in urls} == {("read", "FileNotFoundError")}
    messages = {row["id"]: row["message"] for row in pq.read_table(tmp_path / "out/failures").to_pylist()}
    assert messages[urls[0]] == "the server answered 404 Not Found, expected the file. Check the address."


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs"), ("http", "aiohttp")])
def test_a_library_that_is_not_installed_is_named(scheme: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip.sources.remote.client.get_server", get_server.__wrapped__)
    for name in [
        name for name in sys.modules if name.split(".")[0] == library or name == "fsspec.implementations.http"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(InputError, match=r"pip install 'clip-turbo\[remote\]'"):
        Source((f"{scheme}://bucket/a.tar",))


def test_many_requests_are_under_way_and_no_more_than_asked_for(cloud: Cloud, weights: Path, tmp_path: Path) -> None:
    cloud.delay_s = 0.02
    embedded(tmp_path / "many", weights, "s3://bucket/photos/sub/0*", readers=6)
    assert 3 <= cloud.most_under_way <= 6
    cloud.most_under_way = 0
    embedded(tmp_path / "one", weights, "s3://bucket/photos/sub/00*", readers=1)
    assert cloud.most_under_way == 1


@pytest.mark.parametrize("inputs", ["s3://bucket/photos/00*", "gs://bucket/photos/00*"])
def test_an_update_reads_what_changed_by_its_etag(cloud: Cloud, weights: Path, tmp_path: Path, inputs: str) -> None:
    job = {"source": inputs, "output": tmp_path / "out", "model": str(weights), "threads": 1, "shard_size": 100}
    assert clip.embed(embed_job(**job)).read == 4
    cloud.files["/bucket/photos/003.jpg"] = bytes(reversed(cloud.files["/bucket/photos/003.jpg"]))  # in the same second
    del cloud.files["/bucket/photos/006.png"]
    cloud.requests.clear()
    report = clip.embed(embed_job(**job, update=True))
    assert (report.read, report.removed, report.resumed) == (3, 1, 2)
    assert [path for _, path, _ in cloud.requests if path.endswith(("g", "f"))] == ["/bucket/photos/003.jpg"]


def test_an_update_of_a_list_reads_all_of_it_and_compares_hashes(cloud: Cloud, weights: Path, tmp_path: Path) -> None:
    urls = [f"{cloud.url}/bucket/photos/{name}" for name in NAMES[:9]]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    job = {"source": tmp_path / "list.txt", "output": tmp_path / "out", "model": str(weights), "hashes": True}
    clip.embed(embed_job(**job))
    assert {method for method, _, _ in cloud.requests} == {"GET"}
    assert len(cloud.requests) == 9, "nothing is asked for while it is listed"
    cloud.files["/bucket/photos/003.jpg"] = cloud.files["/bucket/photos/009.jpg"]
    report = clip.embed(embed_job(**job, update=True))
    assert (report.written, report.resumed) == (9, 8)


@pytest.mark.parametrize("form", ["photos", "a.tar", "a.zip", "bytes.parquet"])
def test_outputs_of_servers_are_verified_and_resumed(cloud: Cloud, weights: Path, tmp_path: Path, form: str) -> None:
    job = embed_job(source=f"s3://bucket/few/{form}", output=tmp_path / "out", model=str(weights), shard_size=9)
    assert clip.embed(job).written == len(FEW) - 1
    assert verify(VerifyJob(output=tmp_path / "out", sample=9, fetch=True)).problems == ()
    assert clip.embed(job).resumed == len(FEW)
    if form != "photos":
        cloud.files[f"/bucket/few/{form}"] += b"more"
        problems = verify(VerifyJob(output=tmp_path / "out", sample=9, fetch=True)).problems
        assert len(problems) >= 8  # what failed in the run fails again
        assert any("changed since it was listed" in problem.what for problem in problems) or "not there" in str(
            problems
        )


@pytest.mark.parametrize("form", ["photos", "a.tar", "list", "table"])
def test_a_server_that_only_an_output_names_is_not_asked(
    cloud: Cloud, weights: Path, tmp_path: Path, form: str
) -> None:
    source: str | Path = f"s3://bucket/few/{form}"
    if form in ("list", "table"):
        source = tmp_path / ("a.txt" if form == "list" else "a.parquet")
        write = forms.write_list if form == "list" else forms.write_table
        write("s3://bucket/few/photos", source, "text" if form == "list" else "paths", FEW)
    out = tmp_path / "out"
    clip.embed(embed_job(source=source, output=out, model=str(weights)))
    cloud.requests.clear()
    with pytest.raises(InputError, match=r"sample: s3://bucket/few/.* is on a server, .* Pass fetch=True to ask it"):
        verify(VerifyJob(output=out, sample=3))
    query: dict[str, Any] = {"output": out, "images": (str(tmp_path / "x.png"),), "contact_sheet": tmp_path / "y.png"}
    formula.picture(1, 30, 30).save(tmp_path / "x.png")
    report = clip.search(clip.SearchJob(**query))
    assert report.unreadable == len(report.hits) == 10
    assert cloud.requests == []
    assert clip.search(clip.SearchJob(**query, fetch=True)).unreadable == 0
    assert cloud.requests


@pytest.mark.usefixtures("cloud")
def test_isolated_decoders_are_given_bytes(weights: Path, expected: Contents, tmp_path: Path) -> None:
    found = embedded(tmp_path / "out", weights, "s3://bucket/few/photos", isolate=True, workers=1)
    assert found == tuple({name: one[name] for name in one if name in FEW} for one in expected)


def test_an_archive_is_read_in_few_requests(cloud: Cloud, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "large.tar", "w") as archive:
        for n in range(40):
            (tmp_path / "x.jpg").write_bytes(bytes([n]) * 1_000_000)
            archive.add(tmp_path / "x.jpg", f"{n}.jpg")
    cloud.files["/bucket/large.tar"] = (tmp_path / "large.tar").read_bytes()
    (pack,), _ = listed("s3://bucket/large.tar")
    cloud.requests.clear()
    members = list(Source(()).members(pack, 10**7, Counter()))
    assert [member.data[:1] for member in members] == [bytes([n]) for n in range(40)]
    assert len(cloud.requests) <= 13

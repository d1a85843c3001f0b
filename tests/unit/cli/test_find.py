"""`clip find`: a folder and a few words; the output lies where nobody has to name it, and follows its folder."""

import json
import os
import sys
from pathlib import Path

import pytest
from kit.in_process import Run
from PIL import Image, ImageDraw

from clip.batch import embed as embed_module
from clip.batch.place import find_output, find_place
from clip.cli import hits, terminal
from clip.cli.terminal import cut, encode_picture, find_protocol, make_table, measure, pad
from clip.records import decode_path, link_to, utf8_path

SKETCH = ("-m", "sketch")
RED = "a photo of a red circle."
NAMES = {"rot/Häuser.png": "red", "青い船.png": "blue", "a\\b 'c'.png": "green"}


def draw(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 75, 75), fill=colour)
    image.save(path)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    for name, colour in NAMES.items():
        draw(tmp_path / "photos" / name, colour)
    return tmp_path / "photos"


def paths(out: str) -> list[str]:
    return [json.loads(line)["path"] for line in out.splitlines()]


def test_words_find_images_of_a_folder_that_nobody_has_indexed(run: Run, photos: Path) -> None:
    code, out, said = run("find", RED, "photos", *SKETCH, "--json")
    assert (code, paths(out)[0], len(paths(out))) == (0, "photos/rot/Häuser.png", 3)
    assert "3 looked at in" in said
    assert "Häuser" in out, "names keep their script"
    assert sorted(path.name for path in photos.parent.iterdir()) == ["data", "photos"]
    assert sorted(path.name for path in photos.iterdir()) == sorted({name.partition("/")[0] for name in NAMES})
    assert run("search", "photos", RED, *SKETCH, "--json")[1] == out, "search of a folder is the same"
    assert run("find", "photos", RED, *SKETCH, "--json")[1] == out, "in either order"


def test_an_image_finds_those_like_it_and_stdin_is_one_too(run: Run, photos: Path) -> None:
    code, out, _ = run("find", photos / "青い船.png", photos, *SKETCH, "--plain", "-n", "1")
    assert (code, out) == (0, "photos/青い船.png\n")
    assert run("find", "-i", photos / "青い船.png", photos, *SKETCH, "--plain", "-n", "1")[1] == out


def test_a_second_search_embeds_nothing_and_a_third_what_is_new(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("find", RED, photos, *SKETCH)
    with monkeypatch.context() as patched:
        patched.setattr(embed_module, "embed", lambda *_: pytest.fail("there was nothing to do"))
        code, out, said = run("find", RED, photos, *SKETCH, "--json")
    assert (code, said, len(paths(out))) == (0, "3 hits of 10 asked for: 3 rows\n", 3)
    draw(photos / "neu.png", "red")
    (photos / "rot/Häuser.png").unlink()
    _, out, said = run("find", RED, photos, *SKETCH, "--json")
    assert (paths(out)[0], len(paths(out))) == ("photos/neu.png", 3)
    assert said.startswith("1 looked at, 1 dropped in")


def test_a_folder_that_was_moved_takes_its_vectors_along(run: Run, photos: Path) -> None:
    run("find", RED, photos, *SKETCH)
    before = find_place(photos, "sketch")
    other = photos.rename(photos.with_name("bilder"))
    code, out, said = run("find", RED, other, *SKETCH, "--json")
    assert (code, "looked at" in said, paths(out)[0]) == (0, False, "bilder/rot/Häuser.png")
    assert not before.exists()
    assert find_place(other, "sketch").is_dir()
    code, out, _ = run("find", *SKETCH, other, "--where-is")
    assert (code, out.strip()) == (0, str(find_place(other, "sketch")))


def test_another_folder_takes_nothing_of_one_that_is_still_there(run: Run, photos: Path) -> None:
    run("find", RED, photos, *SKETCH)
    draw(photos.parent / "more/a.png", "red")
    assert "1 looked at" in run("find", RED, photos.parent / "more", *SKETCH)[2]
    assert find_place(photos, "sketch").is_dir()


def test_the_place_is_of_the_real_path_and_of_the_model_however_it_is_spelt(photos: Path) -> None:
    link = photos.with_name("link")
    link.symlink_to(photos)
    assert find_place(link, "ViT-B/32") == find_place("photos", "ViT-B-32__openai")
    assert find_place(photos, "RN50") != find_place(photos, "ViT-B/32")
    assert find_place("/", "RN50").name.startswith("root-")


def test_other_commands_take_the_folder_for_its_output(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "leer.png").touch()
    said = run("find", RED, photos, *SKETCH)[2]
    assert "3 images searched, 1 failed: clip failures" in said
    code, out, _ = run("failures", photos, "--paths")
    assert (code, out) == (0, f"{photos / 'leer.png'}\n")
    code, _, said = run("export", photos, tmp_path / "to", "--format", "csv")
    assert (code, "its images as of 20" in said) == (0, True)
    assert find_output("nothing here") == "nothing here"
    assert find_output(str(tmp_path)) == str(tmp_path)


def test_vectors_that_cannot_be_kept_are_made_anew(run: Run, photos: Path) -> None:
    run("find", RED, photos, *SKETCH)
    for path in sorted(photos.rglob("*.png")):
        path.unlink()
    code, _, said = run("find", RED, photos, *SKETCH)
    assert (code, "expected images" in said) == (2, True)
    assert find_place(photos, "sketch").is_dir(), "a disk that is not mounted loses nothing"
    draw(photos / "other.png", "red")
    code, out, said = run("find", RED, photos, *SKETCH, "--plain")
    assert (code, out) == (0, "photos/other.png\n")
    assert "indexed anew" in said


def test_print0_writes_the_bytes_of_the_names(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    class Out:
        buffer = type("Bytes", (), {"write": staticmethod(written.append), "flush": staticmethod(lambda: None)})()
        flush = staticmethod(lambda: None)

    found = json.loads(run("find", RED, photos, *SKETCH, "--json", "--where", "id LIKE 'a%'")[1])
    monkeypatch.setattr(sys, "stdout", Out)
    hits.write_hits((hits_of(found),), "print0")
    assert written == [os.fsencode(photos.relative_to(Path.cwd()) / "a\\b 'c'.png") + b"\0"]


def hits_of(found: dict[str, object]) -> "hits.Hit":
    from clip.jobs.search import Hit

    return Hit(str(found["id"]), str(found["path"]), 1.0)


@pytest.mark.parametrize("name", [b"a\\b", b"\xff\xfe.png", "日本".encode(), b"\\x41", b"\\\\"])
def test_the_bytes_of_a_path_come_back(name: bytes) -> None:
    assert decode_path(utf8_path(os.fsdecode(name))) == name


def test_a_link_leads_to_the_file_or_to_its_archive(tmp_path: Path) -> None:
    draw(tmp_path / "日 本.png", "red")
    (tmp_path / "a.zip").touch()
    assert link_to(str(tmp_path / "日 本.png")) == f"file://{tmp_path}/%E6%97%A5%20%E6%9C%AC.png"
    assert link_to(f"{tmp_path}/a.zip!b/c.png") == f"file://{tmp_path}/a.zip"
    assert link_to("https://host/a.png") == "https://host/a.png"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a cat", "photos", "data"), "expected one"),
        (("a cat", "nowhere/"), "found no file or folder nowhere/. Check its name; for a text use -t."),
        (("a cat", "./photo"), "found no file or folder ./photo. Did you mean photos?"),
        (("rot/x.png", "photos"), "found no file or folder rot/x.png"),
        (("roof.JPG", "photos"), "found no file or folder roof.JPG"),
        (("a", "red", "boat", "photos"), "found the texts 'a' and 'red' and 'boat', expected one text. Put a text of"),
        (("a red boat", "phots"), "and no folder of these names, expected one text. Did you mean photos?"),
        (("photos", *SKETCH), "found nothing to look for"),
        (("a", "photos", "--json", "--print0"), "found several of"),
        (("a", "photos", "-m", "ViT-B/33"), "Did you mean 'ViT-B/32'?"),
        (("a", "photos", *SKETCH, "--html", "hits.png"), "a name in .html"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    run: Run, photos: Path, arguments: tuple[str, ...], said: str
) -> None:
    (photos.parent / "data").mkdir()
    code, out, told = run("find", *arguments)
    assert (code, out) == (2, "")
    assert said in told
    assert list((photos.parent / "data").rglob("*.parquet")) == []


def test_a_page_holds_all_that_it_shows(run: Run, photos: Path) -> None:
    code, _, said = run("find", RED, photos, *SKETCH, "--html", "hits.html", "--contact-sheet", "hits.png", "-n", "3")
    page = (photos.parent / "hits.html").read_text(encoding="utf-8")
    assert code == 0
    assert "hits.html: 3 hits" in said
    assert page.count('<img alt="') == page.count('src="data:image/jpeg;base64,') == 3
    assert "青い船.png</div>" in page
    assert "a\\\\b &#x27;c&#x27;.png" in page
    assert "color-scheme: light dark" in page
    (photos / "青い船.png").unlink()
    run("find", RED, photos, *SKETCH, "--html", "hits.html", "--no-update")
    assert "cannot be read" in (photos.parent / "hits.html").read_text(encoding="utf-8")


@pytest.fixture
def kitty(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (terminal, hits):
        monkeypatch.setattr(module, "is_terminal", lambda _: True)
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("TMUX", raising=False)


@pytest.mark.usefixtures("kitty")
def test_a_terminal_gets_the_path_once_as_a_link_and_pictures(run: Run, photos: Path) -> None:
    _, out, _ = run("find", RED, "photos", *SKETCH, "-n", "1")
    assert out.startswith("\x1b_Gf=100,a=T,m=")
    assert out.count("Häuser") == 1
    assert out.endswith(f"\x1b]8;;{link_to(str(photos / 'rot/Häuser.png'))}\x1b\\photos/rot/Häuser.png\x1b]8;;\x1b\\\n")
    assert "\x1b_G" not in run("find", RED, "photos", *SKETCH, "--no-previews")[1]


@pytest.mark.usefixtures("kitty")
@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_pictures_are_shown_where_the_environment_names_a_terminal_that_can(
    environment: dict[str, str], protocol: str | None
) -> None:
    assert find_protocol(environment) == protocol


def test_a_picture_of_many_bytes_goes_in_pieces() -> None:
    sequence = encode_picture(bytes(10_000), "kitty")
    assert sequence.count("\x1b_G") == sequence.count("\x1b\\") == 4
    assert "m=0;" in sequence.split("\x1b_G")[-1]
    assert encode_picture(b"png", "iterm2") == "\x1b]1337;File=inline=1;size=3;preserveAspectRatio=1:cG5n\a\n"


def test_columns_are_as_wide_as_the_letters_are_drawn() -> None:
    assert (measure("日本"), measure("äé"), measure("e\u0301")) == (4, 2, 1)
    assert pad("日本", 6) == "日本  "
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 5, keep_end=True) == "…本語"
    assert make_table([("日本", "1", "a"), ("b", "22", "日本")], right=(1,)) == "日本   1  a\nb     22  日本\n"


def test_a_place_that_cannot_be_written_is_an_error_in_words(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos.parent / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(photos.parent / "file"))
    code, _, said = run("find", RED, photos, *SKETCH)
    assert code in (1, 2)
    assert said.startswith("clip: ")

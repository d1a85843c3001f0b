"""The page of `clip serve` in chromium: what a visitor does, with a file name that is code and in several scripts."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.inputs import draw_photos, number_names
from kit.jobs import embed_job
from kit.server_command import HOST, ServerCommand

from clip import embed

if TYPE_CHECKING:
    from playwright.sync_api import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium")

PATIENCE_MS = 120_000.0  # on a machine that is busy
ODD = "<img src=x onerror=document.title='taken'> \"' 猫 صورة Äß.png"
PHONE = {"width": 360, "height": 640}


@pytest.fixture(scope="module")
def folder(text_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    photos = draw_photos(folder / "photos", number_names(12), wider=3)
    shutil.copy(photos / "00.png", photos / ODD)
    embed(embed_job(source=photos, output=folder / "out", model=str(text_weights)))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, text_weights: Path) -> Iterator[str]:
    flags = ("--index", str(folder / "out"), "--threads", "1", "--workers", "1", "--access-log", "none")
    server = ServerCommand(text_weights, folder, *flags)
    yield f"http://{HOST}:{server.port}/"
    server.close()


@pytest.fixture
def page(address: str) -> Iterator["Page"]:
    """The page, and whatever went wrong in it."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark")
        page.set_default_timeout(PATIENCE_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_text("13 images in").wait_for()
        yield page
        browser.close()
        assert not errors


def search(page: "Page", words: str) -> None:
    page.locator("#text").fill(words)
    page.keyboard.press("Enter")
    page.locator("#status", has_text=" of 13 images").wait_for()


def names(page: "Page") -> list[str]:
    return page.locator("#hits .name").all_text_contents()


def test_a_sentence_shows_hits_and_a_click_shows_what_is_like_one_of_them(page: "Page") -> None:
    search(page, "a dog")
    found = names(page)
    assert len(found) == 13
    assert ODD in found, "a name is shown letter by letter, and not run"
    assert page.title() == "Search images"
    scores = [float(score) for score in page.locator("#hits .score").all_text_contents()]
    assert scores == sorted(scores, reverse=True)
    page.locator("#hits .tile").nth(found.index(ODD)).click()
    page.locator("#terms .term").wait_for()
    page.locator("#hits .score", has_text="1.000").first.wait_for()
    assert {*names(page)[:2]} == {"00.png", ODD}, "the image, and its copy"
    page.wait_for_function("[...document.querySelectorAll('#hits img')].slice(0, 2).every(i => i.naturalWidth > 0)")


def test_words_to_be_without_and_conditions_narrow_the_hits_and_a_wrong_one_says_so(page: "Page") -> None:
    search(page, "a dog")
    before = names(page)
    page.locator("#more summary").click()
    page.locator("#negative").fill("a house")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "names => [...document.querySelectorAll('#hits .name')].map(n => n.textContent).join() !== names",
        arg=",".join(before),
    )
    assert sorted(names(page)) == sorted(before)
    page.locator("#where").fill("width >")
    page.keyboard.press("Enter")
    page.locator("#status.bad").wait_for()
    assert "where" in (page.locator("#status").text_content() or "")
    assert names(page) == []
    page.locator("#where").fill("width < 0")
    page.keyboard.press("Enter")
    page.get_by_text("No image is like that").wait_for()


def test_an_image_of_the_visitor_is_searched_by_and_labelled(page: "Page", folder: Path) -> None:
    page.locator("#file").set_input_files(folder / "photos" / "03.png")
    page.locator("#hits .score", has_text="1.000").first.wait_for()
    assert names(page)[0] == "03.png"
    page.locator("#labels").fill("cat, dog, <b>house</b>")
    page.keyboard.press("Enter")
    page.locator("#bars li").nth(2).wait_for()
    assert set(page.locator("#bars .what").all_text_contents()) == {"cat", "dog", "<b>house</b>"}
    page.locator("#file").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no image"})
    page.locator("#status.bad").wait_for()


def test_duplicates_are_shown_in_groups_and_a_click_leads_back_to_the_search(page: "Page") -> None:
    page.get_by_text("Find duplicates").click()
    page.get_by_text("1 duplicate in 1 group. Nothing is deleted.").wait_for()
    assert set(page.locator("#groups .name").all_text_contents()) == {"00.png", ODD}
    assert page.locator("#groups .keep").count() == 1
    page.locator("#level").select_option("same")
    page.locator("#groups .facts", has_text="the same file").wait_for()
    assert page.locator("#hits").is_hidden()
    page.locator("#groups .tile").first.click()
    page.locator("#hits .score", has_text="1.000").first.wait_for()
    assert page.locator("#grouping").is_hidden()


def test_the_page_works_by_keys_on_a_phone_and_in_the_dark(page: "Page") -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.locator("body").click(position={"x": 1, "y": 1})
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    search(page, "a house")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#hits .tile").first.focus()
    page.keyboard.press("ArrowRight")
    second = page.locator("#hits .tile").nth(1)
    assert second.evaluate("tile => tile === document.activeElement")
    dark, light = (background(page, scheme) for scheme in ("dark", "light"))
    assert dark < 100 < 200 < light


def background(page: "Page", scheme: str) -> float:
    """How bright the page's ground is, 0 to 255."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return max(float(part) for part in colour.strip("rgba()").split(",")[:3])

"""Released names as other programs spell them, and the nearest one of a name that is none."""

from pathlib import Path
from typing import Any

import pytest

from clip.errors import UnknownModelError
from clip.weights.locate import locate
from clip.weights.releases import RELEASES
from clip.weights.spellings import find_spelled, suggest

SPELT = {
    "ViT-B-32": "ViT-B/32",
    "vit-b/32": "ViT-B/32",
    "ViT_B_32": "ViT-B/32",
    "ViT-B-32/openai": "ViT-B/32",
    "ViT-B-32-quickgelu/openai": "ViT-B/32",
    "ViT-B-32__openai": "ViT-B/32",
    "ViT-B-16:openai": "ViT-B/16",
    "openai/clip-vit-base-patch32": "ViT-B/32",
    "openai/clip-vit-large-patch14": "ViT-L/14",
    "openai/clip-vit-large-patch14-336": "ViT-L/14@336px",
    "ViT-L-14-336": "ViT-L/14@336px",
    "ViT-L-14-336px": "ViT-L/14@336px",
    "vit-l/14@336": "ViT-L/14@336px",
    "rn50": "RN50",
    "RN50x4__openai": "RN50x4",
}
OTHERS = ["ViT-B-32/laion2b_s34b_b79k", "ViT-B-32__laion400m_e32", "ViT-H-14", "RN50x", "ViT-B/33", "ViT-B-32.pt", ""]


@pytest.mark.parametrize("name", SPELT)
def test_a_released_name_is_known_in_other_spellings(name: str) -> None:
    assert find_spelled(name, RELEASES) == SPELT[name]


@pytest.mark.parametrize("name", RELEASES)
def test_each_released_name_is_its_own_in_all_of_them(name: str) -> None:
    dashed = name.replace("/", "-").replace("@", "-")
    spelt = (name, name.lower(), name.upper(), dashed, f"{dashed}__openai", f"{dashed}/openai", f"{dashed}-quickgelu")
    assert {find_spelled(one, RELEASES) for one in spelt} == {name}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_are_not_openais_are_not_taken_for_theirs(name: str) -> None:
    assert find_spelled(name, RELEASES) is None


def test_a_name_that_is_none_gets_the_nearest_one(tmp_path: Path) -> None:
    assert [suggest(name, RELEASES) for name in ("ViT-B/33", "vit-l-41", "photo.jpg")] == ["ViT-B/32", "ViT-L/14", None]
    with pytest.raises(UnknownModelError, match=r"Did you mean 'ViT-B/32'\? Use one of these names"):
        locate("ViT-B/33", tmp_path)


def test_a_file_wins_over_a_spelling_and_a_spelling_is_fetched_as_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(url: str, *_: Any) -> str:
        asked.append(url)
        return str(tmp_path / "fetched.pt")

    monkeypatch.chdir(tmp_path)
    urls = {"ViT-B/32": "https://example.org/0/ViT-B-32.pt"}
    assert locate("vit-b-32", tmp_path, urls=urls, download=download) == tmp_path / "fetched.pt"
    assert asked == list(urls.values())
    (tmp_path / "vit-b-32").write_bytes(b"")
    assert locate("vit-b-32", tmp_path, urls=urls, download=download) == Path("vit-b-32")

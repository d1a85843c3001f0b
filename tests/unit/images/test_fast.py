"""Pixels made in fewer steps: the same bits with `pixels="exact"`, nearly the same with "fast"."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage
from hypothesis import given
from hypothesis import strategies as st
from kit import checkpoints, formula
from kit.jobs import embed_job
from PIL import Image

import clip
from clip.batch.decode import Decoding
from clip.batch.processes import isolate
from clip.batch.verify import verify
from clip.errors import ImageError, InputError, StoreMismatchError
from clip.images import decode as decode_module
from clip.images import geometry, transform
from clip.images.decode import decode, read_pixels
from clip.images.fast import FAST_MODES, shrink_on_load
from clip.images.transform import to_pixels
from clip.jobs.options import DecodeOptions, Limits, Orient, PixelMode
from clip.jobs.verify import VerifyJob
from clip.network.records import Interpolation, PreprocessSettings, ResizeMode
from clip.records import Failure, Item, Pixels
from clip.sources.source import Source

PHOTOS = Path(skimage.__file__).parent / "data"
SETTINGS = PreprocessSettings(224)
SMALL = PreprocessSettings(32)
ITEM = Item("a", "/b/a", 7)


def encoded(image: Image.Image, name: str = "JPEG", orientation: int | None = None, **options: object) -> bytes:
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def levels_off(image: object, settings: PreprocessSettings = SETTINGS) -> np.ndarray:
    """How far each value of the fast way is from the exact one."""
    exact, fast = (read_pixels(image, settings, pixels).astype(int) for pixels in ("exact", "fast"))
    assert fast.shape == exact.shape == (settings.resolution_px, settings.resolution_px, 3)
    return np.abs(exact - fast)


def photos() -> list[Path]:
    """Those of the scikit-image package that can be decoded fast."""
    paths: list[Path] = []
    for path in sorted(PHOTOS.iterdir()):
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                if image.mode in FAST_MODES:
                    paths.append(path)
    return paths


def mosaic(width: int, height: int, soft: int = 1) -> Image.Image:
    """A large image of photos, enlarged `soft` times: 1 is sharper than a camera's, 2 as sharp."""
    names = ("astronaut", "chelsea", "coffee", "ihc", "motorcycle_left")
    tiles = [Image.open(PHOTOS / f"{name}.png").convert("RGB") for name in names]
    whole = Image.new("RGB", (width // soft, height // soft))
    for number, top in enumerate(range(0, whole.height, 300)):
        for place, left in enumerate(range(0, whole.width, 450)):
            whole.paste(tiles[(3 * number + place) % len(tiles)], (left, top))
    return whole.resize((width, height), Image.Resampling.BICUBIC)


# Exact, by fewer rows


def by_steps(image: Image.Image, settings: PreprocessSettings) -> np.ndarray:
    """The reference's way, which resizes all of an image."""
    return np.asarray(transform.convert_image_to_rgb(transform.crop_whole(image, settings)))


def test_leaving_rows_out_changes_no_bit_in_two_thousand_sizes() -> None:
    draw = random.Random(0)
    large = {mode: formula.picture_in_mode(1, 700, 900, mode) for mode in transform.TWO_PASS_MODES}
    shortened = 0
    for _ in range(2000):
        width = draw.randint(1, 300)
        image = large[draw.choice(sorted(large))].crop((0, 0, width, draw.randint(1, 3 * width)))
        filter_: Interpolation = draw.choice(("bicubic", "bilinear"))
        settings = PreprocessSettings(draw.choice((7, 32, 48, 224)), interpolation=filter_)
        expected = by_steps(image, settings)
        cropped = transform.crop_by_rows(image, settings, strip_rows=100)
        if cropped is not None:
            shortened += 1
            assert np.array_equal(np.asarray(cropped.convert("RGB")), expected), (image.size, settings)
        assert np.array_equal(to_pixels(image, settings), expected), (image.size, settings)
    assert shortened > 500


@pytest.mark.parametrize("size", [(1080, 1920), (1201, 1600), (1500, 2999), (1500, 3001)])
def test_leaving_rows_out_of_a_large_image_changes_no_bit(size: tuple[int, int]) -> None:
    image = formula.picture(2, *size)
    assert (transform.crop_by_rows(image, SETTINGS) is None) == (size[1] > 2 * size[0]), "which Pillow does by columns"
    assert np.array_equal(to_pixels(image, SETTINGS), by_steps(image, SETTINGS))


@given(st.integers(1, 90), st.integers(1, 200), st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"]))
def test_no_mode_and_no_size_changes_a_bit(width: int, height: int, mode: str) -> None:
    image = formula.picture_in_mode(3, width, height, mode)
    assert np.array_equal(to_pixels(image, SMALL), by_steps(image, SMALL))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(60, 90), (90, 60)])
def test_a_tiff_that_is_turned_while_it_is_decoded_has_the_bits_of_all_its_rows(
    orientation: int, size: tuple[int, int]
) -> None:
    data = encoded(formula.picture(1, *size), "TIFF", orientation=orientation)
    assert np.array_equal(read_pixels(data, SMALL), by_steps(Image.open(io.BytesIO(data)), SMALL))
    assert levels_off(data, SMALL).max() <= 2


# Fast


@pytest.mark.parametrize("path", photos(), ids=lambda path: path.name)
def test_on_photos_all_values_are_within_two_levels(path: Path) -> None:
    assert levels_off(path).max() <= 2


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path, "tiny-vit-wide")


def test_vectors_of_photos_have_a_cosine_of_at_least_0_9998(weights_file: Path) -> None:
    images: list[Path | bytes] = [*photos(), encoded(mosaic(1500, 2000)), encoded(formula.picture(1, 30, 2000), "PNG")]
    exact, fast = (clip.Encoder(weights_file, decode=mode).embed(images) for mode in ("exact", "fast"))
    cosines = (exact * fast).sum(axis=1)
    assert cosines.min() >= 0.9998
    assert not np.array_equal(exact, fast)


@pytest.mark.parametrize("size", [(4000, 3000), (1923, 1081), (1437, 1603)])
def test_large_jpegs_as_soft_as_a_cameras_are_within_two_levels_in_999_of_1000_values(size: tuple[int, int]) -> None:
    data = encoded(mosaic(*size, soft=2), quality=90)
    with Image.open(io.BytesIO(data)) as image:
        assert shrink_on_load(image, 224, DecodeOptions()) == {3000: 4, 1081: 1, 1603: 2}[size[1]]
    assert (levels_off(data) > 2).mean() < 0.001


def test_sharper_ones_are_within_two_levels_in_199_of_200_values_and_never_far_off() -> None:
    off = levels_off(encoded(mosaic(3585, 2690), quality=95))
    assert (off > 2).mean() < 0.005
    assert off.max() <= 10


@pytest.mark.parametrize(
    "size",
    [(1, 1), (3, 2), (1, 50), (2, 700), (700, 2), (30, 900), (900, 30), (224, 224), (224, 300), (500, 224), (60, 200)],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_tiny_tall_and_wide_images_are_within_two_levels(size: tuple[int, int], mode: str) -> None:
    assert levels_off(formula.picture_in_mode(1, *size, mode)).max() <= 2


@pytest.mark.parametrize("size", [(900, 400), (400, 900), (300, 290), (130, 700), (100, 120)])
@pytest.mark.parametrize("square", [1, 3, 10])
def test_hard_edges_are_within_two_levels_in_pillows_order_of_passes(size: tuple[int, int], square: int) -> None:
    y, x = np.mgrid[: size[1], : size[0]]
    board = Image.fromarray(((x // square + y // square) % 2 * 255).astype(np.uint8))
    assert levels_off(board).max() <= 2
    assert levels_off(board.convert("RGB"), SMALL).max() <= 2


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([7, 32, 56]),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(["shortest", "squash"]),
)
def test_any_size_is_within_two_levels(width: int, height: int, side: int, interpolation: str, mode: str) -> None:
    settings = PreprocessSettings(side, interpolation=interpolation, resize_mode=mode)  # type: ignore[arg-type]
    assert levels_off(formula.picture(2, width, height), settings).max() <= 2


@pytest.mark.parametrize("width", range(200, 209))
@pytest.mark.parametrize("height", [400, 403, 407])
def test_a_divided_image_stays_in_its_place_whatever_is_left_over(width: int, height: int) -> None:
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    data = encoded(Image.fromarray(slopes.astype(np.uint8)), quality=100, subsampling=0)
    with Image.open(io.BytesIO(data)) as image:
        assert shrink_on_load(image, 8, DecodeOptions()) == 8
    assert levels_off(data, PreprocessSettings(8)).max() <= 2


def test_a_jpeg_is_divided_by_as_much_as_leaves_three_times_what_is_needed() -> None:
    divisors = {}
    for side in (191, 192, 383, 384, 767, 768, 4000):
        with Image.open(io.BytesIO(encoded(Image.new("L", (side + 500, side))))) as image:
            divisors[side] = shrink_on_load(image, 32, DecodeOptions())
            assert image.size == (-(-(side + 500) // divisors[side]), -(-side // divisors[side]))
    assert divisors == {191: 1, 192: 2, 383: 2, 384: 4, 767: 4, 768: 8, 4000: 8}


@pytest.mark.parametrize("mode", ["P", "1", "RGBA", "LA", "CMYK", "I;16"])
def test_modes_that_cannot_be_resized_fast_are_exact(mode: str) -> None:
    image = formula.picture_in_mode(1, 300, 200, mode)
    assert levels_off(image, SMALL).max() == 0
    if mode == "CMYK":
        assert levels_off(encoded(image), SMALL).max() == 0


def test_an_image_of_the_callers_own_is_left_as_it_is() -> None:
    with Image.open(io.BytesIO(encoded(formula.picture(1, 600, 500)))) as image:
        assert np.abs(read_pixels(image, SMALL, "fast").astype(int) - to_pixels(image, SMALL)).max() <= 2
        assert image.size == (600, 500)


def decode_one(data: bytes, pixels: PixelMode, orient: Orient = "none") -> Pixels | Failure:
    [outcome] = decode(ITEM, data, SMALL, options=DecodeOptions(pixels, orient))
    return outcome


@pytest.mark.parametrize("name", ["JPEG", "MPO", "PNG"])
@pytest.mark.parametrize("size", [(640, 480), (641, 483)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("orient", ["none", "exif"])
def test_turned_images_have_the_rows_of_exact_ones(
    name: str, size: tuple[int, int], orientation: int, orient: Orient
) -> None:
    coarse = formula.quarters(40, 30).resize(size, Image.Resampling.BICUBIC)
    data = encoded(coarse, name, orientation)
    exact, fast = (decode_one(data, pixels, orient) for pixels in ("exact", "fast"))
    assert isinstance(exact, Pixels)
    assert isinstance(fast, Pixels)
    assert fast.row == exact.row
    assert np.abs(fast.array.astype(int) - exact.array).max() <= 4


def test_frames_of_a_file_of_several_are_those_of_the_exact_way() -> None:
    frames = [formula.quarters(40, 30).resize((400, 300)), formula.quarters(30, 40).resize((300, 400))]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    exact, fast = (
        decode(ITEM, data, SMALL, options=DecodeOptions(pixels, frames="all")) for pixels in ("exact", "fast")
    )
    with Image.open(io.BytesIO(data)) as image:
        assert shrink_on_load(image, 32, DecodeOptions(frames="all")) == 1, (
            "as it could not be undone for the next frame"
        )
        assert shrink_on_load(image, 32, DecodeOptions()) == 2
    for one, other in zip(exact, fast, strict=True):
        assert isinstance(one, Pixels)
        assert isinstance(other, Pixels)
        assert one.row == other.row
        assert np.abs(one.array.astype(int) - other.array).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encoded(formula.picture(0, 400, 400))[:-9000],
        encoded(formula.picture(0, 90, 90), "PNG")[:900],
        encoded(Image.new("L", (1, 70_000)), "PNG"),
    ],
    ids=["empty", "cut JPEG", "cut PNG", "canvas"],
)
def test_what_fails_exactly_fails_the_same_way_fast(data: bytes) -> None:
    failure = decode(ITEM, data, SETTINGS, options=DecodeOptions("exact"))
    assert isinstance(failure[0], Failure)
    assert decode(ITEM, data, SETTINGS, options=DecodeOptions("fast")) == failure
    with pytest.raises((ImageError, OSError)):
        read_pixels(data, SETTINGS, "fast")


def test_what_cannot_be_decoded_fast_is_decoded_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(formula.picture(0, 300, 200))

    def fails(*_: object) -> None:
        raise OSError("broken data stream")

    monkeypatch.setattr(decode_module, "to_pixels_fast", fails)
    outcome = decode_one(data, "fast")
    assert isinstance(outcome, Pixels)
    assert np.array_equal(outcome.array, read_pixels(data, SMALL))


def test_a_process_that_decodes_gives_the_same_fast_pixels() -> None:
    decoding = Decoding(Source((str(PHOTOS),)), SMALL, Limits(), DecodeOptions("fast"))
    retina = PHOTOS / "retina.jpg"
    item = Item("retina.jpg", str(retina), retina.stat().st_size)
    with isolate(decoding, 60.0, 100_000_000) as decode:
        [outcome] = decode(item)
    assert isinstance(outcome, Pixels)
    assert np.array_equal(outcome.array, read_pixels(retina, SMALL, "fast"))
    assert (outcome.row.width, outcome.row.height) == (1411, 1411)


def test_a_run_records_that_it_was_fast_and_resumes_only_with_fast(tmp_path: Path, weights_file: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "a.jpg"
    formula.picture(1, 700, 500).save(photo)

    def run(mode: PixelMode) -> clip.EmbedReport:
        return clip.embed(embed_job(source=photo.parent, output=tmp_path / "out", model=str(weights_file), decode=mode))

    assert run("fast").written == 1
    store = clip.Store(tmp_path / "out")
    exact, fast = (clip.Encoder(weights_file, decode=mode).embed([photo]) for mode in ("exact", "fast"))
    assert store.manifest.decode.pixels == "fast"
    assert np.abs(store.vectors() - fast).max() < np.abs(exact - fast).max() / 10
    assert verify(VerifyJob(output=tmp_path / "out", sample=1)).min_cosine == pytest.approx(1, abs=1e-7)
    with pytest.raises(StoreMismatchError, match='decode is "fast", expected "exact"'):
        run("exact")


def job(word: str) -> clip.EmbedJob:
    return embed_job(source="a", output="b", decode=word)  # type: ignore[arg-type]


def encoder(word: str) -> clip.Encoder:
    return clip.Encoder("RN50", untrained=0, decode=word)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [encoder, job])
def test_another_word_is_refused(make: Callable[[str], object]) -> None:
    with pytest.raises(
        InputError, match=r"(decode|pixels): found 'quick', expected one of \(?'?exact'?, '?fast'?, '?immich'?"
    ):
        make("quick")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_about_as_large_as_the_crop_are_resized_and_not_shifted(
    interpolation: Interpolation, mode: ResizeMode
) -> None:
    """torch leaves out a pass between sides of equal length, whatever scale it is given."""
    settings = PreprocessSettings(32, interpolation=interpolation, resize_mode=mode)
    whole = formula.picture(5, 72, 72)
    for short in range(27, 37):
        for long in range(short, 72):
            for size in ((long, short), (short, long)):
                assert levels_off(whole.crop((0, 0, *size)), settings).max() <= 2, size


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([1.0, 2.0]))
def test_pixels_outside_the_source_range_have_no_part(size: int, resized: int, support: float) -> None:
    draw = random.Random(size * resized)
    first = draw.randrange(resized)
    last = draw.randint(first + 1, resized)
    begin, end = geometry.source_range(first, last, size, resized, support)
    scale = size / resized
    reach = support * max(scale, 1.0)
    assert begin <= max(0.0, (first + 0.5) * scale - reach)
    assert end >= min(size, (last - 0.5) * scale + reach)

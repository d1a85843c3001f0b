"""What is given back: pages of files that were read, at any place in them, and of the tower that is used alone."""

import ctypes
import gc
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import checkpoints, formula
from safetensors.torch import save_file

import clip
from clip.engine.devices import make_backend
from clip.engine.engine import Engine
from clip.memory import FilePages, return_freed_memory, set_aside_objects
from clip.network.records import PreprocessSettings

PAGE = mmap.PAGESIZE
PAGE_KB = PAGE // 1024
PAGES = 20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux only")


def resident_kb(path: Path) -> int:
    """Kilobytes of this process's memory that are views of a file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            inside = rest[-1] == str(path)
        elif inside and first == "Rss:":
            total += int(rest[0])
    return total


def view_of(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "numbers of a file.bin"
    path.write_bytes(np.random.RandomState(0).bytes(PAGES * PAGE - 100))
    return path


@on_linux
def test_released_pages_leave_memory_and_are_read_again_from_the_file(numbers: Path) -> None:
    view = view_of(numbers)
    pages = FilePages([(view.ctypes.data, view.nbytes)], [numbers])
    assert view.sum() and resident_kb(numbers) >= PAGES * PAGE // 1024
    pages.release()
    assert resident_kb(numbers) == 0
    assert view.tobytes() == numbers.read_bytes()


@on_linux
@settings(deadline=None)
@given(spans=st.lists(st.tuples(st.integers(0, PAGES * PAGE - 200), st.integers(0, 3 * PAGE)), max_size=6))
def test_parts_of_a_file_are_released_with_the_pages_they_lie_on(numbers: Path, spans: list[tuple[int, int]]) -> None:
    view = view_of(numbers)
    spans = [(start, min(size, view.nbytes - start)) for start, size in spans]
    pages = FilePages([(view.ctypes.data + start, size) for start, size in spans], [numbers])
    for start, size in spans:
        view[start : start + size].sum()
    assert view.tobytes() == numbers.read_bytes()
    pages.release()
    left = set(range(PAGES)) - {
        n for start, size in spans if size for n in range(start // PAGE, (start + size - 1) // PAGE + 1)
    }
    assert resident_kb(numbers) == len(left) * PAGE // 1024
    assert view.tobytes() == numbers.read_bytes()


@on_linux
def test_memory_that_is_of_no_file_and_the_views_of_others_stay_as_they_are(numbers: Path, tmp_path: Path) -> None:
    mine, theirs = view_of(numbers), view_of(numbers)
    with numbers.open("rb") as file:
        written = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    written[:] = bytes(len(written))  # a private copy, which releasing would undo
    own = np.full(PAGES * PAGE, 7, np.uint8)
    address = ctypes.addressof(ctypes.c_char.from_buffer(written))
    other = tmp_path / "other.bin"
    other.write_bytes(b"1")
    for files in ([], [other]):
        FilePages([(address, len(written)), (own.ctypes.data, own.nbytes)], files).release()
    FilePages([(mine.ctypes.data, mine.nbytes), (own.ctypes.data, own.nbytes)], [numbers]).release()
    assert written[:] == bytes(len(written)) and (own == 7).all()
    assert mine.tobytes() == theirs.tobytes() == numbers.read_bytes()


def test_freed_memory_can_be_returned_at_any_time() -> None:
    kept = torch.arange(10_000)
    return_freed_memory()
    assert kept.sum() == 49_995_000


@on_linux
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_an_encoder_that_has_run_holds_nothing_of_its_file(name: str, kind: str, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path, name)
    if kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file({key: value.contiguous() for key, value in formula.state_dict(formula.TINY[name]).items()}, path)
    # safetensors' own reader looks at the header in the same mapping.
    header_kb = 0 if kind == "pt" else (int.from_bytes(path.read_bytes()[:8], "little") + 8) / 1024
    encoder = clip.Encoder(path, device="cpu")
    side = encoder.resolution_px
    pixels = np.random.RandomState(0).randint(0, 256, (2, side, side, 3), np.uint8)
    first = encoder.encode_pixels(pixels)
    assert resident_kb(path) <= -(-header_kb // PAGE_KB) * PAGE_KB
    encoder.encode_text("a diagram")
    assert resident_kb(path) <= -(-header_kb // PAGE_KB) * PAGE_KB
    assert encoder.encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy().tobytes() == first.tobytes()


class Asked(dict[str, torch.Tensor]):
    """A state dict that notes which of its entries are read."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # pyright: ignore[reportArgumentType,reportCallIssue]
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.names.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_a_tower_is_read_when_it_is_used_and_the_other_one_is_not(name: str) -> None:
    architecture = formula.TINY[name]
    side = architecture.image_resolution
    entries = Asked(formula.state_dict(architecture))
    engine = Engine(entries, architecture, PreprocessSettings(side), make_backend(torch.device("cpu")))
    assert entries.names == set()
    engine.encode_pixels(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    assert entries.names and all(key.startswith("visual.") for key in entries.names)
    entries.names.clear()
    engine.encode_text(clip.tokenize("a diagram"))
    assert entries.names and not any(key.startswith("visual.") for key in entries.names)


def test_a_file_leaves_memory_with_each_block_and_before_the_graph_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = formula.TINY["tiny-vit-wide"]
    events: list[str] = []

    class Pages(FilePages):
        def __init__(self) -> None:
            super().__init__((), ())

        def release(self) -> None:
            events.append("release")

    backend = make_backend(torch.device("cpu"))
    compile_ = backend.image_graph
    monkeypatch.setattr(backend, "image_graph", lambda *args: (events.append("compile"), compile_(*args))[1])
    weights = formula.state_dict(architecture)
    engine = Engine(weights, architecture, PreprocessSettings(56), backend, pages=Pages())
    engine.encode_pixels(torch.zeros(1, 56, 56, 3, dtype=torch.uint8))
    assert events == ["release"] * architecture.vision_layers + ["compile"]  # the last block is folded with the rest


def test_objects_are_set_aside_for_a_block_unless_the_program_did_that_itself() -> None:
    assert gc.get_freeze_count() == 0
    with set_aside_objects():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        with set_aside_objects():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()

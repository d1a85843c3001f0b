"""What a wrong weights file looks like to those who pass one, and what a right one may cost."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import formula
from kit.archives import FORMATS, SMALLEST, Call, StateDict, pickled, script_archive, torch_zip
from kit.guard import assert_refused
from kit.programs import command

from clip.model import CLIP
from clip.weights.releases import RELEASES


def bomb(path: Path) -> None:
    torch_zip(path, pickled({"weight": Call(exec, (f"open({str(path.parent / 'canary')!r}, 'w').close()",))}))


def half_a_file(path: Path) -> None:
    FORMATS["torchscript"](path, SMALLEST["vit"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_weights(path: Path) -> None:
    torch.save(formula.state_dict(SMALLEST["vit"]) | {"visual.classifier.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize("write", [bomb, half_a_file, other_weights], ids=lambda write: write.__name__)
def test_the_command_refuses_a_bad_file_in_one_line(write: Callable[[Path], None], tmp_path: Path) -> None:
    weights, photos, output = tmp_path / "weights.pt", tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    formula.picture(0, 8, 8).save(photos / "a.png")
    write(weights)
    command = [sys.executable, "-m", "clip", "embed", photos, "-o", output, "-m", weights, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"clip: {weights}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "canary").exists()
    assert list(output.rglob("*.parquet")) == []


# Shapes that cost a file little to have and a network gigabytes, or minutes, to be laid out.


def with_entries(architecture: str, entries: dict[str, Any]) -> StateDict:
    return formula.state_dict(SMALLEST[architecture]) | entries


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def blocks(pattern: str, count: int) -> StateDict:
    return {pattern.format(i): bytes_of(1) for i in range(count)}


PLAUSIBLE_TO_NOBODY = {
    "a context of 5,000 tokens": ("vit", {"positional_embedding": bytes_of(5_000, 64)}),
    "a context of 20 million tokens": ("vit", {"positional_embedding": bytes_of(20_000_000, 1)}),
    "a text tower of 2,000 blocks": ("vit", blocks("transformer.resblocks.{}.a", 2_000)),
    "an image tower of 2,000 blocks": ("vit", blocks("visual.transformer.resblocks.{}.attn.in_proj_weight", 2_000)),
    "a ResNet of 2,000 blocks": ("rn", blocks("visual.layer3.{}.a", 2_000)),
    "both towers of 1,000 blocks": (
        "vit",
        blocks("transformer.resblocks.{}.a", 1_000)
        | blocks("visual.transformer.resblocks.{}.attn.in_proj_weight", 1_000),
    ),
    "a ResNet 50 million wide": ("rn", {"visual.layer1.0.conv1.weight": bytes_of(50_000_000, 1, 1, 1)}),
    "an image tower 6 million wide": ("vit", {"visual.conv1.weight": bytes_of(6_400_000, 1, 1, 1)}),
    "a text tower 64 million wide": ("vit", {"ln_final.weight": bytes_of(64_000_000)}),
    "patches of a million pixels": ("vit", {"visual.conv1.weight": bytes_of(64, 1, 1, 1_000_000)}),
    "images of 320,000 pixels": ("rn", {"visual.attnpool.positional_embedding": bytes_of(10_000**2 // 4 + 1, 1)}),
    "vectors of 50 million": ("vit", {"text_projection": bytes_of(1, 50_000_000)}),
    "a vocabulary of 50 million": ("vit", {"token_embedding.weight": bytes_of(50_000_000, 1)}),
}


@pytest.mark.parametrize("name", PLAUSIBLE_TO_NOBODY)
def test_shapes_of_an_enormous_network_are_refused_before_it_is_laid_out(name: str, tmp_path: Path) -> None:
    torch.save(with_entries(*PLAUSIBLE_TO_NOBODY[name]), tmp_path / "weights.pt")
    assert_refused(tmp_path / "weights.pt")


# Memory.


def test_loading_an_archive_holds_the_model_once_and_little_more(tmp_path: Path) -> None:
    model = CLIP(**vars(RELEASES["ViT-B/32"].architecture)).eval()
    sizes = [4 * tensor.numel() for tensor in model.state_dict().values()]  # in fp32 [Unit: bytes]
    archive = script_archive(tmp_path / "ViT-B-32.pt", model)
    small = FORMATS["zip"](tmp_path / "small.pt", SMALLEST["vit"])
    done = subprocess.run(command("load_peak", small, archive), capture_output=True, text=True, check=True)
    assert sum(sizes) < int(done.stdout) < sum(sizes) + 2 * max(sizes) + 60 * 2**20

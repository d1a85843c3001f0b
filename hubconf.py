"""torch.hub entry points, with the names of openai/CLIP's: `torch.hub.load(REPOSITORY, "ViT_B_32")`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "src"))  # torch.hub puts only this folder on the path

from clip.clip import _MODELS
from clip.clip import load as _load
from clip.clip import tokenize as _tokenize

dependencies = ["torch", "numpy", "PIL", "ftfy", "regex", "safetensors"]


def _make_entry_point(model_name: str):
    def entry(device=None, jit=False, download_root=None):
        return _load(model_name, device=device, jit=jit, download_root=download_root)

    entry.__doc__ = f"Return {model_name} and its preprocess, as clip.load({model_name!r}) does."
    return entry


def tokenize():
    """Return the function that turns texts into tokens."""
    return _tokenize


for _name in _MODELS:
    globals()["".join(c if c.isalnum() else "_" for c in _name)] = _make_entry_point(_name)

"""A dataset whose items are features, made by a model in the workers of a loader; spawned ones import it from here."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip.model import CLIP


class Encoded(Dataset):  # type: ignore[type-arg]
    def __init__(self, model: CLIP, images: Tensor) -> None:
        self.model, self.images = model, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        with torch.no_grad():
            return self.model.encode_image(self.images[i : i + 1])[0], self.model.fast_path()

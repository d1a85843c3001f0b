"""Load the encoder that the options of a job ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..encoder import Encoder

if TYPE_CHECKING:
    from ..jobs.options import ModelOptions, PixelMode


def load_encoder(options: ModelOptions, decode: PixelMode = "exact") -> Encoder:
    """Return an encoder of these options. Raises: as Encoder."""
    return Encoder(
        options.name,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size or "auto",
        threads=options.threads,
        untrained=options.untrained,
        decode=decode,
        architecture=options.architecture,
    )

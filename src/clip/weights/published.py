"""Models of others that run here, by the short names that open_clip's users know, with what their makers publish.

Names are those of open_clip's table of pretrained models: NETWORK/TAG. Each is a repository of the Hugging Face Hub. No
public text names commits or hashes of these weights, so none are pinned: NAME@REVISION of `hf-hub:` pins one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIT, APACHE, AMLR = "MIT", "Apache-2.0", "apple-amlr"
RESTRICTED = {AMLR: "for research only"}  # what a licence does not allow, which `clip models` says
# Zero-shot accuracy on ImageNet and its source: open_clip's docs/openclip_results.csv of 0a1cc15.
RESULTS = "open_clip@0a1cc15 docs/openclip_results.csv"


@dataclass(frozen=True)
class Published:
    """A model that others published."""

    repository: str  # of the Hugging Face Hub
    licence: str
    dim: int
    resolution_px: int
    parameters: int  # both towers, rounded
    gflops: float | None  # of one image; open_clip@3b37473 docs/model_profile.csv; None where that has none
    imagenet: float | None = None  # zero-shot accuracy [Unit: %], by RESULTS; None where that has none


# Repositories: open_clip 3.3.0 pretrained.py.
PUBLISHED = {
    "ViT-B-32/laion2b_s34b_b79k": Published(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", MIT, 512, 224, 151_280_000, 8.82, 66.56
    ),
    "ViT-B-32/datacomp_xl_s13b_b90k": Published(
        "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", MIT, 512, 224, 151_280_000, 8.82, 69.17
    ),
    "ViT-B-32-256/datacomp_s34b_b86k": Published(
        "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K", MIT, 512, 256, 151_290_000, 11.5, 72.81
    ),
    "ViT-B-16/laion2b_s34b_b88k": Published(
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", MIT, 512, 224, 149_620_000, 35.13, 70.23
    ),
    "ViT-B-16/datacomp_xl_s13b_b90k": Published(
        "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", MIT, 512, 224, 149_620_000, 35.13, 73.49
    ),
    "ViT-B-16/dfn2b": Published("apple/DFN2B-CLIP-ViT-B-16", AMLR, 512, 224, 149_620_000, 35.13),
    "ViT-L-14/laion2b_s32b_b82k": Published(
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", MIT, 768, 224, 427_620_000, 162.03, 75.25
    ),
    "ViT-L-14/datacomp_xl_s13b_b90k": Published(
        "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", MIT, 768, 224, 427_620_000, 162.03, 79.21
    ),
    "ViT-L-14/dfn2b": Published("apple/DFN2B-CLIP-ViT-L-14", AMLR, 768, 224, 427_620_000, 162.03),
    "ViT-H-14/laion2b_s32b_b79k": Published(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", MIT, 1024, 224, 986_110_000, 334.59, 77.96
    ),
    "ViT-H-14/dfn5b": Published("apple/DFN5B-CLIP-ViT-H-14", AMLR, 1024, 224, 986_110_000, 334.59),
    "ViT-H-14-378/dfn5b": Published("apple/DFN5B-CLIP-ViT-H-14-378", AMLR, 1024, 378, 986_710_000, None),
    "ViT-g-14/laion2b_s34b_b88k": Published(
        "laion/CLIP-ViT-g-14-laion2B-s34B-b88K", MIT, 1024, 224, 1_366_680_000, 534.06, 78.47
    ),
    "ViT-bigG-14/laion2b_s39b_b160k": Published(
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", MIT, 1280, 224, 2_539_570_000, 967.5, 80.09
    ),
}


def find_published(name: str) -> str | None:
    """Return the name in `PUBLISHED` that is spelt otherwise here, as in `ViT-B-32-256__datacomp_s34b_b86k`.

    open_clip has DFN's under "-quickgelu" too; the repository's configuration says what the activation is.
    """
    folded = re.sub(r"__|:", "/", name.lower()).replace("-quickgelu/", "/")
    return next((one for one in PUBLISHED if one.lower() == folded), None)

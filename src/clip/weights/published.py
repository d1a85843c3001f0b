"""Models of others that run here, by the short names that open_clip's users know, with what their makers publish.

Names are those of open_clip's table of pretrained models: NETWORK/TAG. Each is a repository of the Hugging Face Hub. No
public text names commits or hashes of these weights, so none are pinned: NAME@REVISION of `hf-hub:` pins one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIT, APACHE, AMLR = "MIT", "Apache-2.0", "apple-amlr"
RESTRICTED = {AMLR: "for research only"}  # what a licence does not allow, which `clip models` says
# Sources of zero-shot accuracies on ImageNet.
RESULTS = "open_clip@0a1cc15 docs/openclip_results.csv"
LATER_RESULTS = "open_clip@f862f86 docs/openclip_results.csv"
SIGLIP2_RESULTS = "google-research/big_vision@1659d42 configs/proj/image_text/README_siglip2.md"
PE_RESULTS = "facebookresearch/perception_models@039eb01 README.md"


@dataclass(frozen=True)
class Published:
    """A model that others published."""

    repository: str  # of the Hugging Face Hub
    licence: str
    dim: int
    resolution_px: int
    parameters: int  # both towers, rounded
    gflops: float | None  # of one image; open_clip@3b37473 docs/model_profile.csv; None where that has none
    imagenet: float | None  # zero-shot accuracy [Unit: %]; None where `source` has none of it
    source: str = RESULTS  # of that accuracy


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
    "ViT-B-16/dfn2b": Published("apple/DFN2B-CLIP-ViT-B-16", AMLR, 512, 224, 149_620_000, 35.13, 76.24, LATER_RESULTS),
    "ViT-L-14/laion2b_s32b_b82k": Published(
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", MIT, 768, 224, 427_620_000, 162.03, 75.25
    ),
    "ViT-L-14/datacomp_xl_s13b_b90k": Published(
        "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", MIT, 768, 224, 427_620_000, 162.03, 79.21
    ),
    "ViT-L-14/dfn2b": Published("apple/DFN2B-CLIP-ViT-L-14", AMLR, 768, 224, 427_620_000, 162.03, 81.41, LATER_RESULTS),
    "ViT-H-14/laion2b_s32b_b79k": Published(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", MIT, 1024, 224, 986_110_000, 334.59, 77.96
    ),
    "ViT-H-14/dfn5b": Published(
        "apple/DFN5B-CLIP-ViT-H-14", AMLR, 1024, 224, 986_110_000, 334.59, 83.44, LATER_RESULTS
    ),
    "ViT-H-14-378/dfn5b": Published(
        "apple/DFN5B-CLIP-ViT-H-14-378", AMLR, 1024, 378, 986_710_000, None, 84.37, LATER_RESULTS
    ),
    "ViT-g-14/laion2b_s34b_b88k": Published(
        "laion/CLIP-ViT-g-14-laion2B-s34B-b88K", MIT, 1024, 224, 1_366_680_000, 534.06, 78.47
    ),
    "ViT-bigG-14/laion2b_s39b_b160k": Published(
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", MIT, 1280, 224, 2_539_570_000, 967.5, 80.09
    ),
    "PE-Core-T-16-384/meta": Published("timm/PE-Core-T-16-384", APACHE, 512, 384, 69_550_000, None, 62.1, PE_RESULTS),
    "PE-Core-S-16-384/meta": Published("timm/PE-Core-S-16-384", APACHE, 512, 384, 87_190_000, None, 72.7, PE_RESULTS),
    "PE-Core-B-16/meta": Published("timm/PE-Core-B-16", APACHE, 1024, 224, 447_660_000, None, 78.4, PE_RESULTS),
    "PE-Core-L-14-336/meta": Published("timm/PE-Core-L-14-336", APACHE, 1024, 336, 671_140_000, None, 83.5, PE_RESULTS),
    "PE-Core-bigG-14-448/meta": Published(
        "timm/PE-Core-bigG-14-448", APACHE, 1280, 448, 2_419_270_000, None, 85.4, PE_RESULTS
    ),
}
# open_clip's names of Google's SigLIPs, whose tag is "webli", in repositories of timm.
# dim, resolution_px, parameters, gflops, imagenet
_SIGLIPS: dict[str, tuple[int, int, int, float | None, float | None]] = {
    "ViT-B-16-SigLIP": (768, 224, 203_160_000, 35.42, 76.04),
    "ViT-B-16-SigLIP-256": (768, 256, 203_200_000, 46.82, 76.53),
    "ViT-B-16-SigLIP-384": (768, 384, 203_450_000, 112.13, 78.49),
    "ViT-B-16-SigLIP-512": (768, 512, 203_790_000, 216.24, 79.14),
    "ViT-L-16-SigLIP-256": (1024, 256, 652_150_000, 162.56, 80.45),
    "ViT-L-16-SigLIP-384": (1024, 384, 652_480_000, 383.85, 82.07),
    "ViT-SO400M-14-SigLIP": (1152, 224, 877_360_000, 220.35, 82.03),
    "ViT-SO400M-14-SigLIP-384": (1152, 384, 877_960_000, 670.35, 83.08),
    "ViT-B-32-SigLIP2-256": (768, 256, 376_860_000, None, 74.0),
    "ViT-B-16-SigLIP2": (768, 224, 375_190_000, None, 78.2),
    "ViT-B-16-SigLIP2-256": (768, 256, 375_230_000, None, 79.1),
    "ViT-B-16-SigLIP2-384": (768, 384, 375_480_000, None, 80.6),
    "ViT-B-16-SigLIP2-512": (768, 512, 375_820_000, None, 81.2),
    "ViT-L-16-SigLIP2-256": (1024, 256, 881_530_000, None, 82.5),
    "ViT-L-16-SigLIP2-384": (1024, 384, 881_850_000, None, 83.1),
    "ViT-L-16-SigLIP2-512": (1024, 512, 882_310_000, None, 83.5),
    "ViT-SO400M-14-SigLIP2": (1152, 224, 1_135_460_000, None, 83.2),
    "ViT-SO400M-14-SigLIP2-378": (1152, 378, 1_136_010_000, None, None),
    "ViT-SO400M-16-SigLIP2-256": (1152, 256, 1_135_670_000, None, 83.4),
    "ViT-SO400M-16-SigLIP2-384": (1152, 384, 1_136_040_000, None, 84.1),
    "ViT-SO400M-16-SigLIP2-512": (1152, 512, 1_136_560_000, None, 84.3),
    "ViT-gopt-16-SigLIP2-256": (1536, 256, 1_871_390_000, None, 84.5),
    "ViT-gopt-16-SigLIP2-384": (1536, 384, 1_871_890_000, None, 85.0),
}
PUBLISHED.update(
    {
        f"{name}/webli": Published(
            f"timm/{name}", APACHE, *row, SIGLIP2_RESULTS if "SigLIP2" in name else LATER_RESULTS
        )
        for name, row in _SIGLIPS.items()
    }
)
# Meta's names of the PE-Cores, which are its repositories on the Hub too, and open_clip's.
META_NAMES = {
    "PE-Core-T16-384": "PE-Core-T-16-384", "PE-Core-S16-384": "PE-Core-S-16-384", "PE-Core-B16-224": "PE-Core-B-16",
    "PE-Core-L14-336": "PE-Core-L-14-336", "PE-Core-G14-448": "PE-Core-bigG-14-448",
}  # fmt: skip


def find_published(name: str) -> str | None:
    """Return the name in `PUBLISHED` that is spelt otherwise here, as in `ViT-B-32-256__datacomp_s34b_b86k`.

    open_clip has DFN's under "-quickgelu" too; the repository's configuration says what the activation is. Meta's name
    of a PE-Core is taken for open_clip's, whose repository has the same weights with a configuration.
    """
    if name in META_NAMES:
        return f"{META_NAMES[name]}/meta"
    folded = re.sub(r"__|:", "/", name.lower()).replace("-quickgelu/", "/")
    return next((one for one in PUBLISHED if one.lower() == folded), None)

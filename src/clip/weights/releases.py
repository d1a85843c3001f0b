"""The nine models that OpenAI published: their files, hashes, shapes and copies."""

from __future__ import annotations

from dataclasses import dataclass

from ..network.records import Architecture

LICENCE = "MIT"  # of OpenAI's repository, which published the weights
HOST = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True)
class HubCopy:
    """A repository of the Hugging Face Hub with the same numbers, converted to fp32."""

    repository: str
    revision: str  # a commit, so that its files cannot change; "main" where no commit is known


@dataclass(frozen=True)
class Release:
    """A model that OpenAI published."""

    file_name: str
    sha256: str  # of the archive, wherever it comes from
    size_bytes: int
    parameters: int  # both towers
    gflops: float  # of one image; a multiply-add counts as two; open_clip docs/model_profile.csv
    architecture: Architecture
    hub: tuple[HubCopy, ...]  # other places of the same numbers, in the order in which they are tried

    @property
    def url(self) -> str:
        """The address at which OpenAI published it."""
        return f"{HOST}/{self.sha256}/{self.file_name}"


def _vit(dim: int, px: int, layers: int, width: int, patch: int, text: int, heads: int) -> Architecture:
    return Architecture(dim, px, layers, width, patch, 77, 49408, text, heads, 12)


def _resnet(dim: int, px: int, layers: tuple[int, int, int, int], width: int, text: int, heads: int) -> Architecture:
    return Architecture(dim, px, layers, width, None, 77, 49408, text, heads, 12)


# Hashes from the URLs of openai/CLIP@d05afc4 clip/clip.py:30; sizes agree with the parameter counts to a megabyte.
RELEASES = {
    "RN50": Release(
        "RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        255_827_503, 102_007_137, 12.22, _resnet(1024, 224, (3, 4, 6, 3), 64, 512, 8),
        (HubCopy("timm/resnet50_clip.openai", "ec3d92cf63a5f9d591f0d611b736895966c73076"),),
    ),
    "RN101": Release(
        "RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        291_791_292, 119_688_033, 19.54, _resnet(512, 224, (3, 4, 23, 3), 64, 512, 8),
        (HubCopy("timm/resnet101_clip.openai", "main"),),
    ),
    "RN50x4": Release(
        "RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        421_854_225, 178_300_601, 42.56, _resnet(640, 288, (4, 6, 10, 6), 80, 640, 10),
        (HubCopy("timm/resnet50x4_clip.openai", "main"),),
    ),
    "RN50x16": Release(
        "RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        661_125_706, 290_979_217, 149.39, _resnet(768, 384, (6, 8, 18, 8), 96, 768, 12),
        (HubCopy("timm/resnet50x16_clip.openai", "main"),),
    ),
    "RN50x64": Release(
        "RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        1_353_500_174, 623_258_305, 529.11, _resnet(1024, 448, (3, 15, 36, 10), 128, 1024, 16),
        (HubCopy("timm/resnet50x64_clip.openai", "main"),),
    ),
    "ViT-B/32": Release(
        "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        353_976_522, 151_277_313, 8.82, _vit(512, 224, 12, 768, 32, 512, 8),
        (HubCopy("timm/vit_base_patch32_clip_224.openai", "a6f597a30f7b82c51704746581f9a4e41421e878"),
         HubCopy("openai/clip-vit-base-patch32", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268")),
    ),
    "ViT-B/16": Release(
        "ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        350_837_078, 149_620_737, 35.13, _vit(512, 224, 12, 768, 16, 512, 8),
        (HubCopy("timm/vit_base_patch16_clip_224.openai", "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d"),
         HubCopy("openai/clip-vit-base-patch16", "57c216476eefef5ab752ec549e440a49ae4ae5f3")),
    ),
    "ViT-L/14": Release(
        "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        932_768_134, 427_616_513, 162.03, _vit(768, 224, 24, 1024, 14, 768, 12),
        (HubCopy("timm/vit_large_patch14_clip_224.openai", "18d0535469bb561bf468d76c1d73aa35156c922b"),
         HubCopy("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")),
    ),
    "ViT-L/14@336px": Release(
        "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        934_088_680, 427_944_193, 381.92, _vit(768, 336, 24, 1024, 14, 768, 12),
        (HubCopy("timm/vit_large_patch14_clip_336.openai", "81e38efc4637de5023b10e75a7f9bd1c6fa6b010"),
         HubCopy("openai/clip-vit-large-patch14-336", "ce19dc912ca5cd21c8a653c79e251e808ccabcd1")),
    ),
}  # fmt: skip
# Zero-shot accuracy on ImageNet [Unit: %], as open_clip measured it; published.RESULTS.
IMAGENET = {
    "RN50": 59.82, "RN101": 62.28, "RN50x4": 66.27, "RN50x16": 70.72, "RN50x64": 73.91, "ViT-B/32": 63.32,
    "ViT-B/16": 68.34, "ViT-L/14": 75.54, "ViT-L/14@336px": 76.56,
}  # fmt: skip

"""The families of networks that run, by name and by configuration: OpenAI's CLIP, SigLIP, PE-Core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..model import CLIP
from ..network.pe import PE
from ..network.records import AnyArchitecture, Architecture, PeArchitecture, SiglipArchitecture
from ..network.siglip import SigLIP
from .architectures import find_architecture
from .configurations import Configuration, read_configuration, read_json, read_preprocess
from .pe import TIMM_PE, PeConfiguration, from_open_clip_pe, name_pe
from .siglip import SiglipConfiguration, from_open_clip_siglip, from_transformers_siglip, name_siglip

if TYPE_CHECKING:
    from pathlib import Path

AnyConfiguration = Configuration | SiglipConfiguration | PeConfiguration
AnyNetwork = CLIP | SigLIP | PE
NETWORKS = (CLIP, SigLIP, PE)  # for isinstance


def name_configuration(name: str) -> AnyConfiguration | None:
    """Return what one of OpenAI's names, open_clip's or Meta's says of a network; None for any other text.

    Raises:  InputError for the bare name of a ResNet, which means two networks.
    """
    named = name_siglip(name) or name_pe(name)
    if named is None and (architecture := find_architecture(name)):
        named = Configuration.of_architecture(name, architecture)
    return named


def read_any_configuration(file: Path) -> AnyConfiguration:
    """Return what a configuration says, by its content: of a SigLIP or a PE-Core, or as `read_configuration`."""
    content = read_json(file)
    if str(content.get("model_type", "")).startswith("siglip"):
        return from_transformers_siglip(content, read_preprocess(file.parent), file.name)
    model = content.get("model_cfg", content)
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    timm = vision.get("timm_model_name") if isinstance(vision, dict) else None
    if isinstance(timm, str) and ("siglip" in timm or TIMM_PE.fullmatch(timm)):
        read = from_open_clip_siglip if "siglip" in timm else from_open_clip_pe
        return read(content if "model_cfg" in content else {"model_cfg": content}, file.name)
    return read_configuration(file)


def lay_out(architecture: AnyArchitecture) -> AnyNetwork:
    """Return the network of an architecture, without memory for its weights."""
    if isinstance(architecture, SiglipArchitecture):
        return SigLIP.lay_out(architecture)
    return PE.lay_out(architecture) if isinstance(architecture, PeArchitecture) else CLIP.lay_out(architecture)


def build(architecture: AnyArchitecture) -> AnyNetwork:
    """Return the network of an architecture with weights that are drawn at random."""
    if isinstance(architecture, Architecture):
        return CLIP(**vars(architecture))
    return SigLIP(architecture) if isinstance(architecture, SiglipArchitecture) else PE(architecture)

"""Read the weights of a model that `clip.load` returned, so that an engine can run them."""

from __future__ import annotations

from ..errors import InputError
from ..model import CLIP, QuickGELU, VisionTransformer
from ..network.architecture import infer_architecture
from ..network.meta_init import build_on_meta
from ..network.records import Architecture, Checkpoint, PreprocessSettings


def read_loaded_model(model: CLIP) -> Checkpoint:
    """Return a loaded model's weights, and the settings that only its modules hold.

    The weights are not copied here, but when a tower is folded, at its first use: an Encoder of a loaded model costs
    nothing for a tower that is never used, and further training does not change one that was.

    Raises:  InputError for a model whose modules a user replaced or hooked: the lean graph would ignore that.
    """
    block = next(model.transformer.blocks())
    visual = model.visual
    heads = next(visual.transformer.blocks()).attn.num_heads if isinstance(visual, VisionTransformer) else None
    state_dict = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    architecture = infer_architecture(
        state_dict,
        activation="quick_gelu" if isinstance(block.mlp[1], QuickGELU) else "gelu",
        vision_heads=heads,
        transformer_heads=block.attn.num_heads,
    )
    _check_unchanged(model, architecture)
    settings = model.preprocess_settings or PreprocessSettings(visual.input_resolution)
    return Checkpoint(architecture, state_dict, settings, source="a loaded model", tokenizer=model.tokenizer)


def _check_unchanged(model: CLIP, architecture: Architecture) -> None:
    original = {
        name: type(module) for name, module in build_on_meta(lambda: CLIP(**vars(architecture))).named_modules()
    }
    modules = dict(model.named_modules())
    for name in original.keys() | modules.keys():
        module = modules.get(name)
        hooked = module is not None and (module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
        if type(module) is not original.get(name) or hooked:
            found = f"{name or 'the model itself'} was replaced or hooked"
            remedy = "Call model.encode_image, which runs your changes, or pass the path of weights."
            raise InputError("`model`", found, "OpenAI's modules as they are", remedy)

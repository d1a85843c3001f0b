"""Read the architecture of a model in memory, and find what was changed in it: the lean graph would ignore changes."""

from __future__ import annotations

from pathlib import Path
from types import BuiltinFunctionType, FunctionType, WrapperDescriptorType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..network.architecture import infer_architecture
from ..network.pe import PE
from ..network.records import AnyArchitecture, Architecture, Checkpoint, PreprocessSettings, SiglipArchitecture
from ..network.siglip import SigLIP

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
CONTAINERS = ("_parameters", "_buffers", "_modules")
RUN_OF_MODULES = ("__call__", "__getattr__", "__getattribute__", "_call_impl", "_slow_forward", "_wrapped_call_impl")
RUN_OF_FUNCTIONAL = (
    *("linear", "conv2d", "layer_norm", "multi_head_attention_forward", "scaled_dot_product_attention", "embedding"),
    *("gelu", "relu", "batch_norm", "avg_pool2d"),
)
RUN_OF_TORCH = ("sigmoid", "cat", "conv2d", "layer_norm")
BUILT_IN = (BuiltinFunctionType, WrapperDescriptorType)  # which nobody has written in Python
STAYS_AFTER_HOOKS = "_is_full_backward_hook"  # set by the first backward hook, and left when it is removed


def read_loaded_model(model: Any) -> Checkpoint:
    """Return the weights of a loaded model of any family, and the settings that only its modules hold.

    The weights are not copied here, but when a tower is folded, at its first use: an Encoder of a loaded model costs
    nothing for a tower that is never used, and further training does not change one that was.

    Raises:  InputError for a model whose modules a user replaced, changed or hooked: the lean graph would ignore that;
             and for a SigLIP or a PE-Core that no checkpoint gave its pixels and its vocabulary.
    """
    architecture = _get_architecture(model)
    change = find_change(model, model.lay_out(architecture).train(model.training))
    if change:
        remedy = "Call model.encode_image, which runs your changes, or pass the path of weights."
        raise InputError("`model`", change, "the network's modules as they are", remedy)
    settings = model.preprocess_settings
    if settings is None and isinstance(architecture, Architecture):
        settings = PreprocessSettings(architecture.image_resolution)
    if settings is None or (model.tokenizer is None and isinstance(architecture, SiglipArchitecture)):
        found = "a network without the pixels and the vocabulary of a checkpoint"
        raise InputError("`model`", found, "one of clip.load", "Pass the name or the path of its weights.")
    state_dict = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return Checkpoint(architecture, state_dict, settings, source="a loaded model", tokenizer=model.tokenizer)


def _get_architecture(model: nn.Module) -> AnyArchitecture:
    return model.architecture if isinstance(model, (SigLIP, PE)) else read_architecture(model)


def read_architecture(model: nn.Module) -> Architecture:
    """Return the architecture that the weights' shapes and the first blocks have; `find_change` compares the rest.

    Raises:  CheckpointError where shapes make no CLIP, AttributeError where parts of one are missing.
    """
    blocks: Any = cast("Any", model).transformer.resblocks
    visual: Any = cast("Any", model).visual
    return infer_architecture(
        {name: tensor.detach() for name, tensor in model.state_dict().items()},
        activation="gelu" if isinstance(blocks[0].mlp[1], nn.GELU) else "quick_gelu",
        vision_heads=visual.transformer.resblocks[0].attn.num_heads if hasattr(visual, "transformer") else None,
        transformer_heads=blocks[0].attn.num_heads,
    )


def find_change(model: nn.Module, original: nn.Module, prefixes: tuple[str, ...] = ("",)) -> str | None:
    """Return what was changed of a model since it was built, below the prefixes; None for nothing.

    Looked at are classes, hooks, settings such as eps, and attributes that hide one of the class, such as a method.
    """
    built = {name: module for name, module in original.named_modules() if f"{name}.".startswith(prefixes)}
    modules = {name: module for name, module in model.named_modules() if f"{name}.".startswith(prefixes)}
    for name in sorted(built.keys() | modules.keys()):
        module, like = modules.get(name), built.get(name)
        shown = name or "the model itself"
        # The root may be of a subclass: its methods are its own affair.
        if module is None or like is None or (type(module) is not type(like) and name):
            return f"{shown} was replaced"
        if any(vars(module).get(kind) for kind in HOOKS):
            return f"{shown} was hooked"
        setting = find_changed_setting(module, like) if name else None
        if setting:
            return f"{shown}.{setting} was changed"
    for name, like in original.named_parameters(recurse=False):
        if f"{name}.".startswith(prefixes) and _shape(vars(model)["_parameters"].get(name)) != _shape(like):
            return f"{name} was changed"
    return None


def find_changed_setting(module: nn.Module, like: nn.Module) -> str | None:
    """Return an attribute that a module has otherwise than one of the same class as it was built; None for none."""
    for name, value in vars(like).items():
        given = vars(module).get(name)
        if isinstance(value, Tensor):  # the mask of a text block
            if not isinstance(given, Tensor) or not torch.equal(given.to(value), value):
                return name
        elif name in CONTAINERS:
            if not isinstance(given, dict) or list(given) != list(value):
                return name
            if name == "_parameters" and any(_shape(given[key]) != _shape(value[key]) for key in value):
                return name
        elif name != STAYS_AFTER_HOOKS and not hasattr(value, "items") and given != value:
            return name
    hidden = (name for name in vars(module).keys() - vars(like).keys() if hasattr(type(module), name))
    return next(hidden, None)


def _shape(tensor: object) -> object:
    """Return the shape of a parameter; None for a missing one; a parameter of a subclass has a rule of its own."""
    if tensor is None:
        return None
    return tensor.shape if isinstance(tensor, Tensor) and type(tensor) is nn.Parameter else type(tensor)


def find_patched_function(modules: list[nn.Module]) -> str | None:
    """Return the name of what a program has put in the place of a method of modules, or of a function of torch."""
    places = (str(torch.__path__[0]), str(Path(__file__).parents[1]))
    for owner, name, function in functions_of(set(map(type, modules))):
        if not isinstance(function, (FunctionType, *BUILT_IN)) or not _comes_from(function, places):
            return f"{getattr(owner, '__name__', owner)}.{name} was replaced"
    for module in modules:  # an attribute of a class hides the parameter or the module of that name
        slots = {name for kind in CONTAINERS for name in vars(module)[kind]}
        hidden = next((name for name in slots if hasattr(type(module), name)), None)
        if hidden:
            return f"{type(module).__name__}.{hidden} was added"
    return None


def _comes_from(function: object, places: tuple[str, ...]) -> bool:
    return not isinstance(function, FunctionType) or function.__code__.co_filename.startswith(places)


def functions_of(types: set[type]) -> list[tuple[Any, str, object]]:
    """List what runs when modules of these classes are called: their methods, and torch's functions.

    Of nn.Module itself only some methods run; libraries give it others of their own (transformers: `smart_apply`).
    """
    classes = classes_of(types) - {nn.Module}
    found: list[tuple[Any, str, object]] = [
        (cls, name, value) for cls in classes for name, value in vars(cls).items() if isinstance(value, FunctionType)
    ]
    found += [(nn.Module, name, getattr(nn.Module, name)) for name in RUN_OF_MODULES]
    found += [(nn.functional, name, getattr(nn.functional, name)) for name in RUN_OF_FUNCTIONAL]
    return found + [(torch, name, getattr(torch, name)) for name in RUN_OF_TORCH]


def classes_of(types: set[type]) -> set[type]:
    """Return these classes of modules and those that they inherit from."""
    return {cls for kind in types for cls in kind.__mro__ if issubclass(cls, nn.Module)}

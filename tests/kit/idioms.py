"""What public projects do with openai/CLIP, each idiom in as few lines as show it, on OpenAI's code or on ours.

`programs/run_idioms.py` prints what each gives; tests/golden/idioms.json is what it prints on OpenAI's code.
"""

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import clip
from clip.clip import _convert_image_to_rgb, _tokenizer, _transform, build_model
from clip.model import CLIP, LayerNorm, QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer
from kit.draws import entry, picture, picture_in_mode

try:
    import torchvision.transforms as T
except (ImportError, RuntimeError):
    T = clip.clip  # which has torchvision's names

VIT = (32, 32, 2, 64, 8, 77, 49408, 64, 1, 2)
RESNET = (32, 64, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 2)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXTS = ["a diagram", "a photo of a dog, and a cat!"]
IDIOMS: dict[str, Callable[[], Any]] = {}


def idiom(what: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function under what it does, with the projects that do so."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        assert what not in IDIOMS
        IDIOMS[what] = function
        return function

    return register


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights by formula, rounded to fp16, as OpenAI's `load` rounds them."""
    values = {key: torch.from_numpy(np.asarray(entry(key, tuple(w.shape)))) for key, w in model.state_dict().items()}
    return {key: w.half().float() if w.is_floating_point() else w for key, w in values.items()}


@cache
def prototype(arguments: tuple[Any, ...]) -> CLIP:
    model = CLIP(*arguments)
    model.load_state_dict(weights(model))
    return model.eval()


def vit() -> CLIP:
    return copy.deepcopy(prototype(VIT))


def resnet() -> CLIP:
    return copy.deepcopy(prototype(RESNET))


def image(i: int = 0) -> Image.Image:
    return picture(i, 90, 70)


def pixels(model: CLIP, count: int = 2) -> Tensor:
    preprocess = _transform(model.visual.input_resolution)
    return torch.stack([preprocess(image(i)) for i in range(count)])


def generated(side: int = 256) -> Tensor:
    """Images as a generator makes them: (2, 3, side, side) in -1..1, from arithmetic alone."""
    ramp = torch.arange(2 * 3 * side * side, dtype=torch.float64).reshape(2, 3, side, side)
    return torch.sin(ramp / 97.0).float()


def tokens() -> Tensor:
    return clip.tokenize(TEXTS)


def saved(model: nn.Module) -> str:
    """A TorchScript archive, which is all that OpenAI's `load` reads."""
    path = str(Path(tempfile.mkdtemp()) / "model.pt")
    side = model.visual.input_resolution
    traced = torch.jit.trace(model, (torch.zeros(1, 3, side, side), torch.zeros(1, 77, dtype=torch.int64)))
    torch.jit.save(traced, path)
    return path


# Loading


@idiom("README: load, tokenize, encode, logits, probabilities")
def _() -> Any:
    model, preprocess = clip.load(saved(vit()), device="cpu")
    batch = preprocess(image()).unsqueeze(0).to("cpu")
    with torch.no_grad():
        features, texts = model.encode_image(batch), model.encode_text(tokens())
        logits, _ = model(batch, tokens())
    return features, texts, logits.softmax(dim=-1).cpu().numpy()


@idiom("load by keywords: device, jit, download_root")
def _() -> Any:
    model, _ = clip.load(name=saved(vit()), device=torch.device("cpu"), jit=False, download_root=None)
    return model.dtype, model.visual.input_resolution, model.training


@idiom("CoOp, MaPLe: build_model of a state dict, then float()")
def _() -> Any:
    from clip import clip as module

    model = module.build_model(vit().state_dict())
    return model.dtype, model.float().dtype, model.encode_image(pixels(model))


@idiom("build_model takes hyper-parameters out of the shapes")
def _() -> Any:
    model = build_model(resnet().state_dict())
    return type(model.visual).__name__, model.visual.attnpool.num_heads, model.transformer.width, model.context_length


@idiom("load of an unknown name")
def _() -> Any:
    return clip.load("ViT-B/64", device="cpu")


@idiom("load of None")
def _() -> Any:
    return clip.load(None)


@idiom("models are listed, and the private table is extended")
def _() -> Any:
    clip.clip._MODELS["mine"] = "https://example.org/0/mine.pt"
    names = clip.available_models()
    del clip.clip._MODELS["mine"]
    return names


@idiom("the default dtype is set to float64 before load")
def _() -> Any:
    path = saved(vit())
    torch.set_default_dtype(torch.float64)
    try:
        model, _ = clip.load(path, device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    return sorted({str(p.dtype) for p in model.parameters()}), model.encode_image(pixels(model))


@idiom("the default dtype is set to bfloat16 before build_model")
def _() -> Any:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = build_model(vit().state_dict()).float()
    finally:
        torch.set_default_dtype(torch.float32)
    return sorted({str(p.dtype) for p in model.parameters()})


@idiom("parameters of a loaded model can be trained")
def _() -> Any:
    model, _ = clip.load(saved(vit()), device="cpu")
    return all(p.requires_grad for p in model.parameters()), len(list(model.parameters()))


@idiom("load under no_grad")
def _() -> Any:
    path = saved(vit())
    with torch.no_grad():
        model, _ = clip.load(path, device="cpu")
    return all(p.requires_grad for p in model.parameters())


# The transform


@idiom("StyleGAN-NADA: Normalize, then the steps but for two, on tensors")
def _() -> Any:
    preprocess = _transform(32)
    from_generator = [T.Normalize(mean=[-1.0, -1.0, -1.0], std=[2.0, 2.0, 2.0])]
    steps = from_generator + preprocess.transforms[:2] + preprocess.transforms[4:]
    return T.Compose(steps)(generated())


@idiom("textual inversion: the same, with its own Compose, not square")
def _() -> Any:
    steps = _transform(32).transforms
    back = T.Normalize(mean=[-1.0, -1.0, -1.0], std=[2.0, 2.0, 2.0])
    return T.Compose([back, steps[0], steps[1], steps[4]])(generated(48)[..., :41])


@idiom("habitat-lab: a step to PIL put first, tensors passed")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms.insert(0, lambda t: Image.fromarray(t.permute(1, 2, 0).numpy()))
    return preprocess(torch.arange(3 * 40 * 50).reshape(3, 40, 50).to(torch.uint8))


@idiom("a step to PIL put first, arrays passed")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms.insert(0, Image.fromarray)
    return preprocess(np.asarray(image()).copy())


@idiom("a step that opens paths put first")
def _() -> Any:
    preprocess, path = _transform(32), Path(tempfile.mkdtemp()) / "a.png"
    image().save(path)
    preprocess.transforms.insert(0, lambda p: Image.open(p).rotate(90))
    return preprocess(str(path))


@idiom("CLIPasso: only Normalize is kept, by its place")
def _() -> Any:
    return T.Compose([_transform(32).transforms[-1]])(generated(32))


@idiom("steps are popped and tensors passed")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms.pop(2)
    preprocess.transforms.pop(2)
    return preprocess(generated(40))


@idiom("steps are deleted by slice")
def _() -> Any:
    preprocess = _transform(32)
    del preprocess.transforms[:4]
    return preprocess(generated(8))


@idiom("a step is replaced: another crop")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms[1] = T.CenterCrop(16)
    return preprocess(image())


@idiom("a step is appended")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms.append(lambda x: x.half())
    return preprocess(image())


@idiom("the list is replaced as a whole")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms = preprocess.transforms[:4]
    return preprocess(image())


@idiom("the steps but for the last are a transform of their own")
def _() -> Any:
    return T.Compose(_transform(32).transforms[:-1])(image())


@idiom("steps are found by their type's name")
def _() -> Any:
    return [type(step).__name__ for step in _transform(32).transforms]


@idiom("steps are found by isinstance")
def _() -> Any:
    kinds = (T.Resize, T.CenterCrop, T.ToTensor, T.Normalize, nn.Module)
    shown = [[isinstance(step, kind) for kind in kinds] for step in _transform(32).transforms]
    return shown, isinstance(_transform(32), T.Compose)


@idiom("steps as modules: nn.Sequential of resize, crop, normalise")
def _() -> Any:
    steps = _transform(32).transforms
    sequence = nn.Sequential(steps[0], steps[1], steps[4])
    return sequence(generated(40)), [type(child).__name__ for child in sequence.children()], steps[0].training


@idiom("attributes of the steps")
def _() -> Any:
    resize, crop, _, _, normalize = _transform(32).transforms
    shown = [resize.size, resize.interpolation.value, resize.max_size, resize.antialias]
    return [*shown, crop.size, normalize.mean, normalize.std, normalize.inplace]


@idiom("the repr of the steps")
def _() -> Any:
    return [repr(step) for i, step in enumerate(_transform(32).transforms) if i != 2]


@idiom("the name and repr of the transform")
def _() -> Any:
    lines = repr(_transform(32)).splitlines()
    return lines[:3], lines[3].partition(" at ")[0], lines[4:]


@idiom("sizes are changed in place")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms[0].size, preprocess.transforms[1].size = 16, (16, 16)
    return preprocess(image())


@idiom("uint8 tensors are resized, rounded and clamped")
def _() -> Any:
    return _transform(32).transforms[0](((generated(60) + 1) * 127).to(torch.uint8))


@idiom("fp16 tensors are resized")
def _() -> Any:
    return _transform(32).transforms[0](generated(60).half())


@idiom("float64 tensors are resized and normalised")
def _() -> Any:
    steps = _transform(32).transforms
    return steps[4](steps[0](generated(60).double()))


@idiom("a tensor of the right size is returned as it is")
def _() -> Any:
    batch = generated(32)
    return _transform(32).transforms[0](batch) is batch


@idiom("a single tensor (C, H, W), not square")
def _() -> Any:
    steps = _transform(32).transforms
    return steps[1](steps[0](generated(64)[0, :, :50]))


@idiom("a tensor is cropped beyond its border, and by an odd rest")
def _() -> Any:
    crop = _transform(32).transforms[1]
    return crop(generated(20)), crop(generated(40)[..., :21]), crop(generated(39)[..., :35])


@idiom("gradients flow through resize, crop and normalise")
def _() -> Any:
    steps = _transform(32).transforms
    batch = generated(40).requires_grad_()
    steps[4](steps[1](steps[0](batch))).square().sum().backward()
    return batch.grad


@idiom("Normalize of bytes")
def _() -> Any:
    return _transform(32).transforms[4](torch.zeros(3, 4, 4, dtype=torch.uint8))


@idiom("Normalize of a PIL image")
def _() -> Any:
    return _transform(32).transforms[4](image())


@idiom("Normalize of a matrix")
def _() -> Any:
    return _transform(32).transforms[4](torch.zeros(4, 4))


@idiom("Normalize in place")
def _() -> Any:
    batch = generated(8)
    return T.Normalize(MEAN, STD, inplace=True)(batch) is batch, batch


@idiom("ToTensor of an array of bytes, of floats, and of grey images")
def _() -> Any:
    step, grey = _transform(32).transforms[3], image().convert("L")
    return step(np.asarray(image()).copy()), step(np.ones((4, 5, 3), np.float32)), step(grey), step(grey.convert("1"))


@idiom("ToTensor of 32-bit and 16-bit images")
def _() -> Any:
    return [_transform(32).transforms[3](picture_in_mode(0, 9, 7, mode)) for mode in ("I", "F", "I;16")]


@idiom("ToTensor of a tensor")
def _() -> Any:
    return _transform(32).transforms[3](generated(4)[0])


@idiom("preprocess of a tensor")
def _() -> Any:
    return _transform(32)(generated(40)[0])


@idiom("preprocess of None")
def _() -> Any:
    return _transform(32)(None)


@idiom("preprocess step by step")
def _() -> Any:
    value: Any = image()
    for step in _transform(32).transforms:
        value = step(value)
    return value, torch.equal(value, _transform(32)(image()))


@idiom("preprocess of images of many modes, wide, tall, small and fitting")
def _() -> Any:
    modes = ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "F"]
    sizes = [(90, 70), (33, 200), (9, 7), (32, 32), (35, 32)]
    return [_transform(32)(picture_in_mode(3, *size, mode)) for mode in modes for size in sizes]


@idiom("preprocess in a dataset: pickled and copied")
def _() -> Any:
    preprocess = pickle.loads(pickle.dumps(_transform(32)))
    return preprocess(image()), copy.deepcopy(_transform(32))(image())


@idiom("a changed preprocess, pickled")
def _() -> Any:
    preprocess = _transform(32)
    preprocess.transforms.pop()
    return pickle.loads(pickle.dumps(preprocess))(image())


@idiom("preprocess by torchvision's names from clip.clip")
def _() -> Any:
    from clip.clip import BICUBIC, CenterCrop, Compose, Normalize, Resize, ToTensor

    steps = [Resize(32, interpolation=BICUBIC), CenterCrop(32), _convert_image_to_rgb, ToTensor(), Normalize(MEAN, STD)]
    return Compose(steps)(image()), repr(BICUBIC)


@idiom("a transform of one's own: Resize to (h, w), default interpolation")
def _() -> Any:
    from clip.clip import Compose, Resize, ToTensor

    return Compose([Resize((20, 30)), ToTensor()])(image())


@idiom("Resize with max_size, a list of one, and a constant of Pillow's")
def _() -> Any:
    from clip.clip import Resize

    resized = [Resize(30, max_size=35)(image()), Resize([30])(image()), Resize(30, Image.BICUBIC)(image())]
    return [one.size for one in resized], Resize(30, max_size=35)(generated(50)[..., :30]).shape


@idiom("Resize of three numbers")
def _() -> Any:
    return T.Resize((1, 2, 3))


@idiom("Compose of functions, on anything")
def _() -> Any:
    from clip.clip import Compose

    return Compose([lambda x: x + 1, lambda x: x * 2])(3)


@idiom("a part of the steps in the transform's own class")
def _() -> Any:
    preprocess = _transform(32)
    return type(preprocess)(preprocess.transforms[:2])(image()).size


# Texts and names


@idiom("tokenize one text, several, none, and a tuple")
def _() -> Any:
    return clip.tokenize("a cat"), clip.tokenize(TEXTS), clip.tokenize([]).shape, clip.tokenize(("a", "b"))


@idiom("tokenize a text that is too long")
def _() -> Any:
    return clip.tokenize("word " * 100)


@idiom("tokenize a text that is too long, truncated, and with another length")
def _() -> Any:
    return clip.tokenize("word " * 100, truncate=True), clip.tokenize("a cat", context_length=20)


@idiom("tokenize on the default device")
def _() -> Any:
    torch.set_default_device("meta")
    try:
        return clip.tokenize("a cat").device.type
    finally:
        torch.set_default_device(None)


@idiom("CoOp: lengths of names by _tokenizer.encode")
def _() -> Any:
    return [len(_tokenizer.encode(name)) for name in ("cat", "golden retriever")], _tokenizer.decode([320, 2368])


@idiom("from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer")
def _() -> Any:
    from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer

    tokenizer = _Tokenizer()
    return tokenizer.encode("Hello, world!"), len(tokenizer.encoder), tokenizer.encoder["<|endoftext|>"]


@idiom("from clip.simple_tokenizer import *")
def _() -> Any:
    names: dict[str, Any] = {}
    exec("from clip.simple_tokenizer import *", names)
    return sorted(set(names) - {"__builtins__"}), names["re"].__name__


@idiom("from clip.model import *")
def _() -> Any:
    names: dict[str, Any] = {}
    exec("from clip.model import *", names)
    return sorted(set(names) - {"__builtins__"})


@idiom("from clip.clip import *, and from clip import *")
def _() -> Any:
    names: dict[str, Any] = {}
    exec("from clip.clip import *\nfrom clip import *", names)
    return sorted(set(names) - {"__builtins__"})


@idiom("names that clip.clip imports: tqdm, urllib, hashlib, Image, version")
def _() -> Any:
    from clip.clip import Image as Pillow
    from clip.clip import hashlib, tqdm, urllib, version

    shown = [Pillow.__name__, tqdm.__name__, urllib.request.__name__, hashlib.__name__]
    return [*shown, str(version.parse("1.7.1"))]


@idiom("CoOp's TextEncoder: prompts through the transformer")
def _() -> Any:
    model = vit()
    prompts = model.token_embedding(tokens()).type(model.dtype)
    x = prompts + model.positional_embedding.type(model.dtype)
    x = model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
    x = model.ln_final(x).type(model.dtype)
    return x[torch.arange(x.shape[0]), tokens().argmax(dim=-1)] @ model.text_projection


@idiom("texts of another length")
def _() -> Any:
    return vit().encode_text(torch.zeros(1, 20, dtype=torch.int64))


@idiom("texts as floats")
def _() -> Any:
    return vit().encode_text(tokens().float())


@idiom("texts as a list")
def _() -> Any:
    return vit().encode_text(TEXTS)


@idiom("texts as int64")
def _() -> Any:
    return vit().encode_text(tokens().long())


# Encoding


@idiom("encode_image of both kinds, fp32")
def _() -> Any:
    return vit().encode_image(pixels(vit())), resnet().encode_image(pixels(resnet()))


@idiom("encode_image casts float64 and bytes")
def _() -> Any:
    model, batch = vit(), pixels(vit())
    return model.encode_image(batch.double()), model.encode_image(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8))


@idiom("encode_image of an array")
def _() -> Any:
    return vit().encode_image(np.zeros((1, 3, 32, 32)))


@idiom("encode_image of another resolution")
def _() -> Any:
    return vit().encode_image(torch.zeros(1, 3, 40, 40))


@idiom("encode_image of another resolution: ResNet")
def _() -> Any:
    return resnet().encode_image(torch.zeros(1, 3, 96, 96))


@idiom("encode_image of one channel")
def _() -> Any:
    return vit().encode_image(torch.zeros(1, 1, 32, 32))


@idiom("encode_image of one image without its batch")
def _() -> Any:
    return vit().encode_image(torch.zeros(3, 32, 32))


@idiom("model.visual called directly, with its dtype; a ResNet's casts")
def _() -> Any:
    model = vit()
    return model.visual(pixels(model).type(model.dtype)), resnet().visual(pixels(resnet()).double())


@idiom("model.visual of a ViT called with another dtype")
def _() -> Any:
    return vit().visual(pixels(vit()).double())


@idiom("forward: logits both ways, and their softmax")
def _() -> Any:
    model = resnet()
    image_logits, text_logits = model(pixels(model), tokens())
    return image_logits, text_logits, image_logits.softmax(dim=-1)


@idiom("the temperature")
def _() -> Any:
    return vit().logit_scale.exp(), vit().logit_scale.shape


@idiom("a zero vector divides to NaN")
def _() -> Any:
    model = vit()
    model.visual.proj.data.zero_()
    return bool(model(pixels(model), tokens())[0].isnan().all())


@idiom("gradients of the image: guided diffusion")
def _() -> Any:
    model = vit().requires_grad_(False)
    batch = pixels(model).requires_grad_()
    model.encode_image(batch).square().sum().backward()
    return batch.grad


@idiom("linear probe: features to numpy")
def _() -> Any:
    with torch.no_grad():
        return vit().encode_image(pixels(vit())).cpu().numpy()


@idiom("features change in place: /= norm")
def _() -> Any:
    with torch.no_grad():
        features = vit().encode_image(pixels(vit()))
        features /= features.norm(dim=-1, keepdim=True)
    return features


@idiom("features of inference_mode")
def _() -> Any:
    with torch.inference_mode():
        features = vit().encode_image(pixels(vit()))
    return features, features.is_inference()


@idiom("whether features require gradients")
def _() -> Any:
    model = vit()
    free = model.encode_image(pixels(model)).requires_grad
    with torch.no_grad():
        return free, model.encode_image(pixels(model)).requires_grad, model.logit_scale.requires_grad


@idiom("zero-shot head: mean of normalised prompts")
def _() -> Any:
    with torch.no_grad():
        embeddings = vit().encode_text(tokens())
        embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
        mean = embeddings.mean(dim=0)
        return mean / mean.norm()


@idiom("under autocast")
def _() -> Any:
    model = vit()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model.encode_image(pixels(model)).dtype


# Training, copies and files


@idiom("training: a step of AdamW on the contrastive loss")
def _() -> Any:
    model = vit().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    logits, transposed = model(pixels(model), tokens())
    target = torch.arange(2)
    loss = nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(transposed, target)
    loss.backward()
    optimizer.step()
    return loss


@idiom("fp32 for the step, fp16 after it, by p.data")
def _() -> Any:
    model = build_model(vit().state_dict())
    for p in model.parameters():
        p.data = p.data.float()
    features = model.encode_image(pixels(model))
    clip.model.convert_weights(model)
    return features, sorted({str(p.dtype) for p in model.parameters()}), model.dtype


@idiom("an EMA copy that averages buffers: DALLE2-pytorch")
def _() -> Any:
    model = vit()
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    return averaged.module.encode_text(tokens())


@idiom("an EMA copy by hand, of parameters and buffers")
def _() -> Any:
    one, two = vit(), vit()
    for a, b in zip([*one.parameters(), *one.buffers()], [*two.parameters(), *two.buffers()], strict=True):
        a.data.mul_(0.5).add_(b.data, alpha=0.5)
    return one.encode_text(tokens())


@idiom("buffers: none of a ViT, running statistics of a ResNet")
def _() -> Any:
    return [name for name, _ in vit().named_buffers()], len(list(resnet().buffers()))


@idiom("stack_module_state and functional_call")
def _() -> Any:
    model = vit()
    parameters, buffers = torch.func.stack_module_state([model, model])
    tower = {name.removeprefix("visual."): value[0] for name, value in parameters.items() if name[:7] == "visual."}
    return len(buffers), torch.func.functional_call(model.visual, tower, pixels(model))


@idiom("a model made on meta and materialised: to_empty, load_state_dict")
def _() -> Any:
    with torch.device("meta"):
        model = CLIP(*VIT)
    model = model.to_empty(device="cpu")
    model.load_state_dict(prototype(VIT).state_dict())
    return model.eval().encode_image(pixels(model)), [name for name, _ in model.named_buffers()]


@idiom("load_state_dict of a part: strict=False")
def _() -> Any:
    model = vit()
    result = model.load_state_dict({"visual.proj": torch.zeros(64, 32)}, strict=False)
    return len(result.missing_keys), result.unexpected_keys, model.encode_image(pixels(model))


@idiom("load_state_dict that does not fit")
def _() -> Any:
    return vit().load_state_dict({"nothing": torch.zeros(1)})


@idiom("state dict: keys and shapes")
def _() -> Any:
    return {key: list(value.shape) for key, value in resnet().state_dict().items()}


@idiom("half(), and back to float()")
def _() -> Any:
    model = vit().half()
    return model.dtype, model.float().encode_image(pixels(model))


@idiom("double() of a ResNet's image tower")
def _() -> Any:
    model = resnet()
    model.visual.double()
    return model.dtype, model.encode_image(pixels(model)).dtype


@idiom("deepcopy, pickle, torch.save of a whole model")
def _() -> Any:
    model, buffer = vit(), io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    return [one.encode_image(pixels(model)) for one in again]


@idiom("torch.jit.trace of model.visual")
def _() -> Any:
    model = vit()
    return torch.jit.trace(model.visual, pixels(model))(pixels(model))


@idiom("repr of the model, modules by name")
def _() -> Any:
    return repr(vit()), [name for name, _ in resnet().named_modules()]


# Surgery


@idiom("visual.proj = None: unprojected features")
def _() -> Any:
    model = vit()
    model.visual.proj = None
    return model.encode_image(pixels(model))


@idiom("attnpool replaced by Identity: a feature map")
def _() -> Any:
    model = resnet()
    model.visual.attnpool = nn.Identity()
    return model.encode_image(pixels(model))


@idiom("attnpool = None")
def _() -> Any:
    model = resnet()
    model.visual.attnpool = None
    return model.encode_image(pixels(model))


@idiom("the text tower is deleted to save memory")
def _() -> Any:
    model = vit()
    del model.transformer, model.token_embedding
    return model.encode_image(pixels(model)), sum(p.numel() for p in model.parameters())


@idiom("initialize_parameters without text_projection, without attnpool")
def _() -> Any:
    model, other = vit(), resnet()
    model.text_projection, other.visual.attnpool = None, None
    torch.manual_seed(3)
    model.initialize_parameters()
    other.initialize_parameters()
    return model.token_embedding.weight[:2, :4], other.positional_embedding[:2, :4]


@idiom("start values after a seed")
def _() -> Any:
    torch.manual_seed(5)
    return {name: p.detach().flatten()[:2] for name, p in CLIP(*RESNET).named_parameters()}


@idiom("start values of the classes alone, after a seed")
def _() -> Any:
    torch.manual_seed(6)
    tower, pool = VisionTransformer(32, 8, 64, 2, 1, 32), clip.model.AttentionPool2d(2, 64, 4, 32)
    return tower.proj[:2, :3], tower.class_embedding[:3], pool.positional_embedding[:2, :3], pool.c_proj.weight[:2, :2]


@idiom("hooks on blocks see (L, B, W)")
def _() -> Any:
    model, seen = vit(), []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda _m, _i, output: seen.append(output))
    model.encode_image(pixels(model))
    return seen


@idiom("hooks on the ResNet's stages")
def _() -> Any:
    model, seen = resnet(), []
    for stage in (model.visual.layer1, model.visual.layer4, model.visual.relu3, model.visual.avgpool):
        stage.register_forward_hook(lambda _m, _i, output: seen.append(output))
    model.encode_image(pixels(model))
    return seen


@idiom("hooks on the attention pool's projections do not fire")
def _() -> Any:
    model, seen = resnet(), []
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        getattr(model.visual.attnpool, name).register_forward_hook(lambda *_: seen.append(1))
    model.encode_image(pixels(model))
    return len(seen)


@idiom("hooks on out_proj do not fire, on attn, c_fc and ln_1 they do")
def _() -> Any:
    model, seen = vit(), []
    block = model.visual.transformer.resblocks[0]
    named = {"out": block.attn.out_proj, "fc": block.mlp.c_fc, "ln": block.ln_1, "attn": block.attn}
    for name, module in named.items():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model.encode_image(pixels(model))
    return seen


@idiom("a hook on the image tower sees what encode_image gives it")
def _() -> Any:
    model, seen = vit(), []
    model.visual.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model.encode_image(pixels(model).double())
    return seen


@idiom("Grad-CAM: activations and gradients of layer4")
def _() -> Any:
    model, kept = resnet(), {}
    model.visual.layer4.register_forward_hook(lambda _m, _i, output: kept.update(a=output))
    model.visual.layer4.register_full_backward_hook(lambda _m, _i, gradients: kept.update(g=gradients[0]))
    model(pixels(model).requires_grad_(), tokens())[0][0, 0].backward()
    return kept["a"], kept["g"]


@idiom("MaskCLIP: v_proj and c_proj of the pool as 1 x 1 convolutions")
def _() -> Any:
    pool, x = resnet().visual.attnpool, torch.ones(1, 512, 2, 2)
    value = nn.functional.conv2d(x, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
    return nn.functional.conv2d(value, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)


@idiom("the attention pool called directly")
def _() -> Any:
    return resnet().visual.attnpool(generated(64)[0].reshape(1, -1)[:, :2048].reshape(1, 512, 2, 2))


@idiom("attention inside the pool is replaced: F.multi_head_attention_forward")
def _() -> Any:
    model, seen, kept = resnet(), [], nn.functional.multi_head_attention_forward
    nn.functional.multi_head_attention_forward = lambda *a, **k: (seen.append(sorted(k)), kept(*a, **k))[1]
    try:
        model.encode_image(pixels(model))
    finally:
        nn.functional.multi_head_attention_forward = kept
    return len(seen)


@idiom("in_proj_weight split into q, k, v: CLIP Surgery")
def _() -> Any:
    attn = vit().visual.transformer.resblocks[-1].attn
    return [part.shape for part in attn.in_proj_weight.chunk(3)], attn.num_heads, attn.head_dim, attn.batch_first


@idiom("a block's attention method replaced: explainability")
def _() -> Any:
    model = vit()
    block = model.visual.transformer.resblocks[0]
    block.attention = lambda x: block.attn(x, x, x, need_weights=True)[0] * 2
    return model.encode_image(pixels(model))


@idiom("attention weights asked for")
def _() -> Any:
    x = generated(64)[0].flatten()[: 17 * 2 * 64].reshape(17, 2, 64)
    block = vit().visual.transformer.resblocks[0]
    return block.attn(x, x, x, need_weights=True, average_attn_weights=False)[1]


@idiom("the mask of a block: values, shared, none in the image tower")
def _() -> Any:
    model = vit()
    blocks = model.transformer.resblocks
    return (
        blocks[0].attn_mask,
        blocks[0].attn_mask is blocks[1].attn_mask,
        model.visual.transformer.resblocks[0].attn_mask,
    )


@idiom("the mask is cast to what comes in, and kept")
def _() -> Any:
    model = vit()
    block = model.transformer.resblocks[0]
    block.attn.double()
    block.attention(torch.ones(77, 1, 64, dtype=torch.float64))
    return block.attn_mask.dtype, "attn_mask" in dict(model.named_buffers())


@idiom("a longer context: Long-CLIP")
def _() -> Any:
    model = vit()
    model.context_length = 80
    position = model.positional_embedding.data
    model.positional_embedding = nn.Parameter(torch.cat([position, position[:3]]))
    for block in model.transformer.resblocks:
        block.attn_mask = model.build_attention_mask()
    return model.encode_text(clip.tokenize(TEXTS, context_length=80))


@idiom("positional embeddings interpolated to another resolution")
def _() -> Any:
    model = vit()
    position = model.visual.positional_embedding.data
    grid = position[1:].T.reshape(1, 64, 4, 4)
    grid = nn.functional.interpolate(grid, (6, 6), mode="bilinear").reshape(64, 36).T
    model.visual.positional_embedding = nn.Parameter(torch.cat([position[:1], grid]))
    return model.encode_image(generated(48))


@idiom("conv1 for four channels")
def _() -> Any:
    model = vit()
    old = model.visual.conv1.weight.data
    model.visual.conv1 = nn.Conv2d(4, 64, 8, 8, bias=False)
    model.visual.conv1.weight.data = torch.cat([old, old[:, :1]], dim=1)
    return model.encode_image(torch.ones(1, 4, 32, 32))


@idiom("a subclass of CLIP overrides encode_image")
def _() -> Any:
    class Mine(CLIP):
        def encode_image(self, image: Tensor) -> Tensor:
            return super().encode_image(image) * 2

    model = Mine(*VIT).eval()
    model.load_state_dict(vit().state_dict())
    return model.encode_image(pixels(model)), model(pixels(model), tokens())[0]


@idiom("CLIP.encode_image patched on the class")
def _() -> Any:
    kept = CLIP.encode_image
    CLIP.encode_image = lambda self, image: kept(self, image) + 1
    try:
        return vit().encode_image(pixels(vit())), vit()(pixels(vit()), tokens())[0]
    finally:
        CLIP.encode_image = kept


@idiom("LayerNorm.forward patched on the class")
def _() -> Any:
    kept = LayerNorm.forward
    LayerNorm.forward = lambda self, x: kept(self, x) * 2
    try:
        return vit().encode_image(pixels(vit())), vit().encode_text(tokens())
    finally:
        LayerNorm.forward = kept


@idiom("the image tower wrapped in a Sequential")
def _() -> Any:
    model = vit()
    model.visual = nn.Sequential(model.visual)
    return model.visual(pixels(vit()))


@idiom("LoRA by replacing c_fc")
def _() -> Any:
    model = vit()
    mlp = model.visual.transformer.resblocks[0].mlp
    mlp.c_fc = nn.Sequential(mlp.c_fc, nn.Identity())
    return model.encode_image(pixels(model))


@idiom("VPT: tokens put after the class token, blocks called one by one")
def _() -> Any:
    visual = vit().visual
    x = visual.conv1(pixels(vit())).flatten(2).permute(0, 2, 1)
    x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], dim=1) + visual.positional_embedding
    x = torch.cat([x, torch.zeros(2, 3, 64)], dim=1)
    x = visual.ln_pre(x).permute(1, 0, 2)
    for block in visual.transformer.resblocks:
        x = block(x)
    return visual.ln_post(x.permute(1, 0, 2)[:, 0]) @ visual.proj


@idiom("a tower's blocks are cut")
def _() -> Any:
    model = vit()
    model.visual.transformer.resblocks = model.visual.transformer.resblocks[:-1]
    return model.encode_image(pixels(model))


@idiom("classes built on their own: Transformer, blocks, QuickGELU, LayerNorm")
def _() -> Any:
    torch.manual_seed(0)
    transformer, x = Transformer(32, 2, 4), torch.randn(5, 2, 32)
    block = ResidualAttentionBlock(32, 4, attn_mask=torch.zeros(5, 5))
    return transformer(x), block(x), QuickGELU()(x), LayerNorm(32)(x)


@idiom("LayerNorm of fp16 and of bf16")
def _() -> Any:
    return LayerNorm(8)(torch.arange(8).half()), LayerNorm(8)(torch.arange(8).bfloat16())


@idiom("convert_weights of any module, and of one with proj = None")
def _() -> Any:
    module = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.LayerNorm(2))
    module.proj = None
    clip.model.convert_weights(module)
    return [str(p.dtype) for p in module.parameters()]


@idiom("parameters frozen by name: adapters, linear probes")
def _() -> Any:
    model = vit()
    for name, p in model.named_parameters():
        p.requires_grad_("ln_" in name)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@idiom("parameter groups by name and dimension")
def _() -> Any:
    named = list(vit().named_parameters())
    return len([n for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n])


@idiom("WiSE-FT: two state dicts mixed")
def _() -> Any:
    one, two = vit(), vit()
    two.visual.proj.data.mul_(0)
    mixed = {k: 0.5 * v + 0.5 * two.state_dict()[k] for k, v in one.state_dict().items()}
    one.load_state_dict(mixed)
    return one.encode_image(pixels(one))


@idiom("moving averages by .data: MoCo")
def _() -> Any:
    one, two = vit(), vit()
    with torch.no_grad():
        one.encode_image(pixels(one))
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            p.data = p.data * 0.9 + (q.data + 0.1) * 0.1
        return one.encode_image(pixels(one))


@idiom("weight norm of a projection")
def _() -> Any:
    model = vit()
    nn.utils.parametrizations.weight_norm(model.visual.transformer.resblocks[0].mlp.c_fc)
    return model.encode_image(pixels(model))


@idiom("vmap over images: torch.func")
def _() -> Any:
    model = vit()
    return torch.func.vmap(lambda x: model.encode_image(x[None])[0])(pixels(model))


@idiom("sizes of the tower")
def _() -> Any:
    visual = resnet().visual
    return visual.output_dim, visual.input_resolution, visual.attnpool.positional_embedding.shape, visual._inplanes

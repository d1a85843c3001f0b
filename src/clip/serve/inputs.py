"""Read what a request wants embedded, in every shape that clients send: each item becomes a text, an image or a URL.

    "a red boat"                                    a text                          OpenAI
    "data:image/png;base64,..."                     an image, without another word  OpenAI's SDKs, LiteLLM
    {"input": "https://...", "modality": "image"}   strings are images              infinity
    {"text": ...} {"image": ...} {"bytes": ...} {"url": ...}                        Jina, SGLang, LlamaIndex
    {"type": "image_url", "image_url": {"url": ...}}, or image_url as a string      OpenAI's chat, LlamaIndex
    {"content": [parts]}                            one vector of these parts       OpenRouter, Cohere
    {"messages": [{"role": ..., "content": ...}]}   one vector of a conversation    vLLM

A string that holds an image is a data URI, base64 alone where an image is expected, or a URL. Knows nothing about HTTP.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast
from urllib.parse import unquote_to_bytes

from ..errors import InputError, quote

TOKENS = (
    "texts: token ids of another model's vocabulary mean nothing here",
    "Send the texts themselves; with LangChain pass OpenAIEmbeddings(..., check_embedding_ctx_length=False).",
)
IMAGE_URI = "data:image/"
IMAGE_KEYS = ("image", "image_url", "image_base64", "input_image", "bytes", "url", "uri", "source")
INNER_KEYS = ("url", "data", "bytes", "base64", "b64_json")  # of an object that holds an image
OTHER_MEDIA = ("audio", "audio_url", "input_audio", "video", "video_url", "file", "pdf")


@dataclass(frozen=True)
class TextInput:
    """A text to embed, and its place in the request, as in `input[3]`."""

    place: str
    text: str


@dataclass(frozen=True)
class ImageInput:
    """An encoded image to embed."""

    place: str
    data: bytes


@dataclass(frozen=True)
class AddressInput:
    """An image that has to be fetched first."""

    place: str
    url: str


Input = TextInput | ImageInput | AddressInput


def read_inputs(body: Mapping[str, Any]) -> list[Input]:
    """Return the items of a request of /v1/embeddings, in its order. Raises: InputError."""
    messages, value = body.get("messages"), body.get("input")
    modality = body.get("modality") or "text"
    if modality not in ("text", "image"):
        raise InputError("modality", f"found {_name(modality)}", "text or image", "Pass one of them.")
    if messages is not None and value is not None:
        raise InputError("messages", "found input too", "one of the two", "Leave one of them out.")
    if messages is not None:
        return _read_conversations(messages)
    if value is None:
        raise InputError("input", "is missing", "a text, an image, or a list of them", "Pass input.")
    if _is_list(value) and value and all(isinstance(item, Mapping) and "role" in item for item in value):
        return [_read_conversation(value, "input")]
    items = value if _is_list(value) else [value]
    if not items:
        raise InputError("input", "is an empty list", "at least one text or image", "Pass one.")
    if any(_is_tokens(item) for item in items):
        raise InputError("input", "found token ids", *TOKENS)
    place = "input[{}]" if _is_list(value) else "input"
    return [_read_item(item, place.format(number), modality) for number, item in enumerate(items)]


def read_parts(value: object, place: str) -> Input:
    """Return the one item that a list of content parts, or a text, makes. Raises: InputError."""
    return _join(_read_content(value, place), place)


def read_image(text: str, place: str) -> ImageInput | AddressInput:
    """Return the image that a string holds: a data URI, a URL, or base64. Raises: InputError."""
    head = text[:64].lstrip().lower()
    if head.startswith(("http://", "https://")):
        return AddressInput(place, text.strip())
    if head.startswith("data:"):
        return ImageInput(place, _decode_uri(text.strip(), place))
    if "://" in head:
        found = f"found a URL of the scheme {quote(head.partition(':')[0])}"
        raise InputError(place, found, "a data URI: data:image/png;base64,...", "Send the image itself.")
    return ImageInput(place, _decode_base64(text, place))


def _read_item(value: object, place: str, modality: str) -> Input:
    if isinstance(value, str):
        is_image = modality == "image" or value[: len(IMAGE_URI)].lower() == IMAGE_URI
        return read_image(value, place) if is_image else TextInput(place, value)
    if isinstance(value, Mapping):
        if "content" in value:
            return read_parts(value["content"], f"{place}.content")
        return _join(_read_part(cast("Mapping[str, Any]", value), place), place)
    found, expected = f"found {_name(value)}", "a text, or an object with an image or a text"
    raise InputError(place, found, expected, "Send images as data:image/...;base64,... strings.")


def _read_conversations(value: object) -> list[Input]:
    if _is_list(value) and value and all(_is_list(item) for item in value):
        return [_read_conversation(item, f"messages[{number}]") for number, item in enumerate(value)]
    return [_read_conversation(value, "messages")]


def _read_conversation(value: object, place: str) -> Input:
    """Return the one item that the messages of a conversation make."""
    if not _is_list(value) or not value or not all(isinstance(item, Mapping) for item in value):
        raise InputError(place, f"found {_name(value)}", "a list of messages", "Pass objects with role and content.")
    parts: list[Input] = []
    for number, message in enumerate(cast("Sequence[Mapping[str, Any]]", value)):
        parts += _read_content(message.get("content"), f"{place}[{number}].content")
    return _join(parts, place)


def _read_content(value: object, place: str) -> list[Input]:
    if isinstance(value, str):
        return [_read_item(value, place, "text")]
    parts: list[Input] = []
    if isinstance(value, Mapping):
        return _read_part(cast("Mapping[str, Any]", value), place)
    if not _is_list(value):
        raise InputError(place, f"found {_name(value)}", "a text or a list of parts", "Pass one.")
    for number, part in enumerate(value):
        where = f"{place}[{number}]"
        if isinstance(part, Mapping):
            parts += _read_part(cast("Mapping[str, Any]", part), where)
        else:
            parts.append(_read_item(part, where, "text"))
    return parts


def _read_part(part: Mapping[str, Any], place: str) -> list[Input]:
    """Return the text and the image that an object holds; it may hold both, one of them empty."""
    parts: list[Input] = []
    text = part.get("text")
    if text is not None:
        if not isinstance(text, str):
            raise InputError(f"{place}.text", f"found {_name(text)}", "a text", "Pass one.")
        parts.append(_read_item(text, f"{place}.text", "text"))
    images = [key for key in IMAGE_KEYS if part.get(key) not in (None, "")]
    parts += [_read_image_value(part[key], f"{place}.{key}") for key in images]
    if any(part.get(key) for key in OTHER_MEDIA):
        other = next(key for key in OTHER_MEDIA if part.get(key))
        raise InputError(f"{place}.{other}", f"found {other}", "an image or a text", "Leave it out.")
    if not parts:
        keys = ", ".join(quote(str(key)) for key in list(part)[:8])
        found = f"found an object with {f'the keys {keys}' if keys else 'nothing in it'}"
        raise InputError(place, found, "text, image, image_url, bytes or url", "Pass one of them.")
    return parts


def _read_image_value(value: object, place: str) -> Input:
    if isinstance(value, str):
        return read_image(value, place)
    if isinstance(value, Mapping):
        for key in INNER_KEYS:
            if isinstance(inner := value.get(key), str) and inner:
                return read_image(inner, f"{place}.{key}")
    raise InputError(place, f"found {_name(value)}", "a data URI, base64 or an object with url", "Pass one.")


def _join(parts: Sequence[Input], place: str) -> Input:
    """Return the one item that several parts make. Empty texts count for nothing beside others."""
    images = [part for part in parts if not isinstance(part, TextInput)]
    texts = [part.text for part in parts if isinstance(part, TextInput)]
    if len(images) > 1:
        remedy = "Send one item for each image."
        raise InputError(place, f"found {len(images)} images in one item", "one, as an item is one vector", remedy)
    if images:
        if any(text.strip() for text in texts):
            expected = "one of them: CLIP has a vector for an image and one for a text, and none for both together"
            raise InputError(place, "found an image and a text in one item", expected, "Send two items.")
        return images[0]
    if not texts:
        raise InputError(place, "found neither a text nor an image", "one of them", "Pass one.")
    return TextInput(place, "\n".join(texts))  # the tokenizer takes all white space for the same


def _decode_uri(uri: str, place: str) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma:
        raise InputError(place, f"found {quote(uri)}", "data:image/png;base64,...", "Put a comma before the data.")
    if head.lower().rstrip().endswith(";base64"):
        return _decode_base64(payload, place)
    return unquote_to_bytes(payload)


def _decode_base64(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    # As some clients write it: in lines, percent-encoded, for URLs, without the padding.
    plain = unquote_to_bytes(text) if "%" in text else text.encode("ascii", "replace")
    plain = plain.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as exc:
        found, expected = f"cannot be decoded ({exc}): {quote(text)}", "an image in base64, or a data URI"
        raise InputError(place, found, expected, "Encode the file's bytes with base64.") from exc


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_tokens(value: object) -> bool:
    """Whether a value is a token id, or a list of them."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, int) and not isinstance(first, bool)


def _name(value: object) -> str:
    """Return a JSON value as an error names it."""
    if isinstance(value, str):
        return quote(value)
    names = {"dict": "an object", "list": "a list", "bool": "a boolean", "int": "a number", "float": "a number"}
    return names.get(type(value).__name__, "null")

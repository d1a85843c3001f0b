"""Vectors as the JSON that clients read."""

from __future__ import annotations

import base64
import json
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import Response

from ..errors import ClipError, InputError
from .request_error import RequestError
from .service import Embedded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMATS = ("float", "base64")


@dataclass(frozen=True)
class AnswerOptions:
    """How a client wants its vectors."""

    as_base64: bool = False
    normalize: bool = True
    truncate: bool = False
    keep_failures: bool = False  # null and an error in the place of a bad item's vector

    def spell(self, item: Embedded) -> list[float] | str:
        """Return a vector as a list, or as little-endian float32 in base64."""
        vector = item.vector if self.normalize else item.features
        if self.as_base64:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        return vector.astype(np.float64).tolist()


def read_options(body: Mapping[str, Any], dim: int) -> AnswerOptions:
    """Return the options of a request of /v1/embeddings. Raises: InputError for one that cannot be met."""
    wanted = body.get("encoding_format") or body.get("embedding_type") or "float"
    if isinstance(wanted, list) and len(wanted) == 1:
        wanted = wanted[0]
    if wanted not in FORMATS:
        name = "encoding_format" if body.get("encoding_format") else "embedding_type"
        raise InputError(name, f"found {wanted!r}"[:80], "float or base64", "Pass one of them.")
    if body.get("dimensions") not in (None, dim):
        expected = f"{dim}, or none: the first numbers of a CLIP vector alone mean little"
        raise InputError("dimensions", f"found {body['dimensions']!r}"[:80], expected, "Leave it out.")
    if body.get("embed_dtype") not in (None, "float32"):
        raise InputError("embed_dtype", f"found {body['embed_dtype']!r}"[:80], "float32", "Leave it out.")
    if body.get("endianness") not in (None, "native", "little"):
        raise InputError("endianness", f"found {body['endianness']!r}"[:80], "little", "Leave it out.")
    on_error = body.get("on_error") or "fail"
    if on_error not in ("fail", "null"):
        raise InputError("on_error", f"found {on_error!r}"[:80], "fail or null", "Pass one of them.")
    normalize = all(read_flag(body, name, default=True) for name in ("normalized", "normalize"))
    return AnswerOptions(wanted == "base64", normalize, read_flag(body, "truncate", default=False), on_error == "null")


def read_flag(body: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return a boolean of a request; forms and addresses have it as a word. Raises: InputError."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise InputError(name, f"found {value!r}"[:80], "true or false", "Pass one of them.")


def make_embeddings_answer(
    model: str, results: Sequence[Embedded | ClipError], options: AnswerOptions
) -> dict[str, Any]:
    """Return the answer of /v1/embeddings, one entry for each item, in order."""
    entries: list[dict[str, Any]] = []
    for number, result in enumerate(results):
        if isinstance(result, ClipError):
            error = RequestError.of(result).body["error"]
            entries.append({"object": "embedding", "index": number, "embedding": None, "error": error})
        else:
            entries.append({"object": "embedding", "index": number, "embedding": options.spell(result)})
    tokens, images = count_usage(results)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "images": images}
    own_id = f"embd-{secrets.token_hex(12)}"
    return {
        "object": "list",
        "id": own_id,
        "created": int(time.time()),
        "model": model,
        "data": entries,
        "usage": usage,
    }


def count_usage(results: Sequence[Embedded | ClipError]) -> tuple[int, int]:
    """Return how many tokens of texts, and how many images, were embedded."""
    good = [result for result in results if isinstance(result, Embedded)]
    return sum(result.tokens for result in good), sum(not result.tokens for result in good)


def dump(value: object) -> bytes:
    """Return JSON."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def make_json_response(value: object, status: int = 200) -> Response:
    """Return the answer with this value."""
    return Response(dump(value), status, media_type="application/json")

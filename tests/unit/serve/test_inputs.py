"""What clients send, in every shape, becomes the items that they mean; what means nothing is refused by its place."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip.errors import ClipError, InputError
from clip.serve.inputs import AddressInput, ImageInput, TextInput, read_inputs

DATA = b"\x89PNG\r\n\x1a\n and more \xff\xfe?>"
B64 = base64.b64encode(DATA).decode()
URI = f"data:image/png;base64,{B64}"
URL = "https://example.com/a.png"


def image_part(url: object = URI) -> dict[str, object]:
    return {"type": "image_url", "image_url": url}


SHAPES = {
    "OpenAI, a text": ({"input": "a"}, ["a"]),
    "OpenAI, texts": ({"input": ["a", "b"]}, ["a", "b"]),
    "a data URI as it is": ({"input": URI}, [DATA]),
    "texts and images mixed": ({"input": ["a", URI, "b"]}, ["a", DATA, "b"]),
    "upper case": ({"input": f"DATA:IMAGE/PNG;BASE64,{B64}"}, [DATA]),
    "infinity, a URI": ({"input": URI, "modality": "image"}, [DATA]),
    "infinity, a URL": ({"input": [URL], "modality": "image"}, [URL]),
    "infinity, a URL as a text": ({"input": [URL], "modality": "text"}, ["=" + URL]),
    "a URL as a text": ({"input": URL}, ["=" + URL]),
    "Jina and SGLang": ({"input": [{"image": URI}, {"text": "a"}]}, [DATA, "a"]),
    "Jina, base64 alone": ({"input": [{"image": B64}]}, [DATA]),
    "SGLang, an empty text beside": ({"input": [{"text": "", "image": URI}]}, [DATA]),
    "LlamaIndex, bytes": ({"input": [{"bytes": B64}]}, [DATA]),
    "LlamaIndex, url": ({"input": [{"url": URL}]}, [URL]),
    "image_url as an object": ({"input": [image_part({"url": URI})]}, [DATA]),
    "image_url as a string": ({"input": [image_part(URI)]}, [DATA]),
    "one object": ({"input": image_part({"url": URI, "detail": "low"})}, [DATA]),
    "a text part": ({"input": [{"type": "text", "text": "a"}]}, ["a"]),
    "OpenRouter": ({"input": [{"content": [image_part({"url": URI})]}, {"content": "a"}]}, [DATA, "a"]),
    "vLLM": ({"messages": [{"role": "user", "content": [image_part({"url": URI})]}]}, [DATA]),
    "vLLM, with an empty text": (
        {"messages": [{"role": "user", "content": [image_part({"url": URI}), {"type": "text", "text": ""}]}]},
        [DATA],
    ),
    "vLLM, texts": ({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}, ["a\nb"]),
    "vLLM, several": (
        {"messages": [[{"role": "user", "content": "a"}], [{"role": "user", "content": [image_part()]}]]},
        ["a", DATA],
    ),
    "vLLM, messages as input": ({"input": [{"role": "user", "content": [image_part()]}]}, [DATA]),
    "Anthropic": ({"input": [{"type": "image", "source": {"media_type": "image/png", "data": B64}}]}, [DATA]),
    "Voyage": ({"input": [{"content": [{"type": "image_base64", "image_base64": URI}]}]}, [DATA]),
    "base64 in lines": ({"input": [{"image": "\n".join(B64[i : i + 8] for i in range(0, len(B64), 8))}]}, [DATA]),
    "base64 without padding": ({"input": [{"image": B64.rstrip("=")}]}, [DATA]),
    "base64 for URLs": ({"input": [{"image": base64.urlsafe_b64encode(DATA).decode()}]}, [DATA]),
    "percent-encoded base64": ({"input": URI.replace("+", "%2B").replace("=", "%3D")}, [DATA]),
    "a URI without base64": ({"input": "data:image/svg+xml,%3Csvg%2F%3E"}, [b"<svg/>"]),
    "an empty text": ({"input": ""}, [""]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_what_its_client_means(name: str) -> None:
    body, expected = SHAPES[name]
    found = [
        item.data if isinstance(item, ImageInput) else item.url if isinstance(item, AddressInput) else item.text
        for item in read_inputs(json.loads(json.dumps(body)))
    ]
    assert found == [value.removeprefix("=") if isinstance(value, str) else value for value in expected]
    for item, value in zip(read_inputs(body), expected, strict=True):
        is_text = isinstance(value, str) and value != URL
        assert isinstance(item, TextInput) == is_text


REFUSED = {
    "nothing": ({}, "input", "is missing"),
    "an empty list": ({"input": []}, "input", "empty list"),
    "token ids": ({"input": [1, 2, 3]}, "input", "check_embedding_ctx_length=False"),
    "lists of token ids": ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
    "a token id": ({"input": 7}, "input", "check_embedding_ctx_length=False"),
    "an image and a text": ({"input": [{"text": "a", "image": URI}]}, "input[0]", "two items"),
    "an image and a text in a message": (
        {"messages": [{"role": "user", "content": [image_part(), {"type": "text", "text": "what is it?"}]}]},
        "messages",
        "CLIP has a vector for an image and one for a text",
    ),
    "two images in a message": (
        {"messages": [{"role": "user", "content": [image_part(), image_part()]}]},
        "messages",
        "2 images",
    ),
    "input and messages": ({"input": "a", "messages": []}, "messages", "one of the two"),
    "no base64": ({"input": ["a", {"image": "not base64!"}]}, "input[1].image", "base64"),
    "a URI without data": ({"input": "data:image/png"}, "input", "comma"),
    "a file": ({"input": [{"url": "file:///etc/passwd"}]}, "input[0].url", "'file'"),
    "a video": ({"input": [{"type": "video_url", "video_url": {"url": URL}}]}, "input[0].video_url", "video"),
    "an unknown object": ({"input": [{"picture": URI}]}, "input[0]", "'picture'"),
    "an empty object": ({"input": [{}]}, "input[0]", "nothing in it"),
    "null": ({"input": ["a", None]}, "input[1]", "null"),
    "a boolean": ({"input": [True]}, "input[0]", "boolean"),
    "a modality": ({"input": "a", "modality": "audio"}, "modality", "'audio'"),
    "a number as text": ({"input": [{"text": 3}]}, "input[0].text", "a number"),
    "messages that are none": ({"messages": "a"}, "messages", "list of messages"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused_by_its_place(name: str) -> None:
    body, place, words = REFUSED[name]
    with pytest.raises(InputError) as refused:
        read_inputs(body)
    assert refused.value.item == place
    assert words in str(refused.value)
    assert refused.value.remedy


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([URI, URL, B64, "data:image/"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "image", "image_url", "url", "content", "role", "type", "source", "bytes", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["input", "messages", "modality"]), values))
def test_any_json_gives_items_or_one_of_our_errors(body: dict[str, object]) -> None:
    try:
        items = read_inputs(body)
    except ClipError as exc:
        assert str(exc)
    else:
        assert all(isinstance(item, TextInput | ImageInput | AddressInput) for item in items)

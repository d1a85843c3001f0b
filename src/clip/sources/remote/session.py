"""How aiohttp's sessions are set up: bodies come as they are sent, redirects are followed as they are written."""

from __future__ import annotations

import string
from typing import Any
from urllib.parse import quote


def describe_session() -> dict[str, Any]:
    """Return the settings of aiohttp's sessions: bodies come as they are sent, and redirects are followed as written.

    The address that a redirect names may be signed over its very bytes, so it is not quoted anew.
    """
    import aiohttp
    from multidict import CIMultiDict

    class Response(aiohttp.ClientResponse):
        """Quotes what no address may hold, spaces for instance, in the header that names the next one; nothing else."""

        @property
        def headers(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
            headers = super().headers
            location = headers.get("Location", "")
            if location.isascii() and location.isprintable() and " " not in location:
                return headers
            encoded = location.encode("utf-8", "surrogateescape")
            return CIMultiDict({**headers, "Location": quote(encoded, safe=string.punctuation)})

    return {"auto_decompress": False, "requote_redirect_url": False, "response_class": Response}

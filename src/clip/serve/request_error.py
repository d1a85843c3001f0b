"""A request that gets no answer but an error, in the shape that OpenAI's clients read, on every path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ClipError, ImageError, TextTooLongError, UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The `type` of OpenAI's errors by status; other statuses below 500 are the caller's.
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES: dict[type, tuple[int, str]] = {  # of our own errors; of others 400, invalid_value
    UnknownModelError: (404, "model_not_found"),
    ImageError: (400, "image_decode_error"),
    TextTooLongError: (400, "context_length_exceeded"),
}


class RequestError(Exception):
    """An error to answer a request with: the status, the fields of OpenAI's error object, and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        *,
        retry_after_s: float | None = None,
        close: bool = False,
    ) -> None:
        """With `close` the connection ends, as for a body that was not read to its end."""
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s, self.close = retry_after_s, close

    @classmethod
    def of(cls, error: ClipError) -> RequestError:
        """Return the refusal that one of our errors becomes; its item is the request's parameter."""
        status, code = CODES.get(type(error), (400, "invalid_value"))
        return cls(status, error.render(), code, error.item.strip("`"))

    @property
    def body(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """What clients read to try again: OpenAI's SDKs the milliseconds, others the whole seconds."""
        headers = {"connection": "close"} if self.close else {}
        if self.retry_after_s is not None:
            whole = max(1, -int(-self.retry_after_s // 1))
            headers |= {"retry-after": str(whole), "retry-after-ms": str(int(1000 * self.retry_after_s))}
        return headers

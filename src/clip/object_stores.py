"""Connect to object stores over obstore: settings as users have them, retries, and errors as ours."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from .errors import InputError, StoreUnreachableError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from obstore.store import ClientConfig, ObjectStore, RetryConfig

STATUS, CODE = re.compile(r"status code: (\d{3}[^:\n]*)"), re.compile(r"<Code>(\w+)</Code>")
MAX_REASON = 300  # characters of a library's message


@dataclass(frozen=True)
class StorePatience:
    """When a request counts as failed, and how often it is repeated."""

    timeout_s: float = 120.0  # 64 MiB by 4.5 Mbit/s
    connect_s: float = 15.0
    attempts: int = 8
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0
    total_s: float = 240.0  # below the five minutes that a signature is valid


PATIENCE = StorePatience()


@contextmanager
def translate_store_errors(path: Path) -> Generator[None]:
    """Raise FileNotFoundError for an object that is not there, StoreUnreachableError for what else obstore raises.

    A condition that does not hold passes, as the caller's.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError, StoreUnreachableError):
        raise
    except FileNotFoundError as exc:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from exc
    except (BaseError, OSError, ValueError) as exc:
        remedy = "Check the bucket, its region, the credentials and the network, and run again: what is written stays."
        raise StoreUnreachableError(path, f"cannot be reached ({_describe(exc)})", "an answer", remedy) from exc


def _describe(exc: Exception) -> str:
    """Return what a server answered, or else what obstore says in its first line, before its record of the request."""
    text = str(exc)
    if (status := STATUS.search(text)) is None:
        return next(iter(text.strip().splitlines()), type(exc).__name__)[:MAX_REASON]
    code = CODE.search(text)
    return f"its server answered {status[1]}{f', {code[1]}' if code else ''}"


@cache
def connect(scheme: str, bucket: str) -> ObjectStore:
    """Return the store of a bucket, by the user's settings; no request is made.

    Raises:  InputError where obstore is missing, or settings are missing or wrong.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as exc:
        remedy = "Run: pip install 'clip-turbo[remote]'"
        raise InputError(f"{scheme}://", f"{exc}", "the library for it", remedy) from exc
    options: ClientConfig = {
        "timeout": timedelta(seconds=PATIENCE.timeout_s),
        "connect_timeout": timedelta(seconds=PATIENCE.connect_s),
        "allow_http": True,  # only for an endpoint that says http://; the addresses of the services say https://
    }
    retry: RetryConfig = {
        "max_retries": PATIENCE.attempts - 1,
        "backoff": {
            "init_backoff": timedelta(seconds=PATIENCE.first_wait_s),
            "max_backoff": timedelta(seconds=PATIENCE.longest_wait_s),
        },
        "retry_timeout": timedelta(seconds=PATIENCE.total_s),
    }
    given = _find_aws_settings(bucket) if scheme == "s3" else {}
    try:
        return from_url(f"{scheme}://{bucket}", client_options=options, retry_config=retry, **given)
    except (BaseError, ValueError) as exc:
        raise _make_settings_error(f"{scheme}://{bucket}", exc) from exc


def _make_settings_error(item: str, exc: Exception) -> InputError:
    expected = "an account, a region and credentials"
    return InputError(item, f"cannot be set up ({_describe(exc)})", expected, "Set them, as docs/scale.md says.")


def _find_aws_settings(bucket: str) -> dict[str, Any]:
    """Return credentials, region and endpoint of a profile, which object_store does not read; botocore does.

    Those of the environment's variables are object_store's own. Raises: InputError for a profile that is not there.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        return {}
    session = Session()
    try:
        credentials = session.get_credentials()
        region, endpoint = session.get_config_variable("region"), session.get_scoped_config().get("endpoint_url")
    except BotoCoreError as exc:
        raise _make_settings_error(f"s3://{bucket}", exc) from exc
    settings = {"region": region, "endpoint": endpoint}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value}
    if credentials is None:
        return given

    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        keys = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "token": frozen.token}
        return {**keys, "expires_at": getattr(credentials, "_expiry_time", None)}

    return given | {"credential_provider": provide}

"""A sitecustomize.py that cuts the process off the network, and leaves a file beside itself to show that it ran."""

import socket
from pathlib import Path
from typing import Any


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError("no network here")


Path(__file__ + ".ran").touch()
socket.socket.connect = socket.socket.connect_ex = refuse  # type: ignore[method-assign]
socket.getaddrinfo = socket.create_connection = refuse  # type: ignore[assignment]

"""`clip serve` in a process of its own, and clients of it over sockets."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

PATIENCE_S = 120
HOST = "127.0.0.1"


class ServerCommand:
    """The command in a process of its own."""

    def __init__(self, weights: Path, folder: Path, *flags: str, environment: Mapping[str, str] = os.environ) -> None:
        self.stderr = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clip", "serve", "-m", f"tiny={weights}", "--port", "0", *flags],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
        )
        said = self._wait_for(r"listening at http://127\.0\.0\.1:(\d+)")
        self.port = int(said[1])
        self._wait_for("ready: tiny")

    def _wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(pattern, Path(self.stderr.name).read_text()):
                return found
            time.sleep(0.02)
        raise AssertionError(Path(self.stderr.name).read_text())

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.stderr.close()

    def connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), PATIENCE_S)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def embed(self, *inputs: object) -> tuple[int, Any]:
        body = json.dumps({"input": list(inputs)}).encode()
        answer, content = self.ask("POST", "/v1/embeddings", body, content_type="application/json")
        return answer.status, json.loads(content)

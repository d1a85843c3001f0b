"""`clip serve` under load, on loopback: rate beside that of `Encoder`, latency when idle, and overload.

Usage: python bench/serve.py [--model ViT-B/32] [--untrained 1] [--images 600] [--clients 64] [--overload-seconds 20]

Everything runs on this machine. The clients are one process with one thread per connection, niced to 10; its CPU time
is printed, as it is taken from the server's. Each image is a JPEG of 500 x 375 px, sent as the body of a request;
answers are asked for in base64, as OpenAI's SDKs do. Prints a JSON line.

rate       --clients connections that each send --images / --clients images, one after the other;
           `Encoder.embed_images` of the same bytes before and after, in a process of its own
idle       one connection, one image at a time; beside the time of `Encoder` for one image, decoding included
overload   an open loop: images are sent at five times the rate whatever comes back, by as many threads as that needs
"""

import argparse
import base64
import io
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

HOST, PATH = "127.0.0.1", "/v1/embeddings?encoding_format=base64"
TOLERANCE = 1e-5
SENDERS = 400  # threads of the open loop, at most
ENCODE = """
import json, sys, time
from pathlib import Path
import clip
encoder = clip.Encoder(sys.argv[1], untrained=None if sys.argv[2] == "None" else int(sys.argv[2]))
images = [path.read_bytes() for path in sorted(Path(sys.argv[3]).iterdir())]
encoder.embed_images(images[:64])
single = []
for data in images[:40]:
    started = time.perf_counter()
    encoder.embed_images([data])
    single.append(time.perf_counter() - started)
started = time.perf_counter()
vectors = encoder.embed_images(images)
seconds = time.perf_counter() - started
if len(sys.argv) > 4:
    import numpy as np
    np.save(sys.argv[4], vectors)
print(json.dumps({"rate": len(images) / seconds, "single_s": sorted(single)[len(single) // 2]}))
"""


def draw(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
    return file.getvalue()


def encode(options: argparse.Namespace, folder: Path, vectors: Path | None = None) -> dict[str, float]:
    command = [sys.executable, "-c", ENCODE, options.model, str(options.untrained), str(folder)]
    done = subprocess.run([*command, *([str(vectors)] if vectors else [])], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class Server:
    """The command in a process of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        untrained = [] if options.untrained is None else ["--untrained", str(options.untrained)]
        command = [sys.executable, "-m", "clip", "serve", "-m", options.model, "--port", "0", "--access-log", "none"]
        self.process = subprocess.Popen([*command, *untrained, *options.flags], stderr=subprocess.PIPE, text=True)
        self.port = 0
        for line in self.process.stderr:
            if found := re.search(r"listening at http://[^:]+:(\d+)", line):
                self.port = int(found[1])
            if line.startswith("ready"):
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def resident(self) -> int:
        """Return the bytes of its memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024

    def connect(self) -> HTTPConnection:
        """Return a connection to it."""
        return HTTPConnection(HOST, self.port, timeout=120)


def ask(connection: HTTPConnection, data: bytes) -> tuple[int, bytes]:
    connection.request("POST", PATH, data, {"content-type": "image/jpeg"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def read_vector(body: bytes) -> np.ndarray:
    return np.frombuffer(base64.b64decode(json.loads(body)["data"][0]["embedding"]), "<f4")


def measure_rate(server: Server, images: list[bytes], clients: int, expected: np.ndarray) -> dict[str, float]:
    """Send all images from so many connections; compare each vector with that of its image."""
    wrong, seconds = [0] * clients, [list[float]() for _ in range(clients)]

    def run(client: int) -> None:
        connection = server.connect()
        for place in range(client, len(images), clients):
            started = time.perf_counter()
            status, body = ask(connection, images[place])
            seconds[client].append(time.perf_counter() - started)
            is_right = status == 200 and np.abs(read_vector(body) - expected[place]).max() < TOLERANCE
            wrong[client] += not is_right

    cpu, started = time.process_time(), time.perf_counter()
    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, ordered = time.perf_counter() - started, sorted(chain.from_iterable(seconds))
    return {
        "rate": len(images) / took,
        "p50_s": ordered[len(ordered) // 2],
        "p99_s": ordered[int(0.99 * len(ordered))],
        "wrong": sum(wrong),
        "clients_cpu_s": time.process_time() - cpu,
        "seconds": took,
    }


def measure_idle(server: Server, images: list[bytes]) -> float:
    connection, seconds = server.connect(), []
    for data in images[:60]:
        time.sleep(0.02)
        started = time.perf_counter()
        status, _ = ask(connection, data)
        if status != 200:
            raise RuntimeError(f"answered {status}")
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_overload(server: Server, images: list[bytes], rate: float, seconds: float) -> dict[str, object]:
    """Begin `rate` requests a second, whatever becomes of those before; then see how long recovery takes."""
    outcomes: list[tuple[str, float]] = []
    before, resident, end = server.resident(), [0], time.perf_counter() + seconds
    ticket, lock = [0], threading.Lock()
    began = time.perf_counter()
    probes: list[float] = []

    def send() -> None:
        connection = server.connect()
        while True:
            with lock:
                number = ticket[0]
                ticket[0] += 1
            due = began + number / rate
            if due > end:
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            started = time.perf_counter()
            try:
                status, body = ask(connection, images[number % len(images)])
            except OSError:
                connection.close()
                outcomes.append(("broken", 0.0))
                continue
            if status == 200:
                outcomes.append(("answered", time.perf_counter() - started))
            else:
                error = json.loads(body)["error"]
                is_formed = status in (429, 503) and set(error) == {"message", "type", "param", "code"}
                outcomes.append(("refused" if is_formed else "malformed", 0.0))

    def probe() -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            connection = server.connect()
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            connection.close()
            probes.append(time.perf_counter() - started)
            resident[0] = max(resident[0], server.resident())
            time.sleep(0.1)

    threads = [threading.Thread(target=send) for _ in range(SENDERS)] + [threading.Thread(target=probe)]
    cpu = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stopped = time.perf_counter()
    connection = server.connect()
    while ask(connection, images[0])[0] != 200:
        time.sleep(0.05)
    answered = sorted(took for kind, took in outcomes if kind == "answered")
    return {
        "goodput": len(answered) / (stopped - began),
        "sent": len(outcomes) / (stopped - began),
        "p50_s": answered[len(answered) // 2],
        "p99_s": answered[int(0.99 * len(answered))],
        "refused": sum(kind == "refused" for kind, _ in outcomes),
        "malformed": sum(kind in ("malformed", "broken") for kind, _ in outcomes),
        "recovery_s": time.perf_counter() - stopped,
        "probe_p99_s": sorted(probes)[int(0.99 * len(probes))],
        "resident_growth_bytes": resident[0] - before,
        "clients_cpu_s": time.process_time() - cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--untrained", type=int)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--overload-seconds", type=float, default=20)
    parser.add_argument("--flags", type=str.split, default=[], help="of clip serve, as one text")
    options = parser.parse_args()
    os.nice(10)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        folder.mkdir()
        images = [draw(number) for number in range(options.images)]
        for number, data in enumerate(images):
            (folder / f"{number:06}.jpg").write_bytes(data)
        os.nice(-10) if os.geteuid() == 0 else None
        before = encode(options, folder, Path(work) / "vectors.npy")
        expected = np.load(Path(work) / "vectors.npy")
        server = Server(options)
        os.nice(10)
        measure_rate(server, images[:64], options.clients, expected)
        served = measure_rate(server, images, options.clients, expected)
        print(json.dumps({"encoder": before, "served": served}), file=sys.stderr, flush=True)
        idle = measure_idle(server, images)
        print(json.dumps({"idle_s": idle, "resident_bytes": server.resident()}), file=sys.stderr, flush=True)
        overload = measure_overload(server, images, 5 * served["rate"], options.overload_seconds)
        print(json.dumps(overload), file=sys.stderr, flush=True)
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
        os.nice(-10) if os.geteuid() == 0 else None
        after = encode(options, folder)
    rate = statistics.mean([before["rate"], after["rate"]])
    record = {
        "model": options.model,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "clients": options.clients,
        "encoder_rate": rate,
        "served": served,
        "part_of_encoder": served["rate"] / rate,
        "idle_s": idle,
        "encoder_single_s": before["single_s"],
        "idle_over_encoder_s": idle - before["single_s"],
        "overload": overload,
        "exit_code": code,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""What a GET of an object costs the client: our client over s3fs beside obstore, 32 requests at a time, on loopback.

    python bench/object_stores.py [--objects 2000] [--bytes 60000]

The server is a process of its own that sends prepared answers. Printed are requests a second, and CPU seconds of the
client for a thousand, a JSON line each, best of three.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable

IN_FLIGHT = 32


def serve(size: int, port: multiprocessing.Queue) -> None:
    headers = f'Content-Length: {size}\r\nETag: "e"\r\nLast-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\n\r\n'
    answer = f"HTTP/1.1 200 OK\r\n{headers}".encode() + bytes(size)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def get_all(get: Callable[[int], Awaitable[int]], count: int) -> int:
    turn = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> int:
        async with turn:
            return await get(number)

    return sum(await asyncio.gather(*map(one, range(count))))


def measure_ours(count: int, size: int) -> int:
    from clip.sources.remote.client import fetch, prepare, wait_for

    prepare("s3://bucket/0")
    return wait_for(get_all(lambda n: _length(fetch(f"s3://bucket/{n}", size)), count))


async def _length(data: Awaitable[bytes]) -> int:
    return len(await data)


def measure_obstore(count: int, _: int) -> int:
    import obstore
    from obstore.store import S3Store

    store = S3Store("bucket", client_options={"allow_http": True})

    async def get(number: int) -> int:
        answer = await obstore.get_async(store, str(number))
        return len(bytes(await answer.bytes_async()))

    return asyncio.run(get_all(get, count))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--objects", type=int, default=2000)
    options.add_argument("--bytes", type=int, default=60_000)
    given = options.parse_args()
    port: multiprocessing.Queue = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(given.bytes, port), daemon=True)
    server.start()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.get()}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
    for name, run in (("clip's client over s3fs", measure_ours), ("obstore", measure_obstore)):
        run(100, given.bytes)
        best: tuple[float, float] = (float("inf"), float("inf"))
        for _ in range(3):
            wall, cpu = time.monotonic(), time.process_time()
            if run(given.objects, given.bytes) != given.objects * given.bytes:
                raise SystemExit(f"{name}: other bytes than were sent")
            best = min(best, (time.monotonic() - wall, time.process_time() - cpu))
        rate, cost = given.objects / best[0], best[1] / given.objects * 1000
        print(json.dumps({"client": name, "per_s": round(rate), "cpu_s_per_1000": round(cost, 2)}))
    server.terminate()


if __name__ == "__main__":
    main()

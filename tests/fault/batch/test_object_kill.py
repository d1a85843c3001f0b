"""kill -9 at random times of a run that writes to an object store: resumed, each id is there once, and nothing else.

`make soak` kills more often.
"""

import io
import os
import random
import time
from pathlib import Path

import pyarrow.parquet as pq
from kit import forks
from kit.inputs import draw_photos, number_names
from kit.object_store import BUCKET, ObjectServer

IMAGES = 11
KILLS = int(os.environ.get("CLIP_SOAK_KILLS", "8"))
DONE = 3  # the code of a run that came to its end, with a failure


def read_ids(objects: ObjectServer, out: str) -> list[str]:
    parts = [key for key in objects.list() if key.startswith((f"{out}/embeddings/", f"{out}/failures/"))]
    return sorted(own_id for key in parts for own_id in pq.read_table(io.BytesIO(objects.read(key)))["id"].to_pylist())


def test_every_id_is_there_once_whenever_a_run_was_killed(objects: ObjectServer, weights: Path, tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos", number_names(IMAGES), broken=["05.broken.jpg"])
    flags = ["-m", str(weights), "--shard-size", "4", "--save-seconds", "0", "--batch-size", "2", "--threads", "1"]
    names = {"_plan", "embeddings", "failures", "manifest.json"}
    chance, killed = random.Random(0), 0
    with forks.Server("serve_embed") as server:
        begun = time.monotonic()
        assert server.embed(photos, "-o", f"s3://{BUCKET}/whole", *flags).code == DONE
        whole_s, ids = time.monotonic() - begun, read_ids(objects, "whole")
        assert ids == sorted([*number_names(IMAGES), "05.broken.jpg"])
        for number in range(KILLS):
            out = f"out-{number}"
            for _ in range(2):
                moment = chance.random() * whole_s
                code = server.embed(photos, "-o", f"s3://{BUCKET}/{out}", *flags, kill_after_s=moment).code
                killed += code != DONE
                whole_s *= 0.5 if code == DONE else 1  # the first run took longer than others do, or the machine did
            ended = server.embed(photos, "-o", f"s3://{BUCKET}/{out}", *flags)
            assert ended.code == DONE, ended.said
            assert read_ids(objects, out) == ids
            assert {key.split("/")[1] for key in objects.list() if key.startswith(f"{out}/")} == names
    assert killed

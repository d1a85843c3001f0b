"""A Ray cluster of three nodes on this machine: nodes, actors and the driver are killed, and each id is there once.

`make soak` adds the cases that only take time: a cluster of one core with a small object store, and a local one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from kit.inputs import draw_photos
from kit.outputs import read_manifest, read_vectors

import clip
from clip.batch.verify import verify
from clip.jobs import EmbedJob, ModelOptions, OutputPolicy, VerifyJob

pytest.importorskip("ray", reason="Ray is not installed")

IMAGES, SHARD_SIZE = 240, 4
STORE_BYTES = 100 * 2**20
WAIT_S = 300.0  # for something that takes seconds; the machine may be busy
SOAK = pytest.mark.skipif("CLIP_SOAK_RAY" not in os.environ, reason="takes minutes; CLIP_SOAK_RAY=1")
MODEL = ModelOptions("sketch", batch_size=2, threads=1)
FLAGS = ("-m", "sketch", "--batch-size", "2", "--shard-size", str(SHARD_SIZE), "--progress", "none", "--engine", "ray")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "photos"
    return draw_photos(folder, [f"{n:03}.png" for n in range(IMAGES)], broken=["040.broken.jpg"])


@pytest.fixture(scope="module")
def local(photos: Path) -> Path:
    """What one process writes."""
    out = photos.parent / "local"
    clip.embed(EmbedJob(source=photos, output=out, model=MODEL, policy=OutputPolicy(shard_size=SHARD_SIZE), workers=1))
    return out


@pytest.fixture
def start_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Start a cluster whose head has no cores and whose nodes have so many each."""
    from ray.cluster_utils import Cluster

    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray needs the folder to be there
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started: list[Any] = []

    def start(*nodes: int, store_bytes: int = STORE_BYTES) -> tuple[Any, list[Any]]:
        head = {"num_cpus": 0, "object_store_memory": store_bytes, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        started.append(cluster)
        return cluster, [cluster.add_node(num_cpus=cpus, object_store_memory=store_bytes) for cpus in nodes]

    yield start
    for cluster in started:
        cluster.shutdown()


class Driver:
    """The command, in a process of its own."""

    def __init__(self, photos: Path, out: Path, *flags: str) -> None:
        self.out = out
        command = [sys.executable, "-m", "clip", "embed", str(photos), "-o", str(out), *FLAGS, *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for_parts(self, count: int) -> None:
        end = time.monotonic() + WAIT_S
        while len(list(self.out.glob("embeddings/part-*.parquet"))) < count:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, f"not {count} parts"
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        said = self.process.communicate(timeout=WAIT_S)[0]
        return self.process.returncode, said


def find_actors(node: Any) -> list[int]:
    """Return the processes of a node's actors."""
    raylet = node.all_processes["raylet"][0].process.pid
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == raylet and name.startswith(b"ray::Worker"):
            found.append(int(folder.name))
    return found


def assert_same(out: Path, local: Path) -> None:
    rows = duckdb.sql(f"SELECT count(*), count(DISTINCT id) FROM '{out}/embeddings/*.parquet'").fetchall()
    assert rows == [(IMAGES, IMAGES)]
    assert duckdb.sql(f"SELECT id FROM '{out}/failures/*.parquet'").fetchall() == [("040.broken.jpg",)]
    expected, vectors = read_vectors(local), read_vectors(out)
    assert vectors.keys() == expected.keys()
    assert min(float(np.dot(vectors[own_id], expected[own_id])) for own_id in expected) >= 1 - 1e-6
    assert read_manifest(out)["counts"] == read_manifest(local)["counts"]
    assert verify(VerifyJob(output=out)).problems == ()
    names = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert names == {str(path.relative_to(local)) for path in local.rglob("*")}, "nothing of the killed is left"


def test_driver_actor_and_node_are_killed(
    photos: Path, local: Path, tmp_path: Path, start_cluster: Callable[..., Any]
) -> None:
    cluster, (first, second) = start_cluster(2, 2)
    flags = ("--address", cluster.address, "--cpus-per-actor", "2", "--save-seconds", "0")
    driver = Driver(photos, tmp_path / "out", *flags)
    driver.wait_for_parts(3)
    driver.process.kill()
    assert driver.end()[0] == -signal.SIGKILL
    driver = Driver(photos, tmp_path / "out", *flags)
    driver.wait_for_parts(10)
    for pid in find_actors(first):
        os.kill(pid, signal.SIGKILL)
    driver.wait_for_parts(20)
    cluster.remove_node(second, allow_graceful=False)
    code, said = driver.end()
    assert code == 3, said
    assert_same(tmp_path / "out", local)


@SOAK
def test_one_core_and_a_small_object_store_are_enough(
    photos: Path, local: Path, tmp_path: Path, start_cluster: Callable[..., Any]
) -> None:
    cluster, _ = start_cluster(1, store_bytes=80 * 2**20)  # the least that Ray takes is 75 MB
    code, said = Driver(photos, tmp_path / "out", "--address", cluster.address).end()
    assert code == 3, said
    assert_same(tmp_path / "out", local)


@SOAK
def test_a_cluster_is_started_where_none_is_named_and_ends_with_the_run(
    photos: Path, local: Path, tmp_path: Path
) -> None:
    driver = Driver(photos, tmp_path / "out", "--cpus-per-actor", "1", "--save-seconds", "0")
    driver.wait_for_parts(2)
    driver.process.terminate()
    code, said = driver.end()
    assert code == 128 + signal.SIGTERM, said
    assert "are kept" in said
    code, said = Driver(photos, tmp_path / "out", "--cpus-per-actor", "1").end()
    assert code == 3, said
    assert_same(tmp_path / "out", local)


@SOAK
def test_a_cluster_that_does_nothing_ends_the_run_with_what_it_says(
    photos: Path, tmp_path: Path, start_cluster: Callable[..., Any]
) -> None:
    cluster, (node,) = start_cluster(1)
    driver = Driver(photos, tmp_path / "out", "--address", cluster.address, "--stall-seconds", "20")
    driver.wait_for_parts(1)
    cluster.remove_node(node, allow_graceful=False)
    code, said = driver.end()
    assert code == 1, said
    assert "nothing was finished for 20 s" in said and "1 of 2 nodes are alive" in said

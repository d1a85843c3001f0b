"""The driver, with actors that are objects of this process: what is lost is done again, and a stall is an error."""

from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from kit.inputs import draw_photos, number_names
from kit.outputs import read_manifest, read_rows_by_id, read_vectors

import clip
from clip.cluster import embed as module
from clip.cluster.actors import Answer, Share, choose_share
from clip.cluster.worker import StoppedError, Worker
from clip.errors import ClipError, InputError, ResourceError, TooManyFailuresError
from clip.jobs import DecodeOptions, EmbedJob, ModelOptions, OutputPolicy, RayOptions
from clip.jobs.embed import Progress

IMAGES, SHARD_SIZE = 12, 4
SHARDS = IMAGES // SHARD_SIZE


@dataclass
class Plan:
    """Which calls lose their actor, by method and how often it was called; which shards do, unless isolated."""

    lost_calls: set[tuple[str, int]] = field(default_factory=set)
    lost_shards: set[int] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)  # methods that never answer
    calls: dict[str, int] = field(default_factory=dict)
    isolated: list[tuple[int, ...]] = field(default_factory=list)
    stopped: bool = False


class LocalActors:
    """Stands in for Actors: a call is done when it is waited for."""

    def __init__(self, plan: Plan, wanted: int, arguments: tuple[Any, ...]) -> None:
        self.plan, self.wanted, self.arguments = plan, wanted, arguments
        self.calls: list[tuple[Worker, str, tuple[Any, ...], dict[str, Any]]] = []

    def start(self) -> Worker:
        return Worker(*self.arguments)

    def call(self, actor: Worker, method: str, *given: Any, **named: Any) -> None:
        self.calls.append((actor, method, given, named))

    def wait(self, seconds: float) -> list[Answer]:
        assert seconds == 0.0
        calls = [call for call in self.calls if call[1] not in self.plan.silent][:1]
        for call in calls:
            self.calls.remove(call)
        return [self.answer(*call) for call in calls]

    def answer(self, actor: Worker, method: str, given: tuple[Any, ...], named: dict[str, Any]) -> Answer:
        number = self.plan.calls[method] = self.plan.calls.get(method, 0) + 1
        if method == "write" and named["isolated"]:
            self.plan.isolated.append(given[0])
        elif method == "write" and self.plan.lost_shards.intersection(given[0]):
            return Answer(actor, lost="the actor died")
        value = getattr(actor, method)(*given, **named)
        return Answer(actor, lost="the node died") if (method, number) in self.plan.lost_calls else Answer(actor, value)

    def look(self) -> list[tuple[Worker, Progress]]:
        return [(actor, actor.look()) for actor, *_ in self.calls]

    def drop(self, actor: Worker) -> None:
        assert actor not in [call[0] for call in self.calls]

    def stop(self) -> None:
        self.plan.stopped = True


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    plan = Plan()

    class Connection:
        def __enter__(self) -> "Connection":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def nodes(self) -> list[dict[str, Any]]:
            return [{"Alive": True, "Resources": {"CPU": 2.0}}]

        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": 2.0}

        def available_resources(self) -> dict[str, float]:
            return {"CPU": 1.0}

    monkeypatch.setattr(module, "connect", lambda _: Connection())
    monkeypatch.setattr(module, "Actors", lambda _, share, given: LocalActors(plan, share.actors, given))
    monkeypatch.setattr(module, "TICK_S", 0.0)
    return plan


uses_plan = pytest.mark.usefixtures("plan")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "photos"
    return draw_photos(folder, number_names(IMAGES - 1), broken=["05.broken.jpg"])


@pytest.fixture(scope="module")
def local(photos: Path) -> Path:
    """What one process writes."""
    out = photos.parent / "local"
    clip.embed(make_job(photos, out))
    return out


def make_job(photos: Path, out: Path, **options: Any) -> EmbedJob:
    model = ModelOptions("sketch", batch_size=2, threads=1)
    policy = OutputPolicy(shard_size=SHARD_SIZE, **options.pop("policy", {}))
    return EmbedJob(source=photos, output=out, model=model, policy=policy, workers=1, **options)


def two_actors(**options: Any) -> RayOptions:
    return RayOptions(cpus_per_actor=1.0, **options)


def assert_same(out: Path, local: Path) -> None:
    vectors = read_vectors(local)
    found = read_vectors(out)
    assert found.keys() == vectors.keys()
    assert all((found[own_id] == vectors[own_id]).all() for own_id in vectors)
    assert read_rows_by_id(out, "failures").keys() == {"05.broken.jpg"}
    assert read_manifest(out)["counts"] == read_manifest(local)["counts"]


def test_actors_write_what_one_process_writes(photos: Path, local: Path, plan: Plan, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = clip.embed_on_ray(make_job(photos, tmp_path / "out"), two_actors(), seen.append)
    assert (report.read, report.written, report.failed, report.resumed) == (IMAGES, IMAGES - 1, 1, 0)
    assert_same(tmp_path / "out", local)
    assert seen[-1].read == IMAGES and seen[-1].shard == seen[-1].shards == SHARDS
    assert [progress.read for progress in seen if progress.listing is None and not progress.loading] == sorted(
        progress.read for progress in seen if progress.listing is None and not progress.loading
    )
    assert plan.stopped


@pytest.mark.parametrize("method", ["begin", "load", "write", "finish"])
def test_an_actor_that_is_lost_in_any_call_is_replaced(
    method: str, photos: Path, local: Path, plan: Plan, tmp_path: Path
) -> None:
    plan.lost_calls = {(method, 1), (method, 2)}
    clip.embed_on_ray(make_job(photos, tmp_path / "out"), two_actors())
    assert plan.calls[method] >= 3
    assert_same(tmp_path / "out", local)


def test_a_shard_that_costs_three_actors_is_written_with_its_images_isolated(
    photos: Path, local: Path, plan: Plan, tmp_path: Path
) -> None:
    plan.lost_shards = {1}
    clip.embed_on_ray(make_job(photos, tmp_path / "out"), two_actors())
    assert plan.isolated == [(1,)]
    assert_same(tmp_path / "out", local)


@uses_plan
def test_a_run_that_was_begun_here_is_finished_on_a_cluster_and_the_other_way_round(
    photos: Path, local: Path, tmp_path: Path
) -> None:
    for number, (first, second) in enumerate([(clip.embed, clip.embed_on_ray), (clip.embed_on_ray, clip.embed)]):
        out = tmp_path / str(number)
        first(make_job(photos, out))
        (out / "embeddings" / "part-00001.parquet").unlink()
        report = second(make_job(photos, out))
        assert report.resumed == IMAGES - SHARD_SIZE
        assert_same(out, local)


def test_a_finished_run_has_nothing_to_write(photos: Path, local: Path, plan: Plan) -> None:
    report = clip.embed_on_ray(make_job(photos, local), two_actors())
    assert report.resumed == IMAGES
    assert "write" not in plan.calls


@uses_plan
def test_update_and_overwrite_are_done_once(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip.embed_on_ray(make_job(photos, out), two_actors())
    changed = draw_photos(tmp_path / "changed", number_names(3), first=50)
    report = clip.embed_on_ray(make_job(changed, out, policy={"overwrite": True}), two_actors())
    assert (report.read, read_vectors(out).keys()) == (3, set(number_names(3)))
    draw_photos(changed, ["new.png"], first=70)
    report = clip.embed_on_ray(make_job(changed, out, policy={"update": True}), two_actors())
    assert (report.read, read_vectors(out).keys()) == (4, {*number_names(3), "new.png"})


def test_failures_of_all_actors_count_together(photos: Path, plan: Plan, tmp_path: Path) -> None:
    job = make_job(photos, tmp_path / "out", max_failures="0")
    with pytest.raises(TooManyFailuresError, match="more than 0 of 12 images failed"):
        clip.embed_on_ray(job, two_actors())
    assert plan.stopped


@uses_plan
def test_an_error_of_the_job_ends_the_run(photos: Path, tmp_path: Path) -> None:
    clip.embed_on_ray(make_job(photos, tmp_path / "out"), two_actors())
    other = make_job(photos, tmp_path / "out", decode=DecodeOptions(orient="exif"))
    with pytest.raises(ClipError, match="orient"):
        clip.embed_on_ray(other, two_actors())


def test_a_cluster_that_finishes_nothing_is_an_error(
    photos: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.silent = {"write"}
    times = count(0, 100)
    monkeypatch.setattr(module, "_Driver", partial(module._Driver, clock=lambda: next(times)))
    with pytest.raises(ClipError) as caught:
        clip.embed_on_ray(make_job(photos, tmp_path / "out"), two_actors(stall_seconds=5000))
    assert str(caught.value) == (
        "cluster: nothing was finished for 5000 s; 2 actors write, 0 load a model or wait for room; 1 of 1 nodes are "
        "alive, 1 of 2 CPUs free, expected images that are finished. Look at its nodes (ray status), or raise "
        "stall_seconds; run again: what is done is kept."
    )
    assert plan.stopped


def test_a_cluster_on_which_no_model_can_be_loaded_is_an_error(photos: Path, plan: Plan, tmp_path: Path) -> None:
    plan.lost_calls = {("begin", number) for number in range(1, 100)} | {("load", number) for number in range(1, 100)}
    with pytest.raises(ClipError, match="lost 6 actors that had nothing to write yet; the last one: the node died"):
        clip.embed_on_ray(make_job(photos, tmp_path / "out"), two_actors())


@pytest.mark.parametrize(
    "options",
    [{"part": "0/2"}, {"min_cosine": 0.99}, {"source": "-"}, {"devices": "cpu,cpu"}],
    ids=lambda o: next(iter(o)),
)
def test_what_one_process_alone_can_do_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    job = EmbedJob(**{"source": tmp_path, "output": tmp_path / "out", "model": "sketch"} | options)
    with pytest.raises(InputError, match="a run that actors can share"):
        clip.embed_on_ray(job)


def test_a_worker_that_is_told_to_stop_keeps_what_it_has(photos: Path, local: Path, tmp_path: Path) -> None:
    from clip.store.lock import hold_lock

    job, out = make_job(photos, tmp_path / "out"), tmp_path / "out"
    out.mkdir()
    with hold_lock(out) as lock:
        worker = Worker(job, str(tmp_path), lock, 1)
        worker.begin()
        worker.stop()
        with pytest.raises(StoppedError):
            worker.write((0,), isolated=False)
        assert list((out / "_journal").rglob("part-*.parquet")), "what was encoded is saved"
    clip.embed(job)
    assert_same(out, local)


def make_node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([make_node(16), make_node(16)], {}, Share(16, 0, 2)),
        ([make_node(0), make_node(16), make_node(8)], {}, Share(8, 0, 3)),
        ([make_node(16, 4), make_node(64)], {}, Share(4, 1, 4)),
        ([make_node(16, 1)], {"gpus_per_actor": 0.5}, Share(8, 0.5, 2)),
        ([make_node(16), make_node(16, alive=False)], {"cpus_per_actor": 4.0}, Share(4, 0, 4)),
        ([make_node(16, 2)], {"gpus_per_actor": 0.0, "cpus_per_actor": 2.0}, Share(2, 0, 8)),
        ([make_node(2)], {"actors": 1, "cpus_per_actor": 1.0}, Share(1, 0, 1)),
    ],
)
def test_actors_take_what_nodes_have(nodes: list[dict[str, Any]], options: dict[str, Any], expected: Share) -> None:
    assert choose_share(nodes, RayOptions(**options)) == expected


def test_no_room_for_one_actor_is_an_error() -> None:
    with pytest.raises(ResourceError, match="has no node with 8 cores"):
        choose_share([make_node(4)], RayOptions(cpus_per_actor=8.0))


@pytest.mark.parametrize(
    "options", [{"actors": 0}, {"cpus_per_actor": 0.0}, {"gpus_per_actor": -1.0}, {"stall_seconds": 0.0}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        RayOptions(**options)

"""Prediction of any number of files on a Ray cluster, or on a Ray of its own on this machine.

    job = Job(PredictorSource("model_best.pth"), FileOptions(()), "s3://bucket/predictions", os.getcwd())
    predict_cluster(job, ["s3://bucket/images/"], actors=8)

The plan deals the files out in shards. A dataset of Ray Data has a row a shard, so that what goes through Ray is a few
bytes a shard whatever the images are; an actor fetches the files, predicts them and writes the shard's tables. A shard
is done when its table of images is there. So memory does not grow with the images but for their names, and a job that
was killed anywhere goes on with the shards that are not done.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from maskrcnn_plus.apps.cluster.inputs import list_files
from maskrcnn_plus.apps.cluster.job import RESULTS, Job, Manifest, plan_job, shard_name
from maskrcnn_plus.apps.cluster.stores import Store
from maskrcnn_plus.apps.cluster.tiles import list_spread
from maskrcnn_plus.apps.cluster.worker import Part, Worker
from maskrcnn_plus.apps.predict_files.fingerprint import describe_settings
from maskrcnn_plus.apps.predict_files.workers import count_cores
from maskrcnn_plus.errors import UserError, describe
from maskrcnn_plus.locking import lock_folder

_NUMBERS = ("images", "objects", "failures", "seconds")  # of a part, as of the job
_AT_ONCE = 16  # requests to a store
_STARTS = 4


@dataclass
class ClusterSummary:
    """What became of a job.

    Attributes:
        files: of the job.
        files_before: that an earlier run has done.
        images, objects: predicted now.
        failures: images and files that could not be predicted, those of earlier runs too.
        seconds: that the actors worked, all together.
    """

    files: int
    files_before: int = 0
    images: int = 0
    objects: int = 0
    failures: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Actors:
    """The processes that predict.

    Attributes:
        number: at most; None for as many as the cluster has room for.
        cpus, gpus: of each.
        address: of a Ray cluster; None starts a Ray on this machine and stops it.
    """

    number: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None


def predict_cluster(
    job: Job,
    inputs: Sequence[str],
    actors: Actors,
    *,
    recursive: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> ClusterSummary:
    """Predict files and write tables, see `tables`; go on where an earlier run of the same job was stopped.

    Args:
        job: what is done.
        inputs: see `list_files`.
        actors: the processes that predict.
        recursive: look into the sub-folders of input folders.
        overwrite: replace what is in the output.
        progress: show a progress bar, where standard error is a terminal.

    Raises:
        UserError, ValueError: nothing to predict, settings out of range, an output with other results, or Ray is
            missing.
        OSError: a result cannot be written, or a store does not answer.
    """
    store = job.store()
    predictor = job.source.build(device="cpu")  # the machine that starts a job may have no GPU
    job.options.check(predictor)
    settings = describe_settings(predictor, job.options) | {"formats": " ".join(sorted(job.options.formats))}
    files = list_files(inputs, recursive, job.patience, [store.child(kind) for kind in RESULTS])
    with contextlib.ExitStack() as stack:
        if store.local is not None:
            place = store.local / ".lock"
            stack.enter_context(lock_folder(store.local, place, "wait or choose another output"))
        classes = predictor.class_names, predictor.category_ids
        manifest = plan_job(store, files, settings, job.shard_size, classes, overwrite)
        del predictor, files
        return _run(job, manifest, store, actors, progress)


def _run(job: Job, manifest: Manifest, store: Store, actors: Actors, progress: bool) -> ClusterSummary:
    done = {file.address.rpartition("/")[2] for file in store.list("images")}
    before = [k for k in range(manifest.shards) if shard_name("", k)[1:] in done]
    pending = [k for k in range(manifest.shards) if shard_name("", k)[1:] not in done]
    summary = ClusterSummary(manifest.files, files_before=sum(map(manifest.size_of, before)))
    summary.failures = sum(_count_rows(store, [shard_name("failures", k) for k in before]))
    with (
        tqdm(
            total=manifest.files, initial=summary.files_before, unit="file", disable=None if progress else True
        ) as bar,
        RayConnection(actors) as ray,
    ):

        def take(result: dict[str, Any]) -> None:
            if result["error"]:
                raise UserError(result["error"])
            for name in _NUMBERS:
                setattr(summary, name, getattr(summary, name) + result[name])
            bar.update(int(result["files"]))

        def do(parts: list[Part]) -> None:
            ray.map(_Predict, (job, manifest, parts), len(parts), take)

        do([Part(k) for k in pending])
        huge = [image for image in list_spread(store) if f"{image.key}.parquet" not in done]
        do([Part(group, image) for image in huge for group in range(image.groups)])
        do([Part(None, image) for image in huge])
    return summary


def _count_rows(store: Store, names: Sequence[str]) -> list[int]:
    """Rows of tables, of which only the last bytes are read."""

    def count(name: str) -> int:
        return store.load(name, lambda file: pq.ParquetFile(file).metadata.num_rows)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(count, names))


class _Predict:
    """The actor of Ray Data."""

    def __init__(self, job: Job, manifest: Manifest, parts: Sequence[Part]) -> None:
        self.job, self.manifest, self.parts = job, manifest, parts
        self.worker: Worker | None = None  # with the model, from the first part on

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        results = [self._do(self.parts[int(index)]) for index in batch["id"]]
        return {key: [result[key] for result in results] for key in results[0]}

    def _do(self, part: Part) -> dict[str, Any]:
        files = self.manifest.size_of(part.index) if part.image is None else 0
        try:
            self.worker = self.worker or Worker(self.job, self.manifest)
            return {"error": "", "files": files, **self.worker.do(part)}
        except (ValueError, OSError) as error:  # a result, as Ray keeps the class and the cause of no exception
            return {"error": describe(error), "files": 0, **dict.fromkeys(_NUMBERS, 0)}


class RayConnection:
    """A connection to Ray, which is made when there is something to do."""

    def __init__(self, actors: Actors) -> None:
        self.actors = actors
        self._started = False

    def __enter__(self) -> RayConnection:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._started:
            import ray

            ray.shutdown()

    def map(
        self,
        actor: type,
        arguments: tuple[Any, ...],
        count: int,
        take: Callable[[dict[str, Any]], object] = lambda row: None,
    ) -> None:
        """Let actors work on the rows {"id": 0} to {"id": count - 1}, and take what becomes of each as it is done.

        Args:
            actor: a class that is called with batches of a row.
            arguments: of its constructor.
            count: of the rows.
            take: called with each result.
        """
        if not count:
            return
        ray = self._connect()
        number = self.actors.number or max(int(ray.cluster_resources().get("CPU", 1)) // self.actors.cpus, 1)
        number = min(number, count)
        # One task waits beside the one that runs, so that no actor idles; more would wait behind a slow one.
        sizes = {"min_size": 1, "max_size": number, "initial_size": number}
        pool = ray.data.ActorPoolStrategy(**sizes, max_tasks_in_flight_per_actor=2)
        rows = ray.data.from_items([{"id": index} for index in range(count)], override_num_blocks=count)
        results = rows.map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=pool,
            num_cpus=self.actors.cpus,
            num_gpus=self.actors.gpus or None,
        )
        for row in results.iter_rows():
            take(row)

    def _connect(self) -> Any:
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors come as exceptions
        if not ray.is_initialized():
            if self.actors.address is not None:
                ray.init(address=self.actors.address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                start_ray((self.actors.number or max(count_cores() // self.actors.cpus, 1)) * self.actors.cpus)
            self._started = True
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        return ray


def start_ray(cpus: int, **options: Any) -> None:
    """Start a Ray on this machine, on its loopback address, without a dashboard and without reports of use.

    Args:
        cpus: that it has to give.
        options: further ones of `ray.init`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what a person can act on comes as an exception
    import ray

    options |= {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    for attempt in range(_STARTS):
        try:
            ray.init(address="local", num_cpus=cpus, _node_ip_address="127.0.0.1", **options)
            return
        except Exception as error:
            # Ray gives its processes 30 seconds, which a busy machine may not give them.
            if "timed out during startup" not in str(error) or attempt == _STARTS - 1:
                raise
            ray.shutdown()


def check_ray() -> None:
    """Refuse to start where Ray is missing.

    Raises:
        UserError: with the extra that brings it.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise UserError(f"Ray is missing ({error}): pip install 'maskrcnn_plus[cluster]'") from error

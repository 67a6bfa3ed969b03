"""Starts a run: the only place that puts Ray, the head and the workers together (the composition root)."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, TypeVar

from es_service.config import RunConfig
from es_service.data import Corpus
from es_service.directory import RunDirectory
from es_service.errors import BackendError, ConfigError, RunError
from es_service.events import Finish
from es_service.handles import Handle, ThreadHandle
from es_service.journal import scan
from es_service.journal_writer import check_spec
from es_service.pools import Pool
from es_service.session import open_session, with_corpus
from es_service.storage import open_storage
from es_service.telemetry import Status
from es_service.wiring import kernels

__all__ = ["launch", "look", "node_cores", "scale", "stop"]

_T = TypeVar("_T")
_OBJECT_STORE_BYTES = 128 << 20
"""Messages are small, so a local Ray needs little; its default is 30 % of the memory."""
_HEAD_RESTARTS = 10
"""Deaths of its head that a run survives without a `resume`."""
_ABANDONED_SECONDS = 5.0
"""A head that has missed its driver for so long, ten beats, may be replaced by a `resume`."""
_LOOK_SECONDS = 1.0
_HEAD_DIED = "the head died and is started again"
_HEAD_SILENT = "the head does not answer: its node or the network may be gone"
_ANSWER_SECONDS = 10.0
"""A head that takes longer for a heartbeat cannot be reached."""


def node_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def launch(
    config: RunConfig, directory: RunDirectory, resume: bool, address: str | None = None
) -> Iterator[tuple[Handle, str]]:
    """A handle to the started run and one line about its kernels; ends what belongs to this driver on exit."""
    local = config.deployment.pool == "local"
    if local and address:
        raise ConfigError("deployment.pool: 'local' runs inside this process; leave out --address")
    if not address:  # elsewhere the nodes know what they can run, and the head's what it can write
        _check_here(config, directory, resume)
    with nullcontext() if local else _ray(address):
        handle: Handle
        if local:
            handle, about = _launch_thread(config, directory, resume)
        else:
            handle, about = _launch_actor(config, directory, resume, alone=address is None)
        try:
            yield handle, about
        finally:
            handle.close()


def _check_here(config: RunConfig, directory: RunDirectory, resume: bool) -> None:
    """What can be known on this machine before any actor starts."""
    from workers import tasks

    tasks.check(config)
    open_storage(config, directory.name, resume)
    for backend in {config.deployment.aggregator_backend, config.deployment.worker.backend}:
        kernels(backend, 1)
    if not resume:
        directory.create()
        return
    contents = scan(directory.journal_path)
    check_spec(directory.journal_path, contents.spec_at(len(contents.commits)), config.spec)
    with_corpus(config)


def stop(run: str, address: str) -> None:
    """Ask the head of a run on an existing cluster to end at its last commit; `RunError` if it is not there."""
    with _ray(address):
        _get(_head_of(run, address).stop.remote("stop requested"))


def scale(run: str, address: str, workers: int) -> None:
    """Tell the head of a run on an existing cluster how many workers to keep; `RunError` if it is not there."""
    with _ray(address):
        _get(_head_of(run, address).scale.remote(workers))


def look(address: str, run: str | None, what: Callable[[RunDirectory], _T]) -> list[_T]:
    """What a function finds in the directory of a run under way on a cluster, or of each; on the head's node."""
    with _ray(address):
        from es_service.head import runs_under_way

        return [_get(_head_of(name, address).look.remote(what)) for name in ([run] if run else runs_under_way())]


def _head_of(run: str, address: str) -> Any:
    import ray

    from es_service.head import NAMESPACE, actor_name

    try:
        return ray.get_actor(actor_name(run), namespace=NAMESPACE)
    except ValueError as error:
        raise RunError(f"no run {run!r} is under way on {address}; `es-service resume` goes on with it") from error


# Without Ray.


def _launch_thread(config: RunConfig, directory: RunDirectory, resume: bool) -> tuple[ThreadHandle, str]:
    ops, why = kernels(config.deployment.aggregator_backend, node_cores())
    coordinator = open_session(config, directory, resume, ops, make_local_pool)
    return ThreadHandle(coordinator), why


def make_local_pool(config: RunConfig, corpus: Corpus) -> Pool:
    """Evaluators in this process, each with its own kernels and replica; they take turns on all cores."""
    from workers.evaluator import Evaluator
    from workers.local_pool import LocalPool

    worker = config.deployment.worker
    threads = worker.threads or node_cores()

    def evaluator() -> Evaluator:
        return Evaluator(config, corpus.train, kernels(worker.backend, threads)[0])

    evaluators = {f"worker-{n + 1}": evaluator() for n in range(config.deployment.workers or 1)}
    wave_pairs = evaluators["worker-1"].task.wave_pairs
    return LocalPool(evaluators, shares=True, make_referee=evaluator, wave_pairs=wave_pairs)


# With Ray.


class ActorHandle:
    """A run whose head is an actor, which Ray starts again where its process dies."""

    def __init__(self, head: Any, detach: bool) -> None:
        self._head = head
        self._detach = detach
        self._run = head.run.remote()
        self._status: Status = _get(head.heartbeat.remote())  # both calls have arrived, whatever becomes of us

    def heartbeat(self) -> Status:
        """See `Handle`. While the head is started again or cannot be reached: what it said last, and that."""
        from ray.exceptions import GetTimeoutError, RayActorError

        status, alarm = None, _HEAD_DIED
        try:
            status = _answer(self._head.heartbeat.remote(), _ANSWER_SECONDS)
        except GetTimeoutError:
            alarm = _HEAD_SILENT
        except RayActorError:  # for good, if `wait` says so
            pass
        self._status = status or replace(self._status, alarm=alarm)
        return self._status

    def stop(self, reason: str) -> None:
        """See `Handle`."""
        self._head.stop.remote(reason)

    def wait(self, timeout: float) -> Finish | None:
        """See `Handle`."""
        import ray

        done, _ = ray.wait([self._run], timeout=timeout)
        finish: Finish | None = _get(self._run) if done else None
        return finish

    def close(self) -> None:
        """End the head, unless the run was started to outlive its driver."""
        import ray

        if not self._detach:
            ray.kill(self._head, no_restart=True)


def _launch_actor(config: RunConfig, directory: RunDirectory, resume: bool, alone: bool) -> tuple[ActorHandle, str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from es_service.head import NAMESPACE, HeadActor, actor_name

    if config.deployment.detach and alone:
        raise ConfigError("deployment.detach: a local Ray ends with its driver; give the --address of a cluster")
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if alone:  # elsewhere nodes may still come
        _check_resources(_placed(config, [node["Resources"] for node in nodes]), nodes)
    here = ray.get_runtime_context().get_node_id()
    head_node = next((n["NodeID"] for n in nodes if "node:__internal_head__" in n["Resources"]), here)
    head_class: Any = ray.remote(HeadActor)
    exporters = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes] if alone else []
    name = actor_name(directory.name)
    head_class = head_class.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=config.deployment.head_num_cpus,
        max_restarts=_HEAD_RESTARTS,
        max_concurrency=8,
        scheduling_strategy=NodeAffinitySchedulingStrategy(head_node, soft=False),
    )
    if resume:
        _end_abandoned(name)
    runs_dir = str(directory.path.absolute().parent)
    try:
        head = head_class.remote(config.model_dump_json(), runs_dir, directory.name, kernels, make_ray_pool, exporters)
    except ValueError as error:  # the name is taken
        raise RunError(
            f"a run {directory.name!r} is under way on this cluster: stop it with `es-service stop`"
        ) from error
    try:
        about = _get(head.open.remote(resume))
    except BaseException:
        ray.kill(head, no_restart=True)
        raise
    return ActorHandle(head, config.deployment.detach), about


def _end_abandoned(name: str) -> None:
    """End the head of this name if it has lost its driver: nothing committed is lost, and this driver takes over."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    from es_service.head import NAMESPACE

    with suppress(ValueError, GetTimeoutError, RayActorError):  # there is none (any more), or it cannot be asked
        head = ray.get_actor(name, namespace=NAMESPACE)
        silence: float = -_LOOK_SECONDS
        while silence < _ABANDONED_SECONDS:
            last = silence
            answer: Any = head.silence.remote()
            silence = float(ray.get(answer, timeout=_ABANDONED_SECONDS))
            if silence < last + _LOOK_SECONDS / 2:
                return  # its driver lives
            time.sleep(_LOOK_SECONDS)
        ray.kill(head, no_restart=True)
        while ray.get_actor(name, namespace=NAMESPACE):
            time.sleep(_LOOK_SECONDS / 10)


def make_ray_pool(config: RunConfig, corpus: Corpus) -> Pool:
    """Worker actors, owned by the process that calls this: the head's. They load their own corpus."""
    import ray

    from workers.evaluator import Evaluator
    from workers.pool import RayPool

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return RayPool(
        _placed(config, nodes),
        lambda: Evaluator(config, corpus.train, kernels(config.deployment.aggregator_backend)[0]),
    )


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    _connect(address)
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Join a cluster, or start one on this machine that ends with this process.

    Ray reads its environment when it is imported. A local cluster gets a token of its own, which is never on disk.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not address and os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do anyway; silences its warning
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        options |= {"address": address}
    else:
        options |= {
            "address": "local",
            "num_cpus": node_cores(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        ray.init(namespace="es-service", **options)
    except Exception as error:  # a node that does not start in time is a bare Exception of Ray's
        where = f"join the cluster at {address}" if address else "start a local Ray"
        raise BackendError(f"cannot {where}: {error}; or train without Ray: --set deployment.pool=local") from error


def _answer(ref: Any, timeout: float | None = None) -> Any:
    """`ray.get` that raises the error as it was raised in the actor."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ref, timeout=timeout)
    except RayTaskError as error:
        raise error.cause from None


def _get(ref: Any) -> Any:
    """The same for an answer without which there is no going on."""
    from ray.exceptions import RayActorError

    try:
        return _answer(ref)
    except RayActorError as error:
        raise RunError(
            f"the head is gone ({error.error_msg or type(error).__name__}); nothing committed is lost: "
            "go on with `es-service resume`"
        ) from None


def _placed(config: RunConfig, nodes: list[dict[str, float]]) -> RunConfig:
    """Resolve workers = 0 and threads = 0 from the resources of the nodes, which share their cores among workers."""
    deployment, worker = config.deployment, config.deployment.worker
    slots = [
        int(node.get("GPU", 0) / worker.num_gpus) if worker.num_gpus else int(node.get("CPU", 0) >= 1) for node in nodes
    ]
    workers = deployment.workers or max(1, sum(slots))
    cores = [int(node.get("CPU", 0)) for node, slot in zip(nodes, slots, strict=True) if slot] or [1]
    threads = worker.threads or max(1, min(cores) // -(-workers // len(cores)))
    return config.with_deployment(workers=workers, worker=worker.model_copy(update={"threads": threads}))


def _check_resources(config: RunConfig, nodes: list[dict[str, Any]]) -> None:
    """Raise if no node could ever hold one worker."""
    need = config.deployment.worker.resources
    if any(all(node["Resources"].get(key, 0) >= value for key, value in need.items()) for node in nodes):
        return
    have = "; ".join(f"{n['Resources'].get('CPU', 0):g} CPU, {n['Resources'].get('GPU', 0):g} GPU" for n in nodes)
    raise ConfigError(
        f"deployment.worker: a worker needs {need['CPU']:g} CPU and {need['GPU']:g} GPU and no node has them "
        f"({have}); lower deployment.worker.num_cpus, threads or num_gpus"
    )

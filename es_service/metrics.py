"""Every Prometheus name of the service: one registry for the head, one table for the workers.

Units are base units, counters end in `_total`, every label has few values. Counters of generations, votes and model
bytes only move at commits and start from the journal, so a restart of the head neither loses nor repeats any; counters
of events start at 0. Which run it is stands in the target labels of the exporter, not in each metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

__all__ = ["LEASE_EVENTS", "SIGNS", "SPLITS", "WORKER_EVENTS", "WORKER_METRICS", "WORKER_STATES", "Metrics"]

SPLITS = ("train", "held_out")
SIGNS = ("plus", "zero", "minus")
BASELINES = ("unigram", "bigram", "gzip")
TENSOR_KINDS = ("matrix", "vector")
WORKER_STATES = ("active", "draining", "quarantined")
WORKER_EVENTS = ("ready", "gone")
LEASE_EVENTS = (
    "issued", "returned", "expired", "hedged", "late", "duplicate", "audited", "mismatch", "diverged", "fell",
    "malformed", "draining", "quarantined", "other",
)  # fmt: skip
"""What happens to leases; kinds of `Notice` are among them, and any that is not counts as `other`."""

_LEASE_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_UPDATE_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_FSYNC_SECONDS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_GENERATION_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class Metrics:
    """The metrics of one head, all of them present from the start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._run()
        self._fleet()
        self._service()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"es_service_{name}", text, registry=self.registry)

    def _counters(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
        family = Counter(f"es_service_{name}", text, [label], registry=self.registry)
        for value in values:
            family.labels(value)  # at 0: an increase from nothing would not be seen
        return family

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"es_service_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"es_service_{name}", text, buckets=buckets, registry=self.registry)

    def _run(self) -> None:
        """What is learned."""
        self.generations = self._counter("generations", "Committed generations, from the journal on.")
        self.goal = self._gauge("goal_generations", "Generation at which the run is finished.")
        self.population = self._gauge("population_members", "Members in a generation.")
        self.parameters = self._gauge("parameters", "Weights of the model.")
        self.loss = self._gauge(
            "loss", "Bits a byte: mean of all members (train), canonical parameters (held_out).", "split"
        )
        self.baseline = self._gauge(
            "baseline_loss", "Bits a byte that a simple model needs for the held-out text.", "model"
        )
        self.accuracy = self._gauge("accuracy_ratio", "Share of examples that a ternary network gets right.", "split")
        self.evaluated = self._gauge("evaluated_generation", "Generation of the last held-out evaluation.")
        self.score = self._gauge(
            "member_score", "Scores of the last generation's members in bits; higher is better.", "statistic"
        )
        self.votes = self._counters("votes", "Committed votes by sign, from the journal on.", "sign", SIGNS)
        self.moved = self._gauge("moved_weights_ratio", "Share of weights that the last update moved.")
        self.saturated = self._gauge("saturated_weights_ratio", "Share of weights at the ends of their range.", "kind")
        self.model_bytes = self._counter(
            "model_bytes", "Bytes that members of committed generations read, from the journal on."
        )

    def _fleet(self) -> None:
        """Who works on it."""
        self.workers = self._gauge("workers", "Workers by state.", "state")
        self.wanted = self._gauge("wanted_workers", "Workers that the run is to have now.")
        self.worker_events = self._counters("worker_events", "Workers that came and went.", "kind", WORKER_EVENTS)
        self.leases_in_flight = self._gauge("leases_in_flight", "Leases held by workers now.")
        self.lease_events = self._counters("lease_events", "What happened to leases.", "kind", LEASE_EVENTS)
        self.lease_seconds = self._histogram(
            "lease_seconds", "From giving a lease out to its answer, waiting included.", _LEASE_SECONDS
        )
        self.replica_lag = self._gauge(
            "replica_lag_generations",
            "Generations behind the open one: canonical parameters, and slowest worker.",
            "replica",
        )

    def _service(self) -> None:
        """How the head is."""
        self.build = Info("es_service_build", "What runs here.", registry=self.registry)
        self.generation_seconds = self._histogram(
            "generation_seconds", "From one commit to the next.", _GENERATION_SECONDS
        )
        self.last_commit = self._gauge("last_commit_timestamp_seconds", "Time since when a commit is awaited.")
        self.journal_bytes = self._gauge("journal_bytes", "Size of the journal.")
        self.fsync_seconds = self._histogram("journal_fsync_seconds", "Time to make a record durable.", _FSYNC_SECONDS)
        self.update_seconds = self._histogram(
            "update_seconds", "Time to apply a record to the canonical parameters.", _UPDATE_SECONDS
        )
        self.slice_checks = self._counter(
            "slice_checks", "Slices of updates by workers that the head made too, and found right."
        )
        self.wire_bytes = self._counters("wire_bytes", "Messages with workers.", "direction", ("down", "up"))
        self.wire_per_member = self._gauge("wire_bytes_per_member", "All messages of the last generation.")
        self.record_per_member = self._gauge("record_bytes_per_member", "Votes in the last record of the journal.")
        self.busy_seconds = self._counter("head_busy_seconds", "Time in which the head's loop was not waiting.")


@dataclass(frozen=True, slots=True)
class WorkerMetric:
    """A metric of a worker as `ray.util.metrics` takes it. Ray exports it as `ray_NAME`, a counter with `_total`."""

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    labels: tuple[str, ...] = ("run", "worker")

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


WORKER_METRICS = {
    metric.name.removeprefix("es_service_worker_"): metric
    for metric in (
        WorkerMetric("es_service_worker_leases", "counter", "Leases evaluated."),
        WorkerMetric("es_service_worker_evaluation_seconds", "counter", "Time spent on evaluating leases."),
        WorkerMetric("es_service_worker_cpu_seconds", "counter", "CPU time of the worker's process."),
        WorkerMetric("es_service_worker_model_bytes", "counter", "Bytes run through the model."),
        WorkerMetric("es_service_worker_generation", "gauge", "Generation of the last lease."),
        WorkerMetric(
            "es_service_worker_info", "gauge", "1; where it is.", ("run", "worker", "gpu", "backend", "version")
        ),
    )
}
"""By short name. Counters are seconds and bytes rather than histograms, whose sums Ray estimates from buckets."""

"""What the server counts, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine_base import Load
from ..scheduler_requests import Generation

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "urial_http_requests", "Requests by path and status", ["path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._prompt = self._counter("urial_prompt_tokens", "Prompt tokens of all requests")
        self._cached = self._counter("urial_prompt_tokens_cached", "Of these, found in the cache")
        self._new = self._counter("urial_generated_tokens", "Tokens generated")
        self._hits = self._counter("urial_prefix_hits", "Requests whose prompt the cache began")
        self._dropped = self._counter(
            "urial_requests_dropped", "Requests ended before their answer"
        )
        self._first = self._histogram("urial_first_token_seconds", "Arrival to the first token")
        self._whole = self._histogram("urial_answer_seconds", "Arrival to the last token")

    def watch(self, loads: Callable[[], Mapping[str, Load]], active: Callable[[], int]) -> None:
        """Gauges that are read when somebody asks."""
        self.registry.register(_Gauges(loads, active))

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def ended(self, requests: Iterable[Generation], *, dropped: bool) -> None:
        """Requests that nothing more is done for, finished or not."""
        for request in requests:
            self._prompt.inc(len(request.ids))
            self._cached.inc(request.cached)
            self._hits.inc(request.cached > 0)
            self._new.inc(sum(len(sample.token_ids) for sample in request.samples))
            self._dropped.inc(dropped)
            if request.first_token is not None:
                self._first.observe(request.first_token)
            if request.ended is not None:
                self._whole.observe(request.ended)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, buckets=SECONDS, registry=self.registry)


class _Gauges(Collector):
    def __init__(self, loads: Callable[[], Mapping[str, Load]], active: Callable[[], int]) -> None:
        self._loads = loads
        self._active = active

    def collect(self) -> Iterable[Metric]:
        active = GaugeMetricFamily("urial_requests_active", "Requests that wait or run")
        active.add_metric([], self._active())
        yield active
        about = {
            "waiting": ("urial_sequences_waiting", "Sequences in the queue of a model"),
            "running": ("urial_sequences_running", "Sequences in the batch of a model"),
            "blocks": ("urial_cache_blocks", "Blocks of a model's KV-cache"),
            "available": ("urial_cache_blocks_available", "Of these, that no sequence uses"),
        }
        loads = self._loads()
        for field, (name, text) in about.items():
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model, load in loads.items():
                gauge.add_metric([model], getattr(load, field))
            yield gauge

"""What the server counts, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine_base import Load
from ..scheduler_requests import Generation, Request

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
        self._prompt = self._counter("urial_prompt_tokens", "Prompt tokens of ended requests")
        self._cached = self._counter("urial_prompt_tokens_cached", "Of these, found in the cache")
        self._scored = self._counter("urial_scored_tokens", "Tokens scored by /v1/score")
        self._hits = self._counter("urial_prefix_hits", "Requests that found their URIAL prompt")
        self._dropped = self._counter(
            "urial_requests_dropped", "Requests ended before their answer"
        )
        self._first = self._histogram("urial_first_token_seconds", "Arrival to the first token")
        self._whole = self._histogram("urial_answer_seconds", "Arrival to the end of the answer")
        self._running = set[Generation]()
        self._new = 0  # tokens of those that have ended

    def watch(self, loads: Callable[[], Mapping[str, Load]], active: Callable[[], int]) -> None:
        """What is read when somebody asks."""
        self.registry.register(_Gauges(loads, active, self._generated))

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    @contextmanager
    def counted(self, requests: Collection[Generation]) -> Iterator[None]:
        """While they run; an error says that they ended before their answers."""
        self._running.update(requests)
        dropped = True
        try:
            yield
            dropped = False
        finally:
            self._running.difference_update(requests)
            for request in requests:
                self._ended(request, dropped=dropped)

    def scored(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._prompt.inc(len(request.ids))
            self._cached.inc(request.cached)
            self._scored.inc(len(request.ids) - request.rows_from)

    def _ended(self, request: Generation, *, dropped: bool) -> None:
        self._prompt.inc(len(request.ids))
        self._cached.inc(request.cached)
        self._hits.inc(0 < request.prefix <= request.cached)
        self._new += _tokens(request)
        self._dropped.inc(dropped)
        if request.first_token is not None:
            self._first.observe(request.first_token)
        if not dropped:
            self._whole.observe(request.elapsed() if request.ended is None else request.ended)

    def _generated(self) -> int:
        return self._new + sum(map(_tokens, self._running))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, buckets=SECONDS, registry=self.registry)


def _tokens(request: Generation) -> int:
    return sum(len(sample.token_ids) for sample in request.samples)


class _Gauges(Collector):
    def __init__(
        self,
        loads: Callable[[], Mapping[str, Load]],
        active: Callable[[], int],
        generated: Callable[[], int],
    ) -> None:
        self._loads = loads
        self._active = active
        self._generated = generated

    def collect(self) -> Iterable[Metric]:
        tokens = CounterMetricFamily("urial_generated_tokens", "Tokens generated, as they are made")
        tokens.add_metric([], self._generated())
        yield tokens
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

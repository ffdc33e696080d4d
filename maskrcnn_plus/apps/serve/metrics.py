"""Counts for a monitoring system, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_PREFIX = "maskrcnn_plus_"


class Metrics:
    """Counts of one server.

    Attributes:
        requests: uploads by path and status of the answer.
        images: by what became of them: done, failed, cancelled.
        objects: found in all images.
        seconds: of predictions, each of an image or a batch.
        batch_size: images of each.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(f"{_PREFIX}requests", "Uploads", ["path", "status"], registry=registry)
        self.images = Counter(f"{_PREFIX}images", "Images by outcome", ["outcome"], registry=registry)
        self.objects = Counter(f"{_PREFIX}objects", "Objects found", registry=registry)
        self.seconds = Histogram(
            f"{_PREFIX}predict_seconds",
            "Seconds of a prediction of an image or a batch",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
            registry=registry,
        )
        self.batch_size = Histogram(
            f"{_PREFIX}batch_size", "Images of a prediction", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        for outcome in ("done", "failed", "cancelled"):
            self.images.labels(outcome)
        ProcessCollector(registry=registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for."""
        Gauge(f"{_PREFIX}{name}", text, registry=self._registry).set_function(value)

    def to_text(self) -> bytes:
        """All of it in the text format."""
        return generate_latest(self._registry)

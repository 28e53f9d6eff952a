"""Metrics for Prometheus, if they are enabled."""

from typing import Any, Callable, Optional

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of a server without Prometheus: counts nothing."""

    def request(self, status: int, seconds: float, queued: float) -> None:
        """Count an answered request.

        Args:
            status: the HTTP status.
            seconds: from its head to its response.
            queued: how many of these it waited for a worker.
        """

    def batch(self, size: int) -> None:
        """Count a batch of requests that was sent to a worker."""

    def restarted(self, what: str) -> None:
        """Count a restart of a ``worker`` or a ``model`` process."""

    def close(self) -> None:
        """Stop answering."""


class PrometheusMetrics(Metrics):
    """Metrics in Prometheus' format. A thread serves them on a port of their own.

    Args:
        host: the address to listen on.
        port: the port to listen on.
        waiting: returns how many requests wait for a worker.
        workers: returns how many workers can answer.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self, host: str, port: int, waiting: Callable[[], int], workers: Callable[[], int]
    ) -> None:
        import prometheus_client as prometheus  # only if metrics are enabled

        registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        prefix = "sagemaker_mxnet_serving_"
        self._requests = prometheus.Counter(
            f"{prefix}requests", "Requests answered, by HTTP status", ["status"], registry=registry
        )
        self._seconds = prometheus.Histogram(
            f"{prefix}request_seconds",
            "Time from a request's head to its response",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queued = prometheus.Histogram(
            f"{prefix}queue_seconds",
            "Time that a request waited for a worker",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = prometheus.Histogram(
            f"{prefix}batch_requests",
            "Requests in a batch",
            buckets=_BATCHES,
            registry=registry,
        )
        self._restarts = prometheus.Counter(
            f"{prefix}restarts", "Restarts of processes", ["process"], registry=registry
        )
        for name, text, value in (
            ("queue_length", "Requests that wait for a worker", waiting),
            ("workers", "Workers that can answer", workers),
        ):
            prometheus.Gauge(f"{prefix}{name}", text, registry=registry).set_function(value)
        # Its result is the server and its thread from version 0.20 on.
        self._server: Optional[Any] = prometheus.start_http_server(port, host, registry)

    def request(self, status: int, seconds: float, queued: float) -> None:
        """Count a request."""
        self._requests.labels(status).inc()
        self._seconds.observe(seconds)
        self._queued.observe(queued)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.observe(size)

    def restarted(self, what: str) -> None:
        """Count a restart."""
        self._restarts.labels(what).inc()

    def close(self) -> None:
        """Close the port."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None

"""Metrics for Prometheus, if they are enabled."""

from typing import Any, Callable, Optional

_PREFIX = "sagemaker_mxnet_serving_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
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

    def gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        """Add a metric whose value is the result of a function, which is called in a thread."""

    def close(self) -> None:
        """Stop answering."""


class PrometheusMetrics(Metrics):
    """Metrics in Prometheus' format. A thread serves them on a port of their own.

    Args:
        host: the address to listen on.
        port: the port to listen on.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, host: str, port: int) -> None:
        import prometheus_client as prometheus  # only if metrics are enabled

        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._requests = prometheus.Counter(
            f"{_PREFIX}requests", "Requests answered, by HTTP status", ["status"], registry=registry
        )
        self._seconds = prometheus.Histogram(
            f"{_PREFIX}request_seconds",
            "Time from a request's head to its response",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queued = prometheus.Histogram(
            f"{_PREFIX}queue_seconds",
            "Time that a request waited for a worker",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = prometheus.Histogram(
            f"{_PREFIX}batch_requests",
            "Requests in a batch",
            buckets=_BATCHES,
            registry=registry,
        )
        self._restarts = prometheus.Counter(
            f"{_PREFIX}restarts", "Restarts of processes", ["process"], registry=registry
        )
        self._gauge = prometheus.Gauge
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

    def gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        """Add a gauge."""
        self._gauge(f"{_PREFIX}{name}", text, registry=self._registry).set_function(value)

    def close(self) -> None:
        """Close the port."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None

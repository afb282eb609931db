"""An HTTP endpoint that Prometheus scrapes."""

import numpy as np

_AGE_BUCKETS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)
_HINT = (
    "`prometheus_port` needs the package prometheus_client. Install it with "
    '`pip install "tf_slipstream[monitor]"`, or leave `prometheus_port` out.'
)


def _client():
    try:
        import prometheus_client
        import prometheus_client.core
    except ImportError as error:
        raise ImportError(_HINT) from error
    return prometheus_client


class PrometheusEndpoint:
    """Serves the latest of what is published, at `/metrics`.

    It has a registry of its own, so that metrics of the process are not in it, and several
    endpoints do not meet.

    Args:
        port: Port to listen at; 0: any that is free.
        address: Of the interface to listen at.

    Attributes:
        port: The port that it listens at.

    Raises:
        ImportError: Without prometheus_client.
        OSError: If it cannot listen there.
    """

    def __init__(self, port, address="0.0.0.0"):
        client = _client()
        self._families = ()
        registry = client.CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = client.start_http_server(port, address, registry)
        except OSError as error:
            raise OSError(
                error.errno,
                f"SlipstreamMonitor cannot listen at {address}:{port} ({error.strerror}); another "
                "process may do so. Give `prometheus_port` another number, or 0 for any that is "
                "free",
            ) from error
        self.port = self._server.server_port

    def collect(self):
        return self._families

    def describe(self):
        return ()

    def publish(self, families):
        """Takes the `Families` to serve from now on."""
        self._families = families.made()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Families:
    """Builds what an endpoint serves: numbers with labels, by the name of a metric."""

    def __init__(self):
        self._core = _client().core
        self._made = {}

    def gauge(self, name, help_text, value, **labels):
        self._add(self._core.GaugeMetricFamily, name, help_text, value, labels)

    def counter(self, name, help_text, value, **labels):
        self._add(self._core.CounterMetricFamily, name, help_text, value, labels)

    def histogram(self, name, help_text, values, **labels):
        """Adds how many of some values are at most 1, 3, 10, ... 30,000."""
        values = np.asarray(values, np.float64)
        buckets = [(str(edge), float((values <= edge).sum())) for edge in _AGE_BUCKETS]
        buckets.append(("+Inf", float(len(values))))
        family = self._family(self._core.HistogramMetricFamily, name, help_text, labels)
        family.add_metric([*labels.values()], buckets, sum_value=float(values.sum()))

    def _add(self, kind, name, help_text, value, labels):
        family = self._family(kind, name, help_text, labels)
        family.add_metric([*labels.values()], float(value))

    def _family(self, kind, name, help_text, labels):
        if name not in self._made:
            self._made[name] = kind(name, help_text, labels=[*labels])
        return self._made[name]

    def made(self):
        return tuple(self._made.values())

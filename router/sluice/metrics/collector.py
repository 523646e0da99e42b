# SPDX-License-Identifier: Apache-2.0
"""The router's state as Prometheus metrics: https://prometheus.io/docs/practices/naming/

Bytes and seconds throughout; rates are bits per second, as they are everywhere else here.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice import __version__
from sluice.control.router import LIMITS, Router

NOW = {"qps", "cqs", "mrs", "mws", "mr_bytes", "sessions"}
"""Counters of the engine that say how much there is now, not how much there ever was."""
LEFT_OUT = ("reserved", "max_bps", "min_bps", "last_refused", "device")

Source = Callable[[], Iterable[Metric]]


class RouterCollector(Collector):
    """A router, its engine, its tenants. Collected in the router's thread."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        status = self._router.status()
        info = GaugeMetricFamily("sluice_build_info", "1, with the version as a label.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily("sluice_start_time_seconds", "When the router started.", status["started"])
        yield CounterMetricFamily(
            "sluice_worker_busy_seconds", "Time the engine's workers did not sleep.", status["worker"]["busy_ns"] / 1e9
        )
        yield CounterMetricFamily("sluice_worker_parks", "How often a worker went to sleep.", status["worker"]["parks"])
        capacity = GaugeMetricFamily("sluice_device_capacity_bits_per_second", "Each way.", labels=["device"])
        for name, device in status["devices"].items():
            capacity.add_metric([name], device["capacity_bps"])
        yield capacity
        if status["cluster"] is not None:
            yield from _cluster(status["cluster"])
        yield from self._tenants(status["tenants"])

    def _tenants(self, tenants: dict[str, Any]) -> Iterator[Metric]:
        labels = ["tenant", "device"]
        processes = GaugeMetricFamily("sluice_tenant_processes", "Connected processes.", labels=["tenant"])
        limits = {
            "min": GaugeMetricFamily("sluice_tenant_min_bits_per_second", "Guaranteed, each way.", labels=labels),
            "max": GaugeMetricFamily("sluice_tenant_max_bits_per_second", "Ceiling, each way; 0: none.", labels=labels),
        }
        counters: dict[str, Metric] = {}
        for name, tenant in tenants.items():
            processes.add_metric([name], len(tenant["processes"]))
            for entry in tenant["devices"].values():
                device = entry["device"]
                for field, family in limits.items():
                    family.add_metric([name, device], entry[f"{field}_bps"])
                for counter, value in entry["counters"].items():
                    if counter.startswith(LEFT_OUT):
                        continue
                    family_name, scale = _name(counter)
                    now = counter in NOW
                    if counter not in counters:
                        make = GaugeMetricFamily if now else CounterMetricFamily
                        counters[counter] = make(family_name, f"{counter} in csrc/engine.h.", labels=labels)
                    by_limit = zip(LIMITS, value, strict=True) if isinstance(value, list) else [("", value)]
                    for limit, one in by_limit:
                        counters[counter].add_sample(
                            family_name if now else f"{family_name}_total",
                            {"tenant": name, "device": device} | ({"limit": limit} if limit else {}),
                            one * scale,
                        )
        yield processes
        yield from limits.values()
        yield from counters.values()


def _cluster(status: dict[str, Any]) -> Iterator[Metric]:
    up = GaugeMetricFamily("sluice_peer_up", "1 while that node's router answers.", labels=["node"])
    for name, peer in status["peers"].items():
        up.add_metric([name], int(peer["alive"]))
    yield up
    yield CounterMetricFamily(
        "sluice_strangers_refused", "Routers whose key is no node's of the cluster.", status["strangers"]
    )


def _name(counter: str) -> tuple[str, float]:
    if counter.endswith("_ns"):
        return f"sluice_tenant_{counter[:-3]}_seconds", 1e-9
    return f"sluice_tenant_{counter}", 1


class Metrics:
    """All collectors; text() is what Prometheus reads."""

    def __init__(self, router: Router) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RouterCollector(router))

    def add(self, source: Source) -> None:
        """source(): more metrics, made anew each time."""

        class Added(Collector):
            def collect(self) -> Iterable[Metric]:
                return source()

        self._registry.register(Added())

    def text(self) -> bytes:
        return generate_latest(self._registry)

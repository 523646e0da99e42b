# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes part's metrics: NICs, grants, the kubelet's calls, the API server's watches, the gate."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sluice.kubernetes.dra import BUCKETS
from sluice.kubernetes.node import KubernetesNode


def collect(node: KubernetesNode) -> Iterator[Metric]:
    nic = ["nic"]
    capacity = GaugeMetricFamily("sluice_nic_capacity_bits_per_second", "What may be granted.", labels=nic)
    usable = GaugeMetricFamily("sluice_nic_usable", "1 while pods can be placed on it.", labels=nic)
    used = GaugeMetricFamily("sluice_nic_used_bits_per_second", "What is granted.", labels=nic)
    tenants = {
        bound: GaugeMetricFamily(
            f"sluice_nic_tenant_{bound}_bits_per_second", f"{word} of a tenant on a NIC.", labels=["nic", "tenant"]
        )
        for bound, word in (("min", "Guarantee"), ("max", "Ceiling (0: none)"))
    }
    for each in node.attachments.nics():
        capacity.add_metric([each["name"]], each["capacity_bps"])
        used.add_metric([each["name"]], each["used_bps"])
        usable.add_metric([each["name"]], int(not each["unusable"]))
        for tenant, row in each["tenants"].items():
            for bound, family in tenants.items():
                family.add_metric([each["name"], tenant], row[f"{bound}_bps"])
    yield capacity
    yield used
    yield usable
    yield from tenants.values()
    yield GaugeMetricFamily("sluice_grants", "Prepared claims and allocations.", len(node.attachments.grants))
    yield _prepare_seconds(node)
    reachable = GaugeMetricFamily("sluice_watch_up", "1 while the API server answers this watch.", labels=["path"])
    objects = GaugeMetricFamily("sluice_watch_objects", "Objects in the copy.", labels=["path"])
    lists = CounterMetricFamily("sluice_watch_lists", "Times everything had to be read anew.", labels=["path"])
    for watch in node.directory.watches:
        reachable.add_metric([watch.path], int(watch.reachable))
        objects.add_metric([watch.path], len(watch.objects))
        lists.add_metric([watch.path], watch.lists)
    yield reachable
    yield objects
    yield lists
    for name, text, counts in (
        ("forbidden", "Connections that a NetworkPolicy refused.", node.gate.forbidden),
        ("ended", "Connections that a NetworkPolicy ended.", node.gate.ended),
    ):
        connections = CounterMetricFamily(f"sluice_connections_{name}", text, labels=["pod"])
        for pod, count in counts.items():
            connections.add_metric([pod], count)
        yield connections


def _prepare_seconds(node: KubernetesNode) -> HistogramMetricFamily:
    timings = node.plugin.timings
    buckets = [(str(bound), float(timings.within[bound])) for bound in BUCKETS]
    return HistogramMetricFamily(
        "sluice_prepare_claim_seconds",
        "Time to prepare a claim.",
        buckets=[*buckets, ("+Inf", float(timings.count))],
        sum_value=timings.total,
    )

# SPDX-License-Identifier: Apache-2.0
"""The router's devices on a node of a cluster: one for each NIC that the scheduler knows."""

from collections.abc import Mapping, Sequence

from sluice.device.node import DeviceSpec, with_capacities
from sluice.kubernetes.inventory import Nic
from sluice.policy.hierarchy import Capacity


def devices_of(nics: Sequence[Nic], chosen: Sequence[DeviceSpec], capacities: Mapping[str, int]) -> list[DeviceSpec]:
    """chosen: by --device, for the NICs that the router opens itself. capacities: with_capacities'.

    What auto found beyond the node's NICs is left alone. ValueError: one that was named is none of them.
    """
    known = {nic.interface for nic in nics}
    strange = [spec for spec in chosen if spec.nic is not None and spec.nic not in known]
    open_nics = {spec.nic for spec in chosen}
    specs = [
        # What the scheduler hands out; the NIC itself keeps the sum to it.
        DeviceSpec(
            nic.name,
            nic.interface if nic.interface in open_nics else None,
            Capacity(nic.bandwidth_bps, False, "its NIC"),
        )
        for nic in nics
    ]
    named = [spec.nic for spec in strange if not spec.found and spec.nic]
    if len(nics) == 1 and strange and specs[0].nic is None and len(named) < 2:
        # The RDMA device of the only interface, whatever the settings call that.
        specs = [DeviceSpec(specs[0].name, named[0] if named else strange[0].nic, specs[0].capacity)]
    elif named:
        interfaces = ", ".join(nic.interface for nic in nics)
        raise ValueError(f"--device {min(named)}: is none of the settings' nics, which are {interfaces}")
    return with_capacities(specs, capacities)

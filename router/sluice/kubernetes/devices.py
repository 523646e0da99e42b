# SPDX-License-Identifier: Apache-2.0
"""The router's devices on a node of a cluster: one for each NIC that the scheduler knows."""

from collections.abc import Mapping, Sequence

from sluice.device.node import DeviceSpec, with_capacities
from sluice.kubernetes.inventory import Nic
from sluice.policy.hierarchy import Capacity


def devices_of(nics: Sequence[Nic], chosen: Sequence[DeviceSpec], capacities: Mapping[str, int]) -> list[DeviceSpec]:
    """chosen: by --device, for the NICs that the router opens itself. capacities: with_capacities'.

    ValueError: a chosen one is none of the node's.
    """
    open_nics = {spec.nic for spec in chosen if spec.nic is not None}
    specs = [
        # What the scheduler hands out; the NIC itself keeps the sum to it.
        DeviceSpec(
            nic.name,
            nic.interface if nic.interface in open_nics else None,
            Capacity(nic.bandwidth_bps, False, "its NIC"),
        )
        for nic in nics
    ]
    strange = open_nics - {nic.interface for nic in nics}
    if len(nics) == 1 and len(strange) == 1:
        # The RDMA device of the only interface, whatever the settings call that.
        specs = [DeviceSpec(specs[0].name, strange.pop(), specs[0].capacity)]
    if strange:
        known = ", ".join(nic.interface for nic in nics)
        raise ValueError(f"--device {min(strange)}: is none of the settings' nics, which are {known}")
    return with_capacities(specs, capacities)

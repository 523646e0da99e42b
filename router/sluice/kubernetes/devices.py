# SPDX-License-Identifier: Apache-2.0
"""The router's devices on a node of a cluster: one for each NIC that the scheduler knows."""

from collections.abc import Mapping, Sequence

from sluice.device.node import DeviceSpec, with_capacities
from sluice.kubernetes.inventory import Nic
from sluice.policy.hierarchy import Capacity


def devices_of(
    nics: Sequence[Nic], chosen: Sequence[DeviceSpec], capacities: Mapping[str, int], paced: bool = True
) -> list[DeviceSpec]:
    """chosen: by --device, for the NICs that the router opens itself. capacities: with_capacities'.

    paced: traffic of a NIC that the router doesn't open keeps together to its bandwidth. On a link that is full of TCP
    connections, the kernel gives each its share, and knows of no guarantees: the queue has to be in the router. A NIC
    that it opens has few bytes at a time, and takes the next when it is through with them.

    What auto found beyond the node's NICs is left alone. ValueError: one that was named is none of them.
    """
    known = {nic.interface for nic in nics}
    strange = [spec for spec in chosen if spec.nic is not None and spec.nic not in known]
    open_nics = {spec.nic for spec in chosen}

    def spec(nic: Nic, opened: str | None) -> DeviceSpec:
        return DeviceSpec(nic.name, opened, Capacity(nic.bandwidth_bps, paced and opened is None, "its NIC"))

    specs = [spec(nic, nic.interface if nic.interface in open_nics else None) for nic in nics]
    named = [spec.nic for spec in strange if not spec.found and spec.nic]
    if len(nics) == 1 and strange and specs[0].nic is None and len(named) < 2:
        # The RDMA device of the only interface, whatever the settings call that.
        specs = [spec(nics[0], named[0] if named else strange[0].nic)]
    elif named:
        interfaces = ", ".join(nic.interface for nic in nics)
        raise ValueError(f"--device {min(named)}: is none of the settings' nics, which are {interfaces}")
    return with_capacities(specs, capacities)

# SPDX-License-Identifier: Apache-2.0
"""The virtual device: what ibv_query_device and ibv_query_port tell a tenant."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from sluice import __version__
from sluice.device.nic import Nic
from sluice.engine import ffi, lib


def device_name(number: int) -> str:
    """As tenants see it: each counts its own devices from 0."""
    return f"sluice{number}"


NO_VENDOR = 0xFFFFFF
"""Instead of a vendor's OUI, as other devices in software have it (rxe); 0 counts as not filled in."""

# Numbers of rdma-core's enums (infiniband/verbs.h).
GID_TYPE_ROCE_V2 = 2
PORT_ACTIVE = 4
MTU_4096 = 5
WIDTH_4X = 2
SPEED_EDR = 32  # 4 lanes of 25 Gb/s


@dataclass(frozen=True)
class VirtualDevice:
    """One device of a tenant: the GIDs of its NIC, where it has one, then the tenant's address, IPv4-mapped, RoCE v2.

    The NIC's GIDs come first, since applications that choose for themselves take the first that fits.
    number: among the tenant's devices. of_node: the engine's, among the node's.
    """

    address: IPv4Address
    nic: Nic | None = None
    number: int = 0
    of_node: int = 0

    @property
    def name(self) -> str:
        return device_name(self.number)

    @property
    def gid(self) -> bytes:
        return bytes(10) + b"\xff\xff" + self.address.packed

    @property
    def nic_gids(self) -> tuple[bytes, ...]:
        return () if self.nic is None else tuple(self.nic.gids)

    @property
    def gids(self) -> list[bytes]:
        """Its table."""
        return [*self.nic_gids, self.gid]

    @property
    def gid_count(self) -> int:
        return len(self.gids)

    def is_of_nic(self, index: int) -> bool:
        """Whether the GID at this index is one of the NIC's."""
        return self.nic is not None and index < len(self.nic.gids)

    @property
    def node_guid(self) -> bytes:
        """EUI-64 with the local bit set, as for an address that no vendor gave."""
        return bytes([0x02, 0x53, 0x4C, 0xFF - self.number]) + self.address.packed

    def describe(self, reply: Any) -> None:
        """Fills a struct sluice_device_reply, all but its header."""
        guid = int.from_bytes(self.node_guid, "little")  # the eight bytes as they lie in memory
        reply.fw_ver = __version__.encode()
        reply.node_guid = guid
        reply.sys_image_guid = guid
        reply.max_mr_size = 1 << lib.SLUICE_ARENA_SHIFT
        reply.page_size_cap = 0xFFFFF000
        reply.vendor_id = NO_VENDOR
        reply.max_qp = lib.SLUICE_SESSION_QPS
        reply.max_qp_wr = lib.SLUICE_MAX_WR
        reply.max_sge = lib.SLUICE_MAX_SGE
        reply.max_inline = lib.SLUICE_MAX_INLINE
        reply.max_cq = lib.SLUICE_SESSION_CQS - 1
        reply.max_cqe = lib.SLUICE_MAX_CQE
        reply.max_mr = lib.SLUICE_TENANT_MRS
        reply.max_pd = lib.SLUICE_SESSION_PDS
        reply.max_qp_rd_atom = 128
        reply.max_srq = lib.SLUICE_SESSION_SRQS - 1
        reply.max_srq_wr = lib.SLUICE_MAX_WR
        reply.max_srq_sge = lib.SLUICE_MAX_SGE
        reply.max_ah = lib.SLUICE_SESSION_AHS - 1
        reply.max_mcast_grp = lib.SLUICE_TENANT_GROUPS
        reply.max_mcast_qp_attach = lib.SLUICE_GROUP_QPS
        reply.max_total_mcast_qp_attach = lib.SLUICE_TENANT_GROUPS
        reply.port_state = PORT_ACTIVE
        reply.active_mtu = MTU_4096
        reply.active_speed = SPEED_EDR
        reply.active_width = WIDTH_4X
        reply.gid_count = self.gid_count
        for entry, gid in zip(reply.gids, self.gids, strict=False):
            ffi.memmove(entry.raw, gid, 16)
            entry.type = GID_TYPE_ROCE_V2
        if self.nic is not None:
            self.nic.limit(reply)

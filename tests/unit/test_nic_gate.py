# SPDX-License-Identifier: Apache-2.0
"""Whom a queue pair may be connected to by the NIC, whose GID is that of all tenants of the node."""

import errno
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any, cast

import pytest
from sluice.cluster.directory import Directory, gid_of_address
from sluice.control.cm.address import gid_of
from sluice.control.connections import OpenGate
from sluice.control.qp_state import Attr, State, Type
from sluice.control.session import Session
from sluice.control.verbs import Verbs
from sluice.device.host import IP
from sluice.device.nic import Nic
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, ffi
from sluice.engine.engine import Shape

OWN, FRIEND, FOE, NIC, HOST = (IPv4Address(f"192.0.2.{last}") for last in range(1, 6))
OUTSIDE = IPv4Address("198.51.100.1")
NIC6, HOST6, OUTSIDE6, FORBIDDEN_OUTSIDE6 = (IPv6Address(f"2001:db8::{last}") for last in range(1, 5))
FORBIDDEN_OUTSIDE = IPv4Address("198.51.100.2")
FRIENDS_QP, FOES_QP, NOBODYS_QP = 17, 18, 19
RTR = Attr.STATE | Attr.AV | Attr.PATH_MTU | Attr.DEST_QPN | Attr.RQ_PSN | Attr.MAX_DEST_RD_ATOMIC | Attr.MIN_RNR_TIMER


class Asked(Engine):
    """An engine of which it is noted how a QP is to be connected: by the NIC, and behind which of the node's."""

    state = State.INIT
    path = OUTSIDE
    connected: tuple[bool, int | None, int | None]
    tenants: dict[int, int]

    def query_qp(self, session: int, handle: int, attr: Any) -> None:
        attr.qp_state = self.state
        attr.ah.is_global = attr.ah.port_num = 1
        ffi.memmove(attr.ah.dgid, gid_of_address(self.path), 16)

    def qp_type(self, session: int, handle: int) -> int:
        return Type.RC

    def device_of_qp(self, session: int, handle: int) -> int:
        return 0

    def tenant_of_qp(self, number: int, device: int) -> int | None:
        return self.tenants.get(number)

    def shares_receives(self, session: int, handle: int, number: int) -> bool:
        return True

    def qp_number(self, session: int, handle: int) -> int:
        return 1

    def modify_qp(
        self,
        session: int,
        handle: int,
        attr: Any,
        mask: int,
        peer: int | None,
        now: Any,
        remote: bool = False,
        nic: bool = False,
        behind: int | None = None,
    ) -> None:
        self.connected = (nic, peer, behind)


class FoesGate(OpenGate):
    def admits(self, source: IP, destination: IP, port: int | None = None) -> bool:
        return destination not in (FOE, FORBIDDEN_OUTSIDE, FORBIDDEN_OUTSIDE6)


class OneNic:
    """As much of a Nic as is asked."""

    gids = (gid_of_address(NIC), NIC6.packed)

    def device_of(self, gid: bytes) -> int | None:
        return 0 if gid in self.gids else None

    def reach(self, gid_index: int, gid: bytes) -> None:
        return None


class Process:
    number = 0


class Tenant:
    def __init__(self, engine: Asked) -> None:
        self.engine = engine
        own, friend, foe = (engine.add_tenant(Shape()) for _ in range(3))
        engine.tenants = {FRIENDS_QP: friend, FOES_QP: foe}
        directory = Directory()
        for tenant, name, address in ((own, "own", OWN), (friend, "friend", FRIEND), (foe, "foe", FOE)):
            directory.assign(tenant, name, address)
        self.verbs = Verbs(engine, directory, FoesGate())
        self.verbs.set_devices(OWN, [VirtualDevice(OWN, cast(Nic, OneNic()))])

    def modify(self, state: State, destination: IP, qp_num: int, mask: Attr = RTR, gid_index: int = 0) -> None:
        request = ffi.new("struct sluice_modify_qp_request *", {"attr_mask": int(mask)})
        request.attr.qp_state, request.attr.dest_qp_num, request.attr.path_mtu = state, qp_num, 3
        request.attr.ah.is_global = request.attr.ah.port_num = 1
        request.attr.ah.sgid_index = gid_index
        ffi.memmove(request.attr.ah.dgid, gid_of(destination), 16)
        reply = ffi.new("struct sluice_qp_reply *")
        self.verbs._modify_qp(cast(Session, Process()), request, reply)

    def connect(self, destination: IP, qp_num: int, gid_index: int = 0) -> tuple[bool, int | None, int | None]:
        """Whether it is by the NIC, who is the peer, and behind which device's NIC he is."""
        self.modify(State.RTR, destination, qp_num, gid_index=gid_index)
        return self.engine.connected


@pytest.fixture
def tenant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenant]:
    monkeypatch.setattr("sluice.control.verbs.is_of_host", lambda address: address in (NIC, HOST, NIC6, HOST6))
    engine = Asked()
    with engine:
        yield Tenant(engine)


def test_behind_the_nodes_own_gid_the_tenant_is_asked_about(tenant: Tenant) -> None:
    assert tenant.connect(NIC, FRIENDS_QP) == (True, None, 0)
    assert tenant.connect(NIC, FOES_QP) == (False, None, 0)
    # Nobody's yet: whoever will have the number is to name this one, which the engine sees to.
    assert tenant.connect(NIC, NOBODYS_QP) == (True, None, 0)


def test_hosts_outside_are_asked_about(tenant: Tenant) -> None:
    assert tenant.connect(OUTSIDE, FOES_QP) == (True, None, None)
    assert tenant.connect(FORBIDDEN_OUTSIDE, FOES_QP) == (False, None, None)


def test_no_other_address_of_the_host_leads_to_its_nic(tenant: Tenant) -> None:
    assert tenant.connect(HOST, FOES_QP) == (False, None, None)


def test_ipv6_is_asked_about_in_the_same_way(tenant: Tenant) -> None:
    assert tenant.connect(NIC6, FRIENDS_QP, 1) == (True, None, 0)
    assert tenant.connect(NIC6, FOES_QP, 1) == (False, None, 0)
    assert tenant.connect(OUTSIDE6, FOES_QP, 1) == (True, None, None)
    assert tenant.connect(FORBIDDEN_OUTSIDE6, FOES_QP, 1) == (False, None, None)
    assert tenant.connect(HOST6, FOES_QP, 1) == (False, None, None)
    # The tenant's own network knows IPv4 only; a NIC knows both, but no way from the one to the other.
    assert tenant.connect(OUTSIDE6, FOES_QP, 2) == (False, None, None)
    for destination, gid_index in ((OUTSIDE6, 0), (OUTSIDE, 1)):
        with pytest.raises(OSError) as refused:
            tenant.connect(destination, FOES_QP, gid_index)
        assert refused.value.errno == errno.EINVAL


def test_a_connection_stays_with_its_destination(tenant: Tenant) -> None:
    tenant.engine.state = State.SQD
    tenant.modify(State.SQD, OUTSIDE, 0, Attr.AV)
    for destination in (FORBIDDEN_OUTSIDE, NIC):
        with pytest.raises(OSError) as refused:
            tenant.modify(State.SQD, destination, 0, Attr.AV)
        assert refused.value.errno == errno.EINVAL

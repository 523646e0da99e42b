# SPDX-License-Identifier: Apache-2.0
"""The router: all tenants of a node, the engine, and what the operator asks over the admin socket.

The state directory holds:
    router.lock      held while the router runs; inside its process number, and the command that started it
    admin            zmq REP: JSON requests of the command line (admin.py)
    counters         the engine's counters (csrc/engine.h)
    tenants/NAME/    a tenant's directory
"""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import zmq

from sluice.cluster.connector import Connector
from sluice.cluster.directory import AddressError, Directory, address_of
from sluice.cluster.join import Joins
from sluice.cluster.links import Links
from sluice.cluster.nics import PeerNics
from sluice.control.cm.address import gid_of
from sluice.control.cm.link import Link
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.outside import Outside
from sluice.control.cm.place import ClusterLocator
from sluice.control.cm.realm import HostRealm
from sluice.control.connections import Gate, OpenGate
from sluice.control.tenant import Tenant, check_room
from sluice.device.host import IP
from sluice.device.nic import DEVICE_FATAL, PORT_EVENTS, PORT_IS_ACTIVE, Nic, lockable
from sluice.device.node import DeviceSpec, NodeDevice, NodeDevices
from sluice.engine import AhUnresolved, Engine, Member, Neighbour, QpDisconnected, TrunkDisconnected, VerbGoesOn, lib
from sluice.engine.counters import Counters
from sluice.policy.file import DevicePolicies, PolicyFile, load_policies
from sluice.policy.hierarchy import Capacity, Hierarchy
from sluice.policy.policy import GroupPolicy, Policy, PolicyError, check_name

log = logging.getLogger(__name__)


LIMITS = [
    "egress",
    "ingress",
    "ops",
    "verbs",
    "engine",
    "peer",
    "mrs",
    "mr-bytes",
    "qps",
    "cqs",
    "files",
    "windows",
    "objects",
]
"""Names of enum sluice_limit: what throttled_ns, refused and last_refused of the counters are indexed by."""


ASK_AGAIN_SECONDS = 1.0
"""How long a sender to groups is unheard whom another router named, and whom the directory doesn't know at its node."""

NIC_SECONDS = 1.0
"""How often to see whether a device was removed, or is back."""


class AlreadyRunning(RuntimeError):
    """Another router has this state directory."""


@dataclass(frozen=True)
class _Change:
    """What a policy file changes on a device."""

    device: NodeDevice
    capacity: Capacity | None
    groups: Mapping[str, GroupPolicy]
    tenants: Mapping[str, Policy]
    dropped: frozenset[str]

    def try_out(self, hierarchy: Hierarchy) -> None:
        """PolicyError where apply would raise it."""
        hierarchy.would_accept(self.capacity, self.groups, self.tenants, self.dropped)

    def apply(self, hierarchy: Hierarchy) -> None:
        hierarchy.apply(self.capacity, self.groups, self.tenants, self.dropped)


class Router:
    """Make it inside a running event loop; close it there too."""

    def __init__(
        self,
        state_dir: Path,
        membership: Joins | None = None,
        devices: Sequence[DeviceSpec] = (DeviceSpec(),),
        command: str = "",
    ) -> None:
        """command: for who has to start it again.

        OSError, AlreadyRunning; ValueErrors: NicError, with a membership ClusterFileError and KeyFileError.
        """
        check_room(state_dir / "tenants" / "a")
        state_dir.mkdir(parents=True, exist_ok=True)
        # Who reaches a tenant's directory is that tenant: other users of the host are nobody's.
        (state_dir / "tenants").mkdir(mode=0o700, exist_ok=True)
        (state_dir / "tenants").chmod(0o700)
        self.state_dir = state_dir
        self._lock = self._take_lock(command)
        self._engine = Engine(state_dir / "counters")
        try:
            self.devices = NodeDevices(self._engine, devices)
        except ValueError:
            self._engine.close()
            raise
        self.counters = Counters(state_dir / "counters")
        self._from_file: set[tuple[str, str]] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.directory = Directory()
        self.links: Links | None = None
        self._connector: Connector | None = None
        if membership is not None:
            self.directory, self.links = membership.join()
            self._connector = Connector(self.links, self.directory, self._engine)
            self.directory.remote = self._connector
        self.gate: Gate = OpenGate()
        self.orchestrator: Callable[[], dict[str, Any] | None] = lambda: None
        host, loop = HostRealm(), asyncio.get_running_loop()
        self._outside = self._find_outside()
        outside = list(self._outside.values())
        self._cm_link: Link | None = None
        self._peer_nics: PeerNics | None = None
        if self.links is None:
            locator = ClusterLocator(self.directory, host, outside=self._way_out)
            self.cm = CommunicationManager(locator, host, self, loop, outside=outside, unread=self._engine.unread)
        else:
            self._cm_link = link = Link(self.links, self.directory)
            self._peer_nics = PeerNics(self.links, self._nic_addresses)
            locator = ClusterLocator(self.directory, host, self.links.node_at, self._way_out, self._peer_nics.has)
            self.cm = CommunicationManager(
                locator, host, self, loop, link=link.send, outside=outside, unread=self._engine.unread
            )
            link.attach(self.cm)
        for one in outside:
            one.attach(self.cm)
        self.tenants: dict[str, Tenant] = {}
        self.started = time.time()
        asyncio.get_running_loop().add_reader(self._engine.event_fd(), self._on_engine_event)
        self._misplaced: set[IP] = set()
        self._misplaced_timer: asyncio.TimerHandle | None = None
        self._nic_watch: asyncio.TimerHandle | None = None
        for device in self.devices:
            if device.nic is not None:
                log.warning("device %s: %s", device.name, device.nic.describe())
                asyncio.get_running_loop().add_reader(device.nic.event_fd(), self._on_nic_event, device, device.nic)
        if any(device.nic is not None for device in self.devices) and (limit := lockable()) is not None:
            log.warning(
                "tenants can register %d KiB with NICs, then ENOMEM: give the router CAP_IPC_LOCK, or raise its "
                "RLIMIT_MEMLOCK (LimitMEMLOCK= of systemd, --ulimit memlock= of containers)",
                limit >> 10,
            )
        self._watch_nics()

    def _find_outside(self) -> dict[Nic, Outside]:
        """Hosts behind each NIC, where the host has an rdma_cm."""
        found = {}
        for nic in [device.nic for device in self.devices if device.nic is not None]:
            try:
                found[nic] = Outside(nic.name, nic.addresses)
            except OSError as error:
                log.warning("rdma_cm doesn't reach hosts behind %s: librdmacm: %s", nic.name, error)
        return found

    def _way_out(self, ip: IP) -> str | None:
        return self.cm.way_out(ip)

    def _nic_addresses(self) -> dict[IPv4Address, str]:
        """Of all NICs that are there, with their names: those that may be a node's own too."""
        nics = [device.nic for device in self.devices if device.nic is not None and device.nic.present]
        return {ip: nic.name for nic in nics for ip in nic.addresses() if isinstance(ip, IPv4Address)}

    def _take_lock(self, command: str) -> int:
        path = self.state_dir / "router.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode(errors="replace").partition("\n")[0]
            os.close(lock)
            raise AlreadyRunning(
                f"a router (pid {pid}) already runs with the state directory {self.state_dir}"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n{command}\n".encode())
        return lock

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        return self._context

    def _on_engine_event(self) -> None:
        for event in self._engine.events():
            if isinstance(event, QpDisconnected):
                if self._connector is not None:
                    self._connector.disconnected(event.session, event.handle)
                continue
            if isinstance(event, TrunkDisconnected):
                if self._connector is not None:
                    self._connector.trunks.disconnected(event.trunk)
                continue
            if isinstance(event, Neighbour):
                for tenant in self.tenants.values():
                    if tenant.number == event.tenant:
                        tenant.admit_neighbour(event.peer)
                continue
            if isinstance(event, Member):
                hears = self._hears(event.tenant, event.sender, event.trunk)
                self._engine.admit_member(event.sender, event.tenant, hears, event.trunk)
                continue
            for tenant in self.tenants.values():
                session = tenant.sessions.get(event.session)
                if session is None:
                    continue
                if isinstance(event, VerbGoesOn):
                    session.go_on()
                elif isinstance(event, AhUnresolved):
                    tenant.resolve_ah(event.session, event.handle, event.gid)
                else:
                    log.warning(
                        "tenant %s: session %d (pid %d): %s", tenant.name, event.session, session.pid, event.reason
                    )
                    session.end(f"garbage in its shared memory: {event.reason}")

    def _on_nic_event(self, device: NodeDevice, nic: Nic) -> None:
        for event in nic.events():
            if event not in PORT_EVENTS:
                continue
            if event == DEVICE_FATAL:
                self._lose_nic(device, nic)
                return
            nic.renew()
            if nic in self._outside:
                self._outside[nic].renew()
            self._tell_of_nic(device, nic, event)

    def _tell_of_nic(self, device: NodeDevice, nic: Nic, event: int) -> None:
        if self._peer_nics is not None:
            self._peer_nics.changed()
        for tenant in self.tenants.values():
            tenant.renew_devices()
            tenant.tell(device, event, 1)
        # Last: who reads it finds the device so.
        log.warning("device %s: %s: %s", device.name, PORT_EVENTS[event], nic.describe())

    def _lose_nic(self, device: NodeDevice, nic: Nic) -> None:
        asyncio.get_running_loop().remove_reader(nic.event_fd())
        if nic in self._outside:
            self._outside[nic].suspend()
        nic.lost()
        self._tell_of_nic(device, nic, DEVICE_FATAL)

    def _watch_nics(self) -> None:
        with_nic = [(device, device.nic) for device in self.devices if device.nic is not None]
        for device, nic in with_nic:
            self._look_at_nic(device, nic)
        if with_nic:
            self._nic_watch = asyncio.get_running_loop().call_later(NIC_SECONDS, self._watch_nics)

    def _look_at_nic(self, device: NodeDevice, nic: Nic) -> None:
        if nic.present and not nic.is_there():
            self._lose_nic(device, nic)
        elif not nic.present and nic.came_back():
            asyncio.get_running_loop().add_reader(nic.event_fd(), self._on_nic_event, device, nic)
            if nic in self._outside:
                self._outside[nic].resume()
            self._tell_of_nic(device, nic, PORT_IS_ACTIVE)
        elif nic in self._outside:
            self._outside[nic].renew()

    def add_tenant(
        self,
        name: str,
        policies: Mapping[str, Policy],
        address: IPv4Address | None = None,
        late_address: bool = False,
        keep: bool = False,
    ) -> Tenant:
        """The tenant with this name; made where there is none, with this address or a free one.

        policies: by the devices that a new one is given, "" for the first; one that there is keeps what it has.
        late_address: Tenant.set_address tells where it is. keep: its directory outlives the router.
        ValueError (AddressError where another tenant has the address), OSError.
        """
        if name in self.tenants:
            tenant = self.tenants[name]
            if address is not None and tenant.address != address:
                raise AddressError(f"tenant {name!r} has the address {tenant.address} already, not {address}")
            return tenant
        path = self.state_dir / "tenants" / check_name(name)
        given = {self.devices.find(device): policy for device, policy in policies.items()}
        try:
            tenant = Tenant(
                name,
                path,
                given,
                self._engine,
                self.directory,
                self._context,
                self,
                self.cm,
                self.counters,
                address,
                late_address,
                keep,
            )
        except OSError as error:
            # The engine's too has a place: its counters are in the state directory.
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
        self.tenants[name] = tenant
        log.info("tenant %s: added, address %s", name, tenant.address or "not known yet")
        return tenant

    def admits(self, source: IP, destination: IP, port: int | None = None) -> bool:
        """Whether these two addresses may connect (connections.Gate)."""
        return self.gate.admits(source, destination, port)

    def delivers(self, sender: IP, member: IP) -> bool:
        """Whether what sender sends to groups comes to member (connections.Gate)."""
        return self.gate.delivers(sender, member)

    def set_orchestrator(self, status: Callable[[], dict[str, Any]]) -> None:
        """Who makes the tenants here: what its part of the router's status is."""
        self.orchestrator = status

    def set_gate(self, gate: Gate) -> None:
        """Before there are sessions: from now on this one decides."""
        self.gate = gate
        self._engine.close_gate()

    def forget_members(self, sender: IP | None = None) -> None:
        """What the gate said of who hears a sender, or all of them, may be wrong by now."""
        self._engine.forget_members(None if sender is None else gid_of(sender))

    def _hears(self, tenant: int, sender: bytes, trunk: int | None) -> bool:
        """trunk: by which the datagram has come, whose node's router says who sent it; None: from this node."""
        source, member = address_of(sender), self.directory.address_of_tenant(tenant)
        if source is None or member is None or not self.delivers(source, member):
            return False
        if trunk is None or (self._connector is not None and self._connector.is_from(source, trunk)):
            return True
        # The directory may know it there by then.
        self._misplaced.add(source)
        if self._misplaced_timer is None:
            self._misplaced_timer = asyncio.get_running_loop().call_later(ASK_AGAIN_SECONDS, self._forget_misplaced)
        return False

    def _forget_misplaced(self) -> None:
        self._misplaced_timer = None
        for source in self._misplaced:
            self.forget_members(source)
        self._misplaced.clear()

    def find_tenant(self, name: str) -> Tenant:
        try:
            return self.tenants[name]
        except KeyError:
            known = ", ".join(sorted(self.tenants)) or "none yet"
            raise PolicyError(f"there is no tenant {name!r}; there are: {known}") from None

    def remove_tenant(self, name: str, force: bool = False, keep: bool = False) -> None:
        """force: also under running processes. keep: its directory stays (add_tenant). PolicyError."""
        tenant = self.find_tenant(name)
        if tenant.sessions and not force:
            raise PolicyError(f"tenant {name!r} has {len(tenant.sessions)} running processes")
        tenant.close(keep)
        del self.tenants[name]
        log.info("tenant %s: removed", name)

    def give_device(self, name: str, device: str, policy: Policy) -> None:
        """Another device for a tenant that there is; one that it has stays as it is. PolicyError, OSError."""
        tenant, node = self.find_tenant(name), self.devices.find(device)
        if all(one.node is not node for one in tenant.devices):
            tenant.add_device(node, policy)
            log.info("tenant %s: device %s", name, node.name)

    def set_policy(self, name: str, fields: Mapping[str, object], device: str = "") -> Policy:
        """device: one of the tenant's, empty for its first."""
        tenant = self.find_tenant(name)
        node = self.devices.find(device) if device else tenant.devices[0].node
        tenant.device(node)
        policy = tenant.policy_on(node).changed(fields)
        self.devices.change(node, lambda hierarchy: hierarchy.set_tenant(name, policy))
        log.info("tenant %s, device %s: policy %s", name, node.name, policy.fields() or "without limits")
        return policy

    def set_group(self, name: str, fields: Mapping[str, object], device: str = "") -> GroupPolicy:
        """Changes a group of a device; makes it where there is none."""
        node = self.devices.find(device)
        group = node.hierarchy.groups.get(check_name(name, "group"), GroupPolicy()).changed(fields)
        self.devices.change(node, lambda hierarchy: hierarchy.set_group(name, group))
        log.info("group %s, device %s: policy %s", name, node.name, group.fields() or "without limits")
        return group

    def load_policies(self, path: Path, whole: bool = False) -> list[str]:
        """Applies a policy file: all of it or nothing. Returns the tenants' names.

        whole: the file is all there is; what an earlier one said and this doesn't is lifted.
        PolicyError with file:line: field: for the first mistake.
        """
        file = load_policies(path)
        try:
            said = self.devices.of_file(file.devices)
            changes = [self._change(device, policies, whole) for device, policies in said.items()]
            for change in changes:
                self.devices.change(change.device, change.try_out)
        except PolicyError as error:
            line = file.lines.get(error.field)
            where = f"{error.field}: " if error.field in file.lines else ""
            raise PolicyError(f"{path}{'' if line is None else f':{line}'}: {where}{error}") from None
        moved = []
        for name in self._moving(path, file):
            had = {one.node.name: self.tenants[name].policy_on(one.node) for one in self.tenants[name].devices}
            self.remove_tenant(name, keep=True)
            moved.append((name, had))
        for name, had in moved:
            self.add_tenant(name, had, file.addresses[name])
        for name in file.tenants:
            given = {device.name: Policy() for device, policies in said.items() if name in policies.tenants}
            self.add_tenant(name, given, file.addresses.get(name))
            for device in given:
                self.give_device(name, device, Policy())
        for change in changes:
            change.apply(change.device.hierarchy)
        from_file = {(device.name, name) for device, policies in said.items() for name in policies.tenants}
        self._from_file = from_file if whole else self._from_file | from_file
        return sorted(file.tenants)

    def _change(self, device: NodeDevice, said: DevicePolicies, whole: bool) -> "_Change":
        hierarchy = device.hierarchy
        earlier = {name for name in hierarchy.tenants if (device.name, name) in self._from_file}
        gone = earlier - said.tenants.keys() if whole else set()
        dropped = frozenset(hierarchy.groups.keys() - said.groups.keys()) if whole else frozenset()
        policies = said.tenants | {name: Policy() for name in gone}
        # A tenant that "sluice run" or a claim made keeps its group, which the file can't take from under it.
        dropped -= {policy.group for name, policy in hierarchy.tenants.items() if name not in policies}
        capacity = hierarchy.given_capacity(said.capacity) if whole or said.capacity else None
        return _Change(device, capacity, said.groups, policies, dropped)

    def _moving(self, path: Path, file: PolicyFile) -> list[str]:
        """The tenants that a file gives other addresses. PolicyError where it can't."""
        present = {name: tenant for name, tenant in self.tenants.items() if name in file.addresses and tenant.address}
        moving = [name for name, tenant in present.items() if tenant.address != file.addresses[name]]
        leaving = [address for name in moving if (address := self.tenants[name].address)]
        for name, wanted in file.addresses.items():
            if name in present and name not in moving:
                continue
            try:
                if name in self.tenants and self.tenants[name].sessions:
                    has = self.tenants[name].address
                    raise AddressError(f"tenant {name!r} has the address {has}, and processes that run with it")
                self.directory.check(name, wanted, leaving)
            except AddressError as error:
                where = f"tenants.{name}.ip"
                raise PolicyError(f"{path}:{file.lines[where]}: {where}: {error}") from None
        return moving

    def status(self) -> dict[str, Any]:
        """Counters as they are now; time_ns beside them makes rates of two."""
        qps = self.counters.qps()
        now = time.monotonic_ns()
        devices = {device.name: self._device_status(device) for device in self.devices}
        first = devices[self.devices.first.name]
        return {
            "time_ns": now,
            "pid": os.getpid(),
            "started": self.started,
            "worker": {field: int(self.counters.header[f"worker_{field}"]) for field in ("loops", "parks", "busy_ns")},
            "device": {field: first[field] for field in ("capacity_bps", "wire")},
            "limits": LIMITS,
            "groups": first["groups"],
            "devices": devices,
            "tenants": {name: self._tenant_status(tenant, qps) for name, tenant in self.tenants.items()},
            "cluster": self._cluster_status(),
            "orchestrator": self.orchestrator(),
        }

    def _device_status(self, device: NodeDevice) -> dict[str, Any]:
        hierarchy = device.hierarchy
        return {
            "capacity_bps": hierarchy.capacity.bps,
            "wire": hierarchy.capacity.wire,
            "nic": None if device.nic is None else device.nic.name,
            "groups": {
                name: {"policy": group.fields(), "counters": self.counters.group(hierarchy.group_numbers[name])}
                for name, group in hierarchy.groups.items()
            },
        }

    def _tenant_status(self, tenant: Tenant, qps: Any) -> dict[str, Any]:
        """The fields of its first device, and under devices those of each."""
        devices: dict[str, dict[str, Any]] = {}
        of_tenant = []
        for device in tenant.devices:
            policy = tenant.policy_on(device.node)
            devices[device.name] = {
                "device": device.node.name,
                "policy": policy.fields(),
                "group": policy.group,
                "min_bps": policy.min_bps,
                "max_bps": policy.max_bps,
                "weight": policy.weight or lib.SLUICE_WEIGHT_DEFAULT,
                "counters": self.counters.tenant(device.tenant),
            }
            for row in qps[qps["tenant"] == device.tenant]:
                fields = {field: int(row[field]) for field in qps.dtype.names or () if field != "reserved"}
                of_tenant.append(fields | {"device": device.name})
        return {
            "address": str(tenant.address or ""),
            "processes": [session.pid for session in tenant.sessions.values()],
            "rdma_cm": tenant.cm_status(),
            "qps": of_tenant,
            **devices[tenant.devices[0].name],
            "devices": devices,
        }

    def _cluster_status(self) -> dict[str, Any] | None:
        if self.links is None or self._connector is None:
            return None
        return {**self.links.status(), "connections": self._connector.status()}

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._engine.event_fd())
        if self._misplaced_timer is not None:
            self._misplaced_timer.cancel()
        if self._nic_watch is not None:
            self._nic_watch.cancel()
        for device in self.devices:
            if device.nic is not None:
                if device.nic.present:
                    asyncio.get_running_loop().remove_reader(device.nic.event_fd())
                device.nic.close()
        for tenant in self.tenants.values():
            tenant.close(keep=True)
        self.tenants.clear()
        if self._cm_link is not None:
            self._cm_link.close()
        if self._peer_nics is not None:
            self._peer_nics.close()
        for outside in self._outside.values():
            outside.close()
        if self._connector is not None:
            self._connector.close()
        if self.links is not None:
            self.links.close()
        self._engine.close()
        self._context.destroy(linger=0)
        (self.state_dir / "counters").unlink(missing_ok=True)
        (self.state_dir / "router.lock").unlink(missing_ok=True)
        os.close(self._lock)

# SPDX-License-Identifier: Apache-2.0
"""The router: all tenants of a node, the engine, and what the operator asks over the admin socket.

The state directory holds:
    router.lock      held while the router runs; its process number inside
    admin            zmq REP: JSON requests of the command line (admin.py)
    counters         the engine's counters (csrc/engine.h)
    tenants/NAME/    a tenant's directory
"""

import asyncio
import fcntl
import logging
import os
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import zmq

from sluice.cluster.connector import Connector
from sluice.cluster.directory import AddressError, Directory
from sluice.cluster.join import Joins
from sluice.cluster.links import Links
from sluice.control.cm.link import Link
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.place import ClusterLocator
from sluice.control.cm.realm import HostRealm
from sluice.control.connections import Gate, OpenGate
from sluice.control.tenant import Tenant
from sluice.device.nic import DEVICE_FATAL, PORT_EVENTS, Nic, find_device
from sluice.engine import Engine, QpDisconnected, TrunkDisconnected, lib
from sluice.engine.counters import Counters
from sluice.policy.file import load_policies
from sluice.policy.hierarchy import Capacity, Hierarchy
from sluice.policy.policy import GroupPolicy, Policy, PolicyError, check_name

log = logging.getLogger(__name__)


LIMITS = ["egress", "ingress", "ops", "verbs", "engine", "peer", "mrs", "mr-bytes", "qps", "cqs", "files", "windows"]
"""Names of enum sluice_limit: what throttled_ns, refused and last_refused of the counters are indexed by."""


class AlreadyRunning(RuntimeError):
    """Another router has this state directory."""


class Router:
    """Make it inside a running event loop; close it there too."""

    def __init__(
        self,
        state_dir: Path,
        membership: Joins | None = None,
        capacity: Capacity | None = None,
        device: str = "none",
    ) -> None:
        """capacity: the device's, None where it is to be measured. device: the NIC's name, "auto" or "none".

        OSError, AlreadyRunning; ClusterFileError and KeyFileError, which are ValueErrors, with a membership.
        """
        state_dir.mkdir(parents=True, exist_ok=True)
        # Who reaches a tenant's directory is that tenant: other users of the host are nobody's.
        (state_dir / "tenants").mkdir(mode=0o700, exist_ok=True)
        (state_dir / "tenants").chmod(0o700)
        self.state_dir = state_dir
        self._lock = self._take_lock()
        self._engine = Engine(state_dir / "counters")
        self.nic: Nic | None = None
        try:
            name = find_device(device)
            if name is not None:
                self.nic = Nic(self._engine, name)
        except ValueError:
            self._engine.close()
            raise
        self.counters = Counters(state_dir / "counters")
        self.hierarchy = Hierarchy(self._engine, capacity)
        self._from_file: set[str] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.directory = Directory()
        self.links: Links | None = None
        self._connector: Connector | None = None
        if membership is not None:
            self.directory, self.links = membership.join()
            self._connector = Connector(self.links, self.directory, self._engine)
            self.directory.remote = self._connector
        self.gate: Gate = OpenGate()
        host, loop = HostRealm(), asyncio.get_running_loop()
        self._cm_link: Link | None = None
        if self.links is None:
            self.cm = CommunicationManager(ClusterLocator(self.directory, host), host, self, loop)
        else:
            self._cm_link = link = Link(self.links, self.directory)
            locator = ClusterLocator(self.directory, host, self.links.node_at)
            self.cm = CommunicationManager(locator, host, self, loop, link=link.send)
            link.attach(self.cm)
        self.tenants: dict[str, Tenant] = {}
        self.started = time.time()
        asyncio.get_running_loop().add_reader(self._engine.event_fd(), self._on_engine_event)
        if self.nic is not None:
            log.warning("device %s: %s", self.nic.name, self.nic.describe())
            asyncio.get_running_loop().add_reader(self._engine.nic_event_fd(), self._on_nic_event)

    def _take_lock(self) -> int:
        path = self.state_dir / "router.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode().strip()
            os.close(lock)
            raise AlreadyRunning(
                f"a router (pid {pid}) already runs with the state directory {self.state_dir}"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
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
            for tenant in self.tenants.values():
                session = tenant.sessions.get(event.session)
                if session is not None:
                    log.warning(
                        "tenant %s: session %d (pid %d): %s", tenant.name, event.session, session.pid, event.reason
                    )
                    session.end(f"garbage in its shared memory: {event.reason}")

    def _on_nic_event(self) -> None:
        assert self.nic is not None
        for event in self._engine.nic_events():
            if event not in PORT_EVENTS:
                continue
            if event == DEVICE_FATAL:
                # Its descriptor stays readable for ever.
                asyncio.get_running_loop().remove_reader(self._engine.nic_event_fd())
                self.nic.lost()
            else:
                self.nic.renew()
            log.warning("device %s: %s: %s", self.nic.name, PORT_EVENTS[event], self.nic.describe())
            for tenant in self.tenants.values():
                tenant.renew_device()
                tenant.tell(event, 1)

    def add_tenant(
        self,
        name: str,
        policy: Policy,
        address: IPv4Address | None = None,
        late_address: bool = False,
        keep: bool = False,
    ) -> Tenant:
        """The tenant with this name; made where there is none, with this address or a free one.

        late_address: Tenant.set_address tells where it is. keep: its directory outlives the router.
        ValueError (AddressError where another tenant has the address), OSError.
        """
        if name in self.tenants:
            tenant = self.tenants[name]
            if address is not None and tenant.address != address:
                raise AddressError(f"tenant {name!r} has the address {tenant.address} already, not {address}")
            return tenant
        path = self.state_dir / "tenants" / check_name(name)
        tenant = Tenant(
            name,
            path,
            policy,
            self._engine,
            self.hierarchy,
            self.directory,
            self._context,
            self,
            self.cm,
            self.counters,
            address,
            late_address,
            keep,
            self.nic,
        )
        self.tenants[name] = tenant
        log.info("tenant %s: added, address %s", name, tenant.address or "not known yet")
        return tenant

    def admits(self, source: IPv4Address, destination: IPv4Address, port: int | None = None) -> bool:
        """Whether these two addresses may connect (connections.Gate)."""
        return self.gate.admits(source, destination, port)

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

    def set_policy(self, name: str, fields: dict[str, object]) -> Policy:
        tenant = self.find_tenant(name)
        tenant.set_policy(tenant.policy.changed(fields))
        log.info("tenant %s: policy %s", name, tenant.policy.fields() or "without limits")
        return tenant.policy

    def set_group(self, name: str, fields: dict[str, object]) -> GroupPolicy:
        """Changes a group; makes it where there is none."""
        group = self.hierarchy.groups.get(check_name(name, "group"), GroupPolicy()).changed(fields)
        self.hierarchy.set_group(name, group)
        log.info("group %s: policy %s", name, group.fields() or "without limits")
        return group

    def load_policies(self, path: Path, whole: bool = False) -> list[str]:
        """Applies a policy file: all of it or nothing. Returns the tenants' names.

        whole: the file is all there is; what an earlier one said and this doesn't is lifted.
        PolicyError with file:line: field: for the first mistake.
        """
        file = load_policies(path)
        gone = (self._from_file & self.tenants.keys()) - file.tenants.keys() if whole else set()
        dropped = frozenset(self.hierarchy.groups.keys() - file.groups.keys()) if whole else frozenset()
        policies = file.tenants | {name: Policy() for name in gone}
        capacity = self.hierarchy.given_capacity(file.capacity) if whole or file.capacity else None
        # A tenant that "sluice run" or a claim made keeps its group, which the file can't take from under it.
        used = {tenant.policy.group for name, tenant in self.tenants.items() if name not in policies}
        dropped -= used
        try:
            self.hierarchy.would_accept(capacity, file.groups, policies, dropped)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from None
        for name in file.tenants:
            self.add_tenant(name, Policy())
        self.hierarchy.apply(capacity, file.groups, policies, dropped)
        self._from_file = set(file.tenants) if whole else self._from_file | file.tenants.keys()
        return list(file.tenants)

    def status(self) -> dict[str, Any]:
        """Counters as they are now; time_ns beside them makes rates of two."""
        qps = self.counters.qps()
        now = time.monotonic_ns()
        tenants = {}
        for name, tenant in self.tenants.items():
            mine = qps[qps["tenant"] == tenant.number]
            tenants[name] = {
                "address": str(tenant.address or ""),
                "policy": tenant.policy.fields(),
                "group": tenant.policy.group,
                "min_bps": tenant.policy.min_bps,
                "max_bps": tenant.policy.max_bps,
                "weight": tenant.policy.weight or lib.SLUICE_WEIGHT_DEFAULT,
                "processes": [session.pid for session in tenant.sessions.values()],
                "counters": self.counters.tenant(tenant.number),
                "rdma_cm": tenant.cm_status(),
                "qps": [
                    {field: int(row[field]) for field in qps.dtype.names or () if field != "reserved"} for row in mine
                ],
            }
        return {
            "time_ns": now,
            "pid": os.getpid(),
            "started": self.started,
            "worker": {field: int(self.counters.header[f"worker_{field}"]) for field in ("loops", "parks", "busy_ns")},
            "device": {"capacity_bps": self.hierarchy.capacity.bps, "wire": self.hierarchy.capacity.wire},
            "limits": LIMITS,
            "groups": {
                name: {
                    "policy": group.fields(),
                    "counters": self.counters.group(self.hierarchy.group_numbers[name]),
                }
                for name, group in self.hierarchy.groups.items()
            },
            "tenants": tenants,
            "cluster": self._cluster_status(),
        }

    def _cluster_status(self) -> dict[str, Any] | None:
        if self.links is None or self._connector is None:
            return None
        return {**self.links.status(), "connections": self._connector.status()}

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._engine.event_fd())
        if self.nic is not None:
            asyncio.get_running_loop().remove_reader(self._engine.nic_event_fd())
        for tenant in self.tenants.values():
            tenant.close(keep=True)
        self.tenants.clear()
        if self._cm_link is not None:
            self._cm_link.close()
        if self._connector is not None:
            self._connector.close()
        if self.links is not None:
            self.links.close()
        self._engine.close()
        self._context.destroy(linger=0)
        (self.state_dir / "counters").unlink(missing_ok=True)
        (self.state_dir / "router.lock").unlink(missing_ok=True)
        os.close(self._lock)

# SPDX-License-Identifier: Apache-2.0
"""Tenants of pods: what was granted becomes a tenant, and ends with it.

Both ways in (dra.py, device_plugin.py) end here.
A tenant is a pod: all that a pod was granted of one NIC adds up to one device, one guarantee and one
ceiling. Pods that share a claim are one tenant, named after the first of them.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sluice.control.router import Router
from sluice.kubernetes import DRIVER
from sluice.kubernetes.cdi import Injection, Specifications, injection
from sluice.kubernetes.claim import ClaimError, Share
from sluice.kubernetes.inventory import trouble
from sluice.kubernetes.parameters import (
    BOUNDS,
    FieldError,
    Parameters,
    check_bounds,
    live_of,
    parse_annotations,
)
from sluice.kubernetes.policy import bounds_of, guarantee_bps, policy_of
from sluice.kubernetes.quantity import format_quantity
from sluice.kubernetes.settings import Settings
from sluice.kubernetes.slices import capacity_bps
from sluice.kubernetes.state import Grant, State
from sluice.kubernetes.twin import renew
from sluice.policy.policy import Policy

log = logging.getLogger(__name__)

_NOT_LABEL = re.compile(r"[^a-z0-9-]+")
_MARKED = re.compile(r".+-.+-[0-9a-f]{8}")
DEVICES = "devices-"
"""How the directories begin that a device plugin names before it can know the pod."""


def tenant_name(namespace: str, pod: str, uid: str) -> str:
    """A DNS label that a person recognizes and no other pod has."""
    mark = hashlib.sha256(uid.encode()).hexdigest()[:8]
    readable = _NOT_LABEL.sub("-", f"{namespace}-{pod}")[:40].strip("-")
    return f"{readable}-{mark}"


def is_pods(tenant: str) -> bool:
    """Whether it is named as pods' tenants are: others may have tenants on the same node."""
    return tenant.startswith(DEVICES) or _MARKED.fullmatch(tenant) is not None


@dataclass
class _Tenant:
    grants: dict[str, Grant] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)

    def shares(self) -> list[Share]:
        return [share for grant in self.grants.values() for share in grant.shares]


class Attachments:
    """All grants of this node. returned(): something is free again, an address among it."""

    def __init__(self, router: Router, settings: Settings, returned: Callable[[], None]) -> None:
        self._returned = returned
        self._router = router
        self._settings = settings
        self._state = State(router.state_dir / "grants")
        self._specifications = Specifications(settings.cdi_dir)
        self._tenants: dict[str, _Tenant] = {}
        self.grants: dict[str, Grant] = {}

    def restore(self) -> Iterator[tuple[Grant, str]]:
        """Takes up what an earlier router left; yields what can't be, and why. Directories that are nobody's go."""
        mine = set()
        for grant in self._state.load():
            # Also where it fails: its pod's containers have them mounted, and the next router may succeed.
            mine |= {grant.tenant, *grant.twins}
            try:
                self._attach(grant)
            except (ValueError, OSError) as error:
                log.error("pod %s/%s: what it was granted can't be taken up: %s", grant.namespace, grant.pod, error)
                yield grant, str(error)
        for path in (self._router.state_dir / "tenants").iterdir():
            if path.name not in mine and is_pods(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def tenant_of_pod(self, pod_uid: str) -> str | None:
        return next((grant.tenant for grant in self.grants.values() if grant.pod_uid == pod_uid), None)

    def grants_of(self, tenant: str) -> list[Grant]:
        return list(self._tenants[tenant].grants.values())

    def free_bps(self, nic: str) -> int:
        """What nobody was granted of a NIC, as the scheduler counts."""
        capacity = next((capacity_bps(one, self._settings) for one in self._settings.nics if one.name == nic), 0)
        return capacity - sum(
            self._amount(share) for grant in self.grants.values() for share in grant.shares if share.nic == nic
        )

    def _amount(self, share: Share) -> int:
        """A share without an amount is the whole NIC."""
        if share.bps:
            return share.bps
        return next((capacity_bps(one, self._settings) for one in self._settings.nics if one.name == share.nic), 0)

    def attach(self, grant: Grant) -> str:
        """All of a grant or nothing; again for one that is there. Returns the CDI device. ClaimError, OSError."""
        if grant.uid not in self.grants:
            self._check(grant)
        device = self._attach(grant)
        log.warning(
            "pod %s/%s: granted %s as tenant %s",
            grant.namespace,
            grant.pod,
            ", ".join(f"{format_quantity(self._amount(share))} of {share.nic}" for share in grant.shares),
            grant.tenant,
        )
        return device

    def _check(self, grant: Grant) -> None:
        known = {nic.name for nic in self._settings.nics}
        wanted: dict[str, int] = {}
        for share in grant.shares:
            if share.nic not in known:
                raise ClaimError(f"this node has no NIC {share.nic}; it has {', '.join(sorted(known))}")
            wanted[share.nic] = wanted.get(share.nic, 0) + self._amount(share)
        for nic, bps in wanted.items():
            free = self.free_bps(nic)
            if bps > free:
                raise ClaimError(
                    f"NIC {nic} has {format_quantity(max(free, 0))} free of "
                    f"{format_quantity(self._amount(Share('', nic, 0)))}, and {format_quantity(bps)} are asked for"
                )

    def _attach(self, grant: Grant) -> str:
        entry = self._tenants.setdefault(grant.tenant, _Tenant())
        before = dict(entry.grants)
        with ExitStack() as undo:
            entry.grants[grant.uid] = grant

            def take_back() -> None:
                entry.grants = before
                if not before:
                    del self._tenants[grant.tenant]
                    if grant.tenant in self._router.tenants:
                        self._router.remove_tenant(grant.tenant, force=True)
                else:
                    self._apply(grant.tenant)

            undo.callback(take_back)
            policies = self._policies(grant.tenant)
            self._router.add_tenant(grant.tenant, policies, late_address=True, keep=True)
            self._apply(grant.tenant)
            self._renew_twins(grant)
            device = ""
            if grant.claim:
                undo.callback(self._specifications.remove, grant.uid)
                device = self._specifications.write(grant.uid, self.injection(grant))
            self._state.save(grant)
            self.grants[grant.uid] = grant
            undo.pop_all()
        return device

    def directory(self, name: str) -> Path:
        """A tenant's own, or a twin of it."""
        return self._router.state_dir / "tenants" / name

    def add_twin(self, uid: str, name: str) -> None:
        """Another directory of the tenant, for a container that mounts it by this name. OSError."""
        grant = self.grants[uid]
        renew(self.directory(name), self._router.tenants[grant.tenant].path)
        if name not in grant.twins:
            self.grants[uid] = self._tenants[grant.tenant].grants[uid] = replace(grant, twins=(*grant.twins, name))
            self._state.save(self.grants[uid])

    def _renew_twins(self, grant: Grant) -> None:
        for name in grant.twins:
            renew(self.directory(name), self._router.tenants[grant.tenant].path)

    def injection(self, grant: Grant) -> Injection:
        parameters = Parameters()
        for share in grant.shares:
            parameters = parameters.under(share.parameters)
        return injection(self.directory(grant.tenant), self._settings.shim_dir, parameters)

    def injection_of(self, twin: str) -> Injection:
        """Of a container whose pod is not known yet."""
        return injection(self.directory(twin), self._settings.shim_dir, Parameters())

    def detach(self, uid: str) -> bool:
        """Returns everything; False where there is nothing."""
        self._specifications.remove(uid)
        grant = self.grants.pop(uid, None)
        if grant is None:
            self._state.remove(uid)
            return False
        entry = self._tenants[grant.tenant]
        del entry.grants[uid]
        if entry.grants:
            self._apply(grant.tenant)
        else:
            del self._tenants[grant.tenant]
            self._router.remove_tenant(grant.tenant, force=True)
        for name in grant.twins:
            shutil.rmtree(self.directory(name), ignore_errors=True)
        # Last: who is stopped before here does it again.
        self._state.remove(uid)
        log.warning("pod %s/%s: returned what %s had", grant.namespace, grant.pod, grant.claim or "its containers")
        self._returned()
        return True

    def _shares(self, tenant: str) -> dict[str, list[Share]]:
        """By NIC, in the node's order; each with its amount."""
        found: dict[str, list[Share]] = {nic.name: [] for nic in self._settings.nics}
        for share in self._tenants[tenant].shares():
            found[share.nic].append(replace(share, bps=self._amount(share)))
        return {nic: shares for nic, shares in found.items() if shares}

    def devices(self, tenant: str) -> dict[str, str]:
        """What the tenant's devices are called in its containers, by NIC."""
        running = self._router.tenants.get(tenant)
        return {device.node.name: device.name for device in running.devices} if running is not None else {}

    def _policies(self, tenant: str) -> dict[str, Policy]:
        """Of each NIC that the tenant has a part of."""
        names, live = self.devices(tenant), self._tenants[tenant].live
        return {
            nic: policy_of(shares, self._settings.over_commit, live_of(live, names.get(nic, "")))
            for nic, shares in self._shares(tenant).items()
        }

    def _apply(self, tenant: str) -> None:
        """Gives the running tenant the devices and rates of its grants, and takes what it has beside them."""
        running = self._router.tenants[tenant]
        for device in list(running.devices):
            if device.node.name not in self._shares(tenant):
                running.remove_device(device.node)
        for nic in self._shares(tenant):
            self._router.give_device(tenant, nic, Policy())
        # By their names, which follow from which there are.
        for nic, policy in self._policies(tenant).items():
            node = self._router.devices.find(nic)
            if running.policy_on(node) != policy:
                running.set_policy(policy, node)

    def set_address(self, tenant: str, address: IPv4Address) -> None:
        """The pod's address, as soon as it is known. ValueError where another tenant has it."""
        running = self._router.tenants[tenant]
        if running.address is None:
            running.set_address(address)
            for grant in self.grants_of(tenant):
                self._renew_twins(grant)

    def without_address(self) -> list[Grant]:
        """Grants whose pods' processes wait for the pod's address."""
        return [grant for grant in self.grants.values() if self._router.tenants[grant.tenant].address is None]

    def set_annotations(self, tenant: str, annotations: Mapping[str, str]) -> dict[str, int] | None:
        """Changes the rates of a running pod. Returns what holds now, None where nothing changed.

        ValueError, with all as it was: FieldError, PolicyError.
        """
        entry = self._tenants[tenant]
        live = parse_annotations(annotations)
        if live == entry.live:
            return None
        names = self.devices(tenant)
        self._check_live(live, {names[nic]: shares for nic, shares in self._shares(tenant).items()})
        before, entry.live = entry.live, live
        try:
            self._apply(tenant)
        except ValueError:
            entry.live = before
            raise
        return live

    def _check_live(self, live: Mapping[str, int], shares: Mapping[str, list[Share]]) -> None:
        """shares: by the device's name in the pod. FieldError."""
        for name in live:
            device, _, _ = name.rpartition(".")
            if device and device not in shares:
                raise FieldError(
                    f"metadata.annotations[{DRIVER}/{name}]: the pod has no device {device}; it has {', '.join(shares)}"
                )
        for device, of_device in shares.items():
            said: dict[str, Any] = {name: value for name, value in live_of(live, device).items() if name in BOUNDS}
            check_bounds(Parameters(**said), bounds_of(of_device), "metadata.annotations: ")
            guarantee, least = guarantee_bps(of_device, self._settings.over_commit), live_of(live, device).get("min", 0)
            if least > guarantee:
                where = f" on {device}" if len(shares) > 1 else ""
                raise FieldError(
                    f"metadata.annotations: min: {format_quantity(least)} is more than the "
                    f"{format_quantity(guarantee)} that are granted{where}: the scheduler goes by the claim"
                )

    def describe(self, tenant: str) -> str:
        """Its limits, for a person."""
        running = self._router.tenants[tenant]
        texts = []
        for device in running.devices:
            fields = running.policy_on(device.node).fields()
            text = ", ".join(f"{name} {value}" for name, value in fields.items()) or "no limits"
            texts.append(f"{device.name}: {text}" if len(running.devices) > 1 else text)
        return "; ".join(texts)

    def nics(self) -> list[dict[str, Any]]:
        """Each NIC's state, in bits per second."""
        found = []
        for nic in self._settings.nics:
            tenants: dict[str, dict[str, int]] = {}
            for grant in self.grants.values():
                for share in grant.shares:
                    if share.nic == nic.name:
                        row = tenants.setdefault(grant.tenant, {"min_bps": 0, "max_bps": 0})
                        row["min_bps"] += int(self._amount(share) / self._settings.over_commit)
            node = self._router.devices.find(nic.name)
            for name, row in tenants.items():
                row["max_bps"] = self._router.tenants[name].policy_on(node).max_bps
            capacity = capacity_bps(nic, self._settings)
            found.append(
                {
                    "name": nic.name,
                    "interface": nic.interface,
                    "unusable": trouble(nic),
                    "bandwidth_bps": nic.bandwidth_bps,
                    "capacity_bps": capacity,
                    "used_bps": capacity - self.free_bps(nic.name),
                    "tenants": tenants,
                }
            )
        return found

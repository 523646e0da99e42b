# SPDX-License-Identifier: Apache-2.0
"""The node's devices: each has a capacity, a hierarchy of its own, and maybe a NIC behind it.

Tenants are given some of them, and count theirs from sluice0; here they have the operator's names.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sluice.device.nic import Nic, NicError, active_nics, check_nic
from sluice.device.virtual import device_name
from sluice.engine import Engine, lib
from sluice.policy.file import DevicePolicies
from sluice.policy.hierarchy import Capacity, Hierarchy
from sluice.policy.policy import PolicyError

_NAME = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?(:[0-9]{1,3})?")
"""With a NIC's port."""
SOFTWARE = "software:"


@dataclass(frozen=True)
class DeviceSpec:
    """A device that a router is to have. nic: the RDMA NIC's name, if any. capacity None: to be measured.

    found: nobody named it, "auto" found it.
    """

    name: str = device_name(0)
    nic: str | None = None
    capacity: Capacity | None = None
    found: bool = False


def find_devices(wanted: Sequence[str]) -> list[DeviceSpec]:
    """The devices that --device options mean: a NIC's name, "auto", "none", "software:NAME". NicError."""
    specs: list[DeviceSpec] = []
    for text in wanted or ["none"]:
        if text == "none":
            specs.append(DeviceSpec())
        elif text.startswith(SOFTWARE):
            specs.append(DeviceSpec(text.removeprefix(SOFTWARE)))
        elif text == "auto":
            specs += [DeviceSpec(name, name, found=True) for name in active_nics()] or [DeviceSpec()]
        else:
            specs.append(DeviceSpec(check_nic(text), check_nic(text)))
    names = [spec.name for spec in specs]
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise NicError(f"--device: {name!r} is not a device's name: use letters, digits, '-', '_' and '.'")
        if names.count(name) > 1:
            raise NicError(f"--device {name}: stands there twice")
    if len(specs) > lib.SLUICE_MAX_DEVICES:
        raise NicError(f"--device: {len(specs)} devices; a node has {lib.SLUICE_MAX_DEVICES} at most")
    return specs


def with_capacities(specs: Sequence[DeviceSpec], bps: Mapping[str, int]) -> list[DeviceSpec]:
    """bps: by the device's name; "" is for all others. PolicyError: there is no such device."""
    for name in bps:
        if name and name not in [spec.name for spec in specs]:
            known = ", ".join(spec.name for spec in specs)
            raise PolicyError(f"--capacity {name}: there is no such device; there are: {known}")
    given = {spec.name: bps.get(spec.name, bps.get("", 0)) for spec in specs}
    return [replace(spec, capacity=Capacity(given[spec.name], True)) if given[spec.name] else spec for spec in specs]


@dataclass(frozen=True, eq=False)
class NodeDevice:
    """number: the engine's. nic: None where there is only software behind it."""

    name: str
    number: int
    hierarchy: Hierarchy
    nic: Nic | None


class NodeDevices:
    """All of them, in the operator's order; there is at least one."""

    def __init__(self, engine: Engine, specs: Sequence[DeviceSpec]) -> None:
        """NicError, OSError."""
        unknown = sum(spec.capacity is None for spec in specs)
        measured = Capacity.measured(unknown) if unknown else None
        self._all: list[NodeDevice] = []
        nics: list[Nic] = []
        for spec in specs:
            number = engine.add_device() if self._all else 0
            hierarchy = Hierarchy(engine, spec.capacity or measured, number)
            nic = None if spec.nic is None else Nic(engine, number, spec.nic, nics)
            self._all.append(NodeDevice(spec.name, number, hierarchy, nic))

    def __iter__(self) -> Iterator[NodeDevice]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def first(self) -> NodeDevice:
        """The one that is meant where none is named."""
        return self._all[0]

    def find(self, name: str) -> NodeDevice:
        """ "" is the first. PolicyError."""
        if not name:
            return self.first
        for device in self._all:
            if device.name == name:
                return device
        known = ", ".join(device.name for device in self._all)
        raise PolicyError(f"there is no device {name!r}; there are: {known}", f"devices.{name}")

    def explain(self, device: NodeDevice, error: PolicyError) -> PolicyError:
        """The error with its device, where there are several."""
        if len(self._all) == 1:
            return error
        field = error.field
        if device is not self.first:
            # As a policy file names it.
            of, _, name = field.rpartition(".")
            if of == "device":
                field = f"devices.{device.name}.capacity"
            elif of.startswith("tenants."):
                field = f"{of}.devices.{device.name}.{name}"
        return PolicyError(f"device {device.name}: {error}", field)

    def change(self, device: NodeDevice, change: Callable[[Hierarchy], None]) -> None:
        """PolicyError names the device."""
        try:
            change(device.hierarchy)
        except PolicyError as error:
            raise self.explain(device, error) from None

    def of_file(self, policies: Mapping[str, DevicePolicies]) -> dict[NodeDevice, DevicePolicies]:
        """What a policy file says of each device; "" in it is the first. PolicyError."""
        found: dict[NodeDevice, DevicePolicies] = {device: DevicePolicies() for device in self._all}
        for name, said in policies.items():
            device = self.find(name)
            for kind in ("groups", "tenants"):
                twice = getattr(found[device], kind).keys() & getattr(said, kind).keys()
                if twice:
                    raise PolicyError(
                        f"{kind}.{min(twice)}.devices.{device.name}: that is the first device, of which the fields of "
                        f"{kind}.{min(twice)} itself speak already"
                    )
            if found[device].capacity and said.capacity:
                raise PolicyError(f"devices.{device.name}.capacity: device.capacity says it already")
            found[device] = DevicePolicies(
                found[device].capacity or said.capacity,
                found[device].groups | said.groups,
                found[device].tenants | said.tenants,
            )
        return found

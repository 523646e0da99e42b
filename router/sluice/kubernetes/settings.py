# SPDX-License-Identifier: Apache-2.0
"""The file of `sluice router --kubernetes FILE`. Every field may be left out.

node: worker-1              # this node's name; else the environment's NODE_NAME
kubeconfig: /etc/…          # else the pod's service account
address: 192.0.2.7          # where other nodes' routers reach this one; else NODE_ADDRESS; without: no links
port: 7471                  # for that; the next one carries data
nics: {mlx5_0: 100G}        # else what the kernel tells: RDMA devices, or the interfaces of the default route
paced: true                 # all traffic of a NIC together keeps to its bandwidth, where the router doesn't open it
over-commit: 1.5            # bandwidth offered for each bit that there is; guarantees shrink with it
request:                    # what a claim may ask for
  default: 1G
  min: 100M
  step: 100M
dra: true                   # the DRA driver
device-plugin: false        # the extended resource rdma.sluice.dev/bandwidth, for clusters without DRA
unit: 1G                    # what one of that resource is worth
kubelet-dir: /var/lib/kubelet
cdi-dir: /var/run/cdi
shim-dir: /var/lib/sluice/shim
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

import yaml

from sluice.cluster.file import DEFAULT_PORT
from sluice.document import DocumentError, compose, entries
from sluice.engine import lib
from sluice.kubernetes.inventory import Nic, configured, discover
from sluice.kubernetes.parameters import parse_bandwidth
from sluice.kubernetes.quantity import format_quantity


class SettingsError(ValueError):
    """File, line, field, and what would be right."""


class _EntryError(ValueError):
    """In a field that is a mapping: in which of its entries."""

    def __init__(self, entry: str, error: ValueError) -> None:
        super().__init__(f"{entry}: {error}")
        self.entry = entry


@dataclass(frozen=True)
class RequestPolicy:
    """Bits per second."""

    default: int = 10**9
    min: int = 10**8
    step: int = 10**8


@dataclass(frozen=True)
class Settings:
    node: str
    kubeconfig: Path | None = None
    address: IPv4Address | None = None
    port: int = DEFAULT_PORT
    nics: tuple[Nic, ...] = ()
    paced: bool = True
    over_commit: float = 1.0
    request: RequestPolicy = field(default_factory=RequestPolicy)
    dra: bool = True
    device_plugin: bool = False
    unit: int = 10**9
    kubelet_dir: Path = Path("/var/lib/kubelet")
    cdi_dir: Path = Path("/var/run/cdi")
    shim_dir: Path = Path("/var/lib/sluice/shim")


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a mapping belongs here (name: value)")
    return {str(name): each for name, each in value.items()}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _ratio(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= 100:
        raise ValueError(f"{value!r} is not a ratio: write a number from 1 to 100")
    return float(value)


def _nics(value: Any) -> tuple[Nic, ...]:
    found: dict[str, Nic] = {}
    for name, bandwidth in _mapping(value).items():
        try:
            nic = configured(name, parse_bandwidth(bandwidth))
            if nic.name in found:
                other = found[nic.name].interface
                raise ValueError(f"{other} and this would both be device {nic.name!r} of the node")
        except ValueError as error:
            raise _EntryError(name, error) from None
        found[nic.name] = nic
    return tuple(found.values())


def _request(value: Any) -> RequestPolicy:
    values = {}
    for name, amount in _mapping(value).items():
        try:
            if name not in ("default", "min", "step"):
                raise ValueError("no such field; there are default, min, step")
            values[name] = parse_bandwidth(amount)
        except ValueError as error:
            raise _EntryError(name, error) from None
    policy = RequestPolicy(**values)
    if policy.default < policy.min or (policy.default - policy.min) % policy.step:
        raise ValueError("default: must be min, or min and a multiple of step")
    return policy


def _address(value: Any) -> IPv4Address:
    try:
        return IPv4Address(str(value))
    except AddressValueError:
        raise ValueError(f"{str(value)!r} is not an IPv4 address: write one as 192.0.2.7") from None


def _port(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65535:
        raise ValueError(f"{value!r} is not a port: write a number from 1 to 65534")
    return value


def _path(value: Any) -> Path:
    path = Path(str(value))
    if not path.is_absolute():
        raise ValueError(f"{str(value)!r} is not an absolute path")
    return path


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "node": str,
    "kubeconfig": _path,
    "address": _address,
    "port": _port,
    "nics": _nics,
    "paced": _flag,
    "over-commit": _ratio,
    "request": _request,
    "dra": _flag,
    "device-plugin": _flag,
    "unit": parse_bandwidth,
    "kubelet-dir": _path,
    "cdi-dir": _path,
    "shim-dir": _path,
}


def _lines(path: Path, root: yaml.Node) -> dict[str, int]:
    """Where each field and each of its entries stands. DocumentError."""
    lines: dict[str, int] = {}
    for name, (key, value) in entries(path, root, "").items():
        lines[name] = key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            for entry, (place, _) in entries(path, value, name).items():
                lines[f"{name}.{entry}"] = place.start_mark.line + 1
    return lines


def load_settings(path: Path) -> Settings:
    """SettingsError for the first mistake."""
    try:
        root = compose(path)
        lines = {} if root is None else _lines(path, root)
        written = {} if root is None else _mapping(yaml.SafeLoader("").construct_document(root))
    except DocumentError as error:
        raise SettingsError(str(error)) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{path}:{line}: not YAML: {error.problem}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None

    def mistake(field: str, error: object, entry: str = "") -> SettingsError:
        line = lines.get(f"{field}.{entry}", lines.get(field))
        return SettingsError(f"{path}{'' if line is None else f':{line}'}: {field}: {error}")

    values: dict[str, Any] = {}
    for name, value in written.items():
        if name not in _FIELDS:
            raise mistake(name, f"no such field; there are {', '.join(_FIELDS)}")
        try:
            values[name.replace("-", "_")] = _FIELDS[name](value)
        except _EntryError as error:
            raise mistake(name, error, error.entry) from None
        except ValueError as error:
            raise mistake(name, error) from None
    if "address" not in values and os.environ.get("NODE_ADDRESS"):
        values["address"] = _address(os.environ["NODE_ADDRESS"])
    values.setdefault("node", os.environ.get("NODE_NAME", ""))
    if not values["node"]:
        raise mistake("node", "this node's name belongs here, or in the environment as NODE_NAME")
    if values.get("dra", True) and values.get("device_plugin", False):
        # Each would give the whole of a NIC.
        raise mistake("device-plugin", "only with dra: false: the scheduler counts each for itself")
    if not values.get("nics"):
        values["nics"] = tuple(discover())
    if len(values["nics"]) > lib.SLUICE_MAX_DEVICES:
        raise mistake("nics", f"{len(values['nics'])} of them; a node has {lib.SLUICE_MAX_DEVICES} at most")
    if not values["nics"]:
        raise mistake("nics", "the kernel tells no NIC's bandwidth: write for instance nics: {eth0: 10G}")
    settings = Settings(**values)
    offered = {nic: int(nic.bandwidth_bps * settings.over_commit) for nic in settings.nics}
    least, most = min(offered, key=offered.__getitem__), max(offered, key=offered.__getitem__)
    if settings.dra and settings.request.min > offered[least]:
        # The API server takes no slice with a device like that.
        raise mistake(
            "request",
            f"min: {format_quantity(settings.request.min)} is more than NIC {least.interface} has, "
            f"{format_quantity(offered[least])}",
            "min",
        )
    if settings.device_plugin and settings.unit > offered[most]:
        raise mistake(
            "unit",
            f"{format_quantity(settings.unit)} is more than any NIC has: the most is "
            f"{format_quantity(offered[most])}, of {most.interface}",
        )
    return settings

# SPDX-License-Identifier: Apache-2.0
"""The operator's door: JSON over a zmq REP socket that only the router's user can reach."""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import zmq

from sluice.control.operator import endpoint
from sluice.control.router import Router
from sluice.policy.policy import Policy

log = logging.getLogger(__name__)


class Admin:
    """Answers requests {"op": …, …} with {…} or {"error": text}."""

    def __init__(self, router: Router, shut_down: Callable[[], None]) -> None:
        self._router = router
        self._shut_down = shut_down
        self._socket = router.context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 1000)
        # From the first moment for the router's user alone: a later chmod would leave a gap.
        mask = os.umask(0o177)
        try:
            self._socket.bind(endpoint(router.state_dir))
        finally:
            os.umask(mask)
        self._operations: dict[str, Callable[..., Any]] = {
            "ping": lambda: {},
            "status": router.status,
            "tenant-add": self._tenant_add,
            "tenant-remove": self._tenant_remove,
            "policy-show": self._policy_show,
            "group-set": self._group_set,
            "group-remove": self._group_remove,
            "policy-set": self._policy_set,
            "policy-load": lambda path: {"tenants": router.load_policies(Path(path))},
            "shutdown": self._shutdown,
        }
        asyncio.get_running_loop().add_reader(self._socket.FD, self._drain)

    def _drain(self) -> None:
        with suppress(zmq.Again):
            while True:
                request = self._socket.recv(zmq.NOBLOCK)
                self._socket.send(json.dumps(self._answer(request)).encode(), zmq.NOBLOCK)

    def _answer(self, request: bytes) -> Any:
        try:
            fields = json.loads(request)
            operation = self._operations[fields.pop("op")]
            return operation(**fields)
        except OSError as error:
            return {"error": f"{error.filename}: {error.strerror}" if error.filename else str(error)}
        except (ValueError, RuntimeError) as error:
            return {"error": str(error)}
        except (KeyError, TypeError, AttributeError):
            return {"error": "not a request of this router's version"}

    def _tenant_add(
        self,
        name: str,
        policy: dict[str, object],
        address: str | None = None,
        devices: Sequence[str] = (),
    ) -> dict[str, Any]:
        """policy: of each of the devices; none named: of the first."""
        new = name not in self._router.tenants
        wanted = Policy().changed(policy)
        given = devices or ("",)
        tenant = self._router.add_tenant(
            name, dict.fromkeys(given, wanted), None if address is None else IPv4Address(address)
        )
        if not new:
            for device in devices:
                self._router.give_device(name, device, wanted)
            for device in given if policy else ():
                self._router.set_policy(name, policy, device)
        return {"path": str(tenant.path), "address": str(tenant.address or ""), "new": new}

    def _tenant_remove(self, name: str, force: bool = False) -> dict[str, Any]:
        self._router.remove_tenant(name, force)
        return {}

    def _policy_show(self) -> dict[str, Any]:
        """Of the first device, and under devices of each."""
        devices = {
            device.name: {
                "capacity": str(device.hierarchy.capacity),
                "groups": {name: group.fields() for name, group in device.hierarchy.groups.items()},
                "tenants": {name: policy.fields() for name, policy in device.hierarchy.tenants.items()},
            }
            for device in self._router.devices
        }
        return {**devices[self._router.devices.first.name], "devices": devices}

    def _group_set(self, name: str, policy: dict[str, object], device: str = "") -> dict[str, Any]:
        return self._router.set_group(name, policy, device).fields()

    def _group_remove(self, name: str, device: str = "") -> dict[str, Any]:
        self._router.devices.find(device).hierarchy.remove_group(name)
        return {}

    def _policy_set(self, name: str, policy: dict[str, object], device: str = "") -> dict[str, Any]:
        return self._router.set_policy(name, policy, device).fields()

    def _shutdown(self) -> dict[str, Any]:
        self._shut_down()
        return {}

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.FD)
        self._socket.close()
        (self._router.state_dir / "admin").unlink(missing_ok=True)

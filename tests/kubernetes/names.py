# SPDX-License-Identifier: Apache-2.0
"""The cluster's DNS, as far as headless services go: their names, and those of pods with a hostname."""

import socket
import struct
import subprocess
import threading
from contextlib import suppress

from control_plane import ControlPlane

DOMAIN = "cluster.local"
A, IN = 1, 1
RESPONSE, NAME_ERROR = 0x8580, 3
"""Authoritative, recursion available (RFC 1035, 4.1.1)."""


def _question(packet: bytes) -> tuple[str, int, int]:
    """Name, type, and where the question ends."""
    labels, here = [], 12
    while packet[here]:
        labels.append(packet[here + 1 : here + 1 + packet[here]].decode().lower())
        here += 1 + packet[here]
    (kind,) = struct.unpack_from("!H", packet, here + 1)
    return ".".join(labels), kind, here + 5


class Names:
    """Serves port 53 of an address until closed."""

    def __init__(self, plane: ControlPlane, address: str) -> None:
        self._plane = plane
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _addresses(self, name: str) -> list[str] | None:
        """[HOSTNAME.]SERVICE.NAMESPACE.svc.DOMAIN; None where there is no such name."""
        labels = name.removesuffix(f".svc.{DOMAIN}").split(".")
        if name == ".".join(labels) or not 2 <= len(labels) <= 3:
            return None
        *hostname, service, namespace = labels
        found: list[str] | None = None
        for each in self._plane.get("endpointslices", "-n", namespace)["items"]:
            if each["metadata"]["labels"].get("kubernetes.io/service-name") != service:
                continue
            for endpoint in each.get("endpoints") or []:
                if endpoint.get("conditions", {}).get("ready") and (
                    not hostname or endpoint.get("hostname") == hostname[0]
                ):
                    found = (found or []) + endpoint["addresses"]
        return found

    def _answer(self, packet: bytes) -> bytes:
        name, kind, end = _question(packet)
        addresses = self._addresses(name)
        records = [socket.inet_aton(each) for each in addresses or [] if kind == A]
        flags = RESPONSE if addresses is not None else RESPONSE | NAME_ERROR
        header = packet[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0)
        # Each repeats the question's name by a pointer to it.
        body = b"".join(struct.pack("!3HIH", 0xC00C, A, IN, 1, 4) + each for each in records)
        return header + packet[12:end] + body

    def _serve(self) -> None:
        while True:
            try:
                packet, sender = self._socket.recvfrom(512)
            except OSError:
                return
            # Who asked asks again.
            with suppress(OSError, AssertionError, IndexError, struct.error, subprocess.SubprocessError):
                self._socket.sendto(self._answer(packet), sender)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

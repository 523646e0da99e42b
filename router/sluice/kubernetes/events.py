# SPDX-License-Identifier: Apache-2.0
"""Events: what `kubectl describe` shows below a pod, a claim or a node.

https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from sluice.kubernetes import DRIVER
from sluice.kubernetes.api import CONFLICT, Api, ApiError, Object

log = logging.getLogger(__name__)

REPEAT_SECONDS = 300
"""The same words about the same object are said again after this."""
BURST = 25
"""Events about one object at once; then one in REPEAT_SECONDS, as with the kubelet's: what a pod does over and over
must not become the API server's work."""
QUEUE = 1000
LONGEST = 1024
"""Characters of a note; what the API allows."""
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
"""MicroTime of the API."""


@dataclass(frozen=True)
class Subject:
    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


class Events:
    """Sends them one after another; nobody waits for it. While the API server is away, they wait. What it refuses is in
    the log at least.
    """

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._queue: asyncio.Queue[tuple[Subject, str, str, str, str, str]] = asyncio.Queue(QUEUE)
        self._said: OrderedDict[tuple[Subject, str, str], float] = OrderedDict()
        self._left: OrderedDict[Subject, tuple[float, float]] = OrderedDict()
        """What may be said about an object, and when that was so."""

    def inform(self, subject: Subject, reason: str, action: str, note: str) -> bool:
        """Whether it is news: not said before, and not one too many about this object."""
        return self._put(subject, "Normal", reason, action, note)

    def warn(self, subject: Subject, reason: str, action: str, note: str) -> bool:
        """As inform()."""
        return self._put(subject, "Warning", reason, action, note)

    def _may_say_more(self, subject: Subject, now: float) -> bool:
        left, since = self._left.get(subject, (float(BURST), now))
        left = min(left + (now - since) / REPEAT_SECONDS, float(BURST))
        self._left[subject] = (max(left - 1, left % 1), now)
        self._left.move_to_end(subject)
        if len(self._left) > QUEUE:
            self._left.popitem(last=False)
        return left >= 1

    def _put(self, subject: Subject, kind: str, reason: str, action: str, note: str) -> bool:
        key, now = (subject, reason, note), time.monotonic()
        if now - self._said.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS or not self._may_say_more(subject, now):
            return False
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > QUEUE:
            self._said.popitem(last=False)
        try:
            self._queue.put_nowait((subject, kind, reason, action, note, datetime.now(UTC).strftime(TIME)))
        except asyncio.QueueFull:
            log.warning(
                "event not sent, too many wait: %s %s/%s: %s", subject.kind, subject.namespace, subject.name, note
            )
        return True

    async def run(self) -> None:
        """For ever; cancel it to end."""
        while True:
            subject, kind, reason, action, note, when = await self._queue.get()
            namespace = subject.namespace or "default"
            body = {
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": {"name": f"{subject.name[:200]}.{secrets.token_hex(8)}", "namespace": namespace},
                "eventTime": when,
                "reportingController": DRIVER,
                "reportingInstance": f"sluice-{self._node}"[:128],
                "action": action,
                "reason": reason,
                "type": kind,
                "note": note[:LONGEST],
                "regarding": {
                    "apiVersion": subject.api_version,
                    "kind": subject.kind,
                    "namespace": subject.namespace,
                    "name": subject.name,
                    "uid": subject.uid,
                },
            }
            try:
                await self._api.insist(partial(self._send, namespace, body))
            except ApiError as error:
                log.warning("event not sent: %s %s/%s: %s: %s", subject.kind, namespace, subject.name, note, error)

    async def _send(self, namespace: str, body: Object) -> None:
        try:
            await self._api.create(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)
        except ApiError as error:
            # It has come already, and the answer hasn't.
            if error.status != CONFLICT:
                raise

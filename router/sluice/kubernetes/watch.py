# SPDX-License-Identifier: Apache-2.0
"""A copy of a collection of the API server, kept by watching it.

List once, then watch from there. A stream that ends is taken up where it ended; one whose
past the server has forgotten (410 Gone) begins with a list again, whose differences are
reported as if they had been watched. While the server is away the copy stays as it was.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sluice.kubernetes.api import OPEN, Api, ApiError, Object, pause

log = logging.getLogger(__name__)

GONE = 410
STREAM_SECONDS = 300
"""The server ends a watch after this (up to twice it, at random, so that not all nodes come back at once)."""

T = TypeVar("T")


class Watch(Generic[T]):
    """objects: by uid, each reduced to what is used of it.

    reduce: an object's short form; None for one that doesn't matter.
    changed(old, new): what there was and is; one of the two may be None.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        reduce: Callable[[Object], T | None],
        changed: Callable[[T | None, T | None], None],
        **query: Any,
    ) -> None:
        self._api = api
        self.path = path
        self._reduce = reduce
        self._changed = changed
        self._query = query
        self._version = ""
        self.objects: dict[str, T] = {}
        self.synced = asyncio.Event()
        self.reachable = False
        self.error = ""
        """Why it isn't, by the last try."""
        self.lists = 0
        self.events = 0

    async def run(self) -> None:
        """For ever; cancel it to end."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                failures = 0
            except ApiError as error:
                self.reachable = False
                if error.status == GONE:
                    log.warning("watching %s: %s", self.path, error)
                    self._version = ""
                    continue
                # Once for each trouble: an operator who mends one sees the next.
                if str(error) != self.error:
                    log.warning("watching %s: %s", self.path, error)
                self.error = str(error)
                failures += 1
                await asyncio.sleep(pause(failures))

    async def _list(self) -> None:
        objects, version = await self._api.list(self.path, **self._query)
        self.lists += 1
        before = dict(self.objects)
        for each in objects:
            before.pop(each["metadata"]["uid"], None)
            self._store(each)
        for uid, old in before.items():
            del self.objects[uid]
            self._changed(old, None)
        self._version = version
        self._reached()
        self.synced.set()

    def _reached(self) -> None:
        self.reachable = True
        if self.error:
            log.warning("watching %s: the API server answers again", self.path)
            self.error = ""

    async def _follow(self) -> None:
        seconds = int(STREAM_SECONDS * random.uniform(1, 2))
        async for event in self._api.watch(self.path, self._version, seconds, **self._query):
            self._reached()
            if event["type"] == OPEN:
                continue
            self.events += 1
            found = event["object"]
            if event["type"] == "ERROR":
                raise ApiError(int(found.get("code", 0)), str(found.get("message", found)))
            self._version = found["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                old = self.objects.pop(found["metadata"]["uid"], None)
                if old is not None:
                    self._changed(old, None)
            elif event["type"] != "BOOKMARK":
                self._store(found)

    def _store(self, found: Object) -> None:
        uid = found["metadata"]["uid"]
        old, new = self.objects.get(uid), self._reduce(found)
        if new is None:
            self.objects.pop(uid, None)
        else:
            self.objects[uid] = new
        if old != new:
            self._changed(old, new)

# SPDX-License-Identifier: Apache-2.0
"""The API server: objects as it writes them (dicts), over the `kubernetes` client's connection.

The client does addresses, certificates, tokens and their renewal. Its model classes are
left out: they cost a millisecond per pod, and refuse fields that a newer server adds.
"""

import asyncio
import errno
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client import rest

Object = dict[str, Any]
T = TypeVar("T")

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
FIELD_MANAGER = "sluice"
REQUEST_SECONDS = 15
IDLE_SECONDS = 80
"""A connection is kept so long without a request; the API server closes it after 90."""
PAGE = 500
"""Objects per answer of a list: what the API server's own clients use."""

RESOURCE = "/apis/resource.k8s.io/v1"
OPEN = "OPEN"
"""The type of an event that says that a watch has begun."""

LONGEST_WAIT = 30
"""Seconds between two tries while the server is away."""
TRIES = 6
"""Of a server that answers, and can't now: within a quarter of a minute."""
CONFLICT, TOO_MANY = 409, 429


class ApiError(OSError):
    """The API server refuses, or can't be reached (status 0)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(0, text)
        self.status = status

    def __str__(self) -> str:
        return str(self.strerror)


def pause(failures: int) -> float:
    """Seconds to wait after so many in a row: longer each time, and not with all nodes at once."""
    return float(min(LONGEST_WAIT, 0.25 * 2 ** min(failures, 10)) * random.uniform(0.5, 1))


def _text_of(status: int, body: bytes) -> str:
    try:
        answer = json.loads(body)
        return f"{answer['message']} ({status} {answer.get('reason', '')})"
    except (ValueError, KeyError, TypeError):
        return f"status {status}: {body[:200]!r}"


class _Connections(rest.RESTClientObject):
    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=self.maxsize, ssl=self.ssl_context, keepalive_timeout=IDLE_SECONDS)


class Api:
    """Close it with close()."""

    def __init__(self, configuration: Any) -> None:
        self._client = client.ApiClient(configuration)
        self._client.rest_client = _Connections(configuration)

    @classmethod
    async def connect(cls, kubeconfig: Path | None) -> "Api":
        """With a kubeconfig file, or, with None, as the pod that this process is. OSError."""
        if kubeconfig is not None:
            # Where it can't be read, the client says something else.
            kubeconfig.read_bytes()
        configuration = client.Configuration()
        # We retry ourselves, with the state of the world read anew.
        configuration.retries = 0
        try:
            if kubeconfig is not None:
                await config.load_kube_config(  # type: ignore[no-untyped-call]
                    str(kubeconfig), client_configuration=configuration
                )
            else:
                config.load_incluster_config(  # type: ignore[no-untyped-call]
                    client_configuration=configuration
                )
        except (config.ConfigException, OSError) as error:
            where = str(kubeconfig or "no kubeconfig in the settings, and no service account of a pod")
            raise OSError(errno.EINVAL, str(error), where) from None
        return cls(configuration)

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def _send(
        self, method: str, path: str, query: Mapping[str, Any], body: Any, content_type: str, timeout: Any
    ) -> aiohttp.ClientResponse:
        try:
            serialized = await self._client.param_serialize(
                method,
                path,
                query_params=[(name, str(value)) for name, value in query.items()],
                header_params={"Accept": JSON, "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await self._client.call_api(*serialized, _request_timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"the API server can't be reached: {error or type(error).__name__}") from None
        except client.ApiException as error:
            raise ApiError(int(error.status or 0), str(error.reason)) from None
        response: aiohttp.ClientResponse = answer.response
        if response.status >= 400:
            raise ApiError(response.status, _text_of(response.status, await response.read()))
        return response

    async def request(self, method: str, path: str, body: Any = None, content_type: str = JSON, **query: Any) -> Object:
        """One request. ApiError."""
        response = await self._send(method, path, query, body, content_type, REQUEST_SECONDS)
        try:
            answer: Object = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"the API server's answer broke off: {error}") from None
        return answer

    async def insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """work(), again as long as the server can't be reached, and some times where it can't now (a conflict, too many
        requests, trouble of its own). ApiError: it refuses.
        """
        failures = tries = 0
        while True:
            try:
                return await work()
            except ApiError as error:
                failures += 1
                tries += error.status != 0
                later = error.status in (0, CONFLICT, TOO_MANY) or error.status >= 500
                if not later or tries == TRIES:
                    raise
            await asyncio.sleep(pause(failures))

    async def keep_connected(self) -> None:
        """For ever; cancel it to end. There is a connection then, whose making costs more than most requests."""
        while True:
            with suppress(ApiError):
                await self.get("/version")
            await asyncio.sleep(IDLE_SECONDS / 2)

    async def get(self, path: str) -> Object:
        return await self.request("GET", path)

    async def create(self, path: str, body: Object) -> Object:
        return await self.request("POST", path, body)

    async def replace(self, path: str, body: Object) -> Object:
        return await self.request("PUT", path, body)

    async def merge(self, path: str, body: Object) -> Object:
        """A JSON merge patch."""
        return await self.request("PATCH", path, body, MERGE_PATCH)

    async def apply(self, path: str, body: Object) -> Object:
        """Server-side apply: what we said before and say no longer goes."""
        return await self.request("PATCH", path, body, APPLY, fieldManager=FIELD_MANAGER, force="true")

    async def delete(self, path: str) -> None:
        """Done as well where there is none."""
        try:
            await self.request("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    async def list(self, path: str, **query: Any) -> tuple[list[Object], str]:
        """All objects, page by page, and the resource version to watch from."""
        objects: list[Object] = []
        more: dict[str, str] = {}
        while True:
            page = await self.request("GET", path, limit=PAGE, **query, **more)
            objects += page.get("items") or []
            if not page["metadata"].get("continue"):
                return objects, str(page["metadata"].get("resourceVersion", ""))
            more = {"continue": page["metadata"]["continue"]}

    async def watch(self, path: str, version: str, seconds: int, **query: Any) -> AsyncIterator[Object]:
        """Events {"type", "object"} since a resource version, until the server ends the stream. ApiError.

        The first, {"type": "OPEN"}, is ours: the server has begun to answer. Where nothing happens nothing else comes.
        """
        query |= {"watch": "true", "resourceVersion": version, "timeoutSeconds": seconds, "allowWatchBookmarks": "true"}
        # A bookmark comes every minute: a stream that is silent for longer is dead.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=90)
        response = await self._send("GET", path, query, None, JSON, timeout)
        pending = b""
        try:
            yield {"type": OPEN}
            async for chunk in response.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield json.loads(line)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, f"the watch broke off: {error or type(error).__name__}") from None
        finally:
            response.close()


__all__ = ["CONFLICT", "OPEN", "RESOURCE", "Api", "ApiError", "Object", "pause"]

# SPDX-License-Identifier: Apache-2.0
"""The kubelet's gRPC protocols (protocol/*.proto), as classes and calls.

The build compiles the .proto files to one descriptor set; the classes are made from it
here. Generated code would be bound to the protobuf release that generated it.
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DRA = "k8s.io.kubelet.pkg.apis.dra.v1"
REGISTRATION = "pluginregistration"
DEVICE_PLUGIN = "v1beta1"
HEALTH = "v1"


def _load() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    compiled = files("sluice.kubernetes").joinpath("kubelet.pb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_pool = _load()


def message(name: str) -> Any:
    """The class of a message, by its full name."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def serve(service: str, implementation: object, under: str | None = None) -> grpc.GenericRpcHandler:
    """Handlers of a service, whose methods `implementation` has by their names.

    under: another service name with the same messages (an older version of the protocol).
    """
    handlers = {}
    for method in _pool.FindServiceByName(service).methods:
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            getattr(implementation, method.name),
            request_deserializer=message(method.input_type.full_name).FromString,
            response_serializer=message(method.output_type.full_name).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(under or service, handlers)


def call(channel: grpc.aio.Channel, service: str, method: str) -> Callable[..., Any]:
    """A client's call: awaited for one answer, iterated for a stream."""
    found = _pool.FindServiceByName(service).FindMethodByName(method)
    make = channel.unary_stream if found.server_streaming else channel.unary_unary
    stub: Callable[..., Awaitable[Any]] = make(
        f"/{service}/{method}",
        request_serializer=message(found.input_type.full_name).SerializeToString,
        response_deserializer=message(found.output_type.full_name).FromString,
    )
    return stub

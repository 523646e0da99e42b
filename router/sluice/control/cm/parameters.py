# SPDX-License-Identifier: Apache-2.0
"""What one end of a connection tells the other: struct rdma_conn_param and struct rdma_ud_param."""

import errno
from dataclasses import dataclass
from typing import Any

from sluice.engine import ffi

# Bytes of private data in each message: what the CM's own header leaves of the MAD (IBTA 12.6, rdma_connect(3)).
# Receivers get all of them, zeroes behind what was sent.
REQUEST_DATA = 56
REPLY_DATA = 196
REJECT_DATA = 148
LOOKUP_DATA = 180
LOOKUP_REPLY_DATA = 136

MAX_RETRIES = 7
QPN_BITS = 24


@dataclass(frozen=True)
class Parameters:
    """From the sender's view: responder_resources is what it serves, initiator_depth what it asks for."""

    qp_num: int = 0
    qkey: int = 0
    srq: bool = False
    responder_resources: int = 0
    initiator_depth: int = 0
    flow_control: int = 0
    retry_count: int = 0
    rnr_retry_count: int = 0
    private_data: bytes = b""
    ece: tuple[int, int] = (0, 0)
    """Vendor and options of enhanced connection establishment."""


def read_parameters(raw: Any, most: int) -> Parameters:
    """From a struct sluice_cm_param. OSError EINVAL: more than `most` bytes of private data, no such QP number."""
    if raw.private_data_len > most:
        raise OSError(errno.EINVAL, f"more than {most} bytes of private data")
    if raw.qp_num >> QPN_BITS:
        raise OSError(errno.EINVAL, "a QP number has 24 bits")
    return Parameters(
        qp_num=raw.qp_num,
        srq=bool(raw.srq),
        responder_resources=raw.responder_resources,
        initiator_depth=raw.initiator_depth,
        flow_control=raw.flow_control,
        retry_count=min(raw.retry_count, MAX_RETRIES),
        rnr_retry_count=min(raw.rnr_retry_count, MAX_RETRIES),
        private_data=bytes(ffi.buffer(raw.private_data))[: raw.private_data_len],
        ece=(raw.ece_vendor, raw.ece_options),
    )


def write_parameters(raw: Any, parameters: Parameters) -> None:
    raw.qp_num = parameters.qp_num
    raw.qkey = parameters.qkey
    raw.srq = parameters.srq
    raw.responder_resources = parameters.responder_resources
    raw.initiator_depth = parameters.initiator_depth
    raw.flow_control = parameters.flow_control
    raw.retry_count = parameters.retry_count
    raw.rnr_retry_count = parameters.rnr_retry_count
    raw.private_data_len = len(parameters.private_data)
    raw.ece_vendor, raw.ece_options = parameters.ece
    ffi.memmove(raw.private_data, parameters.private_data, len(parameters.private_data))

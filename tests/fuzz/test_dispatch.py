# SPDX-License-Identifier: Apache-2.0
"""Control messages in arbitrary order, through the router's own dispatch, to a real engine.

Whatever a session asks for, it gets an answer with the cookie and the operation of its request, or its session ends
with ProtocolError; nothing else may come out, and an end that others hold must go on working.
"""

import os
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any, cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sluice.cluster.directory import Directory
from sluice.control.connections import OpenGate
from sluice.control.session import Session
from sluice.control.verbs import HEADER_SIZE, ProtocolError, Verbs
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, ffi, lib
from sluice.engine.engine import Shape

ADDRESS = IPv4Address("10.0.0.1")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))
COOKIE = 0x1122334455667788

OPERATIONS = sorted(getattr(lib, name) for name in dir(lib) if name.startswith("SLUICE_OP_"))

handles = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
words = st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1), st.sampled_from([0xFFFF, 1 << 20, 1 << 31]))


class Process:
    """As much of a Session as Verbs sees."""

    def __init__(self, number: int) -> None:
        self.number = number

    def send_descriptor(self, cookie: int, fd: int) -> None:
        assert fd >= 0

    def __getattr__(self, name: str) -> Any:
        # What passes descriptors: this process has passed none.
        raise ProtocolError(name)


class Dispatch(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.engine = Engine()
        tenant = self.engine.add_tenant(Shape())
        directory = Directory()
        directory.assign(tenant, "a")
        self.verbs = Verbs(self.engine, directory, OpenGate())
        self.verbs.set_devices(ADDRESS, [VirtualDevice(ADDRESS)])
        self.files = []
        self.sessions: list[Process] = []
        for _ in range(2):
            number, files = self.engine.open_session(tenant)
            self.files += [files.segment, files.arena]
            self.sessions.append(Process(number))
        self.contexts = []
        for process in self.sessions:
            context, fd = self.engine.open_context(process.number)
            self.contexts.append(context)
            self.files.append(fd)
        self.other_pd = self.engine.alloc_pd(self.sessions[1].number, self.contexts[1])

    def send(self, frame: bytes) -> bytes | None:
        try:
            answer = self.verbs.dispatch(cast(Session, self.sessions[0]), frame)
        except ProtocolError:
            return None
        header = ffi.from_buffer("struct sluice_header *", answer)
        sent = ffi.from_buffer("struct sluice_header *", frame)
        assert header.op == sent.op and header.cookie == sent.cookie and header.size == len(answer)
        assert header.status >= 0
        return answer

    def request(self, kind: str, op: int, fields: dict[str, Any]) -> bytes | None:
        message = ffi.new(f"struct {kind} *", fields)
        message.header.op = op
        message.header.size = ffi.sizeof(f"struct {kind}")
        message.header.cookie = COOKIE
        return self.send(bytes(ffi.buffer(message)))

    @rule(frame=st.binary(max_size=300))
    def anything(self, frame: bytes) -> None:
        self.send(frame)

    @rule(op=st.sampled_from(OPERATIONS), body=st.binary(max_size=300))
    def a_header_and_anything(self, op: int, body: bytes) -> None:
        header = ffi.new("struct sluice_header *", {"op": op, "size": HEADER_SIZE + len(body), "cookie": COOKIE})
        self.send(bytes(ffi.buffer(header)) + body)

    @rule(op=st.sampled_from(OPERATIONS), data=st.data())
    def the_right_size(self, op: int, data: st.DataObject) -> None:
        entry = self.verbs._table.get(op)
        if entry is None:
            return
        size = entry[1]
        frame = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
        header = ffi.new("struct sluice_header *", {"op": op, "size": size, "cookie": COOKIE})
        frame[:HEADER_SIZE] = bytes(ffi.buffer(header))
        self.send(bytes(frame))

    @rule()
    def pd(self) -> None:
        self.request("sluice_handle_request", lib.SLUICE_OP_ALLOC_PD, {"handle": self.contexts[0]})

    @rule(cqe=st.integers(0, 300), channel=st.integers(0, 4))
    def cq(self, cqe: int, channel: int) -> None:
        self.request(
            "sluice_create_cq_request",
            lib.SLUICE_OP_CREATE_CQ,
            {"cqe": cqe, "channel": channel, "context": self.contexts[0]},
        )

    @rule(pd=handles, send_cq=handles, recv_cq=handles, kind=st.sampled_from([2, 3, 4, 9, 10, 77]), wr=words, sge=words)
    def qp(self, pd: int, send_cq: int, recv_cq: int, kind: int, wr: int, sge: int) -> None:
        cap = {"max_send_wr": wr, "max_recv_wr": wr % 100, "max_send_sge": sge, "max_recv_sge": sge % 8}
        fields = {"pd": pd, "send_cq": send_cq, "recv_cq": recv_cq, "qp_type": kind, "cap": cap}
        self.request("sluice_create_qp_request", lib.SLUICE_OP_CREATE_QP, fields)

    @rule(
        handle=st.integers(0, 4),
        mask=words,
        state=st.integers(0, 7),
        word=words,
        gid=st.binary(min_size=16, max_size=16),
    )
    def modify(self, handle: int, mask: int, state: int, word: int, gid: bytes) -> None:
        own = bytes(10) + b"\xff\xff" + ADDRESS.packed
        ah = {"dgid": list(own if gid[0] & 1 else gid), "is_global": word & 1, "port_num": 1}
        attr = {
            "qp_state": state,
            "port_num": 1,
            "path_mtu": word % 7,
            "dest_qp_num": word,
            "ah": ah,
            "timeout": word % 40,
        }
        fields = {"handle": handle, "attr_mask": mask, "attr": attr}
        self.request("sluice_modify_qp_request", lib.SLUICE_OP_MODIFY_QP, fields)

    @rule(op=st.sampled_from(OPERATIONS), handle=handles)
    def with_a_handle(self, op: int, handle: int) -> None:
        if op in self.verbs._table and self.verbs._table[op][1] == ffi.sizeof("struct sluice_handle_request"):
            self.request("sluice_handle_request", op, {"handle": handle})

    @invariant()
    def the_other_session_lives(self) -> None:
        if hasattr(self, "other_pd"):
            number = self.sessions[1].number
            self.engine.dealloc_pd(number, self.other_pd)
            self.other_pd = self.engine.alloc_pd(number, self.contexts[1])

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for process in self.sessions:
            self.engine.close_session(process.number)
        self.engine.close()
        for fd in self.files:
            with suppress(OSError):
                os.close(fd)


def test_dispatch() -> None:
    run_state_machine_as_test(
        Dispatch,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )

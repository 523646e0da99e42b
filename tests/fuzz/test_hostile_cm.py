# SPDX-License-Identifier: Apache-2.0
"""rdma_cm requests in arbitrary order, from a hostile session, through the router's own dispatch.

Connections are brought to each of their phases in good order, and then anything is asked of their two ends. In the end
every state of an id and every phase of a connection must have been asked something.

Every request gets an answer or ends the session with ProtocolError, whatever the ids' states are; what it brings about
(events, timers, messages to other ends) raises nothing; another tenant goes on connecting to itself; and in the end no
id, port, channel or descriptor is left.
"""

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Part
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sluice.cluster.directory import Directory
from sluice.control.cm.connection import Connection, Phase
from sluice.control.cm.identifier import Identifier, State
from sluice.control.cm.lookup import Lookup
from sluice.control.cm.manager import CommunicationManager
from sluice.control.cm.place import ClusterLocator
from sluice.control.cm.requests import OPERATIONS, TenantCm
from sluice.control.connections import OpenGate
from sluice.control.session import Session
from sluice.control.verbs import HEADER_SIZE, ProtocolError, Verbs
from sluice.device.host import IP
from sluice.device.virtual import VirtualDevice
from sluice.engine import Engine, ffi, lib
from sluice.engine.engine import Shape

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))
COOKIE = 0x1122334455667788
LOOPBACK = IPv4Address("127.0.0.1")
PORT = 4000
"""Where the other tenant listens."""
CONNECT_REQUEST = 4
"""RDMA_CM_EVENT_CONNECT_REQUEST."""
REQUESTS = {op: request for op, request, _, _ in OPERATIONS}

reached: set[tuple[State | Phase | str, int]] = set()
"""What the hostile session has asked of ids, and where these were."""
LOOKUP_PHASES = ("lookup asks", "lookup is asked", "lookup is over")


def phase_of(identifier: Identifier) -> Phase | str | None:
    end = identifier.end
    if isinstance(end, Lookup):
        return LOOKUP_PHASES[0 if end._asks else 1 if end._asked else 2]
    return end.phase if isinstance(end, Connection) else None


words = st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1))
choices = st.integers(0, 42)
ports = st.sampled_from([0, PORT, 4001, 4002, 65535])


class Clock:
    """Callbacks wait until the test lets time pass."""

    def __init__(self) -> None:
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._later: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._next = 0

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self._soon.append((callback, args))

    def call_later(self, _delay: float, callback: Callable[..., Any], *args: Any) -> "Timer":
        self._next += 1
        self._later[self._next] = (callback, args)
        return Timer(self._later, self._next)

    def settle(self) -> None:
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)

    def expire(self) -> None:
        """Every timer that there is now."""
        for number in list(self._later):
            entry = self._later.pop(number, None)
            if entry is not None:
                entry[0](*entry[1])
        self.settle()


class Timer:
    def __init__(self, timers: dict[int, Any], number: int) -> None:
        self._timers, self._number = timers, number

    def cancel(self) -> None:
        self._timers.pop(self._number, None)


class Host:
    key = 1

    def has(self, ip: IP) -> bool:
        return ip.is_loopback


class Process:
    """As much of a Session as rdma_cm sees. It may have stopped reading what it is sent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connection, self._peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.deaf = False

    def send_descriptor(self, _cookie: int, fd: int) -> None:
        os.fstat(fd)
        if self.deaf:
            raise OSError(errno.EAGAIN, "nobody reads")

    def close(self) -> None:
        self.connection.close()
        self._peer.close()


class Caller:
    """A process of a tenant of its own, and the requests that it makes."""

    def __init__(self, engine: Engine, directory: Directory, cm: CommunicationManager, name: str) -> None:
        number = engine.add_tenant(Shape())
        self.address = directory.assign(number, name)
        self.cm = TenantCm(cm, number)
        self.cm.set_devices(self.address, ())
        self.verbs = Verbs(engine, directory, OpenGate(), self.cm.operations())
        self.verbs.set_devices(self.address, [VirtualDevice(self.address)])
        self.process = Process(number)
        self.counted = False

    def send(self, frame: bytes) -> Any:
        """The answer; None where the session must end."""
        try:
            answer = self.verbs.dispatch(cast(Session, self.process), frame)
        except ProtocolError:
            return None
        header = ffi.from_buffer("struct sluice_header *", answer)
        sent = ffi.from_buffer("struct sluice_header *", frame)
        assert header.op == sent.op and header.cookie == sent.cookie and header.size == len(answer)
        assert header.status >= 0
        return answer

    def ask(self, op: int, **fields: Any) -> Any:
        message = ffi.new(f"{REQUESTS[op]} *", fields)
        message.header.op, message.header.size = op, ffi.sizeof(REQUESTS[op])
        message.header.cookie = COOKIE
        self.note(op, fields.get("handle"))
        return self.send(bytes(ffi.buffer(message)))

    def note(self, op: int, handle: int | None) -> None:
        """Counts where the id is that a request names."""
        owner = self.cm._owners.get(self.process.number)
        identifier = owner._ids.get(handle) if owner is not None and handle is not None else None
        if identifier is None or not self.counted:
            return
        reached.add((identifier.state, op))
        phase = phase_of(identifier)
        if phase is not None:
            reached.add((phase, op))

    def handle(self, op: int, **fields: Any) -> int:
        """Of what a request that must succeed has made."""
        reply = ffi.from_buffer("struct sluice_handle_reply *", self.ask(op, **fields))
        assert reply.header.status == 0, errno.errorcode[reply.header.status]
        return int(reply.handle)

    def close(self) -> None:
        self.cm.end_session(cast(Session, self.process))
        self.process.close()


def address(ip: IPv4Address, port: int, family: int = socket.AF_INET) -> dict[str, Any]:
    return {"family": family, "port": socket.htons(port), "addr": list(ip.packed.ljust(16, b"\0"))}


class Requests(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.open_files = len(list(Path("/proc/self/fd").iterdir()))
        self.engine = Engine()
        self.clock = Clock()
        directory = Directory()
        self.manager = CommunicationManager(ClusterLocator(directory, Host()), Host(), OpenGate(), self.clock)
        self.hostile = Caller(self.engine, directory, self.manager, "hostile")
        self.hostile.counted = True
        self.other = Caller(self.engine, directory, self.manager, "other")
        self.places = [LOOPBACK, self.hostile.address, self.other.address, IPv4Address("239.1.1.1"), IPv4Address(0)]
        self.channel = self.other.handle(lib.SLUICE_OP_CM_CREATE_CHANNEL)
        self.channels = [self.hostile.handle(lib.SLUICE_OP_CM_CREATE_CHANNEL)]
        self.ids: list[int] = []
        self.ends: list[int] = []
        self.listener = self.id_of(self.other)
        self.succeeds(self.other, lib.SLUICE_OP_CM_BIND, handle=self.listener, src=address(self.other.address, PORT))
        self.succeeds(self.other, lib.SLUICE_OP_CM_LISTEN, handle=self.listener, value=0)

    def id_of(self, caller: Caller) -> int:
        fields = {"uid": 1, "channel": self.channel, "port_space": 0x106, "qp_type": 2}
        return caller.handle(lib.SLUICE_OP_CM_CREATE_ID, **fields)

    def one_of(self, handles: list[int], choice: int) -> int:
        """Most choices name something that there is, or was; the others themselves."""
        return choice if not handles or choice > 40 else handles[choice % len(handles)]

    def keep(self, answer: Any, handles: list[int]) -> None:
        if answer is not None:
            reply = ffi.from_buffer("struct sluice_handle_reply *", answer)
            if reply.header.status == 0:
                handles.append(int(reply.handle))

    def succeeds(self, caller: Caller, op: int, **fields: Any) -> None:
        header = ffi.from_buffer("struct sluice_header *", caller.ask(op, **fields))
        assert header.status == 0, errno.errorcode[header.status]

    @rule(op=st.sampled_from(sorted(REQUESTS)), data=st.data())
    def the_right_size(self, op: int, data: st.DataObject) -> None:
        size = ffi.sizeof(REQUESTS[op])
        frame = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
        header = ffi.new("struct sluice_header *", {"op": op, "size": size, "cookie": COOKIE})
        frame[:HEADER_SIZE] = bytes(ffi.buffer(header))
        self.hostile.send(bytes(frame))

    @rule(deaf=st.sampled_from([False, False, False, True]))
    def make_channel(self, deaf: bool) -> None:
        self.hostile.process.deaf = deaf
        self.keep(self.hostile.ask(lib.SLUICE_OP_CM_CREATE_CHANNEL), self.channels)

    @rule(channel=choices, space=st.sampled_from([0x106, 0x106, 0x111, 0x13F, 7]), kind=st.sampled_from([2, 2, 4, 11]))
    def create_id(self, channel: int, space: int, kind: int) -> None:
        fields = {"uid": 7, "channel": self.one_of(self.channels, channel), "port_space": space, "qp_type": kind}
        self.keep(self.hostile.ask(lib.SLUICE_OP_CM_CREATE_ID, **fields), self.ids)

    @rule(
        op=st.sampled_from([lib.SLUICE_OP_CM_BIND, lib.SLUICE_OP_CM_RESOLVE_ADDR]),
        handle=choices,
        ends=st.tuples(st.integers(0, 4), st.integers(0, 4)),
        at=st.tuples(ports, ports),
        family=st.sampled_from([0, socket.AF_INET, socket.AF_INET, socket.AF_INET6, 99]),
    )
    def addresses(self, op: int, handle: int, ends: tuple[int, int], at: tuple[int, int], family: int) -> None:
        src, dst = (address(self.places[end], port, family) for end, port in zip(ends, at, strict=True))
        self.hostile.ask(op, handle=self.one_of(self.ids, handle), timeout_ms=1, src=src, dst=dst)

    @rule(
        op=st.sampled_from([op for op, request in REQUESTS.items() if request == "struct sluice_cm_value_request"]),
        handle=choices,
        value=words,
    )
    def value(self, op: int, handle: int, value: int) -> None:
        self.hostile.ask(op, handle=self.one_of(self.ids, handle), value=value)

    @rule(
        op=st.sampled_from([lib.SLUICE_OP_CM_CONNECT, lib.SLUICE_OP_CM_ACCEPT]),
        handle=choices,
        qp=words,
        length=st.integers(0, 255),
        valid=st.integers(0, 2),
    )
    def parameters(self, op: int, handle: int, qp: int, length: int, valid: int) -> None:
        param = {"qp_num": qp, "private_data_len": length, "valid": valid, "retry_count": length, "ece_vendor": qp}
        self.hostile.ask(op, uid=9, handle=self.one_of(self.ids, handle), param=param)

    @rule(handle=choices, reason=st.sampled_from([0, 1, 28, 255]), length=st.integers(0, 255))
    def reject(self, handle: int, reason: int, length: int) -> None:
        self.hostile.ask(
            lib.SLUICE_OP_CM_REJECT, handle=self.one_of(self.ids, handle), reason=reason, private_data_len=length
        )

    @rule(
        handle=choices, level=st.sampled_from([0, 0, 1]), name=st.integers(0, 5), length=st.sampled_from([0, 1, 4, 255])
    )
    def option(self, handle: int, level: int, name: int, length: int) -> None:
        fields = {"handle": self.one_of(self.ids, handle), "level": level, "optname": name, "optlen": length}
        self.hostile.ask(lib.SLUICE_OP_CM_SET_OPTION, **fields)

    @rule(handle=choices, place=st.integers(0, 4), flags=words)
    def join(self, handle: int, place: int, flags: int) -> None:
        fields = {
            "uid": 3,
            "handle": self.one_of(self.ids, handle),
            "join_flags": flags,
            "addr": address(self.places[place], 0),
        }
        self.hostile.ask(lib.SLUICE_OP_CM_JOIN, **fields)

    @rule(
        op=st.sampled_from([op for op, request in REQUESTS.items() if request == "struct sluice_handle_request"]),
        handle=choices,
    )
    def with_a_handle(self, op: int, handle: int) -> None:
        self.hostile.ask(op, handle=self.one_of(self.ids + self.channels[1:], handle))

    @rule(handle=choices)
    def read_events(self, handle: int) -> None:
        for _ in range(20):
            answer = self.hostile.ask(lib.SLUICE_OP_CM_GET_EVENT, handle=self.one_of(self.channels[:2], handle))
            if answer is not None:
                event = ffi.from_buffer("struct sluice_cm_event_reply *", answer)
                if event.header.status != 0:
                    break
                self.ids.append(int(event.handle))
                if event.event == CONNECT_REQUEST and handle % 2:
                    self.hostile.ask(
                        lib.SLUICE_OP_CM_ACCEPT, uid=9, handle=event.handle, param={"valid": 1, "qp_num": 6}
                    )
                    self.clock.settle()

    @rule(place=st.integers(0, 2), port=ports, far=st.integers(0, 4), kind=st.sampled_from([(0x106, 2), (0x111, 4)]))
    def on_the_way(self, place: int, port: int, far: int, kind: tuple[int, int]) -> None:
        """An id that comes as far as it can, in good order: what is done to it then matters."""
        channel, to = self.channels[0], address(self.places[place], port)
        fields = {"uid": 8, "channel": channel, "port_space": kind[0], "qp_type": kind[1]}
        self.keep(self.hostile.ask(lib.SLUICE_OP_CM_CREATE_ID, **fields), self.ids)
        if far == 4 and self.ids:
            self.hostile.ask(lib.SLUICE_OP_CM_BIND, handle=self.ids[-1], src=to)
            self.hostile.ask(lib.SLUICE_OP_CM_LISTEN, handle=self.ids[-1], value=4)
        elif self.ids:
            steps: list[tuple[int, dict[str, Any]]] = [
                (lib.SLUICE_OP_CM_RESOLVE_ADDR, {"timeout_ms": 1, "dst": to}),
                (lib.SLUICE_OP_CM_RESOLVE_ROUTE, {"value": 1}),
                (lib.SLUICE_OP_CM_CONNECT, {"param": {"valid": 1, "qp_num": 5}}),
            ]
            for op, arguments in steps[: far + 1]:
                self.hostile.ask(op, handle=self.ids[-1], **arguments)
                self.clock.settle()

    def events(self, channel: int) -> list[Any]:
        """All that the channel has for the hostile session."""
        found = []
        while (answer := self.hostile.ask(lib.SLUICE_OP_CM_GET_EVENT, handle=channel)) is not None:
            event = ffi.from_buffer("struct sluice_cm_event_reply *", answer)
            if event.header.status != 0:
                break
            found.append(event)
        return found

    def step(self, number: int) -> None:
        """One of those that take a connection, of which self.ends are the two ends, from its request to its end."""
        one, other = self.ends[0], self.ends[min(1, len(self.ends) - 1)]
        reply = {"valid": 1, "qp_num": 6, "private_data_len": 7}
        steps: list[tuple[int, dict[str, Any]]] = [
            (lib.SLUICE_OP_CM_ACCEPT, {"handle": other, "uid": 9, "param": reply}),
            (0, {}),
            (lib.SLUICE_OP_CM_ACCEPT, {"handle": one}),
            (0, {}),
            (lib.SLUICE_OP_CM_DISCONNECT, {"handle": one}),
            (0, {}),
            (lib.SLUICE_OP_CM_DISCONNECT, {"handle": other}),
            (0, {}),
        ]
        op, fields = steps[number]
        if op:
            self.hostile.ask(op, **fields)
        else:
            self.clock.settle()

    @rule(
        far=st.integers(-5, 9),
        kind=st.sampled_from([(0x106, 2), (0x106, 2), (0x111, 4), (0x13F, 3)]),
        place=st.integers(0, 1),
        then=st.lists(st.tuples(st.sampled_from(sorted(REQUESTS)), st.integers(0, 1)), min_size=1, max_size=4),
        data=st.data(),
    )
    def both_ends(
        self, far: int, kind: tuple[int, int], place: int, then: list[tuple[int, int]], data: st.DataObject
    ) -> None:
        """A connection with itself, in good order, as far as that; and what comes then, before anything settles."""
        if self.connect(kind, self.places[place], far):
            for op, which in then:
                size = ffi.sizeof(REQUESTS[op])
                self.ask_an_end(op, which, data.draw(st.binary(min_size=size, max_size=size)))

    def connect(self, kind: tuple[int, int], place: IPv4Address, far: int) -> bool:
        """Makes self.ends: who asks, who is asked, who listens. far -5 to -1: no request yet; 9: time has passed."""
        self.hostile.process.deaf = False
        made: list[int] = []
        self.keep(self.hostile.ask(lib.SLUICE_OP_CM_CREATE_CHANNEL), made)
        for _ in range(2):
            if made:
                fields = {"uid": 8, "channel": made[0], "port_space": kind[0], "qp_type": kind[1]}
                self.keep(self.hostile.ask(lib.SLUICE_OP_CM_CREATE_ID, **fields), made)
        if len(made) != 3:
            return False
        self.channels.append(made[0])
        channel, listener, one = made
        self.ids += [listener, one]
        self.ends = [one]
        if far == -4:
            return True
        at = self.hostile.ask(lib.SLUICE_OP_CM_BIND, handle=listener, src=address(place, 0))
        port = socket.ntohs(ffi.from_buffer("struct sluice_cm_route_reply *", at).route.src.port)
        self.ends = [one, listener]
        if far == -5:
            return True
        self.hostile.ask(lib.SLUICE_OP_CM_LISTEN, handle=listener, value=4)
        self.hostile.ask(lib.SLUICE_OP_CM_RESOLVE_ADDR, handle=one, timeout_ms=1, dst=address(place, port))
        if far == -3:
            return True
        self.hostile.ask(lib.SLUICE_OP_CM_RESOLVE_ROUTE, handle=one, value=1)
        if far == -2:
            return True
        self.hostile.ask(lib.SLUICE_OP_CM_CONNECT, handle=one, param={"valid": 1, "qp_num": 5})
        if far < 0:
            return True
        self.clock.settle()
        requests = [event for event in self.events(channel) if event.event == CONNECT_REQUEST]
        if requests:
            self.ends.insert(1, int(requests[0].handle))
            self.ids.append(self.ends[1])
            for number in range(min(far, 8)):
                self.step(number)
        if far == 9:
            self.clock.expire()
        return True

    @precondition(lambda self: bool(getattr(self, "ends", None)))
    @rule(numbers=st.lists(st.integers(0, 7), min_size=1, max_size=8))
    def out_of_order(self, numbers: list[int]) -> None:
        for number in numbers:
            self.step(number)

    def ask_an_end(self, op: int, which: int, payload: bytes) -> None:
        """Any request to one of these ends, with anything else in it."""
        size = len(payload)
        message = ffi.new(f"{REQUESTS[op]} *")
        ffi.memmove(message, payload, size)
        message.header.op, message.header.size, message.header.cookie = op, size, COOKIE
        if hasattr(message, "handle"):
            message.handle = self.ends[which % len(self.ends)]
            self.hostile.note(op, message.handle)
        self.hostile.send(bytes(ffi.buffer(message)))

    @rule(handle=choices, event=st.sampled_from([16, 17, 18, 18, 9, 99]), arg=st.integers(0, 2**64 - 1))
    def write_event(self, handle: int, event: int, arg: int) -> None:
        fields = {"handle": self.one_of(self.ids, handle), "event": event, "event_status": -1, "arg": arg}
        self.hostile.ask(lib.SLUICE_OP_CM_WRITE_EVENT, **fields)

    @rule()
    def settle(self) -> None:
        self.clock.settle()

    @rule()
    def expire(self) -> None:
        self.clock.expire()

    @invariant()
    def the_other_tenant_resolves_addresses(self) -> None:
        if not hasattr(self, "listener"):
            return
        one = self.id_of(self.other)
        dst = address(self.other.address, PORT)
        self.succeeds(self.other, lib.SLUICE_OP_CM_RESOLVE_ADDR, handle=one, timeout_ms=1, dst=dst)
        self.clock.settle()
        self.succeeds(self.other, lib.SLUICE_OP_CM_RESOLVE_ROUTE, handle=one, value=1)
        self.succeeds(self.other, lib.SLUICE_OP_CM_DESTROY_ID, handle=one)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for caller in (self.hostile, self.other):
            caller.close()
        self.clock.expire()
        manager = self.manager
        assert not +manager.ids_of_tenant and not +manager.channels_of_tenant
        self.engine.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == self.open_files


def test_requests() -> None:
    run_state_machine_as_test(
        Requests,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Part.generate, Part.shrink],
        ),
    )


@pytest.mark.parametrize("filling", [0, 1, 255])
def test_each_request_in_each_state(filling: int) -> None:
    """Every request about an id, with nonsense in it, to every state of an id and of a connection."""
    reached.clear()
    for kind in ((0x106, 2), (0x111, 4)):
        for far in range(-5, 10):
            machine = Requests()
            machine.begin()
            for op in sorted(REQUESTS):
                for which in range(3):
                    if machine.connect(kind, machine.hostile.address, far):
                        machine.ask_an_end(op, which, bytes([filling]) * ffi.sizeof(REQUESTS[op]))
                machine.clock.settle()
                machine.the_other_tenant_resolves_addresses()
            machine.teardown()
    about_ids = {op for op, request in REQUESTS.items() if hasattr(ffi.new(f"{request} *"), "handle")}
    wanted = {(where, op) for where in (*State, *Phase, *LOOKUP_PHASES) for op in about_ids}
    assert not wanted - reached

# SPDX-License-Identifier: Apache-2.0
"""Tenants that lie: on the sockets and in shared memory. The router and the others go on."""

import errno
import mmap
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from conftest import PATIENCE, RunningRouter, listening, next_port, output_of, wait_until
from silent_file import SilentFile
from sluice.control.cm.requests import OPERATIONS
from sluice.engine import ffi, lib

ERRNOS = {0, errno.EINVAL, errno.EAGAIN, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.ENOSYS}

WELCOME = ffi.sizeof("struct sluice_welcome")


class Intruder:
    """A process of tenant "bad" that speaks the protocol by hand."""

    def __init__(self, router: RunningRouter) -> None:
        directory = Path(router.ask("tenant-add", name="bad", policy={})["path"])
        self.descriptors = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptors.connect(str(directory / "descriptors"))
        data, self.files, _, _ = socket.recv_fds(self.descriptors, WELCOME, 8)
        self.welcome = ffi.from_buffer("struct sluice_welcome *", data)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.control = self.context.socket(zmq.DEALER)
        self.control.setsockopt(zmq.LINGER, 0)
        self.control.connect(f"ipc://{directory}/control")

    def hello(self, version: int = lib.SLUICE_ABI_VERSION, token: bytes | None = None) -> int:
        request = ffi.new("struct sluice_hello_request *")
        request.header.op = lib.SLUICE_OP_HELLO
        request.header.size = ffi.sizeof("struct sluice_hello_request")
        request.abi_version = version
        ffi.memmove(request.token, token or ffi.buffer(self.welcome.token)[:], lib.SLUICE_TOKEN)
        return self.ask(bytes(ffi.buffer(request)))

    def ask(self, frame: bytes) -> int:
        """The status of the answer."""
        self.control.send(frame)
        assert self.control.poll(1000 * PATIENCE), "no answer"
        return int(ffi.from_buffer("struct sluice_header *", self.control.recv()).status)

    def is_over(self) -> bool:
        """Whether the router has ended the session."""
        self.descriptors.settimeout(PATIENCE)
        try:
            return self.descriptors.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        for fd in self.files:
            with suppress(OSError):
                os.close(fd)
        self.descriptors.close()
        self.context.destroy(linger=0)


@pytest.fixture
def intruder(router: RunningRouter) -> Iterator[Intruder]:
    made = Intruder(router)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def others_go_on(router: RunningRouter, program: Callable[[str], Path]) -> Iterator[None]:
    """Whatever a test does, another tenant works afterwards, and the hostile one has nothing left."""
    yield
    assert router.process.poll() is None
    output_of(router.run("good", program("errors")))


def header(op: int, size: int, cookie: int = 1) -> bytes:
    return struct.pack("<HHiQ", op, size, 0, cookie)


def test_wrong_token(intruder: Intruder) -> None:
    assert intruder.hello(token=bytes(lib.SLUICE_TOKEN)) != 0
    assert intruder.hello() == 0


def test_other_abi_version(intruder: Intruder, router: RunningRouter) -> None:
    assert intruder.hello(version=99) != 0
    assert "ABI version 99" in router.logged()


def test_requests_before_hello(intruder: Intruder) -> None:
    assert intruder.ask(header(lib.SLUICE_OP_ALLOC_PD, 24) + bytes(8)) != 0


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"x",
        header(999, 16),
        header(lib.SLUICE_OP_CREATE_QP, 16),
        header(lib.SLUICE_OP_CREATE_QP, 24) + bytes(8),
        header(lib.SLUICE_OP_ALLOC_PD, 65535) + bytes(8),
        bytes(4000),
    ],
    ids=["empty", "short", "unknown", "no body", "short body", "lying size", "zeroes"],
)
def test_garbage_requests_end_the_session(intruder: Intruder, frame: bytes) -> None:
    assert intruder.hello() == 0
    intruder.control.send(frame)
    assert intruder.is_over()


def test_garbage_on_the_zmq_socket(router: RunningRouter) -> None:
    directory = Path(router.ask("tenant-add", name="bad", policy={})["path"])
    for seed in range(20):
        with socket.socket(socket.AF_UNIX) as raw, suppress(OSError):
            raw.connect(str(directory / "control"))
            raw.sendall(random.Random(seed).randbytes(100000))


def test_an_oversized_frame(intruder: Intruder) -> None:
    assert intruder.hello() == 0
    intruder.control.send(bytes(10_000_000))
    # libzmq hangs up on it; the session itself has done nothing.
    assert intruder.control.poll(200) == 0


def test_garbage_on_the_descriptor_socket(intruder: Intruder) -> None:
    intruder.descriptors.send(b"hello?")
    assert intruder.is_over()


def test_bad_handles_are_refused(intruder: Intruder) -> None:
    assert intruder.hello() == 0
    for op in (
        lib.SLUICE_OP_DEALLOC_PD,
        lib.SLUICE_OP_DESTROY_CQ,
        lib.SLUICE_OP_DESTROY_QP,
        lib.SLUICE_OP_QUERY_QP,
        lib.SLUICE_OP_DESTROY_SRQ,
        lib.SLUICE_OP_QUERY_SRQ,
        lib.SLUICE_OP_MODIFY_SRQ,
        lib.SLUICE_OP_DESTROY_AH,
        lib.SLUICE_OP_CLOSE_XRCD,
        lib.SLUICE_OP_CLOSE_CONTEXT,
        lib.SLUICE_OP_ALLOC_PD,
    ):
        for handle in (0, 1, 16383, 16384, 2**32 - 1):
            assert intruder.ask(header(op, 24) + struct.pack("<II", handle, 0)) == 22


def test_requests_of_rdma_cm(intruder: Intruder) -> None:
    """Every field of every request at random: refused or done, never the end of the router."""
    assert intruder.hello() == 0
    source = random.Random(1)
    for op, request, _, _ in OPERATIONS:
        size = ffi.sizeof(request)
        for _ in range(30):
            body = bytearray(source.randbytes(size - 16))
            # Handles and numbers that exist are small.
            for at in range(0, len(body) - 3, 4):
                if source.random() < 0.6:
                    body[at : at + 4] = struct.pack("<I", source.randrange(8))
            if op == lib.SLUICE_OP_CM_CREATE_CHANNEL and source.random() < 0.8:
                continue
            assert intruder.ask(header(op, size) + bytes(body)) in ERRNOS


def whole(name: str, op: int, filling: bytes) -> bytes:
    """A request of the right size that is filled with the same bytes."""
    size = int(ffi.sizeof(f"struct {name}"))
    return header(op, size) + (filling * size)[: size - int(ffi.sizeof("struct sluice_header"))]


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\x01\0\0\0", b"\0\0\0\x80", b"\x7f"], ids=bytes.hex)
def test_requests_full_of_nonsense_are_refused(intruder: Intruder, filling: bytes) -> None:
    assert intruder.hello() == 0
    for name, op in (
        ("sluice_create_cq_request", lib.SLUICE_OP_CREATE_CQ),
        ("sluice_create_qp_request", lib.SLUICE_OP_CREATE_QP),
        ("sluice_open_qp_request", lib.SLUICE_OP_OPEN_QP),
        ("sluice_modify_qp_request", lib.SLUICE_OP_MODIFY_QP),
        ("sluice_create_srq_request", lib.SLUICE_OP_CREATE_SRQ),
        ("sluice_create_ah_request", lib.SLUICE_OP_CREATE_AH),
        ("sluice_mcast_request", lib.SLUICE_OP_ATTACH_MCAST),
        ("sluice_mcast_request", lib.SLUICE_OP_DETACH_MCAST),
        ("sluice_open_xrcd_request", lib.SLUICE_OP_OPEN_XRCD),
    ):
        assert intruder.ask(whole(name, op, filling)) != 0, name


def test_contexts_have_an_end(intruder: Intruder) -> None:
    """Each is a pipe of the router's: one process gets so many and no more."""
    assert intruder.hello() == 0
    request = header(lib.SLUICE_OP_OPEN_CONTEXT, 24) + bytes(8)
    statuses = []
    for _ in range(257):
        statuses.append(intruder.ask(request))
        if statuses[-1] == 0:
            _, files, _, _ = socket.recv_fds(intruder.descriptors, 64, 1)
            os.close(files[0])
    assert statuses == [0] * 256 + [24]


def test_many_who_never_greet(router: RunningRouter) -> None:
    made = [Intruder(router) for _ in range(50)]
    for one in made:
        one.close()
    wait_until(lambda: router.status("bad")["counters"]["sessions"] == 0, "the sessions' end")


def test_the_engine_page_is_read_only(intruder: Intruder) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(intruder.files[0], 4096)
    with suppress(OSError):
        again = os.open(f"/proc/self/fd/{intruder.files[0]}", os.O_RDWR)
        with pytest.raises(PermissionError):
            mmap.mmap(again, 4096)
        os.close(again)
    for fd in intruder.files[1:3]:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)


def test_scribbling_over_the_segment(router: RunningRouter) -> None:
    for seed in range(10):
        intruder = Intruder(router)
        assert intruder.hello() == 0
        source = random.Random(seed)
        with mmap.mmap(intruder.files[1], 1 << 20) as segment:
            for _ in range(20000):
                segment[source.randrange(1 << 20)] = source.randrange(256)
            segment[:4096] = source.randbytes(4096)
        intruder.close()


def test_strangers_on_the_host_reach_no_tenant(router: RunningRouter) -> None:
    router.ask("tenant-add", name="bad", policy={})
    assert (router.state_dir / "tenants").stat().st_mode & 0o777 == 0o700
    assert (router.state_dir / "admin").stat().st_mode & 0o777 == 0o600


OPEN_MEMORY = ffi.sizeof("struct sluice_open_memory_request")


def open_memory(kind: int, has_descriptor: int, writable: int, start: int, length: int, cookie: int = 1) -> bytes:
    fields = struct.pack("<4I2Q", kind, has_descriptor, writable, 0, start, length)
    return header(lib.SLUICE_OP_OPEN_MEMORY, OPEN_MEMORY, cookie) + fields


def test_another_tenants_memory(router: RunningRouter, program: Callable[[str], Path]) -> None:
    port = next_port()
    victim = router.run("victim", program("trespass"), str(port))
    wait_until(lambda: listening(port) or victim.poll() is not None, "the victim")
    output_of(router.run("intruder", program("trespass"), str(port), "client"))
    output_of(victim)


def test_nonsense_about_memory(intruder: Intruder) -> None:
    """An errno for each, and nothing opened: what isn't mapped so, isn't in memory only, or isn't there."""
    assert intruder.hello() == 0
    source = random.Random(5)
    for _ in range(300):
        kind = source.choice([0, lib.SLUICE_MEMORY_FILE, lib.SLUICE_MEMORY_DMABUF, 99, 2**32 - 1])
        start, length = (source.choice([0, 1, 4096, 2**47, 2**63, 2**64 - 1, source.randrange(2**64)]) for _ in "12")
        assert intruder.ask(open_memory(kind, source.choice([0, 1, 7]), source.randrange(2), start, length)) != 0
    for handle in (0, 1, 2**31, 2**32 - 1):
        assert intruder.ask(header(lib.SLUICE_OP_CLOSE_MEMORY, 24) + struct.pack("<II", handle, 0)) == errno.EINVAL


def mapping_of(pid: int, text: str) -> tuple[int, int]:
    """Start and length of the first mapping whose line holds this text."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if text in line:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            return start, end - start
    raise AssertionError(text)


def test_only_its_own_rights(intruder: Intruder) -> None:
    """A mapping's file is given as the process has it: shared, in memory only, writable where it is."""
    assert intruder.hello() == 0
    # Private mappings of a file on disk, which the router's user could open.
    start, length = mapping_of(os.getpid(), "libc.so.6")
    assert intruder.ask(open_memory(lib.SLUICE_MEMORY_FILE, 0, 0, start, length)) != 0
    fd = os.memfd_create("secret")
    os.truncate(fd, 4096)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    with mmap.mmap(again, 4096, prot=mmap.PROT_READ):
        start, length = mapping_of(os.getpid(), "/memfd:secret")
        refused = intruder.ask(open_memory(lib.SLUICE_MEMORY_FILE, 0, 1, start, length))
        assert refused in (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP)
        # As a descriptor: no more than it can do.
        packet = ffi.new("struct sluice_descriptor *", {"cookie": 77})
        socket.send_fds(intruder.descriptors, [bytes(ffi.buffer(packet))], [again])
        assert intruder.ask(open_memory(lib.SLUICE_MEMORY_FILE, 1, 1, 0, 0, cookie=77)) == errno.EACCES
        socket.send_fds(intruder.descriptors, [bytes(ffi.buffer(packet))], [again])
        assert intruder.ask(open_memory(lib.SLUICE_MEMORY_FILE, 1, 0, 0, 0, cookie=77)) == 0
    os.close(again)
    os.close(fd)


@pytest.fixture
def silent_file(tmp_path: Path) -> Iterator[SilentFile]:
    try:
        made = SilentFile(tmp_path / "silent")
    except OSError as error:
        pytest.skip(f"no file system of one's own can be mounted here: {error}")
    yield made
    made.close()


@pytest.mark.parametrize("what", ["mapping", "descriptor"])
def test_a_file_whose_server_is_silent(
    intruder: Intruder, router: RunningRouter, program: Callable[[str], Path], silent_file: SilentFile, what: str
) -> None:
    """It is the tenant's own requests that wait for it."""
    assert intruder.hello() == 0
    with silent_file.path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        silent_file.fall_silent()
        if what == "mapping":
            start, length = mapping_of(os.getpid(), str(silent_file.path))
            intruder.control.send(open_memory(lib.SLUICE_MEMORY_FILE, 0, 1, start, length))
        else:
            request = ffi.new("struct sluice_open_xrcd_request *", {"fd": file.fileno()})
            request.header.op, request.header.size = lib.SLUICE_OP_OPEN_XRCD, ffi.sizeof(request[0])
            intruder.control.send(bytes(ffi.buffer(request)))
        wait_until(silent_file.asked, "the router to look at the file")
        output_of(router.run("good", program("errors")))
        assert intruder.control.poll(0) == 0
        silent_file.close()
        assert intruder.control.poll(1000 * PATIENCE), "no answer"
        assert ffi.from_buffer("struct sluice_header *", intruder.control.recv()).status != 0


def test_descriptors_that_nobody_asks_for(intruder: Intruder, router: RunningRouter) -> None:
    assert intruder.hello() == 0
    open_files = Path(f"/proc/{router.process.pid}/fd")
    before = len(list(open_files.iterdir()))
    with suppress(OSError):
        for cookie in range(100):
            packet = ffi.new("struct sluice_descriptor *", {"cookie": cookie})
            socket.send_fds(intruder.descriptors, [bytes(ffi.buffer(packet))], [0])
    assert intruder.is_over()
    wait_until(lambda: len(list(open_files.iterdir())) <= before, "the descriptors' end")


def lingering(kept: list[socket.socket]) -> socket.socket:
    """A socket whose last owner, when it closes it, waits an hour for a peer that takes nothing. kept: that peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        kept.append(listener.accept()[0])
    sender.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sender.send(bytes(1 << 16))
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sender


def test_sockets_that_linger(intruder: Intruder) -> None:
    """Who closes one last waits for bytes that its peer never takes: not the router."""
    assert intruder.hello() == 0
    kept: list[socket.socket] = []
    for cookie in (1, 2):
        with lingering(kept) as sender:
            packet = ffi.new("struct sluice_descriptor *", {"cookie": cookie})
            socket.send_fds(intruder.descriptors, [bytes(ffi.buffer(packet))], [sender.fileno()])
    # One is refused, the other is still unread when the session ends.
    assert intruder.ask(open_memory(lib.SLUICE_MEMORY_FILE, 1, 1, 0, 0, cookie=1)) == errno.EOPNOTSUPP
    intruder.descriptors.send(b"hello?")
    assert intruder.is_over()
    del kept


OLDER_KERNEL = """
import sys
from sluice.cli import main
from sluice.control import control_socket
control_socket.SO_PASSRIGHTS = 9999
sys.exit(main())
"""
"""The router's program, where the kernel knows no socket that refuses descriptors."""


SENDER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as raw:
    raw.connect(sys.argv[1])
    sys.stdin.read()
    try:
        socket.send_fds(raw, [b"\\xff"], [int(sys.argv[2])])
    except PermissionError:
        pass
"""
"""Passes a descriptor to a socket, and ends. Who ends does not linger, should the router have closed it first."""


@pytest.fixture(params=[("-m", "sluice"), ("-c", OLDER_KERNEL)], ids=["this kernel", "older kernel"])
def any_router(request: pytest.FixtureRequest) -> Iterator[RunningRouter]:
    running = RunningRouter(program=request.param)
    yield running
    running.stop()


def test_sockets_that_linger_on_the_zmq_socket(any_router: RunningRouter, program: Callable[[str], Path]) -> None:
    """The thread that reads from the socket would be the one that waits; and it reads for all tenants."""
    directory = Path(any_router.ask("tenant-add", name="bad", policy={})["path"])
    kept: list[socket.socket] = []
    sender = lingering(kept)
    command = [sys.executable, "-c", SENDER, str(directory / "control"), str(sender.fileno())]
    child = subprocess.Popen(command, pass_fds=[sender.fileno()], stdin=subprocess.PIPE)
    sender.close()
    child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    output_of(any_router.run("good", program("errors")))
    any_router.ask("tenant-remove", name="bad", force=True)
    output_of(any_router.run("good", program("errors")))
    del kept


def test_many_files(intruder: Intruder) -> None:
    """As many as a session may have, and no more."""
    assert intruder.hello() == 0
    fd = os.memfd_create("many")
    os.truncate(fd, 4096)
    packet = ffi.new("struct sluice_descriptor *", {"cookie": 1})
    answers = []
    for _ in range(1100):
        socket.send_fds(intruder.descriptors, [bytes(ffi.buffer(packet))], [fd])
        answers.append(intruder.ask(open_memory(lib.SLUICE_MEMORY_FILE, 1, 1, 0, 0)))
        if answers[-1]:
            break
    assert set(answers[:-1]) == {0} and answers[-1] == errno.ENOMEM
    os.close(fd)


def made(intruder: Intruder, request: str, op: int, reply: str, **fields: int) -> Any:
    """The answer to a request that must succeed."""
    frame = ffi.new(f"struct {request} *", fields)
    frame.header.op, frame.header.size = op, ffi.sizeof(frame[0])
    intruder.control.send(bytes(ffi.buffer(frame)))
    assert intruder.control.poll(1000 * PATIENCE), "no answer"
    answer = ffi.from_buffer(f"struct {reply} *", intruder.control.recv())
    assert answer.header.status == 0
    return answer


def opened_context(intruder: Intruder) -> int:
    """The handle; the descriptor of its events is closed."""
    handle = made(intruder, "sluice_handle_request", lib.SLUICE_OP_OPEN_CONTEXT, "sluice_handle_reply").handle
    _, files, _, _ = socket.recv_fds(intruder.descriptors, 64, 1)
    os.close(files[0])
    return int(handle)


def test_a_queue_of_a_million_is_resized(intruder: Intruder, router: RunningRouter) -> None:
    """Who never had any of it says that all of it waits. It is copied in thousands of turns, at its own expense."""
    assert intruder.hello() == 0
    context = opened_context(intruder)
    most = lib.SLUICE_MAX_CQE
    cq = made(
        intruder,
        "sluice_create_cq_request",
        lib.SLUICE_OP_CREATE_CQ,
        "sluice_create_cq_reply",
        cqe=most,
        context=context,
    )
    with mmap.mmap(intruder.files[1], cq.offset + 4096) as segment:
        at = cq.offset + ffi.offsetof("struct sluice_cq_shared", "consumer")
        segment[at : at + 4] = struct.pack("<I", 2**32 - most)
        for _ in range(2):
            before = router.status("bad")["counters"]["engine_ns"]
            resized = made(
                intruder,
                "sluice_resize_cq_request",
                lib.SLUICE_OP_RESIZE_CQ,
                "sluice_resize_cq_reply",
                handle=cq.handle,
                cqe=most,
            )
            assert resized.cqe == most
            # A million cache lines and more are moved in less by no machine.
            assert router.status("bad")["counters"]["engine_ns"] - before > 1_000_000
    # In the middle of another one, the process ends.
    frame = ffi.new("struct sluice_resize_cq_request *", {"handle": cq.handle, "cqe": most})
    frame.header.op, frame.header.size = lib.SLUICE_OP_RESIZE_CQ, ffi.sizeof(frame[0])
    intruder.control.send(bytes(ffi.buffer(frame)))

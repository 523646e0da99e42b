# SPDX-License-Identifier: Apache-2.0
"""The directory, the cluster file, keys, messages, and links between routers of one process."""

import asyncio
import errno
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import zmq
from sluice.cli import doctor
from sluice.cluster import data_port, keys
from sluice.cluster.data_port import DataPort
from sluice.cluster.directory import AddressError, Directory, Place, gid_of_address
from sluice.cluster.file import ClusterFileError, Node, WatchedFile, load_cluster
from sluice.cluster.join import Membership
from sluice.cluster.links import Links, PeerRefused, PeerUnreachable
from sluice.cluster.messages import (
    Dial,
    DialTrunk,
    Done,
    MessageError,
    Nics,
    Ping,
    Refused,
    Tenants,
    Ticket,
    decode,
    encode,
    message,
)
from sluice.cluster.nics import PeerNics
from sluice.cluster.trunks import Trunks
from sluice.metrics import collector

PATIENCE = 30.0
KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


@message
class Question:
    """Of these tests."""

    number: int
    text: str


_given: set[int] = set()


def free_port() -> int:
    """One that is free, and whose successor is: of those that the kernel gives to no connection (from 32768)."""
    while True:
        port = random.randrange(20000, 30000, 2)
        if port in _given:
            continue
        both = (socket.create_server(("127.0.0.1", number)) for number in (port, port + 1))
        with suppress(OSError), ExitStack() as open_now:
            for each in both:
                open_now.enter_context(each)
            _given.add(port)
            return port


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(100 * int(PATIENCE)):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(what)


# ---- directory ----------------------------------------------------------------


class Elsewhere:
    def find(self, address: IPv4Address) -> Place | None:
        return Place("beta", "far") if str(address) == "10.1.0.9" else None

    def address_of(self, node: str, tenant: str) -> IPv4Address | None:
        return IPv4Address("10.1.0.7") if (node, tenant) == ("alpha", "fixed") else None


def test_two_tenants_with_one_address_are_refused() -> None:
    directory = Directory("alpha")
    directory.add_source(Elsewhere())
    assert directory.assign(0, "a", IPv4Address("10.1.0.5")) == IPv4Address("10.1.0.5")
    with pytest.raises(AddressError, match="tenant 'a' has the address"):
        directory.assign(1, "b", IPv4Address("10.1.0.5"))
    with pytest.raises(AddressError, match="tenant 'far' of node 'beta'"):
        directory.assign(1, "b", IPv4Address("10.1.0.9"))
    for wrong in ("224.0.0.1", "0.0.0.0", "127.0.0.1", "255.255.255.255"):
        with pytest.raises(AddressError):
            directory.assign(1, "b", IPv4Address(wrong))
    directory.release(IPv4Address("10.1.0.5"))
    directory.assign(1, "b", IPv4Address("10.1.0.5"))


def test_sources_prescribe_and_find() -> None:
    directory = Directory("alpha")
    directory.add_source(Elsewhere())
    assert directory.assign(3, "fixed") == IPv4Address("10.1.0.7")
    assert directory.find(IPv4Address("10.1.0.7")) == Place("alpha", "fixed")
    assert directory.find(IPv4Address("10.1.0.9")) == Place("beta", "far")
    assert directory.tenant_of(gid_of_address(IPv4Address("10.1.0.7"))) == 3
    assert directory.tenant_of(gid_of_address(IPv4Address("10.1.0.9"))) is None
    assert directory.find(IPv4Address("10.1.0.1")) is None


def test_nodes_that_share_a_pool_start_at_different_places() -> None:
    assert Directory("alpha").assign(0, "x") != Directory("beta").assign(0, "x")


# ---- cluster file ---------------------------------------------------------------

GOOD = f"""\
nodes:
  alpha:
    address: 192.0.2.1
    public-key: "{KEY}"
    tenant-addresses: 10.1.0.0/24
  beta: {{address: 192.0.2.2, public-key: "{KEY[:-1]}x", port: 9000}}
tenants:
  training-0: {{node: alpha, address: 10.1.0.5}}
"""


def test_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(GOOD)
    cluster = load_cluster(path)
    assert cluster.nodes["alpha"].port == 7471 and cluster.nodes["beta"].data_port == 9001
    assert cluster.find(IPv4Address("10.1.0.5")) == Place("alpha", "training-0")
    assert cluster.address_of("alpha", "training-0") == IPv4Address("10.1.0.5")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("192.0.2.1", "192.0.2.300", r"cluster.yaml:3: nodes.alpha.address: '192.0.2.300' is not an IPv4 address"),
        (KEY + '"\n', 'short"\n', r"cluster.yaml:4: nodes.alpha.public-key: 'short' is not a public key"),
        ("10.1.0.0/24", "10.1.0.1/24", r"cluster.yaml:5: nodes.alpha.tenant-addresses: .* not an IPv4 network"),
        ("port: 9000", "port: 65535", r"cluster.yaml:6: nodes.beta.port: '65535' is not a port"),
        ("port: 9000", "prot: 9000", r"cluster.yaml:6: nodes.beta.prot: no such field; there are address"),
        ("address: 192.0.2.2, ", "", r"cluster.yaml:6: nodes.beta: address is missing"),
        (KEY[:-1] + "x", KEY, r"cluster.yaml:6: nodes.beta.public-key: is that of 'alpha'"),
        ("192.0.2.1\n", "192.0.2.2\n    port: 9001\n", r"cluster.yaml:7: nodes.beta.port: .* 9001 meet .*'alpha'"),
        ("node: alpha", "node: gamma", r"cluster.yaml:8: tenants.training-0.node: there is no node 'gamma'"),
        ("training-0", "Training", r"cluster.yaml:8: tenants.Training: 'Training' is not a name"),
        ("tenants:", "tenant:", r"cluster.yaml:7: tenant: no such field"),
        ("  beta", "  alpha", r"cluster.yaml:6: nodes.alpha: stands here twice"),
        ("nodes:\n", "nodes: [\n", r"cluster.yaml:\d+: not YAML"),
    ],
)
def test_mistakes_have_file_line_and_field(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = tmp_path / "cluster.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ClusterFileError, match=complaint):
        load_cluster(path)


def test_a_watched_file_keeps_what_was_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(GOOD)
    file = WatchedFile(path)
    assert not file.changed()
    path.write_text(GOOD.replace("10.1.0.5", "10.1.0.66"))
    assert file.changed() and file.find(IPv4Address("10.1.0.66")) is not None
    path.write_text("nodes: 3\n")
    assert not file.changed() and file.find(IPv4Address("10.1.0.66")) is not None
    assert "cluster.yaml:1: nodes: a mapping belongs here" in caplog.text
    path.unlink()
    assert not file.changed() and file.find(IPv4Address("10.1.0.66")) is not None


# ---- keys -----------------------------------------------------------------------


def test_a_key_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a disk is full, the next who tries finds no half of a key."""

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(keys.KeyFileError, match=f"{tmp_path}/key: No space left on device"):
            keys.generate(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    assert keys.generate(tmp_path / "key") == keys.load(tmp_path / "key")
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    made = keys.generate(path)
    assert keys.load(path) == made and path.stat().st_mode & 0o777 == 0o600
    assert made.secret.decode() not in repr(made)
    with pytest.raises(keys.KeyFileError, match="exists already"):
        keys.generate(path)
    path.chmod(0o644)
    with pytest.raises(keys.KeyFileError, match="chmod 600"):
        keys.load(path)
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(keys.KeyFileError, match="is not a key file"):
        keys.load(path)
    with pytest.raises(keys.KeyFileError, match="sluice keys generate"):
        keys.load(tmp_path / "none")


# ---- messages -------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [Ping(1, 2), Done(), Refused(11, "näh"), Tenants(1, 2, {"10.0.0.1": "a"}), Ticket(bytes(range(32)))]
)
def test_messages_come_back(body: Any) -> None:
    assert decode(encode(body)) == body


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"is":"Nothing"}',
        b'{"is":["Ping"]}',
        b'{"is":"Ping","boot":1}',
        b'{"is":"Ping","boot":1,"revision":2,"more":3}',
        b'{"is":"Ping","boot":"1","revision":2}',
        b'{"is":"Ping","boot":true,"revision":2}',
        b'{"is":"Ping","boot":1e99,"revision":2}',
        b'{"is":"Ticket","ticket":"xy"}',
        b'{"is":"Tenants","boot":1,"revision":2,"tenants":{"a":1}}',
        b"[" * 100000,
    ],
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(MessageError):
        decode(frame)


# ---- links ----------------------------------------------------------------------


class Pair:
    """Two routers' links, alpha's and beta's, and what a third would need to join."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = ("alpha", "beta")
        self.keys = {name: keys.generate(path / f"{name}.key") for name in (*self.names, "gamma")}
        self.ports = {name: free_port() for name in self.keys}
        self.file = path / "cluster.yaml"
        self.write(*self.names)
        self.sides: dict[str, tuple[Directory, Links]] = {}

    def write(self, *names: str) -> None:
        text = "nodes:\n"
        for name in names:
            public = self.keys[name].public.decode()
            text += f'  {name}: {{address: 127.0.0.1, port: {self.ports[name]}, public-key: "{public}"}}\n'
        self.file.write_text(text)

    def start(self, name: str) -> tuple[Directory, Links]:
        self.sides[name] = Membership(self.file, name, self.path / f"{name}.key").join()
        return self.sides[name]

    def close(self) -> None:
        for _, links in self.sides.values():
            links.close()


def with_pair(path: Path, test: Callable[[Pair], Awaitable[None]]) -> None:
    async def run() -> None:
        with closing(Pair(path)) as pair:
            for name in pair.names:
                pair.start(name)
            await until(lambda: all(links.peers[_other(name)].alive for name, (_, links) in pair.sides.items()), "up")
            await test(pair)

    asyncio.run(run())


def _other(name: str) -> str:
    return "beta" if name == "alpha" else "alpha"


def test_requests_and_refusals(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        alpha, beta = pair.sides["alpha"][1], pair.sides["beta"][1]
        told: list[Any] = []

        def refuse(node: str, body: Question) -> Done:
            raise OSError(errno.EAGAIN, f"{node} asks {body.number}")

        async def think(_node: str, body: Question) -> Question:
            await asyncio.sleep(0)
            return Question(body.number + 1, body.text)

        beta.handle(Question, think)
        assert await alpha.request("beta", Question(1, "x")) == Question(2, "x")
        answers = await asyncio.gather(*(alpha.request("beta", Question(i, "x")) for i in range(500)))
        assert [answer.number for answer in answers] == list(range(1, 501))
        beta.handle(Question, refuse)
        with pytest.raises(PeerRefused, match="alpha asks 7") as refused:
            await alpha.request("beta", Question(7, "x"))
        assert refused.value.errno == errno.EAGAIN
        with pytest.raises(PeerRefused, match="Ticket is not a request"):
            await alpha.request("beta", Ticket(b""))
        beta.handle(Question, lambda node, body: told.append((node, body)))
        alpha.tell("beta", Question(3, "told"))
        await until(lambda: told == [("alpha", Question(3, "told"))], "the message")
        with pytest.raises(PeerUnreachable, match="no node 'gamma'"):
            await alpha.request("gamma", Question(1, "x"))

    with_pair(tmp_path, test)


def test_a_handler_that_fails_refuses_one_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(pair: Pair) -> None:
        alpha, beta = pair.sides["alpha"][1], pair.sides["beta"][1]

        def fail(_node: str, body: Question) -> Question:
            if body.number % 2:
                raise ValueError(f"number {body.number}")
            return body

        async def fail_later(node: str, body: Question) -> Question:
            await asyncio.sleep(0)
            return fail(node, body)

        for handler in (fail, fail_later):
            beta.handle(Question, handler)
            questions = (alpha.request("beta", Question(i, "x")) for i in range(10))
            answers = await asyncio.gather(*questions, return_exceptions=True)
            for i, answer in enumerate(answers):
                if i % 2:
                    assert isinstance(answer, PeerRefused) and answer.errno == errno.EIO
                else:
                    assert answer == Question(i, "x")
            assert "node alpha: its Question has failed" in caplog.text and "ValueError: number 9" in caplog.text
            caplog.clear()

    with_pair(tmp_path, test)


def test_tenants_are_told_and_forgotten(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        (here, _), (there, _) = pair.sides["alpha"], pair.sides["beta"]
        address = IPv4Address("10.1.0.5")
        here.assign(0, "a", address)
        await until(lambda: there.find(address) == Place("alpha", "a"), "the news")
        with pytest.raises(AddressError, match="tenant 'a' of node 'alpha'"):
            there.assign(0, "b", address)
        here.release(address)
        await until(lambda: there.find(address) is None, "the news")

    with_pair(tmp_path, test)


def test_nics_of_other_nodes_are_known_where_they_are_told(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        alpha, beta = pair.sides["alpha"][1], pair.sides["beta"][1]
        there = {IPv4Address("192.0.2.2"): "mlx5_0"}
        here = PeerNics(alpha, dict)
        of_beta = PeerNics(beta, lambda: there)
        with closing(here), closing(of_beta):
            assert not here.has(IPv4Address("192.0.2.2"))
            of_beta.changed()
            await until(lambda: here.has(IPv4Address("192.0.2.2")), "the news")
            there.clear()
            of_beta.changed()
            await until(lambda: not here.has(IPv4Address("192.0.2.2")), "the news")
            beta.close()
            await until(lambda: not alpha.peers["beta"].alive, "beta to be missed")
            _, beta = pair.start("beta")
            there[IPv4Address("192.0.2.3")] = "mlx5_1"
            with closing(PeerNics(beta, lambda: there)):
                await until(lambda: here.has(IPv4Address("192.0.2.3")), "an answer")
            with pytest.raises(PeerRefused, match="Question is not a request"):
                await beta.request("alpha", Question(1, "x"))

    with_pair(tmp_path, test)


def test_what_is_no_nics_address_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(pair: Pair) -> None:
        alpha, beta = pair.sides["alpha"][1], pair.sides["beta"][1]
        with closing(PeerNics(alpha, dict)) as here:
            beta.tell("alpha", Nics({"nowhere": "mlx5_1", "192.0.2.2": "mlx5_0"}))
            await until(lambda: here.has(IPv4Address("192.0.2.2")), "the news")
            assert "node beta: 'nowhere' is not a NIC's address" in caplog.text

    with_pair(tmp_path, test)


def test_a_router_that_returns_is_found_again(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        alpha = pair.sides["alpha"][1]
        returned: list[str] = []
        alpha.on_alive(returned.append)
        pair.sides["beta"][1].close()
        await until(lambda: not alpha.peers["beta"].alive, "beta to be missed")
        with pytest.raises(PeerUnreachable):
            await alpha.request("beta", Ping(1, 1), timeout=0.1)
        pair.start("beta")
        await until(lambda: "beta" in returned, "beta again")

    with_pair(tmp_path, test)


def test_unknown_keys_are_refused_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(pair: Pair) -> None:
        alpha = pair.sides["alpha"][1]
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.curve_serverkey = pair.keys["alpha"].public
        stranger.curve_publickey = pair.keys["gamma"].public
        stranger.curve_secretkey = pair.keys["gamma"].secret
        stranger.connect(f"tcp://127.0.0.1:{pair.ports['alpha']}")
        stranger.send_multipart([(1).to_bytes(8, "big"), encode(Ping(1, 1))])
        plain = context.socket(zmq.DEALER)
        plain.connect(f"tcp://127.0.0.1:{pair.ports['alpha']}")
        plain.send_multipart([(1).to_bytes(8, "big"), encode(Ping(1, 1))])
        await until(lambda: alpha.status()["strangers"], "a refusal")
        assert pair.keys["gamma"].public.decode() in caplog.text
        assert "other nodes' keys" in [each.check for each in doctor._cluster({"cluster": alpha.status()})]
        with suppress(zmq.Again):
            stranger.recv(zmq.NOBLOCK)
            pytest.fail("a stranger was answered")
        # The file is watched: once its key is there, it is known.
        pair.write("alpha", "beta", "gamma")
        pair.start("gamma")
        await until(lambda: "gamma" in alpha.peers and alpha.peers["gamma"].alive, "gamma")
        context.destroy(linger=0)

    with_pair(tmp_path, test)


def test_what_an_operator_sees_of_the_other_nodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice.cluster.links.GONE", 0.1)

    async def test(pair: Pair) -> None:
        alpha = pair.sides["alpha"][1]

        def found() -> dict[str, str]:
            return {each.check: each.verdict for each in doctor._cluster({"cluster": alpha.status()})}

        def up() -> dict[str, float]:
            samples = next(iter(collector._cluster(alpha.status()))).samples
            return {each.labels["node"]: each.value for each in samples}

        assert (found(), up()) == ({"other nodes": "ok"}, {"beta": 1})
        pair.write("alpha", "beta", "gamma")
        said = f"node gamma has not answered yet at 127.0.0.1:{pair.ports['gamma']}: there is no link to node 'gamma'"
        await until(lambda: said in caplog.text, "the log's word")
        assert (found(), up()) == ({"node gamma": "note"}, {"beta": 1, "gamma": 0})
        pair.sides.pop("beta")[1].close()
        await until(lambda: not alpha.peers["beta"].alive, "beta to be missed")
        assert found() == {"node beta": "wrong", "node gamma": "wrong"}

    with_pair(tmp_path, test)


def test_a_router_of_another_version_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(pair: Pair) -> None:
        (_, alpha), (_, beta) = pair.sides["alpha"], pair.sides["beta"]

        def found(links: Links) -> dict[str, str]:
            return {each.check: each.verdict for each in doctor._cluster({"cluster": links.status()})}

        nothing: Any = None
        Trunks(beta, nothing, nothing)
        with pytest.raises(PeerRefused, match="version 1; this router speaks 2") as refused:
            await alpha.request("beta", DialTrunk(1))
        assert refused.value.errno == errno.EPROTO
        assert (found(alpha), found(beta)) == ({"node beta": "wrong"}, {"node alpha": "wrong"})
        assert caplog.text.count("router of another version") == 2
        # What it said is known until it has another router.
        pair.sides.pop("beta")[1].close()
        _, beta = pair.start("beta")
        await until(lambda: found(alpha) == {"other nodes": "ok"}, "the new router")
        # One whose pings mean something else is not there at all.
        await until(lambda: beta.peers["alpha"].alive, "alpha")
        alpha.handle(Ping, lambda _node, _body: Refused(errno.EPROTO, "pings of version 9"))
        await until(lambda: not beta.peers["alpha"].alive, "alpha to be missed")
        assert (found(alpha), found(beta)) == ({"node beta": "wrong"}, {"node alpha": "wrong"})
        assert "pings of version 9" in caplog.text

    with_pair(tmp_path, test)


def test_fields_that_are_new_are_left_out_where_nobody_needs_them() -> None:
    dial = Dial("10.0.0.1", 1, "10.0.0.2", 2)
    assert b"version" not in encode(dial) and decode(encode(dial)) == dial
    newer = replace(dial, version=7)
    assert decode(encode(newer)) == newer


def test_a_node_must_be_in_the_file_with_its_key(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with pytest.raises(ClusterFileError, match="there is no node 'gamma'; there are: alpha, beta"):
        pair.start("gamma")
    with pytest.raises(ClusterFileError, match=r"nodes\.alpha\.public-key: is not the key of this node"):
        Membership(pair.file, "alpha", tmp_path / "beta.key").join()


def test_who_is_another_node_in_the_file_than_at_its_start_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(pair: Pair) -> None:
        alpha = pair.sides["alpha"][1]
        port, key = pair.ports["alpha"], pair.keys["alpha"]

        def found() -> list[str]:
            status = {"cluster": alpha.status()}
            return [each.text for each in doctor._cluster(status) if each.check == "this node's entry"]

        assert found() == []
        pair.ports["alpha"] = free_port()
        pair.write(*pair.names)
        await until(found, "another port")
        assert f"port {pair.ports['alpha']} (was {port})" in found()[0]
        pair.keys["alpha"] = pair.keys["gamma"]
        pair.write(*pair.names)
        await until(lambda: "is not the key of this node" in found()[0], "another key")
        pair.write("beta")
        await until(lambda: "there is no node 'alpha'" in found()[0], "no entry")
        assert caplog.text.count("restart this router") == 3
        pair.ports["alpha"], pair.keys["alpha"] = port, key
        pair.write(*pair.names)
        await until(lambda: not found(), "as it was")
        await until(lambda: alpha.peers["beta"].alive, "beta")

    with_pair(tmp_path, test)


# ---- the data port -----------------------------------------------------------------


class Knocking:
    """A data port, those who come to it, and what it takes over."""

    def __init__(self) -> None:
        self.node = Node("alpha", IPv4Address("127.0.0.1"), KEY.encode(), free_port())
        self.port = DataPort(self.node)
        self.taken: list[socket.socket] = []
        self.strangers: list[socket.socket] = []

    async def stranger(self, says: bytes = b"", source: str = "127.0.0.2") -> socket.socket:
        """Who comes from another address than routers do."""
        stranger = socket.socket()
        self.strangers.append(stranger)
        stranger.setblocking(False)
        stranger.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(stranger, (str(self.node.address), self.node.data_port))
        await asyncio.get_running_loop().sock_sendall(stranger, says)
        return stranger

    def attach(self, connection: socket.socket) -> None:
        self.taken.append(socket.socket(fileno=connection.detach()))

    def close(self) -> None:
        self.port.close()
        for connection in [*self.taken, *self.strangers]:
            connection.close()


def with_port(test: Callable[[Knocking], Awaitable[None]]) -> None:
    async def run() -> None:
        with closing(Knocking()) as knocking:
            await test(knocking)

    asyncio.run(run())


async def is_closed(connection: socket.socket) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(connection, 1) == b""
    except ConnectionResetError:
        return True  # what it said was unread


def test_many_strangers_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They say nothing, and are more than there may be: the oldest go, and who has a ticket is let in."""
    monkeypatch.setattr(data_port, "SAY_SECONDS", 3600.0)

    async def test(knocking: Knocking) -> None:
        port, most = knocking.port, data_port.MAX_STRANGERS
        other = await knocking.stranger(source="127.0.0.3")
        many = [await knocking.stranger() for _ in range(2 * most)]
        await until(lambda: port.refused == most + 1, "refusals")
        assert port.strangers() == most
        for stranger in many[: most + 1]:
            assert await is_closed(stranger)
        with await data_port.connect(knocking.node, port.expect("it", knocking.attach)):
            await until(lambda: knocking.taken, "the connection with a ticket")
        # Of those from one address: who came alone is there as ever.
        await until(lambda: port.strangers() == most - 1, "one less")
        with pytest.raises(BlockingIOError):
            other.recv(1)

    with_port(test)


def test_a_data_port_that_is_closed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once, and when it is open again; what is wanted there fails each time."""

    async def test(knocking: Knocking) -> None:
        port = knocking.port
        closed = Node("beta", IPv4Address("127.0.0.1"), KEY.encode(), free_port())
        for _ in range(2):
            with pytest.raises(OSError, match=str(closed.data_port)):
                await port.connect(closed, b"")
        assert list(port.unreachable) == ["beta"]
        assert caplog.text.count("node beta: its data port can't be reached") == 1
        with socket.create_server((str(closed.address), closed.data_port)):
            (await port.connect(closed, b"")).close()
        assert not port.unreachable and "node beta: its data port can be reached now" in caplog.text

    with_port(test)


def test_a_ticket_is_good_once_and_the_latest_alone() -> None:
    async def test(knocking: Knocking) -> None:
        port = knocking.port
        first = port.expect("it", knocking.attach)
        second = port.expect("it", knocking.attach)
        assert await is_closed(await knocking.stranger(first)) and not knocking.taken
        await knocking.stranger(second)
        await until(lambda: knocking.taken, "the connection")
        assert await is_closed(await knocking.stranger(second)) and len(knocking.taken) == 1
        assert await is_closed(await knocking.stranger(bytes(data_port.TICKET)))
        assert port.refused == 3 and port.strangers() == 0

    with_port(test)


def test_tickets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the same is asked for, it takes one."""
    monkeypatch.setattr(data_port, "MAX_TICKETS", 2)

    async def test(knocking: Knocking) -> None:
        for _ in range(5):
            knocking.port.expect("it", knocking.attach)
        knocking.port.expect("another", knocking.attach)
        with pytest.raises(OSError, match="too many connections are being made") as refused:
            knocking.port.expect("a third", knocking.attach)
        assert refused.value.errno == errno.EAGAIN
        knocking.port.expect("it", knocking.attach)

    with_port(test)

# SPDX-License-Identifier: Apache-2.0
"""Unmodified applications that connect by rdma_cm: tenant b serves, tenant a connects."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE, RunningRouter, next_port, output_of, perftest, serving, wait_until


def address_of(router: RunningRouter, tenant: str) -> str:
    router.ask("tenant-add", name=tenant, policy={})
    return str(router.status(tenant)["address"])


@pytest.mark.parametrize("size", [23, 64, 65535])
@pytest.mark.parametrize("own_qp", [[], ["-q"]], ids=["qp of the id", "own qp"])
def test_rping(router: RunningRouter, size: int, own_qp: list[str]) -> None:
    port = next_port()
    server = serving(router, "b", "rping", "-s", *own_qp, "-p", str(port), "-C", "10", "-V", "-S", str(size), port=port)
    client = router.run(
        "a", "rping", "-c", *own_qp, "-a", "127.0.0.1", "-p", str(port), "-C", "10", "-v", "-V", "-S", str(size)
    )
    assert output_of(client).count("ping data: ") == 10
    output_of(server)


def test_rping_of_several_clients(router: RunningRouter) -> None:
    port = next_port()
    server = serving(router, "b", "rping", "-s", "-P", "-p", str(port), port=port)

    def start(tenant: str) -> "subprocess.Popen[str]":
        """Once it is connected: rping loses a request that comes before it has looked at the last (rdma-core #1568)."""
        router.ask("tenant-add", name=tenant, policy={})
        sent = router.status(tenant)["counters"]["tx_messages"]
        client = router.run(tenant, "rping", "-c", "-a", "127.0.0.1", "-p", str(port), "-C", "500", "-v")
        wait_until(
            lambda: client.poll() is not None or router.status(tenant)["counters"]["tx_messages"] > sent,
            "the connection",
        )
        return client

    clients = [start("a"), start("c")]
    clients.append(router.run("b", "rping", "-c", "-a", "127.0.0.1", "-p", str(port), "-C", "500", "-v"))
    for client in clients:
        assert output_of(client).count("ping data: ") == 500
    server.terminate()
    output_of(server, expected=143)


def test_by_the_tenants_own_address(router: RunningRouter) -> None:
    port = next_port()
    server = serving(router, "b", "rping", "-s", "-p", str(port), "-C", "2", port=port)
    client = router.run("a", "rping", "-c", "-a", address_of(router, "b"), "-p", str(port), "-C", "2", "-v")
    assert output_of(client).count("ping data: ") == 2
    output_of(server)


def test_by_ipv6_loopback(router: RunningRouter) -> None:
    port = next_port()
    server = serving(router, "b", "rping", "-s", "-a", "::1", "-p", str(port), "-C", "2", port=port)
    client = router.run("a", "rping", "-c", "-a", "::1", "-p", str(port), "-C", "2", "-v")
    assert output_of(client).count("ping data: ") == 2
    output_of(server)


def test_nobody_listens(router: RunningRouter) -> None:
    client = router.run("a", "rping", "-c", "-a", "127.0.0.1", "-p", str(next_port()), "-C", "1")
    text, _ = client.communicate(timeout=PATIENCE)
    assert client.returncode != 0
    assert "RDMA_CM_EVENT_REJECTED, error 8" in text


@pytest.mark.parametrize("options", [[], ["-c", "20", "-C", "3"], ["-S", "65000"], ["-t", "32"], ["-m"]])
def test_ucmatose(router: RunningRouter, options: list[str]) -> None:
    port = next_port()
    server = serving(router, "b", "ucmatose", "-p", str(port), *options, port=port)
    client = router.run("a", "ucmatose", "-p", str(port), *options, "-s", "127.0.0.1")
    assert "return status 0" in output_of(client)
    assert "return status 0" in output_of(server)


@pytest.mark.parametrize("options", [[], ["-c", "10", "-C", "3"], ["-S", "4000"]])
def test_udaddy(router: RunningRouter, options: list[str]) -> None:
    server = serving(router, "b", "udaddy", *options, port=7174)
    client = router.run("a", "udaddy", *options, "-s", "127.0.0.1")
    assert "return status 0" in output_of(client)
    assert "return status 0" in output_of(server)


def test_mckey(router: RunningRouter) -> None:
    group = ["-b", "127.0.0.1", "-m", "239.1.2.3"]
    router.ask("tenant-add", name="e", policy={})
    receiver = router.run("e", "mckey", *group)

    def heard() -> bool:
        """Its QP is attached when it has seen its event; what is sent before is lost, as multicast is."""
        assert "return status 0" in output_of(router.run("a", "mckey", *group, "-s"))
        return receiver.poll() is not None

    wait_until(lambda: receiver.poll() is not None or router.status("e")["rdma_cm"]["memberships"] == 1, "it joins")
    wait_until(heard, "the receiver to hear the sender")
    assert "return status 0" in output_of(receiver)


def test_perftest_of_datagrams(router: RunningRouter) -> None:
    text = perftest(router, ["ib_send_lat", "-R", "-c", "UD", "-n", "50"], by_rdma_cm=True)
    assert re.search(r"^ *\d+ +50 ", text, re.MULTILINE), text


def test_endpoints(router: RunningRouter) -> None:
    port = next_port()
    server = serving(router, "b", "rdma_server", "-p", str(port), port=port)
    client = router.run("a", "rdma_client", "-s", "127.0.0.1", "-p", str(port))
    assert "rdma_client: end 0" in output_of(client)
    assert "rdma_server: end 0" in output_of(server)


def test_cmtime(router: RunningRouter) -> None:
    port = next_port()
    server = serving(router, "d", "cmtime", "-p", str(port), port=port)
    client = router.run("a", "cmtime", "-s", "127.0.0.1", "-p", str(port), "-c", "50")
    assert re.search(r"disconnect +: +[0-9.]+", output_of(client))
    server.terminate()
    output_of(server, expected=143)
    wait_until(lambda: router.status("d")["rdma_cm"]["ids"] == 0, "the ids' end")


def test_rsockets_are_absent(router: RunningRouter) -> None:
    for options in ([], ["-s", "127.0.0.1"]):
        child = router.run("a", "rstream", *options)
        text, _ = child.communicate(timeout=PATIENCE)
        assert 0 < child.returncode < 128 or child.returncode == 255
        assert "Function not implemented" in text


PERFTEST = [
    *(["ib_" + test] for test in ("write_bw", "read_bw", "send_bw", "write_lat", "read_lat", "send_lat", "atomic_bw")),
    ["ib_atomic_lat"],
    ["ib_send_bw", "--use-srq"],
    ["ib_send_bw", "-e"],
    ["ib_send_bw", "-b"],
    ["ib_write_bw", "-q", "4"],
]


@pytest.mark.parametrize("argv", PERFTEST, ids=" ".join)
def test_perftest(router: RunningRouter, argv: list[str]) -> None:
    text = perftest(router, [*argv, "-R", "-n", "50" if argv[0].endswith("_lat") else "200"], by_rdma_cm=True)
    assert re.search(r"^ *\d+ +\d*[05]0 ", text, re.MULTILINE), text


@pytest.mark.parametrize("kind", ["XRC", "UC"])
def test_perftest_refuses_by_itself(router: RunningRouter, kind: str) -> None:
    """What it connects by rdma_cm on no device."""
    text, _ = router.run("a", "ib_send_bw", "-R", "-c", kind, "-p", str(next_port())).communicate(timeout=PATIENCE)
    assert "not support" in text, text


LIBFABRIC = {
    "msg": ["-p", "verbs", "-e", "msg"],
    "dgram": ["-p", "verbs", "-e", "dgram"],
    "rdm over msg": ["-p", "verbs;ofi_rxm", "-e", "rdm"],
    "rdm over dgram": ["-p", "verbs;ofi_rxd", "-e", "rdm"],
}
# ofi_rxm takes XRC QPs, which rdma_cm connects, where it shares receives as well.
XRC_SETTINGS = ("FI_VERBS_PREFER_XRC=1", "FI_OFI_RXM_USE_SRX=1", "FI_LOG_LEVEL=info")


def fi_pingpong(router: RunningRouter, result: str, *options: str, settings: tuple[str, ...] = ()) -> str:
    """Both ends, to their end; returns what the client said, this result among it."""
    if not shutil.which("fi_pingpong"):
        pytest.skip("fi_pingpong (libfabric-bin) is not installed")
    port = next_port()
    argv = ["timeout", "100", "env", *settings, "stdbuf", "-oL", "fi_pingpong", *options]
    server = router.run("b", *argv, "-B", str(port))
    # Its own handshake is over TCP.
    wait_until(lambda: server.poll() is not None or f":{port:04X} " in tcp_table(), "fi_pingpong listens")
    client = router.run("a", *argv, "-P", str(port), "127.0.0.1")
    text, _ = client.communicate(timeout=PATIENCE)
    assert result in text and client.returncode == 0, text
    output_of(server)
    return text


@pytest.mark.parametrize("kind", LIBFABRIC)
def test_libfabric(router: RunningRouter, kind: str) -> None:
    fi_pingpong(router, "=20", *LIBFABRIC[kind], "-S", "1024", "-I", "20")


@pytest.mark.parametrize("kind", ["msg", "rdm over msg"])
def test_libfabric_of_all_sizes(router: RunningRouter, kind: str) -> None:
    """Up to 6 MiB: ofi_rxm sends the long ones by READ."""
    fi_pingpong(router, "6m      5       =5", *LIBFABRIC[kind], "-S", "all", "-I", "5")


def test_libfabric_over_xrc(router: RunningRouter) -> None:
    text = fi_pingpong(router, "=20", *LIBFABRIC["rdm over msg"], "-S", "1024", "-I", "20", settings=XRC_SETTINGS)
    assert "FI_PROTO_RDMA_CM_IB_XRC" in text, text


def tcp_table() -> str:
    return "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))


def test_status_shows_listeners(router: RunningRouter) -> None:
    port = next_port()
    server = serving(router, "d", "ucmatose", "-b", "127.0.0.1", "-p", str(port), port=port)
    assert router.status("d")["rdma_cm"] == {
        "ids": 1,
        "listening": [f"127.0.0.1:{port}"],
        "memberships": 0,
    }
    assert json.dumps(router.ask("status"))
    server.terminate()
    output_of(server, expected=143)


def built(name: str) -> Path:
    path = Path(os.environ.get("SLUICE_BUILD", "build")) / "tests/integration/rdmacm" / name
    assert path.exists(), f"{path} is not built: run `make test`, or set SLUICE_BUILD"
    return path.absolute()


@pytest.fixture(scope="module")
def events() -> Path:
    return built("rdmacm-events")


def test_bad_arguments(router: RunningRouter) -> None:
    """Each function with each argument out of range, and in each wrong state: as librdmacm on a kernel's device."""
    assert output_of(router.run("a", built("rdmacm-arguments"))).startswith("0 of ")


def test_every_event(router: RunningRouter, events: Path) -> None:
    assert "every event as it should be" in output_of(router.run("a", events))


def test_a_peer_that_is_killed(router: RunningRouter, events: Path) -> None:
    waiting = router.run("b", events, "wait")
    assert waiting.stdout is not None
    port = waiting.stdout.readline().strip()
    client = router.run("a", events, "peer", port)
    assert waiting.stdout.readline() == "connected\n"
    os.kill(descendants(waiting.pid)[-1], signal.SIGKILL)
    assert "the peer is gone" in output_of(client)
    output_of(waiting, expected=137)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]

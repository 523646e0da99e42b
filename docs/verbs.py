# SPDX-License-Identifier: Apache-2.0
"""Prints docs/verbs.md, made from the shim's sources: `make docs` writes it, a test fails when it is stale."""

import re
from ipaddress import IPv4Address
from pathlib import Path

from sluice.device.sysfs import files
from sluice.device.virtual import VirtualDevice

SHIM = Path(__file__).parent.parent / "shim"
OPERATIONS = {
    "alloc_mw": "ibv_alloc_mw",
    "dealloc_mw": "ibv_dealloc_mw",
    "bind_mw": "ibv_bind_mw",
    "poll_cq": "ibv_poll_cq",
    "req_notify_cq": "ibv_req_notify_cq",
    "post_send": "ibv_post_send",
    "post_recv": "ibv_post_recv",
    "post_srq_recv": "ibv_post_srq_recv",
    "query_port": "ibv_query_port (the caller's structure size)",
    "query_device_ex": "ibv_query_device_ex",
    "query_rt_values": "ibv_query_rt_values_ex",
    "create_cq_ex": "ibv_create_cq_ex",
    "modify_cq": "ibv_modify_cq",
    "create_qp_ex": "ibv_create_qp_ex",
    "open_qp": "ibv_open_qp",
    "modify_qp_rate_limit": "ibv_modify_qp_rate_limit",
    "create_srq_ex": "ibv_create_srq_ex",
    "get_srq_num": "ibv_get_srq_num",
    "post_srq_ops": "ibv_post_srq_ops (tag matching)",
    "open_xrcd": "ibv_open_xrcd",
    "close_xrcd": "ibv_close_xrcd",
    "alloc_td": "ibv_alloc_td",
    "dealloc_td": "ibv_dealloc_td",
    "alloc_parent_domain": "ibv_alloc_parent_domain",
    "advise_mr": "ibv_advise_mr",
    "alloc_null_mr": "ibv_alloc_null_mr",
    "alloc_dm": "ibv_alloc_dm, ibv_free_dm, ibv_memcpy_to_dm, ibv_memcpy_from_dm",
    "reg_dm_mr": "ibv_reg_dm_mr",
    "create_counters": "ibv_create_counters, ibv_destroy_counters, ibv_read_counters, ibv_attach_counters_point_flow",
    "ibv_create_flow": "ibv_create_flow, ibv_destroy_flow",
    "create_flow_action_esp": "ibv_create_flow_action_esp, ibv_modify_flow_action_esp, ibv_destroy_flow_action",
    "create_wq": "ibv_create_wq, ibv_modify_wq, ibv_destroy_wq, ibv_post_wq_recv",
    "create_rwq_ind_table": "ibv_create_rwq_ind_table, ibv_destroy_rwq_ind_table",
}
"""Verbs that are inline functions of verbs.h, by the operation of the context that they call."""
WORK_REQUESTS = (
    "send send_imm send_inv send_tso rdma_write rdma_write_imm rdma_read atomic_cmp_swp atomic_fetch_add atomic_write "
    "flush bind_mw local_inv set_sge set_sge_list set_inline_data set_inline_data_list set_ud_addr set_xrc_srqn"
).split()


ANSWERS = {
    "ibv_import_device": "EOPNOTSUPP; of a descriptor that is no RDMA device's ENODEV, of one that is no device's EINVAL",
    "ibv_reg_dmabuf_mr": "EOPNOTSUPP: the router is asked, and no transport of this release can",
}
"""Of functions whose sources don't tell it."""


def versions() -> dict[str, str]:
    """Each exported function and its symbol version."""
    found = {}
    text = (SHIM / "libsluice.map.in").read_text()
    for version, body in re.findall(r"^((?:IBVERBS|RDMACM)_[\d.]+) \{(.*?)^\}", text, re.M | re.S):
        found.update(dict.fromkeys(re.findall(r"^\t\t(\w+);", body, re.M), version))
    return found


def sources() -> str:
    texts = [path.read_text() for path in sorted(SHIM.glob("*.c"))]
    return re.sub(r"/\*.*?\*/", "", "\n".join(texts), flags=re.S)


def bodies(source: str) -> dict[str, str]:
    """What each exported function does, as one line of C."""
    found = {}
    for name, body in re.findall(r"^EXPORT [^;{]*?\b(\w+)\([^{;]*\)\s*\{(.*?)^\}", source, re.M | re.S):
        found[name] = " ".join(body.split())
    for name in re.findall(r"^(?:REFUSE|IGNORE)\w*\((\w+)\)", source, re.M):
        found[name] = ""
    return found


def answer(body: str | None) -> str:
    """What a function that does just this answers."""
    if body is None:
        return "not in this release"
    if body == "ABSENT;":
        return "ENOSYS"
    for pattern in (
        r"NO_OBJECT;",
        r"return (E[A-Z]+);",
        r"return refuse\((E[A-Z]+)\);",
        r"errno = (E[A-Z]+); return (?:-1|NULL|\(size_t\)-1);",
        r"return unsupported\(\);",
    ):
        found = re.fullmatch(pattern, body)
        if found:
            return found[1] if found.groups() else "EOPNOTSUPP"
    return "does nothing" if body in ("", "return 0;") else "works"


def main() -> None:
    source = sources()
    exported, known = bodies(source), versions()
    operations = set(re.findall(r"(?:verbs->|base->ops\.)(\w+) = \w+;", source))
    requests = set(re.findall(r"ex->wr_(\w+) = \w+;", source))
    print(HEAD)
    for title, prefix in (("libibverbs", "IBVERBS"), ("librdmacm", "RDMACM")):
        print(f"## {title}\n\n| function | symbol version | answer |\n| --- | --- | --- |")
        for name in sorted(name for name, version in known.items() if version.startswith(prefix)):
            print(f"| `{name}` | {known[name]} | {ANSWERS.get(name) or answer(exported.get(name))} |")
        print()
    print("## Inline functions of verbs.h\n\n| function | answer |\n| --- | --- |")
    for operation, verbs in sorted(OPERATIONS.items(), key=lambda item: item[1]):
        print(f"| {verbs} | {'works' if operation in operations else 'EOPNOTSUPP'} |")
    print(
        "\nOf the `ibv_wr_*` functions (a QP made with `ibv_create_qp_ex` and `send_ops_flags`) work: "
        + ", ".join(name for name in WORK_REQUESTS if name in requests)
        + ". Asking `ibv_create_qp_ex` for one of the others is refused with EOPNOTSUPP: "
        + ", ".join(name for name in WORK_REQUESTS if name not in requests)
        + ".\n"
    )
    transports()
    print(SYSFS)
    for name, text in files(VirtualDevice(IPv4Address("100.64.0.1"))).items():
        shown = {"local_cpus": "the machine's", "local_cpulist": "the machine's", "fw_ver": "the router's version"}
        print(f"| `/{name}` | {shown.get(name.rpartition('/')[2], text)} |")


def transports() -> None:
    """What depends on where the peer is, as far as the engine's sources tell."""
    room = SHIM.parent / "csrc" / "transport"
    whole = {name: "\n".join(path.read_text() for path in room.glob(f"{name}*.c")) for name in ("local", "tcp")}
    found = {name: text for name, text in whole.items() if f"transport_{name} = {{" in text}
    rows = {
        "RC, UC": {name: "works" for name in found},
        "XRC": {name: "works" if "XRC" in text or "xrc" in text else "EOPNOTSUPP" for name, text in found.items()},
        "UD": {name: "works" if ".send_datagram" in text else "messages are lost" for name, text in found.items()},
        "messages from and into memory that only its process reaches": {
            name: "works" if "relay_copy" in text or "reach_send" in text else "works for UD, else LOC_PROT_ERR"
            for name, text in found.items()
        },
    }
    print("## By transport\n\n| | " + " | ".join(f"`{name}`" for name in found) + " |")
    print("| --- " * (len(found) + 1) + "|")
    for what, answers in rows.items():
        print(f"| {what} | " + " | ".join(answers[name] for name in found) + " |")
    print("\nSuch memory is stacks and files on disk: all else is moved or passed to the router (ARCHITECTURE.md).\n")


HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by docs/verbs.py (make docs): change that, or the code that it reads. -->
# Verbs

What the shim answers, function by function, and how a process gets it. What works, works as its manual page says, by
whichever transport a QP's bytes travel; what differs between these is a table of its own. An
errno in the tables is the answer to any call; what works still refuses single options with the errno of the manual page.

## Ways in

| way | for | how |
| --- | --- | --- |
| preload | what is linked to libibverbs or librdmacm, and what opens `libibverbs.so.1` by dlopen | \
`LD_PRELOAD=…/libsluice.so`, or a line in `/etc/ld.so.preload` where the image sets LD_PRELOAD itself |
| search | what opens it by another name (`libibverbs.so`), or may not be preloaded into | \
`LD_LIBRARY_PATH=` the directory of `libsluice.so`, which has it under these names as well |
| link | programs that are built for Sluice | `cc … $(PKG_CONFIG_PATH=…/pkgconfig pkg-config --static --libs sluice)` |

All three need `SLUICE_TENANT_DIR`, the tenant's directory. `sluice run` sets it, LD_PRELOAD and LD_LIBRARY_PATH, each in front
of what is there. The directory of `libsluice.so` is `sluice/lib` in the Python package; `meson setup -Drouter=false`
builds it alone.

- `libsluice.so` has the SONAME `libibverbs.so.1`. The dynamic linker takes it for that library wherever it is asked for it: the
  real one isn't loaded, and dlopen with dlsym or dlvsym finds the shim as well.
- Symbols have rdma-core's versions, up to release 65. The ABI of 2006 (IBVERBS_1.0 of functions that changed since)
  is not there: what is built today imports IBVERBS_1.0 only of functions that never changed (tests/integration/symbols.tsv).
- Libraries for one vendor's devices (libmlx5, libmlx4, libefa, libmana) load beside it, in whichever release: the versions
  IBVERBS_PRIVATE_10 to 99 are defined, and the names that these libraries import are there. They look at the device, see that
  it isn't theirs, and answer EOPNOTSUPP (`mlx5dv_is_supported`: false).
- setuid programs, RTLD_DEEPBIND and programs without a dynamic linker escape preloading.
- Linked statically, any of the program's data may be registered, also what the library has for itself, and the program may fork.
- Linked statically, the program's own `open` stays its own: sysfs is then read with `ibv_read_sysfs_file` only.
- What makes system calls without libc doesn't find sysfs's files either: Go's package `os`, also in programs whose verbs come by cgo,
  which work. A mount over `/sys/class` would show them; but a pod's `/sys` is that of its own network namespace, which no mount from outside is.
- Memory that was once registered may be moved, grown and emptied (`mremap`, `realloc`, `madvise`) as any other, where the shim is asked first:
  preloaded, searched or linked as above. Opened by dlopen and nothing else, or by who makes these system calls without libc, what is moved stays
  whole, but `MADV_DONTNEED` keeps its contents, and what `mremap` grows may show bytes of registered memory beside it.
- Being asked costs `realloc` up to 4 ns more than libc's own 11 ns; of `madvise` and `mremap`, which are system calls of 300 to 1,000 ns, it can't be measured.
- A setuid program is told on stderr why it finds no device.
- rdma_cm takes IPv4 and IPv6 addresses, as on every RoCE device: those of InfiniBand's own kind (AF_IB) are answered with ENODEV.
- Completions that are in a CQ when their QP is destroyed can be polled, as on a kernel's own device; most NICs' drivers drop them. IBTA leaves it
  open, and libfabric's `ofi_rxm` destroys a QP before it has read its last messages. A QP that is reset takes its completions with it.
- `ibv_post_send` and `ibv_post_recv` of no WR at all (NULL) give 0, as NICs' drivers do, which look through the list; the kernel's soft RoCE says EINVAL.
- `ibv_attach_mcast` ignores the LID, which RoCE doesn't have: attachments that differ in nothing else are one.
- A GID index beyond the table is EINVAL; ENODATA, which large tables give for an entry that is empty, doesn't occur, since none is.
- `ibv_rc_pingpong -e -t` may end with "poll CQ failed": it takes an event for a completion, and the one that it polled just before was it.
  Any device with timestamps does that (soft RoCE has none, and refuses -t): what arrives between `ibv_req_notify_cq` and the poll is polled, and told of.
- In a UD completion, `sl` is 10 (bit 3: UDP, 2: IPv4), as hardware reports the header in front of the data; UCX needs it.
"""

SYSFS = """## sysfs

Paths that begin with `/sys/class/infiniband`, `/sys/class/misc/rdma_cm` or `/dev/infiniband` lead into the tenant's directory, by
whichever function of libc they are named, as an absolute path or from a directory (`chdir`, `openat`: hwloc starts at `/`); a
real device's files stay hidden. A counter is asked of the router when its file is opened.
`port_*_data` counts in units of four bytes; a message counts as one packet. Messages of InfiniBand's own connection manager
(`ports/1/cm_*`) are not counted: there are none, as the router arranges connections. The names below are for the address 100.64.0.1.

| file | text |
| --- | --- |"""

if __name__ == "__main__":
    main()

"""A VPN: TCP, UDP and pings through a tunnel between two hosts.

iperf3 ─ tun0 ─ ssh -w or gateway connect -w ═► veth ═► sshd or gateway serve ─ tun0 ─ iperf3

Both hosts are network namespaces. Addresses are typed, as for `ssh -w`, so that all cases differ in
nothing but the programs. A tunnel stays up for all rounds; idle, it costs nothing. The same
addresses without a tunnel, on the cable, are the limit.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import bare_tunnel, wireguard
from bench.figures import (
    AT_LEAST,
    AT_MOST,
    PEER,
    Bar,
    Column,
    Table,
    cpu_seconds_per_gb,
    percentile,
)
from bench.programs import (
    SAME_CIPHER,
    Case,
    Line,
    Spec,
    choose_congestion_control,
    cpu_seconds,
    fail,
    say,
    tree_of,
)
from bench.rounds import Command, Option, Part, Run
from netns.lab import Lab, why_no_lines, why_unusable
from netns.topologies import TWO_HOSTS
from tests.support.programs import (
    GATEWAY,
    READY_TIMEOUT_S,
    client_options,
    eventually,
    running,
    running_gateway_serve,
    running_sshd,
)

if TYPE_CHECKING:
    import argparse
    from contextlib import ExitStack

    from bench.programs import Bed
    from netns.lab import Host
    from tests.support.programs import Endpoint, Program

DEVICE = "tun7"
NEAR, FAR = "10.9.0.1", "10.9.0.2"
IPERF_PORT = "5201"
DIRECTIONS = {"put": "upload", "get": "download"}
ENDS = ("client", "server")
PING_GAP_S = 0.01
LINE_PING_GAP_S = 0.05
LINE_SETTLES_S = 3
SSH, STOCK, OURS = "ssh -w → sshd", "connect -w → sshd", "connect -w → serve"
BARE, WIREGUARD, PYTHON = "no tunnel", "wireguard-go", "Python without SSH"
SLOW = Line(round_trip_ms=40, rate_mbit=20, buffer_bytes=256 << 10, of_packets=True)
LOSSY = Line(round_trip_ms=40, rate_mbit=0, buffer_bytes=256 << 20, of_packets=True, loss=0.01)
UDP_SIZES = (1200, 64)
UDP_LOSS = 0.01
UDP_LEAST = 2_000  # packets a second to begin with


# ---- a tunnel ------------------------------------------------------------------------------------


def specs(bed: Bed) -> list[Spec]:
    """``ssh -w`` through sshd, and ours through both servers, of each tree."""
    if reason := why_unusable():
        fail(f"no network namespaces on this machine: {reason}")
    found = [Spec(SSH, "ssh", "sshd", SAME_CIPHER, starter=start_tunnel)]
    for tree, path in bed.trees.items():
        for name, server in ((STOCK, "sshd"), (OURS, "serve")):
            found.append(Spec(name + tree, "connect", server, SAME_CIPHER, SSH, None, path,
                              start_tunnel))  # fmt: skip
    return found


def specs_of_line(line: Line, bed: Bed) -> list[Spec]:
    """The same over a line."""
    if reason := why_no_lines():
        say(f"no line of packets on this machine: {reason}")
        return []
    return [replace(spec, line=line) for spec in specs(bed)]


def specs_and_limit(bed: Bed) -> list[Spec]:
    found = [*specs(bed), Spec(BARE, "", "", starter=start_bare)]
    if not wireguard.why_not():
        found.append(Spec(WIREGUARD, "", "", "", SSH, starter=start_wireguard))
    return found


def specs_and_least(bed: Bed) -> list[Spec]:
    return [*specs(bed), Spec(PYTHON, "", "", "", SSH, starter=start_bare_tunnel)]


def start_bare(stack: ExitStack, _bed: Bed, spec: Spec) -> Case:
    """Two hosts with the tunnel's addresses on their cable; the processes are this one."""
    lab = start_hosts(stack, spec)
    for host, own in ((lab["client"], NEAR), (lab["server"], FAR)):
        configure(host, f"address add {own}/24 dev eth0")
    lab["client"].ping(FAR, 5)
    return Case(spec, 0, os.getpid(), os.getpid(), lab=lab)


def start_bare_tunnel(stack: ExitStack, _bed: Bed, spec: Spec) -> Case:
    lab = start_hosts(stack, spec)
    near, far = lab["client"], lab["server"]
    command, host = [sys.executable, str(bare_tunnel.__file__)], far.ipv4()
    with far.inside():
        server = stack.enter_context(running(*command, "listen", host, DEVICE))
    port = server.wait_line(r"listening on (\d+)", READY_TIMEOUT_S)[1]
    with near.inside():
        client = stack.enter_context(running(*command, "connect", host, port, DEVICE))
    for program in (server, client):
        program.wait_line("carrying", READY_TIMEOUT_S)
    configure_ends(lab)
    return Case(spec, 0, client.pid, server.pid, lab=lab)


def start_wireguard(stack: ExitStack, bed: Bed, spec: Spec) -> Case:
    lab = start_hosts(stack, spec)
    near, far = lab["client"], lab["server"]
    ends = wireguard.End(near, "wg7", NEAR), wireguard.End(far, "wg8", FAR)
    client, server = wireguard.connect(stack, bed.folder, ends)
    near.ping(FAR, 5)
    return Case(spec, 0, client.pid, server.pid, lab=lab)


def start_hosts(stack: ExitStack, spec: Spec) -> Lab:
    lab = stack.enter_context(Lab(TWO_HOSTS if spec.line is None else spec.line.topology))
    for host in lab.hosts.values():
        choose_congestion_control(host)
    return lab


def configure(host: Host, words: str) -> None:
    done = host.run("ip", *words.split())
    if done.returncode:
        fail(f"ip {words}: {done.stderr.strip()}")


def start_tunnel(stack: ExitStack, bed: Bed, spec: Spec) -> Case:
    """Two hosts and a tunnel between them, with addresses."""
    lab = start_hosts(stack, spec)
    near, far = lab["client"], lab["server"]
    with far.inside(), tree_of(spec.tree):
        server = start_server(stack, bed, spec, far)
    command = ["ssh"] if spec.client == "ssh" else [*GATEWAY, "connect"]
    number = DEVICE.removeprefix("tun")
    with near.inside(), tree_of(spec.tree):
        client = stack.enter_context(
            running(
                *command, "-N", "-w", f"{number}:{number}", "-o", f"Ciphers={spec.cipher}",
                *client_options(server), f"{getpass.getuser()}@{far.ipv4()}",
            )
        )  # fmt: skip
    for host in (near, far):
        await_device(host, client)
    configure_ends(lab)
    return Case(spec, 0, client.pid, server.program.pid, server, near.namespace, lab)


def configure_ends(lab: Lab) -> None:
    near, far = lab["client"], lab["server"]
    for host, own, other in ((near, NEAR, FAR), (far, FAR, NEAR)):
        configure(host, f"address add {own} peer {other} dev {DEVICE}")
        configure(host, f"link set dev {DEVICE} up")
    near.ping(FAR, 5)


def await_device(host: Host, client: Program) -> None:
    what = "\n".join(("a device", *client.lines))
    eventually(lambda: not host.run("ip", "link", "show", DEVICE).returncode, what, READY_TIMEOUT_S)


def start_server(stack: ExitStack, bed: Bed, spec: Spec, far: Host) -> Endpoint:
    host = far.ipv4()
    if spec.server == "sshd":
        extra = f"ListenAddress {host}\nPermitTunnel yes"
        return stack.enter_context(running_sshd(bed.keys, extra))
    options = ("--listen", f"{host}:0", "--permit-tunnel")
    server = stack.enter_context(running_gateway_serve(bed.keys, *options))
    port = int(server.program.wait_line(rf"listening on {re.escape(host)}:(\d+)")[1])
    return replace(server, port=port)


# ---- measures ------------------------------------------------------------------------------------


def hosts(case: Case) -> tuple[Host, Host]:
    if case.lab is None:
        raise TypeError(f"{case.name} is between no hosts")
    return case.lab["client"], case.lab["server"]


def iperf(case: Case, *options: str) -> dict[str, Any]:
    """Run iperf3 through the tunnel; its report."""
    near, far = hosts(case)
    with far.inside(), running("iperf3", "-s", "-1", "-p", IPERF_PORT, "--forceflush") as server:
        server.wait_line("Server listening", READY_TIMEOUT_S)
        done = near.run("iperf3", "-J", "-c", FAR, "-p", IPERF_PORT, *options, timeout_s=120)
    report: dict[str, Any] = json.loads(done.stdout or "{}")
    if done.returncode or "end" not in report:
        fail(f"iperf3 through {case.name}: {report.get('error') or done.stderr.strip()}")
    return report


def measure_tcp(run: Run, spec: Spec, direction: str) -> dict[str, float]:
    case, word = run.case(spec), DIRECTIONS[direction]
    before = cpu_seconds(case.client_pid), cpu_seconds(case.server_pid)
    options = ["-t", str(run.options.seconds), *(["-R"] if direction == "get" else [])]
    received = iperf(case, *options)["end"]["sum_received"]
    after = cpu_seconds(case.client_pid), cpu_seconds(case.server_pid)
    return {
        f"{word} Mbit/s": received["bits_per_second"] / 1e6,
        f"{word} client s/GB": cpu_seconds_per_gb(before[0], after[0], received["bytes"]),
        f"{word} server s/GB": cpu_seconds_per_gb(before[1], after[1], received["bytes"]),
    }


def measure_udp(run: Run, spec: Spec, size: int) -> dict[str, float]:
    """How many datagrams a second arrive, at the highest rate of which UDP_LOSS at most is lost."""
    case = run.case(spec)
    best, good, bad = 0.0, 0, 0
    while not bad or bad - good > good / 8:
        rate = (good + bad) // 2 if bad else max(UDP_LEAST, 2 * good)
        options = ("-u", "-l", str(size), "-b", str(rate * size * 8), "-t", "1")
        total = iperf(case, *options)["end"]["sum"]
        sent, lost = total["packets"], total["lost_packets"]
        if lost > UDP_LOSS * sent:
            bad = rate
        else:
            best = max(best, (sent - lost) / total["seconds"])
            good = rate
            if sent < 0.9 * rate * total["seconds"]:
                break  # iperf3 sends no more
    return {f"UDP {size} packets/s": best}


def measure_ping(run: Run, spec: Spec) -> dict[str, float]:
    near, _ = hosts(run.case(spec))
    times = near.ping(FAR, run.options.pings, interval_s=PING_GAP_S).times_ms
    return {"ping p50 ms": percentile(times, 50), "ping p99 ms": percentile(times, 99)}


def measure_ping_beside_tcp(run: Run, spec: Spec, direction: str) -> dict[str, float]:
    """Pings over the slow line: alone, then while a TCP stream fills it."""
    case, word = run.case(spec), DIRECTIONS[direction]
    near, far = hosts(case)
    count = round(run.options.seconds / LINE_PING_GAP_S)
    idle = near.ping(FAR, count, interval_s=LINE_PING_GAP_S).times_ms
    reverse = ["-R"] if direction == "get" else []
    seconds = run.options.seconds + LINE_SETTLES_S
    with far.inside(), running("iperf3", "-s", "-1", "-p", IPERF_PORT, "--forceflush") as server:
        server.wait_line("Server listening", READY_TIMEOUT_S)
        with near.inside():
            load = running("iperf3", "-c", FAR, "-p", IPERF_PORT, "-t", str(seconds),
                           "-f", "m", "--forceflush", *reverse)  # fmt: skip
            with load as client:
                client.wait_line(rf"-{LINE_SETTLES_S}\.\d\d ", READY_TIMEOUT_S)
                beside = near.ping(FAR, count, interval_s=LINE_PING_GAP_S, timeout_s=3).times_ms
                rate = client.wait_line(r"([\d.]+) Mbits/sec.*receiver", 60)[1]
    return {
        f"before {word}: ping p50 ms": percentile(idle, 50),
        f"before {word}: ping p99 ms": percentile(idle, 99),
        f"beside {word}: ping p50 ms": percentile(beside, 50),
        f"beside {word}: ping p99 ms": percentile(beside, 99),
        f"beside {word}: Mbit/s": float(rate),
    }


def measure_lossy(run: Run, spec: Spec) -> dict[str, float]:
    found = iperf(run.case(spec), "-t", str(2 * run.options.seconds))["end"]["sum_received"]
    return {"40 ms, 1 % lost: Mbit/s": found["bits_per_second"] / 1e6}


def bars(_options: argparse.Namespace) -> list[Bar]:
    found = []
    for word in DIRECTIONS.values():
        rate = f"{word} Mbit/s"
        found += [
            Bar(STOCK, rate, AT_LEAST, 1.0, SSH),
            Bar(OURS, rate, AT_LEAST, 12.0, SSH),
            Bar(OURS, rate, AT_LEAST, 10.0, WIREGUARD),
            Bar(OURS, rate, AT_LEAST, 0.4, BARE),
            *(Bar(OURS, f"{word} {end} s/GB", AT_MOST, 0.15, SSH) for end in ENDS),
        ]
    found += [Bar(OURS, f"UDP {size} packets/s", AT_LEAST, 2.0, SSH) for size in UDP_SIZES]
    for case in (STOCK, OURS):
        found.append(Bar(case, "ping p50 ms", AT_MOST, 1.1, SSH))
        for word in DIRECTIONS.values():
            loaded, idle = f"beside {word}: ping p99 ms", f"before {word}: ping p50 ms"
            found.append(Bar(case, loaded, AT_MOST, 3.0, against_measure=idle))
            found.append(Bar(case, loaded, AT_MOST, 0.3, SSH))
        found.append(Bar(case, "40 ms, 1 % lost: Mbit/s", AT_LEAST, 1.0, SSH))
    return found


def tcp_table() -> Table:
    columns = []
    for word in DIRECTIONS.values():
        rate = f"{word} Mbit/s"
        columns += [Column(f"{word} Mbit/s", rate), Column("x ssh", rate, PEER)]
        for end in ENDS:
            columns += [Column(f"{end} s/GB", f"{word} {end} s/GB")]
    return Table("one TCP stream", tuple(columns))


COMMAND = Command(
    name="tun",
    what="TCP, UDP and pings through a tunnel, beside ssh -w",
    parts=(
        *(Part(f"tcp {word}", specs_and_limit, partial(measure_tcp, direction=direction))
          for direction, word in DIRECTIONS.items()),
        *(Part(f"udp {size}", specs, partial(measure_udp, size=size)) for size in UDP_SIZES),
        Part("ping", specs_and_least, measure_ping),
        *(Part(f"slow {word}", partial(specs_of_line, SLOW),
               partial(measure_ping_beside_tcp, direction=direction))
          for direction, word in DIRECTIONS.items()),
        Part("lossy", partial(specs_of_line, LOSSY), measure_lossy),
    ),
    options=(
        Option("seconds", 5, "S", "how long each transfer is measured"),
        Option("pings", 200, "N", "echo requests"),
    ),
    tables=(
        tcp_table(),
        Table("ping, idle", (
            Column("p50 ms", "ping p50 ms"), Column("x ssh", "ping p50 ms", PEER),
            Column("p99 ms", "ping p99 ms"),
        )),
        Table("UDP, 1 % lost at most", tuple(
            column for size in UDP_SIZES for column in (
                Column(f"{size} bytes, packets/s", f"UDP {size} packets/s"),
                Column("x ssh", f"UDP {size} packets/s", PEER),
            )
        )),
        *(Table(f"ping beside one TCP {word} at 20 Mbit/s, 40 ms, 256 KiB", (
            Column("idle p50 ms", f"before {word}: ping p50 ms"),
            Column("loaded p50 ms", f"beside {word}: ping p50 ms"),
            Column("loaded p99 ms", f"beside {word}: ping p99 ms"),
            Column("x ssh", f"beside {word}: ping p99 ms", PEER),
            Column("Mbit/s", f"beside {word}: Mbit/s"),
            Column("x ssh", f"beside {word}: Mbit/s", PEER),
        )) for word in DIRECTIONS.values()),
        Table("one TCP upload, 40 ms, 1 % lost", (
            Column("Mbit/s", "40 ms, 1 % lost: Mbit/s"),
            Column("x ssh", "40 ms, 1 % lost: Mbit/s", PEER),
        )),
    ),
    bars=bars,
    notes=(
        "medians; x ssh: the median of the ratios of each round; MTU 1500 outside and inside",
        "both hosts have cubic or reno, outside and inside, whatever the machine uses",
        "s/GB: processor time of the client's and the server's processes",
        wireguard.note(),
    ),
    rounds=5,
    budget_s=900.0,
)  # fmt: skip

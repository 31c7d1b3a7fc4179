"""`gateway serve` as a jump box beside sshd: logins, idle links, many busy ones, refusals.

Both have an ed25519 host key, the same user and key, and are asked for the same algorithms. `serve`
runs from a gateway.toml with its audit log on, and with limits of one user that let all links in.
Each part has servers of its own in each round.
"""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import (
    AT_LEAST,
    AT_MOST,
    PEER,
    Bar,
    Column,
    Table,
    cpu_seconds_per_gb,
    divide,
    percentile,
)
from bench.many import growth_while, memory
from bench.programs import (
    SAME_CIPHER,
    STEP_TIMEOUT_S,
    Bed,
    Case,
    Client,
    Spec,
    cpu_seconds,
    fail,
    process_tree,
    tree_of,
)
from bench.rounds import ROOT, Command, Option, Part, Run
from tests.support.programs import GATEWAY, USER, Endpoint, client_options, running, running_sshd

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SSHD, SERVE = "sshd", "serve"
SAME_KEX = "curve25519-sha256"
DIRECTIONS = {"get": "downloads", "put": "uploads"}
WARM_UP = 0.2  # of the time of bulk, until all of it flows
DENIED_PORT = 1
WARM_UP_OPENS = 50_000
OPENS_TO_SSHD = 100_000  # it writes a line about each
AUDIT = "audit"
FAIR = "slowest of mean"
LOGIN_MS = "server ms/login"
LINK_MB = "idle links: MB each"

CONFIG = """\
listen = ["127.0.0.1:0"]
host_keys = [{host_key}]
audit = "{audit}"

[users.{user}]
authorized_keys = {authorized_keys}

[[rules]]
id = "bench"
allow = "open"
to = ["127.0.0.1:{bulk_port}", "127.0.0.1:{echo_port}"]

[[rules]]
id = "forbidden"
deny = "open"
to = ["127.0.0.1:{denied_port}"]

[limits]
links_per_user = 1000000
channels_per_user = 1000000
opens_per_second_per_user = 1000000
"""
SSHD_CONFIG = """\
PermitOpen 127.0.0.1:{bulk_port} 127.0.0.1:{echo_port}
"""


# ---- the servers ---------------------------------------------------------------------------------


@contextmanager
def serving(bed: Bed, spec: Spec) -> Iterator[tuple[Case, Path]]:
    """A fresh server, and its folder."""
    with tempfile.TemporaryDirectory(dir=bed.folder) as name:
        folder = Path(name)
        if spec.server == SSHD:
            config = SSHD_CONFIG.format(bulk_port=bed.bulk_port, echo_port=bed.echo_port)
            with running_sshd(bed.keys, config, log_level="INFO") as server:
                yield Case(spec, 0, server.program.pid, server.program.pid, server), folder
            return
        path = folder / "gateway.toml"
        path.write_text(
            CONFIG.format(
                host_key=json.dumps(str(bed.keys.host)),
                audit=AUDIT,
                user=json.dumps(USER),
                authorized_keys=json.dumps(str(bed.keys.authorized)),
                bulk_port=bed.bulk_port,
                echo_port=bed.echo_port,
                denied_port=DENIED_PORT,
            )
        )
        path.chmod(0o600)
        with tree_of(spec.tree), running(*GATEWAY, "serve", "-c", str(path)) as program:
            port = int(program.wait_line(r"listening on 127\.0\.0\.1:(\d+)")[1])
            yield Case(spec, 0, program.pid, program.pid, Endpoint(program, port, bed.keys)), folder


def server_specs(bed: Bed) -> list[Spec]:
    ours = [Spec(SERVE + tree, "", "serve", peer=SSHD, tree=path)
            for tree, path in bed.trees.items()]  # fmt: skip
    return [Spec(SSHD, "", "sshd"), *ours]


def many_links(case: Case, bed: Bed, task: str, links: int, **options: float) -> Client:
    """Our client, always that of this tree, with so many links."""
    assert case.server is not None
    request = {
        "task": task,
        "port": case.server.port,
        "user": USER,
        "key": str(bed.keys.user),
        "cipher": SAME_CIPHER,
        "links": links,
        **options,
    }
    command = (sys.executable, "-m", "bench.links", json.dumps(request))
    return Client(f"{task} through {case.name}", *command, tree=ROOT)


# ---- logins --------------------------------------------------------------------------------------


def log_in(run: Run, spec: Spec) -> dict[str, float]:
    """Whole logins of a stock ssh, each for one forwarded connection that ends at once."""
    with serving(run.bed, spec) as (case, _):
        assert case.server is not None
        command = [
            "ssh",
            *client_options(case.server),
            *("-o", f"KexAlgorithms={SAME_KEX}", "-o", f"Ciphers={SAME_CIPHER}"),
            *("-o", "HostKeyAlgorithms=ssh-ed25519", "-W", f"127.0.0.1:{run.bed.echo_port}"),
            f"{getpass.getuser()}@127.0.0.1",
        ]
        root, count = case.server_pid, run.options.logins
        log_in_once(command, root)  # what is done once and for all is not a login's
        before_s = cpu_seconds(root)
        took_ms = [log_in_once(command, root) for _ in range(count)]
        return {
            LOGIN_MS: (cpu_seconds(root) - before_s) / count * 1000,
            "login p50 ms": percentile(took_ms, 50),
        }


def log_in_once(command: list[str], root: int) -> float:
    """Milliseconds of the client; returns when the server's processes for it are counted."""
    started_s = time.perf_counter()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    took_ms = (time.perf_counter() - started_s) * 1000
    if done.returncode:
        fail(f"a login: {done.stderr.strip()}")
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while len(process_tree(root)) > 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    return took_ms


# ---- many links ----------------------------------------------------------------------------------


def idle(run: Run, spec: Spec) -> dict[str, float]:
    """What a link that is logged in and has no channel adds to the server."""
    count = run.options.links
    with serving(run.bed, spec) as (case, _):
        before = memory(case)
        with many_links(case, run.bed, "hold", count) as holding:
            holding.wait_ready()
            after = memory(case)
            holding.finish()
    return {LINK_MB: (after["server"] - before["server"]) / count}


def fair(run: Run, spec: Spec, direction: str) -> dict[str, float]:
    options = run.options
    with (
        serving(run.bed, spec) as (case, _),
        many_links(
            case,
            run.bed,
            direction,
            options.links,
            target=run.bed.bulk_port,
            streams=options.streams,
            seconds=options.seconds,
            warm_up_s=options.seconds * WARM_UP,
        ) as loading,
    ):
        loading.wait_ready()
        before_s = cpu_seconds(case.server_pid)
        found = loading.finish()
        after_s = cpu_seconds(case.server_pid)
    counts = found["bytes"]
    mean = sum(counts) / len(counts)
    name = DIRECTIONS[direction]
    return {
        f"{name}: {FAIR}": divide(min(counts), mean),
        f"{name}: p5 of mean": divide(percentile(counts, 5), mean),
        f"{name}: MB/s": sum(counts) / found["seconds"] / 1e6,
        f"{name}: server s/GB": cpu_seconds_per_gb(before_s, after_s, sum(counts)),
    }


# ---- refusals ------------------------------------------------------------------------------------


def refuse(run: Run, spec: Spec) -> dict[str, float]:
    """Opens that are refused, half by a rule and half for their type, 64 at once on one link."""
    opens = run.options.opens
    if spec.server == SSHD:
        opens = min(opens, OPENS_TO_SSHD)
    warm_up = min(opens, WARM_UP_OPENS)
    with serving(run.bed, spec) as (case, folder):
        assert case.server is not None
        asking = many_links(
            case, run.bed, "refused", 1, denied=DENIED_PORT, opens=opens, warm_up=warm_up
        )
        with asking:
            asking.wait_ready()
            cpu_s = cpu_seconds(case.server_pid)
            growth, found = growth_while(case, asking)
            cpu_s = cpu_seconds(case.server_pid) - cpu_s
        lines = len(case.server.program.lines)
        audit_bytes = sum(path.stat().st_size for path in folder.glob(f"{AUDIT}/*"))
    figures = {
        "refused: opens/s": found["opens/s"],
        "refused: server µs": cpu_s / opens * 1e6,
        "refused: +MB": growth["server"],
        "refused: lines said": lines,
    }
    if spec.server != SSHD:
        figures["refused: audit MB"] = audit_bytes / 1e6
    return figures


# ---- the command ---------------------------------------------------------------------------------


def fair_part(direction: str) -> Part:
    return Part(
        f"fair {direction}",
        server_specs,
        lambda run, spec: fair(run, spec, direction),
        is_fresh=True,
    )


def fair_table(name: str) -> Table:
    return Table(
        f"{name}, all streams of all links",
        (
            Column(FAIR, f"{name}: {FAIR}"),
            Column("x sshd", f"{name}: {FAIR}", PEER),
            Column("p5 of mean", f"{name}: p5 of mean"),
            Column("MB/s", f"{name}: MB/s"),
            Column("x sshd", f"{name}: MB/s", PEER),
            Column("server s/GB", f"{name}: server s/GB"),
            Column("x sshd", f"{name}: server s/GB", PEER),
        ),
    )


def bars(_options: argparse.Namespace) -> list[Bar]:
    return [
        Bar(SERVE, LOGIN_MS, AT_MOST, 1 / 3, SSHD),
        Bar(SERVE, LINK_MB, AT_MOST, 0.5),
        *(Bar(SERVE, f"{name}: {FAIR}", AT_LEAST, 0.5) for name in DIRECTIONS.values()),
        Bar(SERVE, "refused: +MB", AT_MOST, 8.0),
        Bar(SERVE, "refused: audit MB", AT_MOST, 1.0),
    ]


COMMAND = Command(
    name="serve",
    what="the server: logins, idle links, many busy links, refused opens",
    parts=(
        Part("login", server_specs, log_in, is_fresh=True),
        Part("idle", server_specs, idle, is_fresh=True),
        *map(fair_part, DIRECTIONS),
        Part("refused", server_specs, refuse, is_fresh=True),
    ),
    options=(
        Option("logins", 20, "N", "of a stock ssh, one after the other"),
        Option("links", 200, "N", "at the same time, idle or busy"),
        Option("streams", 4, "N", "of each busy link"),
        Option("seconds", 10, "S", "of bulk"),
        Option("opens", 1_000_000, "N", f"that are refused; by sshd at most {OPENS_TO_SSHD}"),
    ),
    tables=(
        Table(
            f"a login over {SAME_KEX} and {SAME_CIPHER}",
            (
                Column(LOGIN_MS, LOGIN_MS),
                Column("x sshd", LOGIN_MS, PEER),
                Column("login p50 ms", "login p50 ms"),
            ),
        ),
        Table("idle links", (Column("server MB each", LINK_MB), Column("x sshd", LINK_MB, PEER))),
        *map(fair_table, DIRECTIONS.values()),
        Table(
            "refused opens",
            (
                Column("opens/s", "refused: opens/s"),
                Column("x sshd", "refused: opens/s", PEER),
                Column("server µs each", "refused: server µs"),
                Column("+MB", "refused: +MB"),
                Column("lines said", "refused: lines said"),
                Column("audit MB", "refused: audit MB"),
            ),
        ),
    ),
    bars=bars,
    notes=(
        "medians; MB = 10^6 bytes; resident memory, of sshd's processes the proportional set",
        "x sshd: the median of the ratios of each round",
    ),
    rounds=3,
    budget_s=900.0,
)

"""A long line of packets: what `delay.py` is for bytes, so that TCP is end to end and loses some.

    wire NAMESPACE NAMESPACE ONE_WAY_µs BITS_A_SECOND BUFFER_BYTES         prints "ready"

Two hosts, each a network namespace with a device; a process carries the packets between them. What
finds the buffer full is dropped. Both hosts use Reno or CUBIC, which fill a buffer, whatever the
machine uses. Needs root, a compiler and tun devices; there is no variant in Python.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from netns.lab import PREFIX, LabError, ip, remove_namespaces, why_unusable

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "line0"
ADDRESSES = ("10.98.0.1", "10.98.0.2")
CONGESTION_CONTROLS = ("cubic", "reno")
CLONE_NEWNET = 0x40000000
TUN = Path("/dev/net/tun")

_numbers = itertools.count(1)

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

typedef long long number;
enum { PACKET = 1600, PLACES = 1 << 15 };

struct packet { number leaves, arrives; int length; char data[PACKET]; };
struct way {
    int from, to;
    unsigned first, line, end; /* places: the first held, the first not left, the next free */
    number free_at, waiting;
    struct packet packets[PLACES];
};

static struct way ways[2];
static number delay, rate, buffer;

static number now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int device(const char *namespace) {
    char path[256];
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    snprintf(path, sizeof path, "/run/netns/%s", namespace);
    int there = open(path, O_RDONLY);
    if (there < 0 || setns(there, CLONE_NEWNET))
        exit(1);
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strcpy(request.ifr_name, "line0");
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request))
        exit(1);
    return tun;
}

static void carry(struct way *w, number t) {
    for (; w->line != w->end && w->packets[w->line % PLACES].leaves <= t; w->line++)
        w->waiting -= w->packets[w->line % PLACES].length;
    for (; w->first != w->line && w->packets[w->first % PLACES].arrives <= t; w->first++) {
        struct packet *p = &w->packets[w->first % PLACES];
        if (write(w->to, p->data, p->length) < 0)
            continue; /* the device is down */
    }
    for (;;) {
        struct packet *p = &w->packets[w->end % PLACES];
        static char dropped[PACKET];
        int full = w->waiting + PACKET > buffer || w->end - w->first == PLACES;
        ssize_t n = read(w->from, full ? dropped : p->data, PACKET);
        if (n <= 0)
            return;
        if (full)
            continue;
        if (w->free_at < t)
            w->free_at = t;
        w->free_at += n * 8 * 1000000000LL / rate;
        p->length = n;
        p->leaves = w->free_at;
        p->arrives = p->leaves + delay;
        w->waiting += n;
        w->end++;
    }
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 2;
    ways[0].from = ways[1].to = device(argv[1]);
    ways[0].to = ways[1].from = device(argv[2]);
    delay = atoll(argv[3]) * 1000;
    rate = atoll(argv[4]);
    buffer = atoll(argv[5]);
    prctl(PR_SET_TIMERSLACK, 1);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct pollfd polled[2] = {{ways[0].from, POLLIN, 0}, {ways[1].from, POLLIN, 0}};
        number next = -1, t = now();
        for (int i = 0; i < 2; i++) {
            struct way *w = &ways[i];
            if (w->first != w->end && (next < 0 || w->packets[w->first % PLACES].arrives < next))
                next = w->packets[w->first % PLACES].arrives;
            if (w->line != w->end && w->packets[w->line % PLACES].leaves < next)
                next = w->packets[w->line % PLACES].leaves;
        }
        number left = next > t ? next - t : 0;
        struct timespec wait = {left / 1000000000LL, left % 1000000000LL};
        ppoll(polled, 2, next < 0 ? NULL : &wait, NULL);
        t = now();
        carry(&ways[0], t);
        carry(&ways[1], t);
    }
}
"""


def why_none() -> str | None:
    """Why this machine can have no such line, or None."""
    if not TUN.exists():
        return f"there is no {TUN}"
    if shutil.which("cc") is None:
        return "there is no C compiler"
    return why_unusable()


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """What this thread starts, and the sockets it makes, are in a namespace; "" is the own."""
    if not namespace:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")

    with Path("/proc/thread-self/ns/net").open("rb") as before:
        with Path(f"/run/netns/{namespace}").open("rb") as there:
            enter(there.fileno())
        try:
            yield
        finally:
            enter(before.fileno())


@contextmanager
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces without anything between them yet."""
    prefix = f"{PREFIX}{os.getpid()}-bench{next(_numbers)}-"
    names = (prefix + "client", prefix + "server")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            with inside(name):
                choose_congestion_control()
        yield names
    finally:
        remove_namespaces(prefix)


def choose_congestion_control() -> None:
    """The first that the kernel has."""
    for name in CONGESTION_CONTROLS:
        with suppress(OSError):
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(name)
            return
    raise LabError("the kernel has none of " + ", ".join(CONGESTION_CONTROLS))


def bring_up(near: str, far: str) -> None:
    """Give the devices, which exist now, their addresses."""
    for name, address in zip((near, far), ADDRESSES, strict=True):
        ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
        ip("-n", name, "link", "set", DEVICE, "up")

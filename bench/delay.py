"""A long line, for one machine: a TCP relay that holds back what passes.

    delay TARGET_PORT ONE_WAY_µs BITS_A_SECOND BUFFER_BYTES     prints "listening on PORT"

Each direction by itself: what is read waits until the line, which sends so many bits in a second,
is free, leaves, and arrives the delay later. Only what has not left yet fills the buffer; what is
under way does not. A full buffer is not read into, as a router's would not take more; what the
kernel would hide before and behind it is kept small, and so are segments: by their size the kernel
chooses how much a sender may have in its socket. A rate of 0 is a line that is always free.

TCP ends at the relay: nothing is lost, and both ends see a round trip of no time. So what is
measured is what the programs above TCP do about a long line, not what congestion control does.

In C where a compiler is found, else in Python, the same loop in both.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque

PACKET = 1448  # what a line with a rate sends at once
READ = 64 << 10  # what one without takes at once
HIDDEN = 32 << 10  # for the kernel's buffers on both sides of a line with a rate

SOURCE = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef long long number;
enum { PACKET = 1448, READ = 64 << 10, HIDDEN = 32 << 10, LINES = 512, TURN = 64 };

struct chunk {
    struct chunk *next;
    number leaves, arrives;
    int at, length; /* a length of 0 is the end */
    char data[];
};

struct way {
    int from, to, ended, stuck, done, here, there; /* here, there: places in the list to poll */
    struct chunk *first, *last, *line;             /* line: the first that has not left */
    number free_at, waiting, held;
};

struct line { struct way ways[2]; };

static number delay, rate, buffer, under_way;
static int quantum;
static struct line *lines[LINES];
static int count;
static struct chunk *unused;

static number now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct chunk *take(void) {
    struct chunk *c = unused;
    if (c)
        unused = c->next;
    else if (!(c = malloc(sizeof *c + quantum)))
        exit(1);
    return c;
}

static void give_back(struct chunk *c) {
    c->next = unused;
    unused = c;
}

static int has_room(struct way *w) {
    return !w->ended && w->waiting < buffer && w->held < buffer + under_way;
}

static void leave(struct way *w, number t) {
    for (; w->line && w->line->leaves <= t; w->line = w->line->next)
        w->waiting -= w->line->length;
}

static int fill(struct way *w, number t) {
    for (int turn = 0; turn < TURN && has_room(w); turn++) {
        struct chunk *c = take();
        ssize_t n = recv(w->from, c->data, quantum, MSG_DONTWAIT);
        if (n < 0) {
            give_back(c);
            return errno == EAGAIN || errno == EINTR ? 0 : -1;
        }
        if (w->free_at < t)
            w->free_at = t;
        if (rate)
            w->free_at += n * 8 * 1000000000LL / rate;
        c->leaves = w->free_at;
        c->arrives = c->leaves + delay;
        c->at = 0;
        c->length = n;
        c->next = NULL;
        if (w->last)
            w->last->next = c;
        else
            w->first = c;
        w->last = c;
        if (!w->line)
            w->line = c;
        w->waiting += n;
        w->held += n;
        w->ended = !n;
    }
    return 0;
}

static int empty(struct way *w, number t) {
    struct chunk *c;
    while ((c = w->first) && c->arrives <= t) {
        if (!c->length) {
            shutdown(w->to, SHUT_WR);
            w->done = 1;
        } else {
            int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
            ssize_t n = send(w->to, c->data + c->at, c->length - c->at, flags);
            if (n < 0 && errno != EAGAIN && errno != EINTR)
                return -1;
            if (n > 0)
                c->at += n;
            if ((w->stuck = c->at < c->length))
                return 0;
        }
        w->held -= c->length;
        if (!(w->first = c->next))
            w->last = NULL;
        give_back(c);
    }
    return 0;
}

static void end_line(int index) {
    for (int i = 0; i < 2; i++)
        for (struct chunk *c = lines[index]->ways[i].first, *next; c; c = next) {
            next = c->next;
            give_back(c);
        }
    close(lines[index]->ways[0].from);
    close(lines[index]->ways[0].to);
    free(lines[index]);
    lines[index] = lines[--count];
}

static void prepare(int s) {
    int one = 1, packet = PACKET, size = HIDDEN;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (rate) {
        setsockopt(s, IPPROTO_TCP, TCP_MAXSEG, &packet, sizeof packet);
        setsockopt(s, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        setsockopt(s, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    }
}

static void new_line(int listener, struct sockaddr_in *there) {
    int client = accept(listener, NULL, NULL), target = socket(AF_INET, SOCK_STREAM, 0);
    struct line *line = calloc(1, sizeof *line);
    prepare(client);
    prepare(target);
    if (!line || client < 0 || connect(target, (struct sockaddr *)there, sizeof *there)) {
        close(client);
        close(target);
        free(line);
        return;
    }
    line->ways[0].from = line->ways[1].to = client;
    line->ways[0].to = line->ways[1].from = target;
    lines[count++] = line;
}

int main(int argc, char **argv) {
    static struct pollfd polled[1 + 4 * LINES];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in there = here;
    socklen_t length = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 5)
        return 2;
    there.sin_port = htons(atoi(argv[1]));
    delay = atoll(argv[2]) * 1000;
    rate = atoll(argv[3]);
    buffer = atoll(argv[4]);
    under_way = rate * (delay / 1000) / 8000000;
    quantum = rate ? PACKET : READ;
    prepare(listener);
    if (bind(listener, (struct sockaddr *)&here, length) || listen(listener, 64))
        return 1;
    prctl(PR_SET_TIMERSLACK, 1);
    getsockname(listener, (struct sockaddr *)&here, &length);
    printf("listening on %d\n", ntohs(here.sin_port));
    fflush(stdout);
    for (;;) {
        int n = 1;
        number next = -1, t = now();
        polled[0] = (struct pollfd){count < LINES ? listener : -1, POLLIN, 0};
        for (int i = 0; i < 2 * count; i++) {
            struct way *w = &lines[i / 2]->ways[i % 2];
            number due = w->first && !w->stuck ? w->first->arrives : -1;
            if (!w->ended && !has_room(w) && w->line && (due < 0 || w->line->leaves < due))
                due = w->line->leaves;
            if (due >= 0 && (next < 0 || due < next))
                next = due;
            w->here = w->there = 0;
            if (has_room(w))
                polled[w->here = n++] = (struct pollfd){w->from, POLLIN, 0};
            if (w->stuck)
                polled[w->there = n++] = (struct pollfd){w->to, POLLOUT, 0};
        }
        number left = next > t ? next - t : 0;
        struct timespec wait = {left / 1000000000LL, left % 1000000000LL};
        if (ppoll(polled, n, next < 0 ? NULL : &wait, NULL) < 0 && errno != EINTR)
            return 1;
        t = now();
        for (int i = count - 1; i >= 0; i--) {
            int broken = 0;
            for (int j = 0; j < 2; j++) {
                struct way *w = &lines[i]->ways[j];
                leave(w, t);
                if (!w->stuck || polled[w->there].revents)
                    broken |= empty(w, t);
                if (w->here && polled[w->here].revents)
                    broken |= fill(w, t);
            }
            if (broken || (lines[i]->ways[0].done && lines[i]->ways[1].done))
                end_line(i);
        }
        if (polled[0].revents & POLLIN)
            new_line(listener, &there);
    }
}
"""


class Way:
    """One direction of a connection. Times are of the monotonic clock."""

    def __init__(self, source: socket.socket, sink: socket.socket, options: list[int]) -> None:
        self.source, self.sink = source, sink
        delay_us, self.rate, self.buffer = options
        self.delay_s = delay_us / 1e6
        self.maximum = self.buffer + self.rate * delay_us // 8_000_000
        self.chunks: deque[tuple[float, bytes]] = deque()  # arrives, and what
        self.leaving: deque[tuple[float, int]] = deque()
        self.free_at = 0.0
        self.waiting = self.held = 0
        self.ended = self.stuck = self.done = False

    @property
    def has_room(self) -> bool:
        return not self.ended and self.waiting < self.buffer and self.held < self.maximum

    def due(self) -> float:
        """When there is something to do although no socket is ready."""
        times = [float("inf")]
        if self.chunks and not self.stuck:
            times.append(self.chunks[0][0])
        if self.leaving and not self.has_room:
            times.append(self.leaving[0][0])
        return min(times)

    def fill(self, now_s: float) -> None:
        while self.has_room:
            data = self.source.recv(PACKET if self.rate else READ)
            self.free_at = max(self.free_at, now_s)
            if self.rate:
                self.free_at += len(data) * 8 / self.rate
            self.chunks.append((self.free_at + self.delay_s, data))
            self.leaving.append((self.free_at, len(data)))
            self.waiting += len(data)
            self.held += len(data)
            self.ended = not data

    def empty(self, now_s: float) -> None:
        while self.leaving and self.leaving[0][0] <= now_s:
            self.waiting -= self.leaving.popleft()[1]
        self.stuck = True
        while self.chunks and self.chunks[0][0] <= now_s:
            arrives, data = self.chunks.popleft()
            if not data:
                self.sink.shutdown(socket.SHUT_WR)
                self.done = True
                break
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.held -= sent
            if sent < len(data):
                self.chunks.appendleft((arrives, data[sent:]))
                return
        self.stuck = False


Line = tuple[Way, Way]


def prepare(sock: socket.socket, rate: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if rate:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PACKET)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, HIDDEN)


def new_line(listener: socket.socket, target_port: int, options: list[int]) -> Line:
    client, target = listener.accept()[0], socket.socket()
    prepare(target, options[1])
    target.connect(("127.0.0.1", target_port))
    for sock in (client, target):
        sock.setblocking(False)
    return Way(client, target, options), Way(target, client, options)


def pass_on(line: Line) -> bool:
    """Do what can be done now; whether the connection goes on."""
    now_s = time.monotonic()
    for way in line:
        try:
            way.empty(now_s)
            with contextlib.suppress(BlockingIOError):
                way.fill(now_s)
        except OSError:
            break
    else:
        if not (line[0].done and line[1].done):
            return True
    line[0].source.close()
    line[0].sink.close()
    return False


def relay(target_port: int, options: list[int]) -> None:
    lines: list[Line] = []
    with socket.socket() as listener:
        prepare(listener, options[1])
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        print(f"listening on {listener.getsockname()[1]}", flush=True)
        while True:
            ways = [way for line in lines for way in line]
            wait_s = min((way.due() for way in ways), default=float("inf")) - time.monotonic()
            ready, _, _ = select.select(
                [listener, *(way.source for way in ways if way.has_room)],
                [way.sink for way in ways if way.stuck],
                [],
                max(wait_s, 0) if wait_s != float("inf") else None,
            )
            if listener in ready:
                lines.append(new_line(listener, target_port, options))
            lines = [line for line in lines if pass_on(line)]


if __name__ == "__main__":
    relay(int(sys.argv[1]), [int(argument) for argument in sys.argv[2:5]])

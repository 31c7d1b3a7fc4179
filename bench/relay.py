"""A plain TCP relay: what remains when SSH is taken away. Two in series are the limit.

    relay TARGET_PORT                       prints "listening on PORT"

In C where a compiler is found, else in Python. The same loop in both: a process for each direction,
which reads what there is and writes it.
"""

from __future__ import annotations

import os
import socket
import sys

BUFFER = 256 << 10

SOURCE = r"""
#define BUFFER (256 << 10)
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[BUFFER];

static void pump(int from, int to) {
    ssize_t n;
    while ((n = read(from, buffer, sizeof buffer)) > 0)
        for (ssize_t at = 0, sent; at < n; at += sent)
            if ((sent = write(to, buffer + at, n - at)) <= 0)
                _exit(1);
    shutdown(to, SHUT_WR);
    _exit(0);
}

int main(int argc, char **argv) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in there = here;
    socklen_t length = sizeof here;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 2 || bind(listener, (struct sockaddr *)&here, length) || listen(listener, 64))
        return 1;
    there.sin_port = htons(atoi(argv[1]));
    getsockname(listener, (struct sockaddr *)&here, &length);
    printf("listening on %d\n", ntohs(here.sin_port));
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL), target = socket(AF_INET, SOCK_STREAM, 0);
        if (client < 0 || connect(target, (struct sockaddr *)&there, sizeof there))
            return 1;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(target, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!fork())
            pump(client, target);
        if (!fork())
            pump(target, client);
        close(client);
        close(target);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}
"""


def pump(source: socket.socket, sink: socket.socket) -> None:
    buffer = memoryview(bytearray(BUFFER))
    while length := source.recv_into(buffer):
        sink.sendall(buffer[:length])
    sink.shutdown(socket.SHUT_WR)


def reap() -> None:
    """Their processor time is counted from now on as that of ended children."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def relay(target_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"listening on {listener.getsockname()[1]}", flush=True)
        while True:
            client = listener.accept()[0]
            target = socket.create_connection(("127.0.0.1", target_port))
            with client, target:
                for one, other in ((client, target), (target, client)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if not os.fork():
                        pump(one, other)
                        os._exit(0)
            reap()


if __name__ == "__main__":
    relay(int(sys.argv[1]))

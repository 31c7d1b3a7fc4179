"""What all links of one server share."""

from __future__ import annotations

from gateway.server import Server
from gateway.ssh.flow import PathMeter
from gateway.ssh.windows import Budget, Shares
from tests.support.serving import make_options


def test_the_links_of_a_user_share_a_part_of_the_servers_memory():
    server = Server(make_options(), report=print).shared
    links = [Shares(PathMeter(), Budget()) for _ in range(3)]
    for link, user_name in zip(links, ("alice", "alice", "bob"), strict=True):
        link.join(server.budget_of(user_name))
    assert server.budget_of("alice") is server.budget_of("alice")
    window = links[0].open()
    assert server.budget_of("alice").used == server.budget.used == window.charged > 0
    assert server.budget_of("bob").used == 0
    greedy = links[0].budget.take(1 << 40)
    assert links[1].budget.limit() < links[2].budget.limit(), "bob does not pay for alice"
    links[0].budget.give_back(greedy)
    links[0].close(window)
    assert server.budget.used == 0
    del links, link
    assert not server._user_budgets, "who has no link is forgotten"

"""A connection to an agent, and which keys a login offers with it: agents that work and that don't.

The agents here are functions on a real unix socket: they get a request and return a reply.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from gateway.config.identities import Identities, load_public_key_file
from gateway.net import agent as net_agent
from gateway.net.agent import Agent, AgentError
from gateway.ssh.agent import AgentMsg, SessionBinding
from gateway.ssh.keyfiles import encode_private_key_file
from gateway.ssh.keys import PrivateKey
from gateway.ssh.wire import Reader, string, uint32
from tests.support.keys import a_private_key

KEYS = [PrivateKey.generate(os.urandom) for _ in range(4)]
BINDING = SessionBinding(b"host", b"session", b"signature")
ED25519 = "ssh-ed25519"
FAILURE, SUCCESS = b"\5", b"\6"


class Held:
    """An agent that holds keys; ``refuses`` are messages that it answers with FAILURE."""

    def __init__(self, *keys, refuses=(), instead=None):
        self.keys = {key.public.blob: key for key in keys}
        self.refuses = refuses
        self.instead = instead or {}
        self.asked = []

    def __call__(self, request):
        number = request[0]
        self.asked.append(number)
        if number in self.instead:
            return self.instead[number]
        if number in self.refuses:
            return FAILURE
        if number == AgentMsg.REQUEST_IDENTITIES:
            entries = b"".join(string(blob) + string(b"comment") for blob in self.keys)
            return bytes((AgentMsg.IDENTITIES_ANSWER,)) + uint32(len(self.keys)) + entries
        if number == AgentMsg.SIGN_REQUEST:
            fields = Reader(request[1:])
            key, data = self.keys[fields.string()], fields.string()
            return bytes((AgentMsg.SIGN_RESPONSE,)) + string(key.sign(data, ED25519))
        return SUCCESS


@asynccontextmanager
async def running(path, agent):
    """Serve an agent on a socket. A reply of None hangs; bytes of length 0 close."""

    async def serve(stream):
        data = bytearray()
        async with stream:
            try:
                async for piece in stream:
                    data += piece
                    while len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "big"):
                        length = int.from_bytes(data[:4], "big")
                        request = bytes(data[4 : 4 + length])
                        del data[: 4 + length]
                        said = agent(request)
                        if said is None:
                            await trio.sleep_forever()
                        if not said:
                            return
                        await stream.send_all(said if agent is raw else string(said))
            except trio.BrokenResourceError:
                pass

    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        yield str(path)
        nursery.cancel_scope.cancel()


def raw(_request):
    """Not the agent protocol at all."""
    return b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent"


# ---- the connection ------------------------------------------------------------------------------


async def test_an_agent_that_works(path):
    held = Held(*KEYS[:2])
    async with running(path, held) as name:
        agent = await Agent.connect(name)
        assert await agent.bind_session(BINDING)
        assert [item.key for item in await agent.identities()] == [k.public for k in KEYS[:2]]
        signature = await agent.sign(KEYS[1].public, b"data", ED25519)
        KEYS[1].public.verify(signature, b"data")
        await agent.aclose()
        with pytest.raises(AgentError, match="not used any more"):
            await agent.identities()
    assert held.asked == [27, 11, 13]


async def test_an_agent_without_session_binding(path):
    async with running(path, Held(KEYS[0], refuses=(AgentMsg.EXTENSION,))) as name:
        agent = await Agent.connect(name)
        assert not await agent.bind_session(BINDING)
        assert len(await agent.identities()) == 1
        await agent.aclose()


@pytest.mark.parametrize("make", ["absent", "file", "closed"])
async def test_no_agent_at_the_path(path, make):
    if make == "file":
        path.touch()
    elif make == "closed":
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(path))
        sock.close()
    with pytest.raises(AgentError, match="cannot be reached") as caught:
        await Agent.connect(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["\0x\0", "/" + "x" * 300, "a\nb"])
async def test_a_path_that_cannot_be_one(name):
    with pytest.raises(AgentError, match="cannot be reached") as caught:
        await Agent.connect(name)
    assert "\n" not in str(caught.value)


async def test_an_agent_that_hangs_costs_seconds(path, monkeypatch):
    monkeypatch.setattr(net_agent, "ANSWER_TIMEOUT_S", 0.1)
    async with running(path, lambda _request: None) as name:
        agent = await Agent.connect(name)
        with pytest.raises(AgentError, match="did not answer within"):
            await agent.identities()
        with pytest.raises(AgentError, match="not used any more"):
            await agent.identities()
        await agent.aclose()


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (raw, "does not speak the agent protocol"),
        (lambda _request: b"", "closed the connection"),
        (lambda _request: b"\5", "does not tell its keys"),
        (lambda _request: b"\x0c\xff\xff\xff\xff", "does not speak the agent protocol"),
        (lambda _request: b"\x06", "does not speak the agent protocol"),
    ],
)
async def test_agents_that_answer_wrongly(path, says, problem):
    async with running(path, says) as name:
        agent = await Agent.connect(name)
        with pytest.raises(AgentError, match=problem):
            await agent.identities()
        await agent.aclose()


async def test_an_agent_that_says_more_than_it_was_asked(path):
    class Chatty(Held):
        def __call__(self, request):
            return super().__call__(request) + string(b"\6")

    async with running(path, Chatty(KEYS[0])) as name:
        agent = await Agent.connect(name)
        with pytest.raises(AgentError, match="agent protocol"):
            await agent.identities()
        await agent.aclose()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (FAILURE, "refused to sign with SHA256:"),
        (b"\x0e" + string(KEYS[1].sign(b"data", ED25519)), "signed wrongly"),
        (b"\x0e", "signed wrongly"),
    ],
)
async def test_no_signature_or_a_wrong_one(path, said, problem):
    async with running(path, Held(KEYS[0], instead={AgentMsg.SIGN_REQUEST: said})) as name:
        agent = await Agent.connect(name)
        with pytest.raises(AgentError, match=problem):
            await agent.sign(KEYS[0].public, b"data", ED25519)
        await agent.aclose()


# ---- identities ----------------------------------------------------------------------------------


class Silent:
    """A person who is told things and never answers."""

    def __init__(self):
        self.told = []

    def say(self, text):
        self.told.append(text)

    async def ask(self, _question):
        return None

    async def ask_secret(self, _prompt):
        return None


def write_key(path, key):
    path.touch(mode=0o600)
    path.write_bytes(encode_private_key_file(key))
    return path


def write_public(path, key):
    path.write_text(key.public.openssh_text() + " comment\n")
    return path


def config(files, **changes):
    values = {
        "identity_files": tuple(files),
        "identity_files_are_default": False,
        "identities_only": False,
        "pubkey_authentication": True,
        "batch_mode": False,
        "number_of_password_prompts": 3,
        "certificate_files": (),
        "required_rsa_size": 1024,
    }
    return SimpleNamespace(**values | changes)


async def in_thread(function):
    return function()


def publics(*numbers):
    return tuple(KEYS[number].public for number in numbers)


@pytest.mark.parametrize(
    ("held", "files", "only", "offered"),
    [
        ((), (0, 1), False, (0, 1)),
        ((2, 3), (0,), False, (2, 3, 0)),
        ((2, 1, 3), (0, 1), False, (1, 2, 3, 0)),
        ((2, 1, 0), (0, 1), False, (1, 0, 2)),
        ((2, 1, 3), (0, 1), True, (1, 0)),
        ((2, 3), (), True, ()),
        ((2, 3), (), False, (2, 3)),
    ],
)
async def test_the_order_is_that_of_ssh(path, tmp_path, held, files, only, offered):
    """sshconnect2.c, pubkey_prepare: files that the agent holds, its others, other files."""
    names = [write_key(tmp_path / f"id{number}", KEYS[number]) for number in files]
    async with running(path, Held(*(KEYS[number] for number in held))) as name:
        identities = Identities(config(names, identities_only=only), Silent(), name)
        assert identities.public_keys == publics(*files)
        assert await identities.prepare(BINDING) == publics(*offered)
        assert identities.public_keys == publics(*offered)
        for index, number in enumerate(offered):
            signature = await identities.sign(index, b"data", ED25519, in_thread)
            KEYS[number].public.verify(signature, b"data")
        await identities.aclose()
    assert identities.problems == []


async def test_required_rsa_size_rules_out_the_agents_keys_too(path):
    short = a_private_key("ssh-rsa")
    settings = config((), required_rsa_size=4096)
    async with running(path, Held(short, KEYS[0])) as name:
        identities = Identities(settings, Silent(), name)
        assert await identities.prepare(BINDING) == publics(0)
        await identities.aclose()
    (problem,) = identities.problems
    assert short.public.fingerprint in problem
    assert "RequiredRSASize asks for 4096" in problem


async def test_public_halves_choose_among_the_agents_keys(path, tmp_path):
    """IdentityFile may name a .pub file, or a private key of which only FILE.pub is there."""
    first = write_public(tmp_path / "a.pub", KEYS[2])
    write_public(tmp_path / "b.pub", KEYS[1])
    lost = write_public(tmp_path / "c.pub", KEYS[0])
    files = [first, tmp_path / "b", lost]
    async with running(path, Held(*KEYS[1:])) as name:
        identities = Identities(config(files, identities_only=True), Silent(), name)
        assert identities.public_keys == ()
        assert await identities.prepare(BINDING) == publics(1, 2)
        await identities.aclose()
    (problem,) = identities.problems
    assert problem.startswith(f"{lost}: it is a public key, and the agent does not hold")


def test_a_public_half_without_an_agent_is_a_problem(tmp_path):
    name = write_public(tmp_path / "a.pub", KEYS[0])
    identities = Identities(config([name]), Silent())
    assert identities.public_keys == ()
    assert "it is a public key" in identities.problems[0]


async def test_a_private_half_that_others_may_read_is_not_needed(path, tmp_path):
    name = write_key(tmp_path / "a", KEYS[0])
    name.chmod(0o644)
    write_public(tmp_path / "a.pub", KEYS[0])
    async with running(path, Held(KEYS[0])) as socket_name:
        identities = Identities(config([name]), Silent(), socket_name)
        assert await identities.prepare(BINDING) == publics(0)
        assert identities.problems == []
        await identities.aclose()
    alone = Identities(config([name]), Silent())
    assert "mode 0644" in alone.problems[0]


def test_what_is_no_public_key_file(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff" * 100)
    (tmp_path / "text").write_text("ssh-ed25519 AAAA\n")
    (tmp_path / "empty").touch()
    write_key(tmp_path / "private", KEYS[0])
    for name in ("binary", "text", "empty", "private", "absent", "."):
        assert load_public_key_file(tmp_path / name) is None


async def test_no_agent_is_asked_when_keys_are_switched_off(path):
    held = Held(KEYS[0])
    async with running(path, held) as name:
        identities = Identities(config([], pubkey_authentication=False), Silent(), name)
        assert await identities.prepare(BINDING) == ()
    assert held.asked == []


@pytest.mark.parametrize("says", [raw, lambda _request: b"", lambda _request: None, None])
async def test_a_broken_agent_is_one_warning_and_the_files_remain(
    path, tmp_path, says, monkeypatch
):
    monkeypatch.setattr(net_agent, "ANSWER_TIMEOUT_S", 0.1)
    name, person = write_key(tmp_path / "id", KEYS[0]), Silent()
    if says is None:
        identities = Identities(config([name]), person, str(path))
        assert await identities.prepare(BINDING) == publics(0)
    else:
        async with running(path, says) as socket_name:
            identities = Identities(config([name]), person, socket_name)
            assert await identities.prepare(BINDING) == publics(0)
    assert len(person.told) == 1
    assert person.told[0].startswith("warning: the ssh-agent at ")
    assert await identities.sign(0, b"data", ED25519, in_thread)


async def test_a_refusal_of_the_agent_falls_back_to_the_file(path, tmp_path):
    name, person = write_key(tmp_path / "id", KEYS[0]), Silent()
    agent = Held(KEYS[0], KEYS[1], refuses=(AgentMsg.SIGN_REQUEST,))
    async with running(path, agent) as socket_name:
        identities = Identities(config([name]), person, socket_name)
        assert await identities.prepare(BINDING) == publics(0, 1)
        KEYS[0].public.verify(await identities.sign(0, b"data", ED25519, in_thread), b"data")
        assert await identities.sign(1, b"data", ED25519, in_thread) is None
        await identities.aclose()
    assert len(person.told) == 2
    assert all("refused to sign" in text for text in person.told)

"""The client's methods to log in, against servers that answer rightly, wrongly and not at all.

Hazards T25-T29 and T50. The servers here are scripts: each is given a request and says what it
answers, through two whole protocols with their keys and phases.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from gateway import events
from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ssh import messages, transport, wire
from gateway.ssh.keys import PrivateKey
from gateway.ssh.numbers import Msg
from gateway.ssh.protocol import ClientSetup, Protocol, ServerSetup
from gateway.ssh.transport import Phase, Role
from gateway.ssh.userauth import (
    HOSTBOUND,
    HOSTBOUND_EXTENSION,
    INTERACTIVE,
    MAXIMUM_FAILURES,
    MAXIMUM_PARTIAL_SUCCESSES,
    MAXIMUM_QUESTIONS,
    PASSWORD,
    PUBLICKEY,
    ClientAuth,
    ClientAuthState,
    LoginPreferences,
    signed_data,
)
from tests.support.pair import HOST_KEY, USER_KEY, feed, make_pair, take

SECOND = PrivateKey.generate(os.urandom)
STRANGER = PrivateKey.generate(os.urandom)
ED25519 = "ssh-ed25519"
ALL = (PUBLICKEY, INTERACTIVE, PASSWORD)

SUCCESS = messages.UserauthSuccess()
CHANGE = messages.UserauthPasswdChangereq("Choose a new one: ")


def failure(*methods, partial=False):
    return messages.UserauthFailure(methods, partial)


def ok(key):
    return messages.UserauthPkOk(ED25519, key.public.blob)


def question(*prompts, name="", instruction=""):
    return messages.info_request(name, instruction, list(prompts))


class Script:
    """A server's authentication that says what a function returns for each request.

    The function gets the method and its fields and returns a message, or several.
    """

    def __init__(self, server, says):
        self._server = server
        self._says = says
        self.requests = []
        self.responses = []

    def receive_service_request(self, payload):
        self._server.outbound.append(messages.ServiceAccept("ssh-userauth").encode())

    def receive(self, payload, session_id, host_key_blob):
        if payload[0] == Msg.USERAUTH_INFO_RESPONSE:
            response = messages.UserauthInfoResponse.decode_untrusted(payload)
            reader = wire.Reader(response.responses)
            found = [reader.text() for _ in range(response.num_responses)]
            reader.end()
            self.responses.append(found)
            answer = self._says("response", found)
        else:
            request = messages.UserauthRequest.decode_untrusted(payload)
            assert (request.user_name, request.service_name) == ("alice", "ssh-connection")
            self.requests.append(request.method_name)
            answer = self._says(request.method_name, request.method_specific)
        answers = answer if isinstance(answer, list) else [answer]
        for message in answers:
            self._server.outbound.append(message.encode())
        return SUCCESS in answers


class Person:
    """Answers what a login asks, from lists; where a list ends, nobody is there any more."""

    def __init__(self, client, keys, passwords, answers):
        self._auth = client.auth
        self._keys = keys
        self._passwords = list(passwords)
        self._answers = list(answers)

    def answer(self, event):
        auth = self._auth
        match event:
            case events.SignatureWanted(identity, data, algorithm):
                auth.provide_signature(self._keys[identity].sign(data, algorithm))
            case events.PasswordWanted():
                if self._passwords:
                    auth.provide_password(self._passwords.pop(0))
                else:
                    auth.skip_method()
            case events.AnswersWanted():
                if self._answers:
                    auth.provide_answers(self._answers.pop(0))
                else:
                    auth.skip_method()


class Login:
    """A login against a script, to its end."""

    def __init__(self, says, *, methods=ALL, prompts=3, keys=(), passwords=(), answers=()):
        setup = ClientSetup(
            "alice",
            tuple(key.public for key in keys),
            login=LoginPreferences(methods, prompts),
        )
        self.client = Protocol(setup, 0.0)
        self.server = Protocol(ServerSetup((HOST_KEY,), lambda *_: False), 0.0)
        self.script = self.server.auth = Script(self.server, says)
        self.person = Person(self.client, keys, passwords, answers)
        self.events = []
        self.told = []

    def run(self):
        for _ in range(500):
            to_server, to_client = take(self.client), take(self.server)
            if to_server:
                self.told.append(to_server)
                feed(self.server, to_server)
            if to_client:
                feed(self.client, to_client)
            moved = False
            while (event := self.client.next_event()) is not None:
                moved = True
                self.events.append(event)
                if isinstance(event, events.HostKeyReceived):
                    self.client.accept_host_key()
                self.person.answer(event)
            while self.server.next_event():
                pass
            if not (to_server or to_client or moved):
                return self
        raise AssertionError("the login never ended")

    def of_type(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def refusal(self):
        last = self.events[-1]
        assert isinstance(last, events.AuthenticationRefused)
        assert self.client.auth.state is ClientAuthState.EXHAUSTED
        return last.reason

    @property
    def method(self):
        last = self.events[-1]
        assert isinstance(last, events.Authenticated)
        assert self.client.transport.phase is Phase.CONNECTION
        return last.method


@pytest.fixture(autouse=True)
def _servers_take_answers(monkeypatch):
    """Our own server knows no method with answers; the scripts do."""
    allowed = {phase: dict(roles) for phase, roles in transport.ALLOWED.items()}
    allowed[Phase.AUTH][Role.SERVER] |= {Msg.USERAUTH_INFO_RESPONSE}
    monkeypatch.setattr("gateway.ssh.protocol.ALLOWED", allowed)


# ---- password ------------------------------------------------------------------------------------


def takes_password(right, methods=(PASSWORD,)):
    def says(method, fields):
        if method != PASSWORD:
            return failure(*methods)
        request = messages.PasswordRequest.decode_untrusted(fields)
        assert not request.is_change
        return SUCCESS if request.password == right else failure(*methods)

    return says


def test_a_password():
    login = Login(takes_password("open sesame"), passwords=["open sesame"]).run()
    assert login.method == PASSWORD
    assert login.events[-1] == events.Authenticated("alice", PASSWORD, "")
    assert login.script.requests == ["none", PASSWORD]


@pytest.mark.parametrize("password", ["", "grüße", "x" * 10_000, "\udcff"])
def test_any_password_arrives_as_it_was_typed(password):
    seen = []

    def says(method, fields):
        if method == PASSWORD:
            seen.append(fields)
            return SUCCESS
        return failure(PASSWORD)

    assert Login(says, passwords=[password]).run().method == PASSWORD
    assert seen == [b"\0" + wire.text(password)]


@pytest.mark.parametrize("prompts", [0, 1, 3, 5])
def test_a_wrong_password_is_asked_for_as_often_as_configured(prompts):
    login = Login(takes_password("right"), prompts=prompts, passwords=["wrong"] * 9).run()
    assert [event.attempt for event in login.of_type(events.PasswordWanted)] == list(
        range(1, prompts + 1)
    )
    assert login.script.requests == ["none"] + [PASSWORD] * prompts
    if prompts > 1:
        assert login.refusal == f"password: refused {prompts} times"


def test_the_second_password_is_right():
    login = Login(takes_password("right"), passwords=["wrong", "right"]).run()
    assert login.method == PASSWORD


def test_nobody_there_to_give_a_password():
    login = Login(takes_password("right")).run()
    assert login.refusal == "password: nothing was answered"
    assert login.script.requests == ["none"]


def test_an_expired_password_is_a_clear_refusal():
    login = Login(lambda method, _: CHANGE if method == PASSWORD else failure(PASSWORD),
                  passwords=["old"]).run()  # fmt: skip
    assert login.refusal == "password: it has expired: log in with ssh once and choose a new one"
    assert login.script.requests == ["none", PASSWORD]


def test_no_password_leaves_before_the_host_key_is_trusted():
    login = Login(takes_password("right"), passwords=["right"])
    login.client.accept_host_key = lambda: None
    login.run()
    assert login.client.auth.state is ClientAuthState.NOT_STARTED
    assert login.of_type(events.PasswordWanted) == []
    assert login.script.requests == []


def test_secrets_are_in_no_repr():
    for record in (
        messages.PasswordRequest(False, "geheim"),
        messages.UserauthRequest("alice", "ssh-connection", PASSWORD, b"geheim"),
        messages.info_response(["geheim"]),
    ):
        assert "geheim" not in repr(record)


# ---- keyboard-interactive ------------------------------------------------------------------------


def asks(*rounds, end=SUCCESS, methods=(INTERACTIVE,)):
    """A server that asks these questions, one after the other, and then says how it ends."""
    left = []

    def says(method, _fields):
        if method == INTERACTIVE:
            left[:] = rounds
        elif method != "response":
            return failure(*methods)
        return left.pop(0) if left else end

    return says


def test_questions_are_shown_and_answered_in_order():
    login = Login(
        asks(
            question(("Password: ", False), name="PAM", instruction="Two steps"),
            question(("Token", True), ("PIN", False)),
        ),
        answers=[("secret",), ("123456", "42")],
    ).run()
    assert login.method == INTERACTIVE
    first, second = login.of_type(events.AnswersWanted)
    assert first == events.AnswersWanted(
        "PAM", "Two steps", (events.Prompt("Password: ", echo=False),)
    )
    assert [prompt.echo for prompt in second.prompts] == [True, False]
    assert login.script.responses == [["secret"], ["123456", "42"]]


def test_no_prompts_are_answered_with_no_answers():
    login = Login(asks(question(instruction="Welcome")), answers=[()]).run()
    assert login.method == INTERACTIVE
    assert login.script.responses == [[]]


def test_a_server_may_be_content_without_a_question():
    assert Login(asks()).run().method == INTERACTIVE


def test_wrong_answers_are_asked_for_again():
    login = Login(
        asks(question(("Password: ", False)), end=failure(INTERACTIVE)), answers=[("no",)] * 9
    ).run()
    assert login.refusal == "keyboard-interactive: refused 3 times"
    assert login.script.responses == [["no"]] * 3


def test_a_server_that_asks_nothing_and_refuses_is_not_tried_again():
    login = Login(asks(end=failure(INTERACTIVE, PASSWORD)), passwords=()).run()
    assert login.script.requests == ["none", INTERACTIVE]
    assert "keyboard-interactive: refused" in login.refusal


def test_nobody_there_to_answer_goes_on_with_the_next_method():
    methods = (INTERACTIVE, PASSWORD)
    login = Login(
        asks(question(("?", True)), methods=methods, end=failure(*methods)), passwords=["pw"]
    )
    inner = login.script._says
    login.script._says = lambda method, fields: (
        SUCCESS if method == PASSWORD else inner(method, fields)
    )
    assert login.run().method == PASSWORD


@pytest.mark.parametrize("count", [0xFFFF_FFFF, 0x8000_0000, 3, 101])
def test_a_count_of_prompts_that_is_not_true(count):
    """T29: refused by looking at the length."""
    honest = question(("a", True), ("b", False))
    lying = replace(honest, num_prompts=count)
    with pytest.raises(RemoteProtocolError, match=f"announces {count} prompts"):
        Login(asks(lying), answers=[("x",) * 2]).run()


def test_bytes_behind_the_prompts():
    honest = question(("a", True))
    with pytest.raises(RemoteProtocolError, match="after the last field"):
        Login(asks(replace(honest, prompts=honest.prompts + b"\0"))).run()


def test_more_prompts_than_anybody_would_ask():
    many = question(*[("a", True)] * 101)
    with pytest.raises(RemoteProtocolError, match="announces 101 prompts"):
        Login(asks(many)).run()


def test_questions_without_end():
    with pytest.raises(RemoteProtocolError, match="one question after the other"):
        Login(asks(*[question()] * 1000), answers=[()] * 1000).run()


def test_as_many_questions_as_are_allowed():
    login = Login(asks(*[question()] * MAXIMUM_QUESTIONS), answers=[()] * MAXIMUM_QUESTIONS)
    assert login.run().method == INTERACTIVE


def test_the_number_of_answers_is_checked():
    with pytest.raises(LocalProtocolError, match="2 answers to 1 prompts"):
        Login(asks(question(("a", True))), answers=[("x", "y")]).run()


# ---- order and choice of methods -----------------------------------------------------------------


def refuses_all(*methods):
    return lambda method, fields: (
        question(("?", False)) if method == INTERACTIVE else failure(*methods)
    )


@pytest.mark.parametrize(
    ("preferred", "tried"),
    [
        ((PUBLICKEY, INTERACTIVE, PASSWORD), [PUBLICKEY, INTERACTIVE, PASSWORD]),
        ((PASSWORD, INTERACTIVE, PUBLICKEY), [PASSWORD, INTERACTIVE, PUBLICKEY]),
        ((PASSWORD,), [PASSWORD]),
        (("gssapi-with-mic", "hostbased", PASSWORD), [PASSWORD]),
        ((), []),
    ],
)
def test_the_preferred_order_decides(preferred, tried):
    login = Login(
        refuses_all(*reversed(ALL), "hostbased"),
        methods=preferred,
        prompts=1,
        keys=[USER_KEY],
        passwords=["p"],
        answers=[("a",)],
    ).run()
    assert login.script.requests == ["none", *tried]
    assert login.events[-1].methods_that_can_continue == (*reversed(ALL), "hostbased")


def test_the_refusal_says_how_each_method_ended():
    login = Login(
        refuses_all(*ALL), keys=[USER_KEY, SECOND], passwords=["p"] * 3, answers=[("a",)]
    ).run()
    assert login.refusal == (
        "publickey: 2 keys offered; keyboard-interactive: refused; password: refused 3 times"
    )
    assert login.events[-1].method == "publickey, keyboard-interactive, password"


def test_what_the_server_does_not_take_is_not_tried():
    login = Login(refuses_all("hostbased"), keys=[USER_KEY], passwords=["p"]).run()
    assert login.script.requests == ["none"]
    assert login.refusal == "the server takes no method that may be used"


# ---- partial success -----------------------------------------------------------------------------


def chain(*order, right="right"):
    """A server that wants all of these methods, in this order."""
    left = list(order)

    def says(method, fields):
        if method == "none":
            return failure(left[0])
        if method == PUBLICKEY and not fields[0]:
            query = messages.PublickeyQuery.decode_untrusted(fields)
            return messages.UserauthPkOk(query.public_key_algorithm_name, query.public_key_blob)
        if method == INTERACTIVE:
            return question(("?", False))
        if method == PASSWORD and not fields.endswith(right.encode()):
            return failure(left[0])
        left.pop(0)
        return failure(left[0], partial=True) if left else SUCCESS

    return says


@pytest.mark.parametrize(
    "order",
    [
        (PUBLICKEY, PASSWORD),
        (PASSWORD, PUBLICKEY),
        (PUBLICKEY, INTERACTIVE),
        (INTERACTIVE, PUBLICKEY),
        (PASSWORD, INTERACTIVE, PUBLICKEY),
    ],
)
def test_two_methods_one_after_the_other(order):
    login = Login(
        chain(*order), keys=[USER_KEY], passwords=["wrong", "right"], answers=[("a",)] * 2
    ).run()
    assert login.method == order[-1]
    partial = login.of_type(events.PartiallyAuthenticated)
    assert [event.method for event in partial] == list(order[:-1])
    assert partial[0].methods_that_can_continue == (order[1],)


def test_two_keys_both_needed():
    login = Login(chain(PUBLICKEY, PUBLICKEY), keys=[USER_KEY, SECOND]).run()
    assert login.events[-1].fingerprint == SECOND.public.fingerprint
    wanted = login.of_type(events.SignatureWanted)
    assert [event.identity for event in wanted] == [0, 1]


def test_a_key_that_did_its_part_is_not_offered_again():
    login = Login(chain(PUBLICKEY, PUBLICKEY), keys=[USER_KEY]).run()
    assert login.script.requests == ["none", PUBLICKEY, HOSTBOUND]
    assert login.refusal == "publickey: accepted, but more is asked for"


def test_a_key_that_was_refused_first_may_be_the_second_proof():
    """After a partial success keys are offered again from the first."""
    state = {"done": False}

    def says(method, fields):
        if method == "none":
            return failure(PUBLICKEY)
        form = messages.HostboundRequest if method == HOSTBOUND else messages.PublickeyQuery
        blob = form.decode_untrusted(fields).public_key_blob
        expected = (USER_KEY if state["done"] else SECOND).public.blob
        if blob != expected:
            return failure(PUBLICKEY)
        if not fields[0]:
            return messages.UserauthPkOk(ED25519, blob)
        if state["done"]:
            return SUCCESS
        state["done"] = True
        return failure(PUBLICKEY, partial=True)

    login = Login(says, keys=[USER_KEY, SECOND]).run()
    assert login.events[-1].fingerprint == USER_KEY.public.fingerprint


def test_partial_successes_without_end():
    with pytest.raises(RemoteProtocolError, match="one proof after the other"):
        Login(
            lambda method, _: failure(PASSWORD, partial=method != "none"),
            prompts=1000,
            passwords=["p"] * 1000,
        ).run()
    few = Login(
        lambda method, _: failure(PASSWORD, partial=method != "none"),
        prompts=MAXIMUM_PARTIAL_SUCCESSES,
        passwords=["p"] * 1000,
    ).run()
    assert few.refusal == "password: accepted, but more is asked for"


@pytest.mark.parametrize("method", ["none", PUBLICKEY])
def test_a_partial_success_for_no_proof_means_nothing(method):
    login = Login(lambda _m, _f: failure(PUBLICKEY, partial=True), keys=[USER_KEY]).run()
    assert login.of_type(events.PartiallyAuthenticated) == []
    assert login.refusal == "publickey: 1 key offered"


# ---- messages that answer nothing ----------------------------------------------------------------

INFO = question(("?", True))
METHODS = {
    "none": "none",
    "key offered": PUBLICKEY,
    "signature sent": PUBLICKEY,
    "password sent": PASSWORD,
    "keyboard-interactive sent": INTERACTIVE,
    "answers sent": INTERACTIVE,
}
OUT_OF_STATE = [
    ("none", [INFO, CHANGE, ok(USER_KEY)]),
    ("key offered", [SUCCESS, CHANGE, INFO]),
    ("signature sent", [INFO, CHANGE, ok(USER_KEY)]),
    ("password sent", [INFO]),
    ("keyboard-interactive sent", [ok(USER_KEY), CHANGE]),
    ("answers sent", [ok(USER_KEY), CHANGE]),
]


@pytest.mark.parametrize(
    ("state", "message"), [(state, message) for state, found in OUT_OF_STATE for message in found]
)
def test_a_message_of_another_method(state, message):
    """60 belongs to the method that is tried; so PK_OK is no INFO_REQUEST and the other way."""
    offered = METHODS[state] if state != "none" else PASSWORD

    def says(method, fields):
        if method == "none":
            return message if state == "none" else failure(offered)
        if method == PUBLICKEY and state == "signature sent" and not fields[0]:
            return ok(USER_KEY)
        if method == INTERACTIVE and state == "answers sent":
            return INFO
        return message

    login = Login(says, keys=[USER_KEY], passwords=["p"], answers=[("a",)] * 2)
    with pytest.raises(RemoteProtocolError):
        login.run()
    login.events += iter(login.client.next_event, None)
    assert login.of_type(events.Authenticated) == []
    assert login.client.transport.phase is Phase.CLOSED


@pytest.mark.parametrize("message", [SUCCESS, failure(PASSWORD), CHANGE, INFO, ok(USER_KEY)])
@pytest.mark.parametrize("method", [PUBLICKEY, PASSWORD, INTERACTIVE])
def test_nothing_may_come_while_the_person_is_asked(method, message):
    first = {PUBLICKEY: ok(USER_KEY), INTERACTIVE: INFO, PASSWORD: None}[method]

    def says(name, _fields):
        if name == "none":
            return [failure(method)] if first else [failure(method), message]
        return [first, message]

    login = Login(says, keys=[USER_KEY])
    login.person.answer = lambda event: None
    with pytest.raises(RemoteProtocolError, match="answers nothing"):
        login.run()


@pytest.mark.parametrize("message", [SUCCESS, failure(PASSWORD), CHANGE])
def test_nothing_may_come_when_all_is_tried(message):
    login = Login(lambda *_: [failure("hostbased"), message])
    with pytest.raises(RemoteProtocolError, match="answers nothing"):
        login.run()


def test_answers_to_our_own_server_are_refused(monkeypatch):
    """Our server asks nothing, so 61 is in no table of its."""
    monkeypatch.undo()
    pair = make_pair(authorize=lambda *_: False)
    pair.pump()
    assert pair.server.transport.phase is Phase.AUTH
    pair.client.outbound.append(messages.info_response(["x"]).encode())
    with pytest.raises(RemoteProtocolError, match="message 61 is not allowed"):
        pair.pump()


def test_answers_that_nobody_asked_for_are_our_own_error():
    client = make_pair().client
    for call in (
        lambda: client.auth.provide_password("p"),
        lambda: client.auth.provide_answers(()),
        client.auth.skip_method,
        client.auth.skip_identity,
    ):
        with pytest.raises(LocalProtocolError):
            call()


# ---- signature algorithms ------------------------------------------------------------------------


class Several:
    """A public key that can sign in more than one way, as RSA keys can."""

    algorithm = "ssh-rsa"
    blob = USER_KEY.public.blob
    fingerprint = "SHA256:several"
    signature_algorithms = ("rsa-sha2-512", "rsa-sha2-256")


def dialogue(extensions, keys, preferences=None):
    sent, emitted = [], []
    auth = ClientAuth(
        "alice", keys, preferences or LoginPreferences(), extensions=extensions,
        send=sent.append, emit=emitted.append,
    )  # fmt: skip
    auth.start(bytes(32), HOST_KEY.public.blob)
    auth.receive_service_accept(messages.ServiceAccept("ssh-userauth").encode())
    auth.receive(failure(PUBLICKEY).encode())
    return auth, sent, emitted


@pytest.mark.parametrize(
    ("extensions", "chosen"),
    [
        ({}, "rsa-sha2-512"),
        ({"server-sig-algs": b"ssh-ed25519,rsa-sha2-256,rsa-sha2-512"}, "rsa-sha2-512"),
        ({"server-sig-algs": b"rsa-sha2-256,ssh-rsa"}, "rsa-sha2-256"),
        ({"server-sig-algs": b"ssh-rsa"}, None),
        ({"server-sig-algs": b""}, None),
    ],
)
def test_the_servers_signature_algorithms_decide(extensions, chosen):
    _auth, sent, emitted = dialogue(extensions, [Several()])
    if chosen is None:
        assert emitted[-1].reason == "publickey: no keys offered"
        return
    request = messages.UserauthRequest.decode_untrusted(sent[-1])
    query = messages.PublickeyQuery.decode_untrusted(request.method_specific)
    assert query.public_key_algorithm_name == chosen


def test_a_certificate_is_chosen_by_the_signature_that_is_made_with_it():
    key = Several()
    key.signature_algorithms = tuple(
        f"{name}-cert-v01@openssh.com" for name in Several.signature_algorithms
    )
    _auth, sent, _ = dialogue({"server-sig-algs": b"ssh-ed25519,rsa-sha2-256"}, [key])
    request = messages.UserauthRequest.decode_untrusted(sent[-1])
    query = messages.PublickeyQuery.decode_untrusted(request.method_specific)
    assert query.public_key_algorithm_name == "rsa-sha2-256-cert-v01@openssh.com"


@pytest.mark.parametrize(
    ("allowed", "key", "chosen"),
    [
        (("rsa-sha2-256",), Several(), "rsa-sha2-256"),
        (("rsa-sha2-256", "rsa-sha2-512"), Several(), "rsa-sha2-512"),
        (("ssh-ed25519",), Several(), None),
        (("ssh-ed25519",), USER_KEY.public, "ssh-ed25519"),
        (("rsa-sha2-512",), USER_KEY.public, None),
        ((), USER_KEY.public, None),
    ],
)
def test_our_own_choice_of_signature_algorithms(allowed, key, chosen):
    preferences = LoginPreferences(signature_algorithms=allowed)
    _auth, sent, emitted = dialogue({}, [key], preferences)
    if chosen is None:
        assert emitted[-1].reason == "publickey: no keys offered"
    else:
        request = messages.UserauthRequest.decode_untrusted(sent[-1])
        query = messages.PublickeyQuery.decode_untrusted(request.method_specific)
        assert query.public_key_algorithm_name == chosen


@pytest.mark.parametrize("name", ["rsa-sha2-512", "ssh-rsa"])
def test_pk_ok_may_name_the_signature_or_the_key(name):
    auth, _sent, emitted = dialogue({}, [Several()])
    auth.receive(messages.UserauthPkOk(name, Several.blob).encode())
    assert emitted[-1].algorithm == "rsa-sha2-512"


def test_a_key_of_one_algorithm_is_tried_whatever_the_server_lists():
    _auth, sent, _ = dialogue({"server-sig-algs": b"rsa-sha2-512"}, [USER_KEY.public])
    assert messages.UserauthRequest.decode_untrusted(sent[-1]).method_name == PUBLICKEY


# ---- signatures bound to the host ----------------------------------------------------------------


def test_our_two_ends_bind_signatures_to_the_host():
    pair = make_pair()
    seen = []
    receive = pair.server.auth.receive

    def spy(payload, session_id, host_key_blob):
        request = messages.UserauthRequest.decode_untrusted(payload)
        seen.append((request.method_name, request.method_specific))
        return receive(payload, session_id, host_key_blob)

    pair.server.auth.receive = spy
    pair.pump()
    assert [name for name, _ in seen] == ["none", PUBLICKEY, HOSTBOUND]
    fields = messages.HostboundRequest.decode_untrusted(seen[-1][1])
    assert fields.server_host_key == HOST_KEY.public.blob
    assert pair.client.transport.peer_extensions[HOSTBOUND_EXTENSION] == b"0"
    assert pair.server.transport.phase is Phase.CONNECTION


@pytest.mark.parametrize("value", [None, b"1", b""])
def test_no_binding_unless_it_was_announced(value):
    extensions = {} if value is None else {HOSTBOUND_EXTENSION: value}
    auth, sent, emitted = dialogue(extensions, [USER_KEY.public])
    auth.receive(ok(USER_KEY).encode())
    assert emitted[-1].data == signed_data(
        bytes(32), "alice", "ssh-connection", ED25519, USER_KEY.public.blob
    )
    auth.provide_signature(b"s")
    assert messages.UserauthRequest.decode_untrusted(sent[-1]).method_name == PUBLICKEY


def test_no_binding_if_that_is_not_wanted():
    """PubkeyAuthentication unbound."""
    preferences = LoginPreferences(names_host=False)
    auth, sent, _ = dialogue({HOSTBOUND_EXTENSION: b"0"}, [USER_KEY.public], preferences)
    auth.receive(ok(USER_KEY).encode())
    auth.provide_signature(b"s")
    assert messages.UserauthRequest.decode_untrusted(sent[-1]).method_name == PUBLICKEY


def test_an_announcement_during_the_login_changes_nothing():
    extensions = {}
    auth, sent, _ = dialogue(extensions, [USER_KEY.public])
    auth.receive(ok(USER_KEY).encode())
    extensions[HOSTBOUND_EXTENSION] = b"0"
    auth.provide_signature(b"s")
    assert messages.UserauthRequest.decode_untrusted(sent[-1]).method_name == PUBLICKEY


def at_the_server(authorize=lambda _user, key: key == USER_KEY.public):
    """A pair whose server was refused a login and waits for the next request."""
    pair = make_pair(authorize=authorize)
    pair.client.auth._identities = ()
    pair.pump()
    pair.server_events.clear()
    return pair


def bound(pair, *, host=HOST_KEY, signed_for=None, key=USER_KEY, has_signature=True):
    blob = host.public.blob
    if not has_signature:
        fields = messages.HostboundQuery(False, ED25519, key.public.blob, blob).encode()
    else:
        data = signed_data(
            pair.server.transport.session_id, "alice", "ssh-connection", ED25519,
            key.public.blob, blob if signed_for is None else signed_for,
        )  # fmt: skip
        signature = key.sign(data, ED25519)
        fields = messages.HostboundRequest(True, ED25519, key.public.blob, blob, signature).encode()
    return messages.UserauthRequest("alice", "ssh-connection", HOSTBOUND, fields)


def send(pair, message):
    pair.client.auth.state = ClientAuthState.NONE_SENT  # it takes what the server answers
    pair.client.outbound.append(message.encode())
    data = take(pair.client)
    feed(pair.server, data)
    return list(iter(pair.server.next_event, None))


def test_the_server_takes_bound_signatures():
    pair = at_the_server()
    assert send(pair, bound(pair, has_signature=False)) == []
    (done,) = send(pair, bound(pair))
    assert done == events.Authenticated("alice", PUBLICKEY, USER_KEY.public.fingerprint)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"host": STRANGER}, "another host key"),
        ({"host": STRANGER, "has_signature": False}, "another host key"),
        ({"signed_for": STRANGER.public.blob}, "signature"),
        ({"key": STRANGER}, "not authorized"),
    ],
)
def test_bound_signatures_for_another_host_or_by_a_stranger(options, reason):
    pair = at_the_server()
    (refused,) = send(pair, bound(pair, **options))
    assert isinstance(refused, events.AuthenticationRefused)
    assert reason in refused.reason
    assert pair.server.transport.phase is Phase.AUTH


def test_a_bound_signature_does_not_pass_as_a_plain_one():
    pair = at_the_server()
    full = messages.HostboundRequest.decode_untrusted(bound(pair).method_specific)
    fields = messages.PublickeyRequest(True, ED25519, full.public_key_blob, full.signature)
    (refused,) = send(
        pair, messages.UserauthRequest("alice", "ssh-connection", PUBLICKEY, fields.encode())
    )
    assert "signature" in refused.reason


def test_bound_attempts_count():
    pair = at_the_server()
    for _ in range(MAXIMUM_FAILURES - 1):
        send(pair, bound(pair, host=STRANGER))
    with pytest.raises(RemoteProtocolError, match="too many attempts"):
        send(pair, bound(pair, host=STRANGER))

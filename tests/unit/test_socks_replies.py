"""Channel open failures in the words of real servers, and the SOCKS code each deserves (T60)."""

import pytest

from gateway.socks.replies import ReplyCode, reply_for_open_failure

R = ReplyCode

# Texts that OpenSSH 9.2 and AsyncSSH 2.22 were seen to send on Linux, those that glibc, musl,
# macOS, the BSDs and Windows have in their tables, and Dropbear's and Go's frames around them.
CONNECT_FAILED = {
    R.CONNECTION_REFUSED: [
        "Connection refused",
        "connection refused",
        "[Errno 111] Connect call failed ('127.0.0.1', 1)",
        "[Errno 61] Connect call failed ('127.0.0.1', 1)",
        "Multiple exceptions: [Errno 101] Network is unreachable, [Errno 111] Connect call failed",
        "dial tcp 127.0.0.1:1: connect: connection refused",
        "No connection could be made because the target machine actively refused it",
    ],
    R.HOST_UNREACHABLE: [
        "No route to host",
        "Host is unreachable",
        "host unreachable",
        "Host is down",
        "[Errno 113] Connect call failed ('10.9.9.9', 80)",
        "[Errno 65] No route to host",
        "Name or service not known",
        "name or service is not known",
        "No address associated with hostname",
        "no address associated with name",
        "Temporary failure in name resolution",
        "[Errno -3] Temporary failure in name resolution",
        "Non-recoverable failure in name resolution",
        "Address family for hostname not supported",
        "nodename nor servname provided, or not known",
        "hostname nor servname provided, or not known",
        "Name does not resolve",
        "Name could not be resolved at this time",
        "Name has no usable address",
        "Non-recoverable error",
        "Try again",
        "unknown host",
        "No such host is known. ",
        "This is usually a temporary error during hostname resolution",
        "Error resolving 'nosuch.invalid' port '80'. Name or service not known",
        "dial tcp: lookup nosuch.invalid on 127.0.0.53:53: no such host",
        "dial tcp: lookup a on 10.0.0.1:53: read udp 10.0.0.2:1->10.0.0.1:53: i/o timeout",
        "dial tcp: lookup a on [::1]:53: read: connection refused",
    ],
    R.NETWORK_UNREACHABLE: [
        "Network is unreachable",
        "Network unreachable",
        "Network is down",
        "[Errno 101] Network is unreachable",
        "[Errno 51] Connect call failed ('2001:db8::1', 80, 0, 0)",
        "open failed",
    ],
    R.TTL_EXPIRED: [
        "Connection timed out",
        "Operation timed out",
        "timed out",
        "[Errno 110] Connect call failed ('192.0.2.1', 80)",
        "dial tcp 192.0.2.1:80: i/o timeout",
    ],
    R.NOT_ALLOWED: ["Permission denied", "Operation not permitted", "[Errno 13] Permission denied"],
    R.GENERAL_FAILURE: [
        "",
        "   ",
        "unexpected failure",
        "Too many open files",
        "Cannot assign requested address",
        "Memory allocation failure",
        "retry; open failed earlier",
        "\x00\xff\u202e",
        "x" * 1_000_000 + "Connection refused",
    ],
}


@pytest.mark.parametrize(
    ("reply", "description"),
    [(reply, text) for reply, texts in CONNECT_FAILED.items() for text in texts],
    ids=lambda value: str(value)[:40],
)
def test_connect_failed(reply, description):
    for text in (description, description.upper(), description.lower(), f" {description}\n"):
        assert reply_for_open_failure(2, text) is reply


@pytest.mark.parametrize("description", ["", "Connection refused", "open failed"])
@pytest.mark.parametrize(
    ("reason_code", "reply"),
    [
        (0, R.GENERAL_FAILURE),
        (1, R.NOT_ALLOWED),
        (3, R.COMMAND_NOT_SUPPORTED),
        (4, R.GENERAL_FAILURE),
        (5, R.GENERAL_FAILURE),
        (0xFE000000, R.GENERAL_FAILURE),
        (0xFFFFFFFF, R.GENERAL_FAILURE),
    ],
)
def test_other_reasons_need_no_words(reason_code, reply, description):
    assert reply_for_open_failure(reason_code, description) is reply


def test_no_failure_is_called_a_success():
    texts = [text for texts in CONNECT_FAILED.values() for text in texts]
    for reason_code in range(6):
        for text in texts:
            assert reply_for_open_failure(reason_code, text) is not R.SUCCEEDED


def test_numbers_of_rfc_1928():
    assert [(code.value, code.name) for code in ReplyCode] == [
        (0, "SUCCEEDED"),
        (1, "GENERAL_FAILURE"),
        (2, "NOT_ALLOWED"),
        (3, "NETWORK_UNREACHABLE"),
        (4, "HOST_UNREACHABLE"),
        (5, "CONNECTION_REFUSED"),
        (6, "TTL_EXPIRED"),
        (7, "COMMAND_NOT_SUPPORTED"),
        (8, "ADDRESS_TYPE_NOT_SUPPORTED"),
    ]

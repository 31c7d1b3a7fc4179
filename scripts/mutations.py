"""`scripts/mutations`: code that is wrong on purpose, and whether the tests of the hazards see it.

Each mutation is one text in one file and what stands there instead, with the tests of
`tests/HAZARDS.md` that have to fail then. All is done in a copy of the tree. It fails if one of the
tests passes, or fails without a mutation, or if the text is not there any more.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import copy2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[1]
TESTS_FAILED = 1  # pytest's exit status; others mean that it could not run them
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Mutation:
    """``hazard`` is its number, ``group`` the letter of its part of the table.

    ``tests`` are test functions, each of which has to fail in at least one of its cases.
    """

    group: str
    hazard: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]

    @property
    def shown(self) -> str:
        """One line."""
        first = self.text.strip().partition("\n")[0]
        return f"{self.group} {self.hazard:<3} {self.file}: {first}"

    def apply(self, source: str) -> str:
        """Return the file's source, mutated; ValueError if the text is not there exactly once."""
        if source.count(self.text) != 1:
            raise ValueError(f"{self.file} has {source.count(self.text)} times: {self.text}")
        return source.replace(self.text, self.replacement)


def _row(group: str, hazard: str, change: tuple[str, str, str], tests: str) -> Mutation:
    """Make a mutation of a file in gateway/; ``tests`` are "file::name name", without test_."""
    file, text, replacement = change
    named: list[str] = []
    path = ""
    for word in tests.split():
        before, _, name = word.rpartition("::")
        path = before or path
        named.append(f"tests/{path}.py::test_{name}")
    return Mutation(group, hazard, f"gateway/{file}", text, replacement, tuple(named))


MUTATIONS = (
    # -- A: transport and key exchange -------------------------------------------------------------
    _row("A", "T3", (
        "ssh/transport.py",
        "if self.strict and self.inbound.packets_since_newkeys != 1:",
        "if self.strict and self.inbound.packets_since_newkeys < 1:",
    ), """pair/test_phases::strict_nothing_may_come_before_kexinit
          pair/test_downgrade::a_sequence_number_that_wrapped_does_not_hide_what_came_before_kexinit
       """),
    _row("A", "T2", (
        "ssh/transport.py",
        "self.inbound.start_cipher(cipher, reset_sequence_number=self.strict)",
        "self.inbound.start_cipher(cipher, reset_sequence_number=False)",
    ), "pair/test_phases::strict_every_newkeys_resets_each_direction_by_itself"),
    _row("A", "T4", (
        "ssh/transport.py",
        "(Phase.NEWKEYS_STRICT, _DISCONNECT | {Msg.NEWKEYS}, _DISCONNECT | {Msg.NEWKEYS}),",
        "(Phase.NEWKEYS_STRICT, _GENERIC | {Msg.NEWKEYS}, _GENERIC | {Msg.NEWKEYS}),",
    ), "pair/test_phases::strict_nothing_harmless_between_kexinit_and_newkeys"),
    _row("A", "T9", (
        "ssh/packets.py",
        "if (\n            not MINIMUM_PACKET_LENGTH <= packet_length <= MAXIMUM_PACKET_LENGTH\n",
        "if (\n            not MINIMUM_PACKET_LENGTH <= packet_length\n",
    ), "unit/test_packets::a_bad_length_is_refused_from_its_four_bytes_alone"),
    _row("A", "T14", (
        "ssh/transport.py",
        "if self._rekey_tokens < 1:",
        "if self._rekey_tokens < -1_000_000:",
    ), "pair/test_rekey::a_peer_that_rekeys_for_nothing_runs_out_of_tokens"),
    _row("A", "T20", (
        "ssh/transport.py",
        "if self.host_key_blob and blob != self.host_key_blob:",
        "if self.host_key_blob and len(blob) < len(self.host_key_blob):",
    ), """pair/test_phases::another_host_key_at_a_rekey_ends_the_link
          pair/test_downgrade::no_other_host_key_of_any_type_is_taken_at_a_rekey"""),
    # -- B: logging in -----------------------------------------------------------------------------
    _row("B", "T25", (
        "ssh/transport.py",
        "_GENERIC | {Msg.USERAUTH_REQUEST},",
        "_GENERIC | {Msg.USERAUTH_REQUEST, Msg.USERAUTH_SUCCESS},",
    ), """pair/test_login::a_client_cannot_declare_itself_logged_in
          pair/test_phases::messages_that_only_the_other_role_may_send_are_in_no_table"""),
    _row("B", "T27", (
        "ssh/serverauth.py",
        "elif request.user_name != self.user_name:",
        "elif request.user_name != self.user_name and not self._signed:",
    ), "pair/test_who_logs_in::a_user_that_changes_after_a_partial_success_ends_the_link"),
    _row("B", "T28", (
        "ssh/serverauth.py",
        "self._requests += 1",
        "self._requests += not self._signed",
    ), "pair/test_who_logs_in::no_mixture_of_attempts_is_endless"),
    _row("B", "T33", (
        "serving/people.py",
        "elif (found := user.keys.find(key, address, now_s)) is None:",
        "elif user is _NOBODY or (found := user.keys.find(key, address, now_s)) is None:",
    ), "pair/test_who_logs_in::nobody_learns_which_users_there_are"),
    _row("B", "T35", (
        "ssh/serverauth.py",
        "if key is None or offer.algorithm not in key.signature_algorithms:",
        "if key is None:",
    ), "pair/test_login::a_bad_attempt_fails_and_the_link_lives"),
    _row("B", "T36", (
        "ssh/certificates.py",
        "if not any(principal in accepted_principals for principal in certificate.principals):",
        ("if certificate.principals and not any(map(accepted_principals.__contains__, "
        "certificate.principals)):"),
    ), """unit/test_certificates::principals_of_a_user
          unit/test_authorized_keys::principals_replace_the_user_name"""),
    _row("B", "T37", (
        "ssh/keytypes.py",
        "missing = demanded_flags & ~flags",
        "missing = demanded_flags & ~flags & USER_VERIFIED",
    ), """pair/test_who_logs_in::a_security_key_that_nobody_touched_lets_nobody_in
          unit/test_keytypes::a_security_key_must_have_been_touched"""),
    # -- C: channels -------------------------------------------------------------------------------
    _row("C", "T38", (
        "ssh/channel.py", "if announced < 9:", "if announced < 1:",
    ), "pair/test_channels::packet_sizes_that_lead_nowhere_are_refused"),
    _row("C", "T39", (
        "ssh/channel.py", "if window > 0xFFFF_FFFF:", "if window > 0x1_0000_0000:",
    ), "pair/test_channels::a_window_that_overflows_ends_the_link"),
    _row("C", "T40", (
        "ssh/channel.py",
        "if length > window.granted:",
        "if length > window.granted + 900:",
    ), "pair/test_channels::data_beyond_the_window_ends_the_link"),
    _row("C", "T43", (
        "ssh/channel.py",
        '"""Consume extended data that nobody wants."""\n    return len(data)',
        '"""Consume extended data that nobody wants."""\n    return 0 * len(data)',
    ), """pair/test_channels::extended_data_of_any_type_never_pins_the_window
          net/test_relay::extended_data_is_dropped_and_its_credit_given_back"""),
    _row("C", "T44", (
        "ssh/connection.py",
        ("self._send_failure(channel.remote_channel, reason_code, description)\n"
        "        self._forget(channel)"),
        "self._send_failure(channel.remote_channel, reason_code, description)",
    ), "pair/test_channels::refused_opens_leave_nothing"),
    _row("C", "T48", (
        "ssh/channel.py",
        "self.remote_window -= data_length\n        self.bytes_out += data_length\n\n",
        ("self.remote_window -= data_length\n"
        "        self.bytes_out = self.bytes_out + data_length & 0xFFFF_FFFF\n\n"),
    ), "pair/test_large::counters_of_a_channel_and_of_its_link_go_on"),
    # -- D: forwarding and SOCKS -------------------------------------------------------------------
    _row("D", "T54", (
        "net/dial.py",
        "for address in addresses:\n            permit(address.ip)",
        "for address in addresses[:1]:\n            permit(address.ip)",
    ), """unit/test_dial::every_address_is_checked_before_any_is_dialled
          net/test_serve_hazards::names_that_lead_elsewhere"""),
    _row("D", "T60", (
        "socks/replies.py",
        "1: ReplyCode.NOT_ALLOWED,  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED",
        "1: ReplyCode.SUCCEEDED,  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED",
    ), "unit/test_socks_replies::no_failure_is_called_a_success other_reasons_need_no_words"),
    _row("D", "T61", (
        "net/relay.py",
        "if event & poller.BROKEN and self._upload_is_over:",
        "if event & poller.BROKEN and self._is_over:",
    ), "net/test_relay::a_reset_in_any_other_state_closes_the_channel"),
    _row("D", "T62", (
        "ssh/connection.py",
        "if channel.send_state is SendState.CLOSE_SENT:  # it had been abandoned",
        "if channel.is_over:  # it had been abandoned",
    ), """pair/test_channels::an_abandoned_open
          pair/test_channels::ten_thousand_abandoned_opens_leave_nothing"""),
    _row("D", "T66", (
        "forward/table.py",
        "if any(not ip_address(",
        "if all(not ip_address(",
    ), "net/test_forward_local::a_socks_proxy_for_everybody_is_said_aloud"),
    _row("D", "T68", (
        "policy/rules.py",
        "for allow in (False, True):",
        "for allow in (True, False):",
    ), """unit/test_policy_rules::deny_wins_whatever_the_order
          unit/test_policy_matrix::each_layer_decides_by_itself"""),
    # -- E: the tunnel -----------------------------------------------------------------------------
    _row("E", "T69", (
        "tun/packet.py",
        "if data[:FAMILY_SIZE] != family:",
        "if len(data[:FAMILY_SIZE]) != len(family):",
    ), """unit/test_tun_packet::ip
          net/test_tun_pump::a_bad_message_is_counted_and_the_tunnel_goes_on"""),
    _row("E", "T69", (
        "tun/packet.py",
        "return None if stated + length_excludes == length else Drop.MALFORMED",
        "return None if stated + length_excludes <= length else Drop.MALFORMED",
    ), "unit/test_tun_packet::ip"),
    _row("E", "T70", (
        "tun/packet.py",
        "pair = bytes(packet[_IPV4_PAIR if is_ipv4 else _IPV6_PAIR])",
        "pair = bytes(packet[_IPV4_PAIR if is_ipv4 else _IPV6_PAIR][:4])",
    ), "unit/test_tun_packet::each_pair_of_addresses_is_asked_about_once"),
    _row("E", "T93", (
        "tun/virtio.py",
        "least <= gso_size <= mtu - end",
        "1 <= gso_size <= mtu - end",
    ), "unit/test_tun_virtio::dropped fuzz/test_offload_fuzz::a_device_is_given_what_may_be_given"),
    _row("E", "T93", (
        "tun/virtio.py",
        " or hdr_len > length:",
        ":",
    ), "unit/test_tun_virtio::dropped"),
    # -- F: trust, names and files -----------------------------------------------------------------
    _row("F", "T83", (
        "ssh/known_hosts.py",
        ("except CertificateError as exc:\n                    problem = str(exc)\n"
        "                    break\n"),
        "except Exception as exc:\n                    problem = str(exc)\n",
    ), "unit/test_trust_faults::a_good_key_is_not_trusted_if_anything_fails"),
    _row("F", "T84", (
        "config/addresses.py",
        '_check_characters("user name", name, _IN_NO_USER, where)',
        '_check_characters("user name", name, frozenset(), where)',
    ), "unit/test_config_names::a_user_of_the_command_line a_user_of_the_configuration"),
    _row("F", "T86", (
        "ssh/authorized_keys.py",
        "    except ValueError:\n        refused[blob] = number\n        raise",
        "    except ValueError:\n        raise",
    ), "unit/test_authorized_keys::a_key_whose_first_line_cannot_be_honoured_stays_useless"),
    _row("F", "T86", (
        "config/checked_files.py",
        "if status.st_mode & forbidden & ~ours:",
        "if status.st_mode & forbidden == forbidden:",
    ), """unit/test_serve_flags::keys_that_others_may_change
          unit/test_gateway_toml::files_that_others_may_change"""),
    _row("F", "T87", (
        "serving/authorize.py",
        "*(key.decide_open(host, port, address) for key in limits),",
        "*(key.decide_open(host, port, address) for key in limits[-1:]),",
    ), "net/test_serve_limits::the_restrictions_of_every_key_hold"),
    _row("F", "T88", (
        "ssh/known_hosts.py",
        "revoked |= {key.key.blob, key.ca_key.blob}",
        "revoked |= {key.key.blob}",
    ), "unit/test_known_hosts::certificates"),
    _row("F", "T90", (
        "ssh/keytypes.py",
        "if not self._verifier.check(algorithm, signature, data):",
        "if not signature:",
    ), "unit/test_keytypes::a_wrong_rsa_signature_never_leaves"),
)  # fmt: skip


def main() -> int:
    """Try them; 0 if each of their tests failed because of them."""
    parser = argparse.ArgumentParser(prog="scripts/mutations", description=__doc__)
    parser.add_argument("words", nargs="*", help="a group, a hazard or a part of a file's name")
    words = parser.parse_args().words
    chosen = [m for m in MUTATIONS if not words or any(is_meant(m, word) for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        began_s = time.monotonic()
        bad = not is_sound(Path(folder), chosen)
        for mutation in chosen:
            problem = attempt(Path(folder), mutation)
            bad = bad or bool(problem)
            print(f"{problem or 'killed':<9} {mutation.shown}", flush=True)
    print(f"{len(chosen)} mutations in {time.monotonic() - began_s:.0f} s")
    return int(bad or not chosen)


def is_meant(mutation: Mutation, word: str) -> bool:
    return word in (mutation.group, mutation.hazard) or (len(word) > 3 and word in mutation.file)


def copy_tree(folder: Path) -> None:
    """Copy what git knows, and what it would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy2(ROOT / name, folder / name)


def is_sound(folder: Path, chosen: list[Mutation]) -> bool:
    """Whether all tests pass as the code is, and the copy's code is what they are about."""
    code, _ = run(folder, "-c", "import gateway; print(gateway.__file__)")
    tests = sorted({test for mutation in chosen for test in mutation.tests})
    status, output = run_tests(folder, tests)
    if status or not code.startswith(str(folder)):
        print(f"broken    without any mutation: {code}\n{output}")
        return False
    return True


def attempt(folder: Path, mutation: Mutation) -> str:
    """Try one; return what is wrong, in a word, or nothing."""
    path = folder / mutation.file
    source = path.read_text()
    try:
        path.write_text(mutation.apply(source))
        status, output = run_tests(folder, mutation.tests)
    except ValueError as error:
        print(error)
        return "outdated"
    finally:
        path.write_text(source)
    failed = set(re.findall(r"^FAILED (tests/\S+?::\w+)", output, re.MULTILINE))
    if status != TESTS_FAILED:
        print(output if status else "no test failed")
        return "broken" if status else "survived"
    if passed := set(mutation.tests) - failed:
        print("passed all the same:", *sorted(passed))
        return "survived"
    return ""


def run_tests(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
    output, status = run(
        folder, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider", *tests
    )
    return status, output


def run(folder: Path, *arguments: str) -> tuple[str, int]:
    """Run Python in the copy; return what it said, and its exit status."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, timeout=TIMEOUT_S, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.stdout, done.returncode


if __name__ == "__main__":
    sys.exit(main())

"""--via: URLs of proxies, and files of them."""

import pytest

from gateway.config.proxies import MAXIMUM_PROXIES, parse_proxies, parse_proxy
from gateway.errors import ConfigError
from gateway.socks.upstream import Scheme, UpstreamProxy


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("socks5h://localhost:9050", UpstreamProxy(Scheme.SOCKS5H, "localhost", 9050)),
        ("SOCKS5h://LocalHost", UpstreamProxy(Scheme.SOCKS5H, "localhost", 1080)),
        ("socks5://10.0.0.1/", UpstreamProxy(Scheme.SOCKS5, "10.0.0.1", 1080)),
        ("socks4a://bob@[::1]:7", UpstreamProxy(Scheme.SOCKS4A, "::1", 7, "bob")),
        ("http://proxy", UpstreamProxy(Scheme.HTTP, "proxy", 80)),
        ("http://a:b@proxy:3128", UpstreamProxy(Scheme.HTTP, "proxy", 3128, "a", "b")),
        ("http://a:@proxy", UpstreamProxy(Scheme.HTTP, "proxy", 80, "a", "")),
        ("http://@proxy", UpstreamProxy(Scheme.HTTP, "proxy", 80)),
        ("socks5h://a%40b:c%3A%25@p", UpstreamProxy(Scheme.SOCKS5H, "p", 1080, "a@b", "c:%")),
        ("socks5h://a:x@y@p", UpstreamProxy(Scheme.SOCKS5H, "p", 1080, "a", "x@y")),
    ],
)
def test_urls(url, proxy):
    assert parse_proxy(url) == proxy


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is no proxy"),
        ("localhost:9050", "localhost:9050 is no proxy: write socks5h://"),
        ("socks5h:localhost", "is no proxy"),
        ("ftp://host", "ftp:// is no kind of proxy"),
        ("https://host", "https:// is no kind of proxy"),
        ("socks5h://", "the host name is empty"),
        ("socks5h://host:0", "0 is not a port"),
        ("socks5h://host:", "is not a port"),
        ("socks5h://host:70000", "is not a port"),
        ("socks5h://host/path", "is no proxy"),
        ("socks5h://::1", "the host name is empty"),
        ("socks5h://-host", "begins with a dash"),
        ("socks5h://ho;st", "contains the character ;"),
        ("socks5h://ho st", "a blank or control character"),
        ("socks5h://" + "a" * 300, "longer than 255"),
        ("socks5h://:secret@host", "there is a password and no user"),
        ("socks5h://user:%0a@host", "a control character or more than"),
        ("socks5h://user:%ff@host", "a control character or more than"),
        (f"socks5h://user:{'s' * 256}@host", "more than 255 bytes"),
        ("socks4a://user:secret@host", "SOCKS 4 has no passwords"),
        ("http://a%3Ab:secret@host", "a user name for HTTP has no colon"),
        ("user:secret@host", "…@host is no proxy"),
        ("socks5h://user:secret@host/path", "…@host/path is no proxy"),
    ],
)
def test_bad_urls_are_refused_without_showing_a_secret(url, said):
    with pytest.raises(ConfigError) as caught:
        parse_proxy(url)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--via: ")
    assert "secret" not in str(caught.value)
    assert "sss" not in str(caught.value)


def test_a_password_is_not_in_what_is_shown():
    proxy = parse_proxy("http://alice:secret@proxy:3128")
    assert "secret" not in f"{proxy} {proxy!r}"
    assert "alice" not in str(proxy)


def test_a_file(tmp_path):
    file = tmp_path / "proxies"
    file.write_text("# two of them\n\n socks5h://a\nhttp://b\n")
    file.chmod(0o600)
    hosts = [proxy.host for proxy in parse_proxies(["socks5h://first", f"@{file}"])]
    assert hosts == ["first", "a", "b"]
    file.write_text("socks5h://a\nnonsense\n")
    with pytest.raises(ConfigError, match=rf"{file}:2: nonsense is no proxy"):
        parse_proxies([f"@{file}"])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_use_is_refused(tmp_path, mode):
    file = tmp_path / "proxies"
    file.write_text("socks5h://a\n")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="others may read or write the file: run chmod 600"):
        parse_proxies([f"@{file}"])


def test_files_that_cannot_be_read(tmp_path):
    for name in ("missing", "."):
        with pytest.raises(ConfigError, match="the file cannot be read"):
            parse_proxies([f"@{tmp_path / name}"])
    with pytest.raises(ConfigError, match=f"there are {MAXIMUM_PROXIES + 1} proxies"):
        parse_proxies(["http://a"] * (MAXIMUM_PROXIES + 1))

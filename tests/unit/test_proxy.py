"""Which hosts are reached without the proxy, as NO_PROXY is written by people and by Kubernetes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.channels.http.proxy import Proxy, goes_direct


@pytest.mark.parametrize(
    ("host", "no_proxy"),
    [
        ("localhost", ""),
        ("Sandbox.LocalHost", ""),
        ("127.0.0.1", ""),
        ("127.1.2.3", ""),
        ("::1", ""),
        ("api.example.com", "*"),
        ("api.example.com", "api.example.com"),
        ("api.example.com", "API.Example.com"),
        ("api.example.com", "example.com"),
        ("api.example.com", ".example.com"),
        ("api.example.com", "*.example.com"),
        ("api.example.com", " other.test , example.com"),
        ("api.example.com.", "example.com"),
        ("api.example.com", "example.com:443"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3:443"),
        ("fd00::7", "fd00::7"),
        ("fd00::7", "fd00::/8"),
        ("fd00::7", "[fd00::7]:443"),
    ],
)
def test_this_machine_and_what_is_named_goes_direct(host: str, no_proxy: str) -> None:
    assert goes_direct(host, 443, no_proxy)


@pytest.mark.parametrize(
    ("host", "no_proxy"),
    [
        ("api.example.com", ""),
        ("api.example.com", ","),
        ("api.example.com", "."),
        ("api.example.com", "other.example.com"),
        ("badexample.com", "example.com"),
        ("example.com.evil.test", "example.com"),
        ("api.example.com", "example.com:8443"),
        ("localhost.example.com", ""),
        ("10.1.2.3", "11.0.0.0/8"),
        ("10.1.2.3", "1.2.3"),
        ("10.1.2.3", "fd00::/8"),
        ("10.1.2.3", "10.0.0.0/99"),
        ("fd00::7", "[fd00::7]:8443"),
        ("fd00::7", "10.0.0.0/8"),
    ],
)
def test_the_rest_goes_through_the_proxy(host: str, no_proxy: str) -> None:
    assert not goes_direct(host, 443, no_proxy)


@given(st.text(), st.text())
@example("10.0.0.1", "/:[]*")
@example("::1", "[::1]:99999999999999999999")
def test_no_text_breaks_it(host: str, no_proxy: str) -> None:
    assert goes_direct(host, 443, no_proxy) in (True, False)


def test_a_proxys_password_is_in_nobodys_repr() -> None:
    proxy = Proxy.at("http://user:hunter2@proxy.example.com:3128")
    assert (proxy.host, proxy.port) == ("proxy.example.com", 3128)
    assert proxy.authorization
    assert proxy.authorization not in repr(proxy)

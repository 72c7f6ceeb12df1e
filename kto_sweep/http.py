"""GET requests to servers that may not answer."""

import ipaddress
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

REDIRECT_LOOP = 302
"""The status of an answer that only leads to itself, as at a login page that wants cookies."""


class NoAnswerError(Exception):
    """No server listens, the URL is invalid, or another program has the port."""


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    """Of HTTP, after redirects."""
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the server did what it was asked for."""
        return 200 <= self.status < 300


def get(
    url: str,
    *,
    timeout: float,
    limit: int = 0,
    headers: Mapping[str, str] | None = None,
    verify: bool = True,
) -> Answer:
    """The answer to a request, with at most `limit` bytes of its body.

    `timeout`: seconds to wait for each part of the answer. Certificates are checked against those that the
    system or SSL_CERT_FILE trusts, unless `verify` is off. Raises NoAnswerError.
    """
    import httpx

    # httpx by itself trusts only the list of authorities that it brings along, and fails where ALL_PROXY is a
    # SOCKS proxy or NO_PROXY has a range of IPv6 addresses, even for a URL that neither concerns.
    certificates = ssl.create_default_context() if verify else False
    try:
        with httpx.stream(
            "GET",
            url,
            headers=headers,
            timeout=timeout,
            follow_redirects=True,
            verify=certificates,
            proxy=_proxy_for(url),
            trust_env=False,
        ) as response:
            body = next(response.iter_bytes(limit), b"") if limit else b""
            return Answer(response.status_code, body)
    except httpx.TooManyRedirects:
        return Answer(REDIRECT_LOOP, b"")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        raise NoAnswerError(str(error) or type(error).__name__) from error


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL; as in wandb's service, none for this machine."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy is None or _is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

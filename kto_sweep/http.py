"""GET requests to servers that may not respond."""

import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

REDIRECT_LOOP = 302
"""Status for a redirect loop, for example of a login page that needs cookies."""


class NoAnswerError(Exception):
    """No server listens, the URL is invalid, or another program uses the port."""


class Answer(NamedTuple):
    """A server's response."""

    status: int
    """HTTP status, after redirects."""
    body: bytes
    date: float | None = None
    """The server's clock, in Unix seconds; None if it did not say."""

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return 200 <= self.status < 300


def get(
    url: str,
    *,
    timeout: float,
    limit: int = 0,
    headers: Mapping[str, str] | None = None,
    verify: bool = True,
) -> Answer:
    """The response to a request, with at most `limit` bytes of its body.

    `timeout`: seconds for each part of the response. Certificates are verified with the system's authorities
    or SSL_CERT_FILE, unless `verify` is off. Raises NoAnswerError.
    """
    import httpx

    try:
        with _stream(url, timeout, headers, verify=verify) as response:
            body = next(response.iter_bytes(limit), b"") if limit else b""
            return Answer(response.status_code, body, _date(response.headers.get("date", "")))
    except httpx.TooManyRedirects:
        return Answer(REDIRECT_LOOP, b"")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        raise NoAnswerError(str(error) or type(error).__name__) from error


def read_lines(url: str, *, timeout: float, headers: Mapping[str, str]) -> Iterator[bytes]:
    """The HTTP status, then the lines of the response as they arrive; the whole may not fit into memory.

    Raises NoAnswerError, also when the response is cut off.
    """
    import httpx

    try:
        with _stream(url, timeout, headers, verify=True) as response:
            yield str(response.status_code).encode()
            rest = b""
            for chunk in response.iter_bytes(1 << 18):  # iter_lines also splits at U+2028 and such
                *complete, rest = (rest + chunk).split(b"\n")
                yield from complete
            if rest:
                yield rest
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError) as error:
        raise NoAnswerError(str(error) or type(error).__name__) from error


def _stream(url: str, timeout: float, headers: Mapping[str, str] | None, *, verify: bool) -> Any:
    import httpx

    # By default httpx trusts only its bundled authorities. It also fails if ALL_PROXY is a SOCKS proxy or
    # NO_PROXY has a range of IPv6 addresses, even for URLs that use neither.
    return httpx.stream(
        "GET",
        url,
        headers=headers,
        timeout=timeout,
        follow_redirects=True,
        verify=ssl.create_default_context() if verify else False,
        proxy=_proxy_for(url),
        trust_env=False,
    )


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def _proxy_for(url: str) -> str | None:
    """The environment's proxy for a URL; none for this machine, as in wandb's service process."""
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

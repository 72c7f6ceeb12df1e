"""Plain HTTP requests that check whether a server responds."""

import http.client
import ipaddress
import urllib.request
from urllib.parse import urlsplit

CONNECTION_ERRORS = (OSError, ValueError, http.client.HTTPException)
"""Raised by a request when no server listens, the URL is invalid, or another program has the port."""


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """An opener for `url`; like wandb's service, it bypasses proxies for servers on this machine."""
    return urllib.request.build_opener(*[urllib.request.ProxyHandler({})] * _is_loopback(url))


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

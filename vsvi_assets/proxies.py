"""Which proxy a request goes through: none where the server is on this machine."""

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Return whether an address leads to this machine itself."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def proxies_for(url: str) -> dict[str, str]:
    """Return what the parameter `proxies` of requests has to be for an address.

    Addresses of this machine go through no proxy, since none could reach them; for all others
    the environment decides (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY), as it always does.
    """
    return {"no_proxy": urlsplit(url).hostname or ""} if is_loopback(url) else {}

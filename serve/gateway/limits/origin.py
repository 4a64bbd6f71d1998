"""Protection of a server without keys: only this machine may use it, and no page of another site through a browser here."""

import ipaddress
import re
from collections.abc import Collection

from starlette.requests import Request

from everlearn.errors import Forbidden

HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine."""
    name = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(name[1:-1] if name[:1] + name[-1:] == "[]" else name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def names_this_machine(request: Request) -> bool:
    """Whether the Host header names loopback. Another name may be a web page's that resolves to loopback (DNS rebinding)."""
    hosts = request.headers.getlist("host")
    found = [HOST.fullmatch(host.strip()) for host in hosts if host.strip()]
    return len(hosts) < 2 and all(match and is_loopback(match["name"]) for match in found)


def is_of_another_page(request: Request, trusted: Collection[str]) -> bool:
    """Whether a browser says that the request comes from a script of another origin."""
    host, origin = request.headers.get("host"), request.headers.get("origin")
    if origin is None or origin in trusted:
        return False
    return origin.lower().partition("://")[2] != (host or "").lower()


def refuse_foreign(request: Request, trusted: Collection[str]) -> None:
    """Raises Forbidden for a foreign host name, for a script of another origin, and for writes by a page of another site.

    Browsers send the headers that tell, and pages cannot forge them; other clients send none. ``trusted``: further
    origins that are allowed.
    """
    if not names_this_machine(request):
        raise Forbidden(
            "Without API keys this server answers only to localhost. Create a key to use another name."
        )
    acts = request.method not in HARMLESS and request.headers.get("origin") not in trusted
    elsewhere = request.headers.get("sec-fetch-site") not in (None, "same-origin", "none")
    if is_of_another_page(request, trusted) or (acts and elsewhere):
        raise Forbidden(
            "Without API keys this server takes nothing from pages of other sites. "
            "Create a key, or list the page's origin in serve.cors_origins."
        )

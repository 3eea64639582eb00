"""Who may ask: a browser never, but for rda's own page, which may look. Pure.

A web page can make a browser on this machine send requests to the listener: directly ("simple" cross-site requests,
WebSocket handshakes) or after its name was made to resolve to 127.0.0.1 (DNS rebinding). Such requests say so in
their head; Docker clients send none of it.

Source: RFC 9112 section 3.2; RFC 6454; https://www.w3.org/TR/fetch-metadata/.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from rda.docker.routes import Fields
from rda.errors import BadRequest, Refused
from rda.proxy.wire import tokens

__all__ = ["LOCAL_NAMES", "check_framing", "check_origin"]

#: Names that a browser cannot be made to use for another host.
LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "[::1]"))

#: More do not fit into the 64 bits of other parsers, which may take a part of them.
MAX_LENGTH_DIGITS = 18

#: Twisted's parser refuses only those of them that end something.
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._~%-]*)(?::[0-9]{0,5})?")


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for field, value in fields if field.lower() == name]


def check_framing(method: bytes, target: bytes, minor: int, fields: Fields) -> None:
    """Refuse a request that two parsers might read differently.

    What Twisted's parser refuses itself (both Content-Length and Transfer-Encoding, odd lengths and chunks) is not
    looked at again.

    :raises BadRequest: with the reason. Where the request ends is then in doubt: its connection has to be closed
        (RFC 9112, section 6.3).
    """
    if method == b"CONNECT" or not target.startswith(b"/"):
        raise BadRequest("the request target has to be a path: this is not a general proxy")
    encodings = _values(fields, b"transfer-encoding")
    if encodings and (minor == 0 or [value.lower() for value in encodings] != [b"chunked"]):
        raise BadRequest("the only Transfer-Encoding that is understood is chunked, in HTTP/1.1")
    if any(_CONTROL.search(value) for _, value in fields):
        raise BadRequest("a header field of the request holds a control character")
    lengths = _values(fields, b"content-length")
    if len(lengths) > 1:
        raise BadRequest("the request has more than one Content-Length")
    if lengths and len(lengths[0]) > MAX_LENGTH_DIGITS:
        raise BadRequest(f"the request's Content-Length has more than {MAX_LENGTH_DIGITS} digits")
    if tokens(_values(fields, b"expect")) - {b"100-continue"}:
        raise BadRequest("the only expectation that is understood is 100-continue")


def check_origin(
    minor: int,
    fields: Fields,
    allowed: Collection[str],
    local_address: str | None,
    *,
    names_matter: bool,
    own_page: bool = False,
) -> None:
    """Refuse a request that a browser may have been made to send.

    :param allowed: the names that clients may call this listener, in lower case; addresses in URL form.
    :param local_address: the address on which the connection came in: always allowed, for rebinding needs a name.
    :param names_matter: False for UNIX-domain sockets, which no browser reaches and whose clients send any Host.
    :param own_page: this reads something that rda's own status page is made of, and so may ask for.
    :raises BadRequest: there is not exactly one Host in HTTP/1.1, or it is none.
    :raises Refused: with the reason.
    """
    hosts = _values(fields, b"host")
    if len(hosts) > 1 or (not hosts and minor):
        raise BadRequest("the request needs exactly one Host")
    host = hosts[0].decode("latin-1").lower() if hosts else ""
    if names_matter and host:  # the docker CLI sends an empty one for /grpc and /session; browsers never do
        _check_host(host, allowed, local_address)
    site = _values(fields, b"sec-fetch-site")
    if site and site != [b"none"] and not (own_page and site == [b"same-origin"]):
        raise Refused("requests made by web pages are not allowed")
    origins = _values(fields, b"origin")
    if origins and not _own_websocket(fields, origins, host):
        raise Refused("requests made by web pages (with an Origin) are not allowed")


def _check_host(host: str, allowed: Collection[str], local_address: str | None) -> None:
    found = _HOST.fullmatch(host)
    if found is None:
        raise BadRequest("the Host of the request is none")
    name = found["name"]
    if name in LOCAL_NAMES or name in allowed:
        return
    if local_address is not None and _same_address(name, local_address):
        return
    raise Refused(f"this listener is not called {name!r}; its names can be configured")


def _same_address(name: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")) == ipaddress.ip_address(address)
    except ValueError:
        return False


def _own_websocket(fields: Fields, origins: list[bytes], host: str) -> bool:
    """Whether this is a WebSocket client that names the listener itself as the page it comes from.

    WebSocket libraries (docker-py's among them) make up such an Origin; the only real page that has it is rda's own,
    whose script is rda's too.
    """
    if tokens(_values(fields, b"upgrade")) != {b"websocket"} or len(origins) != 1 or not host:
        return False
    scheme, _, authority = origins[0].decode("latin-1").lower().partition("://")
    return scheme in ("http", "https") and authority == host

"""Hundreds of well-formed requests, sent to the daemon's own socket and to rda: the answers have to be the same.

What rda refuses on purpose is in ``tests/adversarial.py``; here is only what it has no reason to touch.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
from pathlib import Path

from tests.live.support import LiveTestCase

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW")

PATHS = Path(__file__).with_name("scenarios").joinpath("paths.txt").read_text().split()

#: Documents that the daemon refuses for what they say; what the JSON itself gets wrong is told in rda's words.
CREATES = (
    {},
    {"HostConfig": {}},
    {"Image": ""},
    {"Image": "none"},
    {"Image": "busybox", "HostConfig": {"Memory": 1}},
    *(
        {"Image": "busybox", "HostConfig": {"PortBindings": {key: [{"HostPort": port}]}}}
        for key, port in (("x/tcp", ""), ("80/tcp", "99999"), ("80/tcp", "a"), ("80-81/tcp", ""))
    ),
    *(
        {"Image": "busybox", "HostConfig": {"Binds": [spec]}}
        for spec in ("a:b:c:d", "rel/x:/a", "/tmp:/", "/tmp:/a:zz", "")
    ),
    *(
        {"Image": "busybox", "HostConfig": {"Mounts": [{"Type": kind, "Source": source, "Target": target}]}}
        for kind, source, target in (
            ("bind", "/none", "/a"),
            ("bind", "", "/a"),
            ("zork", "/tmp", "/a"),
            ("bind", "/tmp", ""),
            ("bind", "tmp", "/a"),
        )
    ),
    {"Image": "busybox", "HostConfig": {"VolumesFrom": ["none"]}},
)

#: Fields of an answer that are compared: the others are about the connection, or the time.
COMPARED = ("api-version", "content-type", "docker-experimental", "location", "ostype", "server", "builder-version")


def request(method: str, target: str, body: bytes = b"", *fields: str) -> bytes:
    """Write a request that is the last of its connection."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *fields]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class ProtocolTests(LiveTestCase):
    def connect(self, way: str) -> socket.socket:
        if way == "through rda":
            return socket.create_connection(("127.0.0.1", self.rda.port), timeout=10)
        found = socket.socket(socket.AF_UNIX)
        found.settimeout(10)
        found.connect(self.host.docker_url.removeprefix("unix://"))
        return found

    def answers(self, data: bytes) -> list[tuple[object, ...]]:
        """Send a request both ways; return the answers as they are compared."""
        return [self.answer(way, data) for way in ("directly", "through rda")]

    def answer(self, way: str, data: bytes) -> tuple[object, ...]:
        with self.connect(way) as connection:
            connection.sendall(data)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        text = re.sub(rb"[0-9a-f]{64}", b"ID", body)
        try:
            content: object = json.loads(text)
        except ValueError:
            content = text
        return status, {name: fields.get(name) for name in COMPARED}, content

    def compare(self, requests: dict[str, bytes], fields: bool = True) -> None:
        """Check that every request is answered alike; tell of all that are not.

        :param fields: whether the answers' heads are alike too: not where rda has to answer for the daemon.
        """
        found = []
        for name, data in requests.items():
            directly, through = self.answers(data)
            if not fields:
                directly, through = directly[::2], through[::2]
            if directly != through:
                found.append(f"{name}\n  directly:    {directly}\n  through rda: {through}")
        self.assertEqual(found, [], "\n".join(["", *found]))

    def test_every_method_and_path(self) -> None:
        """Every method on every path, of those that are there and those that are not."""
        pairs = itertools.product(METHODS, PATHS)
        self.compare({f"{method} {path}": request(method, path) for method, path in pairs})

    def test_refused_creates(self) -> None:
        """A create that cannot be is refused with the same status, in the same words."""
        requests = {}
        for document in CREATES:
            body = json.dumps(document).encode()
            kind = "Content-Type: application/json"
            requests[body.decode()] = request("POST", "/v1.45/containers/create?name=refused", body, kind)
        self.compare(requests, fields=False)

"""rda.docker.ports: every way to publish a port, read as the daemon reads it."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rda.docker.ports import (
    Published,
    port_key,
    port_range,
    published,
    requested,
    shown_addresses,
)
from rda.errors import BadRequest

DATA = Path(__file__).parent / "data"


class RequestedTests(SynchronousTestCase):
    """requested."""

    #: what docker run -p was given -> the PortBindings that its CLI sends -> what it means
    TABLE = {
        "80": ({"80/tcp": [{"HostIp": "", "HostPort": ""}]}, [Published(80, "tcp")]),
        "8080:80": ({"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}, [Published(80, "tcp", "", 8080, 8080)]),
        "127.0.0.1:8080:80": (
            {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]},
            [Published(80, "tcp", "127.0.0.1", 8080, 8080)],
        ),
        "127.0.0.1::80": ({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}, [Published(80, "tcp", "127.0.0.1")]),
        "[::1]:8080:80": (
            {"80/tcp": [{"HostIp": "::1", "HostPort": "8080"}]},
            [Published(80, "tcp", "::1", 8080, 8080)],
        ),
        "[::1]:8080:80, brackets kept": (
            {"80/tcp": [{"HostIp": "[::1]", "HostPort": "8080"}]},
            [Published(80, "tcp", "::1", 8080, 8080)],
        ),
        "0.0.0.0:8080:80": (
            {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]},
            [Published(80, "tcp", "0.0.0.0", 8080, 8080)],
        ),
        "0:80": ({"80/tcp": [{"HostIp": "", "HostPort": "0"}]}, [Published(80, "tcp")]),
        "18000-18010:80": (
            {"80/tcp": [{"HostIp": "", "HostPort": "18000-18010"}]},
            [Published(80, "tcp", "", 18000, 18010)],
        ),
        "8080-8081:80-81": (
            {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "81/tcp": [{"HostIp": "", "HostPort": "8081"}]},
            [Published(80, "tcp", "", 8080, 8080), Published(81, "tcp", "", 8081, 8081)],
        ),
        "8080:80 and 8081:80": (
            {"80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "", "HostPort": "8081"}]},
            [Published(80, "tcp", "", 8080, 8080), Published(80, "tcp", "", 8081, 8081)],
        ),
        "53:53/udp": ({"53/udp": [{"HostIp": "", "HostPort": "53"}]}, [Published(53, "udp", "", 53, 53)]),
        "a key without protocol": ({"80": [{"HostPort": "8080"}]}, [Published(80, "tcp", "", 8080, 8080)]),
        "upper case": ({"80/TCP": [{}]}, [Published(80, "tcp")]),
        "sctp": ({"80/sctp": [{}]}, [Published(80, "sctp")]),
        "an empty list": ({"80/tcp": []}, []),
        "null": ({"80/tcp": None}, []),
        "a null entry": ({"80/tcp": [None]}, [Published(80, "tcp")]),
    }

    def test_forms(self) -> None:
        """Every form means what it means to Docker."""
        for form, (bindings, expected) in self.TABLE.items():
            self.assertEqual(requested(bindings, False, ()), tuple(expected), form)
        self.assertEqual(requested(None, False, ["80/tcp"]), ())

    def test_publish_all(self) -> None:
        """With PublishAllPorts, exposed ports that have no binding get any free one, also where the list is empty."""
        bindings = {"80/tcp": [{"HostPort": "8080"}], "82/tcp": []}
        self.assertEqual(
            requested(bindings, True, ["80/tcp", "81", "82/tcp", "53/udp", "81/tcp"]),
            (Published(80, "tcp", "", 8080, 8080), Published(53, "udp"), Published(81, "tcp"), Published(82, "tcp")),
        )

    def test_refused(self) -> None:
        """What is no port, range, address or protocol is refused, in the daemon's words where it has some."""
        for key in ("80-81/tcp", "x", "", "/tcp", "0/tcp", "65536", "-1", "8\u0660"):
            error = self.assertRaises(BadRequest, requested, {key: [{}]}, False, ())
            self.assertIn("invalid port specification", str(error))
        self.assertRaises(BadRequest, requested, {"80/icmp": [{}]}, False, ())
        for port in ("x", "70000", "90-80", "80-", "-80", "1-2-3", " 80", "8080/tcp"):
            error = self.assertRaises(BadRequest, requested, {"80": [{"HostPort": port}]}, False, ())
            self.assertIn(f'"{port}"', str(error))
        for address in ("localhost", "1.2.3", "fe80::1%eth0", "[127.0.0.1", "1.2.3.4/8"):
            error = self.assertRaises(BadRequest, requested, {"80": [{"HostIp": address}]}, False, ())
            self.assertIn(address, str(error))

    def test_wrong_shapes(self) -> None:
        """Values of other types than the daemon's are refused."""
        for bindings in ([], "80", {"80": {}}, {"80": ["8080"]}, {"80": [{"HostPort": 8080}]}, {"80": [{"HostIp": 1}]}):
            self.assertRaises(BadRequest, requested, bindings, False, ())

    def test_bounded(self) -> None:
        """A document cannot publish without end."""
        self.assertRaises(BadRequest, requested, {"80": [{}] * 131_073}, False, ())

    def test_keys(self) -> None:
        """Container ports and ranges are read whole."""
        self.assertEqual(port_key("65535/UDP"), (65535, "udp"))
        self.assertEqual(port_key("80/"), (80, "tcp"))
        self.assertEqual(port_range("1-65535"), (1, 65535))
        self.assertEqual(Published(80, "tcp").key, "80/tcp")


class PublishedTests(SynchronousTestCase):
    """published, on a real document."""

    def test_running(self) -> None:
        """The document tells the remote ports; what is only exposed has none."""
        inspect = json.loads((DATA / "inspect_remote.json").read_text())
        expected = {"53/udp": 32768, "80/tcp": 32769, "81/tcp": 32768}
        self.assertEqual(published(inspect), expected)

    def test_without(self) -> None:
        """A container that does not run, or is on no network, has none; nor have documents of another shape."""
        for document in ({}, {"NetworkSettings": None}, {"NetworkSettings": {"Ports": {}}}, {"NetworkSettings": []}):
            self.assertEqual(published(document), {})
        odd = {"NetworkSettings": {"Ports": {"80/tcp": [{"HostPort": ""}, 1, {"HostPort": "0"}], "81/tcp": 5}}}
        self.assertEqual(published(odd), {})
        odd = {"NetworkSettings": {"Ports": {"80/TCP": [{"HostPort": "1"}], "x": [{"HostPort": "2"}]}}}
        self.assertEqual(published(odd), {"80/tcp": 1, "x": 2})


class ShownTests(SynchronousTestCase):
    """shown_addresses."""

    def test_shown(self) -> None:
        """Without an address Docker shows all of both families."""
        self.assertEqual(shown_addresses(""), ("0.0.0.0", "::"))
        self.assertEqual(shown_addresses("::1"), ("::1",))

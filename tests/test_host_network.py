"""rda.docker.host_network: which ports of containers on the host's network are read_port."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rda.docker import host_network as module
from rda.docker import rewrite
from rda.docker.host_network import FORWARD_LABEL, HostForwards, read_port, read_ports
from rda.docker.ports import Listener, Published
from rda.docker.request import find_request
from rda.errors import BadRequest


class SpecTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """A port is written as docker run -p writes it; its local number is its own unless another is given."""
        for spec, port in (
            ("8080", Published(8080, "tcp", "", 8080, 8080)),
            ("9000/udp", Published(9000, "udp", "", 9000, 9000)),
            ("18080:8080", Published(8080, "tcp", "", 18080, 18080)),
            ("18080-18090:8080/TCP", Published(8080, "tcp", "", 18080, 18090)),
            ("0:8080", Published(8080, "tcp")),
            ("127.0.0.1:18080:8080", Published(8080, "tcp", "127.0.0.1", 18080, 18080)),
            ("127.0.0.1::8080", Published(8080, "tcp", "127.0.0.1", 8080, 8080)),
            ("[::1]:18080:8080/udp", Published(8080, "udp", "::1", 18080, 18080)),
        ):
            self.assertEqual(read_port(spec), port, spec)

    def test_refused(self) -> None:
        """What is no port is refused in words."""
        for spec in (
            "",
            "x",
            "0",
            "65536",
            "80/icmp",
            "80/sctp",
            "a:b:80",
            "1.2.3:80:80",
            "::1:80:80",
            "5-3:80",
            "80;",
        ):
            self.assertRaises(BadRequest, read_port, spec)

    def test_lists(self) -> None:
        """Each port counts once, and there are so many at most."""
        self.assertEqual(len(read_ports(["80", " 80", "", "81"])), 2)
        self.assertRaises(BadRequest, read_ports, [str(port) for port in range(1, module.MAX_NAMED + 2)])

    def test_rules(self) -> None:
        """A rule names containers by a pattern; all that match count."""
        rules = HostForwards([("db-*", read_ports(["5432"])), ("*", read_ports(["9000"])), ("DB-1", ())])
        self.assertEqual([port.port for port in rules.of("db-1")], [5432, 9000])
        self.assertEqual([port.port for port in rules.of("web")], [9000])
        self.assertEqual(HostForwards().of("web"), ())


class DocumentTests(SynchronousTestCase):
    """What becomes of the label in documents."""

    def outward(self, label: str, mode: str = "host") -> tuple[dict[str, Any], tuple[str, ...]]:
        document = {"Labels": {FORWARD_LABEL: label}, "HostConfig": {"NetworkMode": mode}}
        return rewrite.outward(document, {}, "me", "n1")

    def test_request(self) -> None:
        """The label stays the client's, and is part of the request; nothing is published."""
        sent, warnings = self.outward("18080:8080, 9000/udp")
        self.assertEqual((sent["Labels"][FORWARD_LABEL], warnings), ("18080:8080, 9000/udp", ()))
        self.assertNotIn("PortBindings", sent["HostConfig"])
        request = find_request(sent["Labels"])
        assert request is not None
        self.assertEqual([port.key for port in request.ports], ["8080/tcp", "9000/udp"])
        self.assertEqual(request.remote_ports({}, request.ports), {"8080/tcp": 8080, "9000/udp": 9000})

    def test_wrong(self) -> None:
        """A label that names no ports is refused."""
        self.assertRaises(BadRequest, self.outward, "web")

    def test_other_modes(self) -> None:
        """In any other network the label has no effect, and the answer says so."""
        sent, (warning,) = self.outward("8080", "bridge")
        self.assertIn("Publish the ports instead", warning)
        request = find_request(sent["Labels"])
        assert request is not None
        self.assertEqual(request.ports, ())

    def test_shown(self) -> None:
        """Inspect and list show where the ports are open here, and the label as it was written."""
        sent, _ = self.outward("18080:8080")
        local = {"8080/tcp": (Listener("127.0.0.1", 18080),)}
        document = {"Id": "c1", "Config": sent, "HostConfig": sent["HostConfig"], "NetworkSettings": {"Ports": {}}}
        shown: Any = rewrite.inward_inspect(document, lambda _: True, local)
        bindings = [{"HostIp": "127.0.0.1", "HostPort": "18080"}]
        self.assertEqual(shown["NetworkSettings"]["Ports"], {"8080/tcp": bindings})
        self.assertEqual(shown["Config"]["Labels"], {FORWARD_LABEL: "18080:8080"})
        item = {"Id": "c1", "Labels": sent["Labels"], "Ports": []}
        listed: Any = rewrite.inward_item(item, lambda _: True, local)
        port = {"IP": "127.0.0.1", "PrivatePort": 8080, "PublicPort": 18080, "Type": "tcp"}
        self.assertEqual(listed["Ports"], [port])
        self.assertEqual(rewrite.inward_item(item, lambda _: True, None)["Ports"], [])

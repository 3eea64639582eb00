"""Every way to publish a port: what was typed, what listens here, what ``docker`` prints, and what a client reads."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.live.host import wait_until
from tests.live.process import free_port, free_ports
from tests.live.support import LiveTestCase

#: A web server on each of two ports.
WEB = ("busybox", "sh", "-c", "httpd -p 80 -h /etc; httpd -p 81 -h /etc; exec sleep 1000")


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


#: Addresses that a port without one is open on here, and those that Docker shows for it.
DEFAULT = ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",)
ALL = ("0.0.0.0", "[::]")

#: A name server for whatever it is asked: the question comes back with one address.
NAME_SERVER = r"""
use Socket;
my $s;
socket($s, PF_INET, SOCK_DGRAM, 0) && bind($s, sockaddr_in(53, INADDR_ANY)) or die;
while (my $from = recv($s, my $asked, 65535, 0)) {
    my ($id, $question) = (substr($asked, 0, 2), substr($asked, 12));
    my $answer = pack("nnnNn", 0xc00c, 1, 1, 60, 4) . inet_aton("10.1.2.3");
    send($s, $id . pack("nnnnn", 0x8180, 1, 1, 0, 0) . $question . $answer, 0, $from);
}
"""

#: The image that runs it: the remote host's own perl, and what that needs.
PERL_IMAGE = (
    "tar -ch /usr/bin/perl /usr/lib/*/perl-base $(ldd /usr/bin/perl | grep -o '/[^ ]*') 2>/dev/null | "
    'docker import -c \'ENTRYPOINT ["/usr/bin/perl", "-e"]\' - perl'
)


@dataclass(frozen=True)
class Open:
    """One thing that a form opens.

    :ivar key: the container's port.
    :ivar addresses: where it listens here.
    :ivar port: the local port, or the numbers to choose from; None for any.
    :ivar shown: the addresses that Docker prints.
    """

    key: str
    addresses: tuple[str, ...] = DEFAULT
    port: int | range | None = None
    shown: tuple[str, ...] = ALL


def forms() -> dict[str, list[Open]]:
    """Make the table: the words of ``docker run`` -> what they open."""
    a, b, c, d, two, three, several = free_ports(7, in_a_row=3)
    ipv6 = {f"-p [::1]:{b}:80": [Open("80/tcp", ("::1",), b, ("[::1]",))]} if "::1" in DEFAULT else {}
    return {
        **ipv6,
        "-p 80": [Open("80/tcp")],
        f"-p {a}:80": [Open("80/tcp", port=a)],
        f"-p 127.0.0.1:{b}:80": [Open("80/tcp", ("127.0.0.1",), b, ("127.0.0.1",))],
        f"-p 0.0.0.0:{c}:80": [Open("80/tcp", ("0.0.0.0",), c, ("0.0.0.0",))],
        f"-p 127.0.0.2:{b}:80/tcp": [Open("80/tcp", ("127.0.0.2",), b, ("127.0.0.2",))],
        "-p 127.0.0.1::80": [Open("80/tcp", ("127.0.0.1",), None, ("127.0.0.1",))],
        "-p 80-81": [Open("80/tcp"), Open("81/tcp")],
        f"-p {two}-{two + 1}:80-81": [Open("80/tcp", port=two), Open("81/tcp", port=two + 1)],
        f"-p {three}-{three + 2}:80": [Open("80/tcp", port=range(three, three + 3))],
        f"-p {several}:80 -p {several + 1}:80 -p 127.0.0.1:{several + 2}:80": [
            Open("80/tcp", port=several),
            Open("80/tcp", port=several + 1),
            Open("80/tcp", ("127.0.0.1",), several + 2, ("127.0.0.1",)),
        ],
        "-P --expose 80 --expose 81/tcp": [Open("80/tcp"), Open("81/tcp")],
        f"-P --expose 81 -p {d}:80": [Open("80/tcp", port=d), Open("81/tcp")],
    }


class Forms(LiveTestCase):
    """One container for each form, all at once."""

    def test_every_form(self):
        """What is typed is open here, and nowhere else; port, ps and inspect print it; a client reads through it."""
        table = dict(enumerate(forms().items()))

        def run(number: int) -> str:
            words = table[number][0].split()
            return self.rda.docker("run", "-d", "--name", f"form{number}", *words, *WEB).stdout.decode().strip()

        with ThreadPoolExecutor(3) as pool:
            ids = dict(zip(table, pool.map(run, table), strict=True))
        described = {one["Id"]: one for one in json.loads(self.rda.docker("inspect", *ids.values()).stdout)}
        listed = dict(
            line.split("\t")
            for line in self.rda.docker("ps", "--no-trunc", "--format", "{{.ID}}\t{{.Ports}}")
            .stdout.decode()
            .splitlines()
        )
        expected = set()
        for number, (typed, opens) in table.items():
            with self.subTest(typed=typed):
                ports = self.check_shown(ids[number], opens, described[ids[number]], listed[ids[number]])
                for one, port in zip(opens, ports, strict=True):
                    expected |= {(address, port) for address in one.addresses}
                    for address in one.addresses:
                        self.assertIn("root:x:0:0", self.page(address, port))
        self.assertEqual(self.rda.listening(), expected)
        there = self.host.docker("ps", "--format", "{{.Ports}}").stdout.decode()
        self.assertEqual(set(re.findall(r"([0-9a-f.:\[\]]+):\d+->", there)), {"127.0.0.1"}, "no network of the remote")

    def check_shown(self, container: str, opens: list[Open], document: dict[str, Any], listed: str) -> list[int]:
        """Check what is printed of one container; return its local ports."""
        by_key: dict[str, list[tuple[str, int]]] = {}
        for line in self.rda.docker("port", container).stdout.decode().splitlines():
            key, _, where = line.partition(" -> ")
            address, _, port = where.rpartition(":")
            by_key.setdefault(key, []).append((address, int(port)))
        ports = []
        for one in opens:  # docker port sorts what it prints
            wanted = [one.port] if isinstance(one.port, int) else one.port or range(1, 65536)
            port = next(port for address, port in by_key[one.key] if address == one.shown[0] and port in wanted)
            for address in one.shown:
                by_key[one.key].remove((address, port))
                self.assertIn(f"{address}:{port}->", re.sub(r"(?<![\[:\d]):::", "[::]:", listed))
            ports.append(port)
        self.assertEqual([rest for rest in by_key.values() if rest], [])
        bound = document["NetworkSettings"]["Ports"]
        inspected = sorted((key, entry["HostPort"]) for key, entries in bound.items() for entry in entries or ())
        self.assertEqual(
            inspected, sorted((one.key, str(port)) for one, port in zip(opens, ports, strict=True) for _ in one.shown)
        )
        return ports

    def page(self, address: str, port: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1" if address == "0.0.0.0" else address, port, timeout=20)
        try:
            connection.request("GET", "/passwd")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def test_raw_documents(self):
        """Keys in any case, a path without a version, a port without a protocol and the number 0 are what they are."""
        port = free_port()
        bindings = {"80": [{"HostPort": str(port)}], "81/tcp": [{"HostIp": "127.0.0.1", "HostPort": "0"}]}
        document = {
            "image": "busybox",
            "CMD": list(WEB[1:]),
            "exposedPorts": {"80": {}, "81/tcp": {}},
            "hostconfig": {"portbindings": bindings},
        }
        status, made = self.call("POST", "/containers/create?name=raw", document)
        self.assertEqual(status, 201, made)
        self.assertEqual(self.call("POST", "/containers/raw/start")[0], 204)
        shown = self.call("GET", "/containers/raw/json")[1]
        ports = shown["NetworkSettings"]["Ports"]
        other = int(ports["81/tcp"][0]["HostPort"])
        self.assertEqual({one["HostPort"] for one in ports["80/tcp"]}, {str(port)})
        self.assertEqual(shown["HostConfig"]["PortBindings"], bindings)
        self.assertEqual(self.rda.listening(), {("127.0.0.1", other), *((address, port) for address in DEFAULT)})
        self.assertIn("root:x:0:0", self.page("127.0.0.1", other))

    def call(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.rda.port, timeout=60)
        try:
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def test_filters(self):
        """``ps --filter publish=`` means the local port."""
        port = free_port()
        self.rda.docker("run", "-d", "--name", "web", "-p", f"{port}:80", *WEB)
        for wanted, count in ((port, 1), (free_port(), 0)):
            found = self.rda.docker("ps", "-q", "--filter", f"publish={wanted}").stdout.split()
            self.assertEqual(len(found), count)

    def test_refused(self):
        """SCTP is refused with the reason, a port in use in the daemon's words; nothing listens or stays attached."""
        done = self.rda.docker("run", "-d", "-p", f"{free_port()}:80/sctp", *WEB, check=False)
        self.assertIn(b"SCTP does not pass through an SSH connection", done.stderr)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = self.rda.docker("run", "--name", "web", "-p", f"{port}:80", *WEB, check=False)
        self.assertEqual(done.returncode, 125)
        message = "Error response from daemon: driver failed programming external connectivity on endpoint web ("
        self.assertIn(message, done.stderr.decode())
        self.assertIn(f"Bind for 0.0.0.0:{port} failed: port is already allocated", done.stderr.decode())
        self.assertEqual(self.host.docker("inspect", "-f", "{{.State.Status}}", "web").stdout, b"created\n")
        self.assertEqual(self.rda.ports(), set())
        wait_until(lambda: not self.rda.status()["relay"]["hijacks"], "the client that has left is noticed", 20)

    def test_same_port_of_two_users(self):
        """Two people publish the same number through one remote host."""
        other = self.own_rda()
        other.wait_ready()
        port = free_port()
        self.rda.docker("run", "-d", "-p", f"127.0.0.1:{port}:80", *WEB)
        other.docker("run", "-d", "-p", f"127.0.0.2:{port}:80", *WEB)
        for address in ("127.0.0.1", "127.0.0.2"):
            self.assertIn("root:x:0:0", self.page(address, port))

    def test_copied_labels(self):
        """Labels of a container that somebody copies, by hand or by a commit, open nothing here."""
        port = free_port()
        self.rda.docker("run", "-d", "--name", "web", "-p", f"{port}:80", *WEB)
        labels = json.loads(self.host.docker("inspect", "-f", "{{json .Config.Labels}}", "web").stdout)
        self.assertEqual(set(labels), {"io.rda.owner", "io.rda.request", "io.rda.user"})
        copied = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
        self.host.docker("run", "-d", "--name", "copy", "-p", "127.0.0.1::80", *copied, *WEB)
        self.rda.docker("commit", "web", "committed")
        self.addCleanup(self.host.docker, "image", "rm", "-f", "committed")
        there = json.loads(self.host.docker("image", "inspect", "-f", "{{json .Config.Labels}}", "committed").stdout)
        self.assertEqual(set(there.values()), {""})
        here = self.rda.docker("image", "inspect", "-f", "{{json .Config.Labels}}", "committed").stdout
        self.assertEqual(json.loads(here), None)
        self.rda.docker("rm", "-f", "web")
        self.assertEqual(self.rda.ports(), set())
        self.assertEqual(self.rda.status()["forwards"], [])
        for words in (
            ("run", "--label", "io.rda.owner=x", "busybox", "true"),
            ("commit", "--change", "LABEL io.rda.request={}", "copy", "x"),
        ):
            self.assertIn(b"rda's own", self.rda.docker(*words, check=False).stderr)

    def test_host_network(self):
        """A container on the host's network has the ports here that its label names, and no others, while it runs."""
        inside, local = free_port(), free_port()
        serve = f"httpd -p {inside} -h /etc; exec sleep 1000"
        label = f"io.rda.forward={local}:{inside}"
        options = ("--network", "host", "--label", label, "--name", "host")
        done = self.rda.docker("run", "-d", *options, "busybox", "sh", "-c", serve)
        self.assertNotIn(b"network mode host", done.stderr)
        self.assertEqual(self.rda.ports(), {local})
        self.assertIn("root:x:0:0", self.page("127.0.0.1", local))
        self.assertIn(f":{local}->{inside}/tcp", self.rda.docker("ps", "--format", "{{.Ports}}").stdout.decode())
        self.assertIn(f":{local}", self.rda.docker("port", "host").stdout.decode())
        labels = json.loads(self.rda.docker("inspect", "-f", "{{json .Config.Labels}}", "host").stdout)
        self.assertEqual(labels, {"io.rda.forward": f"{local}:{inside}"})
        self.rda.docker("stop", "-t", "0", "host")
        self.eventually(lambda: not self.rda.ports(), "the port closes", 5)
        done = self.rda.docker("create", "--network", "host", "busybox")
        self.assertIn(b"--label io.rda.forward=", done.stderr)


class Datagrams(LiveTestCase):
    """``-p …/udp``."""

    def setUp(self):
        super().setUp()
        self.host.run("sh", "-c", PERL_IMAGE)
        self.addCleanup(self.host.docker, "image", "rm", "-f", "perl")

    def ask(self, port: int, address: str = "127.0.0.1") -> bytes:
        """Ask the name server; returns the address that it answers with."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        question = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + b"\3rda\4test\0" + struct.pack(">2H", 1, 1)
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(2)
            for _ in range(10):  # as a resolver does: datagrams may be lost while the server starts
                client.sendto(question, (address, port))
                try:
                    answer, _ = client.recvfrom(512)
                except (TimeoutError, ConnectionError):
                    continue
                self.assertEqual(answer[:2], question[:2])
                return answer[-4:]
        raise AssertionError("nobody answered")

    def test_name_server(self):
        """A name server in a container answers here, on the same number as a TCP port; both close with it."""
        port = free_port()
        options = ("--name", "dns", "-p", f"{port}:53/udp", "-p", f"{port}:53/tcp", "-p", "127.0.0.1::54/udp")
        self.rda.docker("run", "-d", *options, "perl", NAME_SERVER)
        for address in DEFAULT:
            self.assertEqual(self.ask(port, address), b"\x0a\1\2\3")
        lines = self.rda.docker("port", "dns").stdout.decode().splitlines()
        self.assertEqual(
            {line for line in lines if "54/udp" not in line},
            {f"53/{kind} -> {address}:{port}" for kind in ("udp", "tcp") for address in ALL},
        )
        (status,) = (one for one in self.rda.status()["forwards"] if one["port"] == "53/udp")
        self.assertEqual((status["state"], status["reason"], status["connections"]), ("open", "", len(DEFAULT)))
        self.assertGreater(status["bytes_out"], 0)
        self.rda.docker("restart", "-t", "0", "dns")
        self.assertEqual(self.ask(port), b"\x0a\1\2\3")
        self.rda.docker("rm", "-f", "dns")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", port))

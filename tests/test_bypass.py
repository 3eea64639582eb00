"""Ways around a policy: every spelling of a request, and every endpoint that can reach the host. None gets through.

The daemon is one in memory; what would have reached a real one is decoded as Go decodes it (:mod:`tests.go_json`), and
judged by what it would do, not by how it is written.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import go_json
from tests.gate_case import GateCase
from tests.test_policy import PRIVILEGES

#: Capabilities that every container has.
_ORDINARY = {"CHOWN", "NET_RAW", "KILL", "NET_BIND_SERVICE"}

_EXEC = {"Privileged": None, "Cmd": None}
_VOLUME = {"Name": None, "Driver": None, "DriverOpts": {"*": None}}


def reaches_host(config: dict[str, Any]) -> list[str]:
    """What a decoded HostConfig would have of the host."""
    found = [name for name in ("Privileged", "Devices", "DeviceCgroupRules", "Sysctls") if config.get(name)]
    found += [name for name in ("PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode", "NetworkMode")
              if config.get(name) == "host"]  # fmt: skip
    found += (
        ["CapAdd"] if {str(one).upper().removeprefix("CAP_") for one in config.get("CapAdd") or ()} - _ORDINARY else []
    )
    found += ["SecurityOpt"] if config.get("SecurityOpt") else []
    found += ["MaskedPaths"] if config.get("MaskedPaths") is not None else []
    found += ["Runtime"] if config.get("Runtime") not in (None, "", "runc") else []
    found += ["Binds" for spec in config.get("Binds") or () if str(spec).startswith("/") and _is_bind(str(spec))]
    for mount in config.get("Mounts") or ():
        options = ((mount.get("VolumeOptions") or {}).get("DriverConfig") or {}).get("Options") or {}
        if mount.get("Type") == "bind" and not str(mount.get("Source")).startswith("/mirror/"):
            found.append("Mounts")
        if options and not str(options.get("device", "tmpfs")).startswith(("/mirror/", "tmpfs")):
            found.append("Mounts options")
    return found


def _is_bind(spec: str) -> bool:
    return ":" in spec and not spec.startswith("/mirror/")


class BypassCase(GateCase):
    def reached(self) -> list[str]:
        """What of the host the documents of the daemon's calls would have reached."""
        found: list[str] = []
        for method, path, query, body in self.daemon.seen:
            if (method, path) == ("POST", "/containers/create"):
                decoded = go_json.decode(body)
                found += reaches_host(decoded.get("HostConfig") or {})
                found += reaches_host(decoded)  # where daemons of 20.10 look too
            elif path.endswith("/exec") and go_json.decode(body, _EXEC).get("Privileged"):
                found.append("exec")
            elif (method, path) == ("POST", "/volumes/create"):
                options = go_json.decode(body, _VOLUME).get("DriverOpts") or {}
                found += ["volume"] if options and not str(options.get("device")).startswith("/mirror/") else []
            elif (method, path) == ("POST", "/build") and "host" in query.get("networkmode", ()):
                found.append("build")
        return found

    def assert_nothing_reached(self, what: object) -> None:
        self.assertEqual(self.reached(), [], what)
        self.daemon.seen.clear()


DOCUMENT = json.dumps({"Image": "busybox", "HostConfig": {"Privileged": True}}).encode()


def request(
    body: bytes = DOCUMENT, target: bytes = b"/containers/create", head: bytes = b"", line: bytes | None = None
) -> bytes:
    line = b"POST " + target + b" HTTP/1.1" if line is None else line
    length = b"Content-Length: %d\r\n" % len(body)
    return line + b"\r\nHost: localhost\r\nContent-Type: application/json\r\n" + head + length + b"\r\n" + body


def chunked(body: bytes, size: int, target: bytes = b"/containers/create") -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return b"POST " + target + head + data


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


#: Every way to write one forbidden create.
SPELLINGS: dict[str, bytes] = {
    "plain": request(),
    "versioned": request(target=b"/v1.45/containers/create"),
    "odd version": request(target=b"/v01.045/containers/create"),
    "encoded letter": request(target=b"/containers/%63reate"),
    "encoded slash": request(target=b"/containers%2fcreate"),
    "encoded version": request(target=b"/%76%31.45/containers/create"),
    "twice encoded": request(target=b"/containers/%2563reate"),
    "double slash": request(target=b"//containers//create"),
    "dot": request(target=b"/./containers/./create"),
    "dot dot": request(target=b"/x/../containers/y/../create"),
    "encoded dot dot": request(target=b"/x/%2e%2e/containers/create"),
    "version in the middle": request(target=b"/v1.45/../containers/create"),
    "trailing slash": request(target=b"/containers/create/"),
    "absolute form": request(target=b"http://localhost/containers/create"),
    "query": request(target=b"/containers/create?name=x&platform=linux"),
    "semicolon": request(target=b"/containers/create;x"),
    "fragment": request(target=b"/containers/create#x"),
    "old HTTP": request(line=b"POST /containers/create HTTP/1.0"),
    "lower-case method": request(line=b"post /containers/create HTTP/1.1"),
    "method override": request(head=b"X-HTTP-Method-Override: GET\r\n"),
    "one byte chunks": chunked(DOCUMENT, 1),
    "chunks": chunked(DOCUMENT, 7),
    "continue": request(head=b"Expect: 100-continue\r\n"),
    "upgrade": request(head=b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n"),
    "compressed": request(head=b"Content-Encoding: gzip\r\n"),
    "form": request(head=b"Content-Type: application/x-www-form-urlencoded\r\n"),
    "two lengths": request(head=b"Content-Length: 2\r\n"),
    "length and chunks": request(head=b"Transfer-Encoding: chunked\r\n"),
    "pipelined": b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n" + request() + request(),
    "behind a body": b"POST /containers/x/wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" + request(),
    "lower-case keys": request(b'{"image":"x","hostconfig":{"privileged":true}}'),
    "upper-case keys": request(b'{"IMAGE":"x","HOSTCONFIG":{"PRIVILEGED":true}}'),
    "long s and Kelvin sign": request('{"Image":"x","Ho\u017ftConfig":{"Networ\u212aMode":"host"}}'.encode()),
    "escaped key": request(b'{"Image":"x","\\u0048ostConfig":{"\\u0050rivileged":true}}'),
    "escaped long s": request(b'{"Image":"x","Ho\\u017ftConfig":{"Privileged":true}}'),
    "duplicate": request(b'{"Image":"x","HostConfig":{"Privileged":true},"HostConfig":{}}'),
    "duplicate before": request(b'{"Image":"x","HostConfig":{},"HostConfig":{"Privileged":true}}'),
    "duplicate in another case": request(b'{"Image":"x","HostConfig":{},"hostconfig":{"Privileged":true}}'),
    "duplicate inside": request(b'{"Image":"x","HostConfig":{"Privileged":true,"privileged":false}}'),
    "merged": request(b'{"HostConfig":{"Privileged":false},"HOSTCONFIG":{"CapAdd":["ALL"]},"Image":"x"}'),
    "misplaced": request(b'{"Image":"x","Privileged":true,"Binds":["/:/h"],"PidMode":"host"}'),
    "null first": request(b'{"Image":"x","HostConfig":null,"hostConfig":{"Privileged":true}}'),
    "number": request(b'{"Image":"x","HostConfig":{"Privileged":1}}'),
    "text for a list": request(b'{"Image":"x","HostConfig":{"CapAdd":"SYS_ADMIN"}}'),
    "byte order mark": request(b"\xef\xbb\xbf" + DOCUMENT),
    "UTF-16": request(DOCUMENT.decode().encode("utf-16")),
    "invalid UTF-8": request(b'{"Image":"\xff","Host\xc3Config":{},"HostConfig":{"Privileged":true}}'),
    "two documents": request(b'{"Image":"x"}' + DOCUMENT),
    "document and rest": request(DOCUMENT + b"]"),
    "white space": request(b" \t\r\n" + DOCUMENT.replace(b":", b" \n:\t") + b"\n\n"),
    "comment": request(b"/* */" + DOCUMENT),
    "list": request(b"[" + DOCUMENT + b"]"),
    "NaN": request(b'{"Image":"x","HostConfig":{"Privileged":true,"Memory":NaN}}'),
    "long": request(DOCUMENT[:-1] + b',"Env":["' + b"x" * 300_000 + b'"]}'),
    "too long": request(b" " * (5 << 20) + DOCUMENT),
    "deep": request(DOCUMENT[:-1] + b',"a":' + nested(50) + b"}"),
    "too deep": request(DOCUMENT[:-1] + b',"a":' + nested(5000) + b"}"),
    "many keys": request(b"{" + b"".join(b'"k%d":0,' % n for n in range(20_000)) + DOCUMENT[1:]),
}


class SpellingTests(BypassCase):
    def test_every_spelling(self) -> None:
        """However a forbidden create is written, the daemon gets nothing that it would obey."""
        for name, data in SPELLINGS.items():
            peer = self.send(data)
            peer.transport.abortConnection()
            self.network.pump()
            self.assert_nothing_reached(name)
            self.assertNotIn(b" 201 ", peer.received, name)

    def test_every_privilege(self) -> None:
        """Each thing of the host, in each of a few spellings of its document."""
        for rule, host_config in PRIVILEGES:
            document = {"Image": "x", "HostConfig": host_config}
            plain = json.dumps(document)
            for body in (plain, plain.lower(), json.dumps({"image": "x", "HOSTCONFIG": host_config})):
                peer = self.send(request(body.encode()))
                self.assertRegex(peer.received, b"^HTTP/1.1 4", (rule, body))
                self.assert_nothing_reached(body)

    def test_harmless_goes_through(self) -> None:
        """The same spellings of a harmless create get through: the suite tries what it says."""
        for path in (
            b"/containers/create",
            b"/v1.45/containers/create",
            b"/containers/%63reate",
            b"/containers%2fcreate",
        ):
            for body in (b'{"image":"x","HOSTCONFIG":{"privileged":false}}', b'{"Image":"x"}'):
                peer = self.send(request(body, path))
                self.assertRegex(peer.received, b"^HTTP/1.1 201", (path, body))
                self.assert_nothing_reached(path)


class EndpointTests(BypassCase):
    """Every endpoint that can reach the host."""

    def test_other_endpoints(self) -> None:
        """Each is refused by a rule, and the daemon hears nothing of it."""
        service = {"TaskTemplate": {"ContainerSpec": {"Image": "x", "Mounts": [{"Type": "bind", "Source": "/etc"}]}}}
        for method, target, document in (
            ("POST", "/containers/x/exec", {"Privileged": True, "Cmd": ["sh"]}),
            ("POST", "/containers/x/exec", {"privileged": True}),
            ("POST", "/containers/x/update", {"Devices": [{"PathOnHost": "/dev/sda"}]}),
            ("POST", "/containers/x/update", {"DEVICECGROUPRULES": ["b *:* rwm"]}),
            ("POST", "/containers/x/start?checkpoint=a&checkpoint-dir=/etc", None),
            ("POST", "/containers/x/checkpoints", {"CheckpointID": "a", "CheckpointDir": "/etc"}),
            ("GET", "/containers/x/checkpoints?dir=/etc", None),
            ("POST", "/build?networkmode=host", None),
            ("POST", "/build?networkmode=default&networkmode=host", None),
            ("POST", "/build?remote=http://169.254.169.254/", None),
            ("POST", "/build?cgroupparent=/", None),
            ("POST", "/images/create?fromSrc=http://169.254.169.254/x&repo=x", None),
            ("POST", "/volumes/create", {"DriverOpts": {"type": "none", "o": "bind", "device": "/etc/../etc"}}),
            ("POST", "/volumes/create", {"DriverOpts": {"type": "none", "o": "bind", "device": "etc"}}),
            ("POST", "/volumes/create", {"DriverOpts": {"type": "ext4", "device": "/dev/sda1"}}),
            ("POST", "/volumes/create", {"driveropts": {"type": "overlay", "device": "x", "o": "lowerdir=/etc"}}),
            ("POST", "/volumes/create", {"Driver": "plugin", "DriverOpts": {"mountpoint": "/etc"}}),
            ("POST", "/volumes/create", {"ClusterVolumeSpec": {"AccessMode": {}}}),
            ("POST", "/networks/create", {"Name": "n", "Driver": "macvlan", "Options": {"parent": "eth0"}}),
            ("POST", "/networks/create", {"Name": "n", "Options": {"com.docker.network.bridge.name": "docker0"}}),
            ("POST", "/networks/host/connect", {"Container": "x"}),
            ("POST", "/plugins/pull?remote=vieux/sshfs", []),
            ("POST", "/plugins/create?name=x", None),
            ("POST", "/plugins/x/enable", None),
            ("POST", "/plugins/x/set", []),
            ("POST", "/plugins/x/upgrade?remote=y", []),
            ("POST", "/services/create", service),
            ("POST", "/services/x/update?version=1", service),
            ("POST", "/swarm/init", {"ListenAddr": "0.0.0.0"}),
            ("POST", "/swarm/join", {"RemoteAddrs": ["evil"]}),
            ("GET", "/swarm", None),
            ("GET", "/swarm/unlockkey", None),
            ("POST", "/secrets/create", {"Name": "x"}),
            ("POST", "/configs/create", {"Name": "x"}),
            ("POST", "/nodes/x/update", {}),
            ("POST", "/grpc", None),
            ("POST", "/new/endpoint", {"Privileged": True}),
            ("PATCH", "/containers/x", None),
        ):
            self.daemon.seen.clear()
            status, body = self.ask(method, target, document)
            self.assertIn(status, (400, 403), (method, target, body))
            sent = [call for call in self.daemon.seen if call[0] != "GET"]
            self.assertEqual(sent, [], (method, target))
            self.assert_nothing_reached(target)

    def test_upgrades(self) -> None:
        """A protocol that could carry further requests unseen is not asked for."""
        for target in (b"/containers/x/attach", b"/containers/x/stop", b"/build"):
            head = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
            peer = self.send(request(b"", target, head))
            peer.transport.abortConnection()
            self.network.pump()
        self.assertNotIn("h2c", repr(self.daemon.heads))

    def test_forms(self) -> None:
        """The daemon reads a form in a body before the query: there is none."""
        for target, form in (
            (b"/build", b"remote=http://evil&networkmode=host"),
            (b"/containers/prune", b"filters={}"),
            (b"/commit?container=x", b"container=y"),
            (b"/images/create?fromImage=busybox", b"fromImage=evil"),
        ):
            for kind in (b"application/x-www-form-urlencoded", b"APPLICATION/X-WWW-FORM-URLENCODED; charset=x",
                         b" application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"):  # fmt: skip
                length = b"Content-Length: %d\r\n" % len(form)
                head = b"POST " + target + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + kind + b"\r\n" + length
                peer = self.send(head + b"\r\n" + form)
                self.assertRegex(peer.received, b"^HTTP/1.1 400", (target, kind))
        self.assertEqual(self.daemon.seen, [])


class BindTests(BypassCase):
    """Paths: whatever is written, what is judged is where it leads, and what is judged is what is mirrored."""

    def setUp(self) -> None:
        super().setUp()
        self.build(policy={"binds": ["/usr/share"], "remote_paths": ["/srv/data"]})

    def test_paths(self) -> None:
        """Sources outside of what is allowed are refused in all forms and spellings."""
        for source in ("/etc", "/usr/share/../../etc", "/usr/share/../lib", "//etc", "/./etc", "/usr//share/../lib",
                       "/usr/sharex", "/srv/data2", "/srv", "/srv/data/../x", "/proc", "/var/run/docker.sock",
                       "/run/x.sock", "/run", "/var/run"):  # fmt: skip
            volume = {"DriverConfig": {"Name": "local", "Options": {"type": "none", "o": "bind", "device": source}}}
            for host_config in (
                {"Binds": [f"{source}:/x"]},
                {"Binds": [f"{source}:/x:ro"]},
                {"binds": ["data:/y", f"{source}:/x"]},
                {"Mounts": [{"Type": "bind", "Source": source, "Target": "/x"}]},
                {"mounts": [{"type": "bind", "source": source, "target": "/x"}]},
                {"Mounts": [{"Type": "volume", "Source": "v", "Target": "/x", "VolumeOptions": volume}]},
            ):
                status, body = self.ask("POST", "/containers/create", {"Image": "x", "HostConfig": host_config})
                self.assertIn(status, (400, 403), (host_config, body))
            options = {"type": "none", "o": "bind", "device": source}
            status, body = self.ask("POST", "/volumes/create", {"Name": "v", "DriverOpts": options})
            self.assertIn(status, (400, 403), (options, body))
        self.assertEqual([call for call in self.daemon.seen if call[0] == "POST"], [])
        self.assertEqual(self.journal, [])

    def test_links(self) -> None:
        """A link is judged by where it leads, and mirrored from there."""
        inside, outside = self.mktemp(), self.mktemp()
        root = os.path.realpath(".")
        os.mkdir(inside)
        os.mkdir(outside)
        os.symlink(os.path.abspath(outside), f"{inside}/out")
        os.symlink(os.path.abspath(inside), f"{inside}/in")
        self.build(policy={"binds": [os.path.join(root, inside)]})
        binds = {"Binds": [f"{os.path.abspath(inside)}/out:/x"]}
        self.assertIn("(rule binds)", self.refusal("POST", "/containers/create", {"Image": "x", "HostConfig": binds}))
        binds = {"Binds": [f"{os.path.abspath(inside)}/in:/x"]}
        status, body = self.ask("POST", "/containers/create", {"Image": "x", "HostConfig": binds})
        self.assertEqual(status, 201, body)
        self.assertEqual(self.journal, [f"place {os.path.join(root, inside)} True"])


# Random spellings.

#: Things of the host, as a document asks for them.
_FORBIDDEN = st.sampled_from([host_config for rule, host_config in PRIVILEGES if rule not in ("fields",)])


@st.composite
def spelled_key(draw: Any, key: str) -> str:
    """A key in any case, with letters that fold into it, and escaped or not."""
    letters = []
    for letter in key:
        alike = [letter.lower(), letter.upper()]
        alike += {"s": ["\u017f"], "k": ["\u212a"]}.get(letter.lower(), [])
        chosen = draw(st.sampled_from(alike))
        letters.append(f"\\u{ord(chosen):04x}" if draw(st.integers(0, 9)) == 0 else chosen)
    return '"' + "".join(letters) + '"'


@st.composite
def spelled(draw: Any, value: Any) -> str:
    """A JSON text of a value: keys spelled anyhow, decoys before and behind them, white space anywhere."""
    space = st.sampled_from(["", "", "", " ", "\n\t"])
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            written = (
                draw(spelled_key(key))
                if not key.startswith(("io.", "kernel", "type", "o", "device"))
                else json.dumps(key)
            )
            pair = f"{written}{draw(space)}:{draw(space)}{draw(spelled(item))}"
            decoy = draw(st.sampled_from(["", "", "", "null", "{}", "[]", "false", '""']))
            if decoy:
                other = f"{draw(spelled_key(key))}:{decoy}"
                items += draw(st.sampled_from([[other, pair], [pair, other]]))
            else:
                items.append(pair)
        return "{" + draw(space) + ",".join(items) + draw(space) + "}"
    if isinstance(value, list):
        return "[" + ",".join(draw(spelled(item)) for item in value) + "]"
    return json.dumps(value)


_TARGETS = st.sampled_from([
    b"/containers/create", b"/v1.45/containers/create", b"/containers/%63reate", b"//containers/create",
    b"/a/../containers/create", b"/v1.24/containers/create?name=x", b"/containers%2fcreate",
])  # fmt: skip


class RandomTests(BypassCase):
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_no_spelling_reaches_the_host(self, data: Any) -> None:
        """Whatever a forbidden document is written like, it is refused, or harmless once the daemon has decoded it."""
        document = {"Image": "busybox", "HostConfig": data.draw(_FORBIDDEN)}
        body = data.draw(spelled(document)).encode()
        wire = data.draw(st.sampled_from(["plain", "chunked", "misplaced"]))
        if wire == "misplaced":
            body = data.draw(spelled({"Image": "busybox", **document["HostConfig"]})).encode()
        target = data.draw(_TARGETS)
        message = chunked(body, data.draw(st.integers(1, 50)), target) if wire == "chunked" else request(body, target)
        peer = self.send(message)
        peer.transport.abortConnection()
        self.network.pump()
        self.network.transports = [one for one in self.network.transports if one.connected]
        self.assert_nothing_reached(body)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_the_oracle_sees_it(self, data: Any) -> None:
        """Sent to a daemon as it is, what the other test sends would reach the host."""
        host_config = data.draw(_FORBIDDEN)
        decoded = go_json.decode(json.dumps({"HostConfig": host_config}).encode())
        self.assertIsInstance(decoded["HostConfig"], dict)
        if "Privileged" in host_config or "CapAdd" in host_config or host_config.get("PidMode") == "host":
            self.assertNotEqual(reaches_host(decoded["HostConfig"]), [], host_config)

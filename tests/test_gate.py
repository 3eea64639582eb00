"""The gate in front of a context: quotas, facts that need a look, and what it leaves alone."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from rda.access.caller import Proof
from tests.gate_case import GateCase
from tests.small_daemon import an_id


class QuotaTests(GateCase):
    access = {"policy": {"max_containers": 2, "max_forwards": 3}, "user": {"bob": {"max_containers": 0}}}

    def test_containers(self) -> None:
        """A user has at most so many containers; others have theirs; what is removed makes room."""
        first = self.create("ann", "one")
        self.create("ann", "two")
        self.assertIn("(rule max_containers)", self.refusal("POST", "/containers/create", {"Image": "x"}))
        self.create("bob", "three")
        self.create("bob", "four")
        self.create("bob", "five")
        self.ask("DELETE", f"/containers/{first}", user="ann")
        self.create("ann", "six")

    def test_forwards(self) -> None:
        """Published ports are counted over all containers of a user."""
        bindings = {"80/tcp": [{"HostPort": "8080"}, {"HostPort": "8081"}]}
        self.create("ann", "one", HostConfig={"PortBindings": bindings})
        document = {"Image": "x", "HostConfig": {"PortBindings": bindings}}
        self.assertIn("(rule max_forwards)", self.refusal("POST", "/containers/create", document))
        self.create("ann", "two", HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "8082"}]}})

    def test_at_the_same_time(self) -> None:
        """Creates at the same time do not each take the last room."""
        placing: list[Deferred[Any]] = []
        self.mirrors.place = lambda source, create_missing=False, alone=False: placing.append(Deferred()) or placing[-1]  # type: ignore[method-assign,func-returns-value,return-value]
        document = json.dumps({"Image": "x", "HostConfig": {"Binds": ["/usr/share:/x"]}}).encode()
        head = b"POST /containers/create HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        message = head + b"Content-Length: %d\r\n\r\n" % len(document) + document
        waiting = [self.send(message) for _ in range(5)]
        self.assertEqual(len(placing), 2)
        for peer in waiting[2:]:
            self.assertIn(b"max_containers", peer.received)
        for peer in waiting:  # who leaves makes room
            peer.transport.abortConnection()
        self.network.pump()
        for place in placing:
            place.errback(ValueError())
        self.network.pump()
        self.flushLoggedErrors()
        self.create("ann", "one")
        self.create("ann", "two")

    def test_failed_creates_make_room(self) -> None:
        """A create that the daemon refuses counts no longer."""
        for _ in range(3):
            self.create("bob", "taken") if not self.daemon.find(self.daemon.containers, "taken") else None
            self.assertEqual(self.ask("POST", "/containers/create?name=taken", {"Image": "x"}, "ann")[0], 409)
        self.create("ann", "one")
        self.create("ann", "two")

    def test_bytes(self) -> None:
        """Bind sources may hold so many bytes altogether; one that is mirrored already counts once."""
        import os

        source = os.path.realpath(self.mktemp())
        os.makedirs(f"{source}/deep")
        for name in ("a", "deep/b"):
            with open(f"{source}/{name}", "wb") as file:
                file.write(bytes(500))
        self.build(policy={"max_sync_bytes": 1500})
        binds = {"HostConfig": {"Binds": [f"{source}:/x"]}}
        self.create("ann", "one", **binds)
        self.create("ann", "two", **binds)
        os.makedirs(f"{source}2")
        with open(f"{source}2/c", "wb") as file:
            file.write(bytes(501))
        more = {"Image": "x", "HostConfig": {"Binds": [f"{source}2:/x"]}}
        self.assertIn("(rule max_sync_bytes)", self.refusal("POST", "/containers/create", more))
        self.create("bob", "three", HostConfig=more["HostConfig"])


class FactTests(GateCase):
    access = {"policy": {"images": ["busybox"]}}

    def test_image_by_id(self) -> None:
        """An image that is named by its id is judged by its names."""
        self.assertEqual(self.ask("POST", "/containers/create", {"Image": "sha256:1"})[0], 201)
        self.build(policy={"images": ["alpine"]})
        self.refusal("POST", "/containers/create", {"Image": "sha256:1"})

    def test_foreign_containers(self) -> None:
        """A container that was made beside rda cannot be joined; one that was made here is, by its full id."""
        self.daemon._create({"name": ["foreign"]}, {})
        document = {"Image": "busybox", "HostConfig": {"VolumesFrom": ["foreign"]}}
        self.assertIn("(rule other_containers)", self.refusal("POST", "/containers/create", document))
        mine = self.create("ann", "mine")
        document = {"Image": "busybox", "HostConfig": {"VolumesFrom": ["mine:ro"], "PidMode": "container:mine"}}
        self.assertEqual(self.ask("POST", "/containers/create", document)[0], 201)
        sent = json.loads(self.daemon.calls("POST", "/containers/create")[-1][1])["HostConfig"]
        self.assertEqual((sent["VolumesFrom"], sent["PidMode"]), ([f"{mine}:ro"], f"container:{mine}"))

    def test_volumes_that_are_there(self) -> None:
        """A volume that somebody made of a path of the host, or with another driver, is judged when it is used."""
        bound = {"type": "none", "o": "bind", "device": "/etc"}
        self.daemon._make_volume({"Name": "etc", "DriverOpts": bound})
        self.daemon._make_volume({"Name": "disk", "DriverOpts": {"type": "ext4", "device": "/dev/sda1"}})
        self.daemon._make_volume({"Name": "plain"})
        self.daemon._make_volume({"Name": "other"})["Driver"] = "rexray"
        for name, rule in (("etc", "remote_paths"), ("disk", "volume_types"), ("other", "volume_drivers")):
            for host_config in (
                {"Binds": [f"{name}:/x"]},
                {"Mounts": [{"Type": "volume", "Source": name, "Target": "/x"}]},
            ):
                document = {"Image": "busybox", "HostConfig": host_config}
                self.assertIn(f"(rule {rule})", self.refusal("POST", "/containers/create", document))
        document = {"Image": "busybox", "HostConfig": {"Binds": ["plain:/x", "new:/y"]}}
        self.assertEqual(self.ask("POST", "/containers/create", document)[0], 201)
        self.assertEqual(self.ask("POST", "/volumes/create", {"Name": "mine", "DriverOpts": {**bound, "device": "/usr"}})[0], 201)  # fmt: skip # noqa: E501
        document = {"Image": "busybox", "HostConfig": {"Binds": ["mine:/x"]}}
        self.assertEqual(self.ask("POST", "/containers/create", document)[0], 201)

    def test_everybodys(self) -> None:
        """Without an owner filter, everybody sees everything, and rda's labels are hidden."""
        self.create("ann", "web")
        _, listed = self.ask("GET", "/containers/json", user="bob")
        self.assertEqual(len(listed), 1)
        self.ask("POST", "/networks/create", {"Name": "n"}, "ann")
        self.assertEqual(self.ask("GET", "/networks/n", user="bob")[0], 200)

    def test_unfinished_business(self) -> None:
        """What the daemon is asked is what the client asked, where nothing is to be changed."""
        self.create("ann", "web")
        status, _ = self.ask("POST", "/containers/web/exec", {"Cmd": ["sh"], "Tty": True}, "ann")
        self.assertEqual(status, 201)
        ((_, body),) = self.daemon.calls("POST", "/containers/web/exec")
        self.assertEqual(json.loads(body), {"Cmd": ["sh"], "Tty": True})
        self.ask("POST", "/containers/web/update", {"Memory": 5}, "ann")
        ((_, body),) = self.daemon.calls("POST", "/containers/web/update")
        self.assertEqual(json.loads(body), {"Memory": 5})


class OwnPageTests(GateCase):
    def test_control(self) -> None:
        """Under a policy, rda's own pages are for the user that it runs as."""
        for method, page in (("POST", "flush"), ("GET", "status"), ("GET", "events"), ("GET", "metrics"), ("GET", "")):
            self.assertEqual(self.ask(method, f"/_rda/{page}")[0], 403, page)

    def test_nobody_is_asked(self) -> None:
        """Where nobody is asked who calls, there are no others to keep the status from; control is refused still."""
        self.proof = Proof.NONE
        self.assertEqual(self.ask("GET", "/_rda/status")[0], 404)  # nothing is served there in this test
        self.assertEqual(self.ask("POST", "/_rda/flush")[0], 403)

    def test_host_network_by_id(self) -> None:
        """The host's network is claimed by name; by its id, the daemon refuses a container that does not say host."""
        document = {"Image": "x", "HostConfig": {"NetworkMode": an_id("host")}}
        self.assertIn("host_namespaces", self.refusal("POST", "/containers/create", document))

"""Two users on one remote host: neither can list, name, stop, read or mount anything of the other's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from rda.docker.endpoints import ENDPOINTS
from rda.docker.owned import named_volumes
from rda.docker.request import OWNER_LABEL, USER_LABEL
from rda.docker.routes import Route
from tests.gate_case import OWNER, GateCase
from tests.small_daemon import an_id

#: Endpoints whose path names something that has an owner, and the beginning of their route's name.
OWNED_GROUPS = {"container": "container", "checkpoint": "container", "exec": "exec", "volume": "volume",
                "network": "network"}  # fmt: skip

#: Endpoints that name what is everybody's, or what nobody may reach under an owner filter.
SHARED_GROUPS = {"image", "distribution", "plugin", "swarm", "node", "service", "task", "secret", "config"}


class OwnerCase(GateCase):
    access = {"policy": {"checkpoints": True, "swarm": True, "plugins": True}, "owner_filter": True}

    def setUp(self) -> None:
        super().setUp()
        self.hers = self.create("ann", "web", HostConfig={"Binds": ["data:/data"]})
        _, made = self.ask("POST", f"/containers/{self.hers}/exec", {"Cmd": ["sh"]}, "ann")
        self.her_exec = made["Id"]
        self.ask("POST", "/networks/create", {"Name": "net"}, "ann")
        self.her_net = next(one["Id"] for one in self.daemon.networks.values() if one["Name"] == "net")
        self.his = self.create("bob", "own")
        self.daemon.seen.clear()

    def reference(self, route: Route) -> tuple[str, str]:
        """The name and the id of what is hers, of the kind that an endpoint names."""
        kind = "exec" if route.name in ("exec start", "exec inspect", "exec resize") else route.name.partition(" ")[0]
        return {
            "container": ("web", self.hers),
            "checkpoint": ("web", self.hers),
            "exec": (self.her_exec, self.her_exec),
            "volume": ("data", "data"),
            "network": ("net", self.her_net),
        }["container" if route.name == "exec create" else kind]

    def spellings(self, route: Route) -> Iterator[str]:
        """Every way to write a path that names it."""
        name, id_ = self.reference(route)
        references = dict.fromkeys((name, id_, id_[:12] if len(id_) == 64 else id_, quote(name[0]) + name[1:]))
        encoded = "".join(f"%{ord(letter):02x}" for letter in name)
        for reference in (*references, encoded):
            yield route.pattern.replace("{ref}", reference).replace("{any}", "x")
        path = route.pattern.replace("{ref}", name).replace("{any}", "x")
        yield from (f"/v1.45{path}", f"/v01.45{path}", path.replace("/", "%2f", 2).replace("%2f", "/", 1))

    def changes_seen(self) -> list[tuple[str, str]]:
        """The calls that the daemon got, but for those by which rda finds out whose something is."""
        questions = ("/json", "/volumes/", "/networks/", "/images/")
        return [
            (method, path)
            for method, path, _, _ in self.daemon.seen
            if not (method == "GET" and any(part in path for part in questions))
        ]


class EveryEndpointTests(OwnerCase):
    def test_every_endpoint_has_a_group(self) -> None:
        """Of every endpoint that names something it is known whether that has an owner."""
        for route in ENDPOINTS:
            if "{ref}" in route.pattern:
                self.assertIn(route.name.partition(" ")[0], {*OWNED_GROUPS, *SHARED_GROUPS}, route)

    def test_others(self) -> None:
        """Whatever names something of hers, in any spelling, is answered to him as if nothing had that name."""
        tried = 0
        for route in ENDPOINTS:
            if "{ref}" not in route.pattern or route.name.partition(" ")[0] not in OWNED_GROUPS:
                continue
            for path in self.spellings(route):
                self.daemon.seen.clear()
                status, body = self.ask(route.method.decode(), path, self.document(route), "bob")
                self.assertEqual(status, 404, (route.name, path, body))
                self.assertEqual(self.changes_seen(), [], (route.name, path))
                tried += 1
        self.assertGreater(tried, 200)

    def test_paths_not_in_normal_form(self) -> None:
        """Such paths are redirected, whosever it is that they name, and the daemon does not hear of them."""
        for name in ("web", "nosuch"):
            for path in (f"//containers/{name}/start", f"/./containers/{name}/start", f"/x/../containers/{name}/start"):
                self.assertEqual(self.ask("POST", path, user="bob")[0], 301, path)
        self.assertEqual(self.daemon.seen, [])

    def document(self, route: Route) -> Any:
        return {"Container": self.his} if route.name in ("network connect", "network disconnect") else None

    def test_own(self) -> None:
        """The same calls are let through to her, by the full id."""
        for route in ENDPOINTS:
            if "{ref}" not in route.pattern or route.name.partition(" ")[0] not in OWNED_GROUPS:
                continue
            if route.method == b"DELETE" or route.name in ("exec start", "container attach websocket"):
                continue  # what is gone, or hijacked, cannot be asked again
            _, id_ = self.reference(route)
            for path in self.spellings(route):
                document = {"Container": "web"} if "connect" in route.name else None
                self.daemon.seen.clear()
                status, body = self.ask(route.method.decode(), path, document, "ann")
                if route.method != b"HEAD":
                    self.assertLess(status, 400, (route.name, path, body))
                sent = route.pattern.replace("{ref}", id_).replace("{any}", "x")
                self.assertIn((route.method.decode(), sent), [call[:2] for call in self.daemon.seen], route.name)

    def test_swarm_has_no_owners(self) -> None:
        """Swarm's objects and endpoints that nobody knows cannot be told apart: they are refused."""
        for method, path in (("GET", "/services"), ("GET", "/nodes/x"), ("POST", "/secrets/create"), ("GET", "/swarm"),
                             ("GET", "/tasks"), ("GET", "/new"), ("POST", "/new"), ("GET", "/containers/json/")):  # fmt: skip # noqa: E501
            self.assertIn("owner_filter", self.refusal(method, path, user="bob"), path)

    def test_nobody(self) -> None:
        """Who is not known has nothing."""
        self.assertIn("who calls", self.refusal("GET", "/containers/json", user=""))
        self.assertIn("who calls", self.refusal("POST", f"/containers/{self.hers}/stop", user=""))


class ReferenceTests(OwnerCase):
    """Everything outside of paths that names something."""

    def test_in_documents(self) -> None:
        """No create document of his can name what is hers."""
        for host_config in (
            {"VolumesFrom": ["web"]},
            {"VolumesFrom": [f"{self.hers[:12]}:ro"]},
            {"PidMode": "container:web"},
            {"IpcMode": f"container:{self.hers}"},
            {"NetworkMode": "container:web"},
            {"NetworkMode": "net"},
            {"NetworkMode": self.her_net},
            {"Cgroup": "container:web"},
            {"Links": ["web:db"]},
            {"Binds": ["data:/x"]},
            {"Mounts": [{"Type": "volume", "Source": "data", "Target": "/x"}]},
        ):
            document = {"Image": "busybox", "HostConfig": host_config}
            status, body = self.ask("POST", "/containers/create?name=evil", document, "bob")
            self.assertIn(status, (403, 404), (host_config, body))
        for networking in ({"net": {}}, {"own": {"NetworkID": self.her_net}}, {"bridge": {"Links": ["web:x"]}}):
            document = {"Image": "busybox", "NetworkingConfig": {"EndpointsConfig": networking}}
            status, body = self.ask("POST", "/containers/create?name=evil", document, "bob")
            self.assertEqual(status, 404, (networking, body))
        self.assertEqual(self.daemon.calls("POST", "/containers/create"), [])

    def test_in_queries(self) -> None:
        """Nor can a commit or a build."""
        for target in (
            "/commit?container=web",
            f"/commit?container={self.hers}",
            "/commit?container=web&container=own",
            "/build?networkmode=container:web",
            "/build?networkmode=net",
        ):
            status, _ = self.ask("POST", target, user="bob")
            self.assertEqual(status, 404, target)
        self.assertEqual(self.changes_seen(), [])
        self.assertEqual(self.ask("POST", "/commit?container=own&container=web", user="bob")[0], 200)
        ((query, _),) = self.daemon.calls("POST", "/commit")
        self.assertEqual(query["container"], [self.his])

    def test_own_networks(self) -> None:
        """He cannot bring her container into his network, nor his into hers."""
        self.ask("POST", "/networks/create", {"Name": "mine"}, "bob")
        for path, container in (("/networks/mine/connect", "web"), ("/networks/net/connect", "own"),
                                ("/networks/bridge/connect", "web"), ("/networks/bridge/disconnect", self.hers)):  # fmt: skip # noqa: E501
            self.assertEqual(self.ask("POST", path, {"Container": container}, "bob")[0], 404, path)
        self.assertEqual(self.ask("POST", "/networks/mine/connect", {"container": "own"}, "bob")[0], 200)

    def test_a_form_says_nothing(self) -> None:
        """A form in the body, which the daemon would prefer to the query, is refused."""
        form = "Content-Type: application/x-www-form-urlencoded\r\n"
        for kind in (form, form.upper(), "Content-Type: Application/X-WWW-Form-URLencoded ; a=b\r\n"):
            status, _ = self.ask("POST", "/commit?container=own", b"container=web", "bob", kind)
            self.assertEqual(status, 400)
        self.assertEqual(self.changes_seen(), [])

    def test_name_that_looks_like_an_id(self) -> None:
        """A container that is called like the beginning of another one's id is itself, also when it is renamed."""
        self.create("bob", self.hers[:12])
        self.daemon.seen.clear()
        self.ask("POST", f"/containers/{self.hers[:12]}/stop", user="bob")
        (path,) = [path for method, path, _, _ in self.daemon.seen if method == "POST"]
        self.assertNotIn(self.hers[:12], path)


class ListTests(OwnerCase):
    def test_containers(self) -> None:
        """Each sees their own containers, whatever they ask for."""
        for query in ("", "?all=1", "?filters=" + quote(json.dumps({"label": [f"{USER_LABEL}=ann"]})),
                      "?filters=" + quote(json.dumps({"label": {f"{USER_LABEL}=ann": True}})),
                      "?filters={}&filters=" + quote(json.dumps({"name": ["web"]}))):  # fmt: skip
            _, listed = self.ask("GET", f"/containers/json{query}", user="bob")
            self.assertLessEqual({one["Id"] for one in listed}, {self.his}, query)
        _, listed = self.ask("GET", "/containers/json?all=1", user="ann")
        self.assertEqual([one["Id"] for one in listed], [self.hers])
        self.assertEqual(listed[0]["Labels"], {})

    def test_a_label_from_an_image(self) -> None:
        """A container that somebody made with her labels, but not through rda, is not hers."""
        labels = {USER_LABEL: "ann", OWNER_LABEL: OWNER}
        self.daemon._create({"name": ["fake"]}, {"Labels": labels})
        _, listed = self.ask("GET", "/containers/json?all=1", user="ann")
        self.assertEqual([one["Id"] for one in listed], [self.hers])
        self.assertEqual(self.ask("POST", "/containers/fake/stop", user="ann")[0], 404)

    def test_labels_cannot_be_set(self) -> None:
        """Nobody sets the labels of ownership, in any document."""
        labels = {USER_LABEL: "ann"}
        volume = {"Type": "volume", "Target": "/x", "VolumeOptions": {"Labels": labels}}
        for path, document in (
            ("/containers/create", {"Image": "busybox", "Labels": labels}),
            ("/containers/create", {"Image": "busybox", "labels": labels}),
            ("/containers/create", {"Image": "busybox", "HostConfig": {"Mounts": [volume]}}),
            ("/volumes/create", {"Name": "v", "Labels": labels}),
            ("/volumes/create", {"Name": "v", "LABELS": labels}),
            ("/networks/create", {"Name": "n", "Labels": labels}),
            ("/networks/create", {"Name": "n", "\u017fcope": "local", "Label\u017f": labels}),
        ):
            self.assertIn("rda's own", self.refusal("POST", path, document, user="bob"))
        self.refusal("POST", "/build?labels=" + quote(json.dumps(labels)), user="bob")

    def test_every_create_is_labelled(self) -> None:
        """What is made carries its user, and shows it to nobody."""
        for path, things in (("/volumes/create", self.daemon.volumes), ("/networks/create", self.daemon.networks)):
            before = set(things)
            status, _ = self.ask("POST", path, {"name": "new"}, "bob")
            self.assertEqual(status, 201)
            (made,) = set(things) - before
            self.assertEqual(things[made]["Labels"], {OWNER_LABEL: OWNER, USER_LABEL: "bob"})
            _, shown = self.ask("GET", path.replace("create", made), user="bob")
            self.assertFalse(shown["Labels"])

    def test_volumes(self) -> None:
        """Each sees their own volumes; an anonymous one is whose containers use it."""
        self.daemon.volumes[an_id("anonymous")] = {
            "Name": an_id("anonymous"), "Labels": {"com.docker.volume.anonymous": ""}, "Driver": "local", "Options": {},
        }  # fmt: skip
        self.daemon.containers[self.his]["Mounts"] = [{"Type": "volume", "Name": an_id("anonymous")}]
        for user, expected in (("ann", ["data"]), ("bob", [an_id("anonymous")])):
            for path in ("/volumes", "/system/df"):
                _, listed = self.ask("GET", path, user=user)
                self.assertEqual([one["Name"] for one in listed["Volumes"]], expected, path)
        self.assertEqual(self.ask("GET", f"/volumes/{an_id('anonymous')}", user="bob")[0], 200)
        self.assertEqual(self.ask("DELETE", f"/volumes/{an_id('anonymous')}", user="ann")[0], 404)
        self.daemon.containers[self.hers]["Mounts"].append({"Type": "volume", "Name": an_id("anonymous")})
        self.assertEqual(self.ask("GET", f"/volumes/{an_id('anonymous')}", user="bob")[0], 404)

    def test_volume_names_are_taken(self) -> None:
        """A volume of hers cannot be made again by him, nor is it told to him."""
        status, _ = self.ask("POST", "/volumes/create", {"Name": "data"}, "bob")
        self.assertEqual(status, 403)
        self.assertEqual(self.daemon.volumes["data"]["Labels"][USER_LABEL], "ann")

    def test_networks(self) -> None:
        """Each sees their own networks and the daemon's, and in those only their own containers."""
        self.daemon.networks[an_id("bridge")]["Containers"] = {self.hers: {}, self.his: {}}
        _, listed = self.ask("GET", "/networks", user="bob")
        self.assertEqual({one["Name"] for one in listed}, {"bridge", "host", "none"})
        _, listed = self.ask("GET", "/networks", user="ann")
        self.assertEqual({one["Name"] for one in listed}, {"bridge", "host", "none", "net"})
        _, bridge = self.ask("GET", "/networks/bridge", user="bob")
        self.assertEqual(set(bridge["Containers"]), {self.his})

    def test_df(self) -> None:
        """Disk usage shows one's own containers."""
        _, usage = self.ask("GET", "/system/df", user="bob")
        self.assertEqual([one["Id"] for one in usage["Containers"]], [self.his])

    def test_prune(self) -> None:
        """A prune reaches one's own things, and images without a name."""
        for path in ("/containers/prune", "/volumes/prune", "/networks/prune"):
            self.ask("POST", path + "?filters=" + quote(json.dumps({"label": ["a"]})), user="bob")
            ((query, _),) = self.daemon.calls("POST", path)
            labels = json.loads(query["filters"][0])["label"]
            self.assertEqual(labels, {"a": True, f"{OWNER_LABEL}={OWNER}": True, f"{USER_LABEL}=bob": True})
        self.ask("POST", "/images/prune?filters=" + quote(json.dumps({"dangling": ["false"]})), user="bob")
        ((query, _),) = self.daemon.calls("POST", "/images/prune")
        self.assertEqual(json.loads(query["filters"][0]), {"dangling": {"true": True}})

    def test_prune_by_form_or_twice(self) -> None:
        """Filters that come twice, or cannot be read, prune nothing of others'."""
        self.ask("POST", "/containers/prune?filters=&filters=" + quote('{"label":["b"]}'), user="bob")
        ((query, _),) = self.daemon.calls("POST", "/containers/prune")
        self.assertEqual(len(query["filters"]), 1)
        self.refusal("POST", "/containers/prune?filters=nonsense", user="bob")

    def test_events(self) -> None:
        """Each hears of their own things."""
        peer = self.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n", "bob")
        labels = {one: self.daemon.containers[one]["Config"]["Labels"] for one in (self.hers, self.his)}
        for kind, name, attributes in (
            ("container", self.hers, labels[self.hers]),
            ("container", self.his, labels[self.his]),
            ("container", an_id("other"), labels[self.his]),
            ("volume", "data", {}),
            ("network", an_id("bridge"), {"container": self.hers}),
            ("network", an_id("bridge"), {"container": self.his}),
            ("service", "x", {}),
            ("image", "busybox", {}),
        ):
            action = f"test-{kind}-{name[:12]}"
            self.daemon.event({"Type": kind, "Action": action, "Actor": {"ID": name, "Attributes": attributes}})
        self.network.pump()
        shown = peer.received.decode()
        self.assertEqual(shown.count("test-container"), 1)
        self.assertIn(f"test-container-{self.his[:12]}", shown)
        self.assertEqual(shown.count("test-network"), 1)
        self.assertNotIn(self.hers, shown)
        self.assertNotIn("test-volume", shown)
        self.assertNotIn("test-service", shown)
        self.assertIn("test-image-busybox", shown)
        self.assertNotIn(OWNER, shown)
        peer.transport.abortConnection()
        self.network.pump()

    def test_conflict(self) -> None:
        """A name that is taken is told without whose id has it."""
        status, body = self.ask("POST", "/containers/create?name=web", {"Image": "busybox"}, "bob")
        self.assertEqual(status, 409)
        self.assertNotIn(self.hers, body["message"])

    def test_conflicts_of_others(self) -> None:
        """Nor do the errors of a rename, or of the removal of an image, tell ids."""
        message = f'Conflict. "/web" is in use by container "{self.hers}", container {self.hers[:12]} uses its image'
        for method, path in (("POST", f"/containers/{self.his}/rename"), ("DELETE", "/images/busybox")):
            self.daemon.errors[method, path] = message
            status, body = self.ask(method, f"{path}?name=web", user="bob")
            self.assertEqual(status, 409)
            self.assertNotIn(self.hers[:12], body["message"])

    def test_new_volumes_are_the_makers(self) -> None:
        """Volumes that a create names are made as the caller's, and others' stay theirs."""
        self.create("bob", "second", HostConfig={"Binds": ["fresh:/x"], "Mounts": [
            {"Type": "volume", "Source": "fresher", "Target": "/y", "VolumeOptions": {"Labels": {"a": "b"}}}]})  # fmt: skip # noqa: E501
        self.assertEqual(self.daemon.volumes["fresh"]["Labels"][USER_LABEL], "bob")
        self.assertEqual(self.daemon.volumes["fresher"]["Labels"][USER_LABEL], "bob")
        self.assertEqual(self.daemon.volumes["fresher"]["Labels"]["a"], "b")
        _, shown = self.ask("GET", "/containers/second/json", user="bob")
        self.assertEqual(shown["HostConfig"]["Mounts"][0]["VolumeOptions"]["Labels"], {"a": "b"})

    def test_volumes_without_a_name(self) -> None:
        """A volume that the daemon makes for a mount is the caller's too; clients do not see by which label."""
        self.create("bob", "third", HostConfig={"Mounts": [{"Type": "volume", "Target": "/y"}]})
        (_, body), *_ = self.daemon.calls("POST", "/containers/create")
        (mount,) = json.loads(body)["HostConfig"]["Mounts"]
        self.assertEqual(mount["VolumeOptions"]["Labels"][USER_LABEL], "bob")
        _, shown = self.ask("GET", "/containers/third/json", user="bob")
        self.assertEqual(shown["HostConfig"]["Mounts"], [{"Type": "volume", "Target": "/y"}])

    def test_volumes_that_a_create_names(self) -> None:
        """They are those of Binds and Mounts that have a name: neither paths nor volumes without one."""
        mounts = [
            {"Type": "bind", "Source": "/src", "Target": "/a"},
            {"Type": "volume", "Target": "/b"},
            {"Type": "tmpfs", "Target": "/c"},
            {"Type": "volume", "Source": "named", "Target": "/d"},
        ]
        document = {"HostConfig": {"Binds": ["/src:/x", "other:/y", "C:\\src:/z"], "Mounts": mounts}}
        self.assertEqual(set(named_volumes(document)), {"named", "other"})

    def test_own_pages(self) -> None:
        """rda's own pages show everybody's things, and so only whom rda runs as sees them."""
        for method, path in (("GET", "/_rda/status"), ("POST", "/_rda/flush"), ("GET", "/_rd%61/status")):
            self.assertEqual(self.ask(method, path, user="bob")[0], 403, path)

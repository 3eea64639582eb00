"""rda.docker.rewrite: outward and inward are each other's inverse, on real documents of dockerd 26.1.5."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.docker import rewrite
from rda.docker.binds import Form, Rules, container_binds
from rda.docker.document import parse, serialise
from rda.docker.listing import outward_filters
from rda.docker.ports import Listener, Listeners, Published
from rda.docker.request import OWNER_LABEL, REQUEST_LABEL, Request, find_request, is_labelled, request_of
from rda.errors import BadRequest, Refused

DATA = Path(__file__).parent / "data"

#: What the documents in tests/data were made with.
OWNER = "0123456789abcdef0123456789abcdef"
NONCE = "5ca1ab1e"
MIRRORS = "/home/dev/.rda/mirrors/"
PLACES = {
    "/srv/app/src": MIRRORS + "4be1",
    "/srv/app/logs": MIRRORS + "77c0",
    "/srv/app/secret": MIRRORS + "9d02",
    "/srv/app/data": MIRRORS + "e5a3",
}

#: Where the ports of the container in tests/data are open here.
LOCAL: Listeners = {
    "53/udp": (Listener("", 15353),),
    "80/tcp": (Listener("127.0.0.1", 18081), Listener("", 18080)),
    "81/tcp": (Listener("", 18100),),
}


def mine(container: Mapping[str, object]) -> bool:
    """Whether a container is ours: here, labels are enough."""
    return is_labelled(container, OWNER)


def load(name: str) -> Any:
    """A document from tests/data."""
    return json.loads((DATA / f"{name}.json").read_text())


def outward(document: Mapping[str, object], **more: Any) -> dict[str, Any]:
    """The new document."""
    places = {bind.path: PLACES.get(bind.path, "/mirror" + bind.path) for bind in container_binds(document)}
    return rewrite.outward(document, more.pop("places", places), OWNER, NONCE, **more)[0]


def inspected(document: Mapping[str, Any]) -> dict[str, Any]:
    """A created document as inspect would show it."""
    config = {key: value for key, value in document.items() if key != "HostConfig"}
    return {"Id": "c1", "Config": config, "HostConfig": document.get("HostConfig", {})}


class OutwardTests(SynchronousTestCase):
    """What is sent to the daemon."""

    def test_real_document(self) -> None:
        """The CLI's document goes out with remote paths, one free remote port each, and all else as it came."""
        create = load("create")
        before = copy.deepcopy(create)
        sent = outward(create)
        self.assertEqual(create, before)
        host = sent["HostConfig"]
        self.assertEqual(
            host["Binds"],
            [MIRRORS + "4be1:/app:ro", "cache:/cache", MIRRORS + "4be1:/again", MIRRORS + "77c0:/logs"],
        )
        self.assertEqual([mount.get("Source") for mount in host["Mounts"]], [MIRRORS + "9d02", "devdata", None])
        self.assertEqual(host["Mounts"][1]["VolumeOptions"]["DriverConfig"]["Options"]["device"], MIRRORS + "e5a3")
        free = [{"HostIp": "127.0.0.1", "HostPort": ""}]
        self.assertEqual(host["PortBindings"], {"53/udp": free, "80/tcp": free, "81/tcp": free})
        for changed in ("Binds", "Mounts", "PortBindings"):
            host[changed] = create["HostConfig"][changed]
        labels = sent["Labels"]
        self.assertEqual(labels.pop(OWNER_LABEL), OWNER)
        self.assertEqual(json.loads(labels.pop(REQUEST_LABEL))["n"], NONCE)
        self.assertEqual(serialise(sent), serialise(create))

    def test_inherited_mounts(self) -> None:
        """What comes by VolumesFrom is kept in the label too, and shown with its local path."""
        donor = Request("other", originals={"b0": "/src:/app"}, shown={"/mirror/src": "/src"}, sources=("/src",))
        sent = outward({"Image": "x", "HostConfig": {"VolumesFrom": ["donor:ro"]}}, inherited=[donor])
        self.assertEqual(sent["HostConfig"], {"VolumesFrom": ["donor:ro"]})
        mounts = [{"Type": "bind", "Source": "/mirror/src", "Destination": "/app"}]
        shown: Any = {**inspected(sent), "Mounts": mounts, "State": {"Error": "cannot mount /mirror/src", "Pid": 0}}
        self.assertEqual(request_of(shown).sources, ("/src",))
        shown = rewrite.inward_inspect(shown, mine, None)
        self.assertEqual(shown["Mounts"][0]["Source"], "/src")
        self.assertEqual(shown["State"], {"Error": "cannot mount /src", "Pid": 0})

    def test_minimal(self) -> None:
        """A document without anything to rewrite only gets our labels."""
        sent = outward({"Image": "x"})
        self.assertEqual(sorted(sent), ["Image", "Labels"])
        self.assertEqual(sorted(sent["Labels"]), [OWNER_LABEL, REQUEST_LABEL])
        self.assertEqual(outward({"HostConfig": None, "Labels": None})["HostConfig"], None)

    def test_folded(self) -> None:
        """Keys that only the daemon would recognise are recognised."""
        body = b'{"hostconfig":{"bind\xc5\xbf":["/srv/app/src:/a"],"PORTBINDINGS":{"80":[{"hostport":"1"}]}}}'
        sent = rewrite.outward(parse(body), PLACES, OWNER, NONCE)[0]
        self.assertEqual(sent["HostConfig"]["Binds"], [MIRRORS + "4be1:/a"])  # type: ignore[index]
        self.assertEqual(list(sent["HostConfig"]["PortBindings"]), ["80"])  # type: ignore[index]

    def test_no_place(self) -> None:
        """A bind that nobody decided about is never sent on."""
        document = {"HostConfig": {"Binds": ["/srv/app/src:/a"]}}
        error = self.assertRaises(Refused, rewrite.outward, document, {}, OWNER, NONCE)
        self.assertIn("/srv/app/src", str(error))
        self.assertRaises(Refused, rewrite.outward, document, {"/srv/app/src": "/a:b"}, OWNER, NONCE)

    def test_remote_paths(self) -> None:
        """The remote host's own paths stay as they are, or get the name that they have there; they are not sources."""
        document = {"HostConfig": {"Binds": ["/proc:/p", "/var/run/docker.sock:/d", "/srv/app/src:/a"]}}
        remote = {"/proc": "/proc", "/var/run/docker.sock": "/run/user/1000/docker.sock"}
        sent = rewrite.outward(document, PLACES, OWNER, NONCE, remote=remote)[0]
        self.assertEqual(
            sent["HostConfig"]["Binds"],  # type: ignore[index]
            ["/proc:/p", "/run/user/1000/docker.sock:/d", MIRRORS + "4be1:/a"],
        )
        self.assertEqual(request_of(inspected(sent)).sources, ("/srv/app/src",))

    def test_windows(self) -> None:
        """A Windows source goes out as its place, and comes back as it was written."""
        document = {"HostConfig": {"Binds": [r"C:\src:/app:ro"]}}
        sent = outward(document, places={r"C:\src": "/mirror/c"})
        self.assertEqual(sent["HostConfig"]["Binds"], ["/mirror/c:/app:ro"])
        shown = rewrite.inward_inspect(inspected(sent), mine, {})
        self.assertEqual(shown["HostConfig"], document["HostConfig"])

    def test_publish_all(self) -> None:
        """The remote publishes nothing on all its addresses: exposed ports, the image's too, are named one by one."""
        document = {"ExposedPorts": {"80/tcp": {}}, "HostConfig": {"PublishAllPorts": True}}
        sent = outward(document, exposed=["81", "53/udp"])
        self.assertIs(sent["HostConfig"]["PublishAllPorts"], False)
        self.assertEqual(sorted(sent["HostConfig"]["PortBindings"]), ["53/udp", "80/tcp", "81"])
        request = request_of(inspected(sent))
        self.assertEqual(request.ports, (Published(53, "udp"), Published(80, "tcp"), Published(81, "tcp")))

    def test_remote_binding_only(self) -> None:
        """Whatever address and port the user asks for, the remote host opens a free port of its own 127.0.0.1."""
        bindings = {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}, {"HostIp": "10.0.0.1"}], "80": [{}], "81": []}
        sent = outward({"HostConfig": {"PortBindings": bindings}})
        free = [{"HostIp": "127.0.0.1", "HostPort": ""}]
        self.assertEqual(sent["HostConfig"]["PortBindings"], {"80/tcp": free, "80": free})

    def test_sctp(self) -> None:
        """SCTP is refused with the reason."""
        error = self.assertRaises(Refused, outward, {"HostConfig": {"PortBindings": {"80/sctp": [{}]}}})
        self.assertIn("SCTP", str(error))

    def test_network_modes(self) -> None:
        """Containers without a network of their own want no ports here; the daemon still sees none of ours."""
        bindings = {"80/tcp": [{"HostPort": "8080"}]}
        for mode in ("host", "none", "container:web"):
            document = {"HostConfig": {"NetworkMode": mode, "PortBindings": bindings}}
            self.assertEqual(rewrite.wanted(document).ports, ())
            sent, warnings = rewrite.outward(document, {}, OWNER, NONCE)
            self.assertEqual(request_of(inspected(sent)).ports, ())
            self.assertEqual(bool(warnings), mode == "host")
            self.assertEqual(sent["HostConfig"]["PortBindings"] == bindings, mode == "container:web")  # type: ignore[index]

    def test_this_machine(self) -> None:
        """A container gets the name of this machine, unless the user says what that means; inspect shows it not."""
        for asked, sent in (
            (None, ["host.docker.internal:172.17.0.1"]),
            (["a:1.2.3.4"], ["a:1.2.3.4", "host.docker.internal:172.17.0.1"]),
            (["Host.Docker.Internal=host-gateway"], ["Host.Docker.Internal=host-gateway"]),
        ):
            document = {"HostConfig": {"ExtraHosts": asked}}
            changed = outward(document, host_address="172.17.0.1")
            self.assertEqual(changed["HostConfig"]["ExtraHosts"], sent)
            shown: Any = rewrite.inward_inspect(inspected(changed), mine, {})
            self.assertEqual(shown["HostConfig"]["ExtraHosts"], asked)
        self.assertNotIn("ExtraHosts", outward({"HostConfig": {}}).get("HostConfig", {}))
        self.assertEqual(
            [rewrite.can_reach_host(mode) for mode in ("", "host", "none", "container:x", "mine")],
            [True, True, False, False, True],
        )

    def test_our_labels(self) -> None:
        """A client can set none of our labels, anywhere."""
        driver = {"VolumeOptions": {"Labels": {OWNER_LABEL: "x"}}}
        for document in (
            {"Labels": {OWNER_LABEL: "x"}},
            {"labels": {"io.rda.anything": "x"}},
            {"HostConfig": {"Mounts": [{"Type": "volume", "Source": "v", "Target": "/v", **driver}]}},
        ):
            self.assertRaises(BadRequest, rewrite.outward, document, {}, OWNER, NONCE)
        self.assertRaises(BadRequest, rewrite.outward_volume, {"Labels": {REQUEST_LABEL: "x"}}, {}, OWNER, NONCE)
        self.assertRaises(BadRequest, rewrite.check_service, {"Labels": {OWNER_LABEL: "x"}})

    def test_misplaced(self) -> None:
        """Fields of HostConfig at the top, which old daemons would obey, are dropped, and it is said."""
        document = {"Image": "x", "binds": ["/:/host"], "PRIVILEGED": True, "Mounts": []}
        sent, warnings = rewrite.outward(document, {}, OWNER, NONCE)
        self.assertEqual(sorted(sent), ["Image", "Labels"])
        self.assertEqual(len(warnings), 3)
        self.assertIn("binds", warnings[0])

    def test_wrong_shapes(self) -> None:
        """A document that cannot be understood is refused."""
        for document in (
            {"HostConfig": []},
            {"Labels": []},
            {"HostConfig": {"PortBindings": []}},
            {"HostConfig": {"NetworkMode": 1}},
            {"HostConfig": {"Mounts": [{"VolumeOptions": []}]}},
            {"HostConfig": {"Binds": []}, "hostConfig": {}},
        ):
            self.assertRaises(BadRequest, rewrite.outward, document, {}, OWNER, NONCE)

    def test_wanted(self) -> None:
        """What the document asks of this machine is found in document order."""
        wanted = rewrite.wanted(load("create"))
        self.assertEqual(
            [(bind.path, bind.form, bind.may_create) for bind in wanted.binds],
            [
                ("/srv/app/src", Form.BINDS, True),
                ("/srv/app/src", Form.BINDS, True),
                ("/srv/app/logs", Form.BINDS, True),
                ("/srv/app/secret", Form.MOUNTS, True),
                ("/srv/app/data", Form.VOLUME, False),
            ],
        )
        self.assertEqual([one.first for one in wanted.ports], [15353, 18080, 18081, 18100])
        self.assertEqual((wanted.image, wanted.network_mode, wanted.publish_all), ("busybox", "default", False))
        self.assertEqual(rewrite.wanted({"HostConfig": {"VolumesFrom": ["a:ro"]}}).volumes_from, ("a:ro",))


class InwardTests(SynchronousTestCase):
    """What the client sees: the same as with the daemon itself."""

    def test_inspect(self) -> None:
        """Inspect shows what it shows without rda."""
        direct = load("inspect_direct")
        shown = rewrite.inward_inspect(load("inspect_remote"), mine, LOCAL)
        self.assertEqual(shown["HostConfig"], direct["HostConfig"])
        for config in (shown["Config"], direct["Config"]):
            config["Hostname"] = "c1"  # type: ignore[index]
        self.assertEqual(shown["Config"], direct["Config"])
        self.assertEqual(shown["NetworkSettings"]["Ports"], direct["NetworkSettings"]["Ports"])  # type: ignore[index]
        self.assertEqual(self.mounts(shown), self.mounts(direct))
        self.assertEqual(list(shown), list(direct))

    def mounts(self, document: Any) -> list[dict[str, Any]]:
        """The mounts in the order of their targets, without the random names of anonymous volumes."""
        mounts = sorted(document["Mounts"], key=lambda mount: mount["Destination"])
        return [mount for mount in mounts if mount["Destination"] != "/anonymous"]

    def test_list(self) -> None:
        """The list shows what it shows without rda."""
        (direct,) = load("list_direct")
        (shown,) = rewrite.inward_list(load("list_remote"), mine, {}.get)
        assert isinstance(shown, dict)
        self.assertEqual(shown["Labels"], direct["Labels"])
        self.assertEqual(self.mounts(shown), self.mounts(direct))
        self.assertEqual(list(shown), list(direct))
        self.assertEqual({port["PrivatePort"] for port in shown["Ports"]}, {53, 80, 81, 82})
        self.assertFalse(any("PublicPort" in port or "IP" in port for port in shown["Ports"]))
        (shown,) = rewrite.inward_list(load("list_remote"), mine, lambda container: LOCAL)
        assert isinstance(shown, dict)

        def key(port: Any) -> tuple[object, ...]:
            return port["Type"], port["PrivatePort"], port.get("PublicPort", 0), port.get("IP", "")

        self.assertEqual(sorted(shown["Ports"], key=key), sorted(direct["Ports"], key=key))

    def test_list_filtered(self) -> None:
        """The filters that were held back match what the user sees."""
        for publish, count in (("18080", 1), ("32769", 0)):
            _, rest = outward_filters((("filters", json.dumps({"publish": [publish]})),))
            self.assertEqual(len(rewrite.inward_list(load("list_remote"), mine, lambda _: LOCAL, rest)), count)
        _, rest = outward_filters((("filters", '{"volume":["/srv/app/logs"]}'),))
        self.assertEqual(len(rewrite.inward_list(load("list_remote"), mine, lambda _: LOCAL, rest)), 1)

    def test_disk_usage(self) -> None:
        """system df shows its containers as the list does."""
        shown = rewrite.inward_disk_usage(load("df_remote"), mine, lambda container: LOCAL)
        item = shown["Containers"][0]  # type: ignore[index]
        (listed,) = rewrite.inward_list(load("list_remote"), mine, lambda container: LOCAL)
        self.assertEqual(sorted(map(str, item["Ports"])), sorted(map(str, listed["Ports"])))  # type: ignore[index]
        self.assertNotIn(OWNER_LABEL, item["Labels"])
        self.assertEqual(rewrite.inward_disk_usage({"Containers": None}, mine, {}.get), {"Containers": None})

    def test_events(self) -> None:
        """Events come without our labels, and else as without rda."""
        for direct, remote in zip(load("events_direct"), load("events_remote"), strict=True):
            shown: Any = rewrite.inward_event(remote)
            self.assertEqual(shown["Actor"]["Attributes"], direct["Actor"]["Attributes"])
            self.assertEqual(list(shown), list(direct))
        for odd in (None, 1, {}, {"Actor": None}, {"Actor": {"ID": "x"}}):
            self.assertEqual(rewrite.inward_event(odd), odd)

    def test_volumes(self) -> None:
        """A volume that binds a path shows the local path, and no labels where there were none."""
        direct, remote = load("volume_direct"), load("volume_remote")
        remote["CreatedAt"] = direct["CreatedAt"]
        self.assertEqual(rewrite.inward_volume(remote), direct)
        volumes = rewrite.inward_volumes({"Volumes": [remote, {"Name": "v", "Labels": None}], "Warnings": None})
        self.assertEqual(volumes, {"Volumes": [direct, {"Name": "v", "Labels": None}], "Warnings": None})

    def test_stopped(self) -> None:
        """A container that does not run shows no ports, as the daemon has none for it."""
        document = load("inspect_remote")
        document["NetworkSettings"]["Ports"] = {}
        self.assertEqual(rewrite.inward_inspect(document, mine, LOCAL)["NetworkSettings"]["Ports"], {})  # type: ignore[index]

    def test_not_forwarded(self) -> None:
        """A port that is not open here shows as not published."""
        ports = rewrite.inward_inspect(load("inspect_remote"), mine, None)["NetworkSettings"]["Ports"]  # type: ignore[index]
        self.assertEqual(set(ports.values()), {None})

    def test_of_others(self) -> None:
        """Containers of others, and those without rda, are shown as they are, but for our labels."""
        direct = load("inspect_direct")
        self.assertEqual(rewrite.inward_inspect(direct, mine, LOCAL), direct)
        remote = load("inspect_remote")
        shown = rewrite.inward_inspect(remote, lambda _: False, LOCAL)
        self.assertEqual(shown["HostConfig"], remote["HostConfig"])
        self.assertEqual(shown["NetworkSettings"], remote["NetworkSettings"])
        self.assertNotIn(OWNER_LABEL, shown["Config"]["Labels"])  # type: ignore[index]

    def test_errors(self) -> None:
        """Errors that quote remote paths name the local ones, nested ones too."""
        shown = {"/m/1": "/home/me", "/m/1/2": "/srv/x"}
        self.assertEqual(
            rewrite.inward_error({"message": "no /m/1/2, no /m/1"}, shown), {"message": "no /srv/x, no /home/me"}
        )
        for odd in (None, [], {"message": 1}, {}):
            self.assertEqual(rewrite.inward_error(odd, shown), odd)


paths = st.sampled_from(["/srv/app/src", "/a", "/a/", "//b", "/é x"])
specs = st.builds("{}:{}{}".format, paths, st.sampled_from(["/x", "/y"]), st.sampled_from(["", ":ro", ":z,rw"]))
specs |= st.sampled_from(["data:/data", "/anonymous", "c:/app", r"C:\src:/c", r"\\srv\share:/s:ro"])
mounts = st.builds(lambda path, more: {"Type": "bind", "Source": path, "Target": "/t", **more}, paths, st.just({}))
mounts |= st.builds(
    lambda path: {
        "Type": "volume",
        "Target": "/t",
        "VolumeOptions": {"DriverConfig": {"Name": "local", "Options": {"o": "bind", "device": path}}},
    },
    paths,
)
mounts |= st.just({"Type": "tmpfs", "Target": "/t"})
host_ports = st.sampled_from(["", "0", "8080", "8000-8010"])
bindings = st.dictionaries(
    st.sampled_from(["80", "80/tcp", "81/TCP", "53/udp"]),
    st.lists(st.fixed_dictionaries({"HostIp": st.sampled_from(["", "0.0.0.0", "[::1]"]), "HostPort": host_ports}))
    | st.none(),
)
host_configs = st.fixed_dictionaries(
    {},
    optional={
        "Binds": st.none() | st.lists(specs, max_size=4),
        "Mounts": st.none() | st.lists(mounts, max_size=3),
        "PortBindings": bindings,
        "PublishAllPorts": st.booleans(),
        "NetworkMode": st.sampled_from(["", "default", "host", "none", "container:x"]),
        "Unknown": st.integers(),
    },
)
documents = st.fixed_dictionaries(
    {"Labels": st.dictionaries(st.sampled_from(["a", "io.rdax"]), st.text(max_size=3))},
    optional={
        "HostConfig": host_configs,
        "ExposedPorts": st.dictionaries(st.sampled_from(["80", "9/udp"]), st.just({})),
        "Future": st.lists(st.integers(), max_size=2),
    },
)


class LawTests(SynchronousTestCase):
    """inward(outward(d)) == d."""

    @given(documents)
    @settings(max_examples=300, deadline=None)
    def test_round_trip(self, document: dict[str, Any]) -> None:
        """Whatever was asked for is shown again, in its order; and none of it is asked of the remote host."""
        places = {bind.path: f"/mirror/{n}" for n, bind in enumerate(container_binds(document))}
        sent = outward(document, places=places)
        shown = rewrite.inward_inspect(inspected(sent), mine, {})
        expected = inspected(document)
        host = expected["HostConfig"]
        if host.get("PublishAllPorts") and "PortBindings" in sent["HostConfig"]:
            host.setdefault("PortBindings", {})  # as the daemon shows none
        self.assertEqual(shown, expected)
        self.assertEqual(list(shown["HostConfig"]), list(expected["HostConfig"]))  # type: ignore[call-overload]
        request = request_of(inspected(sent))
        self.assertEqual(request.ports, rewrite.wanted(document).ports)
        self.assertEqual(set(request.sources), set(places))
        for bind in container_binds(sent):
            self.assertTrue(bind.path.startswith("/mirror/"))
        if not str(sent.get("HostConfig", {}).get("NetworkMode")).startswith("container:"):
            self.assertFalse(sent.get("HostConfig", {}).get("PublishAllPorts"))
            for entries in (sent.get("HostConfig", {}).get("PortBindings") or {}).values():
                self.assertEqual(entries, [{"HostIp": "127.0.0.1", "HostPort": ""}])


class OwnershipTests(SynchronousTestCase):
    """request_of and claims."""

    def container(self, **labels: str) -> dict[str, Any]:
        """An inspect document with a request label, and others."""
        return {"Id": "c1", "Config": {"Labels": {REQUEST_LABEL: Request(NONCE).label(), OWNER_LABEL: OWNER, **labels}}}

    def test_of_others(self) -> None:
        """Containers of other owners, or with labels that we do not understand, are not ours."""
        self.assertTrue(is_labelled(self.container(), OWNER))
        self.assertFalse(is_labelled(self.container(), "another"))
        for label in (
            "",
            "x",
            "[]",
            "{}",
            '{"v":2,"n":"x"}',
            '{"v":1}',
            '{"v":1,"n":"x","ports":{"x":[{}]}}',
            "{" * 5000,
        ):
            container = self.container(**{REQUEST_LABEL: label})
            self.assertFalse(is_labelled(container, OWNER), label)
            self.assertRaises(BadRequest, request_of, container)
        self.assertFalse(is_labelled({"Labels": {OWNER_LABEL: 1}}, OWNER))

    def test_label(self) -> None:
        """A request survives its label."""
        request = Request(
            "n", {"80": [{"HostPort": "1"}]}, True, ("81/tcp",), {"b0": "/a:/b"}, {"/m": "/a"}, ("/a",), "bridge"
        )
        self.assertEqual(find_request({REQUEST_LABEL: request.label()}), request)


class ServiceTests(SynchronousTestCase):
    """check_service."""

    def service(self, *mounts: object) -> dict[str, Any]:
        return {
            "TaskTemplate": {"ContainerSpec": {"Image": "x", "Mounts": list(mounts)}},
            "EndpointSpec": {"Ports": []},
        }

    def test_passes(self) -> None:
        """Services with volumes, or with the remote's own paths, pass, with their keys folded."""
        mounts = [{"Type": "volume", "Source": "v"}, {"Type": "bind", "Source": "/var/run/docker.sock"}]
        document = self.service(*mounts)
        self.assertEqual(rewrite.check_service(document), document)
        self.assertEqual(rewrite.check_service({"tasktemplate": {}}), {"TaskTemplate": {}})

    def test_refused(self) -> None:
        """A service that binds a path of this machine is refused, naming it, however it is written."""
        driver = {"DriverConfig": {"Options": {"o": "bind", "device": "/home/me"}}}
        for mount in (
            {"Type": "bind", "Source": "/home/me"},
            {"type": "bind", "SOURCE": "/home/me"},
            {"Type": "volume", "VolumeOptions": driver},
        ):
            error = self.assertRaises(Refused, rewrite.check_service, self.service(mount))
            self.assertIn("/home/me", str(error))

    def test_rules(self) -> None:
        """The user's rules decide."""
        document = self.service({"Type": "bind", "Source": "/srv/data"})
        self.assertEqual(rewrite.check_service(document, Rules.of([("/srv", "remote")])), document)


class VolumeTests(SynchronousTestCase):
    """outward_volume."""

    def test_bind(self) -> None:
        """A volume that binds a path gets the remote one, and comes back."""
        document = {"Name": "v", "DriverOpts": {"type": "none", "o": "bind", "device": "/srv/app/data/"}}
        sent = rewrite.outward_volume(document, PLACES, OWNER, NONCE)
        self.assertEqual(sent["DriverOpts"], {"type": "none", "o": "bind", "device": MIRRORS + "e5a3"})
        shown = rewrite.inward_volume({"Name": "v", "Options": sent["DriverOpts"], "Labels": sent["Labels"]})
        self.assertEqual(shown, {"Name": "v", "Options": document["DriverOpts"], "Labels": None})

    def test_others(self) -> None:
        """Other volumes, and those on the remote's own paths, pass as they are."""
        for document in ({"Name": "v"}, {"DriverOpts": {"type": "nfs", "o": "addr=x", "device": ":/x"}, "Labels": {}}):
            self.assertEqual(rewrite.outward_volume(document, {}, OWNER, NONCE), document)
        own = {"DriverOpts": {"o": "bind", "device": "/proc/x"}}
        self.assertEqual(rewrite.outward_volume(own, {}, OWNER, NONCE, remote={"/proc/x": "/proc/x"}), own)
        self.assertRaises(Refused, rewrite.outward_volume, own, {}, OWNER, NONCE)

"""What the calls of clients become, against a daemon in memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from rda.access.caller import Caller, Proof
from rda.api import DaemonAPI
from rda.containers.calls import Containers
from rda.containers.reconciler import Reconciler
from rda.containers.waiting import EXPLAIN_SECONDS, Waiting
from rda.docker import document, routes
from rda.docker.binds import Rules, System
from rda.docker.host_network import FORWARD_LABEL, HostForwards, read_ports
from rda.docker.ports import requested
from rda.docker.request import OWNER_LABEL, REQUEST_LABEL, USER_LABEL, Request, find_request
from rda.docker.routes import Call, Outgoing
from rda.docker.sources import Sources
from rda.errors import BadRequest, PortUnavailable, Refused, SyncFailed
from rda.status import MirrorStatus, WaitStatus
from tests.fake_daemon import daemon
from tests.fake_parts import FakeForwards, FakeMirrors

OWNER = "0123456789abcdef"
WEB = "a" * 64
BINDINGS = {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}

#: The user that rda runs as, and another.
ME, OTHER = Caller("me", Proof.SOCKET, 1000, own=True), Caller("bob", Proof.TOKEN)


class ContainersCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.daemon, self.endpoint = daemon()
        self.journal: list[str] = []
        self.forwards, self.mirrors = FakeForwards(self.journal), FakeMirrors(self.journal)
        api = DaemonAPI(Clock(), self.endpoint)
        sources = Sources(System.LINUX, Rules.of([("/secret", "refuse"), ("/srv", "remote")]))
        parts: Any = (self.forwards, self.mirrors)
        self.reconciler = Reconciler(Clock(), api, *parts, OWNER, sources.mirrored)
        self.containers = Containers(api, *parts, self.reconciler, OWNER, sources)

    def ask(
        self, method: bytes, target: bytes, body: dict[str, Any] | None = None, caller: Caller = ME
    ) -> tuple[Call, Deferred[Outgoing]]:
        call = routes.match(method, target, caller)
        decision = self.containers.outgoing(call, body)
        self.endpoint.pump()
        return call, decision

    def create(self, **host_config: Any) -> tuple[Call, Outgoing]:
        call, decision = self.ask(b"POST", b"/containers/create", {"Image": "busybox", "HostConfig": host_config})
        return call, self.successResultOf(decision)

    def answer(self, call: Call, sent: Outgoing, status: int, body: Any = None) -> Any:
        answered = self.containers.answered(call, sent, status, body)
        self.endpoint.pump()
        return self.successResultOf(answered)

    def there_is(self, sent: Outgoing, running: bool = False, port: int = 32768) -> None:
        """The daemon has made the container of a create."""
        assert sent.body is not None
        host_config = sent.body["HostConfig"]
        ports = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]} if running else {}
        description = {
            "Id": WEB,
            "Name": "/web",
            "Image": "sha256:1",
            "State": {"Running": running},
            "Config": {"Labels": dict(sent.body["Labels"])},
            "HostConfig": host_config,
            "NetworkSettings": {"Ports": ports},
        }
        for name in ("web", WEB, WEB[:12]):
            self.daemon.answers[f"/containers/{name}/json"] = 200, description

    def let_flush(self) -> None:
        flushing, self.mirrors.flushing = self.mirrors.flushing, []
        for one in flushing:
            one.callback(None)
        self.endpoint.pump()


class CreateTests(ContainersCase):
    def test_binds_and_ports(self) -> None:
        """The daemon gets remote paths and free ports, and the labels that say what was asked for."""
        call, sent = self.create(Binds=["/src:/app:ro"], PortBindings=BINDINGS)
        host_config: Any = (sent.body or {})["HostConfig"]
        self.assertEqual(host_config["Binds"], ["/mirror/src:/app:ro"])
        self.assertEqual(host_config["PortBindings"], {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]})
        labels: Any = (sent.body or {})["Labels"]
        self.assertEqual(labels[OWNER_LABEL], OWNER)
        self.assertIsNotNone(find_request(labels))
        self.assertEqual(self.journal, ["place /src True"])
        answer = self.answer(call, sent, 201, {"Id": WEB, "Warnings": []})
        self.assertEqual(answer, {"Id": WEB, "Warnings": []})
        self.assertEqual(self.mirrors.held, {WEB: ("/src",)})

    def test_empty(self) -> None:
        """A create that describes no container is refused as the daemon does, which would see rda's labels in it."""
        for body in ({}, {"HostConfig": {}, "NetworkingConfig": {}}):
            _, decision = self.ask(b"POST", b"/containers/create", body)
            error = self.failureResultOf(decision, BadRequest).value
            self.assertEqual(f"{error.prefix}{error}", "config cannot be empty in order to create a container")

    def test_large_source(self) -> None:
        """The answer to a create says when so much is on its way that the start will wait for it."""
        large = MirrorStatus(
            "/src", "", "applying", files_done=1, files_total=80_001, bytes_done=10, bytes_total=4_000_000_010
        )
        for found, warned in (
            (large, True),
            (replace(large, files_total=100), True),
            (replace(large, bytes_total=1000), True),
            (replace(large, files_total=100, bytes_total=1000), False),
            (replace(large, state="idle"), False),
        ):
            self.mirrors.measured = {"/src": found}
            call, sent = self.create(Binds=["/src:/app"])
            answer = self.answer(call, sent, 201, {"Id": WEB, "Warnings": []})
            self.assertEqual(bool(answer["Warnings"]), warned, found)
            if found is large:
                self.assertIn("/src is on its way to the remote host: 80,000 files, 4.0 GB", answer["Warnings"][0])

    def test_nested_sources(self) -> None:
        """Outer sources get their places before those inside them, and two copies where one was expected are told."""
        volume = {
            "Type": "volume",
            "Target": "/v",
            "VolumeOptions": {"DriverConfig": {"Options": {"o": "bind", "type": "none", "device": "/src/vol"}}},
        }
        self.mirrors.apart = {"/src/lib": "/src has another: the rules differ"}
        call, sent = self.create(Binds=["/src/lib/deep:/c", "/src/lib:/b", "/src:/a", "/srcs:/d"], Mounts=[volume])
        placed = ["place /src True", "place /srcs True", "place /src/lib True", "place /src/vol False alone"]
        self.assertEqual(self.journal, [*placed, "place /src/lib/deep True"])
        answer = self.answer(call, sent, 201, {"Id": WEB, "Warnings": []})
        (warning,) = answer["Warnings"]
        self.assertIn("/src/lib has a copy of its own on the remote host, and /src has another: the rules", warning)

    def test_inner_sources_first(self) -> None:
        """What is inside a new source and was mounted first joins it, unless one of its containers was ever started."""
        other = "c" * 64
        self.daemon.answers[f"/containers/{other}/json"] = 200, {"Id": other, "State": {"Status": "created"}}
        self.daemon.answers[f"/containers/{WEB}/json"] = 200, {"Id": WEB, "State": {"Status": "exited"}}
        self.mirrors.inner = {"/src": {"/src/lib": (other,), "/src/x": (other, WEB), "/src/new": ()}}
        self.create(Binds=["/src:/a"])
        joined = ["join /src/lib /src False", "join /src/x /src True", "join /src/new /src False"]
        self.assertEqual(self.journal, ["place /src True", *joined])

    def test_mounts_do_not_create(self) -> None:
        """A source in Mounts is not made when it is missing, as the daemon would not."""
        mount = {"Type": "bind", "Source": "/src", "Target": "/app"}
        self.create(Mounts=[mount])
        self.assertEqual(self.journal, ["place /src False"])

    def test_remote_path(self) -> None:
        """A path that a rule calls remote is sent as it is, and the answer warns."""
        call, sent = self.create(Binds=["/srv/data:/data", "/var/run/docker.sock:/var/run/docker.sock"])
        host_config: Any = (sent.body or {})["HostConfig"]
        self.assertEqual(host_config["Binds"], ["/srv/data:/data", "/var/run/docker.sock:/var/run/docker.sock"])
        answer = self.answer(call, sent, 201, {"Id": WEB})
        self.assertIn("rda: /srv/data is the remote host's own", answer["Warnings"][0])
        self.assertEqual(self.journal, [])

    def test_refused_path(self) -> None:
        """A path that a rule refuses makes the create fail; the message names the rule."""
        body = {"Image": "x", "HostConfig": {"Binds": ["/secret/key:/key"]}}
        _, decision = self.ask(b"POST", b"/v1.45/containers/create", body)
        self.assertIn("'/secret'", str(self.failureResultOf(decision, Refused).value))

    def test_files_are_not_lent(self) -> None:
        """Who is not the user that rda runs as mounts nothing that would be read with that user's rights."""
        host_config = {"Binds": ["/src:/app"]}
        volume = {"Name": "v", "DriverOpts": {"type": "none", "o": "bind", "device": "/src"}}
        for target, body in (
            ("/containers/create", {"Image": "x", "HostConfig": host_config}),
            ("/volumes/create", volume),
        ):
            _, decision = self.ask(b"POST", target.encode(), body, OTHER)
            refusal = str(self.failureResultOf(decision, Refused).value)
            self.assertIn("/src would be read with the rights of the user that rda runs as, and bob (token)", refusal)
        _, decision = self.ask(
            b"POST", b"/containers/create", {"Image": "x", "HostConfig": {"Binds": ["/srv:/x"]}}, OTHER
        )
        self.successResultOf(decision)
        self.assertEqual(self.journal, [])

    def test_files_are_not_lent_by_another_container(self) -> None:
        """Nor by way of a container that has them."""
        call, sent = self.create(Binds=["/src:/app"])
        self.there_is(sent)
        self.answer(call, sent, 201, {"Id": WEB})
        body = {"Image": "x", "HostConfig": {"VolumesFrom": ["web"]}}
        _, decision = self.ask(b"POST", b"/containers/create", body, OTHER)
        self.failureResultOf(decision, Refused)
        _, decision = self.ask(b"POST", b"/containers/create", body)
        self.successResultOf(decision)

    def test_files_are_lent_where_that_is_configured(self) -> None:
        """Unless it is configured so."""
        self.containers._lend_files = True
        _, decision = self.ask(
            b"POST", b"/containers/create", {"Image": "x", "HostConfig": {"Binds": ["/src:/x"]}}, OTHER
        )
        self.successResultOf(decision)

    def test_other_spelling(self) -> None:
        """Keys in another case are what the daemon takes them for."""
        body = {"image": "x", "hostconfig": {"BINDS": ["/src:/app"]}}
        _, decision = self.ask(b"POST", b"/containers/create", body)
        sent = self.successResultOf(decision)
        self.assertIn(b"/mirror/src:/app", document.serialise(sent.body))

    def test_own_labels(self) -> None:
        """A client cannot set the labels that say whose a container is."""
        _, decision = self.ask(b"POST", b"/containers/create", {"Image": "x", "Labels": {OWNER_LABEL: "me"}})
        self.failureResultOf(decision, BadRequest)

    def test_place_fails(self) -> None:
        """A create whose mount cannot be placed is refused, never passed on."""
        self.mirrors.failure = SyncFailed("disk full")
        body = {"Image": "x", "HostConfig": {"Binds": ["/a:/a", "/b:/b"]}}
        _, decision = self.ask(b"POST", b"/containers/create", body)
        self.failureResultOf(decision, SyncFailed)

    def test_daemon_refuses(self) -> None:
        """The daemon's error names the local path, and nothing is held."""
        call, sent = self.create(Binds=["/src:/app"])
        answer = self.answer(call, sent, 400, {"message": "bad mount /mirror/src"})
        self.assertEqual((answer, self.mirrors.held), ({"message": "bad mount /src"}, {}))

    def test_publish_all(self) -> None:
        """The ports that the image exposes are published one by one."""
        self.daemon.answers["/images/busybox/json"] = 200, {"Config": {"ExposedPorts": {"80/tcp": {}}}}
        _, sent = self.create(PublishAllPorts=True)
        host_config: Any = (sent.body or {})["HostConfig"]
        self.assertEqual(list(host_config["PortBindings"]), ["80/tcp"])
        self.assertFalse(host_config["PublishAllPorts"])

    def test_udp_warning(self) -> None:
        """When the remote host cannot relay datagrams, create's answer says so."""
        call, sent = self.create(PortBindings={"53/udp": [{"HostPort": "5353"}]})
        answer = self.answer(call, sent, 201, {"Id": WEB})
        self.assertEqual(answer["Warnings"], ["rda: 53/udp is not forwarded: no python3"])

    def test_udp_warning_for_exposed_ports(self) -> None:
        """The same of ports that are published because the image exposes them."""
        self.daemon.answers["/images/busybox/json"] = 200, {"Config": {"ExposedPorts": {"53/udp": {}}}}
        call, sent = self.create(PublishAllPorts=True)
        answer = self.answer(call, sent, 201, {"Id": WEB})
        self.assertEqual(answer["Warnings"], ["rda: 53/udp is not forwarded: no python3"])

    def test_host_network(self) -> None:
        """With network mode host the answer says how to have ports here, unless some are named."""
        call, sent = self.create(NetworkMode="host")
        (warning,) = self.answer(call, sent, 201, {"Id": WEB})["Warnings"]
        self.assertIn("--label io.rda.forward=PORT", warning)
        body = {"Image": "x", "Labels": {FORWARD_LABEL: "8080, 9000"}, "HostConfig": {"NetworkMode": "host"}}
        call, decision = self.ask(b"POST", b"/containers/create", body)
        sent = self.successResultOf(decision)
        self.assertEqual(self.answer(call, sent, 201, {"Id": WEB}), {"Id": WEB})
        self.assertEqual((sent.body or {})["Labels"][FORWARD_LABEL], "8080, 9000")  # type: ignore[index]

    def test_host_network_configured(self) -> None:
        """A container that the configuration forwards ports of needs no warning."""
        self.containers._host_forwards = HostForwards([("db-*", read_ports(["5432"]))])
        body = {"Image": "x", "HostConfig": {"NetworkMode": "host"}}
        for name, count in ((b"db-1", 0), (b"web", 1)):
            call, decision = self.ask(b"POST", b"/containers/create?name=" + name, dict(body))
            answer = self.answer(call, self.successResultOf(decision), 201, {"Id": WEB})
            self.assertEqual(len(answer.get("Warnings", [])), count)

    def test_copy_of_the_labels(self) -> None:
        """Only the container that the daemon made for the create is ours, not another one with its labels."""
        call, sent = self.create(PortBindings=BINDINGS)
        self.answer(call, sent, 201, {"Id": WEB})
        labels = {"Labels": (sent.body or {})["Labels"]}
        self.assertTrue(self.reconciler.is_ours({"Id": WEB, **labels}))
        self.assertFalse(self.reconciler.is_ours({"Id": "b" * 64, **labels}))

    def test_refused_create(self) -> None:
        """A create that the daemon refused has made nothing: what carries its labels later is not ours."""
        call, sent = self.create(PortBindings=BINDINGS)
        self.answer(call, sent, 409, {"message": "name in use"})
        self.assertFalse(self.reconciler.is_ours({"Id": WEB, "Labels": (sent.body or {})["Labels"]}))

    def test_labels_of_images(self) -> None:
        """What makes an image cannot give it our labels."""
        for target in (
            b"/build?labels=%7B%22io.rda.owner%22%3A%22me%22%7D",
            b"/build?labels=%7B%22a%22%3A%22b%22%2C%22io.rda.request%22%3A%22%7B%7D%22%7D",
            b"/images/create?fromSrc=-&changes=LABEL%20io.rda.owner%3Dme",
            b"/commit?container=web&changes=CMD%20x&changes=label%20a%3Db%20%22io.rda.request%22%3D1",
        ):
            _, decision = self.ask(b"POST", target)
            self.assertIn("rda's own", str(self.failureResultOf(decision, BadRequest).value))
        for target in (
            b"/build?labels=%7B%22io.rda.forward%22%3A%228080%22%7D",
            b"/build?t=x",
            b"/images/create?fromImage=busybox",
            b"/images/create?changes=LABEL%20io.rda.forward%3D1",
        ):
            _, decision = self.ask(b"POST", target)
            self.assertEqual(self.successResultOf(decision), Outgoing())

    def test_commit(self) -> None:
        """An image that is committed of a container of ours gets our labels empty."""
        call, sent = self.create()
        self.there_is(sent)
        self.answer(call, sent, 201, {"Id": WEB})
        _, decision = self.ask(b"POST", b"/commit?container=web&changes=CMD%20x")
        self.assertEqual(
            self.successResultOf(decision).query,
            (
                ("container", "web"),
                ("changes", "CMD x"),
                ("changes", f'LABEL {OWNER_LABEL}=""'),
                ("changes", f'LABEL {REQUEST_LABEL}=""'),
                ("changes", f'LABEL {USER_LABEL}=""'),
            ),
        )


class StartTests(ContainersCase):
    def test_waits_visibly(self) -> None:
        """While a start waits for its mounts, the status says so, and after some seconds the log too."""
        clock, lines = Clock(), list[str]()
        waiting = Waiting(clock, lambda: 1000.0, lambda source: "5 of 10 files")
        self.containers._waiting = waiting
        globalLogPublisher.addObserver(observer := lambda event: lines.append(str(formatEvent(event))))
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        _, sent = self.create(Binds=["/src:/app"])
        self.there_is(sent)
        _, decision = self.ask(b"POST", b"/containers/web/start")
        self.assertNoResult(decision)
        self.assertEqual(waiting.status(), (WaitStatus("start of web", "/src", 1000.0),))
        clock.advance(EXPLAIN_SECONDS)
        self.assertIn("start of web waits for /src: 5 of 10 files", lines)
        clock.advance(4)
        self.let_flush()
        self.successResultOf(decision)
        self.assertIn("start of web has waited 7 s for /src", lines)
        self.assertEqual((waiting.status(), clock.getDelayedCalls()), ((), []))

    def made(self, **host_config: Any) -> None:
        call, sent = self.create(**host_config)
        self.sent = sent
        self.there_is(sent)
        self.answer(call, sent, 201, {"Id": WEB})
        self.journal.clear()

    def test_waits_for_the_mount(self) -> None:
        """Start is sent when the mount is complete and the ports are open, and answered when they lead somewhere."""
        self.made(Binds=["/src:/app"], PortBindings=BINDINGS)
        call, decision = self.ask(b"POST", b"/containers/web/start")
        self.assertNoResult(decision)
        self.assertEqual(self.journal, ["flush /src"])
        self.let_flush()
        sent = self.successResultOf(decision)
        self.assertEqual(self.journal, ["flush /src", "reserve web 80/tcp"])
        self.there_is(self.sent, running=True)
        self.answer(call, sent, 204)
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})

    def test_port_in_use(self) -> None:
        """A port that is taken here fails the start before the daemon hears of it."""
        self.made(PortBindings=BINDINGS)
        self.forwards.failure = PortUnavailable("port is already allocated")
        _, decision = self.ask(b"POST", b"/containers/web/start")
        self.failureResultOf(decision, PortUnavailable)
        self.assertEqual(self.forwards.open, {})

    def test_port_of_one_that_has_ended(self) -> None:
        """A port that a container holds which has ended, unheard of yet, is given up for the one that starts."""
        other = "f" * 64
        self.made(PortBindings=BINDINGS)
        for running in (True, False):
            self.forwards.open[other], self.forwards.wanted[other] = None, requested(BINDINGS, False, ())
            if running:
                description = copy.deepcopy(self.daemon.answers["/containers/web/json"][1])
                description |= {"Id": other, "State": {"Running": True}}
                description["Config"]["Labels"][REQUEST_LABEL] = Request("other", BINDINGS).label()
                self.reconciler.made_here.made("other", other)
                self.daemon.answers[f"/containers/{other}/json"] = 200, description
            else:
                self.daemon.answers[f"/containers/{other}/json"] = 404, {"message": "No such container"}
            _, decision = self.ask(b"POST", b"/containers/web/start")
            if running:
                self.failureResultOf(decision, PortUnavailable)
            else:
                self.successResultOf(decision)

    def test_port_in_use_and_removed(self) -> None:
        """A container made with --rm is removed when its start is refused, as the daemon would: clients wait for it."""
        self.made(PortBindings=BINDINGS, AutoRemove=True)
        self.forwards.failure = PortUnavailable("port is already allocated")
        self.daemon.answers[f"/containers/{WEB}"] = 204, b""
        _, decision = self.ask(b"POST", b"/containers/web/start")
        self.failureResultOf(decision, PortUnavailable)
        self.assertIn(("DELETE", f"/containers/{WEB}"), [call[:2] for call in self.daemon.seen])

    def test_errors_name_local_paths(self) -> None:
        """What the daemon says against a start or restart names the source that the user named."""
        self.made(Binds=["/src:/app"])
        for action in (b"start", b"restart"):
            call, decision = self.ask(b"POST", b"/containers/web/" + action)
            self.let_flush()
            said = {"message": 'error mounting "/mirror/src" to rootfs: not a directory'}
            answer = self.answer(call, self.successResultOf(decision), 500, said)
            self.assertEqual(answer, {"message": 'error mounting "/src" to rootfs: not a directory'})

    def test_daemon_refuses(self) -> None:
        """After a start that failed nothing stays open."""
        self.made(PortBindings=BINDINGS)
        call, decision = self.ask(b"POST", b"/containers/web/start")
        self.forwards.open[WEB] = {}
        self.answer(call, self.successResultOf(decision), 500)
        self.assertEqual(self.forwards.open, {})

    def test_client_gone(self) -> None:
        """A start that was cut off is looked at: what runs is forwarded."""
        self.made(PortBindings=BINDINGS)
        call, decision = self.ask(b"POST", b"/containers/web/start")
        sent = self.successResultOf(decision)
        self.there_is(self.sent, running=True)
        self.containers.aborted(call, sent)
        self.endpoint.pump()
        self.assertEqual(self.forwards.open, {WEB: {"80/tcp": 32768}})

    def test_somebody_elses(self) -> None:
        """A container that we did not make is started as it is."""
        self.daemon.answers["/containers/web/json"] = 200, {"Id": WEB, "Config": {"Labels": {}}}
        _, decision = self.ask(b"POST", b"/containers/web/start")
        self.assertEqual(self.successResultOf(decision), Outgoing())
        self.assertEqual(self.journal, [])

    def test_unknown(self) -> None:
        """Of a container that is not there the daemon says so itself."""
        _, decision = self.ask(b"POST", b"/containers/nobody/start")
        self.assertEqual(self.successResultOf(decision), Outgoing())

    def test_exec_waits_too(self) -> None:
        """A command in a container sees the mount as it was here when it was asked for."""
        self.made(Binds=["/src:/app"])
        _, decision = self.ask(b"POST", b"/containers/web/exec")
        self.assertNoResult(decision)
        self.let_flush()
        self.successResultOf(decision)

    def test_remove(self) -> None:
        """When remove is answered, the container is forgotten."""
        self.made(Binds=["/src:/app"])
        call, decision = self.ask(b"DELETE", b"/containers/web?force=1")
        sent = self.successResultOf(decision)
        self.daemon.answers[f"/containers/{WEB}/json"] = 404, {"message": "gone"}
        self.answer(call, sent, 204)
        self.assertEqual(self.mirrors.held, {})


class ShownTests(ContainersCase):
    def test_inspect_and_list(self) -> None:
        """Inspect and list show what was asked for, with the local ports, and no labels of ours."""
        _, sent = self.create(Binds=["/src:/app"], PortBindings=BINDINGS)
        self.there_is(sent, running=True)
        self.forwards.open[WEB] = {"80/tcp": 32768}
        _, description = self.daemon.answers[f"/containers/{WEB}/json"]  # type: ignore[misc]
        call = routes.match(b"GET", b"/containers/web/json")
        shown = self.answer(call, Outgoing(), 200, description)
        self.assertEqual(shown["HostConfig"]["Binds"], ["/src:/app"])
        self.assertEqual(shown["HostConfig"]["PortBindings"], BINDINGS)
        bindings = [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]
        self.assertEqual(shown["NetworkSettings"]["Ports"], {"80/tcp": bindings})
        self.assertEqual(shown["Config"]["Labels"], {})
        port = {"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": 32768, "Type": "tcp"}
        item = {"Id": WEB, "Labels": (sent.body or {})["Labels"], "Ports": [port]}
        call, decision = self.ask(b"GET", b"/containers/json")
        (listed,) = self.answer(call, self.successResultOf(decision), 200, [item])
        self.assertEqual([one["PublicPort"] for one in listed["Ports"]], [8080, 8080])
        self.assertNotIn(REQUEST_LABEL, listed["Labels"])

    def test_images(self) -> None:
        """Images do not show the labels that a commit has left in them."""
        labels = {OWNER_LABEL: "", "a": "b"}
        call = routes.match(b"GET", b"/images/x/json")
        shown = self.answer(call, Outgoing(), 200, {"Config": {"Labels": labels}, "ContainerConfig": None})
        self.assertEqual(shown, {"Config": {"Labels": {"a": "b"}}, "ContainerConfig": None})
        call = routes.match(b"GET", b"/images/json")
        shown = self.answer(call, Outgoing(), 200, [{"Labels": {OWNER_LABEL: ""}}, {"Labels": None}])
        self.assertEqual(shown, [{"Labels": None}, {"Labels": None}])

    def test_errors_pass(self) -> None:
        """An error answer is shown as it came."""
        call = routes.match(b"GET", b"/containers/web/json")
        error = {"message": "No such container: web"}
        self.assertEqual(self.answer(call, Outgoing(), 404, error), error)

    def test_events(self) -> None:
        """Events lose our labels and nothing else."""
        call = routes.match(b"GET", b"/events")
        event = {"Type": "container", "Actor": {"ID": WEB, "Attributes": {OWNER_LABEL: OWNER, "image": "x"}}}
        shown: Any = self.containers.streamed(call, Outgoing(), event)
        self.assertEqual(shown["Actor"]["Attributes"], {"image": "x"})

    def test_volume(self) -> None:
        """A volume that is a bind in disguise gets a remote device, and shows the local one."""
        options = {"type": "none", "o": "bind", "device": "/src"}
        call, decision = self.ask(b"POST", b"/volumes/create", {"Name": "v", "Driver": "local", "DriverOpts": options})
        sent = self.successResultOf(decision)
        body: Any = sent.body
        self.assertEqual(body["DriverOpts"]["device"], "/mirror/src")
        made = {"Name": "v", "Options": body["DriverOpts"], "Labels": body["Labels"]}
        self.assertEqual(self.answer(call, sent, 201, made)["Options"]["device"], "/src")

    def test_container_with_a_volume(self) -> None:
        """A container uses the directory that a volume of ours is made of: it is mirrored for it."""
        options = {"type": "none", "o": "bind", "device": "/src"}
        call, decision = self.ask(b"POST", b"/volumes/create", {"Name": "v", "Driver": "local", "DriverOpts": options})
        sent = self.successResultOf(decision)
        body: Any = sent.body
        made = {"Name": "v", "Options": body["DriverOpts"], "Labels": body["Labels"]}
        self.answer(call, sent, 201, made)
        self.daemon.answers["/volumes/v"] = 200, made
        mount = {"Type": "volume", "Source": "v", "Target": "/data"}
        for how in ({"Binds": ["v:/data:ro"]}, {"Mounts": [mount]}):
            call, sent = self.create(**how)
            request = find_request((sent.body or {})["Labels"])
            assert request is not None
            self.assertEqual((request.sources, dict(request.shown)), (("/src",), {"/mirror/src": "/src"}))
            self.answer(call, sent, 201, {"Id": WEB})
            self.assertEqual(self.mirrors.held, {WEB: ("/src",)})
        body = {"Image": "x", "HostConfig": {"Binds": ["v:/data"]}}
        _, decision = self.ask(b"POST", b"/containers/create", body, OTHER)
        self.failureResultOf(decision, Refused)

    def test_container_with_a_volume_of_others(self) -> None:
        """Labels that somebody has put on a volume have nothing of this machine mirrored."""
        options = {"type": "none", "o": "bind", "device": "/src"}
        call, decision = self.ask(b"POST", b"/volumes/create", {"Name": "v", "DriverOpts": options})
        sent = self.successResultOf(decision)
        body: Any = sent.body
        self.answer(call, sent, 201, {"Name": "v", "Options": body["DriverOpts"], "Labels": body["Labels"]})
        nonce = getattr(find_request(body["Labels"]), "nonce", "")
        for name, request in (("w", Request("other", sources=("/etc",))), ("v", Request(nonce, sources=("/etc",)))):
            forged = {**body["Labels"], REQUEST_LABEL: request.label()}
            self.daemon.answers[f"/volumes/{name}"] = 200, {"Name": name, "Labels": forged}
            _, sent = self.create(Binds=[f"{name}:/data"])
            self.assertEqual(getattr(find_request((sent.body or {})["Labels"]), "sources", None), ())

    def test_volume_that_is_there(self) -> None:
        """A volume that was there before keeps what it was made of, and nothing is noted of the new request."""
        options = {"type": "none", "o": "bind", "device": "/src"}
        call, decision = self.ask(b"POST", b"/volumes/create", {"Name": "v", "DriverOpts": options})
        sent = self.successResultOf(decision)
        self.answer(call, sent, 201, {"Name": "v", "Options": {}, "Labels": {}})
        self.assertFalse(self.reconciler.made_here._pending)

    def test_service(self) -> None:
        """A swarm service cannot bind a path of this machine."""
        mounts = [{"Type": "bind", "Source": "/src", "Target": "/app"}]
        body = {"TaskTemplate": {"ContainerSpec": {"Image": "x", "Mounts": mounts}}}
        _, decision = self.ask(b"POST", b"/services/create", body)
        self.failureResultOf(decision, Refused)

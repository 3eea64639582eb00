"""rda's own calls of the daemon, over the real treq and the real twisted.web in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import rda.api as api_module
from rda.api import TIMEOUT, DaemonAPI
from rda.errors import DaemonError, DaemonUnreachable, LinkDown
from tests.fake_daemon import daemon


class DaemonAPITests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.daemon, self.endpoint = daemon()
        self.api = DaemonAPI(self.clock, self.endpoint)

    def ask(self, call: Any) -> Deferred[Any]:
        asked = Deferred.fromCoroutine(call)
        self.endpoint.pump()
        return asked

    def test_bridge_gateway(self) -> None:
        """The gateway of the default bridge is the IPv4 one; a daemon may have no bridge."""
        pools = [{"Subnet": "fd00::/64", "Gateway": "fd00::1"}, {"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
        for answer, address in (
            ((200, {"IPAM": {"Config": pools}}), "172.17.0.1"),
            ((200, {"IPAM": {"Config": None}}), ""),
            ((404, {"message": "network bridge not found"}), ""),
        ):
            self.daemon.answers["/networks/bridge"] = answer
            self.assertEqual(self.successResultOf(self.ask(self.api.bridge_gateway())), address)

    def test_inspect(self) -> None:
        """A container's description is returned as it is."""
        self.daemon.answers["/containers/web/json"] = 200, {"Id": "1"}
        self.assertEqual(self.successResultOf(self.ask(self.api.inspect_container("web"))), {"Id": "1"})

    def test_nothing_there(self) -> None:
        """What does not exist is None, not an error."""
        self.assertIsNone(self.successResultOf(self.ask(self.api.inspect_container("web"))))
        self.assertIsNone(self.successResultOf(self.ask(self.api.inspect_exec("1"))))

    def test_names_that_nothing_has(self) -> None:
        """What has an empty or a dotted segment names nothing, and the daemon is not asked for another path."""
        for reference in ("", ".", "..", "../images", "a//b", "a/"):
            self.assertIsNone(self.successResultOf(self.ask(self.api.inspect_container(reference))), reference)
        self.assertEqual(self.daemon.seen, [])

    def test_a_name_as_inspect_shows_it(self) -> None:
        """A container's name may come with the slash that inspect shows it with."""
        self.daemon.answers["/containers/web/json"] = 200, {"Id": "1"}
        self.assertEqual(self.successResultOf(self.ask(self.api.inspect_container("/web"))), {"Id": "1"})

    def test_reference_is_one_path(self) -> None:
        """A reference cannot become another call: what is not a plain name is encoded."""
        self.ask(self.api.inspect_container("a?b#c d"))
        self.assertEqual(self.daemon.seen[0][1], "/containers/a%3Fb%23c%20d/json")

    def test_error(self) -> None:
        """An error status becomes an error with the daemon's own words."""
        self.daemon.answers["/containers/web/json"] = 500, {"message": "out of luck"}
        error = self.failureResultOf(self.ask(self.api.inspect_container("web")), DaemonError).value
        self.assertEqual((error.status, str(error)), (500, "out of luck"))

    def test_not_json(self) -> None:
        """An answer that is not JSON is the daemon's fault, in words."""
        self.daemon.answers["/containers/web/json"] = 200, b"<html>"
        error = self.failureResultOf(self.ask(self.api.inspect_container("web")), DaemonUnreachable).value
        self.assertIn("not JSON", str(error))

    def test_list(self) -> None:
        """All containers with a label are asked for, stopped ones too."""
        self.daemon.answers["/containers/json"] = 200, [{"Id": "1"}]
        self.assertEqual(self.successResultOf(self.ask(self.api.list_containers(["a=b"]))), [{"Id": "1"}])
        arguments = self.daemon.seen[0][2]
        self.assertEqual(arguments[b"all"], [b"1"])
        self.assertEqual(json.loads(arguments[b"filters"][0]), {"label": ["a=b"]})

    def test_mounted_paths(self) -> None:
        """Every path of the host counts that a container, running or not, or a volume leads to."""
        self.daemon.answers["/containers/json"] = (
            200,
            [{"Mounts": [{"Source": "/srv/a"}, {"Source": "/var/lib/docker/volumes/v/_data"}]}, {"Mounts": None}],
        )
        volumes = [{"Name": "v", "Options": {"o": "bind", "device": "/srv/b"}}, {"Name": "w", "Options": None}]
        self.daemon.answers["/volumes"] = 200, {"Volumes": volumes}
        found = self.successResultOf(self.ask(self.api.mounted_paths()))
        self.assertEqual(found, {"/srv/a", "/srv/b", "/var/lib/docker/volumes/v/_data"})
        self.assertEqual(self.daemon.seen[0][2], {b"all": [b"1"]})

    def test_link_down(self) -> None:
        """The link's own error comes through as it is."""
        self.endpoint.refuse = LinkDown("no link")
        self.failureResultOf(self.ask(self.api.inspect_container("web")), LinkDown)

    def test_timeout(self) -> None:
        """A daemon that does not answer is given up, and no delayed call is left."""
        asked = Deferred.fromCoroutine(self.api.inspect_container("web"))
        self.clock.advance(TIMEOUT)
        error = self.failureResultOf(asked, DaemonUnreachable).value
        self.assertIn("within 30 s", str(error))

    def test_too_long(self) -> None:
        """An answer that is longer than any is given up when it is, not read to its end."""
        self.patch(api_module, "MAX_ANSWER", 100)
        self.daemon.answers["/containers/web/json"] = 200, b"x" * 101
        error = self.failureResultOf(self.ask(self.api.inspect_container("web")), DaemonUnreachable).value
        self.assertIn("over 100 bytes", str(error))

    def test_silent_events(self) -> None:
        """A daemon that does not begin the stream of events is given up."""
        stream = self.api.follow_events({}, None, lambda event: None)
        self.clock.advance(TIMEOUT)
        self.assertIn("/events within 30 s", str(self.failureResultOf(stream, DaemonUnreachable).value))

    def test_bad_events(self) -> None:
        """A stream of events that holds something else, or one that never ends, fails and is left."""
        self.patch(api_module, "MAX_EVENT", 100)
        for data, reason in ((b'{"n": 1}\n{,\n', "not JSON"), (b" " * 101, "over 100 bytes")):
            seen: list[Any] = []
            stream = self.api.follow_events({}, None, seen.append)
            self.endpoint.pump()
            lost = self.daemon.streams[-1].notifyFinish()
            self.daemon.streams[-1].write(data)
            self.endpoint.pump()
            self.assertIn(reason, str(self.failureResultOf(stream, DaemonUnreachable).value))
            self.failureResultOf(lost)
            self.assertEqual(seen, [{"n": 1}] * data.count(b"1}"))

    def test_events(self) -> None:
        """Each event is handed over as it comes, whichever way the stream is cut."""
        seen: list[Any] = []
        stream = self.api.follow_events({"type": ["container"]}, None, seen.append)
        self.endpoint.pump()
        self.daemon.event({"n": 1})
        self.endpoint.pump()
        self.assertEqual(seen, [{"n": 1}])
        whole = json.dumps({"n": 2}).encode() + b"\n"
        for n in range(len(whole)):
            self.daemon.streams[0].write(whole[n : n + 1])
            self.endpoint.pump()
        self.assertEqual(seen, [{"n": 1}, {"n": 2}])
        self.assertNoResult(stream)
        self.daemon.end_streams()
        self.endpoint.pump()
        self.successResultOf(stream)

    def test_cancel_events(self) -> None:
        """Cancelling the stream closes its connection."""
        stream = self.api.follow_events({}, None, lambda event: None)
        self.endpoint.pump()
        lost = self.daemon.streams[0].notifyFinish()
        stream.cancel()
        self.endpoint.pump()
        self.failureResultOf(lost)
        stream.addErrback(lambda failure: None)

    def test_close(self) -> None:
        """Nothing stays open or scheduled after close."""
        self.daemon.answers["/containers/web/json"] = 200, {"Id": "1"}
        self.successResultOf(self.ask(self.api.inspect_container("web")))
        self.api.close()
        self.endpoint.pump()
        self.assertEqual(self.clock.getDelayedCalls(), [])

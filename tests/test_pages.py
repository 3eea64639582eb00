"""rda's own resources, behind the real door and through the real HTTP stack."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from rda.access.caller import Caller, Proof
from rda.errors import BadRequest, LinkDown
from rda.pages.control import ACTIONS
from rda.pages.document import Process, status_document
from rda.pages.live import HEARTBEAT_SECONDS, LOOK_SECONDS, MAX_STREAMS
from rda.pages.logs import LINES_KEPT, LONGEST_LINE, RecentLog
from rda.pages.tree import Pages
from rda.proxy.authentication import Visitor
from rda.status import (
    CallStatus,
    ContextStatus,
    ForwardStatus,
    LinkStatus,
    MirrorStatus,
    Problem,
    RelayStatus,
    RemoteCopy,
    RouteStatus,
    WaitStatus,
)
from rda.sync.copies import Collected
from tests.memory_network import Peer
from tests.relay_case import GET, OK, RelayCase, body_of, post

JSON = b"Content-Type: application/json\r\n"


class FakeControl:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.journal: list[Any] = []
        self.flushing: Deferred[None] = Deferred()
        self.copies = [RemoteCopy("a-1", "/small", 10, 5.0), RemoteCopy("a-2", "/large", 1000, 6.0)]

    def flush(self, path: str | None) -> Deferred[None]:
        self.journal.append(("flush", path))
        return self.flushing

    def pause(self, path: str | None) -> None:
        if path == "/unknown":
            raise BadRequest("/unknown is not mirrored")
        self.journal.append(("pause", path))

    def resume(self, path: str | None) -> None:
        self.journal.append(("resume", path))

    def confirm(self, path: str) -> None:
        self.journal.append(("confirm", path))

    def unused(self) -> Deferred[list[RemoteCopy]]:
        return succeed(self.copies)

    def collect(self, copies: Iterable[RemoteCopy]) -> Deferred[Collected]:
        names = tuple(copy.name for copy in copies)
        self.journal.append(("collect", names))
        return succeed(Collected(names, ()))


class PagesCase(RelayCase):
    def setUp(self) -> None:
        self.log = RecentLog()
        self.control = FakeControl()
        self.contexts = [ContextStatus("default", (), LinkStatus("me@host:22", "connected"))]
        self.clock_parts: list[Any] = []
        super().setUp()
        self.own: list[ContextStatus] = []
        self.pages = Pages(
            self.clock, lambda: tuple(self.contexts), lambda: tuple(self.own), self.control, self.log, Process(1, 0.0)
        )
        self.site.proxy.putChild(b"_rda", self.pages)

    def ask(self, path: bytes, *fields: bytes) -> Peer:
        lines = [b"GET /_rda" + path + b" HTTP/1.1", b"Host: localhost", *fields, b"", b""]
        return self.client(b"\r\n".join(lines))

    def document(self, client: Peer, status: int = 200) -> Any:
        self.assertTrue(client.received.startswith(b"HTTP/1.1 %d " % status), client.received[:200])
        self.assertIn(b"application/json", client.received)
        return json.loads(body_of(client.take()))

    def tell(self, name: bytes, asked: Any) -> Peer:
        return self.client(post(b"/_rda/" + name, json.dumps(asked).encode(), JSON))


class StatusTests(PagesCase):
    def test_document(self) -> None:
        """The status is one JSON document with a version, which no cache keeps."""
        client = self.ask(b"/status")
        self.assertIn(b"no-store", client.received)
        document = self.document(client)
        self.assertEqual((document["schema"], document["contexts"][0]["link"]["state"]), (1, "connected"))

    def test_names_that_are_not_unicode(self) -> None:
        """A path that is not valid UTF-8 comes through, as its bytes escaped."""
        self.contexts = [ContextStatus("x", (), self.contexts[0].link, mirrors=(MirrorStatus("/a\udcff", "", "idle"),))]
        document = self.document(self.ask(b"/status"))
        self.assertEqual(document["contexts"][0]["mirrors"][0]["source"].encode("utf-8", "surrogateescape"), b"/a\xff")

    def test_page(self) -> None:
        """The status page and its parts are served with their types, and a policy that lets nothing else in."""
        for path, kind, begin in (
            (b"/", b"text/html", b"<!doctype html>"),
            (b"/page.js", b"text/javascript", b"//"),
            (b"/page.css", b"text/css", b"/*"),
            (b"/icon.svg", b"image/svg+xml", b"<svg"),
        ):
            client = self.ask(path)
            self.assertIn(b"Content-Type: " + kind, client.received)
            self.assertIn(b"Content-Security-Policy: default-src 'none'; script-src 'self'", client.received)
            self.assertTrue(body_of(client.received).startswith(begin))

    def test_way_to_the_page(self) -> None:
        """``/_rda`` leads to the page."""
        client = self.ask(b"")
        self.assertIn(b"302 Found", client.received)
        self.assertIn(b"Location: /_rda/\r\n", client.received)

    def test_nothing_there(self) -> None:
        """Other paths are told to be none, as JSON."""
        for path in (b"/nothing", b"/logs/nothing", b"/status/x/y"):
            self.assertIn("no such page", self.document(self.ask(path), 404)["message"])

    def test_calls(self) -> None:
        """The latest calls are told with the route, the status and how long they took; never with their query."""
        client = self.client(GET.replace(b"/_ping", b"/v1.45/build?buildargs=secret").replace(b"GET", b"POST"))
        self.advance(0.5)
        (running,) = self.site.calls.status()
        self.assertEqual((running.method, running.path, running.code, running.seconds), ("POST", "/build", None, None))
        self.send(self.upstream, OK)
        self.assertIn(b"200 OK", client.received)
        (over,) = self.site.calls.status()
        self.assertEqual((over.path, over.code, over.answered, over.seconds), ("/build", 200, 0.5, 0.5))
        relay = self.site.status()
        self.assertEqual(relay.requests, 1)
        (route,) = relay.routes
        self.assertEqual((route.name, route.codes, sum(route.buckets), route.seconds), (over.name, ((200, 1),), 1, 0.5))


class SchemaTests(SynchronousTestCase):
    #: Section of docs/status-schema.rst -> what it describes.
    SECTIONS = {
        "A context": ContextStatus,
        "A problem": Problem,
        "The link": LinkStatus,
        "A published port": ForwardStatus,
        "A bind mount": MirrorStatus,
        "Totals of Docker's calls": RelayStatus,
        "A kind of call": RouteStatus,
        "A call": CallStatus,
        "A call that waits": WaitStatus,
    }

    def test_documented(self) -> None:
        """Every field of the status document is described, and none that it has not."""
        text = (Path(__file__).parent.parent / "docs/status-schema.rst").read_text(encoding="utf-8")
        sections = dict(re.findall(r"^(\S[^\n]*)\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL))
        for name, kind in self.SECTIONS.items():
            described = set(re.findall(r"^``(\w+)``$", sections[name], re.MULTILINE))
            self.assertEqual(described, {field.name for field in fields(kind)}, name)
        described = set(re.findall(r"^``(\w+)``$", sections["The document"], re.MULTILINE))
        self.assertEqual(described, set(status_document((), Process(1, 0.0), 0.0)))
        controls = set(re.findall(r"^``POST /_rda/(\w+)``", sections["Controlling rda"], re.MULTILINE))
        self.assertEqual(controls, set(ACTIONS))


class GuardTests(PagesCase):
    def test_own_page(self) -> None:
        """rda's own page in a browser may read what is below /_rda/, and nothing else."""
        same = b"Sec-Fetch-Site: same-origin"
        self.document(self.ask(b"/status", same))
        self.assert_error(self.client(GET.replace(b"Host", same + b"\r\nHost")), 403)
        for field in (b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: same-site", b"Origin: http://evil"):
            self.assert_error(self.ask(b"/status", field), 403)
        self.assertEqual(self.daemon.peers, [])

    def test_a_page_cannot_control(self) -> None:
        """A web page, rda's own included, cannot tell rda to do anything."""
        for field in (b"Sec-Fetch-Site: same-origin\r\n", b"Origin: http://localhost\r\n"):
            self.assert_error(self.client(post(b"/_rda/pause", b"{}", JSON + field)), 403)
        kind = b"Content-Type: text/plain\r\n"
        self.assertIn("Content-Type", self.document(self.client(post(b"/_rda/pause", b"{}", kind)), 415)["message"])
        self.assertEqual(self.control.journal, [])


class GuestTests(PagesCase):
    """Others than the user that rda runs as, who were let in."""

    caller = Caller("bob", Proof.SOCKET, 1001)

    def setUp(self) -> None:
        self.site_options = {"identify": lambda transport: Visitor(self.caller)}
        super().setUp()

    def test_guests(self) -> None:
        """They see the context whose listener they use, and no log; they may wait, and do nothing else."""
        self.own = [ContextStatus("shared", (), LinkStatus("me@host:22", "connected"))]
        names = [context["name"] for context in self.document(self.ask(b"/status"))["contexts"]]
        self.assertEqual(names, ["shared"])
        self.assertIn(b"shared", self.ask(b"/events").received)
        self.assertNotIn(b"default", self.ask(b"/metrics").received)
        for path in (b"/logs", b"/logs/events", b"/unused"):
            self.assertIn("for the user that rda runs as", self.document(self.ask(path), 403)["message"])
        for name, asked in ((b"pause", {}), (b"resume", {}), (b"confirm", {"path": "/x"}), (b"collect", {"names": []})):
            self.document(self.tell(name, asked), 403)
        self.control.flushing.callback(None)
        self.document(self.tell(b"flush", {}))
        self.assertEqual(self.control.journal, [("flush", None)])

    def test_owner(self) -> None:
        """The user that rda runs as sees all."""
        self.caller = Caller("me", Proof.SOCKET, 1000, own=True)
        names = [context["name"] for context in self.document(self.ask(b"/status"))["contexts"]]
        self.assertEqual(names, ["default"])
        self.document(self.ask(b"/logs"))


class ControlTests(PagesCase):
    def test_flush_waits(self) -> None:
        """A flush is answered when both sides are equal."""
        client = self.tell(b"flush", {"path": "/src"})
        self.assertEqual(client.received, b"")
        self.control.flushing.callback(None)
        self.pump()
        self.assertEqual(self.document(client), {"schema": 1})
        self.assertEqual(self.control.journal, [("flush", "/src")])

    def test_flush_fails(self) -> None:
        """What a flush fails with is answered as the daemon answers errors."""
        client = self.tell(b"flush", {})
        self.control.flushing.errback(LinkDown("the link is down"))
        self.pump()
        self.assertIn(b"Retry-After: 2", client.received)
        self.assertEqual(self.document(client, 503), {"message": "rda: the link is down"})

    def test_defect(self) -> None:
        """A defect is answered too, and logged."""
        client = self.tell(b"flush", {})
        self.control.flushing.errback(ZeroDivisionError())
        self.pump()
        self.assertIn("log", self.document(client, 500)["message"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_client_leaves(self) -> None:
        """A client that does not wait for its answer is none to be answered."""
        client = self.tell(b"flush", {})
        client.transport.abortConnection()
        self.pump()
        self.control.flushing.callback(None)
        self.pump()

    def test_pause_resume_confirm(self) -> None:
        """The others are passed on with their path."""
        for name, asked in ((b"pause", {}), (b"resume", {"path": None}), (b"confirm", {"path": "/src"})):
            self.document(self.tell(name, asked))
        self.assertEqual(self.control.journal, [("pause", None), ("resume", None), ("confirm", "/src")])

    def test_nonsense(self) -> None:
        """What cannot be understood is refused, and nothing is done."""
        for name, asked, words in (
            (b"pause", [], "JSON object"),
            (b"pause", {"path": "relative"}, "absolute"),
            (b"pause", {"path": 1}, "absolute"),
            (b"pause", {"paht": "/src"}, "paht"),
            (b"confirm", {}, "missing"),
            (b"collect", {"names": "x"}, "names"),
            (b"pause", {"path": "/unknown"}, "not mirrored"),
        ):
            self.assertIn(words, self.document(self.tell(name, asked), 400)["message"])
        self.assertIn("not JSON", self.document(self.client(post(b"/_rda/pause", b"{", JSON)), 400)["message"])
        self.assertEqual(self.control.journal, [])

    def test_collect(self) -> None:
        """Only copies that nobody uses can be collected; the list has the largest first."""
        copies = self.document(self.ask(b"/unused"))["copies"]
        self.assertEqual([copy["name"] for copy in copies], ["a-2", "a-1"])
        answer = self.document(self.tell(b"collect", {"names": ["a-1", "in-use"]}))
        self.assertEqual(answer, {"schema": 1, "removed": ["a-1"], "kept": []})
        self.assertEqual(self.control.journal, [("collect", ("a-1",))])

    def test_unreachable(self) -> None:
        """The list of copies can fail like anything else."""
        self.control.unused = lambda: fail(LinkDown("no link"))  # type: ignore[method-assign]
        self.assertEqual(self.document(self.ask(b"/unused"), 503)["message"], "rda: no link")


class EventsTests(PagesCase):
    def events(self, client: Peer) -> list[Any]:
        """Return the data of the events that have come since the last call."""
        raw = client.take()
        return [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: ")]

    def test_status(self) -> None:
        """The status comes at once, and again when it has changed; while nothing changes, nothing comes."""
        client = self.ask(b"/events")
        self.assertIn(b"text/event-stream", client.received)
        self.assertEqual(len(self.events(client)), 1)
        self.advance(LOOK_SECONDS)
        self.assertEqual(self.events(client), [])
        self.contexts = [ContextStatus("default", (), LinkStatus("me@host:22", "waiting"))]
        self.advance(LOOK_SECONDS)
        (event,) = self.events(client)
        self.assertEqual(event["contexts"][0]["link"]["state"], "waiting")

    def test_heartbeat(self) -> None:
        """A quiet stream carries a comment now and then."""
        client = self.ask(b"/events")
        client.take()
        for _ in range(int(HEARTBEAT_SECONDS / LOOK_SECONDS)):
            self.advance(LOOK_SECONDS)
        self.assertEqual(client.received.count(b":\n\n"), 1)

    def test_nobody_looks_for_nobody(self) -> None:
        """When the last one has gone, no timer is left."""
        client = self.ask(b"/events")
        client.transport.abortConnection()
        self.pump()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_limit(self) -> None:
        """There is room for so many streams, and then for as many as have ended."""
        clients = [self.ask(b"/events") for _ in range(MAX_STREAMS)]
        self.assertIn("watch already", self.document(self.ask(b"/events"), 503)["message"])
        clients[0].transport.abortConnection()
        self.pump()
        self.assertEqual(len(self.events(self.ask(b"/events"))), 1)

    def test_slow_client(self) -> None:
        """A client that does not read gets no more than it takes, and the latest when it reads again."""
        client = self.ask(b"/events")
        (stream,) = self.pages._streams[0].streams
        client.take()
        stream.pauseProducing()
        for state in ("waiting", "connecting"):
            self.contexts = [ContextStatus("default", (), LinkStatus("me@host:22", state))]
            self.advance(LOOK_SECONDS)
        self.assertEqual(self.events(client), [])
        stream.resumeProducing()
        self.pump()
        self.assertEqual([e["contexts"][0]["link"]["state"] for e in self.events(client)], ["connecting"])

    def test_stopping(self) -> None:
        """When rda stops, streams end at once, and draining does not wait for them."""
        client = self.ask(b"/events")
        self.pages.close()
        self.pump()
        self.assertTrue(client.received.endswith(b"0\r\n\r\n"))
        drained = self.site.drain(5.0)
        self.pump()
        self.successResultOf(drained)


class LogTests(PagesCase):
    def say(self, text: str, level: LogLevel = LogLevel.info) -> None:  # type: ignore[valid-type]
        self.log({"log_format": "{text}", "text": text, "log_level": level, "log_time": 1.0, "log_namespace": "rda.x"})

    def test_lines(self) -> None:
        """The last lines are kept, shortened if need be; debugging is not."""
        self.say("debugging", LogLevel.debug)
        for n in range(LINES_KEPT + 1):
            self.say(str(n))
        self.say("x" * 2 * LONGEST_LINE, LogLevel.error)
        lines = self.document(self.ask(b"/logs"))["lines"]
        self.assertEqual((len(lines), lines[0]["text"]), (LINES_KEPT, "2"))
        self.assertEqual((lines[-1]["level"], lines[-1]["where"], len(lines[-1]["text"])), ("error", "rda.x", 2002))

    def test_follow(self) -> None:
        """A follower gets the lines that there are, then each new one, and after a pause what it missed."""
        self.say("old")
        client = self.ask(b"/logs/events")
        self.say("new")
        self.pump()
        self.assertIn(b'"text":"old"', client.received)
        self.assertIn(b'"text":"new"', client.take())
        (stream,) = self.pages._streams[2].streams
        stream.pauseProducing()
        self.say("missed")
        stream.resumeProducing()
        self.pump()
        self.assertEqual(client.received.count(b"missed"), 1)
        self.pages.close()

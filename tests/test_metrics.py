"""The numbers for Prometheus, and what is made of them: the dashboard, the alert rules, the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.trial.unittest import SynchronousTestCase

from rda.pages.metrics import Metrics
from rda.status import (
    LATENCY_BUCKETS,
    ContextStatus,
    ForwardStatus,
    LinkStatus,
    MirrorStatus,
    Problem,
    RelayStatus,
    RouteStatus,
)
from tests.relay_case import GET, OK, body_of
from tests.test_pages import PagesCase

ROOT = Path(__file__).parent.parent

BUCKETS = (1, 2, *[0] * (len(LATENCY_BUCKETS) - 2), 4)

CONTEXT = ContextStatus(
    "gpu",
    (),
    LinkStatus("me@host:22", "connected", round_trip=0.02, connects=3, channels=5),
    forwards=(
        ForwardStatus("c", "web", "80/tcp", "127.0.0.1:80", "r", "open", "", 2, 9, 100, 200),
        ForwardStatus("d", "db", "1/tcp", "127.0.0.1:1", "", "not forwarded", "in use"),
    ),
    mirrors=(
        MirrorStatus(
            "/idle", "", "idle", files=3, bytes=4, last_change=1000.0, latency=0.5, conflicts=(Problem("x", "y"),)
        ),
        MirrorStatus(
            "/a\udcff", "", "applying", files_done=2, files_total=10, bytes_done=5, bytes_total=50, problems_total=7
        ),
    ),
    problems=(Problem("x", "y"),),
    relay=RelayStatus(
        1, 20, 2, 3, 1, 1, 1000, 2000, (RouteStatus("container create", ((201, 5), (404, 2)), BUCKETS, 9.5),)
    ),
)


class MetricsTests(SynchronousTestCase):
    def setUp(self) -> None:
        text, kind = Metrics(lambda: (CONTEXT,)).write(b"")
        self.assertTrue(kind.startswith(b"text/plain"))
        self.families = list(parse(text.decode()))
        self.values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.values[name, *sorted({"context": "gpu", **labels}.items())]

    def test_values(self) -> None:
        """Every part of the status is told under its name."""
        web = {"container": "web", "port": "80/tcp", "local": "127.0.0.1:80"}
        for expected, name, labels in (
            (1, "rda_link_state", {"state": "connected"}),
            (0, "rda_link_state", {"state": "failed"}),
            (3, "rda_link_connects_total", {}),
            (5, "rda_link_channels", {}),
            (0.02, "rda_link_round_trip_seconds", {}),
            (20, "rda_requests_total", {}),
            (2, "rda_requests_refused_total", {}),
            (2000, "rda_relayed_bytes_total", {"direction": "to_client"}),
            (5, "rda_answers_total", {"route": "container create", "code": "201"}),
            (1, "rda_answer_seconds_bucket", {"route": "container create", "le": "0.001"}),
            (3, "rda_answer_seconds_bucket", {"route": "container create", "le": "0.0025"}),
            (7, "rda_answer_seconds_bucket", {"route": "container create", "le": "+Inf"}),
            (7, "rda_answer_seconds_count", {"route": "container create"}),
            (9.5, "rda_answer_seconds_sum", {"route": "container create"}),
            (1, "rda_forwards", {"state": "not_forwarded"}),
            (2, "rda_forward_connections_open", web),
            (9, "rda_forward_connections_total", web),
            (0, "rda_forward_dropped_total", web),
            (200, "rda_forwarded_bytes_total", {**web, "direction": "out"}),
            (1, "rda_mirrors", {"state": "applying"}),
            (0.5, "rda_mirror_lag_seconds", {"source": "/idle"}),
            (8, "rda_mirror_queue_files", {"source": "/a\\udcff"}),
            (45, "rda_mirror_queue_bytes", {"source": "/a\\udcff"}),
            (7, "rda_mirror_problems", {"source": "/a\\udcff"}),
            (1, "rda_mirror_conflicts", {"source": "/idle"}),
            (9, "rda_problems", {}),
        ):
            self.assertEqual(self.value(name, **labels), expected, name)

    def test_openmetrics(self) -> None:
        """A collector that asks for OpenMetrics gets it, and its own strict parser reads it."""
        text, kind = Metrics(lambda: (CONTEXT,)).write(b"application/openmetrics-text; version=1.0.0")
        self.assertTrue(kind.startswith(b"application/openmetrics-text"))
        self.assertTrue(any(family.name == "rda_answer_seconds" for family in parse_openmetrics(text.decode())))

    def names(self) -> set[str]:
        return {sample.name for family in self.families for sample in family.samples}

    def test_dashboard(self) -> None:
        """Every metric of the sample dashboard exists, and so do its labels."""
        dashboard = json.loads((ROOT / "etc/grafana/rda.json").read_text(encoding="utf-8"))
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        queries += [one["definition"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
        self.assertGreater(len(queries), 15)
        self.check_queries(queries)

    def test_alert_rules(self) -> None:
        """Every metric of the alert rules exists, and so do its labels and states."""
        text = (ROOT / "etc/prometheus/rda.rules.yml").read_text(encoding="utf-8")
        queries = re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)
        self.assertEqual(len(queries), text.count("- alert: "))
        self.check_queries(queries)

    def check_queries(self, queries: list[str]) -> None:
        labels: dict[str, set[str]] = {}
        pairs: dict[str, set[tuple[str, str]]] = {}
        for name, *own in self.values:
            labels.setdefault(name, set()).update(key for key, _ in own)
            pairs.setdefault(name, set()).update(own)
        for query in queries:
            for name in re.findall(r"\b(?:rda|process)_\w+\b", query):
                self.assertIn(name, self.names(), query)
            for name, selector in re.findall(r"\b(rda_\w+)\{([^}]*)\}", query):
                for key, how, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', selector):
                    self.assertIn(key, labels[name] | {"instance"}, query)
                    if how == "=" and key == "state":
                        self.assertIn((key, value), pairs[name], query)

    def test_documented(self) -> None:
        """docs/metrics.rst names every metric of rda's, and none that there is not."""
        text = (ROOT / "docs/metrics.rst").read_text(encoding="utf-8")
        documented = set(re.findall(r"^``(rda_\w+)``", text, re.MULTILINE))
        own = {re.sub(r"_(bucket|count|sum)$", "", name) for name in self.names() if name.startswith("rda_")}
        self.assertEqual(documented, own)


class MetricsPageTests(PagesCase):
    def test_page(self) -> None:
        """The page tells what the site has relayed, among others."""
        self.client(GET)
        self.send(self.upstream, OK)
        client = self.ask(b"/metrics", b"Accept: text/plain")
        self.assertIn(b"text/plain; version=", client.received)
        self.assertIn(b'rda_link_state{context="default",state="connected"} 1.0', body_of(client.received))

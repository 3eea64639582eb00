"""The status page in a real browser: what it shows, to whom, and that nothing but rda gets into it."""

from __future__ import annotations

import atexit
import functools
import subprocess
import sys
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.browser import Browser, Page, find_browser

DRAWN = "document.querySelector('.context') && document.getElementById('live').textContent == 'live'"

#: Viewports, in CSS pixels.
DESKTOP, PHONE = (1280, 900), (390, 844)

#: Finds texts whose contrast with what is behind them is below 4.5:1 (WCAG 2.2, success criterion 1.4.3).
CONTRAST = r"""(() => {
  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, n) => sum + weight * linear(rgb[n] / 255), 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest('noscript')) continue;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) bad.push(`${walker.currentNode.data} ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""


@functools.cache
def shared_browser() -> Browser:
    """One browser for all tests: starting it takes longer than most of them."""
    browser = Browser()
    browser.__enter__()
    atexit.register(browser.__exit__, None, None, None)
    return browser


class PageTests(SynchronousTestCase):
    def setUp(self) -> None:
        find_browser()
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.live.page_server", "busy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
        )
        self.addCleanup(self.server.wait)
        self.addCleanup(self.server.kill)
        assert self.server.stdout is not None
        self.url = self.server.stdout.readline().strip()
        self.addCleanup(self.server.stdout.close)
        self.browser = shared_browser()
        self.tabs: list[Page] = []
        self.addCleanup(self.close_tabs)

    def close_tabs(self) -> None:
        """Close what is still open: a browser has six connections for each host, and a page keeps one."""
        for page in self.tabs:
            page.close()

    def show(self, picture: str) -> None:
        """Have the agent be in another state from now on."""
        assert self.server.stdin is not None
        self.server.stdin.write(picture + "\n")
        self.server.stdin.flush()

    def visit(self, size: tuple[int, int] = DESKTOP, dark: bool = False) -> Page:
        page = self.browser.page(*size, dark=dark, phone=size == PHONE)
        self.tabs.append(page)
        self.assertEqual(page.go(self.url), "")
        page.wait(DRAWN)
        return page

    def test_looks(self) -> None:
        """Light and dark, on a desktop and on a phone, nothing is cut off and every text can be read.

        The pictures are left in the trial directory, for people to look at.
        """
        for picture in ("busy", "empty"):
            self.show(picture)
            for dark in (False, True):
                for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
                    page = self.visit(size, dark)
                    wide = f"document.querySelectorAll('.context .mirror').length == {4 if picture == 'busy' else 0}"
                    page.wait(wide)
                    page.screenshot(Path(f"{picture}-{'dark' if dark else 'light'}-{name}.png"))
                    self.assertEqual(page.evaluate("document.documentElement.scrollWidth"), size[0])
                    self.assertEqual(page.evaluate(CONTRAST), [])
                    self.assertEqual(page.complaints(), [])
                    self.tabs.remove(page)
                    page.close()

    def test_live(self) -> None:
        """A change of the agent's shows by itself, is announced to screen readers, and keeps the reader's place."""
        page = self.visit()
        page.evaluate("document.querySelector('.forwards .scroll').focus(); window.kept = document.activeElement")
        self.assertIn(
            "default: connected, 3 problems", page.evaluate("document.getElementById('announcements').textContent")
        )
        self.assertEqual(page.evaluate("document.title"), "(4) rda")
        self.show("failed")
        page.wait("document.querySelectorAll('.mirror').length == 0")
        page.wait("document.getElementById('announcements').textContent == 'default: failed, 1 problem'")
        self.assertIn("<b>its key</b>", page.evaluate("document.querySelector('.problem p').textContent"))
        self.assertEqual(page.evaluate("document.querySelectorAll('main b').length"), 0)
        self.show("busy")
        page.wait("document.querySelectorAll('.context').length == 2")
        self.assertEqual(page.complaints(), [])

    def test_screen_reader(self) -> None:
        """What a screen reader gets: landmarks, headings, a named chart, progress bars and tables; on a phone too."""
        on_a_phone = [role for role, _ in self.visit(PHONE).accessibility()]
        page = self.visit()
        seen = page.accessibility()
        for role in ("table", "row", "columnheader", "cell"):
            self.assertEqual(on_a_phone.count(role), [one for one, _ in seen].count(role), role)
        landmarks = [one for one in seen if one[0] in ("region", "main", "banner", "contentinfo")]
        self.assertEqual(sorted(landmarks), sorted(set(landmarks)))
        roles = {role for role, _ in seen}
        for role in ("main", "banner", "contentinfo", "heading", "table", "progressbar", "status", "link"):
            self.assertIn(role, roles)
        names = [name for role, name in seen if role in ("image", "img")]
        self.assertTrue(any(name.startswith("Round trip over the last 15 min") for name in names), names)
        self.assertIn(("progressbar", "Transfer of /home/alice/projects/vision/datasets"), seen)
        self.assertTrue({"Context default", "Context lab"} <= {name for role, name in seen if role == "region"})

    def test_agent_stops_and_comes_back(self) -> None:
        """When the agent has gone, the page says so."""
        page = self.visit()
        self.server.kill()
        page.wait("document.getElementById('live').textContent == 'rda does not answer'")
        self.assertIn("trying again", page.evaluate("document.getElementById('announcements').textContent"))

    def test_nobody_else(self) -> None:
        """No other page can read the status, put the page into a frame, or run a script in it."""
        page = self.visit()
        read = "fetch('{}').then((answer) => answer.status, (error) => 'refused')"
        self.assertEqual(page.evaluate(read.format("status")), 200)
        self.assertEqual(page.evaluate(read.format("/_ping")), 403)
        self.assertEqual(
            page.evaluate("fetch('pause', {method: 'POST', body: '{}'}).then((answer) => answer.status)"), 403
        )
        inline = "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
        page.evaluate(inline + "document.body.append(s); })()")
        self.assertIsNone(page.evaluate("window.ran"))
        answer = urllib.request.urlopen(self.url, timeout=30)
        self.assertIn("frame-ancestors 'none'", answer.headers["content-security-policy"])
        answer.close()
        other = self.browser.page()
        self.tabs.append(other)
        other.go("data:text/html,<title>elsewhere</title>")
        other.wait("document.title == 'elsewhere'")
        self.assertEqual(other.evaluate(read.format(self.url + "status")), "refused")

"""A real browser without a window, steered over a pipe by the Chrome DevTools Protocol.

Source: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from twisted.trial.unittest import SkipTest

__all__ = ["Browser", "Page", "find_browser"]

#: As Debian and others call it.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Seconds for one answer of the browser, which has to start first.
ANSWER_SECONDS = 60.0


def find_browser() -> str:
    """Return the browser's path; skip the calling test where there is none."""
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise SkipTest(f"there is no {NAMES[0]} on PATH (apt-get install {NAMES[0]}): what needs one is not tested")


class Browser:
    """A browser with a profile of its own; use it as a context manager.

    :param arguments: more words of its command line.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self._program = find_browser()
        self._arguments = arguments
        self._profile = tempfile.mkdtemp(prefix="rda-browser-")
        self._number = 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        def wire() -> None:
            # The protocol is on descriptors 3 and 4; neither may be overwritten before it has been copied.
            high = [os.dup2(commands, 100), os.dup2(answers, 101)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [
                self._program,
                "--headless=new",
                "--remote-debugging-pipe",
                "--no-sandbox",  # tests run as root, in containers
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--no-proxy-server",
                "--hide-scrollbars",
                f"--user-data-dir={self._profile}",
                *self._arguments,
                "about:blank",
            ],
            preexec_fn=wire,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come first are kept in :attr:`events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)
        raise AssertionError(f"the browser has not answered {method} within {ANSWER_SECONDS:g} s")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._answers, 1 << 16)
            if not data:
                raise AssertionError("the browser has ended")
            self._buffer += data
        one, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(one)

    def page(self, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> Page:
        """Open an empty page.

        :param width, height: of the viewport, in CSS pixels.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.call("Emulation.setEmulatedMedia", features=scheme)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self._browser.call(method, self._session, **parameters)

    def go(self, url: str) -> str:
        """Load a page as if its address had been typed; return the error text, "" when it was loaded."""
        return str(self.call("Page.navigate", url=url).get("errorText", ""))

    def close(self) -> None:
        """Close the tab."""
        self.call("Page.close")

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of an expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 30.0) -> None:
        """Return as soon as an expression is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.evaluate(f"Boolean({expression})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"not true within {seconds:g} s: {expression}\n{self.complaints()}")

    def complaints(self) -> list[str]:
        """What the browser has complained of in this tab: errors, exceptions, violations of the content policy."""
        self.evaluate("0")
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(f"{event['params']['entry']['text']} {event['params']['entry'].get('url', '')}")
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
        return found

    def screenshot(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def accessibility(self) -> list[tuple[str, str]]:
        """Return the (role, name) pairs that a screen reader gets to see."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

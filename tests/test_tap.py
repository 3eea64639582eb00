"""The command line of ``twistd rda``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest import mock

from twisted.application.service import IServiceMaker
from twisted.internet.base import ReactorBase
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from rda.config import Context
from rda.tap import Options, keep_time


class _Reactor(ReactorBase):
    """A reactor of which only the timers are used."""

    def installWaker(self) -> None:
        """There is nobody to wake."""

    wakeUp = removeReader = removeWriter = installWaker


class TimeTests(SynchronousTestCase):
    def test_the_time_of_day_is_set_back(self) -> None:
        """Timers go on when somebody sets the clock of the machine back."""
        day, since_start, fired = 1_700_000_000.0, 100.0, []
        reactor = _Reactor()
        self.patch(time, "time", lambda: day)
        self.patch(time, "monotonic", lambda: since_start)
        self.patch(time, "clock_gettime", lambda clock: since_start)
        keep_time(reactor)
        reactor.callLater(5, fired.append, "here")
        day -= 3600
        since_start += 6
        reactor.runUntilCurrent()
        self.assertEqual(fired, ["here"])


class OptionsTests(SynchronousTestCase):
    def parse(self, *arguments: str) -> Context:
        options = Options()
        options.parseOptions(list(arguments))
        return options.settings.contexts[0]

    def test_the_state_directory_is_where_the_rda_command_looks(self) -> None:
        """The environment says it to both; an option wins."""
        for arguments, expected in ((), "/elsewhere"), (("--state-dir", "/here"), "/here"):
            options = Options()
            with mock.patch.dict(os.environ, {"RDA_STATE_DIR": "/elsewhere"}):
                options.parseOptions(["--remote", "user@host", *arguments])
            self.assertEqual(options.settings.state_dir, expected)

    def refusal(self, *arguments: str) -> str:
        return str(self.assertRaises(SystemExit, self.parse, *arguments).code)

    def test_options_are_keys(self) -> None:
        """Every option arrives under its key; repeatable ones as lists."""
        key = Path(self.mktemp())
        key.write_text("")
        context = self.parse(
            "--remote=me@host:2222",
            f"--identity={key}",
            "--known-hosts=/a",
            "--known-hosts=/b",
            "--listen=tcp:0:interface=127.0.0.1",
            "--listen=unix:/tmp/x.sock",
            "--docker=unix:///d.sock",
            "--sync-root=mirrors",
            "--accept-new",
        )
        self.assertEqual(context.remote.target, "me@host:2222")
        self.assertEqual(context.remote.identities, (str(key.absolute()),))
        self.assertEqual(context.remote.known_hosts, ("/a", "/b"))
        self.assertEqual(context.listen, ("tcp:0:interface=127.0.0.1", "unix:/tmp/x.sock"))
        self.assertEqual((context.docker, context.sync_root), ("unix:///d.sock", "mirrors"))
        self.assertTrue(context.remote.accept_new)

    def test_unknown_option(self) -> None:
        """An option that does not exist ends with one line, not with a page of help."""
        self.assertEqual(self.refusal("--remot3=x"), "rda: option --remot3 not recognized; see 'twistd rda --help'")

    def test_all_problems_in_one_message(self) -> None:
        """File and options are complained about together."""
        file = Path(self.mktemp())
        file.write_text('docker = "x"\nnonsense = 1')
        message = self.refusal(f"--config={file}", "--remote=a", "--listen=carrier-pigeon")
        self.assertIn("3 problems", message)
        for key in ("docker", "nonsense", "listen"):
            self.assertIn(f"  {key}: ", message)

    def test_missing_file(self) -> None:
        """A configuration file that cannot be read is named."""
        message = self.refusal("--config=/nowhere/rda.toml", "--remote=a")
        self.assertEqual(message, "rda: config: /nowhere/rda.toml: No such file or directory")

    def test_plain_tcp_stays_on_this_machine(self) -> None:
        """A TCP endpoint that others could reach is refused: whoever reaches it is root on the remote host."""
        for endpoint in ("tcp:23750", "tcp:23750:interface=0.0.0.0", "tcp:23750:interface=10.0.0.1", "tcp6:1"):
            self.assertIn("loopback", self.refusal("--remote=a", f"--listen={endpoint}"))

    def test_plugin(self) -> None:
        """``twistd --help`` lists rda."""
        self.assertIn("rda", [plugin.tapname for plugin in getPlugins(IServiceMaker)])

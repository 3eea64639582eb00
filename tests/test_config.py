"""Configuration: what is read, and how everything that is wrong is reported at once."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rda.access.admission import Admission, Users
from rda.config import AuditSettings, Config, Forward, Outside, Rule, load
from rda.errors import ConfigError
from rda.limits import Limits

OUTSIDE = Outside(
    state_dir="/state",
    expand=lambda path: path.replace("~", "/home/me"),
    endpoint_problem=lambda text, tls: None if text.startswith(("tcp:", "unix:")) else "not an endpoint",
    file_problem=lambda path: "No such file or directory" if "missing" in path else None,
    tls_problem=lambda path, need: "no key.pem" if "missing" in path else None,
    users=Users({"alice": 1000, "bob": 1001}.get, {"docker": 999}.get),
)


def read(text: str | None = None, **options: Any) -> Config:
    return load(text, options, OUTSIDE)


class LoadTests(SynchronousTestCase):
    def problems(self, text: str | None = None, **options: Any) -> tuple[str, ...]:
        return self.assertRaises(ConfigError, read, text, **options).problems

    def test_remote_is_enough(self) -> None:
        """One option makes a context with the documented defaults."""
        (context,) = read(remote="me@host").contexts
        self.assertEqual(context.name, "default")
        self.assertEqual(context.remote.target, "me@host")
        self.assertEqual(context.listen, ("tcp:23750:interface=127.0.0.1",))
        self.assertEqual(context.docker, "unix:///var/run/docker.sock")

    def test_no_remote(self) -> None:
        """Without a remote the message says how to give one."""
        (problem,) = self.problems()
        self.assertIn("remote: missing; say --remote user@host", problem)

    def test_options_win(self) -> None:
        """An option replaces the file's value of the same key."""
        config = read('remote = "a"\ndocker = "unix:///a.sock"', docker="tcp://127.0.0.1:2375")
        self.assertEqual(config.contexts[0].remote.target, "a")
        self.assertEqual(config.contexts[0].docker, "tcp://127.0.0.1:2375")

    def test_every_problem_is_named(self) -> None:
        """All problems come in one error, each with its key."""
        problems = self.problems(
            """
            remote = "-oProxyCommand=x"
            listen = ["http"]
            identity = "~/missing"
            docker = "http://x"
            sync_root = "/"
            host_key = "MD5:aa"
            accept_new = "yes"
            colour = 1
            """
        )
        keys = sorted(problem.split(":")[0] for problem in problems)
        expected = ["accept_new", "colour", "docker", "host_key", "identity", "listen", "remote", "sync_root"]
        self.assertEqual(keys, expected)
        self.assertIn("identity: /home/me/missing: No such file or directory", problems)

    def test_not_toml(self) -> None:
        """A file that is not TOML is one problem that says where."""
        (problem,) = self.problems("docker = ?\n")
        self.assertIn("the file is not TOML", problem)
        self.assertIn("line 1", problem)

    def test_contexts_share_the_top_level(self) -> None:
        """A named context takes what it leaves out from the top level, but not its remote and its endpoint."""
        config = read(
            """
            remote = "a"
            sync_root = "elsewhere"
            [context.gpu]
            remote = "b"
            listen = "tcp:1"
            """
        )
        self.assertEqual([c.name for c in config.contexts], ["default", "gpu"])
        self.assertEqual([c.remote.target for c in config.contexts], ["a", "b"])
        self.assertEqual([c.sync_root for c in config.contexts], ["elsewhere", "elsewhere"])

    def test_only_named_contexts(self) -> None:
        """A file with named contexts needs no default one."""
        config = read('[context.gpu]\nremote = "b"\nlisten = "tcp:1"')
        self.assertEqual([c.name for c in config.contexts], ["gpu"])

    def test_a_named_context_needs_an_endpoint(self) -> None:
        """Two contexts cannot be told apart on one endpoint."""
        self.assertIn("context.gpu.listen: missing", self.problems('[context.gpu]\nremote = "b"')[0])
        problems = self.problems('remote="a"\nlisten="tcp:1"\n[context.gpu]\nremote = "b"\nlisten="tcp:1"')
        self.assertIn("is context default's already", problems[0])

    def test_bind_rules(self) -> None:
        """Rules keep their order; a wrong one is named by its number."""
        config = read(
            'remote="a"\n[[bind]]\npath="/data"\nwhere="remote"\n[[bind]]\npath="/secret"\nwhere="refuse"',
        )
        self.assertEqual(config.contexts[0].rules, (Rule("/data", "remote"), Rule("/secret", "refuse")))
        problems = self.problems('remote="a"\n[[bind]]\npath="/data"\nwhere="there"')
        self.assertIn("bind[0].where", problems[0])

    def test_forwards(self) -> None:
        """Ports of containers on the host's network are named by rules; each has to have both."""
        config = read('remote="a"\n[[forward]]\ncontainer="db-*"\nports=["5432", "9000/udp"]')
        self.assertEqual(config.contexts[0].forwards, (Forward("db-*", ("5432", "9000/udp")),))
        problems = self.problems('remote="a"\n[[forward]]\nports=["x"]\n[[forward]]\ncontainer="a"\nport=1')
        self.assertEqual(
            [problem.partition(":")[0] for problem in problems],
            ["forward[0].container", "forward[0].ports", "forward[1].ports", "forward[1].port"],
        )

    def test_expose_host(self) -> None:
        """Ports of this machine are numbers, or texts with commas; anything else is a problem."""
        for text, ports in (("[5432, 8080]", (5432, 8080)), ('"5432, 8080"', (5432, 8080)), ("80", (80,))):
            self.assertEqual(read(f'remote="a"\nexpose_host={text}').contexts[0].expose_host, ports)
        for text in ('"x"', "0", "65536", '""', "[1, true]", str(list(range(1, 66)))):
            self.assertEqual(len(self.problems(f'remote="a"\nexpose_host={text}')), 1, text)

    def test_how_a_bind_is_mirrored(self) -> None:
        """A rule for a local path says how it is mirrored and what is left out; one for a remote path cannot."""
        config = read('remote="a"\n[[bind]]\npath="/src"\nmode="two-way"\nignore=["node_modules"]')
        self.assertEqual(config.contexts[0].rules, (Rule("/src", "local", "two-way", ("node_modules",)),))
        config = read('remote="a"\n[[bind]]\npath="/src"\nowner="101:102"\nworld_writable=true')
        self.assertEqual(config.contexts[0].rules[0].owner, "101:102")
        for text in (
            'owner="postgres"',
            'owner="1"',
            'mode="two-way"\nworld_writable=true',
            'where="remote"\nowner="1:1"',
        ):
            self.assertEqual(len(self.problems(f'remote="a"\n[[bind]]\npath="/src"\n{text}')), 1, text)
        problems = self.problems(
            'remote="a"\n[[bind]]\npath="/src"\nmode="both"\n[[bind]]\nwhere="remote"\nmode="mirror"\ncolour=1'
        )
        keys = [problem.split(": ")[0] for problem in problems]
        self.assertEqual(keys, ["bind[0].mode", "bind[1].path", "bind[1].mode", "bind[1].colour"])

    def test_state_dir(self) -> None:
        """The state directory is expanded, and has a default."""
        self.assertEqual(read(remote="a").state_dir, "/state")
        self.assertEqual(read(remote="a", state_dir="~/x").state_dir, "/home/me/x")

    def test_limits(self) -> None:
        """Limits are numbers above 0 with known names; a context has its own, or the top level's."""
        config = read(
            'remote="a"\n[limits]\nhead=2048\nhead_seconds=2\n[context.b]\nremote="b"\nlisten="tcp:1"\n'
            '[context.c]\nremote="c"\nlisten="tcp:2"\nlimits={connections=5}'
        )
        self.assertEqual(
            [context.limits for context in config.contexts],
            [Limits(head=2048, head_seconds=2.0)] * 2 + [Limits(connections=5)],
        )
        for wrong in ("head=1.5", "head=0", "head=true", 'head="1"', "head_seconds=inf", "head_seconds=-1.0", "hed=1"):
            (problem,) = self.problems(f'remote="a"\n[limits]\n{wrong}')
            self.assertTrue(problem.startswith(f"limits.{wrong.split('=')[0]}: "), problem)
        self.assertEqual(self.problems('remote="a"\nlimits=1'), ("limits: must be a table like [limits]",))

    def test_policies_of_contexts(self) -> None:
        """A context has the policy of the top level, with its users, or one of its own, without them."""
        config = read(
            'remote="a"\nowner_filter=true\n[policy]\npreset="nothing"\n[user.ann]\npreset="open"\n'
            '[context.b]\nremote="b"\nlisten="tcp:1:interface=127.0.0.1"\n'
            '[context.c]\nremote="c"\nlisten="tcp:2:interface=127.0.0.1"\nowner_filter=false\n[context.c.policy]\n'
        )
        top, inherits, own = config.contexts
        for context in (top, inherits):
            policy = context.access.policy_of("ann")
            assert policy is not None
            self.assertTrue(policy.flags["privileged"])
            self.assertIn(f"ann in context {context.name}", policy.scope)
        self.assertTrue(inherits.access.owner_filter)
        self.assertEqual(own.access.users, {})
        self.assertFalse(own.access.owner_filter)
        self.assertIn("/state", own.access.policy_of("ann").deny["binds"])  # type: ignore[union-attr]

    def test_audit(self) -> None:
        """The audit's keys are checked like all others."""
        config = read('remote="a"\n[audit]\npath="/var/log/rda"\nkeep=2\nfail_closed=true')
        self.assertEqual(config.audit, AuditSettings("/var/log/rda", keep=2, fail_closed=True))
        self.assertIsNone(read('remote="a"').audit)
        problems = self.problems('remote="a"\n[audit]\nmax_bytes=1\nkeep=true\nfail_closed=1\nx=1')
        self.assertEqual(
            [problem.partition(":")[0] for problem in problems],
            ["audit.max_bytes", "audit.keep", "audit.fail_closed", "audit.x"],
        )

    def test_the_sample_shows_every_limit(self) -> None:
        """The sample names each limit with its default."""
        sample = (Path(__file__).parent.parent / "etc/rda.toml").read_text(encoding="utf-8")
        section = sample.partition("# [limits]")[2].partition("\n\n")[0]
        lines = re.findall(r"^# ([a-z_]+) = ([0-9.]+) +# ", section, re.MULTILINE)
        self.assertEqual({name: float(value) for name, value in lines}, asdict(Limits()))


class NamesTests(SynchronousTestCase):
    def test_two_of_one_name(self) -> None:
        """The top level's context has a name too, and no other can have it."""
        table = '[context.default]\nremote = "b"\nlisten = "unix:/b"'
        (problem,) = self.assertRaises(ConfigError, read, f'remote = "a"\n{table}').problems
        self.assertIn("context.default: the top level", problem)
        self.assertEqual([context.name for context in read(table).contexts], ["default"])


class RemotesTests(SynchronousTestCase):
    KEY = "SHA256:" + "a" * 43

    def permits(self, text: str) -> list[tuple[str, ...] | None]:
        return [context.remote.permits for context in read(text).contexts]

    def test_allow(self) -> None:
        """The list holds for every context, and for the option --remote; without one every host is allowed."""
        text = 'remote = "a"\n{}[context.b]\nremote = "b"\nlisten = "unix:/b"'
        self.assertEqual(self.permits(text.format("")), [None, None])
        allowed = f'[remotes]\nallow = ["*.lab", "me@[::1]:22 {self.KEY}"]\n'
        self.assertEqual(self.permits(text.format(allowed)), [("*.lab", f"me@[::1]:22 {self.KEY}")] * 2)
        self.assertEqual(read("[remotes]\nallow = []", remote="x").contexts[0].remote.permits, ())

    def test_problems(self) -> None:
        """What is not an entry is named."""
        for wrong in (
            'allow = ["a b"]',
            'allow = ["a:0"]',
            'allow = ["a SHA256:x"]',
            "allow = 1",
            "deny = []",
        ):
            problems = self.assertRaises(ConfigError, read, f"[remotes]\n{wrong}", remote="a").problems
            self.assertTrue(all(problem.startswith("remotes.") for problem in problems), problems)
        self.assertRaises(ConfigError, read, "remotes = 1", remote="a")

    def test_exposed_listener(self) -> None:
        """Containers are not given the Docker API by way of a port of this machine."""
        for listen in ("tcp:2375:interface=127.0.0.1", "tcp:interface=127.0.0.1:port=2375", "tcp:2375"):
            text = f'remote = "a"\nexpose_host = [2375]\nlisten = "{listen}"'
            (problem,) = self.assertRaises(ConfigError, read, text).problems
            self.assertIn("containers would control their own host", problem)


class AdmissionTests(SynchronousTestCase):
    HASH = "sha256:" + "ab" * 32

    def admission(self, text: str, root: bool = False) -> Admission:
        return load('remote = "a"\n' + text, {}, replace(OUTSIDE, is_root=root)).contexts[0].admission

    def problems(self, text: str, root: bool = False) -> tuple[str, ...]:
        return self.assertRaises(ConfigError, self.admission, text, root).problems

    def test_defaults(self) -> None:
        """By default only the user that rda runs as gets in, and only plainly."""
        self.assertEqual(self.admission(""), Admission())

    def test_keys(self) -> None:
        """Every key arrives; names of users and groups become numbers."""
        found = self.admission(
            f"""
            allow_users = ["bob"]
            allow_group = "docker"
            check_peer = false
            unknown_peer = true
            tls = "~/tls"
            host_names = ["RDA.example.com"]
            lend_files = true
            [tokens]
            ci = "{self.HASH}"
            bob = ["{self.HASH}", "{self.HASH}"]
            """
        )
        digest = bytes.fromhex("ab" * 32)
        tokens = (("ci", digest), ("bob", digest), ("bob", digest))
        self.assertEqual(
            found,
            Admission(
                (("bob", 1001),), ("docker", 999), False, True, "/home/me/tls", tokens, ("rda.example.com",), True
            ),
        )

    def test_no_hash_is_shown(self) -> None:
        """What stands for a token is not printed with the rest."""
        self.assertNotIn("xab", repr(self.admission(f'[tokens]\nci = "{self.HASH}"')))

    def test_problems(self) -> None:
        """Every problem is named with its key."""
        problems = self.problems(
            """
            allow_users = ["bob", "mallory"]
            allow_group = "wheel"
            tls = "~/missing"
            host_names = ["a b"]
            [tokens]
            "a b" = "sha256:abc"
            ci = 1
            """
        )
        for expected in (
            "allow_users: there is no user 'mallory'",
            "allow_group: there is no group 'wheel'",
            "tls: no key.pem",
            "host_names: 'a b' is not",
            "tokens: 'a b' is not a user's name",
            "tokens: a b: not a hash",
            "tokens: ci: not a hash",
        ):
            self.assertEqual(len([p for p in problems if p.startswith(expected)]), 1, (expected, problems))

    def test_inherited(self) -> None:
        """A further context takes what it leaves out from the top level."""
        text = 'remote = "a"\nallow_users = "bob"\n[context.b]\nremote = "b"\nlisten = "unix:/b"'
        self.assertEqual([context.admission.users for context in read(text).contexts], [(("bob", 1001),)] * 2)

    def test_root_lends_nothing_by_accident(self) -> None:
        """As root, what lets others read this machine's files has to be allowed twice."""
        lending = ("check_peer = false", "unknown_peer = true", 'lend_files = true\nallow_users = "bob"')
        for text in lending:
            key = text.partition(" ")[0]
            (problem,) = self.problems(text, root=True)
            self.assertIn(f"{key}: rda runs as root", problem)
            self.admission(text + "\nallow_root = true", root=True)
            self.admission(text)
        for text in ("", 'allow_users = "bob"', "lend_files = true"):
            self.admission(text, root=True)

    def test_root_on_other_systems(self) -> None:
        """Where nobody tells whose a connection is, root lets nobody in by accident either."""
        outside = replace(OUTSIDE, is_root=True, tells_peers=False)
        (problem,) = self.assertRaises(ConfigError, load, 'remote = "a"', {}, outside).problems
        self.assertIn("listen: rda runs as root", problem)
        load('remote = "a"\nallow_root = true', {}, outside)
        load('remote = "a"', {}, replace(outside, is_root=False))

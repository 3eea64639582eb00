"""What --remote means."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from rda.config import Remote
from rda.errors import ConfigError
from rda.ssh import ssh_config
from rda.ssh.address_family import in_family
from rda.ssh.allowed import SIGNATURE_ALGORITHMS, Allowed
from rda.ssh.connect import transport_options
from rda.ssh.options import REKEY_BYTES
from rda.ssh.ssh_config import resolve
from rda.ssh.ssh_config_file import read_settings
from rda.ssh.target import Named, Surroundings, Target, make_target, parse_target

HOME = "/home/me"
SURROUNDINGS = Surroundings(HOME, "me", {"PATH": os.environ.get("PATH", ""), "SSH_AUTH_SOCK": "/run/agent"}, "laptop")


def target(settings=None, named: str = "host", **remote) -> Target:
    given = {key.lower(): value if isinstance(value, list) else [value] for key, value in (settings or {}).items()}
    return make_target(given, parse_target(named), Remote(named, **remote), SURROUNDINGS)


class ParseTargetTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """Everything that ssh takes for a destination is taken apart."""
        table = {
            "host": Named("host"),
            "me@host": Named("host", "me"),
            "me@host:2222": Named("host", "me", 2222),
            "host:22": Named("host", "", 22),
            "ssh://host": Named("host"),
            "ssh://me@host:2222": Named("host", "me", 2222),
            "ssh://me@host:2222/": Named("host", "me", 2222),
            "SSH://host": Named("host"),
            "me@[2001:db8::1]:2222": Named("2001:db8::1", "me", 2222),
            "ssh://[::1]": Named("::1"),
            "::1": Named("::1"),
            "fe80::1%eth0": Named("fe80::1%eth0"),
            "user@realm@host": Named("host", "user@realm"),
            "büro": Named("büro"),
        }
        for text, named in table.items():
            self.assertEqual(parse_target(text), named, text)

    def test_refused(self) -> None:
        """What could be read as an option, or by a shell, is refused, and so is nonsense."""
        for text in (
            "",
            "-oProxyCommand=x",
            "me@-oProxyCommand=x",
            "-l@host",
            "ssh://-x",
            "host;reboot",
            "$(reboot)",
            "`x`@host",
            "a b",
            "host\n",
            "me@",
            "host:",
            "host:0",
            "host:65536",
            "host:ssh",
            "[::1]x",
            "ssh://host/path",
            "'host'",
            "a|b",
        ):
            self.assertRaises(ConfigError, parse_target, text)


class MakeTargetTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """Without any setting it is ssh's defaults, and a keepalive that ssh does not have."""
        made = target()
        self.assertEqual((made.host, made.port, made.user), ("host", 22, "me"))
        self.assertEqual(made.agent_path, "/run/agent")
        self.assertIn(f"{HOME}/.ssh/id_ed25519", made.identities)
        self.assertEqual(made.known_hosts[0], f"{HOME}/.ssh/known_hosts")
        self.assertIn("/etc/ssh/ssh_known_hosts", made.known_hosts)
        self.assertEqual((made.alive_interval, made.alive_count), (5.0, 3))
        self.assertEqual(made.label, "me@host:22")
        self.assertEqual(target(named="::1").label, "me@[::1]:22")

    def test_what_the_user_wrote_wins(self) -> None:
        """User and port in the address win over ssh_config."""
        made = target({"user": "config", "port": "2200", "hostname": "10.0.0.1"}, "you@host:2222")
        self.assertEqual((made.host, made.port, made.user), ("10.0.0.1", 2222, "you"))

    def test_rdas_own_options_win(self) -> None:
        """Identities and known_hosts of rda's configuration stand in for those of ssh_config."""
        settings = {"identityfile": ["~/.ssh/a"], "userknownhostsfile": "~/.ssh/x"}
        made = target(settings, identities=("~/k",), known_hosts=("/kh",), accept_new=True)
        self.assertEqual((made.identities, made.known_hosts, made.accept_new), ((f"{HOME}/k",), ("/kh",), True))

    def test_paths(self) -> None:
        """Tokens, ~ and ${VAR} are replaced, and paths with spaces keep together."""
        made = target(
            {
                "hostname": "%h.example",
                "identityfile": ["~/.ssh/%r@%h-%n", "${SSH_AUTH_SOCK}.key", "none"],
                "certificatefile": ["%d/c%%"],
                "userknownhostsfile": "/a b/kh ~/kh2",
                "globalknownhostsfile": "none",
                "identityagent": "~/agent",
            }
        )
        self.assertEqual(made.identities, (f"{HOME}/.ssh/me@host.example-host", "/run/agent.key"))
        self.assertEqual(made.certificates, (f"{HOME}/c%",))
        self.assertEqual(made.known_hosts, ("/a b/kh", f"{HOME}/kh2"))
        self.assertEqual(made.agent_path, f"{HOME}/agent")

    def test_agents(self) -> None:
        """IdentityAgent knows none, SSH_AUTH_SOCK and variables."""
        for value, path in (
            ("none", ""),
            ("SSH_AUTH_SOCK", "/run/agent"),
            ("$SSH_AUTH_SOCK", "/run/agent"),
            ("$X", ""),
        ):
            self.assertEqual(target({"identityagent": value}).agent_path, path)

    def test_numbers(self) -> None:
        """Times are seconds or have units; zero and none mean rda's own; nonsense is refused."""
        made = target({"serveraliveinterval": "1m30s", "serveralivecountmax": "2", "connecttimeout": "7"})
        self.assertEqual((made.alive_interval, made.alive_count, made.connect_timeout), (90.0, 2, 7.0))
        self.assertEqual(target({"serveraliveinterval": "0", "connecttimeout": "none"}).connect_timeout, 15.0)
        self.assertRaises(ConfigError, target, {"connecttimeout": "soon"})

    def test_switches(self) -> None:
        """IdentitiesOnly, StrictHostKeyChecking and the like; no and off never weaken the host key check."""
        made = target({"identitiesonly": "yes", "hostkeyalias": "known", "compression": "yes"})
        self.assertEqual((made.identities_only, made.host_key_alias, made.compression), (True, "known", True))
        for value, accept in (("accept-new", True), ("no", False), ("off", False), ("ask", False), ("false", False)):
            self.assertEqual(target({"stricthostkeychecking": value}).accept_new, accept)

    def test_where_from(self) -> None:
        """AddressFamily and BindAddress are kept; a family that there is not is refused."""
        made = target({"addressfamily": "INET6", "bindaddress": "::1"})
        self.assertEqual((made.address_family, made.bind_address), ("inet6", "::1"))
        self.assertEqual(target().address_family, "any")
        self.assertRaises(ConfigError, target, {"addressfamily": "ipx"})

    def test_rekey_limit(self) -> None:
        """RekeyLimit is a size and a time; default, none and zero leave it to rda."""
        for value, expected in (
            ("64M", (64 << 20, 0.0)),
            ("1G 1h", (1 << 30, 3600.0)),
            ("default none", (0, 0.0)),
            ("0 0", (0, 0.0)),
            ("1000 90", (1000, 90.0)),
        ):
            made = target({"rekeylimit": value})
            self.assertEqual((made.rekey_bytes, made.rekey_seconds), expected)
        options = transport_options(target({"rekeylimit": "64M 60"}), 5.0)
        self.assertEqual((options.rekey_bytes, options.rekey_seconds, options.handshake_seconds), (64 << 20, 60.0, 5.0))
        self.assertEqual(transport_options(target({"rekeylimit": "999G 4w"}), 5.0).rekey_bytes, REKEY_BYTES)
        self.assertRaises(ConfigError, target, {"rekeylimit": "much"})

    def test_refused(self) -> None:
        """What somebody relies on and rda would ignore is refused, all of it in one message."""
        settings = {
            "knownhostscommand": "/usr/bin/keys %H",
            "proxyusefdpass": "yes",
            "proxycommand": "nc %h %p",
            "bindinterface": "tun0",
            "pubkeyauthentication": "no",
        }
        message = str(self.assertRaises(ConfigError, target, settings))
        for keyword in ("KnownHostsCommand", "ProxyUseFdpass", "BindInterface", "PubkeyAuthentication"):
            self.assertIn(keyword, message)
        pin = "SHA256:" + "A" * 43
        self.assertEqual(target({"knownhostscommand": "/usr/bin/keys"}, host_keys=(pin,)).host, "host")
        self.assertEqual(target({"proxyusefdpass": "yes", "knownhostscommand": "none"}).host, "host")

    def test_algorithms(self) -> None:
        """Fewer algorithms than rda has can be asked for; rda keeps to its own order."""
        made = target(
            {
                "ciphers": "aes128-ctr,aes256-gcm@openssh.com,3des-cbc",
                "macs": "-hmac-sha2-256*",
                "kexalgorithms": "^curve25519-sha256",
                "hostkeyalgorithms": "ssh-ed25519*",
                "pubkeyacceptedalgorithms": "+ssh-rsa",
            }
        ).allowed
        self.assertEqual(made.ciphers, (b"aes256-gcm@openssh.com", b"aes128-ctr"))
        self.assertEqual(made.macs, (b"hmac-sha2-512-etm@openssh.com", b"hmac-sha2-512"))
        self.assertEqual(made.exchanges, Allowed().exchanges)
        self.assertEqual(made.host_keys, (b"ssh-ed25519-cert-v01@openssh.com", b"ssh-ed25519"))
        self.assertEqual(made.signatures, frozenset(SIGNATURE_ALGORITHMS))
        options = transport_options(target({"ciphers": "aes128-ctr", "kexalgorithms": "curve25519-sha256"}), 5.0)
        self.assertEqual((options.ciphers, options.exchanges), ((b"aes128-ctr",), (b"curve25519-sha256",)))

    def test_no_algorithm_left(self) -> None:
        """A list of nothing that rda has is refused, with what it has."""
        for keyword in ("Ciphers", "MACs", "KexAlgorithms", "HostKeyAlgorithms", "PubkeyAcceptedAlgorithms"):
            error = self.assertRaises(ConfigError, target, {keyword: "ssh-dss,3des-cbc"})
            self.assertIn(f"{keyword} 'ssh-dss,3des-cbc' leaves none", str(error))

    def test_proxy_command(self) -> None:
        """ProxyCommand's tokens are replaced; none means none."""
        made = target({"proxycommand": "nc -X %h:%p as %r %%", "hostname": "10.0.0.1", "port": "2200"})
        self.assertEqual(made.proxy_command, "nc -X 10.0.0.1:2200 as me %")
        self.assertEqual(target({"proxycommand": "none"}).proxy_command, "")

    def test_a_hostname_that_a_shell_would_run(self) -> None:
        """A HostName of ssh_config is as suspicious as one of the command line."""
        self.assertRaises(ConfigError, target, {"hostname": "$(reboot)"})
        self.assertRaises(ConfigError, target, {"user": "-x"})


class FamilyTests(SynchronousTestCase):
    def test_one_family(self) -> None:
        """A name is resolved to addresses of the family that is wanted, and to nothing else."""
        asked: list[object] = []

        class Resolver:
            def resolveHostName(self, receiver, name, port, types, semantics):
                asked.append((name, port, types, semantics))

        class Reactor(Clock):
            nameResolver = Resolver()

        reactor = Reactor()
        self.assertIs(in_family(reactor, "any"), reactor)
        limited = in_family(reactor, "inet6")
        HostnameEndpoint(limited, "host.example", 22, timeout=5).connect(Factory())
        self.assertEqual(asked, [("host.example", 22, (IPv6Address,), "TCP")])
        self.assertIs(in_family(reactor, "inet").callLater.__self__, reactor)


class ReadSettingsTests(SynchronousTestCase):
    def read(self, text: str, host: str = "box", user: str = "", **included: str):
        return read_settings([("config", text)], host, user, lambda name: [(name, included[name])])

    def test_first_value_wins(self) -> None:
        """The first value of a keyword counts; identity files add up."""
        settings = self.read("User a\nHost box\n  User=b\n IdentityFile one\nHost *\n  Port = 7\n  IdentityFile two\n")
        self.assertEqual(settings, {"user": ["a"], "port": ["7"], "identityfile": ["one", "two"]})

    def test_host_patterns(self) -> None:
        """Host takes wildcards and negation, and ends where the next begins."""
        text = "Host b?x !*y\n Port 1\nHost other\n Port 2\nHost *\n Port 3\n"
        for host, port in (("box", "1"), ("BOX", "1"), ("other", "2"), ("bxy", "3")):
            self.assertEqual(self.read(text, host)["port"], [port], host)

    def test_match(self) -> None:
        """Match all, host, originalhost and user are decided; negation too; final never is true."""
        table = [
            ("Match all", True),
            ("Match host 10.0.0.1", True),
            ("Match originalhost box", True),
            ("Match originalhost bo*,x user you", True),
            ("Match user other", False),
            ("Match !user other", True),
            ("Match final", False),
            ("Match host box", False),
        ]
        for line, expected in table:
            settings = self.read(f"HostName 10.0.0.1\n{line}\n Port 5\n", user="you")
            self.assertEqual("port" in settings, expected, line)

    def test_match_exec_is_not_guessed(self) -> None:
        """What cannot be decided is refused, with the line."""
        error = self.assertRaises(ConfigError, self.read, "\nMatch exec true\n Port 5\n")
        self.assertIn("config:2", str(error))

    def test_include(self) -> None:
        """Include reads files where it stands, under its block's condition; a loop of them is an error."""
        self.assertEqual(self.read("Include x\nPort 1\n", x="Host no\n Port 2\nHost box\n User u\n")["port"], ["1"])
        self.assertEqual(self.read("Host no\n Include x\n", x="Port 2\n"), {})
        self.assertRaises(ConfigError, self.read, "Include x", x="Include x")

    def test_words(self) -> None:
        """Quotes keep spaces, comments end a line, and commands are taken as they are."""
        settings = self.read('IdentityFile "a b" # no\nProxyCommand ssh -W "%h:%p" x # yes\nUserKnownHostsFile /a /b\n')
        self.assertEqual(settings["identityfile"], ["a b"])
        self.assertEqual(settings["proxycommand"], ['ssh -W "%h:%p" x # yes'])
        self.assertEqual(settings["userknownhostsfile"], ["/a /b"])
        self.assertRaises(ConfigError, self.read, 'User "open\n')
        self.assertRaises(ConfigError, self.read, "User\n")


class FakeProcesses(Clock):
    """Answers ``ssh -G`` from a table; :ivar started: the argument lists."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__()
        self.answers = answers
        self.started: list[list[str]] = []

    def spawnProcess(self, protocol, executable, args, env):
        self.started.append(args)
        answer = self.answers.get(args[-1])
        process = self

        class Transport:
            def closeStdin(self):
                process.callLater(0, end)

            def signalProcess(self, signal):
                protocol.processEnded(Failure(ProcessTerminated(signal=9)))

        def end() -> None:
            if answer is None:
                protocol.errReceived(b"bad configuration option: nonsense\n")
                reason = ProcessDone(0)
                reason.exitCode = 255
            elif answer == "hang":
                return
            else:
                protocol.outReceived(answer.encode())
                reason = ProcessDone(0)
            protocol.processEnded(Failure(reason))

        protocol.makeConnection(Transport())
        return protocol.transport


class ResolveTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(ssh_config, "_defaults", {})

    def resolve(self, answers: dict[str, str], remote: Remote) -> tuple[Deferred[Target], FakeProcesses]:
        processes = FakeProcesses(answers)
        resolving = resolve(processes, remote, SURROUNDINGS, lambda: "/usr/bin/ssh")
        for _ in range(10):
            processes.advance(0)
        return resolving, processes

    def test_asks_ssh(self) -> None:
        """ssh -G is asked with everything that decides, the host last and after --."""
        answer = "user u\nhostname 10.0.0.1\nport 2200\nidentityfile ~/.ssh/a\nidentityfile ~/.ssh/b\n"
        resolving, processes = self.resolve({"box": answer}, Remote("you@box:22", ssh_config="/cfg", compression=True))
        made = self.successResultOf(resolving)
        self.assertEqual(
            processes.started, [["/usr/bin/ssh", "-G", "-F", "/cfg", "-l", "you", "-p", "22", "--", "box"]]
        )
        self.assertEqual((made.label, made.compression), ("you@10.0.0.1:22", True))
        self.assertEqual(made.identities, (f"{HOME}/.ssh/a", f"{HOME}/.ssh/b"))
        self.assertEqual(processes.getDelayedCalls(), [])

    def test_what_ssh_has_by_default(self) -> None:
        """Algorithms that ssh prints for want of any configuration limit nothing: its list may be older than ours."""
        answer = "hostname h\nciphers 3des-cbc,aes128-ctr\nkexalgorithms curve25519-sha256\n"
        usual = "ciphers aes128-ctr,aes192-ctr\nkexalgorithms curve25519-sha256\n"
        for _ in range(2):
            resolving, processes = self.resolve({"box": answer, "localhost": usual}, Remote("box"))
            allowed = self.successResultOf(resolving).allowed
            self.assertEqual((allowed.ciphers, allowed.exchanges), ((b"aes128-ctr",), Allowed().exchanges))
        self.assertEqual(len(processes.started), 1)  # ssh's own list is asked for once

    def test_ssh_refuses(self) -> None:
        """What ssh says of a broken configuration reaches the user."""
        resolving, _ = self.resolve({}, Remote("box"))
        self.assertIn("bad configuration option", str(self.failureResultOf(resolving, ConfigError).value))

    def test_ssh_hangs(self) -> None:
        """A Match exec that never ends is ended."""
        resolving, processes = self.resolve({"box": "hang"}, Remote("box"))
        self.assertNoResult(resolving)
        processes.advance(30)
        self.failureResultOf(resolving, ConfigError)

    def test_jumps(self) -> None:
        """Each hop is resolved itself; the first may bring its own jump hosts."""
        answers = {
            "box": "hostname 10.0.0.1\nport 22\nproxyjump a@j1:2201,j2\nproxycommand none\n",
            "j1": "hostname 10.1.0.1\nport 22\nproxyjump gate\n",
            "j2": "hostname 10.2.0.1\nport 22\nproxyjump ignored\n",
            "gate": "hostname gate.example\nport 22\n",
        }
        resolving, _ = self.resolve(answers, Remote("box"))
        made: Target | None = self.successResultOf(resolving)
        labels = []
        while made is not None:
            labels.append(made.label)
            made = made.via
        self.assertEqual(labels, ["me@10.0.0.1:22", "me@10.2.0.1:22", "a@10.1.0.1:2201", "me@gate.example:22"])

    def test_a_jump_host_does_not_jump_to_itself(self) -> None:
        """A jump host that matches its own rule is reached directly; hosts that go in circles are refused."""
        same = "hostname gate.example\nport 22\nproxyjump gate\n"
        resolving, _ = self.resolve({"gate": same, "box": "hostname b\nport 22\nproxyjump gate\n"}, Remote("box"))
        made = self.successResultOf(resolving)
        assert made.via is not None
        self.assertIs(made.via.via, None)
        circle = {"a": "hostname a\nport 22\nproxyjump b\n", "b": "hostname b\nport 22\nproxyjump a\n"}
        resolving, _ = self.resolve(circle, Remote("a"))
        self.assertIn("circles", str(self.failureResultOf(resolving, ConfigError).value))

    def test_same_answer_with_and_without_ssh(self) -> None:
        """Our own reading and ssh -G agree on a configuration that both understand."""
        program = shutil.which("ssh")
        if program is None:
            self.skipTest("the ssh program is not installed")
        import subprocess

        config = Path(self.mktemp()).absolute()
        config.write_text(
            "Host box\n HostName %h.example\n User u\n IdentityFile ~/.ssh/one\n ProxyCommand nc %h %p\n"
            "Host *\n Port 2200\n IdentitiesOnly yes\n ServerAliveInterval 7\n UserKnownHostsFile /kh1 /kh2\n"
            " ConnectTimeout 9\n HostKeyAlias alias\n IdentityAgent none\n RekeyLimit 64M 1h\n AddressFamily inet6\n"
            " Ciphers aes256-gcm@openssh.com,aes128-ctr\n MACs -hmac-sha1*,umac*\n RequiredRSASize 3072\n"
            " PubkeyAcceptedAlgorithms ssh-ed25519*\n BindAddress ::1\n"
        )
        printed = subprocess.run([program, "-G", "-F", config, "--", "box"], check=True, capture_output=True, text=True)
        usual = subprocess.run(
            [program, "-G", "-F", "/dev/null", "--", "localhost"], check=True, capture_output=True, text=True
        )
        answers = {"box": printed.stdout, "localhost": usual.stdout}
        by_ssh, _ = self.resolve(answers, Remote("box", ssh_config=str(config)))
        by_us = resolve(Clock(), Remote("box", ssh_config=str(config)), SURROUNDINGS, lambda: None)
        self.assertEqual(self.successResultOf(by_us), self.successResultOf(by_ssh))

    def test_no_file(self) -> None:
        """ssh_config none reads nothing; a named file that is not there is an error."""
        made = self.successResultOf(resolve(Clock(), Remote("box", ssh_config="none"), SURROUNDINGS, lambda: None))
        self.assertEqual(made.host, "box")
        missing = resolve(Clock(), Remote("box", ssh_config="/no/such/file"), SURROUNDINGS, lambda: None)
        self.failureResultOf(missing, ConfigError)

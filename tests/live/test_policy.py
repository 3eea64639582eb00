"""Policies, the owner filter and the audit, with the docker command and a real daemon."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

from tests.live.support import Rda
from tests.live.test_identity import Configured

USERS = ("ann", "bob")


def token(user: str) -> str:
    return "rda_" + user[0] * 43


class TwoUsers(Configured):
    """Two users of one remote host, who prove themselves with tokens."""

    def setUp(self) -> None:
        super().setUp()
        self.remove_leftovers()
        self.addCleanup(self.remove_leftovers)
        hashes = "\n".join(f'{user} = "sha256:{hashlib.sha256(token(user).encode()).hexdigest()}"' for user in USERS)
        self.guarded: Rda = self.start(
            f"owner_filter = true\nlend_files = true\nallow_root = true\n[tokens]\n{hashes}\n[audit]\n"
            '[policy]\nmax_containers = 3\n[user.bob]\nports = ["20000-29999"]\n'
        )
        usual = json.loads((self.host.docker_config / "config.json").read_text())
        self.environments = {}
        for user in USERS:
            directory = self.directory()
            headers = {"HttpHeaders": {"Authorization": f"Bearer {token(user)}"}}
            (directory / "config.json").write_text(json.dumps({**usual, **headers}))
            self.environments[user] = {**self.guarded.environment, "DOCKER_CONFIG": str(directory)}

    def remove_leftovers(self) -> None:
        """What a test that failed has left on the remote host."""
        self.host.docker("volume", "rm", "-f", "data", check=False)
        self.host.docker("network", "rm", "net", check=False)

    def docker_as(self, user: str, *words: str) -> str:
        return self.guarded.docker(*words, env=self.environments[user]).stdout.decode().strip()

    def refused(self, user: str, *words: str) -> str:
        """Run a docker command that fails; return why."""
        done = self.guarded.docker(*words, env=self.environments[user], check=False)
        self.assertNotEqual(done.returncode, 0, (words, done.stdout))
        return done.stderr.decode()

    def test_two_users(self) -> None:
        """Neither lists, names, stops, reads or mounts anything of the other's."""
        source = self.directory()
        (source / "file").write_text("hers")
        mounts = ("-v", "data:/data", "-v", f"{source}:/src")
        work = "cat /src/file > /data/x; echo secret; sleep 1000"
        hers = self.docker_as("ann", "run", "-d", "--name", "web", *mounts, "busybox", "sh", "-c", work)
        self.docker_as("ann", "network", "create", "net")
        self.docker_as("bob", "run", "-d", "--name", "own", "busybox", "sleep", "1000")
        self.assertEqual(self.docker_as("bob", "ps", "-a", "--format", "{{.Names}}"), "own")
        self.assertEqual(self.docker_as("ann", "ps", "-a", "--format", "{{.Names}}"), "web")
        self.assertEqual(self.docker_as("ann", "exec", "web", "cat", "/data/x"), "hers")
        for name in ("web", hers, hers[:12], f"/{'web'}"):
            for words in (["inspect"], ["logs"], ["stop"], ["exec", "-i"]):
                more = ["true"] if words[0] == "exec" else []
                self.refused("bob", *words, name, *more)
        for words in (["kill", "web"], ["rm", "web"], ["rename", "web", "x"], ["pause", "web"], ["top", "web"],
                      ["update", "--cpu-shares", "2", "web"], ["commit", "web", "stolen"], ["export", "web"],
                      ["diff", "web"], ["port", "web"], ["restart", "web"], ["wait", "web"], ["attach", "web"],
                      ["cp", "web:/data/x", "-"], ["stats", "--no-stream", "web"],
                      ["run", "--rm", "--volumes-from", "web", "busybox", "cat", "/data/x"],
                      ["run", "--rm", "-v", "data:/d", "busybox", "cat", "/d/x"],
                      ["run", "--rm", "--mount", "type=volume,src=data,dst=/d", "busybox", "cat", "/d/x"],
                      ["run", "--rm", "--network", "container:web", "busybox", "true"],
                      ["run", "--rm", "--pid", "container:web", "busybox", "true"],
                      ["run", "--rm", "--network", "net", "busybox", "true"],
                      ["run", "--rm", "--link", "web:db", "busybox", "true"],
                      ["network", "inspect", "net"], ["network", "rm", "net"], ["network", "connect", "net", "own"],
                      ["network", "connect", "bridge", "web"], ["network", "disconnect", "bridge", "web"],
                      ["volume", "inspect", "data"], ["volume", "rm", "data"], ["volume", "create", "data"]):  # fmt: skip # noqa: E501
            self.assertNotIn("hers", self.refused("bob", *words), words)
        self.assertNotIn("data", self.docker_as("bob", "volume", "ls", "-q").split())
        self.assertNotIn("net", self.docker_as("bob", "network", "ls", "--format", "{{.Name}}").split())
        self.docker_as("bob", "system", "prune", "-f", "--volumes")
        self.docker_as("bob", "volume", "prune", "-af")
        events = self.docker_as("bob", "events", "--since", "1h", "--until", "0s")
        self.assertIn("name=own", events)
        self.assertNotIn("web", events)
        self.assertEqual(self.docker_as("ann", "exec", "web", "cat", "/data/x"), "hers")
        self.assertEqual(self.docker_as("ann", "volume", "ls", "-q"), "data")
        self.docker_as("ann", "rm", "-f", "web")
        self.docker_as("ann", "volume", "rm", "data")
        self.docker_as("ann", "network", "rm", "net")

    def test_policy_and_audit(self) -> None:
        """What the policy does not allow is refused with its rule; what was done can be read."""
        for rule, words in (
            ("privileged", ["--privileged"]),
            ("host_namespaces", ["--pid", "host"]),
            ("host_namespaces", ["--network", "host"]),
            ("capabilities", ["--cap-add", "SYS_ADMIN"]),
            ("security_opt", ["--security-opt", "seccomp=unconfined"]),
            ("devices", ["--device", "/dev/null"]),
            ("docker_socket", ["-v", "/var/run/docker.sock:/s"]),
            ("remote_paths", ["-v", "/proc:/p"]),
            ("deny_binds", ["-v", f"{self.guarded.state}:/x"]),
            ("ports", ["-p", "8080:80"]),
            ("addresses", ["-p", "0.0.0.0:20080:80"]),
            ("volume_types", ["--mount", "type=volume,dst=/x,volume-opt=type=ext4,volume-opt=device=/dev/sda1"]),
        ):
            self.assertIn(f"(rule {rule})", self.refused("bob", "run", "--rm", *words, "busybox", "true"), words)
        host = json.loads(self.docker_as("bob", "network", "inspect", "host"))[0]["Id"]
        self.refused("bob", "run", "--rm", "--network", host, "busybox", "true")
        self.assertEqual(self.docker_as("bob", "run", "--rm", "-p", "20080:80", "busybox", "echo", "fine"), "fine")
        self.guarded.stop()
        done = subprocess.run(
            [sys.executable, "-m", "rda.command", "audit", "--file", str(self.guarded.state / "audit.jsonl"), "--json"],
            stdout=subprocess.PIPE, text=True, timeout=60, check=True, env=dict(os.environ),
        )  # fmt: skip
        records = [json.loads(line) for line in done.stdout.splitlines()]
        refused = [record for record in records if record["decision"] == "refused"]
        self.assertEqual({record["user"] for record in records}, {"bob"})
        self.assertIn(["privileged"], [record["rules"] for record in refused])
        started = [record for record in records if record["endpoint"] == "container start"]
        self.assertEqual([(record["status"], len(record["container"])) for record in started], [(204, 64)])

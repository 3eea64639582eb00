"""Clients written in JavaScript, from npm: dockerode, and the command line of dev containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.live.host import wait_until
from tests.live.process import free_port
from tests.live.support import LiveTestCase, Rda, SkipTest

#: What is tried; newer ones should do as well.
PACKAGES = {"dockerode": "dockerode@5", "devcontainer": "@devcontainers/cli@0.89.0"}

#: Seconds that npm, and each command, may take.
SECONDS = 180.0

_DOCKERODE = """
const Docker = require('dockerode'), http = require('http');
const docker = new Docker({host: '127.0.0.1', port: +process.argv[2]});
(async () => {
  const container = await docker.createContainer({Image: 'busybox', Cmd: ['httpd', '-f', '-p', '80', '-h', '/etc'],
    ExposedPorts: {'80/tcp': {}}, HostConfig: {PortBindings: {'80/tcp': [{HostPort: process.argv[3]}]}}});
  await container.attach({stream: true, stdout: true, stderr: true});
  await container.start();
  const ports = (await container.inspect()).NetworkSettings.Ports['80/tcp'];
  const exec = await container.exec({Cmd: ['cat'], AttachStdin: true, AttachStdout: true});
  const stream = await exec.start({hijack: true, stdin: true});
  let echoed = '';
  stream.on('data', piece => echoed += piece.slice(8).toString());
  stream.end('through exec');
  await new Promise(done => stream.on('end', done));
  const status = await new Promise((done, failed) =>
    http.get(`http://127.0.0.1:${process.argv[3]}/passwd`, answer => {answer.resume(); done(answer.statusCode)})
      .on('error', failed));
  await container.remove({force: true});
  console.log(JSON.stringify({port: ports[0].HostPort, echoed, status}));
  process.exit(0);
})().catch(error => {console.error(error); process.exit(1)});
"""


class NodeTests(LiveTestCase):
    def install(self, name: str) -> Path:
        """Install a package into a directory of this test."""
        if shutil.which("npm") is None:
            raise SkipTest("npm is not here (apt-get install npm)")
        directory = self.directory()
        self.node(self.rda, directory, "npm", "install", "--silent", "--no-audit", "--no-fund", PACKAGES[name])
        return directory

    def node(self, rda: Rda, directory: Path, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, **rda.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stdout.decode()

    def test_dockerode(self) -> None:
        """Create, attach, start, inspect, exec with an end of input, a published port, remove."""
        directory, port = self.install("dockerode"), free_port()
        (directory / "try.js").write_text(_DOCKERODE)
        printed = self.node(self.rda, directory, "node", "try.js", str(self.rda.port), str(port))
        self.assertEqual(json.loads(printed), {"port": str(port), "echoed": "through exec", "status": 200})

    def test_devcontainer(self) -> None:
        """``devcontainer up`` with a local workspace folder, which the container reads and writes."""
        directory = self.install("devcontainer")
        # Below a git repository it would mount the whole of that.
        workspace = Path(tempfile.mkdtemp(prefix="rda-workspace-"))
        self.addCleanup(shutil.rmtree, workspace, ignore_errors=True)
        rules = self.directory() / "rda.toml"
        rules.write_text(f'[[bind]]\npath = "{workspace}"\nmode = "two-way"\n')
        rda = self.own_rda(config=str(rules))
        rda.wait_ready()
        (workspace / ".devcontainer").mkdir()
        definition = {"image": "busybox", "updateRemoteUserUID": False}
        (workspace / ".devcontainer/devcontainer.json").write_text(json.dumps(definition))
        (workspace / "here").write_text("from here")
        command = ("npx", "devcontainer")
        self.node(rda, directory, *command, "up", "--workspace-folder", str(workspace))
        script = "cat here; echo from there > there"
        printed = self.node(rda, directory, *command, "exec", "--workspace-folder", str(workspace), "sh", "-c", script)
        self.assertIn("from here", printed)
        made = workspace / "there"
        wait_until(lambda: made.exists() and made.read_text() == "from there\n", "what the container wrote is here", 20)

"""Bind mounts: the local tree is there before the container's process starts, and follows what happens here."""

from __future__ import annotations

import json
import os
import shutil

from tests.live.process import fetch, free_port
from tests.live.support import LiveTestCase
from tests.live.trees import LIST, ChangingTree

#: Seconds from a local change until it must be seen in the container.
SEEN_SECONDS = 1.0


class Mount(LiveTestCase):
    """``docker run -v``."""

    def setUp(self):
        super().setUp()
        self.site = self.directory()
        (self.site / "index.html").write_text("first\n")

    def start(self, *options: str, source: object = None) -> None:
        """Run an idle container named ``box`` that has the site at /www."""
        mount = f"{source or self.site}:/www"
        self.rda.docker("run", "-d", "--name", "box", "-v", mount, *options, "busybox", "sleep", "1000")

    def inside(self, command: str) -> str:
        """Return what a shell command prints in the container, run by the daemon itself."""
        return self.host.docker("exec", "box", "sh", "-c", command, check=False).stdout.decode()

    def test_served_with_its_port(self):
        """The page of a web server container is the local file's text, at once, and follows an edit within a second."""
        port = free_port()
        server = ("busybox", "httpd", "-f", "-p", "80", "-h", "/www")
        self.rda.docker("run", "-d", "-p", f"{port}:80", "-v", f"{self.site}:/www", *server)
        self.assertEqual(fetch(port), "first\n")
        (self.site / "index.html").write_text("second\n")
        self.eventually(lambda: fetch(port) == "second\n", "the edit is served", SEEN_SECONDS)

    def test_whole_before_the_process_starts(self):
        """The container's process finds the tree complete: files, directories, links and permissions."""
        for n in range(300):
            directory = self.site / f"d{n % 10}"
            directory.mkdir(exist_ok=True)
            (directory / f"f{n}").write_text(str(n))
        (self.site / "empty").mkdir()
        (self.site / "run.sh").write_text("#!/bin/sh\necho ran\n")
        (self.site / "run.sh").chmod(0o755)
        (self.site / "link").symlink_to("run.sh")
        (self.site / "name with spaces, ü and 'quotes'").write_text("odd")
        script = "find /www -type f | wc -l; cat /www/d7/f297; ls -d /www/empty; /www/link; cat /www/name*"
        done = self.rda.docker("run", "--rm", "-v", f"{self.site}:/www", "busybox", "sh", "-c", script)
        self.assertEqual(done.stdout.decode(), "303\n297/www/empty\nran\nodd")

    def test_large_file(self):
        """A file of 50 MB arrives whole before the process starts."""
        data = os.urandom(50 << 20)
        (self.site / "large").write_bytes(data)
        done = self.rda.docker(
            "run", "--rm", "-i", "-v", f"{self.site}:/www", "busybox", "cmp", "/www/large", "-", input=data
        )
        self.assertEqual(done.stdout, b"")

    def test_edits_arrive(self):
        """New files and trees, renames, atomic replacements and deletions are seen within a second."""
        (self.site / "old").write_text("old")
        (self.site / "tree").mkdir()
        (self.site / "tree/leaf").write_text("leaf")
        self.start()
        (self.site / "new").write_text("new")
        self.eventually(lambda: self.inside("cat /www/new") == "new", "a new file", SEEN_SECONDS)
        (self.site / "a/b").mkdir(parents=True)
        (self.site / "a/b/c").write_text("c")
        self.eventually(lambda: self.inside("cat /www/a/b/c") == "c", "a new tree", SEEN_SECONDS)
        (self.site / "new").rename(self.site / "newer")
        self.eventually(lambda: self.inside("cat /www/newer; ls /www/new") == "new", "a renamed file", SEEN_SECONDS)
        (self.site / ".swap").write_text("replaced")
        (self.site / ".swap").replace(self.site / "old")
        self.eventually(lambda: self.inside("cat /www/old") == "replaced", "a replaced file", SEEN_SECONDS)
        (self.site / "old").unlink()
        self.eventually(lambda: self.inside("ls -A /www/old") == "", "a deleted file", SEEN_SECONDS)
        shutil.rmtree(self.site / "tree")
        self.eventually(lambda: self.inside("ls -d /www/tree") == "", "a deleted tree", SEEN_SECONDS)

    def test_made_by_the_container(self):
        """What the container makes is never deleted, whatever changes here."""
        self.start()
        self.inside("echo made > /www/made; mkdir /www/dir; echo made > /www/dir/made")
        (self.site / "index.html").unlink()
        (self.site / "other").write_text("other")
        self.eventually(lambda: self.inside("cat /www/other") == "other", "the new file", SEEN_SECONDS)
        self.eventually(lambda: self.inside("ls /www/index.html") == "", "the deleted file", SEEN_SECONDS)
        self.assertEqual(self.inside("cat /www/made /www/dir/made"), "made\nmade\n")
        self.rda.docker("restart", "-t", "0", "box")
        self.assertEqual(self.inside("cat /www/made /www/dir/made"), "made\nmade\n")

    def test_shown_as_asked_for(self):
        """``inspect`` and ``ps`` show the local path."""
        self.start()
        document = json.loads(self.rda.docker("inspect", "box").stdout)[0]
        self.assertEqual(document["HostConfig"]["Binds"], [f"{self.site}:/www"])
        self.assertEqual(document["Mounts"][0]["Source"], str(self.site))
        self.assertEqual(
            self.rda.docker("ps", "--no-trunc", "--format", "{{.Mounts}}").stdout.decode().strip(), str(self.site)
        )

    def test_single_file(self):
        """A file as source is mounted as a file."""
        self.start(source=self.site / "index.html")
        self.assertEqual(self.inside("cat /www"), "first\n")
        (self.site / "index.html").write_text("second\n")
        self.eventually(lambda: self.inside("cat /www") == "second\n", "an edit of the file", SEEN_SECONDS)

    def test_mount_option(self):
        """``--mount type=bind`` does as ``-v``, read-only included."""
        mount = f"type=bind,source={self.site},target=/www,readonly"
        script = "cat /www/index.html; touch /www/x 2>/dev/null || echo refused"
        done = self.rda.docker("run", "--rm", "--mount", mount, "busybox", "sh", "-c", script)
        self.assertEqual(done.stdout, b"first\nrefused\n")

    def test_mount_option_without_source(self):
        """``--mount`` of a directory that is not there fails with its name, as it does on a local daemon."""
        missing = self.site / "nosuch"
        mount = f"type=bind,source={missing},target=/www"
        done = self.rda.docker("run", "--rm", "--mount", mount, "busybox", "true", check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(str(missing), done.stderr.decode())

    def test_created_source(self):
        """``-v`` of a directory that is not there makes it here, as it does on a local daemon."""
        missing = self.site / "made/by/docker"
        self.start(source=missing)
        self.assertTrue(missing.is_dir())

    def test_volumes_are_left_alone(self):
        """A named volume stays the daemon's."""
        self.addCleanup(self.host.docker, "volume", "rm", "-f", "kept", check=False)
        self.start(source="kept")
        document = json.loads(self.rda.docker("inspect", "box").stdout)[0]
        self.assertEqual(document["Mounts"][0]["Type"], "volume")

    def test_same_source_twice(self):
        """Two containers that mount the same tree see the same edits."""
        self.start()
        self.rda.docker("run", "-d", "--name", "second", "-v", f"{self.site}:/again:ro", "busybox", "sleep", "1000")
        (self.site / "index.html").write_text("both\n")
        self.eventually(lambda: self.inside("cat /www/index.html") == "both\n", "the edit in the first", SEEN_SECONDS)
        second = self.host.docker("exec", "second", "cat", "/again/index.html").stdout
        self.assertEqual(second, b"both\n")

    def test_nested_sources(self):
        """A source inside another is the same directory in both mounts, whoever writes there."""
        (self.site / "lib").mkdir()
        (self.site / "lib/code").write_text("1")
        self.start("-v", f"{self.site}/lib:/lib")
        document = json.loads(self.rda.docker("inspect", "box").stdout)[0]
        self.assertEqual(
            {mount["Destination"]: mount["Source"] for mount in document["Mounts"]},
            {"/www": str(self.site), "/lib": f"{self.site}/lib"},
        )
        both = "echo x > /lib/a; cat /www/lib/a /www/lib/code; echo y > /www/lib/b; cat /lib/b /lib/code"
        self.assertEqual(self.inside(both), "x\n1y\n1")
        script = "cat /x/a /x/b; echo z > /x/c"
        done = self.rda.docker("run", "--rm", "-v", f"{self.site}/lib:/x", "busybox", "sh", "-c", script)
        self.assertEqual((done.stdout, self.inside("cat /www/lib/c")), (b"x\ny\n", "z\n"))
        (self.site / "lib/code").write_text("2")
        self.eventually(lambda: self.inside("cat /www/lib/code /lib/code") == "22", "an edit in both", SEEN_SECONDS)

    def test_nested_source_first(self):
        """It is the same when the inner one was created first, as long as it was not started yet."""
        (self.site / "lib").mkdir()
        for name, mount in (("inner", f"{self.site}/lib:/lib"), ("box", f"{self.site}:/www")):
            made = self.rda.docker("create", "--name", name, "-v", mount, "busybox", "sleep", "1000")
            self.assertEqual(made.stderr, b"")
        self.rda.docker("start", "inner", "box")
        self.inside("echo x > /www/lib/a")
        self.assertEqual(self.host.docker("exec", "inner", "cat", "/lib/a").stdout, b"x\n")
        document = json.loads(self.rda.docker("inspect", "inner").stdout)[0]
        self.assertEqual(document["Mounts"][0]["Source"], f"{self.site}/lib")
        self.rda.docker("rm", "-f", "box")
        made = self.rda.docker("create", "-v", f"{self.site}:/www", "busybox", "true")
        self.assertEqual(made.stderr, b"")  # the link stays, and so does what it leads to


class StartedAtOnce(LiveTestCase):
    """No container starts before its files are there."""

    times = 5

    def test_everything_is_there(self):
        """A container that is started right after many files have changed finds all of them as they are."""
        tree = ChangingTree(self.directory(), files=2000, seed=1)
        for number in range(self.times):
            if number:
                tree.change()
            done = self.rda.docker("run", "--rm", "-v", f"{tree.root}:/tree", "busybox", "sh", "-c", LIST)
            self.assertEqual(sorted(done.stdout.decode().splitlines()), tree.listing(), f"run {number}")


class Trouble(LiveTestCase):
    """What goes wrong over there is named, and over when its cause is."""

    def test_full_disk(self):
        """A start fails while the remote disk is full, with that reason, and works when there is room again."""
        small = "mkdir -p /mnt/small && mount -t tmpfs -o size=3m small /mnt/small && chown $0 /mnt/small"
        self.host.run("sh", "-c", small, self.host.user)
        self.addCleanup(self.host.run, "umount", "-l", "/mnt/small")
        rda = self.own_rda(sync_root="/mnt/small/.rda")
        rda.wait_ready()
        site = self.directory()
        (site / "f").write_bytes(b"1" * 1_000_000)
        container = ("-v", f"{site}:/www", "busybox", "sh", "-c", "wc -c < /www/f; cat /www/g")
        (site / "g").write_text("g")
        self.assertEqual(rda.docker("run", "--rm", *container).stdout, b"1000000\ng")
        (site / "f").write_bytes(b"2" * 5_000_000)
        (site / "g").write_text("h")
        failed = rda.docker("run", "--rm", *container, check=False)
        self.assertIn(b"f: the remote disk is full", failed.stderr)
        self.host.run("mount", "-o", "remount,size=30m", "/mnt/small")
        self.assertEqual(rda.docker("run", "--rm", *container).stdout, b"5000000\nh")

    def test_taken_away(self):
        """What a container gave to another user is named with what to do; it works again when it is given back."""
        site = self.directory()
        (site / "d").mkdir()
        (site / "d/f").write_text("1")
        run = ("run", "--rm", "-v", f"{site}:/www", "busybox")
        self.rda.docker(*run, "chown", "-R", "1234:1234", "/www/d")
        (site / "d/f").write_text("2")
        (site / "g").write_text("2")
        failed = self.rda.docker(*run, "true", check=False)
        self.assertIn(b"d/f: the remote user may not write there: a container has probably", failed.stderr)
        found = self.host.run("sh", "-c", f"find /home/{self.host.user}/.rda -name d -uid 1234").stdout.decode().split()
        self.host.run("chown", "-R", self.host.user, *found)
        self.assertEqual(self.rda.docker(*run, "cat", "/www/d/f", "/www/g").stdout, b"22")


class TwoWay(LiveTestCase):
    """What a container writes comes back, where the configuration says so."""

    def choose_rda(self):
        """An rda whose configuration says so."""
        self.site = self.directory()
        (self.site / "kept").write_text("kept")
        config = self.directory() / "rda.toml"
        config.write_text(f'[[bind]]\npath = "{self.site}"\nmode = "two-way"\n')
        rda = self.own_rda(config=str(config))
        rda.wait_ready()
        return rda

    def test_comes_back(self):
        """Files, edits and deletions come back while the container runs, and all of it when it has ended."""
        script = "echo new > /www/new; sleep 1000"
        self.rda.docker("run", "-d", "--name", "box", "-v", f"{self.site}:/www", "busybox", "sh", "-c", script)
        self.eventually(lambda: (self.site / "new").exists(), "the new file", SEEN_SECONDS * 5)
        self.host.docker(
            "exec", "box", "sh", "-c", "echo more >> /www/new; rm /www/kept; mkdir /www/d; echo f > /www/d/f"
        )
        self.eventually(lambda: (self.site / "d/f").exists(), "the file in the new directory", SEEN_SECONDS * 5)
        self.eventually(lambda: (self.site / "new").read_text() == "new\nmore\n", "the edit", SEEN_SECONDS * 5)
        self.assertFalse((self.site / "kept").exists())
        last = "echo last > /www/last"
        self.rda.docker("run", "--rm", "-v", f"{self.site}:/www", "busybox", "sh", "-c", last)
        self.eventually(lambda: (self.site / "last").exists(), "what was written last", SEEN_SECONDS * 5)

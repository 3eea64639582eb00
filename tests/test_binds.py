"""rda.docker.binds: every way to write a bind, on every system, and the rules that decide whose path it is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.docker.binds import (
    DEFAULT_RULES,
    BindSource,
    Flavour,
    Form,
    Rule,
    Rules,
    System,
    Where,
    container_binds,
    local_path,
    mount_binds,
    remote_path,
    volume_source,
)
from rda.errors import BadRequest, Refused


def bind(spec: str) -> BindSource:
    """The bind that one entry of Binds is."""
    (found,) = container_binds({"HostConfig": {"Binds": [spec]}})
    return found


def mount(**fields: object) -> BindSource:
    """The bind that one entry of Mounts is."""
    (found,) = mount_binds([fields], "Mounts")
    return found


class BindsTests(SynchronousTestCase):
    """HostConfig.Binds."""

    #: spec -> path, flavour, target, read only, rest
    TABLE = {
        "/src:/app": ("/src", Flavour.POSIX, "/app", False, ":/app"),
        "/src/:/app:ro": ("/src", Flavour.POSIX, "/app", True, ":/app:ro"),
        "/a/./b/../c:/app:z,ro,rslave": ("/a/c", Flavour.POSIX, "/app", True, ":/app:z,ro,rslave"),
        "/src:/app:cached": ("/src", Flavour.POSIX, "/app", False, ":/app:cached"),
        "/:/host": ("/", Flavour.POSIX, "/host", False, ":/host"),
        "//c/src:/app": ("/c/src", Flavour.POSIX, "/app", False, ":/app"),
        "//var/run/docker.sock:/d": ("/var/run/docker.sock", Flavour.POSIX, "/d", False, ":/d"),
        "/with space/é:/app": ("/with space/é", Flavour.POSIX, "/app", False, ":/app"),
        r"C:\src:/app": (r"C:\src", Flavour.DRIVE, "/app", False, ":/app"),
        r"c:\src\..\b:/app:ro": (r"C:\b", Flavour.DRIVE, "/app", True, ":/app:ro"),
        "c:/app:/x": (r"C:\app", Flavour.DRIVE, "/x", False, ":/x"),
        "c:/app:/x:ro": (r"C:\app", Flavour.DRIVE, "/x", True, ":/x:ro"),
        "C:\\:/c": ("C:\\", Flavour.DRIVE, "/c", False, ":/c"),
        r"\\?\C:\long:/x": (r"C:\long", Flavour.DRIVE, "/x", False, ":/x"),
        r"\\server\share\d:/x": (r"\\server\share\d", Flavour.UNC, "/x", False, ":/x"),
        "//wsl$/Ubuntu/home:/x": (r"\\wsl$\Ubuntu\home", Flavour.UNC, "/x", False, ":/x"),
        r"\\wsl.localhost\Ubuntu\home:/x:ro": (r"\\wsl.localhost\Ubuntu\home", Flavour.UNC, "/x", True, ":/x:ro"),
        r"\\.\pipe\docker_engine:/x": (r"\\.\pipe\docker_engine", Flavour.UNC, "/x", False, ":/x"),
    }

    def test_forms(self) -> None:
        """A source is read in its own flavour; the rest of the entry is kept to the letter."""
        for spec, (path, flavour, target, read_only, rest) in self.TABLE.items():
            found = bind(spec)
            self.assertEqual(
                (found.path, found.flavour, found.target, found.read_only, found.rest),
                (path, flavour, target, read_only, rest),
            )
            self.assertEqual(found.source + found.rest, spec)
            self.assertEqual((found.form, found.may_create), (Form.BINDS, True))

    def test_volumes_are_left_alone(self) -> None:
        """Named and anonymous volumes are no binds; nor is what the daemon refuses as a volume name."""
        for spec in (
            "data:/data",
            "data:/data:ro",
            "/data",
            "c:/app",
            "c:/app:ro",
            "./src:/app",
            "..:/a",
            ":/a",
            "",
            "a",
        ):
            self.assertEqual(container_binds({"HostConfig": {"Binds": [spec]}}), (), spec)

    def test_invalid(self) -> None:
        """An entry that the daemon would not split is refused in the daemon's words."""
        for spec in ("/a:ro", "/a:z,ro", "/a:/b:ro:x", "/a:", r"C:\a", r"C:\a:b", r"\\server\share", "//wsl$/U/h"):
            error = self.assertRaises(BadRequest, bind, spec)
            self.assertEqual(str(error), f"invalid volume specification: '{spec}'")
        for spec in ("/a:b", "/a:b:ro"):
            problem = "invalid mount path: 'b' mount path must be absolute"
            said = f"invalid volume specification: '{spec}': invalid mount config for type \"bind\": {problem}"
            self.assertEqual(str(self.assertRaises(BadRequest, bind, spec)), said)
        self.assertRaises(BadRequest, bind, "/a\0b:/c")

    def test_order(self) -> None:
        """Binds are found in document order, with their places in their lists."""
        found = container_binds(
            {
                "HostConfig": {
                    "Binds": ["v:/v", "/a:/1", "/b:/2"],
                    "Mounts": [{"Type": "tmpfs", "Target": "/t"}, {"Type": "bind", "Source": "/c", "Target": "/3"}],
                }
            }
        )
        self.assertEqual(
            [(one.path, one.form, one.index) for one in found],
            [("/a", Form.BINDS, 1), ("/b", Form.BINDS, 2), ("/c", Form.MOUNTS, 1)],
        )

    def test_no_binds(self) -> None:
        """Absent and null places hold no binds; other shapes are refused."""
        for document in ({}, {"HostConfig": None}, {"HostConfig": {"Binds": None, "Mounts": None}}):
            self.assertEqual(container_binds(document), ())
        for wrong in ([], {"Binds": "/a:/b"}, {"Binds": [1]}, {"Mounts": {}}, {"Mounts": ["a"]}):
            self.assertRaises(BadRequest, container_binds, {"HostConfig": wrong})

    @given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=20))
    @settings(max_examples=300, deadline=None)
    def test_any_spec(self, spec: str) -> None:
        """Any entry is a bind, or left to the daemon, or refused; an absolute source never slips by."""
        try:
            found = container_binds({"HostConfig": {"Binds": [spec]}})
        except BadRequest:
            return
        if spec.startswith("/") and ":" in spec:
            self.assertEqual(len(found), 1)
        for one in found:
            self.assertEqual(one.source + one.rest, spec)
            self.assertTrue(one.target.startswith("/"))


class MountsTests(SynchronousTestCase):
    """Mounts, and volumes with o=bind."""

    def test_bind(self) -> None:
        """A mount of type bind is one; only CreateMountpoint lets the daemon create its source."""
        plain = mount(Type="bind", Source="/src/", Target="/app", ReadOnly=True)
        self.assertEqual(plain, BindSource("/src", Flavour.POSIX, "/app", True, False, Form.MOUNTS, 0, "/src/"))
        self.assertTrue(mount(Type="bind", Source="/s", BindOptions={"CreateMountpoint": True}).may_create)
        self.assertEqual(mount(Type="bind", Source="c:/s", Target="/x").path, r"C:\s")

    def test_others(self) -> None:
        """Volumes, tmpfs, and binds whose source the daemon refuses are left alone."""
        for fields in (
            {"Type": "volume", "Source": "data", "Target": "/d"},
            {"Type": "tmpfs", "Target": "/d"},
            {"Type": "bind", "Source": "relative", "Target": "/d"},
            {"Type": "bind", "Target": "/d"},
            {"Type": "BIND", "Source": "/a", "Target": "/d"},
            {},
        ):
            self.assertEqual(mount_binds([fields], "Mounts"), ())

    def volume(self, name: object = "local", **options: object) -> tuple[BindSource, ...]:
        """The binds of a mount of type volume with driver options."""
        driver = {"Name": name, "Options": options}
        return mount_binds([{"Type": "volume", "Target": "/d", "VolumeOptions": {"DriverConfig": driver}}], "Mounts")

    def test_volume_with_bind(self) -> None:
        """A volume whose local driver binds a path is a bind."""
        (found,) = self.volume(type="none", o="bind", device="/src")
        self.assertEqual(found, BindSource("/src", Flavour.POSIX, "/d", False, False, Form.VOLUME, 0, "/src"))
        self.assertTrue(self.volume(o="ro,rbind", device="/src")[0].read_only)
        self.assertEqual(len(self.volume("", o="bind", device=r"C:\src")), 1)
        self.assertEqual(len(self.volume(None, o="bind", device="/src")), 1)

    def test_other_volumes(self) -> None:
        """NFS, tmpfs and other drivers' volumes are left alone."""
        self.assertEqual(self.volume(type="nfs", o="addr=10.0.0.1,rw", device=":/export"), ())
        self.assertEqual(self.volume(type="tmpfs", device="tmpfs", o="size=1m"), ())
        self.assertEqual(self.volume("rexray", o="bind", device="/src"), ())
        self.assertEqual(self.volume(o="nobind", device="/src"), ())
        self.assertEqual(self.volume(), ())

    def test_volume_create(self) -> None:
        """volumes/create with o=bind is a bind in disguise."""
        options = {"type": "none", "o": "bind", "device": "/src"}
        found = volume_source({"Name": "data", "Driver": "local", "DriverOpts": options})
        self.assertEqual(found, BindSource("/src", Flavour.POSIX, "", False, False, Form.VOLUME, 0, "/src"))
        self.assertIsNone(volume_source({"Name": "data"}))
        self.assertRaises(BadRequest, volume_source, {"DriverOpts": {"o": ["bind"], "device": "/src"}})

    def test_wrong_shapes(self) -> None:
        """A field of another type than the daemon's is refused, naming it."""
        for fields in ({"Type": "bind", "Source": 1}, {"Type": "volume", "VolumeOptions": []}):
            self.assertRaises(BadRequest, mount_binds, [fields], "Mounts")


class DecideTests(SynchronousTestCase):
    """Rules and remote_path."""

    def test_defaults(self) -> None:
        """The default rules know what is the remote host's own, and leave all else local."""
        for source, decision in {
            "/var/run/docker.sock": Where.REMOTE,
            "//var/run/docker.sock": Where.REMOTE,
            "/var/run/../run/docker.sock": Where.REMOTE,
            "/run/user/1000/docker.sock": Where.REMOTE,
            "/run/containerd/containerd.sock": Where.REMOTE,
            "/run": Where.REMOTE,
            "/run/secrets": Where.LOCAL,
            "/proc": Where.REMOTE,
            "/proc/1/ns": Where.REMOTE,
            "/process": Where.LOCAL,
            "/dev/shm": Where.REMOTE,
            "/var/lib/docker/volumes": Where.REMOTE,
            "/var/lib/dockers": Where.LOCAL,
            "/etc/localtime": Where.REMOTE,
            "/": Where.REFUSE,
            "/home/me": Where.LOCAL,
            r"C:\src": Where.LOCAL,
            r"\\.\pipe\docker_engine": Where.REMOTE,
            "//./pipe/Docker_Engine": Where.REMOTE,
            r"\\.\pipe\other": Where.REFUSE,
        }.items():
            self.assertIs(Rules().find(bind(f"{source}:/x")).where, decision, source)

    def test_first_match_wins(self) -> None:
        """The order of the rules decides."""
        rules = (Rule("/data/keep", Where.LOCAL), Rule("/data", Where.REMOTE), Rule("/**", Where.REFUSE))
        for source, decision in {
            "/data/keep/x": Where.LOCAL,
            "/data/x": Where.REMOTE,
            "/other": Where.REFUSE,
            "/": Where.REFUSE,
        }.items():
            self.assertIs(Rules(tuple(rules)).find(bind(f"{source}:/x")).where, decision)

    def test_patterns(self) -> None:
        """* and ? stay within a name, ** spans names, = is the path alone."""
        for pattern, yes, no in (
            ("/a/*/c", ["/a/b/c", "/a/b/c/d"], ["/a/c", "/a/b/x/c", "/a/b/cc"]),
            ("/a/**/c", ["/a/b/x/c", "/a/b/c"], ["/a/c"]),
            ("/a?", ["/ab", "/ab/c"], ["/a", "/abc"]),
            ("=/a", ["/a"], ["/a/b"]),
            ("/a.b", ["/a.b"], ["/axb"]),
            ("/a/", ["/a", "/a/b"], ["/ab"]),
        ):
            rules = [Rule(pattern, Where.REMOTE)]
            for source in yes:
                self.assertIs(Rules(tuple(rules)).find(bind(f"{source}:/x")).where, Where.REMOTE, (pattern, source))
            for source in no:
                self.assertIs(Rules(tuple(rules)).find(bind(f"{source}:/x")).where, Where.LOCAL, (pattern, source))

    def test_windows_patterns(self) -> None:
        """Windows paths are matched with forward slashes, whatever their case."""
        self.assertIs(Rules((Rule("C:/data", Where.REFUSE),)).find(bind(r"c:\Data\x:/x")).where, Where.REFUSE)
        self.assertIs(Rules((Rule("/data", Where.REFUSE),)).find(bind("/Data:/x")).where, Where.LOCAL)

    def test_configuration(self) -> None:
        """The user's rules come before the default ones, which still hold for what they do not match."""
        rules = Rules.of([("/proc/mine", "local"), ("/srv", "remote"), ("=/", "remote")])
        for source, where in {
            "/proc/mine/x": Where.LOCAL,
            "/proc": Where.REMOTE,
            "/srv/x": Where.REMOTE,
            "/": Where.REMOTE,
            "/home": Where.LOCAL,
        }.items():
            self.assertIs(rules.decide(bind(f"{source}:/x")), where)

    def test_remote_path(self) -> None:
        """A remote path is the one written, in normal form, unless the rule names another one."""
        self.assertEqual(remote_path(bind("//proc/:/x"), Rule("/proc", Where.REMOTE)), "/proc")
        pipe = bind(r"\\.\pipe\docker_engine:/x")
        self.assertEqual(remote_path(pipe, Rules().find(pipe)), "/var/run/docker.sock")
        self.assertRaises(Refused, remote_path, bind(r"C:\x:/x"), Rule("C:/x", Where.REMOTE))

    def test_refusals_have_reasons(self) -> None:
        """Whoever is refused by default is told why."""
        for rule in DEFAULT_RULES:
            self.assertTrue(rule.reason, rule)


class LocalPathTests(SynchronousTestCase):
    """local_path."""

    #: source -> what it is on Linux, macOS, WSL, Windows; None is refused
    TABLE = {
        "/home/me": ("/home/me", "/home/me", "/home/me", None),
        "/Users/me/src": ("/Users/me/src", "/Users/me/src", "/Users/me/src", None),
        "/host_mnt/Users/me": ("/host_mnt/Users/me", "/Users/me", "/Users/me", None),
        "/mnt/c/src": ("/mnt/c/src", "/mnt/c/src", "/mnt/c/src", "C:\\src"),
        "/mnt/c": ("/mnt/c", "/mnt/c", "/mnt/c", "C:\\"),
        "/c/src/x": ("/c/src/x", "/c/src/x", "/c/src/x", "C:\\src\\x"),
        "/run/desktop/mnt/host/c/s": ("/run/desktop/mnt/host/c/s", "/run/desktop/mnt/host/c/s", "/mnt/c/s", "C:\\s"),
        r"C:\src\a": (None, None, "/mnt/c/src/a", "C:\\src\\a"),
        "d:/": (None, None, "/mnt/d", "D:\\"),
        r"\\wsl$\Ubuntu\home\me": (None, None, "/home/me", "\\\\wsl$\\Ubuntu\\home\\me"),
        "//wsl.localhost/Debian": (None, None, "/", "\\\\wsl.localhost\\Debian"),
        r"\\server\share\x": (None, None, None, "\\\\server\\share\\x"),
    }

    def test_table(self) -> None:
        """A path that a client of another system wrote is found where this system has it, or refused."""
        for source, expected in self.TABLE.items():
            one = mount(Type="bind", Source=source, Target="/x")
            for system, path in zip((System.LINUX, System.MACOS, System.WSL, System.WINDOWS), expected, strict=True):
                if path is None:
                    self.assertIn(source, str(self.assertRaises(BadRequest, local_path, one, system)))
                else:
                    self.assertEqual(local_path(one, system), path, (source, system))

"""What is installed from a source distribution and a wheel works like a checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from rda import __version__

ROOT = Path(__file__).parents[2]

#: Seconds that building or installing may take.
BUILD_SECONDS = 300.0


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command; return what it printed. A failed one raises AssertionError with it."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_SECONDS,
    )
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout.decode()}")
    return done.stdout.decode()


class PackagingTests(SynchronousTestCase):
    def test_wheel_from_sdist(self) -> None:
        """The wheel that the source distribution builds installs; twistd, run anywhere, knows rda, and rda runs."""
        work = Path(self.mktemp()).absolute()
        work.mkdir(parents=True)
        # A copy, since building writes beside the sources.
        files = run("git", "ls-files", "-z", cwd=ROOT).split("\0") if (ROOT / ".git").exists() else None
        if files is None:
            self.skipTest("this is not a clone of the repository")
        source = work / "source"
        for name in filter(None, files):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", work / "dist", source, cwd=work)
        (wheel,) = (work / "dist").glob("*.whl")
        (sdist,) = (work / "dist").glob("*.tar.gz")
        self.assertEqual(wheel.name, f"rda-{__version__}-py3-none-any.whl")
        names = zipfile.ZipFile(wheel).namelist()
        self.assertIn("rda/py.typed", names)
        self.assertIn("twisted/plugins/rda_plugin.py", names)
        self.assertEqual([n for n in names if n.startswith("twisted/") and n.endswith("__init__.py")], [])
        with tarfile.open(sdist) as archive:
            inside = {name.partition("/")[2] for name in archive.getnames()}
        wanted = {"etc/rda.toml", "docs/index.rst", "tests/live/host.py", ".ci/run", "LICENSE"}
        self.assertEqual(wanted - inside, set())
        self.install(work, wheel)

    def install(self, work: Path, wheel: Path) -> None:
        """Install the wheel alone; what it depends on is what this test itself runs with."""
        python = work / "venv/bin/python"
        run(sys.executable, "-m", "venv", work / "venv", cwd=work)
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=work)
        installed = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=work).strip()
        (Path(installed) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        where = run(python, "-c", "import rda; print(rda.__file__)", cwd=Path("/")).strip()
        self.assertEqual(where, f"{installed}/rda/__init__.py")
        self.assertIn("status", run(work / "venv/bin/rda", "--help", cwd=Path("/")))
        twistd = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
        self.assertRegex(run(python, "-c", twistd, "--help", cwd=Path("/")), r"(?m)^ +rda ")
        self.assertEqual(run(python, "-c", twistd, "rda", "--version", cwd=Path("/")).strip(), f"rda {__version__}")

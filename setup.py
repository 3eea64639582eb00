"""Packaging of rda. Metadata lives here and nowhere else; tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "rda/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
assert VERSION is not None

TEST = [
    "hypothesis>=6.100",  # laws that are checked on what it makes up
    "docutils>=0.20",  # the manual page, and whether the documents are sound
    "docker>=7",  # the live tests' second client: its streams differ from the docker command's
    "testcontainers>=4.8",  # and the third: what test suites use, which looks for published ports by itself
]

setup(
    name="rda",
    version=VERSION.group(1),
    description="Remote Docker Agent: ports and bind mounts of a remote Docker daemon work as if it were local",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    python_requires=">=3.11",
    # The default, said: an editable install then puts this directory on sys.path, where twistd finds plugins.
    package_dir={"": "."},
    packages=[*find_packages(include=["rda", "rda.*"]), "twisted.plugins"],
    package_data={"rda": ["py.typed"], "rda.pages": ["static/*"], "twisted.plugins": ["rda_plugin.py"]},
    install_requires=[
        "twisted[conch,tls]>=24.7",
        "cryptography>=44",
        "treq>=24.9",
        "watchdog>=4",
        "zope.interface>=6",
        "pathspec>=0.12",
        "shtab>=1.7",  # completion scripts for shells: a matter of each shell's own rules
        "prometheus-client>=0.20",  # the text format of metrics, and those of the process
    ],
    extras_require={
        "test": TEST,
        "bench": ["asyncssh>=2.14"],  # what bench/ssh.py compares rda's link with
        "dev": [
            *TEST,
            "ruff>=0.6",
            "mypy>=1.11",
            "mypy-zope>=1.0.5",
            "build>=1.2",  # the distributions, and the test of what is in them
            "setuptools>=70.1",  # what they are built with: the test builds without fetching anything
        ],
    },
    entry_points={
        "console_scripts": ["rda = rda.command:main", "docker-rda = rda.command.plugin:plugin_main"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Software Development",
        "Typing :: Typed",
    ],
)

"""Imports go only downward, and the global reactor has one importer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent / "rda"

#: From the top to the bottom. A module may import from its own layer and from the layers below it. A package stands in
#: one layer, but for those of its modules that are named here themselves.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("tap", "command"),
    ("agent", "doctor"),
    ("context",),
    ("access.gate", "access.ownership", "access.quotas"),
    ("containers",),
    ("api", "access.audit", "ports", "sync", "proxy", "ssh", "pages"),
    ("agent_record", "docker_cli", "json_log", "reload", "words"),
    ("docker", "access.policy", "access.policy_config", "config", "status", "interfaces", "service_manager", "sockets"),
    ("access", "deferreds", "flow", "limits", "state"),
    ("errors",),
    ("",),
)
KNOWN = {name for names in LAYERS for name in names}

#: Parts of one layer that must not know each other: they meet in agent, through rda.interfaces.
STRANGERS = ("ports", "sync", "proxy", "ssh", "api", "pages")

#: Pure modules: nothing of twisted, no clock, file or thread.
PURE = (
    "errors.py",
    "access/admission.py",
    "access/remotes.py",
    "access/caller.py",
    "access/policy.py",
    "access/policy_config.py",
    "limits.py",
    "config.py",
    "config_table.py",
    "status.py",
    "words.py",
    "docker/*.py",
    "proxy/wire.py",
    "proxy/counters.py",
    "proxy/guard.py",
    "pages/document.py",
    "sync/tree.py",
    "sync/plan.py",
    "ssh/known_hosts.py",
)
IMPURE_IMPORTS = {"twisted", "time", "threading", "socket", "subprocess", "os", "select", "watchdog", "treq"}


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Every module that a file imports when it runs (not those for the type checker only)."""
    found: list[str] = []
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(found)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def part(module: str) -> str:
    """What the layers call a module: ``rda.proxy.wire`` is of ``proxy``, ``rda.access.gate`` stands for itself."""
    names = module.removeprefix("rda").lstrip(".").split(".")
    own = ".".join(names[:2])
    return own if own in KNOWN else names[0]


def layer(name: str) -> int:
    return next(n for n, names in enumerate(LAYERS) if name in names)


class LayeringTests(SynchronousTestCase):
    def files(self) -> Iterator[tuple[Path, str]]:
        for path in sorted(ROOT.rglob("*.py")):
            relative = path.relative_to(ROOT).with_suffix("")
            yield path, part("rda." + ".".join(relative.parts).removesuffix("__init__"))

    def rda_imports(self, path: Path) -> set[str]:
        return {part(name) for name in imported(path) if name.startswith("rda.")} & KNOWN

    def test_imports_go_downward(self) -> None:
        """No module imports from a layer above its own."""
        wrong = [
            f"{path.relative_to(ROOT)} imports rda.{other}"
            for path, own in self.files()
            for other in self.rda_imports(path)
            if layer(other) < layer(own)
        ]
        self.assertEqual(wrong, [])

    def test_parts_do_not_know_each_other(self) -> None:
        """Ports, sync, proxy, api and ssh meet only through rda.interfaces."""
        wrong = [
            f"{path.relative_to(ROOT)} imports rda.{other}"
            for path, own in self.files()
            for other in self.rda_imports(path)
            if own in STRANGERS and other in STRANGERS and own != other
        ]
        self.assertEqual(wrong, [])

    def test_one_importer_of_the_global_reactor(self) -> None:
        """Only tap.py imports twisted.internet.reactor; everything else is given one."""
        importers = [path.name for path, _ in self.files() if "twisted.internet.reactor" in set(imported(path))]
        self.assertEqual(importers, ["tap.py"])

    def test_pure_modules_import_nothing_of_the_world(self) -> None:
        """What is called pure in the architecture is, and is there."""
        self.assertEqual([pattern for pattern in PURE if not any(ROOT.glob(pattern))], [])
        wrong = [
            f"{path.relative_to(ROOT)} imports {name}"
            for pattern in PURE
            for path in ROOT.glob(pattern)
            for name in imported(path)
            if name.split(".")[0] in IMPURE_IMPORTS
        ]
        self.assertEqual(wrong, [])

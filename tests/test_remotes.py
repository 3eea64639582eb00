"""The list of remote hosts that may be connected to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.access.remotes import Permit, parse_permit, pins_for
from rda.errors import LoginFailed

A, B = "SHA256:" + "a" * 43, "SHA256:" + "b" * 43


class ParseTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """Entries are written as hosts are, with patterns and keys."""
        for text, permit in (
            ("gpu", Permit("*", "gpu", None, ())),
            ("me@GPU.lab:2222", Permit("me", "gpu.lab", 2222, ())),
            (f"*.lab {A}", Permit("*", "*.lab", None, (A,))),
            (f"10.0.0.?:22 {A}  {B}=", Permit("*", "10.0.0.?", 22, (A, B + "="))),
            ("[fd00::1]:22", Permit("*", "fd00::1", 22, ())),
            ("me@fd00::1", Permit("me", "fd00::1", None, ())),
        ):
            self.assertEqual(parse_permit(text), permit, text)

    def test_wrong(self) -> None:
        """Anything else is refused."""
        for text in ("", "a:b", "a:", "a:0", "a:65536", "a@b@c", "a[bc]", f"a {A}x", "a MD5:00", "a/b:c"):
            self.assertRaises(ValueError, parse_permit, text)


class PinsTests(SynchronousTestCase):
    def pins(
        self, *permits: str, pins: tuple[str, ...] = (), user: str = "me", host: str = "a", port: int = 22
    ) -> object:
        return pins_for(permits, user, host, port, pins)

    def test_no_list(self) -> None:
        """Without a list everything is allowed, with the keys that were asked for."""
        self.assertEqual(pins_for(None, "me", "a", 22, (A,)), (A,))

    def test_hosts(self) -> None:
        """A host is found whatever case it is written in, by its pattern, port and user."""
        self.assertEqual(self.pins("a"), ())
        for permit, host in (("*.lab", "gpu.LAB"), ("gpu.lab", "gpu.lab."), ("10.*", "10.0.0.1")):
            self.assertEqual(self.pins(permit, host=host), ())
        for permit in ("b", "a:23", "you@a", "a.lab", "*.a"):
            self.assertRaises(LoginFailed, self.pins, permit)
        self.assertRaises(LoginFailed, self.pins)

    def test_keys(self) -> None:
        """The first entry that matches says which keys; a key that was asked for narrows them, or contradicts."""
        self.assertEqual(self.pins(f"a {A}", f"a {B}"), (A,))
        self.assertEqual(self.pins(f"a {A} {B}", pins=(B + "=",)), (B,))
        self.assertEqual(self.pins("a", pins=(B,)), (B,))
        self.assertRaises(LoginFailed, self.pins, f"a {A}", pins=(B,))

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20))
    def test_only_what_is_listed(self, host: str) -> None:
        """A list of plain names allows these and no others."""
        try:
            pins_for(("a.lab",), "me", host, 22)
        except LoginFailed:
            self.assertNotEqual(host, "a.lab")
        else:
            self.assertEqual(host.lower().rstrip("."), "a.lab")

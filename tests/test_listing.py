"""rda.docker.listing: filters that name the user's ports and paths match the user's, not the remote host's."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from rda.docker.listing import ListFilter, outward_filters

WEB = {
    "Id": "web",
    "Ports": [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"PrivatePort": 53, "Type": "udp"},
    ],
    "Mounts": [
        {"Type": "bind", "Source": "/home/me/src", "Destination": "/app"},
        {"Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data/_data", "Destination": "/data"},
    ],
}
OTHER = {"Id": "other", "Ports": [], "Mounts": []}


class ListingTests(SynchronousTestCase):
    """outward_filters and ListFilter."""

    def outward(self, filters: object, **query: str) -> tuple[dict[str, str], object, ListFilter | None]:
        """The new query without its filters, the new filters, and what is left."""
        pairs = (*query.items(), ("filters", json.dumps(filters)))
        new, rest = outward_filters(pairs)
        values = dict(new)
        kept = json.loads(values.pop("filters", "null"))
        return values, kept, rest

    def found(self, filters: object) -> list[str]:
        """The ids of the entries that are left."""
        rest = self.outward(filters)[2]
        assert rest is not None
        return [str(item["Id"]) for item in rest.apply([WEB, OTHER])]

    def test_taken(self) -> None:
        """Filters on the user's ports and paths are taken out; the others, and the order of the query, stay."""
        query, kept, rest = self.outward({"publish": ["8080"], "label": ["a=b"], "name": {"web": True}}, size="1")
        self.assertEqual((query, kept), ({"size": "1"}, {"label": ["a=b"], "name": {"web": True}}))
        self.assertEqual(rest, ListFilter(publish=((8080, 8080, "tcp"),)))
        self.assertIsNone(self.outward({"volume": ["/x"]})[1])

    def test_nothing_to_take(self) -> None:
        """A query without them is sent as it came; so is one that the daemon will refuse."""
        for filters in (
            {},
            {"expose": ["80"]},
            {"label": ["a"]},
            {"publish": []},
            {"publish": ["a:b"]},
            {"publish": 1},
            [],
        ):
            query = (("all", "1"), ("filters", json.dumps(filters)))
            self.assertEqual(outward_filters(query), (query, None), filters)
        for query in (
            (),
            (("filters", '{"publish":["90-80"]}'),),
            (("filters", "{"),),
            (("filters", ""),),
            (("limit", "x"), ("filters", '{"publish":["1"]}')),
        ):
            self.assertEqual(outward_filters(query), (query, None))

    def test_publish(self) -> None:
        """publish matches local ports, with their protocol, singly or in ranges."""
        for value, matches in {
            "8080": True,
            "8000-9000/tcp": True,
            "8080/udp": False,
            "80": False,
            "53/udp": False,
        }.items():
            self.assertEqual(self.found({"publish": [value]}), ["web"] if matches else [], value)
        self.assertEqual(self.found({"publish": ["1", "8080"]}), ["web"])

    def test_publish_or_expose(self) -> None:
        """A container that matches either publish or expose is listed, as the daemon would."""
        self.assertEqual(self.found({"publish": ["1"], "expose": ["53/udp"]}), ["web"])
        self.assertEqual(self.found({"publish": ["1"], "expose": ["53"]}), [])

    def test_volume(self) -> None:
        """volume matches local sources, volume names and targets; a named volume's source does not."""
        for value in ("/home/me/src", "/app", "data", "/data"):
            self.assertEqual(self.found({"volume": [value]}), ["web"], value)
        for value in ("/home/me", "/var/lib/docker/volumes/data/_data", ""):
            self.assertEqual(self.found({"volume": [value]}), [], value)

    def test_both(self) -> None:
        """Both kinds have to match."""
        self.assertEqual(self.found({"publish": ["8080"], "volume": ["nope"]}), [])

    def test_old_form(self) -> None:
        """Filters may be written as objects, as old clients did."""
        self.assertEqual(self.found({"publish": {"8080": True, "1": False}}), ["web"])

    def test_limit(self) -> None:
        """A limit counts what is left after all filters, and means containers in any state."""
        query, _, rest = self.outward({"publish": ["8080"]}, limit="1")
        self.assertEqual(query, {"all": "1"})
        assert rest is not None
        self.assertEqual(rest.apply([OTHER, WEB, WEB]), [WEB])
        self.assertEqual(self.outward({"publish": ["1"]}, limit="0")[0], {"limit": "0"})

    def test_odd_entries(self) -> None:
        """Entries of another shape do not match."""
        rest = ListFilter(publish=((1, 9, "tcp"),), volumes=("x",))
        self.assertEqual(rest.apply([{}, {"Ports": None}, {"Ports": [1], "Mounts": [2]}]), [])
        self.assertEqual(ListFilter().apply([{}]), [{}])

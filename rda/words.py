"""Numbers as they are said to people. Pure."""

from __future__ import annotations

from rda.status import MirrorStatus

__all__ = ["count", "duration", "progress", "size"]


def count(number: int, one: str, many: str) -> str:
    """A number of things: ``1 entry``, ``1,200 entries``."""
    return f"{number:,} {one if number == 1 else many}"


def size(octets: float) -> str:
    """Bytes, with a decimal prefix and two or three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 999.5:
            return f"{octets:.0f} {unit}" if unit == "B" or octets >= 99.95 else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:.1f} TB"


def duration(seconds: float) -> str:
    """A span of time in its two largest units."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = int(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def progress(mirror: MirrorStatus) -> str:
    """How far a mirror is, e.g. ``12,000 of 80,000 files, 1.2 GB of 4.0 GB, 35 MB/s, about 40 s left``."""
    if mirror.state != "applying" or not mirror.files_total:
        return {"scanning": "looking at the files here", "idle": "in sync"}.get(mirror.state, mirror.state)
    said = f"{mirror.files_done:,} of {mirror.files_total:,} files"
    if mirror.bytes_total:
        said += f", {size(mirror.bytes_done)} of {size(mirror.bytes_total)}"
    if mirror.rate:
        said += f", {size(mirror.rate)}/s"
    if mirror.time_left is not None:
        said += f", about {duration(max(1.0, mirror.time_left))} left"
    return said

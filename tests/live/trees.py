"""Local trees that change as a whole, and what a container finds of them."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

#: Prints the checksum of every file in the container's /tree, and the number of other things.
LIST = "cd /tree && find . -type f -exec md5sum {} + && find . ! -type f | wc -l"


class ChangingTree:
    """A directory with a number of files, of which any part changes at a word.

    :param seed: the same seed makes the same tree, and the same changes.
    """

    def __init__(self, root: Path, files: int, seed: int) -> None:
        self.root = root
        self._files = files
        self._random = random.Random(seed)
        self._write(self._random.sample(range(files), files))

    def change(self) -> None:
        """Rewrite, remove and make files and directories: sometimes a few, sometimes all."""
        share = self._random.choice([0.01, 0.1, 1.0])
        chosen = self._random.sample(range(self._files), int(self._files * share))
        for number in chosen[: len(chosen) // 10]:
            self._path(number).unlink(missing_ok=True)
        self._write(chosen[len(chosen) // 10 :])
        if self._random.random() < 0.3:
            directory = self.root / f"d{self._random.randrange(20)}"
            shutil.rmtree(directory, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.root / f"d{number % 20}" / f"e{number % 7}" / f"f{number}"

    def _write(self, numbers: list[int]) -> None:
        for number in numbers:
            path = self._path(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._random.randbytes(self._random.randrange(3000)))

    def listing(self) -> list[str]:
        """The lines that :data:`LIST` has to print for this tree, sorted."""
        lines, others = [], 0
        for path in [self.root, *self.root.rglob("*")]:
            if path.is_file():
                digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
                lines.append(f"{digest}  ./{path.relative_to(self.root)}")
            else:
                others += 1
        return sorted([*lines, str(others)])

"""Progress of a model's files, counted from any thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runtime.interfaces import Model, Progress
    from runtime.models.pieces import FilePieces, Piece


def label(model: Model) -> str:
    """The model as people call it: `name:version`."""
    return f"{model.manifest.metadata.name}:{model.manifest.metadata.version}"


class Teller:
    """Keeps count of every file's verified bytes, from any thread."""

    def __init__(self, model: Model, files: Sequence[FilePieces], progress: Progress) -> None:
        self._label = label(model)
        self._progress = progress
        self._sizes = {file.path: file.size for file in files}
        self._done = dict.fromkeys(self._sizes, 0)
        self._lock = threading.Lock()

    def begin(self, wanted: Sequence[FilePieces], good: frozenset[int], borrowed: Iterable[str]) -> None:
        """Tell what there is to come, and what of it is there from the start."""
        for file in wanted:
            if file.size:
                self.file(file.path, sum(piece.length for piece in file.pieces if piece.number in good))
        for path in borrowed:
            self.file(path, self._sizes[path])

    def piece(self, file: FilePieces, piece: Piece) -> None:
        """One more piece is verified."""
        with self._lock:
            self.file(file.path, self._done[file.path] + piece.length)

    def file(self, path: str, done: int) -> None:
        """So much of a file is verified."""
        self._done[path] = done
        self._progress(f"{self._label}/{path}", done, self._sizes[path])

    def finish(self) -> None:
        """The model is published: what was not told of by pieces (empty files, repeated ones) is there, too."""
        for path, size in self._sizes.items():
            if self._done[path] != size or not size:
                self.file(path, size)

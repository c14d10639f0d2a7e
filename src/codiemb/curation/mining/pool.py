"""The texts of a run: candidates that may become negatives, and positives that are not among them.

They lie in a directory that is named by their content, so that what is computed from them is found again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codiemb.curation.mining.keys import KeyIndex, key
from codiemb.data.documents import Document
from codiemb.data.examples import RowError, Text, parse_text
from codiemb.search.store import TEXTS_FILE, TextStore, TextWriter, windows

_KEYS_FILE, _ABOUT_FILE = "keys.npy", "pool.json"


class PoolCounts(NamedTuple):
    """Of a pool: texts that may be mined, those left out, and positives kept beside them.

    Attributes:
        unusable: blank, or with control characters, which no row may have.
    """

    candidates: int
    duplicates: int
    unusable: int
    others: int


class TextPool:
    """Texts by number, 0 first; the first `counts.candidates` of them may be mined.

    Texts that differ in width, case, spaces and punctuation only are one text, the first of them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.counts = PoolCounts(**json.loads((directory / _ABOUT_FILE).read_text(encoding="utf-8")))
        self.keys: np.ndarray = np.load(directory / _KEYS_FILE)
        self.index = KeyIndex(self.keys)
        self._texts = TextStore(directory / TEXTS_FILE)

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def build(cls, root: Path, candidates: Iterable[Document], others: Iterable[Document]) -> TextPool:
        """Store texts under `root`, each once, and open them; memory grows by about 100 bytes for each.

        Args:
            candidates: read first, and only once.
            others: positives; those that are candidates too are not stored again.
        """
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".pool-", dir=root))
        try:
            collected = _Collected()
            with TextWriter(partial / TEXTS_FILE) as writer:
                for block in windows(collected.distinct(candidates)):
                    writer.write(block)
                mined = len(collected.keys)
                skipped = collected.duplicates, collected.unusable
                for block in windows(collected.distinct(others)):
                    writer.write(block)
            counts = PoolCounts(mined, *skipped, len(collected.keys) - mined)
            np.save(partial / _KEYS_FILE, np.frombuffer(collected.keys, dtype=np.uint64))
            (partial / _ABOUT_FILE).write_text(json.dumps(counts._asdict()), encoding="utf-8")
            collected.digest.update(json.dumps(counts).encode())
            directory = root / collected.digest.hexdigest()
            if not (directory / _ABOUT_FILE).is_file():
                partial.chmod(0o755)  # mkdtemp makes it 0700
                partial.rename(directory)
            return cls(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def document(self, number: int) -> Document:
        """One text with its id."""
        return self._texts.take([number])[0]

    def text(self, number: int) -> Text:
        """One text as rows have it."""
        return as_text(self.document(number))

    def texts(self) -> Iterator[Text]:
        """All of them, in order."""
        for block in self._texts.blocks():
            yield from map(as_text, block)


class _Collected:
    """What has been seen, and a hash over it."""

    def __init__(self) -> None:
        self.keys = array("Q")
        self.duplicates = self.unusable = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._seen: set[int] = set()

    def distinct(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            try:
                text = parse_text(as_text(document), "text")
            except RowError:
                self.unusable += 1
                continue
            own = key(text.full)
            if own in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(own)
            self.keys.append(own)
            self.digest.update(own.to_bytes(8, "little"))  # or keys of an older `normalise` would be found again
            for part in (document.id, *text):
                data = part.encode("utf-8", "surrogatepass")
                self.digest.update(len(data).to_bytes(8, "little") + data)
            yield document


def as_document(text: Text, id_: str) -> Document:
    """A text of a row as it is stored."""
    notes = {name: value for name, value in zip(("instruction", "prefix"), text, strict=False) if value}
    return Document(id_, text.text, {"text": notes} if notes else {})


def as_text(document: Document) -> Text:
    """A stored text as rows have it."""
    notes = document.metadata.get("text")
    notes = notes if isinstance(notes, dict) else {}
    return Text(str(notes.get("instruction", "")), str(notes.get("prefix", "")), document.text)

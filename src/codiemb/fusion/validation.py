"""Weights are chosen on validation data: data that says it is a test set is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from codiemb.data.examples import DataError

_VALIDATION = {"dev", "val", "valid", "validation", "held", "heldout", "train"}
_WORDS = re.compile(r"[a-z]+")


def require_validation(sources: Iterable[str]) -> None:
    """See that no source of evaluation data calls itself a test set.

    The last name in a path that says what it is decides: `sts/test.tsv`, `test/sts.tsv` and `dev/sts_test.tsv` are test
    data, `test/sts_dev.tsv` is not. Many BEIR folders call their only split `test`, so there the folder's path decides
    first; a folder that also has another split is refused if `test` is the one that is read.

    Args:
        sources: of evaluation tasks, as given: files, BEIR folders or their qrels files.
    Raises:
        DataError: one does.
    """
    for source in map(Path, sources):
        splits = sorted(path.stem for path in (source / "qrels").glob("*.tsv"))
        if "test" in splits and len(splits) > 1:
            others = ", ".join(str(source / "qrels" / f"{split}.tsv") for split in splits if split != "test")
            raise DataError(f"{source}: its split `test` would be read. Give another one by its file: {others}.")
        if (_kind(source.parts) or _kind(splits)) == "test":
            raise DataError(
                f"{source}: says that it is a test set. Weights that were chosen on it would make every later score on "
                "it worthless. Give a validation set; if this is one, say so in its file's or folder's name (dev, "
                "validation)."
            )


def _kind(names: Iterable[str]) -> str | None:
    """What the last name that says it says: `test` or `validation`."""
    for name in reversed(list(names)):
        words = set(_WORDS.findall(name.lower()))
        if "test" in words:
            return "test"
        if words & _VALIDATION:
            return "validation"
    return None

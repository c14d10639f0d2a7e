"""What a step's result depends on, as a hash: its inputs' content, its options, and the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import codiemb
from codiemb.curation.curating.recipe import Step

_HEX_DIGITS = 16
_BLOCK = 1 << 20


def step_key(step: Step, before: str, seed: int) -> str:
    """16 hex digits.

    Args:
        before: the key of the step before, or of the sources.
    """
    files = {str(path): content_hash(path) for path in _paths(step)}
    code = _code("synthesis" if step.kind == "synthesize" else "mining" if step.kind == "mine" else "cleaning")
    return digest([step.kind, step.options(), before, seed, files, code])


def digest(value: object) -> str:
    """16 hex digits of a value that JSON can hold."""
    content = json.dumps(value, sort_keys=True, ensure_ascii=True).encode()
    return hashlib.blake2b(content, digest_size=_HEX_DIGITS // 2).hexdigest()


def content_hash(path: Path) -> str:
    """Of a file's bytes; of a directory's files with their names."""
    if path.is_dir():
        children = sorted(child for child in path.rglob("*") if child.is_file())
        return digest([[str(child.relative_to(path)), content_hash(child)] for child in children])
    hasher = hashlib.blake2b(digest_size=_HEX_DIGITS // 2)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _paths(step: Step) -> Iterable[Path]:
    """Files and folders that a step reads beside the rows, where they exist."""
    paths = [*step.documents]
    if step.synthesize is not None:
        recipe = step.synthesis(Path("output"))
        paths += [Path(one) for one in (recipe.templates, recipe.gates.model) if one]
    elif step.mine:
        paths.append(Path(step.mine.model))
    elif step.decontaminate:
        root = step.decontaminate.dataset_root
        paths = [*map(Path, step.decontaminate.against), *([root] if root else [])]
    return [path for path in paths if path.exists()]


@cache
def _code(package: str) -> str:
    """Version and sources of the code that makes a step's result."""
    root = Path(codiemb.__file__).parent
    files = [*sorted((root / "curation" / package).rglob("*.py")), *sorted((root / "curation").glob("*.py"))]
    return digest([codiemb.__version__, [content_hash(path) for path in files]])

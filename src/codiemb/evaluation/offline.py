"""Benchmark data sets from a local folder: `ROOT/<org>/<name>` holds what the hub's data set of that name holds.

mteb loads the data of a task with the `datasets` library from `task.metadata.dataset["path"]`, and `datasets` reads a
directory there as it reads a repository of the hub. So a task is copied with that path changed; loading, renaming
columns and scoring stay mteb's. The path is a directory in codiemb's cache that is named by a hash of the data:
`datasets` keeps what it has read under the name of the directory, and would not see that files have changed. It is a
link to the folder, or where the folder's README.md lists no configurations, which the hub's copies have, it holds a
README.md that lists the folder's files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import yaml
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from codiemb.bundled import cache_root

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_ANY_SUFFIX = "{parquet,jsonl,csv}"

# A file right in a data set's folder that is not a split but a part of a retrieval task.
_PARTS = ("corpus", "queries", "qrels", "top_ranked")
_SPLIT_FILE = re.compile(r"(?P<split>\w+)(-\d{5}-of-\d{5}(-[0-9a-f]+)?)?\.[a-z]+(\.gz)?")

Layout = dict[str, dict[str, list[str]]]
"""Files of each split of each configuration."""


class MissingDataError(ValueError):
    """A data set that is not in the folder, or not all of it; the message lists the files that are expected."""


class Part(NamedTuple):
    """A split of a configuration that a task reads; `file` is where it would lie in a plain folder."""

    configs: tuple[str, ...]
    split: str
    file: str
    only_split_counts: bool


def attach(task: AbsTask, root: Path) -> AbsTask:
    """A copy of `task` that reads its data from `root`.

    Its data revision is `local-` and a hash of the files, so that a result says what it was measured on, and is
    measured again after the files have changed.

    Raises:
        MissingDataError: something of the data set is not there.
    """
    attached: Any = copy(task)
    if isinstance(task, AbsTaskAggregate):
        parts = [attach(part, root) for part in task.metadata.tasks]
        attached.metadata = task.metadata.model_copy(update={"tasks": parts})
        return attached
    missing = missing_files(task, root)
    if missing:
        raise MissingDataError(f"{task.metadata.dataset['path']} is not complete under {root}: {'; '.join(missing)}")
    folder = root / task.metadata.dataset["path"]
    digest = _digest(folder)
    source = {"path": str(_repository(folder, digest)), "revision": f"local-{digest}"}
    attached.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, **source}})
    return attached


def missing_files(task: AbsTask, root: Path) -> list[str]:
    """What `task` reads and `root` does not have, each as the file that is expected; empty if all is there."""
    if isinstance(task, AbsTaskAggregate):
        return [file for part in task.metadata.tasks for file in missing_files(part, root)]
    folder = root / task.metadata.dataset["path"]
    expected = f"{folder}/ with {', '.join(dict.fromkeys(part.file for part in _parts(task))) or 'its files'}"
    if not folder.is_dir():
        return [expected]
    repository = ""
    try:
        repository = str(_repository(folder, "listing"))
        configs = datasets.get_dataset_config_names(repository)
        splits = {
            config: datasets.get_dataset_split_names(repository, config_name=config)
            for config in configs
            if any(config in part.configs for part in _parts(task))
        }
    except (ValueError, OSError) as error:  # README.md names files that are not there, or no file is a split
        reason = str(error).partition("\n")[0].replace(repository or "\n", str(folder))
        return [f"{expected}; {reason}"]
    return [f"{folder}/{part.file}" for part in _parts(task) if not _has(splits, part)]


def _has(splits: dict[str, list[str]], part: Part) -> bool:
    found = next((splits[config] for config in part.configs if config in splits), [])
    return part.split in found or (part.only_split_counts and len(found) == 1)


def _parts(task: AbsTask) -> list[Part]:
    """What the loaders of mteb's base classes read; unknown, and so empty, for a task with a loader of its own."""
    subsets = task.hf_subsets if task.metadata.is_multilingual else ["default"]
    if type(task).load_data is AbsTaskRetrieval.load_data:
        return [part for subset in subsets for part in _retrieval_parts(task, subset)]
    if type(task).load_data is not AbsTask.load_data:
        return []
    named = [task.metadata.dataset.get("name", "default")]
    configs = subsets if task.metadata.is_multilingual and not task.fast_loading else named
    splits = [*task.eval_splits]
    if isinstance(task, AbsTaskClassification):
        splits = list(dict.fromkeys([task.train_split, *splits]))
    return [
        Part((config,), split, f"{'' if config == 'default' else f'{config}/'}{split}.{_ANY_SUFFIX}", False)
        for config in configs
        for split in splits
    ]


def _retrieval_parts(task: AbsTask, subset: str) -> Iterator[Part]:
    prefix = "" if subset == "default" else f"{subset}-"
    names = ["corpus", "queries"] + (["top_ranked"] if task.metadata.type.endswith("Reranking") else [])
    for split in task.eval_splits:
        for name in names:
            single = f"{name}.{_ANY_SUFFIX}" if not prefix else f"{prefix}{name}/{split}.{_ANY_SUFFIX}"
            yield Part((f"{prefix}{name}",), split, single, True)
        qrels = (f"{prefix}qrels",) if prefix else ("default", "qrels")
        yield Part(qrels, split, f"{qrels[-1]}/{split}.{_ANY_SUFFIX}", True)


def _repository(folder: Path, version: str) -> Path:
    """A directory that `datasets` reads as a repository with the files of `folder`, with a name of its own."""
    directory = cache_root() / "benchmark-data" / f"{folder.parent.name}--{folder.name}-{version}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    card = folder / "README.md"
    configs = [] if card.is_file() and "configs" in _metadata(card) else _configs(folder)
    if not configs:
        link = directory.with_name(f"{directory.name}-link")
        if link.is_symlink() and link.resolve() != folder.resolve():
            link.unlink()  # the same files lay elsewhere
        if not link.is_symlink():
            link.symlink_to(folder.resolve(), target_is_directory=True)
        return link
    directory.mkdir(exist_ok=True)
    content = yaml.safe_dump({"configs": configs}, allow_unicode=True, sort_keys=False)
    (directory / "README.md").write_text(f"---\n{content}---\n", encoding="utf-8")
    return directory


def _configs(folder: Path) -> list[dict[str, Any]]:
    """The files of a folder without configurations, as a README.md spells them."""
    layout = _layout(folder)
    files = [file for splits in layout.values() for names in splits.values() for file in names]
    suffixes = {Path(file.removesuffix(".gz")).suffix.replace(".jsonl", ".json") for file in files}
    if len(suffixes) > 1:
        raise ValueError(f"its files are of several formats ({', '.join(sorted(suffixes))}); bring them into one")
    return [
        {"config_name": config, "data_files": [{"split": split, "path": names} for split, names in splits.items()]}
        for config, splits in layout.items()
    ]


def _metadata(card: Path) -> dict[str, Any]:
    """The YAML at the head of a README.md."""
    block = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", card.read_text(encoding="utf-8"), re.DOTALL)
    try:
        content = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        raise ValueError(f"{card}: the YAML at its head cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _layout(folder: Path) -> Layout:
    """`[data/]split.ext` is of the default configuration, `config/split.ext` and `corpus.ext` of the named one."""
    layout: Layout = {}
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if place.name.startswith("."):
            continue
        for file in sorted(place.iterdir()):
            match = _SPLIT_FILE.fullmatch(file.name)
            if not match or not file.name.removesuffix(".gz").endswith(SUFFIXES):
                continue
            config = "default" if place == folder or place.name == "data" else place.name
            if place == folder and match["split"] in _PARTS:
                config = match["split"]
            layout.setdefault(config, {}).setdefault(match["split"], []).append(str(file.resolve()))
    return layout


def _digest(folder: Path) -> str:
    """12 hex digits over names and contents of the data files, and what README.md says which of them are for."""
    digest = hashlib.blake2b(digest_size=6)
    card = folder / "README.md"
    if card.is_file() and (configs := _metadata(card).get("configs")):
        digest.update(yaml.safe_dump(configs).encode())
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts) and file.name != "README.md":
            with file.open("rb") as stream:
                digest.update(f"{relative.as_posix()}\0{file.stat().st_size}\0".encode())
                while piece := stream.read(1 << 20):
                    digest.update(piece)
    return digest.hexdigest()

"""Which weak pairs are worth training on: those whose document a model finds again among others of the data set.

Consistency filtering (Dai et al., 2022, arXiv:2209.11755; Wang et al., 2022, arXiv:2212.03533). Any function of a table
can take its place: see `PairFilter`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from codiemb import backbones
from codiemb.bundled import cache_root
from codiemb.data.collator import text_id
from codiemb.data.readers import TaskTable
from codiemb.encoding import EmbeddingPass
from codiemb.fingerprint import fingerprint
from codiemb.losses.distributed import rank, world_size
from codiemb.prompts import PromptedText
from codiemb.training.recipe import Consistency
from codiemb.training.resumable import wait_for_all_ranks

logger = logging.getLogger(__name__)

_FORMAT = 2  # bump when ranks are computed in another way
_SHARD = 1 << 15  # rows whose ranks are kept together: what a killed run loses at most
_BLOCK = 1024  # queries scored at once


class Verdicts(NamedTuple):
    """Of each row of a table: whether it stays, and what the side file of those that do not shall say of it."""

    keep: NDArray[np.bool_]
    details: Mapping[str, NDArray[Any]] = {}


PairFilter = Callable[[TaskTable], Verdicts]
"""Looks at a table of task `ir`; the same table has to give the same verdicts, for a resumed run to be the same run."""


class ConsistencyFilter:
    """The built-in filter: ranks each row's best positive among documents drawn from its data set.

    A document counts against a row if it is closer to the query than all positives of the row, and is none of them.
    Ranks are cached by table, model, pool and seed: another `keep_top` ranks nothing anew.

    Args:
        seed: of the draw.
        cache_dir: None: `consistency` in codiemb's cache directory (`$CODIEMB_CACHE`).
    """

    def __init__(
        self, options: Consistency, *, seed: int = 0, device: str | None = None, cache_dir: Path | None = None
    ) -> None:
        self._options = options
        self._seed = seed
        self._cache_dir = cache_dir or cache_root() / "consistency"
        model = backbones.load(options.model, device=device)
        self._template = backbones.template_of(model, options.model)
        self._model_key = fingerprint(model)
        self._pass = EmbeddingPass(model)

    def __call__(self, table: TaskTable) -> Verdicts:
        """The verdicts on the rows of `table`."""
        ranks = self.ranks(table)
        return Verdicts(ranks < self._options.keep_top, {"rank": ranks + 1})

    def ranks(self, table: TaskTable) -> NDArray[np.int32]:
        """How many documents of the pool come before the best positive of each row, (rows,).

        The processes of a group, all of which have to call this, rank a part of the rows each.
        """
        directory = self._cache_dir / self._key(table)
        directory.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(table.rows), _SHARD)
        self._rank_shards(table, starts[rank() :: world_size()], directory)
        wait_for_all_ranks()
        self._rank_shards(table, starts, directory)  # what others ranked is there, unless their cache is another
        return np.concatenate([np.load(directory / f"{start}.npy") for start in starts])

    def _rank_shards(self, table: TaskTable, starts: Iterable[int], directory: Path) -> None:
        """Rank the rows of the shards that are not in the cache yet."""
        pool: _Pool | None = None
        for start in starts:
            path = directory / f"{start}.npy"
            if not path.is_file():
                pool = pool or self._pool(table)
                end = min(start + _SHARD, len(table.rows))
                _save_whole(path, self._ranks(table.rows.select(range(start, end)), pool))
                logger.info("%s: ranked rows %d to %d of %d", table.name, start + 1, end, len(table.rows))

    def _key(self, table: TaskTable) -> str:
        rows = table.rows._fingerprint  # of the cached file of a table, and of what was selected from it
        content = [rows, self._model_key, self._options.pool, self._seed, _FORMAT]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def _pool(self, table: TaskTable) -> _Pool:
        size = min(self._options.pool, len(table.rows))
        drawn = np.sort(np.random.default_rng(self._seed).choice(len(table.rows), size, replace=False))
        texts = {text_id(_text(row[0])): row[0] for row in table.rows.select(drawn)["positives"]}
        return _Pool({key: place for place, key in enumerate(texts)}, self._embed(list(texts.values()), "document"))

    def _ranks(self, rows: Any, pool: _Pool) -> NDArray[np.int32]:
        parts = []
        for batch in rows.iter(batch_size=_BLOCK):
            queries = self._embed(batch["query"], "query")
            owner = torch.tensor([i for i, texts in enumerate(batch["positives"]) for _ in texts])
            positives = self._embed([text for texts in batch["positives"] for text in texts], "document")
            cosines = (queries[owner] * positives).sum(1)
            best = torch.full((len(queries),), -1.0).scatter_reduce(0, owner, cosines, "amax")
            scores = queries @ pool.vectors.T  # (queries, pool)
            for i, (query, texts) in enumerate(zip(batch["query"], batch["positives"], strict=True)):
                for text in (query, *texts):
                    if (place := pool.places.get(text_id(_text(text)))) is not None:
                        scores[i, place] = -1
            parts.append((scores > best[:, None]).sum(1).numpy().astype(np.int32))
        return np.concatenate(parts)

    def _embed(self, texts: Sequence[Mapping[str, str]], side: Any) -> torch.Tensor:
        prompted = (PromptedText(self._template.prompt(side, text["instruction"]), _text(text)) for text in texts)
        return torch.nn.functional.normalize(torch.from_numpy(self._pass.encode(prompted)), dim=-1)


class _Pool(NamedTuple):
    """Distinct documents: the place of each by its text's id, and their unit embeddings, (documents, dim)."""

    places: dict[int, int]
    vectors: torch.Tensor


def filtered(tables: Sequence[TaskTable], keep: PairFilter) -> tuple[list[TaskTable], dict[str, Verdicts]]:
    """The tables, those of task `ir` without the rows that `keep` refuses; and its verdicts by the table's name.

    Raises:
        ValueError: no table is of task `ir`, or a filter's verdicts do not fit its table.
    """
    check_tables(tables)
    result, verdicts = list(tables), {}
    for place, table in enumerate(tables):
        if table.task_type == "ir":
            verdict = keep(table)
            if verdict.keep.shape != (len(table.rows),):
                raise ValueError(
                    f"The filter gave verdicts of shape {verdict.keep.shape} on {table.name}, expected one for each "
                    f"of its {len(table.rows)} rows."
                )
            verdicts[table.name] = verdict
            result[place] = replace(table, rows=table.rows.select(np.flatnonzero(verdict.keep)))
    return result, verdicts


def check_tables(tables: Sequence[TaskTable]) -> None:
    """Raise a `ValueError` if there is nothing to filter."""
    if all(table.task_type != "ir" for table in tables):
        raise ValueError("consistency: it filters rows of task ir, and the training data have none.")


def write_refused(table: TaskTable, verdict: Verdicts, path: Path) -> None:
    """The rows that were left out: their place in the table (from 0), the filter's details, and the row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    places = np.flatnonzero(~verdict.keep)
    with partial.open("w", encoding="utf-8") as file:
        for place, row in zip(places.tolist(), table.rows.select(places), strict=True):
            details = {name: values[place].item() for name, values in verdict.details.items()}
            file.write(json.dumps({"row": place, **details, **row}, ensure_ascii=False) + "\n")
    partial.replace(path)


def _text(text: Mapping[str, str]) -> str:
    return text["prefix"] + text["text"]


def _save_whole(path: Path, values: NDArray[Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.save(file, values)
    partial.replace(path)

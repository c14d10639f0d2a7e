"""Splits that share no text: what must stay together goes to one side as a whole."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import orjson

from codiemb.curation.cleaning.outputs import RejectedFile, RowFile, rejected_path
from codiemb.curation.cleaning.report import CleaningReport
from codiemb.curation.cleaning.rows import Row, RowStream
from codiemb.curation.shingles import normalise
from codiemb.data.examples import NOTES_KEY, PAIR_TASKS, DataError
from codiemb.data.writers import check_output

By = Literal["text", "pair", "query", "document", "group"]
BYS: tuple[By, ...] = get_args(By)

Integers: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"

_LABEL_TASKS = frozenset({"classification", "clustering"})  # their positives are labels, which all splits share


def split(
    stream: RowStream,
    outputs: Mapping[str, Path],
    sizes: Mapping[str, float],
    *,
    by: By = "text",
    group_field: str = "group",
    simplify: bool = False,
    seed: int = 0,
) -> CleaningReport:
    """Deal rows out to files so that no group is in two of them.

    Every data set, that is the rows of one task in one file, is split in the same proportions. Groups are dealt the
    largest first, equal ones in a random order, to the side that they overfill least and that is emptiest for its size.

    Args:
        outputs: where the rows of each side go, by its name.
        sizes: of each side a share between 0 and 1, or a number of rows from 1 on; of one side 0: the rest.
        by: rows belong together that share, directly or through other rows, any text ("text"; queries, positives and
            negatives), a query or positive ("pair"), a query, a positive ("document"), or the `group_field` of their
            notes (`meta_data`). Texts are compared normalised, with and without their prefix.
        simplify: traditional and simplified Chinese characters count as equal.
        seed: of the order in which groups of a size are dealt.
    Raises:
        DataError: bad rows, a row without its group, sizes that do not fit, or a side that stays empty.
    """
    _check_sizes(sizes)
    for path in outputs.values():
        check_output(path)
        if path.resolve() in {file.resolve() for file in stream.files}:
            raise DataError(f"{path}: is an input. Choose another output.")
    groups, sets, names = _groups(stream, by, group_field, simplify)
    sides = _dealt(groups, sets, list(sizes.values()), seed)
    order = list(sizes)
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(order, 0) for name in names}
    with ExitStack() as stack:
        files = [stack.enter_context(RowFile(outputs[name])) for name in order]
        rejected = stack.enter_context(RejectedFile(rejected_path(outputs[order[0]]), stream))
        rejected.add_bad_rows()
        for row in stream:
            side = sides[row.number]
            files[side].write(row)
            counts[names[sets[row.number]]][order[side]] += 1
        for name, file in zip(order, files, strict=True):
            if not file.rows:
                raise DataError(
                    f"{name}: no rows. There are {len(np.unique(groups))} groups by {by}, the largest of "
                    f"{np.bincount(groups).max()} rows: groups are not divided. Choose another --by, or other sizes."
                )
    largest = int(np.bincount(groups).max())
    details = {"groups": int(groups.max()) + 1, "largest_group": largest, "rows_by_data_set": counts}
    written = {str(file.path): file.rows for file in files}
    bad = dict(rejected.counts)
    return CleaningReport(stream.rows + len(stream.rejected), written, bad, rejected.path if bad else None, 0, details)


def _check_sizes(sizes: Mapping[str, float]) -> None:
    rest = [name for name, size in sizes.items() if size == 0]
    share = sum(size for size in sizes.values() if size < 1)
    if len(sizes) < 2 or any(size < 0 for size in sizes.values()) or len(rest) > 1:
        raise DataError(f"sizes {dict(sizes)}: expected two or more, of which at most one is 0, the rest.")
    if any(size > 1 and size != int(size) for size in sizes.values()):
        raise DataError(f"sizes {dict(sizes)}: expected shares below 1 or whole numbers of rows.")
    if share > 1 + 1e-9:
        raise DataError(f"sizes {dict(sizes)}: the shares add up to {share:g}; expected at most 1.")
    if not rest and abs(share - 1) > 1e-9:
        raise DataError(f"sizes {dict(sizes)}: say with 0 which one takes the rest, or give shares that add up to 1.")


def _groups(stream: RowStream, by: By, group_field: str, simplify: bool) -> tuple[Integers, Integers, list[str]]:
    """For each row its group and its data set, both from 0, and the names of the data sets."""
    keys, owners, sets = array("Q"), array("q"), array("q")
    names: dict[str, int] = {}
    for row in stream:
        name = f"{stream.names[row.file]}:{row.example.task_type}"
        sets.append(names.setdefault(name, len(names)))
        for text in _row_keys(row, stream, by, group_field, simplify):
            keys.append(int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little"))
            owners.append(row.number)
    if not names:
        raise DataError("There are no rows to split.")
    owner = np.frombuffer(owners, np.int64)
    _, nodes = np.unique(np.frombuffer(keys, np.uint64), return_inverse=True)
    return _components(owner, nodes.astype(np.int64), len(sets)), np.array(sets, np.int64), list(names)


def _row_keys(row: Row, stream: RowStream, by: By, group_field: str, simplify: bool) -> Iterator[str]:
    example = row.example
    if by == "group":
        notes = row.raw if isinstance(row.raw, dict) else orjson.loads(row.raw)
        value = (notes.get(NOTES_KEY) or {}).get(group_field)
        if value is None:
            raise DataError(f"{stream.place(row)}: {NOTES_KEY}.{group_field}: missing; expected the row's group.")
        yield str(value)
        return
    is_labelled = example.task_type in _LABEL_TASKS
    texts = [example.query] if by != "document" or is_labelled else []
    if by != "query" and not is_labelled:
        texts += example.positives
        if by == "text" or example.task_type in PAIR_TASKS:  # whose negatives are candidates with a low score
            texts += example.negatives
    for text in texts:
        for spelling in {text.full, text.text} if text.prefix else (text.text,):
            yield normalise(spelling, simplify=simplify)


def _components(rows: Integers, nodes: Integers, number_of_rows: int) -> Integers:
    """Rows that share a node, directly or through others, have the same number, counted from 0 by first row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = number_of_rows + int(nodes.max()) + 1
    edges = coo_array((np.ones(len(rows), np.int8), (rows, nodes + number_of_rows)), shape=(size, size))
    _, labels = connected_components(edges.tocsr(), directed=False)
    _, first, inverse = np.unique(labels[:number_of_rows], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _dealt(groups: Integers, sets: Integers, sizes: list[float], seed: int) -> Integers:
    """The side of each row."""
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))
    totals = np.bincount(sets)
    numbers = np.array([size if size < 1 else 0 for size in sizes])
    # Numbers of rows are of all data sets together, each in proportion.
    shares = np.array([size / len(groups) if size >= 1 else share for size, share in zip(sizes, numbers, strict=True)])
    shares[[size == 0 for size in sizes]] = max(0.0, 1 - shares.sum())
    if shares.sum() > 1 + 1e-9:
        raise DataError(f"sizes {sizes}: more rows than the {len(groups)} that there are.")
    left = shares[:, None] * totals[None, :]  # (sides, data sets) rows that each side still lacks
    sides = np.empty(len(groups), np.int64)
    dealt = np.random.default_rng(seed).permutation(len(ends))
    for group in dealt[np.argsort(-np.bincount(groups)[dealt], kind="stable")]:
        members = order[ends[group - 1] if group else 0 : ends[group]]
        need = np.bincount(sets[members], minlength=len(totals))
        too_many = np.maximum(need - left, 0).sum(axis=1)
        too_many[shares == 0] = np.inf
        # Of equals, the side that is emptiest for its size in these data sets, weighted by the group's rows in each.
        lack = (left / np.maximum(shares[:, None] * totals[None, :], 1e-9)) @ need
        lack[too_many > too_many.min() + 1e-9] = -np.inf
        side = int(np.argmax(lack))
        sides[members] = side
        left[side] -= need
    return sides

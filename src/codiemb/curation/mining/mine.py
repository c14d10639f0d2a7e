"""Mining from files to a file: read, embed, search, judge, select, report; a stopped run goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from codiemb.bundled import cache_root
from codiemb.curation.mining.dense import OnProgress
from codiemb.curation.mining.options import MiningOptions, Words
from codiemb.curation.mining.parts import MiningError, Parts
from codiemb.curation.mining.pool import TextPool
from codiemb.curation.mining.queries import MINED_TASKS, Queries
from codiemb.curation.mining.report import Report, write_report
from codiemb.curation.mining.rows import read_rows, write_lines
from codiemb.curation.mining.windows import Miner, WindowMiner
from codiemb.data.documents import Document, read_documents
from codiemb.data.readers import data_files
from codiemb.data.writers import check_output
from codiemb.embedder import LLMEmbeddingModel
from codiemb.extras import require
from codiemb.search.finders import Kind


@dataclass(frozen=True)
class MiningResult:
    """What a run did.

    Attributes:
        report: counts, scores and examples; as `report.json` has them.
        directory: of the report, its page, the plot of scores, and each negative's provenance.
        resumed: rows that a stopped run had done.
    """

    output: Path
    directory: Path
    report: Report
    resumed: int


def mine(
    model: LLMEmbeddingModel,
    data: str | Path | Sequence[str | Path],
    output: Path,
    *,
    model_name: str,
    corpus: Sequence[str | Path] = (),
    text_field: str = "text",
    miners: Sequence[Miner] | None = None,
    cross_encoder: Any = None,
    options: MiningOptions | None = None,
    instruction: str = "",
    words: Words = "characters",
    kind: Kind | Literal["auto"] = "auto",
    cache: Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> MiningResult:
    """Give the rows of `ir` and `reranking` in `data` hard negatives; rows of other tasks go through as they are.

    Args:
        model: judges candidates, and finds them unless `miners` says otherwise.
        data: files of the unified format, or directories of them.
        output: `.jsonl`, `.jsonl.gz` or `.parquet`; beside it comes a directory with the report.
        corpus: files of documents to mine; the positives and negatives of the data if empty.
        text_field: of the corpus.
        miners: whose candidates are merged; the model alone if None.
        cross_encoder: a sentence-transformers `CrossEncoder` that judges instead of the model.
        instruction: of queries that have none of their own.
        words: what BM25 takes for words of Chinese.
        kind: of the index of vectors.
        cache: where texts, vectors and indexes are kept; `mining` in codiemb's cache directory if None.
        overwrite: replace an output, and drop what a run with other settings left.
        on_progress: called with (stage, done since the last call, of how many).
    Raises:
        MiningError: the output is there, or being written, or a stopped run had other settings, or nothing to mine.
        DataError: bad rows or documents.
        ModuleNotFoundError: an extra is not installed.
    """
    options = options or MiningOptions()
    miners = miners or [Miner(model_name, model)]
    files = _checked(data, output, miners, cross_encoder, options, words, overwrite)
    root = cache or cache_root() / "mining"
    directory = report_directory(output)
    with ExitStack() as stack:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = output.with_name(f".{output.name}.lock")
        try:
            stack.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            raise MiningError(f"{output}: another run is writing it. Wait for its end or choose another.") from None
        stack.callback(lock.unlink, missing_ok=True)
        queries = Queries(instruction)
        pool = _pool(root, files, queries, corpus, text_field, options)
        if not queries.mined_rows:
            raise MiningError(f"There are no rows of {' or '.join(MINED_TASKS)} to mine for.")
        if not pool.counts.candidates:
            raise MiningError("There are no documents to mine: all are blank or have control characters.")
        run = WindowMiner(
            model, model_name, miners, cross_encoder, pool, queries, options, words, kind, root, on_progress
        )
        parts = Parts(directory / "parts", run.settings(), overwrite)
        resumed = run.fill(parts, files)
        about = {**run.settings(), **_what_was_read(queries, pool, bool(corpus)), "chance": run.chance}
        report = write_report(directory, parts.records, about, pool, queries, options)
        write_lines(parts.rows(), output)
        parts.remove()
    return MiningResult(output, directory, report, resumed)


def report_directory(output: Path) -> Path:
    """Where the report of an output goes: `mined.mining` beside `mined.jsonl`."""
    name = output.name.removesuffix(".gz")
    return output.with_name(f"{name.rpartition('.')[0]}.mining")


def _what_was_read(queries: Queries, pool: TextPool, has_corpus: bool) -> dict[str, Any]:
    return {
        "rows": queries.rows,
        "mined_rows": queries.mined_rows,
        "queries": len(queries),
        "corpus": "given" if has_corpus else "positives and negatives of the data",
        "documents": pool.counts.candidates,
        "duplicate_documents": pool.counts.duplicates,
        "unusable_documents": pool.counts.unusable,
    }


def _checked(
    data: str | Path | Sequence[str | Path],
    output: Path,
    miners: Sequence[Miner],
    cross_encoder: Any,
    options: MiningOptions,
    words: Words,
    overwrite: bool,
) -> list[Path]:
    """The data files, after all that can be refused before any work."""
    check_output(output)
    files = data_files([data] if isinstance(data, (str, Path)) else data)
    if output.resolve() in [path.resolve() for path in files]:
        raise MiningError(f"{output}: is one of the data files. Choose another output.")
    if output.exists() and not overwrite:
        raise MiningError(f"{output}: is there already. Choose another name, or replace it (--overwrite).")
    names = [miner.name for miner in miners]
    if len(set(names)) < len(names):
        raise MiningError(f"Two miners have one name: {', '.join(names)}. Give each once.")
    if options.relabel_above is not None and cross_encoder is None:
        raise MiningError("relabel_above is for a cross-encoder, which is not given (--cross-encoder MODEL).")
    needed = ["faiss", "matplotlib.figure"]
    if any(miner.model is None for miner in miners):
        needed += ["bm25s", "jieba"] if words == "jieba" else ["bm25s"]
    for module in needed:
        require(module, "curation")  # rather now than after hours of embedding
    return files


def _pool(
    root: Path,
    files: list[Path],
    queries: Queries,
    corpus: Sequence[str | Path],
    text_field: str,
    options: MiningOptions,
) -> TextPool:
    own = queries.scan(read_rows(files, options.answer_field), with_negatives=not corpus)
    if not corpus:
        return TextPool.build(root, own, ())
    documents = (Document(id_, text, {}) for id_, text, _ in read_documents(corpus, text_field=text_field))
    return TextPool.build(root, documents, own)

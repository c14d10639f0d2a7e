"""`codiemb synthesize`: training data written by a language model for documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

if TYPE_CHECKING:
    from codiemb.curation.synthesis import SynthesisRecipe, SynthesisReport


class _RunByDefault(TyperGroup):
    """`codiemb synthesize DOCS` is `codiemb synthesize run DOCS`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


synthesize_app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Write training data for documents with a language model behind any OpenAI-compatible API.\n\n"
    "`codiemb synthesize DOCS... -o OUT` runs it; `run --help` lists the options.",
)


@synthesize_app.command("run")
def run_command(
    documents: Annotated[
        list[Path] | None, typer.Argument(metavar="DOCS", help=".jsonl, .json, .parquet, .txt, .gz; BEIR folders.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Directory of the data, report and journal.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="YAML with everything; the other options change single keys of it.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Of the API, with /v1: http://localhost:11434/v1, ...")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The language model's name there.")] = None,
    key_variable: Annotated[
        str | None, typer.Option("--key-variable", help="Environment variable with the key (default: OPENAI_API_KEY).")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Of documents, prompts and data: zh (default) or en.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option("--templates", help="Your prompts, from `codiemb synthesize templates`.")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="The field or column with the text (default: text).")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Documents to write for, drawn by seed.")] = None,
    input_price: Annotated[
        float | None, typer.Option("--input-price", min=0, help="Of a million prompt tokens.")
    ] = None,
    output_price: Annotated[
        float | None, typer.Option("--output-price", min=0, help="Of a million tokens of answers.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.SUB=VALUE", help="Change any key, such as queries.per_document=4."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print prompts and an estimate of tokens and cost; ask nothing.")
    ] = False,
    prompts: Annotated[int, typer.Option("--prompts", min=0, help="With --dry-run: to print of each kind.")] = 1,
) -> None:
    """Have queries, hard negatives, scored pairs and paraphrases written for DOCS, and keep what passes the gates.

    Stopped, the same command goes on without paying twice; all answers are in OUT/journal.jsonl.

    \b
    codiemb synthesize corpus.jsonl -o data/ --base-url http://localhost:8080/v1 --model qwen3 --dry-run
    codiemb synthesize corpus.jsonl -o data/ --base-url https://api.openai.com/v1 --model gpt-4.1-mini --limit 1000
    codiemb synthesize --recipe synthesis.yaml --set api.concurrency=16
    """
    chosen = _recipe(
        recipe,
        {
            "documents": [str(path) for path in documents or ()] or None,
            "output": output and str(output),
            "api.base_url": base_url,
            "api.model": model,
            "api.key_variable": key_variable,
            "language": language,
            "templates": templates and str(templates),
            "text_field": text_field,
            "limit": limit,
            "api.input_price": input_price,
            "api.output_price": output_price,
        },
        changes or [],
    )
    if dry_run:
        _print_preview(chosen, prompts)
        return
    from transformers.utils import logging as transformers_logging

    from codiemb.curation.synthesis import synthesize

    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    try:
        report = synthesize(chosen, console=console)
    except KeyboardInterrupt:
        note = f"stopped: the answers so far are in {chosen.output}; the same command goes on from there"
        console.print(note, highlight=False, markup=False, soft_wrap=True)
        raise
    _print_report(report)


@synthesize_app.command("templates")
def templates_command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to copy them to.")],
) -> None:
    """Copy the shipped prompts, for you to edit and give as --templates DIR.

    \b
    codiemb synthesize templates -o prompts/
    """
    from codiemb.curation.synthesis.templates import copy_templates

    for path in copy_templates(output):
        print(path)


def _recipe(path: Path | None, given: dict[str, Any], changes: list[str]) -> SynthesisRecipe:
    from codiemb.curation.synthesis import SynthesisRecipe
    from codiemb.training.sections import apply_override, parse_section, read_content

    content = read_content(SynthesisRecipe, path) if path else {}
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        if value is not None:
            (content.setdefault(section, {}) if section else content)[name] = value
    for change in changes:
        apply_override(content, change)
    return parse_section(SynthesisRecipe, content, str(path or "options"))


def _print_preview(recipe: SynthesisRecipe, prompts: int) -> None:
    from codiemb.curation.synthesis.preview import as_text, preview

    found = preview(recipe, prompts)
    for request in found.prompts:
        print(f"--- {request.name}\n{as_text(request)}\n")
    counts = ", ".join(f"{count:,} for {kind}" for kind, count in found.requests.items())
    print(f"{found.documents:,} documents, {sum(found.requests.values()):,} requests: {counts}")
    tokens = f"about {found.tokens.input_tokens:,} tokens of prompts"
    if recipe.api.max_tokens is not None:
        tokens += f", at most {found.tokens.output_tokens:,} of answers"
    print(f"{tokens}, where every first answer can be used")
    if found.cost is not None:
        print(f"cost at most {found.cost:,.4f}")
    if found.minutes is not None:
        print(f"at least {found.minutes:,.1f} minutes by the rate limits")
    if recipe.brainstorm and recipe.queries:
        print("The model's own tasks are not known yet: queries are shown with those of the recipe or the general one.")


def _print_report(report: SynthesisReport) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for path, rows in report.files.items():
        console.print(f"{rows:,} rows in {path}", markup=False)
    for kind, counts in report.content["kinds"].items():
        reasons = ", ".join(f"{gate} {count:,}" for gate, count in counts["reasons"].items())
        console.print(
            f"{kind}: {counts['kept']:,} kept, {counts['rejected']:,} rejected{reasons and f' ({reasons})'}",
            markup=False,
        )
    tokens = report.content["tokens"]
    spent = f"{tokens['input_tokens']:,} tokens of prompts, {tokens['output_tokens']:,} of answers"
    cost = "" if report.cost is None else f", cost {report.cost:,.4f}"
    console.print(f"{spent}{cost}; {report.asked:,} answers in this run", markup=False)
    console.print(f"report: {report.output / 'report.md'}", markup=False)

"""`codiemb geometry`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from codiemb.cli._models import Compute, Device, MaxLength, Template, check_template, load_model, text_progress


def geometry_command(
    models: list[str] = typer.Argument(help="Model directories, hub ids, or 'bundled'."),
    data: list[Path] = typer.Option(
        ..., "--data", help="BEIR folder, scored pairs (.tsv, .csv), unified file, or a folder of these; repeatable."
    ),
    output: Path = typer.Option(
        None, "--output", "-o", help="Directory for geometry.json, geometry.html and the plots as PNG."
    ),
    max_texts: int = typer.Option(5000, "--max-texts", min=12, help="Texts of each data set, those of pairs first."),
    max_pairs: int = typer.Option(10_000, "--max-pairs", min=1, help="Positive and random pairs of each data set."),
    positive_from: float = typer.Option(
        0.8, "--positive-from", min=0.0, max=1.0, help="Pairs count as positive from here in the range of scores."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Chooses texts and pairs."),
    device: Device = None,
    compute: Compute = "fp32",  # the rounding of bf16 reaches the smallest singular values
    max_length: MaxLength = None,
    template: Template = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Show how MODELS place texts on the sphere: alignment, uniformity, isotropy, hubs, and what truncation keeps.

    \b
    codiemb geometry bundled --data sts.tsv
    codiemb geometry bundled runs/mine --data sts.tsv --data nfcorpus/ --output runs/geometry
    """
    from codiemb.evaluation.clouds import sample_cloud
    from codiemb.evaluation.discovery import discover
    from codiemb.evaluation.geometry_report import (
        DataGeometry,
        ModelGeometry,
        charts,
        file_name,
        geometry_page,
        geometry_table,
        measure_model,
    )
    from codiemb.extras import require
    from codiemb.json_files import to_json, write_json

    check_template(template)
    if output is not None:
        require("matplotlib", "plots")  # now, not after the work
        output.mkdir(parents=True, exist_ok=True)
    choose = partial(sample_cloud, max_texts=max_texts, max_pairs=max_pairs, positive_from=positive_from, seed=seed)
    clouds = [choose(task) for task in discover(data)]
    measured: list[list[ModelGeometry]] = [[] for _ in clouds]
    console = Console(stderr=True)
    with text_progress(console) as progress:
        for name in models:
            model = load_model(name, device=device, compute=compute, max_length=max_length, template=template)
            for cloud, found in zip(clouds, measured, strict=True):
                bar = progress.add_task(f"{name}: {cloud.name}", total=len(cloud.texts))
                advance = partial(progress.advance, bar)
                found.append(
                    measure_model(model.embedding_pass, model.template, cloud, name, seed=seed, on_progress=advance)
                )
    results = [DataGeometry(cloud.name, cloud.counts, found) for cloud, found in zip(clouds, measured, strict=True)]
    content = [one.to_dict() for one in results]
    if as_json:
        print(to_json(content), end="")
    else:
        for one in results:
            Console().print(geometry_table(one))
    if output is not None:
        write_json(output / "geometry.json", content)
        (output / "geometry.html").write_text(geometry_page(results), encoding="utf-8")
        for one in results:
            for kind, png in charts(one).items():
                (output / file_name(one.data, kind)).write_bytes(png)
        console.print(f"written to {output}", highlight=False, soft_wrap=True)

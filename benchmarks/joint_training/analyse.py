"""Tables, intervals and plots of what run.py left.

    python benchmarks/joint_training/analyse.py OUTPUT [--config FILE] [--images docs/images] [--reference ours]

Prints Markdown: each arm's test scores as mean and spread over seeds, and differences to `ours` with intervals from a
paired bootstrap over the test items, the seeds of an arm averaged in each resample. Writes results.json to OUTPUT and
two plots. Of an unfinished study, an arm has the best of the learning rates that were tried.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from run import FIRST_SEED, HERE, TRAINED, Study, Trial
from scipy.stats import rankdata

RESAMPLES = 1000
SUMMARY = ("sts", "ir", "mean")
_GOLD = "/gold"  # ends the name of the scores that people gave


@dataclass
class Arm:
    """The trials of one arm at its chosen learning rate."""

    name: str
    rate: float | None
    scores: list[dict[str, dict[str, float]]]
    items: list[dict[str, np.ndarray]]
    runs: list[dict[str, Any]]

    def mean(self, task: str, part: str = "test") -> float:
        """Over the seeds."""
        return float(np.mean([scores[part][task] for scores in self.scores]))

    def spread(self, task: str) -> float | None:
        """Standard deviation over the seeds, None for one seed."""
        values = [scores["test"][task] for scores in self.scores]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def read_arms(study: Study) -> dict[str, Arm]:
    """Every arm of which a seed is finished at the best of its rates that were tried."""
    arms = {}
    for name, settings in study.arms.items():
        trains = settings["engine"] in TRAINED
        rate = study.rate(name, so_far=True) if trains else None
        if trains and rate is None:
            continue
        trials = [Trial(name, FIRST_SEED + i, rate) for i in range(settings.get("seeds", 1))]
        folders = [study.output / trial.folder for trial in trials if study.done(trial)]
        if folders:
            arms[name] = Arm(
                name,
                rate,
                [json.loads((folder / "scores.json").read_text()) for folder in folders],
                [dict(np.load(folder / "items.npz")) for folder in folders],
                [json.loads((folder / "run.json").read_text()) for folder in folders],
            )
    return arms


class Bootstrap:
    """Resamples of the test items, the same for all arms.

    Args:
        items: of any trial.
    """

    def __init__(self, items: Mapping[str, np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.gold = {name.removesuffix(_GOLD): values for name, values in items.items() if name.endswith(_GOLD)}
        sizes = {name: len(values) for name, values in items.items() if not name.endswith(_GOLD)}
        self.drawn = {name: random.integers(0, size, (resamples, size)) for name, size in sizes.items()}
        self._gold_ranks = {
            name: np.stack([rankdata(values[rows]) for rows in self.drawn[name]]) for name, values in self.gold.items()
        }
        self._of: dict[str, dict[str, np.ndarray]] = {}

    def scores(self, arm: Arm) -> dict[str, np.ndarray]:
        """`sts`, `ir` and `mean` of the arm on each resample, (resamples,), its seeds averaged."""
        if arm.name not in self._of:
            values = {name: np.mean([self._task(name, i) for i in arm.items], axis=0) for name in self.drawn}
            sts = np.mean([values[name] for name in self.gold], axis=0)
            ir = np.mean([values[name] for name in values if name not in self.gold], axis=0)
            self._of[arm.name] = {"sts": sts, "ir": ir, "mean": (sts + ir) / 2}
        return self._of[arm.name]

    def _task(self, name: str, items: Mapping[str, np.ndarray]) -> np.ndarray:
        drawn = items[name][self.drawn[name]]
        if name not in self.gold:
            return 100 * drawn.mean(axis=1)
        ranks = rankdata(drawn, axis=1)
        return np.array([100 * np.corrcoef(a, b)[0, 1] for a, b in zip(ranks, self._gold_ranks[name], strict=True)])

    def difference(self, first: Arm, second: Arm, score: str) -> tuple[float, float, float]:
        """First minus second, with the bounds of its 95 % interval."""
        difference = self.scores(first)[score] - self.scores(second)[score]
        low, high = np.quantile(difference, [0.025, 0.975])
        return first.mean(score) - second.mean(score), float(low), float(high)


def table(arms: Mapping[str, Arm]) -> str:
    """Markdown: an arm a line."""
    tasks = list(dict.fromkeys(task for arm in arms.values() for task in arm.scores[0]["test"] if task not in SUMMARY))
    head = ["arm", "rate", "seeds", "steps", "1000 tokens", "minutes", *tasks, *(f"**{name}**" for name in SUMMARY)]
    lines = [" | ".join(["", *head, ""]).strip(), "|".join(["", "---", *["---:"] * (len(head) - 1), ""])]
    for arm in arms.values():
        run = arm.runs[0]
        cells = [arm.name, f"{arm.rate:g}" if arm.rate else "", str(len(arm.scores)), str(run["steps"])]
        cells += [f"{run['tokens'] / 1000:.0f}", f"{np.mean([r['training_seconds'] for r in arm.runs]) / 60:.1f}"]
        cells += [f"{arm.mean(task):.2f}" if task in arm.scores[0]["test"] else "" for task in tasks]
        for name in SUMMARY:
            spread = arm.spread(name)
            cells.append(f"{arm.mean(name):.2f}" + (f" ± {spread:.2f}" if spread is not None else ""))
        lines.append(" | ".join(["", *cells, ""]).strip())
    return "\n".join(lines)


def differences(arms: Mapping[str, Arm], bootstrap: Bootstrap, reference: str) -> str:
    """Markdown: `reference` minus each other arm."""
    lines = [f"| {reference} minus | sts | ir | mean |", "|---|---:|---:|---:|"]
    for arm in arms.values():
        if arm.name != reference:
            found = [bootstrap.difference(arms[reference], arm, name) for name in SUMMARY]
            cells = [f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" for value, low, high in found]
            lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


FRONTS: Mapping[str, Sequence[str]] = {
    "codiemb": ("sts-only", "ours-ir-0.1", "ours", "ours-ir-0.5", "ours-ir-0.75", "ir-only"),
    "sentence-transformers": ("st-ir-0", "st-ir-0.25", "st-ir-0.5", "st-ir-0.75", "st-ir-1"),
}


def plot(study: Study, arms: Mapping[str, Arm], images: Path, suffix: str) -> None:
    """IR against STS: a point for each arm and seed, and the two fronts over the share of retrieval.

    Arms that are another arm with a change, and have no learning rates of their own, are grey and named beside their
    point.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {"xlabel": "STS: mean Spearman correlation x 100", "ylabel": "IR: mean nDCG@10 x 100"}
    figure, axes = plt.subplots(figsize=(10, 7), layout="constrained")
    strong_and_pale = plt.get_cmap("tab20").colors
    colours = iter(strong_and_pale[::2] + strong_and_pale[1::2])
    for arm in arms.values():
        if study.arms[arm.name]["engine"] == "rescore":  # read with other prompts than the rest
            continue
        points = [(scores["test"]["sts"], scores["test"]["ir"]) for scores in arm.scores]
        if "rate_of" in study.arms[arm.name]:
            axes.scatter(*zip(*points, strict=True), color="0.6", s=18)
            axes.annotate(arm.name, points[0], fontsize=7, color="0.35", xytext=(4, 3), textcoords="offset points")
            continue
        marker = "*" if arm.name == "base" else "s" if arm.name.startswith("st-") else "o"
        size = 140 if arm.name == "base" else 42
        axes.scatter(*zip(*points, strict=True), color=next(colours), marker=marker, s=size, label=arm.name)
    axes.set(**labels)
    axes.margins(x=0.12)  # for the names
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(images / f"joint-training-arms{suffix}.png", dpi=150)
    if all(len([name for name in names if name in arms]) > 1 for names in FRONTS.values()):
        figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
        for label, names in FRONTS.items():
            present = [arms[name] for name in names if name in arms]
            axes.plot([a.mean("sts") for a in present], [a.mean("ir") for a in present], marker="o", label=label)
            for arm in present:
                at = arm.mean("sts"), arm.mean("ir")
                axes.annotate(arm.name, at, fontsize=7, xytext=(4, 4), textcoords="offset points")
        axes.set(**labels)
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(images / f"joint-training-fronts{suffix}.png", dpi=150)


def rates(study: Study) -> str:
    """Markdown: the validation mean of each learning rate."""
    lines = ["| arm | learning rate: validation mean |", "|---|---|"]
    for name, arm in study.arms.items():
        tried = [Trial(name, FIRST_SEED, rate) for rate in arm.get("rates", [])]
        if found := [f"{trial.rate:g}: {study.validation(trial):.2f}" for trial in tried if study.done(trial)]:
            lines.append(f"| {name} | {', '.join(found)} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--config", type=Path, default=HERE / "arms.yaml", help="what run.py was given")
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--reference", default="ours", help="the arm that others are compared with")
    arguments = parser.parse_args()
    study = Study(arguments.output, config=arguments.config)
    arms = read_arms(study)
    if not arms:
        raise SystemExit(f"analyse.py: no finished arm in {arguments.output}; run run.py first.")
    print(table(arms), end="\n\n")
    print(rates(study), end="\n\n")
    results: dict[str, Any] = {
        name: {"rate": arm.rate, "runs": arm.runs, "scores": arm.scores} for name, arm in arms.items()
    }
    if arguments.reference in arms:
        bootstrap = Bootstrap(arms[arguments.reference].items[0])
        print(differences(arms, bootstrap, arguments.reference))
        for name, arm in arms.items():
            if name != arguments.reference:
                results[name]["reference_minus_this"] = {
                    score: bootstrap.difference(arms[arguments.reference], arm, score) for score in SUMMARY
                }
    arguments.images.mkdir(parents=True, exist_ok=True)
    plot(study, arms, arguments.images, arguments.config.stem.removeprefix("arms"))
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Tables, intervals and plots of what run.py left.

    python benchmarks/joint_training/analyse.py OUTPUT [--config FILE] [--images docs/images] [--reference ours]

Prints Markdown, a table for each group of arms: test scores as mean and spread over seeds, and what an arm has more
than `ours`, over the seeds of both, with intervals from a paired bootstrap over the test items, the seeds averaged in
each resample; then the scores on every set. Writes results.json to OUTPUT and two plots. Of an unfinished study, an arm
has the best of the learning rates that were tried.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from outcome import GOLD, Outcome
from run import FIRST_SEED, HERE, TRAINED, Study, Trial
from scipy.stats import rankdata

RESAMPLES = 1000
SUMMARY = ("sts", "ir", "mean")
HEADS = ("STS", "IR", "mean")
Difference = tuple[float, float, float]  # the value, and the bounds of its 95 % interval
COLOURED, GREY = ("main", "fusion"), "ablations"  # groups of the plot; `share` has one of its own


@dataclass(frozen=True)
class Arm:
    """The trials of one arm at its chosen learning rate, by seed."""

    name: str
    rate: float | None
    trials: Mapping[int, Outcome]
    runs: Sequence[Mapping[str, Any]]
    seeded: bool = True  # False for a model that nothing was done to

    def mean(self, task: str, part: str = "test") -> float:
        """Over the seeds."""
        return float(np.mean([trial.scores[part][task] for trial in self.trials.values()]))

    def spread(self, task: str) -> float | None:
        """Standard deviation over the seeds, None for one seed."""
        values = [trial.scores["test"][task] for trial in self.trials.values()]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def beside(self, other: Arm) -> Arm:
        """This arm with the seeds that `other` has too: with the same seed, two arms begin with the same rows."""
        if not (self.seeded and other.seeded):
            return self
        return replace(self, trials={seed: trial for seed, trial in self.trials.items() if seed in other.trials})


def read_arms(study: Study) -> dict[str, Arm]:
    """Every arm of which a seed is finished at the best of its rates that were tried."""
    arms = {}
    for name, settings in study.arms.items():
        trains = settings["engine"] in TRAINED
        rate = study.rate(name, so_far=True) if trains else None
        if trains and rate is None:
            continue
        trials = [Trial(name, seed, rate) for seed in study.seeds_of(name)]
        done = {trial.seed: study.output / trial.folder for trial in trials if study.done(trial)}
        if done:
            outcomes = {seed: Outcome.read(folder) for seed, folder in done.items()}
            runs = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in done.values()]
            arms[name] = Arm(name, rate, outcomes, runs, seeded=settings["engine"] != "none")
    return arms


class Bootstrap:
    """Resamples of the test items, the same for all arms.

    Args:
        items: of any trial.
    """

    def __init__(self, items: Mapping[str, np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.gold = {name.removesuffix(GOLD): values for name, values in items.items() if name.endswith(GOLD)}
        sizes = {name: len(values) for name, values in items.items() if not name.endswith(GOLD)}
        self.drawn = {name: random.integers(0, size, (resamples, size)) for name, size in sizes.items()}
        self._gold_ranks = {
            name: np.stack([rankdata(values[rows]) for rows in self.drawn[name]]) for name, values in self.gold.items()
        }
        self._of: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def scores(self, arm: Arm) -> dict[str, np.ndarray]:
        """`sts`, `ir` and `mean` of the arm on each resample, (resamples,), its seeds averaged."""
        for seed, trial in arm.trials.items():
            if (arm.name, seed) not in self._of:
                values = {name: self._task(name, trial.items) for name in self.drawn}
                sts = np.mean([values[name] for name in self.gold], axis=0)
                ir = np.mean([values[name] for name in values if name not in self.gold], axis=0)
                self._of[arm.name, seed] = {"sts": sts, "ir": ir, "mean": (sts + ir) / 2}
        return {name: np.mean([self._of[arm.name, seed][name] for seed in arm.trials], axis=0) for name in SUMMARY}

    def _task(self, name: str, items: Mapping[str, np.ndarray]) -> np.ndarray:
        drawn = items[name][self.drawn[name]]
        if name not in self.gold:
            return 100 * drawn.mean(axis=1)
        ranks = rankdata(drawn, axis=1)
        return np.array([100 * np.corrcoef(a, b)[0, 1] for a, b in zip(ranks, self._gold_ranks[name], strict=True)])

    def difference(self, first: Arm, second: Arm, score: str) -> Difference:
        """First minus second over the seeds that both have, with the bounds of its 95 % interval."""
        first, second = first.beside(second), second.beside(first)
        difference = self.scores(first)[score] - self.scores(second)[score]
        low, high = np.quantile(difference, [0.025, 0.975])
        return first.mean(score) - second.mean(score), float(low), float(high)


def table(arms: Sequence[Arm], differences: Mapping[str, Mapping[str, Difference]], reference: str) -> str:
    """Markdown: an arm a line, with what it has more than `reference`.

    Args:
        differences: by arm and score.
    """
    rows = []
    for arm in arms:
        cells = [arm.name, f"{arm.rate:g}" if arm.rate else "", str(len(arm.trials))]
        for name in SUMMARY:
            spread = arm.spread(name)
            cells.append(f"{arm.mean(name):.1f}" + (f" ± {spread:.1f}" if spread is not None else ""))
        for value, low, high in differences[arm.name].values():
            cells.append(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]" if arm.name != reference else "")
        rows.append(cells)
    return _markdown(["arm", "rate", "seeds", *HEADS, *(f"{name} - {reference}" for name in HEADS)], rows)


def every_set(arms: Sequence[Arm]) -> str:
    """Markdown: the score of each arm on each set, what it read, and the training time of its fastest seed."""
    tests = {arm.name: [trial.scores["test"] for trial in arm.trials.values()] for arm in arms}
    tasks = list(dict.fromkeys(task for of_arm in tests.values() for task in of_arm[0] if task not in SUMMARY))
    rows = []
    for arm in arms:
        run = min(arm.runs, key=lambda run: run["training_seconds"])
        read = [str(run["steps"]), f"{run['tokens'] / 1000:.0f}", f"{run['training_seconds'] / 60:.1f}"]
        scores = [f"{arm.mean(task):.1f}" if all(task in test for test in tests[arm.name]) else "" for task in tasks]
        rows.append([arm.name, *(read if run["steps"] else [""] * len(read)), *scores])
    return _markdown(["arm", "steps", "1000 tokens", "minutes", *tasks], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column holds names."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


FRONTS: Mapping[str, Sequence[str]] = {
    "codiemb": ("sts-only", "ours-ir-0.1", "ours", "ours-ir-0.5", "ours-ir-0.75", "ir-only"),
    "sentence-transformers": ("st-ir-0", "st-proportional", "st-ir-0.25", "st-ir-0.5", "st-ir-0.75", "st-ir-1"),
}


def plot(study: Study, arms: Mapping[str, Arm], images: Path, suffix: str) -> None:
    """IR against STS: a point for each arm and seed, and the two fronts over the share of retrieval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {"xlabel": "STS: mean Spearman correlation x 100", "ylabel": "IR: mean nDCG@10 x 100"}
    figure, axes = plt.subplots(figsize=(10, 7), layout="constrained")
    strong_and_pale = plt.get_cmap("tab20").colors
    colours = iter(strong_and_pale[::2] + strong_and_pale[1::2])
    for group in (*COLOURED, GREY):
        for arm in (arms[name] for name in study.groups[group] if name in arms):
            tests = [trial.scores["test"] for trial in arm.trials.values()]
            points = [(test["sts"], test["ir"]) for test in tests]
            if group == GREY:
                axes.scatter(*zip(*points, strict=True), color="0.6", s=18)
                axes.annotate(arm.name, points[0], fontsize=7, color="0.35", xytext=(4, 3), textcoords="offset points")
                continue
            marker = "*" if arm.name == "base" else "s" if arm.name.startswith("st-") else "o"
            size = 140 if arm.name == "base" else 42
            axes.scatter(*zip(*points, strict=True), color=next(colours), marker=marker, s=size, label=arm.name)
    axes.set(**labels)
    axes.margins(x=0.12)  # for the names
    figure.legend(fontsize=8, loc="outside right upper")
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
    if arguments.reference not in arms:
        raise SystemExit(f"analyse.py: the arm {arguments.reference} that others are compared with is not finished.")
    reference = arms[arguments.reference]
    bootstrap = Bootstrap(next(iter(reference.trials.values())).items)
    differences = {
        arm.name: {score: bootstrap.difference(arm, reference, score) for score in SUMMARY} for arm in arms.values()
    }
    for group, names in study.groups.items():
        if members := [arms[name] for name in names if name in arms]:
            print(f"### {group}\n\n{table(members, differences, reference.name)}\n")
    print(f"### every set\n\n{every_set(list(arms.values()))}\n\n### learning rates\n\n{rates(study)}")
    results: dict[str, Any] = {
        arm.name: {
            "rate": arm.rate,
            "runs": arm.runs,
            "scores": {seed: trial.scores for seed, trial in arm.trials.items()},
            "difference": differences[arm.name],
        }
        for arm in arms.values()
    }
    arguments.images.mkdir(parents=True, exist_ok=True)
    plot(study, arms, arguments.images, arguments.config.stem.removeprefix("arms"))
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

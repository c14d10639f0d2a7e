"""Train and score the arms of the study; what is finished is left alone, so an interrupted study goes on.

    python benchmarks/joint_training/run.py DATA OUTPUT [--arms ours st-proportional] [--workers 2] [--list]

DATA is the folder of public sets. OUTPUT gets data/, and a folder for each arm, seed and learning rate with
scores.json, items.npz, run.json and the model, which fusion reads. The rate of an arm is chosen on the validation part
with the first seed; the test part is scored in the same pass and read by analyse.py alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
FIRST_SEED = 1


@dataclass(frozen=True)
class Trial:
    """One model: an arm, a seed and a learning rate (None where nothing is trained)."""

    arm: str
    seed: int
    rate: float | None

    @property
    def folder(self) -> str:
        """Its place in the output directory."""
        rate = f"-lr{self.rate:g}" if self.rate else ""
        return f"{self.arm}/seed{self.seed}{rate}"


class Study:
    """What is there, and what comes next."""

    def __init__(self, output: Path, arms: list[str] | None = None) -> None:
        self.output = output
        self.config: dict[str, Any] = yaml.safe_load((HERE / "arms.yaml").read_text(encoding="utf-8"))
        self.arms: dict[str, dict[str, Any]] = self.config["arms"]
        if unknown := set(arms or ()) - set(self.arms):
            raise SystemExit(f"run.py: there is no arm {sorted(unknown)[0]!r}; arms: {', '.join(self.arms)}")
        self.wanted = arms or list(self.arms)

    def done(self, trial: Trial) -> bool:
        """Whether it was scored."""
        return (self.output / trial.folder / "run.json").is_file()

    def validation(self, trial: Trial) -> float:
        """The mean that rates are chosen by."""
        scores = json.loads((self.output / trial.folder / "scores.json").read_text(encoding="utf-8"))
        return scores["validation"]["mean"]

    def rate(self, name: str) -> float | None:
        """The chosen learning rate of an arm, None before all were tried."""
        arm = self.arms[name]
        if "rate_of" in arm:
            return self.rate(arm["rate_of"])
        trials = [Trial(name, FIRST_SEED, rate) for rate in arm["rates"]]
        if not all(self.done(trial) for trial in trials):
            return None
        return max(trials, key=self.validation).rate

    def trials(self, name: str) -> Iterator[tuple[Trial, list[Path]]]:
        """The trials of an arm that can be run now, with the models they are made of."""
        arm = self.arms[name]
        seeds = range(FIRST_SEED, FIRST_SEED + arm.get("seeds", 1))
        if arm["engine"] == "none":
            yield Trial(name, FIRST_SEED, None), []
        elif arm["engine"] == "fuse":
            if all(self.rate(part) for part in arm["of"]):
                for seed in seeds:
                    parts = [Trial(part, seed, self.rate(part)) for part in arm["of"]]
                    if all(self.done(part) for part in parts):
                        yield Trial(name, seed, None), [self.output / part.folder / "model" for part in parts]
        else:
            for rate in arm.get("rates", []):
                yield Trial(name, FIRST_SEED, rate), []
            if chosen := self.rate(name):
                for seed in seeds:
                    yield Trial(name, seed, chosen), []

    def next(self, running: set[Trial]) -> tuple[Trial, list[Path]] | None:
        """The first trial that is neither done nor running."""
        for name in self.wanted:
            for trial, parts in self.trials(name):
                if trial not in running and not self.done(trial):
                    return trial, parts
        return None


def carry_out(study: Study, trial: Trial, parts: list[Path]) -> None:
    """Train or fuse, score, and write the folder's files; in a process of its own."""
    import engines
    import scoring

    from codiemb.prompts import TEMPLATES, InstructionTemplate

    config, arm = study.config, study.arms[trial.arm]
    data, folder = study.output / "data", study.output / trial.folder
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    started = time.monotonic()
    spent: dict[str, Any] = {"steps": 0, "tokens": 0, "training_seconds": 0.0}
    if arm["engine"] == "fuse":
        spent = engines.fuse(arm, parts, model)
    elif arm["engine"] != "none":
        engine = {"codiemb": engines.train_codiemb, "sentence-transformers": engines.train_sentence_transformers}
        assert trial.rate is not None
        train = engine[arm["engine"]]
        spent = train(arm, config[arm["engine"]], data, model, trial.seed, trial.rate, config["budget"])
    items = json.loads((data / "items.json").read_text(encoding="utf-8"))
    name = str(model) if arm["engine"] != "none" else "bundled"
    outcome = scoring.Scorer(items, TEMPLATES["e5"], instructed=False, pool_prompt=True).score(name)
    if trial.arm in ("ours", "ours-instructed") and trial.seed == FIRST_SEED:
        template = InstructionTemplate(query="query: {instruction} ", document="passage: ")
        instructed = scoring.Scorer(items, template, instructed=True, pool_prompt=False).score(name)
        (folder / "scores-instructed.json").write_text(json.dumps(instructed.scores, indent=2) + "\n")
    outcome.save(folder)
    spent |= {
        "arm": trial.arm,
        "seed": trial.seed,
        "learning_rate": trial.rate,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
        "seconds": time.monotonic() - started,
        "processor": platform.processor() or platform.machine(),
    }
    (folder / "run.json").write_text(json.dumps(spent, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--arms", nargs="+", help="only these, in this order")
    parser.add_argument("--workers", type=int, default=2, help="trials at once, each on its share of the cores")
    parser.add_argument("--list", action="store_true", help="print what is done and what comes next")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    study = Study(arguments.output, arguments.arms)
    if arguments.trial:
        given = json.loads(arguments.trial)
        trial = Trial(given["arm"], given["seed"], given["rate"])
        carry_out(study, trial, [Path(part) for part in given["parts"]])
        return
    if arguments.list:
        for name in study.wanted:
            for trial, _ in study.trials(name):
                print(f"{'done' if study.done(trial) else 'open'}  {trial.folder}")
        return
    import study_data

    study_data.prepare(arguments.data, arguments.output / "data")
    cores = len(os.sched_getaffinity(0))
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // arguments.workers)), "HF_HUB_OFFLINE": "1"}

    def launch(trial: Trial, parts: list[Path]) -> tuple[Trial, int]:
        given = {"arm": trial.arm, "seed": trial.seed, "rate": trial.rate, "parts": [str(part) for part in parts]}
        command = [sys.executable, __file__, str(arguments.data), str(arguments.output), "--trial", json.dumps(given)]
        log = arguments.output / trial.folder / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            return trial, subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode

    failed: list[str] = []
    with ThreadPoolExecutor(arguments.workers) as pool:
        running: dict[Any, Trial] = {}
        gone: set[Trial] = set()
        while True:
            while len(running) < arguments.workers and (found := study.next({*running.values(), *gone})):
                print(f"{time.strftime('%H:%M:%S')} begins  {found[0].folder}", flush=True)
                running[pool.submit(launch, *found)] = found[0]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial, status = future.result()
                del running[future]
                if status:
                    gone.add(trial)
                    failed.append(trial.folder)
                print(f"{time.strftime('%H:%M:%S')} {'FAILED' if status else 'done'}    {trial.folder}", flush=True)
    if failed:
        raise SystemExit(f"run.py: {len(failed)} trials failed; see log.txt in {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Train and score the arms of the study; what is finished is left alone, so an interrupted study goes on.

    python benchmarks/joint_training/run.py DATA OUTPUT [--config FILE] [--arms ours st-proportional] [--list]

DATA is the folder of public sets. OUTPUT gets data/, and a folder for each arm, seed and learning rate with
scores.json, items.npz, run.json and the model, which fusion reads. The rate of an arm is chosen on the validation part
with the first seed; the test part is scored in the same pass and read by analyse.py alone.

The configuration is arms.yaml (Chinese, the bundled model) or arms-en.yaml (English, all-MiniLM-L6-v2; --model
DIRECTORY where the hub cannot be reached).
"""

from __future__ import annotations

import argparse
import importlib
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

from codiemb.prompts import TEMPLATES, InstructionTemplate
from codiemb.training.sections import merged

HERE = Path(__file__).parent
FIRST_SEED = 1
TRAINED = ("codiemb", "sentence-transformers")  # engines that train
MADE_OF_OTHERS = ("fuse", "rescore")  # engines that train nothing and take the models of other arms
# glibc gives the memory of large tensors back at once and takes it again in the next layer; where the system is slow
# to hand out pages, keeping it is an eighth faster.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "10000000000", "MALLOC_TOP_PAD_": "268435456"}


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


def read_config(path: Path) -> dict[str, Any]:
    """A configuration; one that `extends` another is that one with changes, of whose arms it keeps `only` some."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "extends" not in config:
        return config
    config = merged(read_config(path.with_name(config.pop("extends"))), config)
    if only := config.pop("only", None):
        groups = config["groups"].items()
        if unknown := set(only) - {name for _, arms in groups for name in arms}:
            raise SystemExit(f"{path}: only: there is no arm {sorted(unknown)[0]!r}")
        config["groups"] = {group: {name: arm for name, arm in arms.items() if name in only} for group, arms in groups}
    return config


class Study:
    """What is there, and what comes next."""

    def __init__(
        self,
        output: Path,
        arms: list[str] | None = None,
        config: Path = HERE / "arms.yaml",
        model: str | None = None,
        seeds: int = 99,
    ) -> None:
        self.output = output
        self.seeds = seeds
        self.config = read_config(config)
        self.model: str = model or self.config["model"]
        self.template = TEMPLATES[self.config["template"]]
        groups: dict[str, dict[str, Any]] = self.config["groups"]
        self.groups = {group: list(arms) for group, arms in groups.items()}
        self._given = {name: arm for arms in groups.values() for name, arm in arms.items()}
        self.arms = {name: self._resolved(name) for name in self._given}
        if unknown := set(arms or ()) - set(self.arms):
            raise SystemExit(f"run.py: there is no arm {sorted(unknown)[0]!r}; arms: {', '.join(self.arms)}")
        self.wanted = arms or list(self.arms)

    def _resolved(self, name: str) -> dict[str, Any]:
        """An arm with what it takes from the arm that it is like, down to the learning rate unless it tries some."""
        arm: dict[str, Any] = self._given[name]
        if "like" not in arm:
            return arm
        other = {key: value for key, value in self._resolved(arm["like"]).items() if key not in ("rates", "seeds")}
        return merged(other, arm) | ({} if "rates" in arm else {"rate_of": arm["like"]})

    def done(self, trial: Trial) -> bool:
        """Whether it was scored."""
        return (self.output / trial.folder / "run.json").is_file()

    def validation(self, trial: Trial) -> float:
        """The mean that rates are chosen by."""
        scores = json.loads((self.output / trial.folder / "scores.json").read_text(encoding="utf-8"))
        return scores["validation"]["mean"]

    def rate(self, name: str, *, so_far: bool = False) -> float | None:
        """The chosen learning rate of an arm, None before all were tried; `so_far`: of those that were."""
        arm = self.arms[name]
        if "rate_of" in arm:
            return self.rate(arm["rate_of"], so_far=so_far)
        trials = [Trial(name, FIRST_SEED, rate) for rate in arm["rates"]]
        tried = [trial for trial in trials if self.done(trial)]
        if not tried or (len(tried) < len(trials) and not so_far):
            return None
        return max(tried, key=self.validation).rate

    def seeds_of(self, name: str) -> range:
        """The seeds of an arm."""
        return range(FIRST_SEED, FIRST_SEED + min(self.seeds, self.arms[name].get("seeds", 1)))

    def trials(self, name: str) -> Iterator[tuple[Trial, list[Path]]]:
        """The trials of an arm that can be run now, with the models they are made of."""
        arm = self.arms[name]
        seeds = self.seeds_of(name)
        if arm["engine"] == "none":
            yield Trial(name, FIRST_SEED, None), []
        elif arm["engine"] in MADE_OF_OTHERS:
            for seed in seeds:
                parts = self.parts(name, seed)
                if parts and all(self.done(part) and self.model_of(part).is_dir() for part in parts):
                    yield Trial(name, seed, None), [self.model_of(part) for part in parts]
        else:
            for rate in arm.get("rates", []):
                yield Trial(name, FIRST_SEED, rate), []
            if chosen := self.rate(name):
                for seed in seeds:
                    yield Trial(name, seed, chosen), []

    def parts(self, name: str, seed: int) -> list[Trial]:
        """What a trial that trains nothing is made of, none before all of it has its learning rate."""
        rates = {part: self.rate(part) for part in self.arms[name]["of"]}
        return [Trial(part, seed, rate) for part, rate in rates.items()] if all(rates.values()) else []

    def model_of(self, trial: Trial) -> Path:
        """Where its model is saved; results that come from elsewhere have none."""
        return self.output / trial.folder / "model"

    def again(self) -> list[Trial]:
        """Finished trials whose models are gone, and that an unfinished trial is made of."""
        made = [name for name in self.wanted if self.arms[name]["engine"] in MADE_OF_OTHERS]
        trials = [Trial(name, seed, None) for name in made for seed in self.seeds_of(name)]
        parts = [part for trial in trials if not self.done(trial) for part in self.parts(trial.arm, trial.seed)]
        gone = [part for part in parts if self.done(part) and not self.model_of(part).is_dir()]
        return list(dict.fromkeys(gone))

    def next(self, running: set[Trial]) -> tuple[Trial, list[Path]] | None:
        """The first trial that is neither done nor running; after all others, one whose model is gone and wanted."""
        for name in self.wanted:
            for trial, parts in self.trials(name):
                if trial not in running and not self.done(trial):
                    return trial, parts
        return next(((trial, []) for trial in self.again() if trial not in running), None)


def carry_out(study: Study, trial: Trial, parts: list[Path]) -> None:
    """Train or fuse, score, and write the folder's files; in a process of its own."""
    import engines  # takes seconds, which --list and analyse.py need not wait for
    import scoring

    arm = study.arms[trial.arm]
    data, folder = study.output / "data", study.output / trial.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").unlink(missing_ok=True)  # of a trial that runs again: it is not done before its end
    model = study.model_of(trial)
    started = time.monotonic()
    spent: dict[str, Any] = {"steps": 0, "tokens": 0, "training_seconds": 0.0}
    if arm["engine"] == "fuse":
        spent = engines.fuse(study.model, arm, parts, model)
    elif arm["engine"] in TRAINED:
        assert trial.rate is not None
        of_engine = study.config[arm["engine"]] | {"model": study.model}
        train = engines.TRAINERS[arm["engine"]]
        budget = arm.get("budget", study.config["budget"])
        spent = train(arm, of_engine, data, model, trial.seed, trial.rate, budget)
    items = json.loads((data / "items.json").read_text(encoding="utf-8"))
    name = study.model if arm["engine"] == "none" else str(parts[0] if arm["engine"] == "rescore" else model)
    # All arms are read with the same prompts, but for the question of instructions.
    instructed = arm.get("instructed", False)
    template = study.template
    if instructed:
        template = InstructionTemplate(query="query: {instruction} ", document="passage: ")
    outcome = scoring.Scorer(items, template, instructed=instructed, pool_prompt=not instructed).score(name)
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
    parser.add_argument("--config", type=Path, default=HERE / "arms.yaml", help="what is compared; default arms.yaml")
    parser.add_argument("--model", help="a copy of the configuration's model on this machine")
    parser.add_argument("--seeds", type=int, default=99, metavar="N", help="no more than so many of each arm")
    parser.add_argument("--workers", type=int, default=2, help="trials at once, each on its share of the cores")
    parser.add_argument("--list", action="store_true", help="print what is done and what comes next")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    study = Study(arguments.output, arguments.arms, arguments.config, arguments.model, arguments.seeds)
    if arguments.trial:
        given = json.loads(arguments.trial)
        trial = Trial(given["arm"], given["seed"], given["rate"])
        carry_out(study, trial, [Path(part) for part in given["parts"]])
        return
    if arguments.list:
        for name in study.wanted:
            for trial, _ in study.trials(name):
                print(f"{'done' if study.done(trial) else 'open'}  {trial.folder}")
        for trial in study.again():
            print(f"again {trial.folder}: its model is gone, and others are made of it")
        return
    importlib.import_module(study.config["data"]).prepare(arguments.data, arguments.output / "data")
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.workers)
    environment = os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": str(threads)}

    def launch(trial: Trial, parts: list[Path]) -> tuple[Trial, int]:
        given = {"arm": trial.arm, "seed": trial.seed, "rate": trial.rate, "parts": [str(part) for part in parts]}
        command = [sys.executable, __file__, *sys.argv[1:], "--trial", json.dumps(given)]
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

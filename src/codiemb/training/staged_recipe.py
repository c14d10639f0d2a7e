"""A recipe with several stages: each is the recipe of its kind, completed by what they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from codiemb.training.pretraining.recipe import PretrainRecipe, parse_pretrain_recipe
from codiemb.training.recipe import Evaluation, Prompts, Recipe, parse_recipe
from codiemb.training.sections import RecipeError, Section, apply_override, merged, nearest, parse_section, read_content

KINDS = ("pretrain", "align", "finetune")
_OF_ALL = ("seed", "precision", "log_every")
_OF_EMBEDDING = (*_OF_ALL, "evaluation", "prompts", "max_length")


class Stage(NamedTuple):
    """One stage, ready to run. Its name, such as `2-align`, is that of its directory."""

    name: str
    recipe: Recipe | PretrainRecipe


class StagedRecipe(Section):
    """Stages that are run in order, each starting from the model of the one before."""

    model: str | None = Field(None, description="what the first stage starts from, unless it makes a new network")
    output: Path = Field(description="directory of the last stage's model; in it are those of the stages")
    stages: list[Any] = Field(
        min_length=1, description="each with `stage` (pretrain, align or finetune) and the keys of its kind"
    )
    evaluation: Evaluation | None = Field(None, description="of the align and finetune stages")
    prompts: Prompts | None = Field(None, description="of the align and finetune stages")
    max_length: PositiveInt | None = Field(None, description="of the align and finetune stages")
    seed: NonNegativeInt | None = Field(None, description="of all stages")
    precision: Literal["auto", "bf16", "fp32"] | None = Field(None, description="of all stages")
    log_every: PositiveInt | None = Field(None, description="of all stages")

    @model_validator(mode="after")
    def _whole(self) -> StagedRecipe:
        faults = list(self._misplaced())
        for number, content in enumerate([] if faults else self.stages, start=1):
            try:
                self._stage(number, content)
            except RecipeError as error:
                faults.append(str(error))
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def resolved(self) -> list[Stage]:
        """The stages, each with all its keys."""
        return [self._stage(number, content) for number, content in enumerate(self.stages, start=1)]

    def inputs(self) -> list[Path]:
        """Files and directories that a run reads, but for what its stages write."""
        own = {self.output / stage.name for stage in self.resolved()}
        return [path for stage in self.resolved() for path in stage.recipe.inputs() if path not in own]

    def _misplaced(self) -> Iterator[str]:
        """What is wrong with the stages as a row of stages."""
        for number, content in enumerate(self.stages, start=1):
            if not isinstance(content, Mapping):
                yield f"stages.{number}: got {content!r}, expected keys, `stage` among them"
            elif content.get("stage") not in KINDS:
                near = nearest(str(content.get("stage")), KINDS)
                yield f"stages.{number}: stage: got {content.get('stage')!r}{near} expected one of {', '.join(KINDS)}"
            else:
                for key in ("model", "output"):
                    if key in content:
                        yield f"stages.{number} ({content['stage']}): {key}: give it beside `stages`, it is of them all"
        kinds = [content.get("stage") for content in self.stages if isinstance(content, Mapping)]
        if kinds and kinds[-1] == "pretrain":
            yield f"stages.{len(kinds)} (pretrain): is the last one, expected align or finetune: they embed texts"
        for number, (kind, earlier) in enumerate(zip(kinds[1:], kinds, strict=False), start=2):
            if kind == "pretrain" and earlier in ("align", "finetune"):
                yield f"stages.{number} (pretrain): comes after {earlier}, expected pretrain stages before all others"

    def _stage(self, number: int, content: Mapping[str, Any]) -> Stage:
        kind: str = content["stage"]
        name = f"{number}-{kind}"
        given = self.model_dump(mode="json", exclude_none=True)
        shared = {key: given[key] for key in (_OF_ALL if kind == "pretrain" else _OF_EMBEDDING) if key in given}
        whole = {**merged(shared, content), "output": str(self.output / name)}
        if number > 1:
            whole["model"] = str(self.output / f"{number - 1}-{self.stages[number - 2]['stage']}")
        elif self.model is not None:
            whole["model"] = self.model
        origin = f"stages.{number} ({kind})"
        if kind == "pretrain":
            del whole["stage"]
            return Stage(name, parse_pretrain_recipe(whole, origin))
        return Stage(name, parse_recipe(whole, origin))


def load_any_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe | StagedRecipe:
    """Read the recipe of one training or of several stages, apply overrides, and check it.

    An override of a stage names it by its kind, or by its number from 1: `stages.align.optimizer.learning_rate=1e-4`.

    Raises:
        RecipeError: the file cannot be read, or with every fault: its stage and key, what was given, what is allowed.
    """
    content = read_content(Recipe, path)
    for override in overrides:
        if "stages" in content and override.startswith("stages."):
            _override_stage(content["stages"], override)
        else:
            apply_override(content, override)
    return parse_section(StagedRecipe, content, str(path)) if "stages" in content else parse_recipe(content, str(path))


def _override_stage(stages: Any, override: str) -> None:
    _, which, key = [*override.split(".", 2), ""][:3]
    contents = [content for content in stages if isinstance(content, dict)] if isinstance(stages, list) else []
    found = [
        content
        for number, content in enumerate(contents, start=1)
        if which in (str(number), f"{number}-{content.get('stage')}", content.get("stage"))
    ]
    if len(found) != 1:
        known = ", ".join(f"{number} ({content.get('stage')})" for number, content in enumerate(contents, start=1))
        raise RecipeError(
            f"override {override!r}: {'several stages are' if found else 'no stage is'} meant by {which!r}; expected "
            f"stages.WHICH.KEY=VALUE, WHICH being the number or the kind of one of {known}"
        )
    try:
        apply_override(found[0], key)
    except RecipeError as error:
        raise RecipeError(f"stage {which}: {error}") from None

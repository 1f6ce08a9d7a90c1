"""The plan of a training run, read from a recipe file: sizes, shares of data, stages, rates, and when to measure.

Report sections 4.2.2 and 4.2.3 for the stages: short sequences with dense attention first, then the indexer alone,
then sparse attention on longer ones; section 3.4 for a last stage in which experts are read in FP4. A recipe is a JSON
file; `assets/mini.json` and `mini_fp4.json` end after steps, `assets/tour.json` after seconds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Self

from minidsv4.config import Config
from minidsv4.train.loop import STAGES
from minidsv4.train.recipe import Recipe

PARTS = {"config": dict, "seed": int, "data": dict, "stages": list, "training": dict, "every": dict}  # of a recipe


@dataclass(frozen=True)
class Stage:
    """A part of the run: so many steps on batches of one shape, with one kind of attention in the CSA layers.

    length, batch_size  of the rows: T and B
    steps               None in the last stage goes on until the recipe's seconds are used
    attention           a name in `STAGES`
    """

    length: int
    batch_size: int
    steps: int | None = None
    attention: str = "sparse"

    def __post_init__(self):
        for name in ("steps", "length", "batch_size"):
            value = getattr(self, name)
            given = name != "steps" or value is not None
            if given and (not isinstance(value, int) or value < 1):
                raise ValueError(f"stage: {name} = {value!r} cannot be; it is a whole number from 1")
        if self.attention not in STAGES:
            raise ValueError(f"stage: attention = {self.attention!r} is not known; it is one of {', '.join(STAGES)}")


@dataclass(frozen=True)
class Plan:
    """What a recipe file says.

    fields       the file itself
    config       of the model
    seed         of weights, documents and batches
    source, programs  shares of the rows that are Python source and generated programs: whole numbers
    n_programs   how many programs are generated
    masks        whether attention ends at the borders of documents; they then begin where compressed entries do
    stages       one after the other
    recipe       rates and the like; its steps are those of all stages
    checkpoint, held_out  steps from one to the next; 0 leaves them to the end of the run
    held_out_bytes  of source that is measured at the end of the run, and a part of it on the way
    """

    fields: dict
    config: Config
    seed: int
    source: int
    programs: int
    n_programs: int
    masks: bool
    stages: tuple[Stage, ...]
    recipe: Recipe
    checkpoint: int
    held_out: int
    held_out_bytes: int

    @classmethod
    def read(cls, name: str) -> Self:
        """The recipe of this name that the package has, or the one in this file.

        raises  ValueError where there is none, or one that cannot be understood
        """
        own = Path(str(resources.files("minidsv4"))) / "assets" / f"{name}.json"
        path = Path(name) if name.endswith(".json") else own
        if not path.is_file():
            raise ValueError(
                f"--recipe {name}: there is no such recipe; give `mini`, `mini_fp4`, `tour` or a file FILE.json"
            )
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8-sig")))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"--recipe {name}: {type(error).__name__}: {error}; assets/mini.json is an example"
            ) from error

    @classmethod
    def from_dict(cls, fields: dict) -> Self:
        """Build from the fields of a recipe file; `config` names a size, and fields of it that are changed."""
        for name, kind in PARTS.items():
            if not isinstance(fields, dict) or not isinstance(fields.get(name), kind):
                given = "is missing" if not isinstance(fields, dict) or name not in fields else "is of another type"
                raise ValueError(f"recipe: {name} {given}; a recipe has {', '.join(PARTS)}, as assets/mini.json shows")
        config, data = dict(fields["config"]), fields["data"]
        base = config.pop("size", None)
        if base not in ("tiny", "mini"):
            raise ValueError(f"recipe: config.size = {base!r} cannot be trained here; it is 'tiny' or 'mini'")
        stages = tuple(Stage(**stage) for stage in fields["stages"])
        training = {"mtp_weights": (0.3, 0.1)} | fields["training"]
        recipe = Recipe(steps=_steps(stages), **training)
        config = getattr(Config, base)().replace(**config)
        return cls(fields, config, fields["seed"], **data, stages=stages, recipe=recipe, **fields["every"])

    def scaled(self, factor: float) -> Self:
        """The same recipe, which ends after steps, with all stages longer or shorter."""
        stages = [stage | {"steps": max(1, round(factor * stage["steps"]))} for stage in self.fields["stages"]]
        return self.from_dict(self.fields | {"stages": stages})

    def of_steps(self, n_steps: int) -> Self:
        """The same recipe with so many steps in all stages together.

        raises  ValueError where the recipe does not end after steps
        """
        if self.recipe.steps is None:
            raise ValueError("--steps: this recipe ends after seconds; give --minutes")
        return self.scaled(n_steps / self.recipe.steps)

    def lasting(self, seconds: float) -> Self:
        """The same recipe with another budget of seconds.

        raises  ValueError where the recipe has none, or for one that is not above 0
        """
        if self.recipe.seconds is None:
            raise ValueError("--minutes: this run ends after steps; go on with `python -m minidsv4 train --resume`")
        return self.from_dict(self.fields | {"training": self.fields["training"] | {"seconds": seconds}})

    def seeded(self, seed: int) -> Self:
        """The same recipe with another seed."""
        return self.from_dict(self.fields | {"seed": seed})

    def stage_and_step(self, step: int) -> tuple[int, int]:
        """Which stage a step is in, and which step of it it is."""
        for number, stage in enumerate(self.stages[:-1]):
            if step < stage.steps:
                return number, step
            step -= stage.steps
        return len(self.stages) - 1, step


def _steps(stages: Sequence[Stage]) -> int | None:
    """The steps of all stages together; None where the last one goes on."""
    if any(stage.steps is None for stage in stages[:-1]):
        raise ValueError("stage: steps are not given; only the last stage goes on until the seconds are used")
    return None if stages[-1].steps is None else sum(stage.steps for stage in stages)

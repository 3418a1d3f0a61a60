"""What an experiment may say: a recipe, what its arms change in it, and how they are compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hotswap.errors import HotswapError, one_line
from recipes.config import Count, DataSet, NotNegative, Part, Recipe, Task
from recipes.reading import check, contents, merged

Changes = dict[str, Any]  # of a recipe's keys
FOLDER = Path(__file__).parent
SEARCH_SEED = 0  # of the runs that choose a learning rate; the compared runs have 1, 2, ...
START = "start"  # what arms call the network they begin with: "arm:start"


class ShuffledGuide(Part):
    """Swapped layers are guided by another image of the batch."""

    kind: Literal["shuffled_guide"]


class FrozenKernel(Part):
    """Plain again, its filters multiplied by the mean of K at each tap."""

    kind: Literal["frozen_kernel"]


class Skip(Part):
    """A convolution from one place of the plain network to another."""

    kind: Literal["skip"]
    source: str  # a module, or "input"
    target: str  # a module, or "output"


class PacCrf(Part):
    """A PAC-CRF behind the network, which stays as it is; the CRF is trained."""

    kind: Literal["pac_crf"]
    dilations: Annotated[tuple[Count, ...], Field(min_length=1)]  # one a kernel of 5 x 5


class DenseCrf(Part):
    """A CRF with nothing to train behind the network: pydensecrf's, or ours with its parameters."""

    kind: Literal["dense_crf", "refine"]


Changed = Annotated[ShuffledGuide | FrozenKernel | Skip | PacCrf | DenseCrf, Field(discriminator="kind")]


class Arm(Part):
    """One way to go on from the start."""

    about: str  # in a few words, for the table
    changes: Changes = Field(default_factory=dict)
    control: Changed | None = None  # what is done to its network after its swaps, to tell what helps
    trained: bool = True  # false: measured as it is, once


class Evaluation(Part):
    """Something else to measure the tuned networks on."""

    data: DataSet
    task: Task


class Experiment(Part):
    """A question, and the runs that answer it."""

    question: str
    setting: str  # network and data, for the page
    recipe: Changes  # what all arms share; its validation data is what they are compared on
    start: Changes | None = None  # trains the network that arms begin with
    starts: Literal["each", "one"] = "each"  # a start for each seed, or one for all
    searched: DataSet  # what learning rates are chosen on
    rates: Annotated[tuple[NotNegative, ...], Field(min_length=1)]
    seeds: Count = 5
    against: str = "plain"  # the arm that the others are held against
    metrics: dict[str, str]  # name: what it is called on the page; the first one chooses rates
    higher_is_better: bool
    times: float = 100.0  # what figures are multiplied by on the page: points
    digits: Count = 2  # after the point, there
    further: dict[str, Evaluation] = Field(default_factory=dict)
    arms: dict[str, Arm]

    @model_validator(mode="after")
    def _known_control(self) -> Self:
        if self.against not in self.arms:
            raise ValueError(f"against must be one of the arms, got {self.against!r}")
        return self

    def start_recipe(self, seed: int) -> Recipe:
        """What trains the network that the arms of a seed begin with."""
        assert self.start is not None
        return check(merged(merged(self.recipe, self.start), {"seed": seed}), f"{START}, seed {seed}")

    def start_seed(self, seed: int) -> int:
        """Which start the arms of a seed have."""
        return seed if self.starts == "each" else SEARCH_SEED

    def arm_recipe(self, arm: str, seed: int, rate: float) -> Recipe:
        """What one run of an arm does."""
        changed = merged(merged(self.recipe, self.arms[arm].changes), {"seed": seed, "optimiser": {"lr": rate}})
        return check(changed, f"arm {arm!r}")

    @property
    def compared_seeds(self) -> range:
        """Of the runs that are compared."""
        return range(SEARCH_SEED + 1, SEARCH_SEED + 1 + self.seeds)


def names() -> list[str]:
    """The experiments there are."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def read(name: str) -> Experiment:
    """An experiment by its name, checked to the end.

    Raises:
        HotswapError: where there is none of that name, or it says what cannot be.
    """
    if name not in names():
        raise HotswapError(f"there is no experiment {name!r}; there are: {', '.join(names())}")
    try:
        experiment = Experiment.model_validate(contents(FOLDER / f"{name}.yaml"))
    except ValidationError as error:
        raise HotswapError(f"experiment {name!r}: {one_line(error)}") from error
    for recipe in _all_recipes(experiment):
        assert recipe.seed == SEARCH_SEED
    return experiment


def _all_recipes(experiment: Experiment) -> Iterator[Recipe]:
    if experiment.start is not None:
        yield experiment.start_recipe(SEARCH_SEED)
    for arm in experiment.arms:
        yield experiment.arm_recipe(arm, SEARCH_SEED, experiment.rates[0])

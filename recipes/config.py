"""The schema of recipes: frozen models, so that a file is checked completely before anything is loaded."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from recipes import protocols

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Options = dict[str, Any]
Three = tuple[float, float, float]
EARLIER = "arm:"  # prefix of a checkpoint that an earlier arm writes


class Part(BaseModel):
    """A part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Part):
    """The network and its weights."""

    name: str  # for hotswap.zoo.providers: torchvision:NAME, timm:NAME, ... or package.module:factory
    options: Options = {}  # the constructor's
    checkpoint: str | None = None  # its weights, and its swaps if it has any; arm:NAME: where that arm ended
    mean: Three | None = None  # the network gets (image - mean) / std
    std: tuple[Positive, Positive, Positive] | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        return self


Footprint = Literal[2, 4, 6, 8]


class Swap(Part):
    """Arguments of one call of `hotswap.convert`."""

    targets: str | tuple[str, ...] = "auto"
    guide: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] = "auto"
    guide_scale: NotNegative | dict[str, NotNegative] | None = None
    learn_scale: bool = False
    gate: bool | Count = False
    projection: Count | tuple[Count, Literal[1, 3]] | Literal[0] = 0  # needs a calibration, on whose data it starts
    kernel: str = "gaussian"
    conserve: Literal["window"] | None = None
    method: Literal["auto", "fx", "hooks"] = "auto"
    resize: Literal["bilinear", "area", "nearest"] = "bilinear"
    footprint: Footprint | tuple[Footprint, ...] | Literal["auto"] = "auto"
    space: Literal["auto", "lab", "rgb"] | None = "auto"
    bounded: bool | Literal["auto"] = "auto"
    after_activation: bool = True


class Calibration(Part):
    """Arguments of `hotswap.calibrate`, for all swaps of the network together."""

    deviation: Fraction | Literal["auto"] | None = "auto"  # None: scales stay as they are
    conserve: Literal["mean", "window"] | None = "mean"
    batches: Count = 4  # of the training data's first


class DataSet(Part):
    """A data set by name."""

    name: str  # see recipes.datasets
    options: Options = {}  # the constructor's; crops and flips are among them


class Data(Part):
    """Training and validation data."""

    train: DataSet
    validation: DataSet


class Segmentation(Part):
    """One class per pixel: cross-entropy; mIoU, and mIoU near edges."""

    name: Literal["segmentation"]
    ignore: int = 255  # the label of pixels that do not count


class Depth(Part):
    """One number per pixel: the mean over images of the root mean square error."""

    name: Literal["depth"]
    loss: Literal["l1", "l2"] = "l2"
    border: Annotated[int, Field(ge=0)] = 0  # pixels at the rim that are not measured


class Flow(Part):
    """One vector per pixel: the end-point error."""

    name: Literal["flow"]
    loss: Literal["epe", "l1", "l2"] = "epe"


Task = Annotated[Segmentation | Depth | Flow, Field(discriminator="name")]


class Optimiser(Part):
    """The optimiser and its settings."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: NotNegative = 1e-4
    weight_decay: NotNegative | None = None  # None: the optimiser's own, 0.01 of adamw and 0 of the others
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None  # of sgd alone, 0.9 there
    factors: dict[str, NotNegative] = {}  # factor on the rate, by part of the network; the first match counts
    clip: Positive | None = None  # the gradient's largest norm

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        if self.momentum is not None and self.name != "sgd":
            raise ValueError(f"momentum is of sgd alone, and the name is {self.name}; leave it out")
        return self


class Schedule(Part):
    """The learning rate over time. Times are in the recipe's unit: steps, or epochs if it has those."""

    name: Literal["constant", "step", "cosine", "poly"] = "constant"
    at: tuple[Positive, ...] | None = None  # of step: when the rate is multiplied by `factor`
    factor: Fraction | None = None  # of step: 0.1 there
    power: Positive | None = None  # of poly: 0.9 there
    warmup: NotNegative = 0  # time over which the rate rises linearly from 0

    @model_validator(mode="after")
    def _keys_of_the_name(self) -> Self:
        for key, name in (("at", "step"), ("factor", "step"), ("power", "poly")):
            if getattr(self, key) is not None and self.name != name:
                raise ValueError(f"{key} is of schedule {name} alone, and the name is {self.name}; leave it out")
        if self.name == "step" and not self.at:
            raise ValueError("at must say when the rate drops")
        return self


class Evaluation(Part):
    """When and how the network is evaluated."""

    every: Count | None = None  # steps; None: at the end alone
    at_start: bool = True
    batch_size: Count = 1  # more than 1 needs images of one size


class Training(Part):
    """Training settings that are independent of network and data."""

    steps: Count | None = None  # updates of the weights; either this or epochs
    epochs: Count | None = None  # passes over the training data
    batch_size: Count = 4  # images at a time, over all processes together
    accumulation: Count = 1  # batches that make one step
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    ema: Fraction | None = None  # decay of a moving average of the weights, which is then measured and saved
    workers: Annotated[int, Field(ge=0)] = 0  # processes that load data, for each that trains
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of the two")
        return self


class Recipe(Training):
    """A complete recipe: one run."""

    model: Model
    swaps: tuple[Swap, ...] = ()  # none: the plain network, which is every recipe's control
    calibration: Calibration | None = None  # of the swaps; without any there is nothing to calibrate
    data: Data
    protocol: str | None = (
        None  # how nyu, sintel or voc is prepared; None: the first of `protocols.KNOWN`, or no name
    )
    task: Task
    freeze: tuple[str, ...] = ()  # parts of the network that stay as they are
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None  # None: what `accelerate launch` says
    evaluation: Evaluation = Evaluation()
    save_every: Count | None = None  # steps between states to resume from; None: with each evaluation

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare no as false

    @model_validator(mode="after")
    def _projections_are_measured(self) -> Self:
        measured = self.calibration is not None and self.calibration.deviation is not None
        if any(swap.projection for swap in self.swaps) and not measured:
            raise ValueError("projection starts from data: give the recipe a calibration, with a deviation")
        return self

    @model_validator(mode="after")
    def _protocol_is_of_the_data(self) -> Self:
        for part in (self.data.train, self.data.validation):
            if part.name in protocols.KNOWN and "protocol" in part.options:
                raise ValueError("protocol is a key of the recipe, for both its data sets; write it there")
            if self.protocol is not None and (why := protocols.why_not(self.protocol, part.name)) is not None:
                raise ValueError(why)
        if self.protocol is not None and self.model.mean is not None:
            raise ValueError("protocol says mean and std of images; leave out model.mean and model.std")
        return self

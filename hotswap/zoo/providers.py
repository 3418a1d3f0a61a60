"""Networks by name: see `zoo.names`.

Networks are built without pretrained weights, and nothing is downloaded, unless an option asks for it. Only of a
saved model (`hf:owner/name`, `timm:hf-hub:owner/name`, a folder) its config.json is read, from the hub where that is
where it lies. An architecture named inside a file is not trusted: it may only name a network of the providers, and
nothing is read or fetched for it.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from hotswap.errors import HotswapError, one_line
from hotswap.files import hub
from hotswap.files.atomic import is_file, is_there
from hotswap.network.names import closest
from hotswap.zoo import image_stats, transformers
from hotswap.zoo.names import FORMS, HF, SMP, TIMM, TORCHVISION, TRANSFORMERS, Spec, is_plain, parse
from hotswap.zoo.trust import SizeLimit, check_untrusted, limited

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The extra of hotswap that installs a package.
_EXTRA = {"torchvision": "zoo", "timm": "zoo", "segmentation_models_pytorch": "smp"}
# Options that ask for weights: they are no part of an architecture.
_WEIGHT_OPTIONS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "encoder_weights")


def architecture(spec: str) -> str:
    """The name to record in a checkpoint, without options that only fetch weights.

    Raises:
        HotswapError: where the name is malformed, or names what a file may not ask for; as `build`, where it is of a
            saved model.
    """
    parsed = parse(spec)
    if parsed.is_factory:
        return str(parsed)
    if parsed.provider == HF:
        return f"{TRANSFORMERS}:{_configuration(parsed)['architectures'][0]}"
    if parsed.on_hub is not None:
        parsed, _ = _from_timms_hub(parsed)
    return _recordable(parsed)


def recordable(name: str) -> str:
    """As `architecture`, for a name that was read from a file; nothing is read or fetched for it.

    Raises:
        HotswapError: where a file may not hold it.
    """
    parsed = parse(name, typed=False)
    return str(parsed) if parsed.is_factory else _recordable(parsed)


def build(
    spec: str,
    *,
    trusted: bool,
    initialise: bool = True,
    config: Mapping[str, Any] | None = None,
    limit: SizeLimit | None = None,
) -> nn.Module:
    """Build a network by its name, in training mode, as its constructor leaves it.

    Args:
        spec: see the module.
        trusted: whether the user typed it. A name found in a file is not trusted: it must be a network of
            a provider, with plain options none of which fetches or reads anything, or nothing is imported.
        initialise: False leaves the weights of the providers' networks as the memory was, for who is
            going to overwrite them or never looks: random numbers are most of the time that building takes.
        config: the configuration of transformers that was found beside a name in a file.
        limit: of what a name found in a file may ask for.

    Raises:
        HotswapError: where the name is not known or not permitted, a package is missing, or building fails.
    """
    parsed = parse(spec, typed=trusted)
    if not trusted:
        check_untrusted(parsed)
    if parsed.is_factory:
        return _called(parsed, _factory(parsed), nullcontext())
    skipping = nullcontext() if initialise or parsed.brings_weights else _SkipRandomInit()
    images = image_stats.ImageStats()
    constructor: Callable[..., Any]
    if parsed.provider == TRANSFORMERS:
        constructor = functools.partial(
            transformers.build,
            transformers.network_class(parsed.name),
            transformers.checked(config, f"config of {parsed}"),
        )
    elif parsed.provider == HF:
        constructor = functools.partial(_from_configuration, _configuration(parsed))
        if (file := _beside(parsed, transformers.PREPROCESSOR)) is not None:
            images = transformers.read_preprocessor(file)
    else:
        if parsed.on_hub is not None:
            parsed, images = _from_timms_hub(parsed)
        constructor = _CONSTRUCTORS[parsed.provider](parsed)
    with nullcontext() if trusted else limited(parsed, limit):
        built = _called(parsed, constructor, skipping)
    image_stats.put(built, images)
    return built


def factory_defaults(spec: Spec) -> dict[str, Any]:
    """Options of a factory of the user's own that have a default, with it.

    Raises:
        HotswapError: where there is no such factory.
    """
    try:
        parameters = inspect.signature(_factory(spec)).parameters
    except (TypeError, ValueError):  # of code that is not written in Python
        return {}
    return {name: x.default for name, x in parameters.items() if x.default is not inspect.Parameter.empty}


def pinned(spec: str) -> tuple[str, tuple[str, ...]]:
    """A network's name, pinned to the present commit if it is on the hub, and notes that say so.

    Raises:
        HotswapError: where the hub does not give it.
    """
    parsed = parse(spec)
    address = parsed.on_hub
    if address is None or address.is_pinned:
        return spec, ()
    pinned_address = hub.fetch(address, transformers.CONFIG).address
    name = str(pinned_address) if parsed.provider == TIMM else str(pinned_address).removeprefix(hub.PREFIX)
    return str(replace(parsed, name=name)), (f"{address} is at commit {pinned_address.revision}",)


def weights(spec: str) -> str | None:
    """The file or address of a saved model's weights, for `checkpoint.read`; None for other networks.

    Raises:
        HotswapError: where a folder holds none that are safe to read.
    """
    parsed = parse(spec)
    if (address := parsed.on_hub) is not None:
        return str(address)
    if parsed.provider != HF:
        return None
    for name in hub.WEIGHTS:
        if is_file(file := Path(parsed.name) / name):
            return str(file)
    raise HotswapError(f"the folder {parsed.name!r} must hold {' or '.join(hub.WEIGHTS)}; save the model again")


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, per channel, of a network's training images in 0..1.

    Where the network states none (see `hotswap.zoo.image_stats`) they are ImageNet's, which most use.
    """
    images = image_stats.of(model)
    if images.mean is None or images.std is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return images.mean, images.std


# --- names ------------------------------------------------------------------------------------------------


def _recordable(parsed: Spec) -> str:
    options = {key: value for key, value in parsed.options.items() if key not in _WEIGHT_OPTIONS}
    parsed = replace(parsed, options=options)
    check_untrusted(parsed)
    return str(parsed)


# --- building ---------------------------------------------------------------------------------------------


def _from_torchvision(spec: Spec) -> Callable[..., Any]:
    models = _provider("torchvision.models")
    if spec.name not in (names := models.list_models()):
        raise HotswapError(f"torchvision has no network {spec.name!r}{closest(spec.name, names)}")
    builder = models.get_model_builder(spec.name)
    # Options of the user's override these; by default, segmentation and detection networks fetch a backbone.
    none = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    return functools.partial(builder, **none)


def _from_timm(spec: Spec) -> Callable[..., Any]:
    timm = _provider("timm")
    name = spec.name.partition(".")[0]
    if ":" not in name and not timm.is_model(name):  # local-dir:... is timm's to look up
        raise HotswapError(f"timm has no network {spec.name!r}{closest(spec.name, timm.list_models())}")
    return functools.partial(timm.create_model, spec.name)


def _from_smp(spec: Spec) -> Callable[..., Any]:
    known = _provider("segmentation_models_pytorch").MODEL_ARCHITECTURES_MAPPING
    if spec.name.lower() not in known:
        names = [architecture.__name__ for architecture in known.values()]
        raise HotswapError(f"segmentation_models_pytorch has no network {spec.name!r}{closest(spec.name, names)}")
    # By default the encoder's weights are fetched.
    return functools.partial(known[spec.name.lower()], encoder_weights=None)


_CONSTRUCTORS = {TORCHVISION: _from_torchvision, TIMM: _from_timm, SMP: _from_smp}


def _configuration(spec: Spec) -> dict[str, Any]:
    """The configuration of a saved model of transformers."""
    _check_no_weight_options(spec)
    address = spec.on_hub
    return transformers.read_config(
        Path(spec.name) / transformers.CONFIG if address is None else hub.fetch(address, transformers.CONFIG).path
    )


def _beside(spec: Spec, name: str) -> Path | None:
    """An optional file of a saved model of transformers."""
    address = spec.on_hub
    if address is None:
        return file if is_there(file := Path(spec.name) / name) else None
    fetched = hub.fetch_if_there(hub.fetch(address, transformers.CONFIG).address, name)
    return None if fetched is None else fetched.path


def _from_configuration(config: Mapping[str, Any], **options: Any) -> nn.Module:
    if "num_labels" in options:  # which labels would override
        config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    changed = {**config, **options}
    plain = {key: value for key, value in changed.items() if key != "architectures"}
    transformers.checked(plain, "the configuration with the options", typed=True)
    return transformers.build(transformers.network_class(config["architectures"][0]), plain)


def _from_timms_hub(spec: Spec) -> tuple[Spec, image_stats.ImageStats]:
    """The name and options of a timm model on the hub, and the statistics it declares."""
    _check_no_weight_options(spec)
    assert spec.on_hub is not None  # noqa: S101 (asked before)
    config = transformers.json_object(hub.fetch(spec.on_hub, transformers.CONFIG).path, "JSON")
    trained = config.get("pretrained_cfg", config)
    arguments = config.get("model_args") or {}
    if not isinstance(config.get("architecture"), str) or not all(
        isinstance(x, Mapping) for x in (trained, arguments)
    ):
        raise HotswapError(f"{spec.on_hub} is no model of timm's: its {transformers.CONFIG} names no architecture")
    size = trained.get("input_size") or [3]
    if not isinstance(size, list):
        raise HotswapError(
            f"{spec.on_hub}: {transformers.CONFIG}: input_size must be a list, got a {type(size).__name__}"
        )
    options = {
        "num_classes": config.get("num_classes", trained.get("num_classes")),
        "global_pool": trained.get("global_pool"),
        "in_chans": size[0],
        "img_size": size[1:] if trained.get("fixed_input_size") else None,
    }
    options = {key: value for key, value in options.items() if value is not None} | dict(arguments)
    if unusual := [key for key, value in options.items() if not key.isidentifier() or not is_plain(value)]:
        raise HotswapError(f"{spec.on_hub} was built with an option {unusual[0]!r} that a network's name cannot hold")
    named = Spec(TIMM, config["architecture"], options | dict(spec.options))
    check_untrusted(named)  # the hub's configuration is a file too
    try:
        chosen = size[1:] if "img_size" not in spec.options else None
        images = image_stats.from_values(trained.get("mean") or None, trained.get("std") or None, chosen or None)
    except HotswapError as error:
        raise HotswapError(f"{spec.on_hub}: {transformers.CONFIG}: {error}") from error
    return named, images


def _check_no_weight_options(spec: Spec) -> None:
    if asked := [key for key in _WEIGHT_OPTIONS if key in spec.options]:
        raise HotswapError(
            f"network {str(spec)!r} is a saved model, whose weights `hotswap convert` takes by itself (from Python: "
            f"hotswap.load, or checkpoint); leave out {asked[0]}"
        )


def _provider(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:  # the last two: built for another version of torch
        package = name.partition(".")[0]
        raise HotswapError(
            f"{package} cannot be imported ({error}); pip install 'hotswap[{_EXTRA[package]}]'"
        ) from error


def _factory(spec: Spec) -> Callable[..., Any]:
    try:
        module = importlib.import_module(spec.provider)
    except ModuleNotFoundError as error:
        if error.name and f"{spec.provider}.".startswith(f"{error.name}."):
            raise HotswapError(
                f"network {str(spec)!r}: there is no module {error.name!r}; a network must be {FORMS}"
            ) from error
        raise HotswapError(f"network {str(spec)!r}: importing {spec.provider} failed ({one_line(error)})") from error
    except (Exception, SystemExit) as error:  # whatever a user's module does when imported
        raise HotswapError(f"network {str(spec)!r}: importing {spec.provider} failed ({one_line(error)})") from error
    value: Any = module
    for part in spec.name.split("."):
        if not hasattr(value, part):
            known = [name for name, value in vars(value).items() if callable(value)]
            where = "module" if isinstance(value, ModuleType) else "class"
            raise HotswapError(
                f"network {str(spec)!r}: {where} {value.__name__} has no {part!r}{closest(part, known)}"
            )
        value = getattr(value, part)
    if not callable(value):
        raise HotswapError(
            f"network {str(spec)!r}: it must name a function that returns a network, got {type(value).__name__}"
        )
    result: Callable[..., Any] = value
    return result


def _called(spec: Spec, constructor: Callable[..., Any], around: AbstractContextManager[Any]) -> nn.Module:
    try:
        with around:
            model = constructor(**spec.options)
    except HotswapError:
        raise
    except (Exception, SystemExit) as error:  # whatever a network's constructor raises for options it does not like
        raise HotswapError(f"network {str(spec)!r} could not be built ({one_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise HotswapError(f"network {str(spec)!r} must be a torch.nn.Module, got {type(model).__name__}")
    return model


class _SkipRandomInit(TorchFunctionMode):
    """Skips random initialisation by `torch.nn.init`.

    Only whole functions of `torch.nn.init` are passed over: some, like `trunc_normal_`, draw again and again until
    every number lies in a range, and would never end if what they call did nothing.
    """

    _FILLS = frozenset((nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)

"""The names of the modules of a network: paths, aliases, and the modules themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs, Observation, observe
from hotswap.network.names import AUTO, INPUT, aliases, closest, stages
from hotswap.targets.convolution import why_not_swappable

Name = str | nn.Module  # a module itself stands for its path

_PEFT = "base_model.model."  # where PEFT keeps a network
_INNER = "base_layer"  # where PEFT keeps a layer that it adapts


@dataclass(frozen=True)
class Names:
    """The convolutions of a network by path and alias."""

    model: nn.Module
    observation: Observation | None  # None where the network could not be run
    why_unobserved: str | None  # the reason; there are no aliases then

    @property
    def stages(self) -> list[list[str]]:
        """Paths of spatial convolutions by stage; see `names.stages`."""
        return [] if self.observation is None else stages(self.model, self.observation)

    @property
    def path_of(self) -> dict[str, str]:
        """Alias -> path."""
        return aliases(self.stages)

    @property
    def alias_of(self) -> dict[str, str]:
        """Path -> alias."""
        return {path: alias for alias, path in self.path_of.items()}

    def both(self, path: str) -> str:
        """A module's alias and path."""
        alias = self.alias_of.get(path)
        return f"{alias} ({path})" if alias and alias != path else repr(path)

    def require_observation(self, what: str) -> Observation:
        """The run of the network, for a name that needs one.

        Raises:
            HotswapError: where it could not be run.
        """
        if self.observation is None:
            raise HotswapError(f"{what} needs one run of the network on fake inputs, and {self.why_unobserved}")
        return self.observation

    def path(self, name: Name, role: str) -> str:
        """The path of a module, given as an object, a path, or an alias.

        Raises:
            HotswapError: where it is none of this network, with the closest names; `role` is what it is called there.
        """
        modules: dict[str, nn.Module] = dict(self.model.named_modules(remove_duplicate=False))
        if isinstance(name, nn.Module):
            path = next((path for path, module in modules.items() if module is name), None)
            if path is None:
                raise HotswapError(
                    f"{role} {shown(name)} is no module of this network, but perhaps of one that it was copied from; "
                    "name it by its path"
                )
            return path
        if not isinstance(name, str):
            raise HotswapError(f"{role} must be a string or a module, got a {type(name).__name__}")
        if name not in modules and f"{_PEFT}{name}" in modules:
            name = f"{_PEFT}{name}"
        if name in modules and name:
            first_path = {module: path for path, module in self.model.named_modules()}
            path = str(first_path[modules[name]])
            return path if role == "guide" else _adapted(path, modules)
        if name in self.path_of:
            return self.path_of[name]
        if name.startswith("conv"):
            self.require_observation(f"alias {name!r}")
        known = list(self.alias_of.values()) + [path for path in modules if path]
        raise HotswapError(
            f"{role} {name!r} is no module path or alias of this network{closest(name, known)}"
            " (hotswap.inspect lists all)"
        )

    def sources(self, guide: Any, automatic: Callable[[], str], example: str) -> dict[str, Any]:
        """The sources of a guide, module paths and INPUT, each with the name it was given by.

        Raises:
            HotswapError: where there is none, or one is not of this network; `example` is of a name.
        """
        given = [guide] if isinstance(guide, Name) else list(guide) if isinstance(guide, list | tuple) else None
        if given is None:
            raise HotswapError(
                f'guide must be a module path, an alias, a module, "{INPUT}", "{AUTO}", a list of these, or a '
                f"mapping from targets to these, got a {type(guide).__name__}"
            )
        if not given:
            raise HotswapError(f'guide must name at least one source, got an empty list; try "{example}"')
        paths: dict[str, Any] = {}
        for name in given:
            if name == AUTO:
                path = automatic()
            elif name == INPUT:
                path = INPUT
            else:
                path = self.path(name, "guide")
                if path == INPUT:
                    raise HotswapError(
                        f"the module {INPUT!r} cannot guide: as a guide that word is the image; rename it"
                    )
            paths[path] = name
        return paths


def look_up(model: nn.Module, example_inputs: Inputs | None) -> Names:
    """Observe the network; where that fails for no fault of the user's inputs, paths still work, aliases do not."""
    try:
        return Names(model, observe(model, example_inputs), None)
    except HotswapError as error:
        if example_inputs is not None:
            raise
        return Names(model, None, str(error))


def _adapted(path: str, modules: Mapping[str, nn.Module]) -> str:
    """The convolution inside an adapter, where a path names the adapter: people mean the convolution."""
    inner = modules.get(f"{path}.{_INNER}")
    if why_not_swappable(modules[path]) is None or inner is None:
        return path
    return _adapted(f"{path}.{_INNER}", modules)


def shown(name: Name) -> str:
    """A name as it is shown in messages."""
    return f"of class {type(name).__name__}" if isinstance(name, nn.Module) else repr(name)

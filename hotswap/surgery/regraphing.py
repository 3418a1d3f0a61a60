"""GraphModules in a swapped network.

All are copied and pickled with everything they have. Those that are rewritten get the edited graph itself: so their
`code`, their `recompile()` and all copies of their `graph` are guided too.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.node import map_arg

from hotswap.errors import HotswapError
from hotswap.network.copying import copied, graphs
from hotswap.network.graph_modules import EVALUATION, GRAPH, TRAINING, by_mode
from hotswap.surgery.containers import is_steered

_REWRITTEN = "_hotswap_graphs"  # a plain attribute of a GraphModule that is rewritten, not in its state_dict


def keep_whole(model: nn.Module) -> None:
    """Make every GraphModule in a network an instance of a subclass that is copied and pickled whole, in place."""
    for module in model.modules():
        if isinstance(module, GraphModule) and _kept_class(module) is None:
            plain: Any = type(module)
            namespace = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
            # Another _wrapped_call, which torch would give the class, would call that of the plain class: itself.
            namespace["_wrapped_call"] = plain._wrapped_call
            methods = {"__deepcopy__": copied, "__reduce__": _reduced, "recompile": _recompile}
            module.__class__ = type(plain)(plain.__name__, (plain,), methods | namespace)


def release(model: nn.Module) -> None:
    """Undo `keep_whole`."""
    for module in model.modules():
        kept: Any = type(module)
        if isinstance(module, GraphModule) and _kept_class(module) is kept:
            plain = module.__class__ = kept.__bases__[0]
            if "forward" in vars(kept):  # generated since
                plain.forward = kept.forward


def _kept_class(module: nn.Module) -> Any:
    return next((kind for kind in type(module).__mro__ if vars(kind).get("__deepcopy__") is copied), None)


def _recompile(self: GraphModule) -> Any:
    """See torch; a graph that no longer gives guides is refused."""
    rewritten: _Rewritten | None = vars(self).get(_REWRITTEN)
    if rewritten is not None and (missing := rewritten.guided - _given_more(self.graph)):
        if self.graph not in rewritten.edited.values():
            vars(self)[GRAPH] = rewritten.edited[GRAPH]
        raise HotswapError(
            f"the graph must give the swapped {min(missing)!r} its guide, which this one does not; "
            "hotswap.revert the network, edit it, and convert it again"
        )
    return super(_kept_class(self), self).recompile()


def _reduced(self: GraphModule) -> tuple[Any, ...]:
    if _REWRITTEN in vars(self):
        raise HotswapError(
            "a GraphModule that was rewritten cannot be pickled: hotswap.save the network, or convert it with "
            'method="hooks"'
        )
    return _restored, super(_kept_class(self), self).__reduce__()


def _restored(make: Callable[..., GraphModule], given: tuple[dict[str, Any], Any]) -> GraphModule:
    attributes = dict(given[0])
    module = make(*given)  # which has those that its graph names
    module.__dict__.update(attributes)
    keep_whole(module)
    return module


# --- those that are rewritten ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rewritten:
    """The record of a rewriting, in its GraphModule; graphs by attribute."""

    plain: Mapping[str, Graph]  # those it had
    edited: Mapping[str, Graph]  # those it was given
    text: Mapping[str, tuple[str, ...]]  # of the edited ones, as they were then
    guided: frozenset[str]  # paths of the layers that they give guides
    before: Self | None  # left by an earlier rewriting


def rewrite(module: GraphModule, training: Graph, evaluation: Graph) -> None:
    """Give a GraphModule copies of edited graphs, in place. Undone by `undo`."""
    plain = graphs(module)
    new = {TRAINING: training, EVALUATION: evaluation} if by_mode(module) else {GRAPH: evaluation}
    edited = {name: copy.deepcopy(graph) for name, graph in new.items()}
    _complete(edited, TRAINING if plain[GRAPH] is plain.get(TRAINING) else EVALUATION)
    text = {name: _text(graph) for name, graph in edited.items()}
    before = vars(module).pop(_REWRITTEN, None)
    _give(module, edited)
    given = set.intersection(*map(_given_more, edited.values()))
    guided = frozenset(path for path in given if is_steered(module.get_submodule(path)))
    vars(module)[_REWRITTEN] = _Rewritten(plain, edited, text, guided, before)


def undo(module: GraphModule) -> None:
    """Give a GraphModule the graphs that it had before it was rewritten last, in place."""
    rewritten: _Rewritten = vars(module).pop(_REWRITTEN)
    plain = dict(rewritten.plain)
    if by_mode(module):  # which may have changed since
        del plain[GRAPH]
        _complete(plain, TRAINING if module.graph is graphs(module)[TRAINING] else EVALUATION)
    _give(module, plain)
    if rewritten.before is not None:
        vars(module)[_REWRITTEN] = rewritten.before


def require_unedited(model: nn.Module) -> None:
    """Refuse a network with a graph that was edited after it was swapped.

    Raises:
        HotswapError: where there is one.
    """
    for path, module in model.named_modules():
        rewritten: _Rewritten | None = vars(module).get(_REWRITTEN)
        if rewritten is None:
            continue
        if any(
            _text(graph) != rewritten.text.get(name)
            for name, graph in graphs(module).items()
            if name in rewritten.plain
        ):
            raise HotswapError(
                f"the graph of {path or 'the network'} was edited after it was swapped, so it is not known what it "
                "would be without its guides; edit the plain network, and convert that"
            )


def _complete(by_attribute: dict[str, Graph], mode: str) -> None:
    """Have the graph of a mode in use, where each mode has one."""
    if mode in by_attribute:
        by_attribute[GRAPH] = by_attribute[mode]


def _give(module: GraphModule, by_attribute: Mapping[str, Graph]) -> None:
    vars(module).update(by_attribute)
    for graph in by_attribute.values():
        graph.owning_module = module
    module.recompile()


def _given_more(graph: Graph) -> set[str]:
    """Paths of the modules that get more than an input."""
    calls = (node for node in graph.nodes if node.op == "call_module")
    return {str(node.target) for node in calls if len(node.args) + len(node.kwargs) > 1}


def _text(graph: Graph) -> tuple[str, ...]:
    """A graph as text, the same for a copy of it."""
    number = {node: f"%{index}" for index, node in enumerate(graph.nodes)}
    return tuple(f"{n.op} {n.target} {map_arg((n.args, n.kwargs), number.__getitem__)}" for n in graph.nodes)

"""From a call to the kernel: through `torch.library` where something watches the call, else at once."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._functorch import config as functorch_config
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.compiler import is_compiling

from pac_ops.backends import choose
from pac_ops.library import batching
from pac_ops.library.observers import below_autograd, transforms_active, unwatched
from pac_ops.subclasses import as_plain

Function = Callable[..., Any]
# Of an operator's arguments and output, the tensors that its derivatives need, and its options.
Kept = Callable[[tuple[Any, ...], Any], tuple[Sequence[Tensor], Sequence[Any]]]

_library = torch.library.Library("pac_ops", "DEF")
_kernels: dict[str, Function] = {}
_recording: dict[str, type[torch.autograd.Function]] = {}  # which take all options as one argument
_transformable: dict[str, type[torch.autograd.Function]] = {}
_narrowed: set[str] = set()  # by autocast


def define(schema: str, kernel: Function, empty: Function, *, seen_through: bool = True) -> None:
    """Register an operator: its schema, its kernel, and the kernel of tensors without data; see `_seen_through`."""
    name = schema[: schema.index("(")]
    _kernels[name] = kernel
    _library.define(schema)
    torch.library.impl(_library, name, "CompositeExplicitAutograd")(partial(_on_plain, kernel))
    torch.library.register_fake(f"pac_ops::{name}", empty, lib=_library)
    if seen_through:
        seen = partial(_seen_through, kernel)
        torch.library.register_torch_dispatch(f"pac_ops::{name}", FunctionalTensorMode, seen, lib=_library)


def _on_plain(kernel: Function, *arguments: Any) -> Any:
    """Run a kernel on tensors of no subclass; a subclass's `__torch_function__` was called with the operator."""
    return kernel(*(as_plain(x) if isinstance(x, Tensor) else x for x in arguments))


def _seen_through(
    kernel: Function, mode: Any, operator: Any, types: Any, arguments: Any, named: dict[str, Any]
) -> Any:
    """Give `torch.compile` the Triton launches an operator consists of, as `torch.library.triton_op` does.

    It stays one node on the CPU, and in `torch.export`, whose programs run anywhere.
    """
    x, for_export = arguments[0], not functorch_config.decompose_custom_triton_ops
    if for_export or x.device.type != "cuda" or choose.backend_for(x) != "triton":
        return mode.__torch_dispatch__(operator, types, arguments, named)
    with mode, choose.load("triton").traced():
        return kernel(*arguments, **named)


def define_gradient(name: str, kept: Kept, vjp: Function, jvp: Function, without_batch: tuple[int, ...] = ()) -> None:
    """Register an operator's gradient, its derivative in forward mode, and how `torch.vmap` maps over it.

    Args:
        name: of the operator.
        kept: what is kept for them, on the context as `saved_tensors` and `options`.
        vjp: as `torch.autograd.Function.backward`.
        jvp: as `torch.autograd.Function.jvp`.
        without_batch: the positions of arguments without a batch: a weight, a bias.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors, ctx.options = kept(inputs, output)
        ctx.save_for_backward(*tensors)

    def setup_for_both(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup(ctx, inputs, output)
        ctx.save_for_forward(*kept(inputs, output)[0])

    torch.library.register_autograd(f"pac_ops::{name}", vjp, setup_context=setup, lib=_library)
    call = call_of(name)
    vmap = batching.rule(call, without_batch)
    torch.library.register_vmap(f"pac_ops::{name}", vmap, lib=_library)
    members: dict[str, Function] = {
        "forward": call,
        "setup_context": setup_for_both,
        "backward": vjp,
        "jvp": jvp,
        "vmap": vmap,
    }
    _transformable[name] = _function(name, **members)
    kernel, count = _kernels[name], _tensors_of(name)

    def run(ctx: Any, *given: Any) -> Any:
        arguments = given[:count] + given[count]
        output = kernel(*arguments)
        setup(ctx, arguments, output)
        return output

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        values: tuple[Any, ...] = vjp(ctx, *gradients)
        return values[: count + 1]

    _recording[name] = _function(name, forward=run, backward=backward)


def _tensors_of(name: str) -> int:
    """How many of an operator's arguments are tensors, or None: the first ones."""
    schema = getattr(torch.ops.pac_ops, name).default._schema
    return sum("Tensor" in str(each.type) for each in schema.arguments)


def _function(name: str, **members: Function) -> type[torch.autograd.Function]:
    methods = {key: staticmethod(value) for key, value in members.items()}
    return type(name, (torch.autograd.Function,), methods)


def define_autocast(name: str) -> None:
    """Have autocast narrow an operator's input, weight and bias as the stock convolution's; K stays float32."""
    _narrowed.add(name)
    run = getattr(torch.ops.pac_ops, name).default
    for device_type, key in (("cpu", "CPU"), ("cuda", "CUDA"), ("xpu", "XPU"), ("mps", "MPS")):
        _library.impl(name, partial(_narrow, run, device_type), f"Autocast{key}")


def _narrow(run: Function, device_type: str, input: Tensor, kernel: Tensor, *others: Any) -> Any:
    def narrow(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(torch.get_autocast_dtype(device_type))

    with torch.autocast(device_type, enabled=False):
        return run(narrow(input), kernel, *map(narrow, others))


@cache
def call_of(name: str) -> Function:
    """The operator as a function of positional arguments.

    Where nothing but gradients is recorded, that is done here: through the dispatcher and what
    `torch.library.register_autograd` makes, it takes 40 us more, of a small map as long as the convolution. Under
    `torch.func`'s transforms and in forward mode it is an autograd function of their kind: what
    `torch.library.register_autograd` makes is refused by the transforms, and has no forward mode.
    """
    operator, narrowed = getattr(torch.ops.pac_ops, name).default, name in _narrowed
    kernel = _kernels[name]
    count = _tensors_of(name)

    def call(*arguments: Any) -> Any:
        if is_compiling():
            return operator(*arguments)
        tensors = arguments[:count]
        recorded = is_grad_enabled() and torch._C._any_requires_grad(*tensors)
        if unwatched(tensors) and not (narrowed and torch._C._is_any_autocast_enabled()):
            if not recorded:
                return kernel(*arguments)
            if not below_autograd():
                return _recording[name].apply(*tensors, arguments[count:])
        if transforms_active():
            return _transformable[name].apply(*arguments)
        if recorded:
            return operator(*arguments)
        with torch._C._AutoDispatchBelowAutograd():  # which its autograd kernel, in Python, would do
            return operator(*arguments)

    return call

"""`torch.library` registration: schema, kernel, fake, autograd, vmap and autocast of each operator, in one place.

The autograd functions save and call; the maths is in the backends. All but two of the operators are polynomials in
their inputs (`squared_distance2d` and `resize_distance2d` are quadratic in the guides; the convolutions, the pooling
and the enlargement are linear in each of input, kernel and weight), so the backward of each backward is written with
the operators themselves, and gradients of every order exist on every backend. `gaussian_kernel2d`'s is K times one of
those. `centred_distance2d` has a kink where it is asymmetric; its second derivative is in `second_order`.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _dispatch_keys, _dispatch_tls_local_include_set, _len_torch_function_stack
from torch._C._autograd import _profiler_enabled
from torch._functorch import config as functorch_config
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from pac_ops import batching, second_order
from pac_ops.backends import choose
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window
from pac_ops.subclasses import as_plain

Ints = Sequence[int]

_SLIDING = "int[2] stride, int[2] padding, int[2] dilation"
_WINDOW = f"int[2] kernel_size, {_SLIDING}"
_CONV = f"{_SLIDING}, int groups"
# A gradient that `needs` leaves out comes back as an empty tensor: a schema cannot return None.
_CONV_BACKWARD = f"(Tensor grad, Tensor input, Tensor kernel, Tensor weight, {_CONV}, bool[3] needs)"
_ENLARGEMENT = "float[]? scale_factor, bool align_corners, int footprint"
_TWO = "(Tensor, Tensor)"
_SCHEMAS = (
    f"squared_distance2d(Tensor guide, {_WINDOW}) -> Tensor",
    f"squared_distance2d_backward(Tensor grad, Tensor guide, {_WINDOW}) -> Tensor",
    f"gaussian_kernel2d(Tensor guide, {_WINDOW}) -> Tensor",
    f"centred_distance2d(Tensor centre, Tensor guide, {_WINDOW}, bool asymmetric) -> Tensor",
    f"centred_distance2d_backward(Tensor grad, Tensor centre, Tensor guide, {_WINDOW}, bool asymmetric) -> {_TWO}",
    f"pacconv2d(Tensor input, Tensor kernel, Tensor weight, Tensor? bias, {_CONV}) -> Tensor",
    f"pacconv2d_backward{_CONV_BACKWARD} -> (Tensor, Tensor, Tensor)",
    f"pacconv_transpose2d(Tensor input, Tensor kernel, Tensor weight, Tensor? bias, {_CONV}) -> Tensor",
    f"pacconv_transpose2d_backward{_CONV_BACKWARD} -> (Tensor, Tensor, Tensor)",
    f"pacpool2d(Tensor input, Tensor kernel, {_SLIDING}) -> Tensor",
    f"pacpool2d_backward(Tensor grad, Tensor input, Tensor kernel, {_SLIDING}, bool[2] needs) -> {_TWO}",
    f"resize_distance2d(Tensor guide, Tensor coarse, {_ENLARGEMENT}) -> Tensor",
    f"resize_distance2d_backward(Tensor grad, Tensor guide, Tensor coarse, {_ENLARGEMENT}) -> {_TWO}",
    f"pacresize2d(Tensor input, Tensor kernel, {_ENLARGEMENT}) -> Tensor",
    f"pacresize2d_backward(Tensor grad, Tensor input, Tensor kernel, {_ENLARGEMENT}, bool[2] needs) -> {_TWO}",
)
_CAST = ("pacconv2d", "pacconv_transpose2d")  # by autocast
_library = torch.library.Library("pac_ops", "DEF")
for _schema in _SCHEMAS:
    _library.define(_schema)


def _caller(name: str) -> Callable[..., Any]:
    """The operator, under `torch.func`'s transforms and in forward mode through an autograd function of their kind.

    What `torch.library.register_autograd` makes is refused by the transforms, and has no forward mode.
    """
    operator, cast = getattr(torch.ops.pac_ops, name).default, name in _CAST

    def call(*arguments: Any) -> Any:
        if is_compiling():
            return operator(*arguments)
        recorded = is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        if not recorded and _unwatched(arguments) and not (cast and torch._C._is_any_autocast_enabled()):
            return _KERNELS[name](*arguments)
        if _transforms_active():
            return _TRANSFORMABLE[name].apply(*arguments)
        if recorded:
            return operator(*arguments)
        with torch._C._AutoDispatchBelowAutograd():  # which its autograd kernel, in Python, would do
            return operator(*arguments)

    return call


def untraced(*arguments: Any) -> bool:
    """Whether these tensors are plain ones, whose values are known, and no tracer or transform is on."""
    if is_compiling() or torch._C._get_tracing_state() is not None or _transforms_active():
        return False
    return all(type(x) in _PLAIN_TYPES and not x.is_meta for x in arguments if isinstance(x, Tensor))


def may_split(*arguments: Any) -> bool:
    """Whether work on these tensors may be done in parts, by the backend itself: nothing is recorded or traced.

    What is made of parts is right for these sizes alone; a trace must hold for others.
    """
    return untraced(*arguments) and not (is_grad_enabled() and torch._C._any_requires_grad(*arguments))


def _unwatched(arguments: Sequence[Any]) -> bool:
    """Whether the dispatcher would do no more than call the kernel, for longer than a small map takes.

    That is where all tensors are plain ones on the CPU, and no mode, transform, tracer or profiler is on.
    """
    if _dispatch_tls_local_include_set().raw_repr() not in _OF_PLAIN_THREADS:
        return False
    if forward_ad._current_level >= 0 or _len_torch_function_stack() or _profiler_enabled():
        return False
    for x in arguments:
        if isinstance(x, Tensor) and (
            type(x) not in _PLAIN_TYPES or _dispatch_keys(x).raw_repr() not in _OF_PLAIN_TENSORS
        ):
            return False
    return True


def _keys(*names: str) -> int:
    """A set of dispatch keys, as the number that two of them are compared by."""
    keys = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names)
    return reduce(or_, keys).raw_repr()


# Outside `torch.inference_mode`, and inside.
_OF_PLAIN_THREADS = {_keys("BackendSelect", "ADInplaceOrView"), _keys("BackendSelect")}
_OF_PLAIN_TENSORS = {_keys("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU"), _keys("CPU", "AutocastCPU")}
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_KERNELS: dict[str, Callable[..., Any]] = {}


def _transforms_active() -> bool:
    """Whether the call is under a transform, or in forward mode (which is off inside an autograd function)."""
    in_forward_mode = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
    return in_forward_mode or torch._C._are_functorch_transforms_active()


_TRANSFORMABLE: dict[str, type[torch.autograd.Function]] = {}

squared_distance2d = _caller("squared_distance2d")
squared_distance2d_backward = _caller("squared_distance2d_backward")
gaussian_kernel2d = _caller("gaussian_kernel2d")
centred_distance2d = _caller("centred_distance2d")
centred_distance2d_backward = _caller("centred_distance2d_backward")
pacconv2d = _caller("pacconv2d")
pacconv2d_backward = _caller("pacconv2d_backward")
pacconv_transpose2d = _caller("pacconv_transpose2d")
pacconv_transpose2d_backward = _caller("pacconv_transpose2d_backward")
pacpool2d = _caller("pacpool2d")
pacpool2d_backward = _caller("pacpool2d_backward")
resize_distance2d = _caller("resize_distance2d")
resize_distance2d_backward = _caller("resize_distance2d_backward")
pacresize2d = _caller("pacresize2d")
pacresize2d_backward = _caller("pacresize2d_backward")


def window_of(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Window:
    """The window of an operator's arguments, in the order of its schema."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = kernel_size, stride, padding, dilation
    return Window((kh, kw), (sy, sx), (py, px), (dy, dx))


# --- kernels ------------------------------------------------------------------------------------------


def _backend(x: Tensor) -> Any:
    return choose.implementation(x)


def _kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        _KERNELS[name] = run
        torch.library.impl(_library, name, "CompositeExplicitAutograd")(partial(_on_plain, run))
        torch.library.register_torch_dispatch(
            f"pac_ops::{name}", FunctionalTensorMode, partial(_seen_through, run), lib=_library
        )
        return run

    return register


def _on_plain(run: Callable[..., Any], *arguments: Any) -> Any:
    """Run a kernel on tensors of no subclass; a subclass's `__torch_function__` was called with the operator."""
    return run(*(as_plain(x) if isinstance(x, Tensor) else x for x in arguments))


def _seen_through(
    run: Callable[..., Any], mode: Any, operator: Any, types: Any, arguments: Any, named: dict[str, Any]
) -> Any:
    """Give `torch.compile` the Triton launches an operator consists of, as `torch.library.triton_op` does.

    It stays one node on the CPU, and in `torch.export`, whose programs run anywhere.
    """
    x, for_export = arguments[0], not functorch_config.decompose_custom_triton_ops
    if for_export or x.device.type != "cuda" or choose.backend_for(x) != "triton":
        return mode.__torch_dispatch__(operator, types, arguments, named)
    with mode, choose.load("triton").traced():
        return run(*arguments, **named)


@_kernel("squared_distance2d")
def _squared_distance2d(guide: Tensor, *window: Ints) -> Any:
    return _backend(guide).squared_distance2d(guide, window_of(*window))


@_kernel("squared_distance2d_backward")
def _squared_distance2d_backward(grad: Tensor, guide: Tensor, *window: Ints) -> Any:
    return _backend(guide).squared_distance2d_backward(grad, guide, window_of(*window))


@_kernel("gaussian_kernel2d")
def _gaussian_kernel2d(guide: Tensor, *window: Ints) -> Any:
    return _backend(guide).gaussian_kernel2d(guide, window_of(*window))


@_kernel("centred_distance2d")
def _centred_distance2d(centre: Tensor, guide: Tensor, *window: Any) -> Any:
    *sizes, asymmetric = window
    return _backend(guide).centred_distance2d(centre, guide, window_of(*sizes), asymmetric)


@_kernel("centred_distance2d_backward")
def _centred_distance2d_backward(grad: Tensor, centre: Tensor, guide: Tensor, *window: Any) -> Any:
    *sizes, asymmetric = window
    return _backend(guide).centred_distance2d_backward(grad, centre, guide, window_of(*sizes), asymmetric)


def _register_conv(name: str) -> None:
    """Kernels of the two convolutions, which have one signature."""

    @_kernel(name)
    def forward(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Any:
        *sliding, groups = window
        run = getattr(_backend(input), name)
        return run(input, kernel, weight, bias, window_of(weight.shape[2:], *sliding), groups)

    @_kernel(f"{name}_backward")
    def backward(grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, *window: Any) -> Any:
        *sliding, groups, needs = window
        run = getattr(_backend(input), f"{name}_backward")
        gradients = run(grad, input, kernel, weight, window_of(weight.shape[2:], *sliding), groups, tuple(needs))
        return _filled(gradients, (input, kernel, weight))


_register_conv("pacconv2d")
_register_conv("pacconv_transpose2d")


@_kernel("pacpool2d")
def _pacpool2d(input: Tensor, kernel: Tensor, *sliding: Ints) -> Any:
    return _backend(input).pacpool2d(input, kernel, window_of(kernel.shape[2:4], *sliding))


@_kernel("pacpool2d_backward")
def _pacpool2d_backward(grad: Tensor, input: Tensor, kernel: Tensor, *window: Any) -> Any:
    *sliding, needs = window
    sizes = window_of(kernel.shape[2:4], *sliding)
    gradients = _backend(input).pacpool2d_backward(grad, input, kernel, sizes, tuple(needs))
    return _filled(gradients, (input, kernel))


@_kernel("resize_distance2d")
def _resize_distance2d(guide: Tensor, coarse: Tensor, *where: Any) -> Any:
    return _backend(guide).resize_distance2d(guide, coarse, Enlargement(*where))


@_kernel("resize_distance2d_backward")
def _resize_distance2d_backward(grad: Tensor, guide: Tensor, coarse: Tensor, *where: Any) -> Any:
    return _backend(guide).resize_distance2d_backward(grad, guide, coarse, Enlargement(*where))


@_kernel("pacresize2d")
def _pacresize2d(input: Tensor, kernel: Tensor, *where: Any) -> Any:
    return _backend(input).pacresize2d(input, kernel, Enlargement(*where))


@_kernel("pacresize2d_backward")
def _pacresize2d_backward(grad: Tensor, input: Tensor, kernel: Tensor, *where: Any) -> Any:
    *enlargement, needs = where
    gradients = _backend(input).pacresize2d_backward(grad, input, kernel, Enlargement(*enlargement), tuple(needs))
    return _filled(gradients, (input, kernel))


def _filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if g is None else g for g, x in zip(gradients, like, strict=True))


# --- shapes without data ------------------------------------------------------------------------------


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    register: Callable[[Callable[..., Any]], Callable[..., Any]]
    register = torch.library.register_fake(f"pac_ops::{name}", lib=_library)
    return register


@_fake("squared_distance2d")
@_fake("gaussian_kernel2d")
def _squared_distance2d_fake(guide: Tensor, *window: Ints) -> Tensor:
    w = window_of(*window)
    b, _, height, width = guide.shape
    size = (b, 1, *w.kernel_size, *w.output_size(height, width))
    return guide.new_empty(size, dtype=accumulate_dtype(guide.dtype))


@_fake("squared_distance2d_backward")
def _squared_distance2d_backward_fake(grad: Tensor, guide: Tensor, *window: Ints) -> Tensor:
    return guide.new_empty(guide.shape)


@_fake("centred_distance2d")
def _centred_distance2d_fake(centre: Tensor, guide: Tensor, kernel_size: Ints, *window: Any) -> Tensor:
    b, _, ho, wo = centre.shape
    return guide.new_empty((b, 1, *kernel_size, ho, wo), dtype=accumulate_dtype(guide.dtype))


@_fake("centred_distance2d_backward")
def _centred_distance2d_backward_fake(
    grad: Tensor, centre: Tensor, guide: Tensor, *window: Any
) -> tuple[Tensor, Tensor]:
    return centre.new_empty(centre.shape), guide.new_empty(guide.shape)


@_fake("pacconv2d")
def _pacconv2d_fake(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    return input.new_empty((input.shape[0], weight.shape[0], *kernel.shape[4:]))


@_fake("pacconv_transpose2d")
def _pacconv_transpose2d_fake(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any
) -> Tensor:
    *_, groups = window
    return input.new_empty((input.shape[0], weight.shape[1] * groups, *kernel.shape[4:]))


@_fake("pacpool2d")
@_fake("pacresize2d")
def _pacpool2d_fake(input: Tensor, kernel: Tensor, *where: Any) -> Tensor:
    return input.new_empty((*input.shape[:2], *kernel.shape[4:]))


@_fake("resize_distance2d")
def _resize_distance2d_fake(guide: Tensor, coarse: Tensor, *where: Any) -> Tensor:
    footprint = where[-1]
    size = (guide.shape[0], 1, footprint, footprint, *guide.shape[2:])
    return guide.new_empty(size, dtype=accumulate_dtype(guide.dtype))


@_fake("resize_distance2d_backward")
def _resize_distance2d_backward_fake(
    grad: Tensor, guide: Tensor, coarse: Tensor, *where: Any
) -> tuple[Tensor, Tensor]:
    return guide.new_empty(guide.shape), coarse.new_empty(coarse.shape)


def _register_backward_fake(name: str, operands: int) -> None:
    @_fake(f"{name}_backward")
    def fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *_, needs = arguments
        return tuple(x.new_empty(x.shape if need else 0) for need, x in zip(needs, arguments[:operands], strict=True))


# --- autograd -----------------------------------------------------------------------------------------

# Arguments that have no batch: a weight, a bias, and in a backward operator the weight.
_WITHOUT_BATCH = {
    "pacconv2d": (2, 3),
    "pacconv2d_backward": (3,),
    "pacconv_transpose2d": (2, 3),
    "pacconv_transpose2d_backward": (3,),
}


def _register_autograd(
    name: str, vjp: Callable[..., Any], jvp: Callable[..., Any], setup: Callable[..., None]
) -> None:
    """The gradient of an operator, its derivative in forward mode, and how it is mapped over by `torch.vmap`."""
    torch.library.register_autograd(f"pac_ops::{name}", vjp, setup_context=setup, lib=_library)
    call = globals()[name]
    rule = batching.rule(call, _WITHOUT_BATCH.get(name, ()))
    torch.library.register_vmap(f"pac_ops::{name}", rule, lib=_library)
    members = {"forward": call, "setup_context": setup, "backward": vjp, "jvp": jvp, "vmap": rule}
    _TRANSFORMABLE[name] = type(name, (torch.autograd.Function,), {k: staticmethod(v) for k, v in members.items()})


def _save(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


# --- autograd: distances ------------------------------------------------------------------------------


def _distance_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    guide, *ctx.window = inputs
    _save(ctx, guide)


def _distance_jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
    (guide,) = ctx.saved_tensors
    return _polar(guide, tangent, ctx.window)


def _polar(f: Tensor, a: Tensor, window: Sequence[Any]) -> Tensor:
    """2 (f_i - f_j).(a_i - a_j), the bilinear form of the distance, by polarisation."""
    wide = accumulate_dtype(f.dtype)
    f, a = f.to(wide), a.to(wide)
    form: Tensor = (squared_distance2d(f + a, *window) - squared_distance2d(f - a, *window)) / 2
    return form


def _distance_vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (guide,) = ctx.saved_tensors
    return squared_distance2d_backward(grad, guide, *ctx.window), None, None, None, None


def _distance_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, guide, *ctx.window = inputs
    _save(ctx, grad, guide)


def _distance_backward_vjp(ctx: Any, vector: Tensor) -> tuple[Any, ...]:
    # The distance is a quadratic form Q(f) and its gradient R(g, f) = 2 sum g_ij (f_i - f_j) is linear in g
    # and in f. <a, R(g, f)> = sum g_ij 2 (f_i - f_j).(a_i - a_j).
    grad, guide = ctx.saved_tensors
    grad_grad = grad_guide = None
    if ctx.needs_input_grad[0]:
        grad_grad = _polar(guide, vector, ctx.window).to(grad.dtype)
    if ctx.needs_input_grad[1]:
        grad_guide = squared_distance2d_backward(grad, vector, *ctx.window)
    return grad_grad, grad_guide, None, None, None, None


def _distance_backward_jvp(ctx: Any, grad_tangent: Tensor | None, guide_tangent: Tensor | None, *_: Any) -> Any:
    grad, guide = ctx.saved_tensors
    return _total(
        None if grad_tangent is None else squared_distance2d_backward(grad_tangent, guide, *ctx.window),
        None if guide_tangent is None else squared_distance2d_backward(grad, guide_tangent, *ctx.window),
    )


def _gaussian_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    guide, *ctx.window = inputs
    _save(ctx, guide, output)


def _gaussian_vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    guide, kernel = ctx.saved_tensors
    return squared_distance2d_backward(-0.5 * kernel * grad, guide, *ctx.window), None, None, None, None


def _gaussian_jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
    guide, kernel = ctx.saved_tensors
    scaled: Tensor = -0.5 * kernel * _polar(guide, tangent, ctx.window)
    return scaled


def _total(*terms: Tensor | None) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _centred_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    centre, guide, *ctx.window = inputs
    _save(ctx, centre, guide)


def _centred_jvp(ctx: Any, centre_tangent: Tensor | None, guide_tangent: Tensor | None, *_: Any) -> Tensor:
    centre, guide = ctx.saved_tensors
    *sizes, asymmetric = ctx.window
    c, f = _or_zeros((centre_tangent, guide_tangent), (centre, guide))
    return second_order.centred_tangent(centre, guide, c, f, window_of(*sizes), asymmetric)


def _or_zeros(tangents: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, like, strict=True)]


def _centred_vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    centre, guide = ctx.saved_tensors
    return *centred_distance2d_backward(grad, centre, guide, *ctx.window), *(None,) * 5


def _centred_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, centre, guide, *window = inputs
    *sizes, ctx.asymmetric = ctx.arguments = window
    ctx.window = window_of(*sizes)
    _save(ctx, grad, centre, guide)


def _centred_backward_vjp(ctx: Any, centre_vector: Tensor, guide_vector: Tensor) -> tuple[Any, ...]:
    grad, centre, guide = ctx.saved_tensors
    gradients = second_order.centred_distance2d(
        grad, centre, guide, centre_vector, guide_vector, ctx.window, ctx.asymmetric
    )
    return *gradients, *(None,) * 5


def _centred_backward_jvp(
    ctx: Any, grad_tangent: Tensor | None, centre_tangent: Tensor | None, guide_tangent: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    grad, centre, guide = ctx.saved_tensors
    g, c, f = _or_zeros((grad_tangent, centre_tangent, guide_tangent), (grad, centre, guide))
    curved = second_order.centred_distance2d(grad, centre, guide, c, f, ctx.window, ctx.asymmetric)[1:]
    linear = centred_distance2d_backward(g, centre, guide, *ctx.arguments)
    return tuple(a + b for a, b in zip(linear, curved, strict=True))


_register_autograd("squared_distance2d", _distance_vjp, _distance_jvp, _distance_setup)
_register_autograd(
    "squared_distance2d_backward", _distance_backward_vjp, _distance_backward_jvp, _distance_backward_setup
)
_register_autograd("gaussian_kernel2d", _gaussian_vjp, _gaussian_jvp, _gaussian_setup)
_register_autograd("centred_distance2d", _centred_vjp, _centred_jvp, _centred_setup)
_register_autograd(
    "centred_distance2d_backward", _centred_backward_vjp, _centred_backward_jvp, _centred_backward_setup
)


# --- autograd: distances between two sizes ----------------------------------------------------------------

# D(f, g) is a quadratic form in both guides together, and its gradient R(G, f, g) is linear in G and in (f, g): as
# above, with two tensors for one.


def _resize_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    guide, coarse, *ctx.where = inputs
    _save(ctx, guide, coarse)


def _resize_vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *resize_distance2d_backward(grad, *ctx.saved_tensors, *ctx.where), *(None,) * 3


def _resize_jvp(ctx: Any, guide_tangent: Tensor | None, coarse_tangent: Tensor | None, *_: Any) -> Tensor:
    guides = ctx.saved_tensors
    return _resize_polar(guides, _or_zeros((guide_tangent, coarse_tangent), guides), ctx.where)


def _resize_polar(guides: Sequence[Tensor], others: Sequence[Tensor], where: Sequence[Any]) -> Tensor:
    """2 (f_i - g_j).(a_i - b_j), by polarisation."""
    wide = accumulate_dtype(guides[0].dtype)
    (f, g), (a, b) = ([x.to(wide) for x in pair] for pair in (guides, others))
    form: Tensor = (resize_distance2d(f + a, g + b, *where) - resize_distance2d(f - a, g - b, *where)) / 2
    return form


def _resize_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, guide, coarse, *ctx.where = inputs
    _save(ctx, grad, guide, coarse)


def _resize_backward_vjp(ctx: Any, *vectors: Tensor) -> tuple[Any, ...]:
    grad, *guides = ctx.saved_tensors
    grad_grad = _resize_polar(guides, vectors, ctx.where).to(grad.dtype) if ctx.needs_input_grad[0] else None
    return grad_grad, *resize_distance2d_backward(grad, *vectors, *ctx.where), *(None,) * 3


def _resize_backward_jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
    saved = ctx.saved_tensors
    g, *along = _or_zeros(tangents[:3], saved)
    terms = (
        resize_distance2d_backward(g, *saved[1:], *ctx.where),
        resize_distance2d_backward(saved[0], *along, *ctx.where),
    )
    return tuple(a + b for a, b in zip(*terms, strict=True))


_register_autograd("resize_distance2d", _resize_vjp, _resize_jvp, _resize_setup)
_register_autograd("resize_distance2d_backward", _resize_backward_vjp, _resize_backward_jvp, _resize_backward_setup)


# --- autograd: the operators that are linear in each of their operands --------------------------------------


def _register_multilinear(name: str, operands: int, *, bias: bool) -> None:
    """Autograd of F(x_1, ..., x_n[, bias], *window) and of its backward, for an F linear in each x."""
    run: Callable[..., Tensor] = globals()[name]
    run_backward: Callable[..., Sequence[Tensor]] = globals()[f"{name}_backward"]
    biases = (None,) * bias

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs[:operands])
        ctx.out_shape = output.shape
        ctx.window = inputs[operands + bias :]

    def gradients(
        grad: Tensor, xs: Sequence[Tensor], window: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        found = run_backward(grad, *xs, *window, list(needs))
        return tuple(g if need else None for g, need in zip(found, needs, strict=True))

    def vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[:operands]
        found: tuple[Tensor | None, ...] = (None,) * operands
        if any(needs):
            found = gradients(grad, ctx.saved_tensors, ctx.window, needs)
        if bias:
            found = *found, grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[operands] else None
        return *found, *(None,) * len(ctx.window)

    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        xs = ctx.saved_tensors
        terms = [
            None if t is None else run(*(t if k == slot else x for k, x in enumerate(xs)), *biases, *ctx.window)
            for slot, t in enumerate(tangents[:operands])
        ]
        if bias and tangents[operands] is not None:
            terms.append(tangents[operands][:, None, None].expand(ctx.out_shape))
        return _total(*terms)

    def backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, *inputs[: operands + 1])
        *ctx.window, ctx.needs = inputs[operands + 1 :]

    def backward_vjp(ctx: Any, *vectors: Tensor) -> tuple[Any, ...]:
        # With g the incoming gradient, the outputs are the derivatives of S = <g, F(x_1, ..., x_n)>. For vectors a_k
        # against them, the scalar to differentiate is <g, sum_k F(..., a_k in x_k's place, ...)>: the same operator
        # with one operand replaced, n times.
        grad, *xs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[: operands + 1]
        totals: list[Tensor | None] = [None] * (operands + 1)

        for slot, (vector, given) in enumerate(zip(vectors, ctx.needs, strict=True)):
            if not given:
                continue
            replaced = [vector if k == slot else x for k, x in enumerate(xs)]
            if wanted[0]:
                totals[0] = _total(totals[0], run(*replaced, *biases, *ctx.window))
            needs = [k != slot and wanted[k + 1] for k in range(operands)]
            if any(needs):
                for k, value in enumerate(gradients(grad, replaced, ctx.window, needs)):
                    totals[k + 1] = _total(totals[k + 1], value)
        return *totals, *(None,) * (len(ctx.window) + 1)

    def backward_jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        grad, *xs = ctx.saved_tensors
        totals: list[Tensor | None] = [None] * operands
        for slot, tangent in enumerate(tangents[: operands + 1]):
            if tangent is None:
                continue
            g, *replaced = (tangent if k == slot else x for k, x in enumerate((grad, *xs)))
            # The gradient of an operand does not depend on that operand.
            needs = [given and k + 1 != slot for k, given in enumerate(ctx.needs)]
            for k, value in enumerate(gradients(g, replaced, ctx.window, needs)):
                totals[k] = _total(totals[k], value)
        return tuple(
            x.new_zeros(x.shape if given else 0) if total is None else total
            for total, given, x in zip(totals, ctx.needs, xs, strict=True)
        )

    _register_autograd(name, vjp, jvp, setup)
    _register_autograd(f"{name}_backward", backward_vjp, backward_jvp, backward_setup)


for _name, _operands, _bias in (
    ("pacconv2d", 3, True),
    ("pacconv_transpose2d", 3, True),
    ("pacpool2d", 2, False),
    ("pacresize2d", 2, False),
):
    _register_backward_fake(_name, _operands)
    _register_multilinear(_name, _operands, bias=_bias)


# --- autocast: input, weight and bias as the stock convolution's; K stays float32 -----------------------


def _register_autocast(name: str, device_type: str, key: str) -> None:
    run = getattr(torch.ops.pac_ops, name).default

    def narrow(x: Tensor | None) -> Tensor | None:
        if x is None or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(torch.get_autocast_dtype(device_type))

    def autocast(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return run(narrow(input), kernel, narrow(weight), narrow(bias), *window)

    _library.impl(name, autocast, key)


for _device, _key in (
    ("cpu", "AutocastCPU"),
    ("cuda", "AutocastCUDA"),
    ("xpu", "AutocastXPU"),
    ("mps", "AutocastMPS"),
):
    for _name in _CAST:
        _register_autocast(_name, _device, _key)

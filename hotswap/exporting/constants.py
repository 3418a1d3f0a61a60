"""What a program computes of its parameters alone, as constants: XNNPACK takes no other weights."""

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.node import map_arg

from hotswap.exporting.memory import storage, writes

_MOST = 2**22  # bytes of what comes of no parameter: masks, and tables of places
_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def with_constants(program: ExportedProgram) -> None:
    """Compute what depends on no input once, and take the parameters out that nothing reads any more."""
    values = _values(program)
    computed = {node: value for node, value in values.items() if node.op != "placeholder"}
    read = [node for node in values if node.users]
    for node, value in computed.items():
        if any(user not in values for user in node.users):
            node.replace_all_uses_with(_constant(program, node, value), lambda user: user not in values)
    for node in reversed(computed):
        program.graph.erase_node(node)
    for node in read:
        if node.op == "placeholder" and not node.users:
            _remove(program, node)
    program.graph_module.recompile()


@torch.no_grad()
def _values(program: ExportedProgram) -> dict[Node, Tensor]:
    """The parameters of a program, and what it computes of these alone and of nothing, by node."""
    signature = program.graph_signature
    targets = {spec.arg.name: spec.target for spec in signature.input_specs if spec.kind in _KINDS}
    held = {**program.state_dict, **program.constants}
    left = {storage(node) for node in program.graph.nodes if writes(node)} | {
        *program.graph.output_node().all_input_nodes
    }
    values, most = dict[Node, Tensor](), dict[Node, int]()
    for node in program.graph.nodes:
        given = node.all_input_nodes
        if not left.isdisjoint((node, storage(node))) or any(x not in values for x in given):
            continue
        if node.op == "placeholder" and node.name in targets and node.name not in signature.buffers_to_mutate:
            value = held[targets[node.name]]
            most[node] = value.nbytes
        elif _is_computed(node):
            value = node.target(*map_arg(node.args, values.get), **map_arg(node.kwargs, values.get))
            most[node] = sum(most[x] for x in given) if given else _MOST
        else:
            continue
        if isinstance(value, Tensor) and value.nbytes <= most[node]:
            values[node] = value
    return values


def _is_computed(node: Node) -> bool:
    """Whether a node gives the same result at every call."""
    random = torch.Tag.nondeterministic_seeded
    return node.op == "call_function" and isinstance(node.target, OpOverload) and random not in node.target.tags


def _constant(program: ExportedProgram, node: Node, value: Tensor) -> Node:
    """A new constant of the program in a node's place."""
    specs, name = program.graph_signature.input_specs, f"constant_{node.name}"
    place = next(n for n, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT)
    with program.graph.inserting_before(_placeholder(program, specs[place])):
        made: Node = program.graph.placeholder(name)
    held = value.detach().clone(memory_format=torch.contiguous_format)
    made.meta["val"] = node.meta["val"].fake_mode.from_tensor(held, static_shapes=True)
    program.constants[name] = held
    specs.insert(place, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(made.name), name))
    return made


def _placeholder(program: ExportedProgram, spec: InputSpec) -> Node:
    found: Node = next(node for node in program.graph.find_nodes(op="placeholder") if node.name == spec.arg.name)
    return found


def _remove(program: ExportedProgram, placeholder: Node) -> None:
    """Take a parameter out of the program."""
    specs = program.graph_signature.input_specs
    (spec,) = (spec for spec in specs if spec.arg.name == placeholder.name)
    specs.remove(spec)
    program.state_dict.pop(spec.target, None)
    program.constants.pop(spec.target, None)
    program.graph.erase_node(placeholder)

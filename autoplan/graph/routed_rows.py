"""Which ops of a block can run where their rows' experts are, and which weights those experts own.

    x at home ─→ product by expert ─→ activation ─→ product by expert ─→ y at home
                 └───────────── away: rows lie with their experts ────────┘

A product grouped by expert is away. So is an op between two of them that treats rows alike, and whatever makes
the products' weights of parameters is cut with them. All other ops stay at home.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from autoplan.errors import PlanError
from autoplan.graph.axes import spec_of, strategies
from autoplan.graph.axes.local_sizes import keeps_rows
from autoplan.graph.gemms import is_grouped, tensor_arguments
from autoplan.graph.ir import Block, Op
from autoplan.graph.layout import Layout, shard
from autoplan.graph.mesh_calls import MeshCall
from autoplan.graph.strategy import Strategy

__all__ = ["RoutedRows", "routed_rows"]

_WHOLE = "plan with ep=1, or write the layer's weights as one parameter of dim 0 = experts"


@dataclass(slots=True)
class RoutedRows:
    """What runs away, and what is cut with the experts.

    Args:
        ends: of each op that is away, the value that says where its experts' rows end.
        rows: of each such op, its arguments that have a row for each of its own.
        made: how each op that makes weights of parameters is cut.
        parameters: of each parameter of experts, the dim that is cut.
    """

    ends: dict[fx.Node, fx.Node] = field(default_factory=dict)
    rows: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    made: dict[fx.Node, Strategy] = field(default_factory=dict)
    parameters: dict[fx.Node, int] = field(default_factory=dict)


def routed_rows(block: Block, degree: int) -> RoutedRows:
    """What ``degree`` ranks that share out the experts of ``block`` do away from home.

    Raises PlanError where the experts do not divide, or their weights cannot be told from others.
    """
    found = RoutedRows()
    ops = {op.name: op for op in block.ops}
    nodes = [node for node in block.graph.nodes if node.op == "call_function"]
    products = [node for node in nodes if is_grouped(node)]
    for node in products:
        experts = int(node.args[1].meta["val"].shape[0])  # type: ignore[union-attr]
        if experts % degree:
            raise PlanError(
                "ep",
                degree,
                f"a divisor of the {experts} experts of {ops[node.name].module_path or block.kind}",
                "change it",
            )
        found.ends[node] = node.args[2]  # type: ignore[assignment]
        found.rows[node] = (node.args[0],)  # type: ignore[assignment]
    _away_between(block, ops, nodes, found)
    for node in products:
        _cut_weight(block, ops, node.args[1], shard(0), degree, found)  # type: ignore[arg-type]
    _refuse_other_readers(block, found, set(products))
    return found


def _away_between(block: Block, ops: dict[str, Op], nodes: list[fx.Node], found: RoutedRows) -> None:
    """Ops that lead from one product's rows to another's."""
    wanted = {x for rows in found.rows.values() for x in rows}
    leading: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in reversed(nodes):
        if node in wanted and node not in found.ends and (rows := _aligned(block, ops, node)):
            leading[node] = rows
            wanted.update(rows)
    for node in nodes:
        if node in leading:
            ends = {found.ends[row] for row in leading[node] if row in found.ends}
            if len(ends) == 1:
                found.ends[node], found.rows[node] = ends.pop(), leading[node]


def _aligned(block: Block, ops: dict[str, Op], node: fx.Node) -> tuple[fx.Node, ...]:
    """The arguments whose rows are those of the result, if the op treats rows alike; else none."""
    op = ops[node.name]
    spec = spec_of(block, op)
    if spec is None or op.random or spec.pieces or isinstance(node.target, MeshCall) or not keeps_rows(node):
        return ()
    if not spec.output or len(spec.output[0]) != 1:
        return ()
    (axis,) = spec.output[0]
    if axis in spec.fixed | spec.averaged | set(spec.counts.values()):
        return ()
    rows = []
    for source, dims in zip(tensor_arguments(node), spec.inputs, strict=True):
        if dims and dims[0] == (axis,):
            rows.append(source)
        elif any(axis in dim for dim in dims) or not _same_on_all(source):
            return ()
    return () if any(axis in dim for dim in spec.output[1:]) else tuple(rows)


def _same_on_all(node: fx.Node) -> bool:
    """True of what is made of the module's own tensors and numbers alone, which all ranks have alike."""
    return node.op == "get_attr" or (
        node.op == "call_function" and all(_same_on_all(source) for source in node.all_input_nodes)
    )


def _cut_weight(
    block: Block, ops: dict[str, Op], node: fx.Node, wanted: Layout, degree: int, found: RoutedRows
) -> None:
    """Cut ``node`` as ``wanted``, and what it is made of accordingly."""
    if node.name in block.parameters and wanted.parts == 1:
        if found.parameters.setdefault(node, wanted.dim) == wanted.dim:
            return
    elif node.op == "call_function" and len(node.all_input_nodes) == 1:
        for strategy in strategies(block, ops[node.name], degree):
            if strategy.output == wanted and strategy.kernel is None and strategy.inputs[0].is_shard:
                if found.made.setdefault(node, strategy) != strategy:
                    break
                _cut_weight(block, ops, node.all_input_nodes[0], strategy.inputs[0], degree, found)
                return
    raise PlanError(
        "ep", degree, f"1, since the weights of the experts of {block.kind} come of {node.name}", _WHOLE
    )


def _refuse_other_readers(block: Block, found: RoutedRows, products: set[fx.Node]) -> None:
    """A weight that is cut may be read by its own products alone."""
    cut = found.parameters.keys() | found.made.keys()
    for node in cut:
        for user in node.users:
            if user not in products and user not in cut:
                raise PlanError(
                    "ep",
                    "above 1",
                    f"1, since {user.name} of {block.kind} reads the weights of all experts",
                    _WHOLE,
                )

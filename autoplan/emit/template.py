"""The part of a script that trains, as its text: what ``runtime.program`` does, in plain PyTorch.

A line that ends with ``#? a !b`` is for scripts that need a and not b.

    again     backward runs some units again             pp        several stages
    policies  or some of their ops                       order     under a schedule that is written out
    ep        experts are shared out                     halves    which runs halves of a backward apart
    unit      any of these three                         1f1b, gpipe  or under torch's own
    cp, tp    a sequence, or an op, is shared            tied      weights live in several stages
    sharded   FSDP2 is at work                           draws     the model draws random numbers
    replicas  or whole copies average their gradients    grouped   one of these two
    bf16      master weights in another dtype            weighed   micro-batches count by their targets
    mesh      several ranks, or FSDP2
"""

from __future__ import annotations

import re
from collections.abc import Set

__all__ = ["imports", "training"]

_TAG = re.compile(r"  #\? (.+)$")


def training(features: Set[str]) -> str:
    """The part of a script with these ``features`` that trains."""
    return "\n\n\n".join(_written(text, features) for needs, text in _SECTIONS if _fits(needs, features))


def imports(features: Set[str]) -> list[str]:
    """The lines of import that it needs."""
    return _written(_IMPORTS, features).splitlines()


def _written(text: str, features: Set[str]) -> str:
    lines = []
    for line in text.strip().splitlines():
        tag = _TAG.search(line)
        if tag is None or _fits(tag[1], features):
            lines.append(_TAG.sub("", line))
    return "\n".join(lines)


def _fits(needs: str, features: Set[str]) -> bool:
    return all((word[0] != "!") == (word.removeprefix("!") in features) for word in needs.split())


_IMPORTS = """
import argparse
import os
import warnings  #? sharded
from pathlib import Path
import torch
import torch.distributed as dist  #? mesh
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh  #? mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  #? sharded
from torch.distributed.pipelining import Schedule1F1B  #? 1f1b
from torch.distributed.pipelining import ScheduleGPipe  #? gpipe
from torch.distributed.tensor import DTensor  #? tied
from torch.distributed.tensor import Shard  #? ep
"""

_UNIT = '''
class Unit(nn.Module):
    """Runs a block; ``way`` says what of it the backward pass runs again."""  #? !ep
    """Runs a block, which reads the weights of this rank's ``experts``; ``way`` says what backward runs again."""  #? ep

    def __init__(self, body: nn.Module, way: str) -> None:  #? !ep
    def __init__(self, body: nn.Module, way: str, experts: nn.Module | None) -> None:  #? ep
        super().__init__()
        self.body, self.way = body, way
        self.experts = experts  #? ep
        body.__dict__["experts_here"] = experts  # to read, not to own: their state lies on other ranks  #? ep
        self.parked: Copies | None = None  # what the last run has in the host's memory  #? policies

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        body = self.body
        if self.way == "full":  #? again
            return run_again(body, values, [body.get_buffer(name) for name in body.changed_buffers])  #? again
        if self.way in body.policies:  #? policies
            self.parked = Copies()  #? policies
            return Keeping(body.policies[self.way], self.parked).run(body, values, body.inputs)  #? policies
        return body(*values)
'''

_MODEL = '''
class Model(nn.Module):
    """This rank's pieces of every unit, run one after the other."""  #? !pp
    """This rank's pieces of the units of one stage, run one after the other."""  #? pp

    def __init__(self, model: nn.Module, mesh) -> None:  #? !pp !ep
    def __init__(self, model: nn.Module, mesh, stage: int) -> None:  #? pp !ep
    def __init__(self, model: nn.Module, mesh, expert_mesh) -> None:  #? !pp ep
    def __init__(self, model: nn.Module, mesh, expert_mesh, stage: int) -> None:  #? pp ep
        super().__init__()
        whole = dict(model.named_parameters(remove_duplicate=False))
        buffers = {name: buffer.to(DEVICE) for name, buffer in model.named_buffers(remove_duplicate=False)}
        tp_mesh = mesh["tp"]  #? tp
        tp_mesh = None  #? !tp
        experts_mesh = expert_mesh["ep", "tp"]  #? ep tp
        experts_mesh = expert_mesh["ep"]  #? ep !tp
        self.chain = UNITS  #? !pp
        self.free = with_buffers(Free(), buffers)  #? !pp
        first, stop, free, self.free_values = STAGES[stage]  #? pp
        self.chain = UNITS[first:stop]  #? pp
        self.free = with_buffers(free(), buffers)  #? pp
        self.reads, self.writes = ([name for name, *_ in WIRES[place]] for place in (stage, stage + 1))  #? pp
        self.units = nn.ModuleDict()
        made: dict[tuple[int, str], nn.Parameter] = {}  # a tied weight is made once
        for name, kind, path, _, _, way in self.chain:
            body = kind()
            experts = nn.Module()  #? ep
            prefix = f"{path}." if path else ""
            for relative, layout in kind.parameters_and_layouts.items():
                tensor = whole[prefix + relative]
                key = (id(tensor), layout)
                cut = kind.expert_dims.get(relative)  #? ep
                if key not in made:
                    master = tensor.to(DEVICE, MASTER if tensor.is_floating_point() else None)
                    place = Layout.parse(layout), tp_mesh, tensor.requires_grad  #? !ep
                    place = Layout.parse(layout), tp_mesh if cut is None else experts_mesh, tensor.requires_grad, cut  #? ep
                    made[key] = local_parameter(master, *place)
                attach(body, relative, made[key])  #? !ep
                attach(body if cut is None else experts, relative, made[key])  #? ep
            for relative in kind.buffer_names:
                buffer = buffers[prefix + relative]
                attach(body, relative, buffer.clone() if relative in kind.changed_buffers else buffer)
            self.units[key_of(name)] = body  #? !unit
            self.units[key_of(name)] = Unit(body, way)  #? unit !ep
            self.units[key_of(name)] = Unit(body, way, experts if kind.expert_dims else None)  #? ep

    def forward(self, batch: dict[str, Tensor], loss_scale: Tensor) -> Tensor:  #? !pp
        """The loss of a micro-batch times ``loss_scale``, as a tensor of one element."""  #? !pp
    def forward(self, *received: Tensor, loss_scale: Tensor, **given: Tensor) -> tuple[Tensor, ...] | Tensor:  #? pp
        """What the next stage reads; in the last stage, the loss of a micro-batch times ``loss_scale``."""  #? pp
        batch = {name.removeprefix("batch_"): tensor for name, tensor in given.items()}  #? pp
        values = {f"batch.{name}": tensor for name, tensor in batch.items()}
        values.update(zip(self.reads, received, strict=True))  #? pp
        values.update(zip(FREE_VALUES, self.free(**only(self.free, batch)), strict=True))  #? !pp
        values.update(zip(self.free_values, self.free(**only(self.free, batch)), strict=True))  #? pp
        parked: Copies | None = None  #? policies
        for name, kind, _, reads, writes, _ in self.chain:  #? draws
        for name, _, _, reads, writes, _ in self.chain:  #? !draws
            inputs = [values[read] for read in reads]
            if kind.draws:  #? draws
                inputs.append(unit_draws(batch["autoplan_draws"], name))  #? draws
            unit = self.units[key_of(name)]
            results = unit(*inputs)
            fetch_ahead(parked, results)  #? policies
            parked = unit.parked  #? policies
            values.update(zip(writes, results, strict=True))
        if self.writes != [LOSS]:  #? pp
            return tuple(values[name].contiguous() for name in self.writes)  #? pp
        loss = values[LOSS].reshape(1) * loss_scale.to(values[LOSS].dtype)
        return loss  #? !cp
        return GradientTimes.apply(loss, CP)  #? cp


def key_of(unit: str) -> str:
    return unit.replace(".", "_")


def with_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> nn.Module:
    for name in module.buffer_names:
        attach(module, name, buffers[name])
    return module


def only(module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of the batch that a module's forward takes."""
    wanted = module.forward.__code__.co_varnames[1 : module.forward.__code__.co_argcount]
    return {name: batch[name] for name in wanted}
'''

_REPLICAS = '''
def average_replicas(model: Model, mesh) -> None:
    """Average the gradients of each group of units over the ranks that hold the same."""
    units = groups_of(model.units.values())
    groups = [list({p: None for unit in group for p in unit.parameters()}) for group in units]
    model.replicas = Replicas(groups, mesh["dp"].get_group())
'''

_SHARDING = '''
def wrap_in_fsdp(model: Model, mesh) -> None:  #? !ep
def wrap_in_fsdp(model: Model, mesh, expert_mesh) -> None:  #? ep
    """FSDP2 around each unit."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    data = mesh["fsdp"] if REPLICAS == 1 else mesh["dp", "fsdp"]
    expert_data = expert_mesh["efsdp"] if EXPERT_REPLICAS == 1 else expert_mesh["edp", "efsdp"]  #? ep
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)  #? !bf16
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)  #? bf16
    for group in groups_of(model.units.values()):
        fully_shard(group, mesh=data, mp_policy=policy, reshard_after_forward=ZERO == 3)  #? !ep
        dense = [unit if unit.experts is None else unit.body for unit in group]  #? ep
        fully_shard(dense, mesh=data, mp_policy=policy, reshard_after_forward=ZERO == 3)  #? ep
        for unit in group:  #? ep
            if unit.experts is not None:  # what is left of it  #? ep
                place = {"mesh": expert_data, "shard_placement_fn": expert_cut}  #? ep
                fully_shard(unit, **place, mp_policy=policy, reshard_after_forward=ZERO == 3)  #? ep
    fully_shard(model, mesh=data, mp_policy=policy, reshard_after_forward=False)
'''

_EXPERT_CUT = '''
def expert_cut(parameter: nn.Parameter) -> Shard:
    """The dim that ranks share: of experts that are too few to share, each one is cut."""
    shape = parameter.to_local().shape
    return Shard(next((dim for dim, n in enumerate(shape) if n % EXPERT_SHARDS == 0), 0))
'''

_PIPELINE = '''
def make_pipeline(stages: dict[int, Model], mesh):
    """torch's runtime of the schedule for this rank's stages."""
    made = []
    for place, stage in stages.items():
        options = {"input_args": examples(WIRES[place]), "output_args": examples(WIRES[place + 1])}
        options["group"] = mesh["pp"].get_group()
        options |= {"zero": ZERO, "micro_batches": MICRO_BATCHES}  #? halves
        made.append(HalvedStage(stage, place, len(STAGES), DEVICE, **options))  #? halves
        made.append(Stage(stage, place, len(STAGES), DEVICE, **options))  #? !halves
        made[-1].zero = ZERO  #? !halves
    return Schedule1F1B(made[0], MICRO_BATCHES, loss_fn=first, scale_grads=False)  #? 1f1b
    return ScheduleGPipe(made[0], MICRO_BATCHES, loss_fn=first, scale_grads=False)  #? gpipe
    return in_order(made, MICRO_BATCHES, ORDER)  #? order


def examples(wires) -> tuple[Tensor, ...]:
    """Tensors of the shapes that pass between stages, without memory."""
    return tuple(
        torch.empty(shape, dtype=getattr(torch, dtype), device="meta", requires_grad=grad)
        for _, shape, dtype, grad in wires
    )
'''

_TIED = '''
def tied_weights(stages: dict[int, Model], mesh) -> list[tuple[list[tuple[nn.Module, str]], object]]:
    """Where this rank has weights that live in several stages, and the group of ranks that have the others."""
    pipelines = mesh.mesh.reshape(PP, -1).T.tolist()  # ranks of each, in its order
    found = []
    for homes in TIED:
        holders = sorted({RANK_OF_STAGE[place] for place, _, _ in homes})
        group = None
        for ranks in pipelines if len(holders) > 1 else ():
            members = [ranks[holder] for holder in holders]
            made = dist.new_group(members)
            group = made if dist.get_rank() in members else group
        here = [(stages[place].units[key_of(unit)], name) for place, unit, name in homes if place in stages]
        here = [(unit.body, name) for unit, name in here]  #? unit
        if here:
            found.append((here, group))
    return found


def sum_tied_gradients(tied) -> None:
    """Add up each tied weight's gradients over the stages that have it."""
    for places, group in tied:
        gradients = [unit.get_parameter(name).grad for unit, name in places]
        parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients if g is not None]
        if not parts:
            continue
        for other in parts[1:]:
            parts[0] += other
        if group is not None:
            dist.all_reduce(parts[0], group=group)
        for other in parts[1:]:
            other.copy_(parts[0])
'''

_STEP = '''
def train_step(model: Model, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], scale: Tensor) -> float:
    """One optimizer step on this rank's share of the batch; returns the mean loss over the global batch."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=DEVICE, dtype=torch.float64)
    for index, part in enumerate(micro_batches(batch)):
        last = index == MICRO_BATCHES - 1  #? grouped
        model.replicas.expect(last)  #? replicas
        model.set_is_last_backward(last)  #? sharded
        model.set_requires_gradient_sync(last or ZERO >= 2)  #? sharded
        model.set_requires_all_reduce(last)  #? sharded
        model.set_reshard_after_backward(last or ZERO == 3)  #? sharded
        loss = model(part, scale).sum()
        loss.backward()
        total = total + loss.detach()
    model.replicas.finish()  #? replicas
    optimizer.step()
    return (over_ranks(total) / (DP * FSDP * CP * TP)).item()
'''

_PIPELINE_STEP = '''
def train_step(pipeline, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], scale: Tensor) -> float:  #? !tied
def train_step(pipeline, tied, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], scale: Tensor) -> float:  #? tied
    """One optimizer step on this rank's share of the batch; returns the mean loss over the global batch."""
    optimizer.zero_grad(set_to_none=True)
    given = {f"batch_{name}": tensor for name, tensor in batch.items()}
    given["loss_scale"] = scale.expand(MICRO_BATCHES)
    total = torch.zeros((), device=DEVICE)
    if dist.get_rank() // (DP * FSDP * CP * TP) == RANK_OF_STAGE[-1]:
        losses: list[Tensor] = []
        target = torch.zeros(MICRO_BATCHES, 1)  # nobody reads it: the last stage gives the loss
        pipeline.step(target=target, losses=losses, return_outputs=False, **given)
        total = torch.stack([loss.detach() for loss in losses]).sum()
    else:
        pipeline.step(return_outputs=False, **given)
    for replicas in pipeline.replicas:  #? replicas
        replicas.finish()  #? replicas
    sum_tied_gradients(tied)  #? tied
    optimizer.step()
    return (over_ranks(total.double()) / (DP * FSDP * CP * TP)).item()
'''

_SCALE = '''
def loss_scale() -> Tensor:  #? !weighed
    """What the loss of a micro-batch is multiplied by."""  #? !weighed
    return torch.full((1,), 1 / MICRO_BATCHES, device=DEVICE, dtype=torch.float64)  #? !weighed
def loss_scale(targets: Targets, batch: dict[str, Tensor]) -> Tensor:  #? weighed
    """What the loss of a micro-batch is multiplied by, which is a sum: micro-batches count by their targets."""  #? weighed
    count = torch.zeros((), device=DEVICE, dtype=torch.float64)  #? weighed
    for part in micro_batches(batch):  #? weighed
        count += targets(**only(targets, part))[0]  #? weighed
    return (DP * FSDP / (over_ranks(count) / (PP * CP * TP)).clamp(min=1)).reshape(1)  #? weighed


def micro_batches(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    rows = [tensor.split(MICRO_BATCH) for tensor in batch.values()]
    return [dict(zip(batch, row, strict=True)) for row in zip(*rows, strict=True)]


def over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    value = value.clone()  #? mesh
    dist.all_reduce(value)  #? mesh
    return value
'''

_MAIN = '''
def batches(example, file: Path | None):
    """Global batches, without end. Put your data here; without --data, the example comes again and again."""
    found = torch.load(file) if file is not None else [example]
    while True:
        yield from found


def share_of(batch, rank: int) -> dict[str, Tensor]:
    """This rank's rows of a global batch, by the names of the model's inputs."""
    tensors, _ = pytree.tree_flatten(batch)
    if isinstance(batch, dict):
        named = dict(batch)
    else:
        named = dict(zip(BATCH, tensors, strict=True))
    rows = GLOBAL_BATCH // (DP * FSDP)
    found = {}
    for name, dtype in BATCH.items():
        tensor = named[name]
        if tensor.shape[0] != GLOBAL_BATCH:
            raise SystemExit(f"batch.{name} has {tensor.shape[0]} rows; the plan is for {GLOBAL_BATCH}")
        mine = tensor[rank * rows : (rank + 1) * rows].to(DEVICE)
        found[name] = mine.to(getattr(torch, dtype)) if mine.is_floating_point() else mine
    return found


def main() -> None:
    global TP_GROUP  #? tp
    global CP_GROUP  #? cp
    global EP_GROUP  #? ep
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a file that torch.save wrote: a list of global batches")
    args = parser.parse_args()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks != PP * DP * FSDP * CP * TP:
        raise SystemExit(f"this script is for {PP * DP * FSDP * CP * TP} ranks, not {ranks}: torchrun --nproc-per-node ...")
    mesh = None  #? !mesh
    if DEVICE.type == "cuda":  #? mesh
        torch.cuda.set_device(DEVICE)  #? mesh
    backend = "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo"  #? mesh
    alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if ranks == 1 else {}  #? mesh
    dist.init_process_group(backend, **alone)  #? mesh
    mesh = init_device_mesh(DEVICE.type, (PP, REPLICAS, SHARDS, TP), mesh_dim_names=("pp", "dp", "fsdp", "tp"))  #? mesh
    sizes = PP, EXPERT_REPLICAS, EXPERT_SHARDS, EP, TP  #? ep
    expert_mesh = init_device_mesh(DEVICE.type, sizes, mesh_dim_names=("pp", "edp", "efsdp", "ep", "tp"))  #? ep
    TP_GROUP = mesh["tp"].get_group().group_name  #? tp
    EP_GROUP = expert_mesh["ep"].get_group().group_name  #? ep
    neighbours = torch.arange(ranks).view(-1, CP, TP).transpose(1, 2).reshape(-1, CP).tolist()  #? cp
    for group in neighbours:  # those that differ in cp alone  #? cp
        made = dist.new_group(group)  #? cp
        CP_GROUP = made.group_name if rank in group else CP_GROUP  #? cp
    torch.manual_seed(args.seed)
    whole, example = build_model()
    for tensor in (*whole.parameters(), *whole.buffers()):  # rank 0's weights count  #? mesh
        dist.broadcast(tensor.data, src=0)  #? mesh
    targets = with_buffers(Targets(), {name: buffer.to(DEVICE) for name, buffer in whole.named_buffers()})  #? weighed
    model = Model(whole, mesh).train(whole.training)  #? !pp !ep
    model = Model(whole, mesh, expert_mesh).train(whole.training)  #? !pp ep
    mine = [place for place, home in enumerate(RANK_OF_STAGE) if home == mesh.get_local_rank("pp")]  #? pp
    stages = {place: Model(whole, mesh, place).train(whole.training) for place in mine}  #? pp !ep
    stages = {place: Model(whole, mesh, expert_mesh, place).train(whole.training) for place in mine}  #? pp ep
    del whole
    wrap_in_fsdp(model, mesh)  #? !pp sharded !ep
    wrap_in_fsdp(model, mesh, expert_mesh)  #? !pp sharded ep
    average_replicas(model, mesh)  #? !pp replicas
    for stage in stages.values():  #? pp replicas
        average_replicas(stage, mesh)  #? pp replicas
    for stage in stages.values():  #? pp sharded
        wrap_in_fsdp(stage, mesh)  #? pp sharded !ep
        wrap_in_fsdp(stage, mesh, expert_mesh)  #? pp sharded ep
    tied = tied_weights(stages, mesh)  #? tied
    pipeline = make_pipeline(stages, mesh)  #? pp
    pipeline.replicas = [stage.replicas for stage in stages.values()]  #? pp replicas
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)  #? !pp
    optimizer = torch.optim.AdamW(nn.ModuleList(stages.values()).parameters(), lr=args.lr)  #? pp
    data_rank = rank // (CP * TP) % (DP * FSDP)
    for step, batch in zip(range(args.steps), batches(example, args.data), strict=False):
        share = share_of(batch, data_rank)
        rows = GLOBAL_BATCH // (DP * FSDP)  #? draws
        draws = sample_draws(torch.initial_seed(), f"step {step}", data_rank * rows, rows)  #? draws
        share["autoplan_draws"] = draws.to(DEVICE)  #? draws
        scale = loss_scale()  #? !weighed
        scale = loss_scale(targets, share)  #? weighed
        loss = train_step(model, optimizer, share, scale)  #? !pp
        loss = train_step(pipeline, optimizer, share, scale)  #? pp !tied
        loss = train_step(pipeline, tied, optimizer, share, scale)  #? tied
        if rank == 0:
            print(f"step {step}  loss {loss!r}", flush=True)
    dist.barrier()  #? mesh
    dist.destroy_process_group()  #? mesh


if __name__ == "__main__":
    main()
'''

_SECTIONS = (
    ("unit", _UNIT),
    ("", _MODEL),
    ("replicas", _REPLICAS),
    ("sharded", _SHARDING),
    ("ep", _EXPERT_CUT),
    ("pp", _PIPELINE),
    ("tied", _TIED),
    ("!pp", _STEP),
    ("pp", _PIPELINE_STEP),
    ("", _SCALE),
    ("", _MAIN),
)

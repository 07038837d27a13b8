"""The training loop of an emitted script, as its text: the steps that ``runtime.program`` runs, for one stage."""

from __future__ import annotations

__all__ = ["MAIN", "main_text"]

_DRAWS = "  # draws"


def main_text(draws: bool) -> str:
    """The loop; ``draws``: for a model that draws random numbers."""
    lines = MAIN.splitlines()
    return "\n".join(line.removesuffix(_DRAWS) for line in lines if draws or not line.endswith(_DRAWS))


MAIN = '''
class Model(nn.Module):
    """This rank's pieces of every unit, run one after the other."""

    def __init__(self, model: nn.Module, tp_mesh) -> None:
        super().__init__()
        whole = dict(model.named_parameters(remove_duplicate=False))
        buffers = {name: buffer.to(DEVICE) for name, buffer in model.named_buffers(remove_duplicate=False)}
        self.free = Free()
        for name in self.free.buffer_names:
            attach(self.free, name, buffers[name])
        self.targets = Targets() if WEIGHED else None
        if WEIGHED:
            for name in self.targets.buffer_names:
                attach(self.targets, name, buffers[name])
        self.units = nn.ModuleDict()
        made: dict[tuple[int, str], nn.Parameter] = {}  # a tied weight is made once
        for name, kind, path, *_ in UNITS:
            unit = kind()
            prefix = f"{path}." if path else ""
            for relative, layout in kind.parameters_and_layouts.items():
                tensor = whole[prefix + relative]
                key = (id(tensor), layout)
                if key not in made:
                    master = tensor.to(MASTER) if tensor.is_floating_point() else tensor
                    made[key] = local_parameter(
                        master.to(DEVICE), Layout.parse(layout), tp_mesh, tensor.requires_grad
                    )
                attach(unit, relative, made[key])
            for relative in kind.buffer_names:
                buffer = buffers[prefix + relative]
                attach(unit, relative, buffer.clone() if relative in kind.changed_buffers else buffer)
            self.units[name.replace(".", "_")] = unit

    def forward(self, batch: dict[str, Tensor], scale: Tensor) -> Tensor:
        """The loss of a micro-batch times ``scale``, as a tensor of one element."""
        values = {f"batch.{name}": tensor for name, tensor in batch.items()}
        values.update(zip(FREE_VALUES, self.free(**only(self.free, batch)), strict=True))
        for name, _, _, reads, writes, again in UNITS:
            unit = self.units[name.replace(".", "_")]
            inputs = [values[read] for read in reads]
            if unit.draws:  # draws
                inputs.append(unit_draws(batch["autoplan_draws"], name))  # draws
            results = checkpoint(unit, *inputs, use_reentrant=False) if again else unit(*inputs)
            values.update(zip(writes, results, strict=True))
        return values[LOSS].reshape(1) * scale.to(values[LOSS].dtype)


def only(module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of the batch that a module's forward takes."""
    wanted = module.forward.__code__.co_varnames[1 : module.forward.__code__.co_argcount]
    return {name: batch[name] for name in wanted}


def wrap_in_fsdp(model: Model, mesh) -> None:
    """FSDP2 around each unit; units that share a parameter are gathered together."""
    if mesh is None or (DP * FSDP == 1 and not MIXED_PRECISION):
        return
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    data = mesh["fsdp"] if DP == 1 else mesh["dp", "fsdp"]
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if MIXED_PRECISION:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    groups: list[list[nn.Module]] = []
    owners: dict[int, list[nn.Module]] = {}
    for unit in model.units.values():
        parameters = [id(parameter) for parameter in unit.parameters()]
        if not parameters:
            continue
        group = next((owners[p] for p in parameters if p in owners), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(unit)
        owners.update(dict.fromkeys(parameters, group))
    for group in groups:
        fully_shard(group, mesh=data, mp_policy=policy, reshard_after_forward=ZERO == 3)
    fully_shard(model, mesh=data, mp_policy=policy, reshard_after_forward=False)


def train_step(model: Model, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> float:
    """One optimizer step on this rank's share of the batch; returns the mean loss over the global batch."""
    optimizer.zero_grad(set_to_none=True)
    rows = [tensor.split(MICRO_BATCH) for tensor in batch.values()]
    parts = [dict(zip(batch, row, strict=True)) for row in zip(*rows, strict=True)]
    scale = torch.full((1,), 1 / MICRO_BATCHES, device=DEVICE, dtype=torch.float64)
    if WEIGHED:
        count = torch.zeros((), device=DEVICE, dtype=torch.float64)
        for part in parts:
            count += model.targets(**only(model.targets, part))[0]
        scale = (DP * FSDP / (over_ranks(count) / TP).clamp(min=1)).reshape(1)
    total = torch.zeros((), device=DEVICE, dtype=torch.float64)
    for index, part in enumerate(parts):
        last = index == MICRO_BATCHES - 1
        if isinstance(model, FSDPModule):
            model.set_is_last_backward(last)
            model.set_requires_gradient_sync(last or ZERO >= 2)
            model.set_requires_all_reduce(last)
            model.set_reshard_after_backward(last or ZERO == 3)
        loss = model(part, scale).sum()
        loss.backward()
        total = total + loss.detach()
    optimizer.step()
    return (over_ranks(total.double()) / (TP * DP * FSDP)).item()


def over_ranks(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


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
    global TP_GROUP
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a file that torch.save wrote: a list of global batches")
    args = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks != DP * FSDP * TP:
        raise SystemExit(f"this script is for {DP * FSDP * TP} ranks, not {ranks}: torchrun --nproc-per-node ...")
    mesh = None
    if ranks > 1 or MIXED_PRECISION:
        if DEVICE.type == "cuda":
            torch.cuda.set_device(DEVICE)
        backend = "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo"
        alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if ranks == 1 else {}
        dist.init_process_group(backend, **alone)
        mesh = init_device_mesh(DEVICE.type, (DP, FSDP, TP), mesh_dim_names=("dp", "fsdp", "tp"))
    torch.manual_seed(args.seed)
    whole, example = build_model()
    if ranks > 1:
        for tensor in (*whole.parameters(), *whole.buffers()):  # rank 0's weights count
            dist.broadcast(tensor.data, src=0)
    tp_mesh = mesh["tp"] if TP > 1 else None
    if tp_mesh is not None:
        TP_GROUP = tp_mesh.get_group().group_name
    model = Model(whole, tp_mesh).train(whole.training)
    del whole
    wrap_in_fsdp(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    data_rank = int(os.environ.get("RANK", "0")) // TP
    for step, batch in zip(range(args.steps), batches(example, args.data), strict=False):
        mine = share_of(batch, data_rank)
        rows = GLOBAL_BATCH // (DP * FSDP)  # draws
        draws = sample_draws(torch.initial_seed(), f"step {step}", data_rank * rows, rows)  # draws
        mine["autoplan_draws"] = draws.to(DEVICE)  # draws
        loss = train_step(model, optimizer, mine)
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"step {step}  loss {loss!r}", flush=True)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
'''

"""``parallelize``: from a model to a program, by way of a plan."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from autoplan.errors import NoPlanError, PlanError
from autoplan.graph.cut import cut_graph
from autoplan.graph.expert_cut import cut_experts
from autoplan.graph.ir import ModelGraph
from autoplan.graph.layout import Layout
from autoplan.graph.trace import Loss, flatten_batch, trace
from autoplan.hardware import AnyCluster
from autoplan.plan import Job, Plan, Precision, check_policies, read_plan, validate_plan
from autoplan.rewrite import StageModule, build_stage
from autoplan.runtime.data_parallel import shard_state
from autoplan.runtime.initialise import initialised
from autoplan.runtime.pieces import held_parameters, pieces_of, same_everywhere
from autoplan.runtime.program import OptimizerFactory, Program
from autoplan.runtime.same_weights import same_weights
from autoplan.runtime.state import aliases
from autoplan.runtime.world import World, agree, broadcast_from_first, cluster_at_hand, join, lay_mesh

__all__ = ["allocated", "check_model", "local_stages", "parallelize"]


def parallelize(
    model: nn.Module,
    batch: Any,
    loss: Loss | None = None,
    optimizer: OptimizerFactory | None = None,
    cluster: AnyCluster | str | Path | None = None,
    plan: Plan | str | Path | None = None,
    pin: Mapping[str, Any] | None = None,
    precision: Precision | str | None = None,
) -> Program:
    """Plan the training of ``model`` on the ranks at hand, and make the program that does it.

    Under torchrun every rank calls this with the same arguments; alone, it gives a one-process program.

    Args:
        model: a module with weights; where ranks differ, rank 0's count. It is copied from, never
            changed; free it afterwards. Or one on the meta device: its modules are initialised one at a time, by
            their own ``reset_parameters`` and Hugging Face's ``_init_weights``, from rank 0's
            ``torch.initial_seed()`` and their names, and each rank keeps only its pieces. The same seed gives
            the same weights under every plan (not those of a model built with weights).
        batch: an example of the *global* batch: a tensor, a tuple, or a dict of forward's keyword
            arguments; dim 0 is the sample. Only shapes are read: meta tensors will do.
        loss: ``fn(output, batch) -> scalar`` mean over the batch; default ``output.loss``, or the output
            itself if it is a scalar.
        optimizer: makes the optimizer of this rank's parameters; default AdamW with lr 1e-3.
        cluster: a Cluster (or one of several types of device), a profile's name or its file, or ``PROFILE:NODES+PROFILE:NODES``; default ``local``: this machine, measured once and cached.
        plan: a Plan or its file; default the file that AUTOPLAN_PLAN names, or else a search.
        pin: decisions to hold fixed in the search, such as ``{"tp": 2}``.
        precision: ``bf16``, ``fp32`` or ``fp64``; default what the parameters are.

    Raises:
        ModelError, TraceError: the model or batch cannot be planned for.
        PlanError: the plan is for another model, batch or number of ranks.
        NoPlanError: nothing fits in memory.
        DistributedError: ranks disagree about the plan.
    """
    started = join()
    chosen = Precision(precision) if precision is not None else _precision_of(model)
    _, tensors, _ = flatten_batch(batch)

    @functools.cache
    def graph_at(micro_batch: int) -> ModelGraph:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        return trace(model, _rows(batch, micro_batch), loss, chosen, device=kind)

    plan = plan if plan is not None else os.environ.get("AUTOPLAN_PLAN")
    if isinstance(plan, str | Path):
        plan = read_plan(plan)
    job = Job(global_batch=int(tensors[0].shape[0]), tokens_per_sample=_tokens(tensors[0]), precision=chosen)
    if plan is None:
        plan = _search(graph_at, job, cluster, dict(pin or {}))
    elif (plan.tp > 1 and not plan.layouts) or (plan.cp > 1 and not plan.cp_layouts):
        plan = _complete(plan, graph_at, job, cluster)
    validate_plan(plan)
    agree("plan", plan.hash())
    graph = graph_at(plan.micro_batch)
    check_model(plan, graph)
    _check_job(plan, job)
    world = lay_mesh(plan, started)
    parameters, buffers = same_weights(model)
    seed = broadcast_from_first(torch.initial_seed())
    buffers |= initialised(model, {name for name, buffer in buffers.items() if buffer.is_meta}, seed)
    stages = local_stages(graph, plan, world, parameters, buffers, model.training)
    if any(parameter.is_meta for parameter in parameters.values()):
        _give_weights(stages, model, seed, world.device)
    return Program(stages, plan, graph, world, optimizer or _adamw, model, buffers, cluster, seed)


def local_stages(
    graph: ModelGraph,
    plan: Plan,
    world: World,
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    training: bool,
) -> list[StageModule]:
    """This rank's stages in the order of the model, their state sharded; meta parameters stay so."""
    master = getattr(torch, plan.precision.master_dtype)
    tp_axis = world.axis("tp") if plan.tp > 1 else None
    local = cut_graph(graph, plan.cp_layouts, Layout.parse(plan.cp_boundary), plan.cp, plan.cp_order)
    local = cut_experts(local, plan.ep)
    experts = world.experts("ep", "tp") if plan.tp > 1 else world.experts("ep")
    check_policies(local, plan)
    stages = []
    for place, rank in enumerate(plan.stage_ranks):
        if rank == world.pp_rank:
            stage = build_stage(
                local,
                plan,
                place,
                parameters,
                buffers,
                tp_axis,
                master,
                world.device,
                world.cp_group,
                experts,
            )
            stages.append(_put_on(stage, world.device).train(training))
            shard_state(stages[-1], plan, world)
    return stages


def allocated(stages: list[StageModule], device: torch.device) -> None:
    """Give memory on ``device``, without values, to what is on the meta device; what is tied stays tied."""
    for stage in stages:
        tied = _places(stage)
        stage._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
        for (first, own), *others in tied:  # each place got a parameter of its own
            for module, name in others:
                module._parameters[name] = first._parameters[own]


def _put_on(stage: StageModule, device: torch.device) -> StageModule:
    """The stage on ``device``, but for what has no values yet."""
    return stage._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))  # type: ignore[return-value]


def _give_weights(stages: list[StageModule], model: nn.Module, seed: int, device: torch.device) -> None:
    """Memory, and the initial values, for this rank's pieces of what is on the meta device."""
    names = aliases(model)
    meta = {name for name, one in held_parameters(stages, names).items() if one.parameter.is_meta}
    allocated(stages, device)
    held = held_parameters(stages, names)
    for name, whole in initialised(model, meta, seed):
        pieces_of(held[name].parameter, held[name].layout).fill(whole)
    same_everywhere(held.values())


def _places(stage: StageModule) -> list[list[tuple[nn.Module, str]]]:
    """For each parameter, the modules that hold it, and its name there."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in stage.modules():
        for name, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append((module, name))
    return list(places.values())


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def _precision_of(model: nn.Module) -> Precision:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes == {torch.float64}:
        return Precision.FP64
    return Precision.BF16 if dtypes == {torch.bfloat16} else Precision.FP32


def _tokens(tensor: Tensor) -> int:
    return int(tensor.shape[1]) if tensor.dim() == 2 and not tensor.is_floating_point() else 0


def _rows(batch: Any, samples: int) -> Any:
    """A batch of ``samples`` rows with the example's structure, on the meta device."""
    return pytree.tree_map(
        lambda t: torch.empty((samples, *t.shape[1:]), dtype=t.dtype, device="meta"), batch
    )


def _search(graph_at: Any, job: Job, cluster: AnyCluster | str | Path | None, pin: dict[str, Any]) -> Plan:
    """Rank 0 searches; every rank gets its answer."""
    from autoplan.search import search

    found = cluster_at_hand(cluster)  # measuring is a collective act, so every rank takes part
    answer: Any = None
    if not _is_first():
        answer = broadcast_from_first(None)
    else:
        try:
            result = search(graph_at, job, found, pin=pin)
            if result.plan is None:
                cures = "; ".join(cure.text for cure in result.cures) or "use more ranks"
                raise NoPlanError("plan", result.conflict, "a plan that fits in memory", cures)
            answer = msgspec.json.encode(result.plan)
        except Exception as error:
            broadcast_from_first(error)
            raise
        broadcast_from_first(answer)
    if isinstance(answer, Exception):
        raise answer
    return msgspec.json.decode(answer, type=Plan)


def _is_first() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _complete(plan: Plan, graph_at: Any, job: Job, cluster: AnyCluster | str | Path | None) -> Plan:
    """Add the layouts that a plan written by hand leaves out; everything it says stays."""
    pin = {
        "pp": plan.pp,
        "vpp": plan.vpp,
        "schedule": plan.schedule.value,
        "dp": plan.dp,
        "fsdp": plan.fsdp,
        "cp": plan.cp,
        "tp": plan.tp,
        "ep": plan.ep,
        "zero": plan.zero,
        "micro_batch": plan.micro_batch,
    }
    found = _search(graph_at, job, cluster, pin)
    return msgspec.structs.replace(
        plan,
        layouts=found.layouts,
        boundary=found.boundary,
        cp_layouts=found.cp_layouts,
        cp_boundary=found.cp_boundary,
        cp_order=found.cp_order,
    )


def check_model(plan: Plan, graph: ModelGraph) -> None:
    """Raises PlanError if ``plan`` is not for the model of ``graph``."""
    if plan.fingerprint and plan.fingerprint != graph.fingerprint:
        raise PlanError(
            "fingerprint",
            plan.fingerprint,
            f"{graph.fingerprint}, that of this model",
            "search a plan for this model and loss",
        )
    if graph.meetings and plan.micro_batch < plan.global_batch:
        raise PlanError(
            "micro_batch",
            plan.micro_batch,
            f"{plan.global_batch}, the whole batch, since samples meet ({graph.meetings[0]})",
            "plan with dp=1, fsdp=1 and one micro-batch, or let each sample go its own way to the loss's mean",
        )
    planned = [name for stage in plan.stages for name in stage.units]
    actual = [unit.name for unit in graph.units]
    if planned != actual:
        odd = next(
            (f"{a} where the model has {b}" for a, b in zip(planned, actual, strict=False) if a != b),
            f"{len(planned)} units",
        )
        raise PlanError(
            "stages.units", odd, f"the model's {len(actual)} units in order", "search a plan for this model"
        )


def _check_job(plan: Plan, job: Job) -> None:
    if plan.global_batch != job.global_batch:
        raise PlanError(
            "global_batch",
            plan.global_batch,
            f"{job.global_batch}, as in the example batch",
            "search a plan for this batch",
        )
    if plan.precision is not job.precision:
        raise PlanError(
            "precision",
            plan.precision.value,
            f"{job.precision.value}, as asked or as the model's weights are",
            "pass precision=, or search again",
        )

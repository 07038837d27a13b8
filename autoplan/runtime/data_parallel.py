"""What each data-parallel rank keeps, and when gradients travel: FSDP2 where state is sharded or kept in another dtype
than is computed in, and one all-reduce for each unit where it is not."""

from __future__ import annotations

import warnings

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from autoplan.plan import Plan, Precision
from autoplan.rewrite import StageModule
from autoplan.rewrite.replicas import Replicas, groups_of
from autoplan.rewrite.unit_module import UnitModule
from autoplan.runtime.pieces import local
from autoplan.runtime.world import World

__all__ = ["average_replicas", "before_backward", "shard_state"]


def shard_state(stage: StageModule, plan: Plan, world: World) -> None:
    """Wrap each unit of ``stage`` in FSDP2, as ``plan.zero`` says.

    One process group per unit keeps gathers small and lets them overlap. Without shards, and without a master copy
    in another dtype, there is nothing to do (see ``average_replicas``).
    """
    if world.mesh is None or plan.keeps_whole:
        return
    # FSDP2 warns of views among a module's results, lest someone write to one; local graphs write to nothing.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = world.mesh["fsdp"] if plan.replicas == 1 else world.mesh["dp", "fsdp"]
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if plan.precision is Precision.BF16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    again = plan.zero == 3
    for modules in groups_of(stage.unit_modules().values()):
        dense = [module if module.experts is None else module.body for module in modules]
        fully_shard(dense, mesh=mesh, mp_policy=policy, reshard_after_forward=again)  # type: ignore[arg-type]
        for module in modules:
            if module.experts is not None:
                _shard_experts(module, plan, world, policy)
    fully_shard(stage, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def average_replicas(stage: StageModule, plan: Plan, world: World) -> None:
    """Average the gradients of ``stage`` over ranks that hold the same, if ``shard_state`` does not see to it. The
    parameters are those that stay."""
    if world.mesh is None or not plan.keeps_whole or plan.replicas == 1:
        return
    units = groups_of(stage.unit_modules().values())
    groups = [list({p: None for module in modules for p in module.parameters()}) for modules in units]
    stage.replicas = Replicas(groups, world.mesh["dp"].get_group())


def _shard_experts(unit: UnitModule, plan: Plan, world: World, policy: MixedPrecisionPolicy) -> None:
    """What is left of ``unit`` once its body is wrapped: its experts' parameters, which fewer ranks share."""
    size = plan.expert_shard_ranks
    mesh = world.experts("edp", "efsdp") if plan.expert_replicas > 1 else world.experts("efsdp")

    def place(parameter: torch.nn.Parameter) -> Shard:
        shape = local(parameter).shape  # of experts that are too few to share, each one is cut
        return Shard(next((dim for dim, n in enumerate(shape) if n % size == 0), 0))

    fully_shard(
        unit, mesh=mesh, mp_policy=policy, reshard_after_forward=plan.zero == 3, shard_placement_fn=place
    )


def before_backward(stage: torch.nn.Module, zero: int, last: bool, alone: bool = False) -> None:
    """Tell what the coming backward pass must do; ``last`` is the step's last micro-batch. ``alone``: nobody will wait
    for what it sends but itself (see ``Replicas``).

    ====  =====================================  ==========================
    zero  gradients are reduced                  gathered parameters stay
    ====  =====================================  ==========================
    0, 1  once, after the last micro-batch       until the step ends
    2     scattered at every micro-batch         until the step ends
    3     scattered at every micro-batch         only while used
    ====  =====================================  ==========================
    """
    replicas = getattr(stage, "replicas", None)
    if replicas is not None:
        replicas.expect(last, alone)
    if not isinstance(stage, FSDPModule):
        return
    stage.set_is_last_backward(last)
    stage.set_requires_gradient_sync(last or zero >= 2)
    stage.set_requires_all_reduce(last)
    stage.set_reshard_after_backward(last or zero == 3)

"""Pipeline schedules over ``torch.distributed.pipelining``: one stage on a rank, or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining._backward import stage_backward
from torch.distributed.pipelining.schedules import (
    OVERLAP_F_B,
    RESHARD,
    UNSHARD,
    _Action,
    _PipelineScheduleRuntime,
)

from autoplan.cost.pipeline import Action, pipeline_order
from autoplan.plan import SCHEDULE_NEEDS, Plan, Schedule
from autoplan.rewrite import StageModule
from autoplan.rewrite.stage_module import Wire
from autoplan.rewrite.unit_module import UnitModule
from autoplan.rewrite.weight_halves import PENDING, run_weight_halves
from autoplan.runtime.data_parallel import before_backward
from autoplan.runtime.world import World

__all__ = ["Chunks", "HalvedStage", "Pipeline", "Stage", "as_text", "first", "in_order"]


class Chunks(nn.Module):
    """The stages of one rank that holds several, in the order of the model."""

    def __init__(self, stages: Sequence[StageModule]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.chain = [unit for stage in stages for unit in stage.chain]

    def unit_modules(self) -> dict[str, UnitModule]:
        """The units' modules by unit name."""
        return {name: module for stage in self.stages for name, module in stage.unit_modules().items()}  # type: ignore[operator]


class _FrugalStage(PipelineStage):
    """A stage that has room only for the messages on their way, and for one unit's gradients on theirs.

    The stock stage makes the buffers of all micro-batches of a step, and keeps them for ever. FSDP2 holds the buffer
    that gradients were reduced in until the next ones are, for each root by itself: on a rank of several stages that
    would be one for each. ``reduced`` is the list that they share.
    """

    reduced: list[Any] | None = None

    def _share_reduced(self) -> None:
        if self.reduced is not None and isinstance(self.submod, FSDPModule):
            fully_shard.state(self.submod)._comm_ctx.reduce_scatter_states = self.reduced  # type: ignore[attr-defined]

    def _setup_forward_recv_info(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_forward_recv_info(*args, **kwargs)
        for infos in self.args_recv_info.values():
            _release(infos)

    def _setup_backward_recv_info(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_backward_recv_info(*args, **kwargs)
        for infos in self.grad_recv_info.values():
            _release(infos)

    def _get_recv_ops(self, recv_infos: Any) -> Any:
        for info in recv_infos:
            if not info.is_root_arg and info.buffer is None and info.tensor_meta is not None:
                meta = info.tensor_meta
                info.buffer = torch.empty_strided(
                    meta.shape, meta.stride, dtype=meta.dtype, device=self.device
                )
        return super()._get_recv_ops(recv_infos)

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> Any:
        received = super()._retrieve_recv_activations(fwd_chunk_id)
        _release(self.args_recv_info[fwd_chunk_id])
        return received

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> Any:
        received = super()._retrieve_recv_grads(bwd_chunk_id)
        _release(self.grad_recv_info[bwd_chunk_id])
        return received


def _release(infos: Any) -> None:
    for info in infos:
        if not info.is_root_arg:
            info.buffer = None


class Stage(_FrugalStage):
    """A stage whose FSDP state follows the plan's ZeRO level.

    The stock stage holds gathered parameters and whole gradients until the step ends, whatever the
    wrapping says; that is ZeRO-1.
    """

    zero = 0

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        self._share_reduced()
        if isinstance(self.submod, FSDPModule) and self.zero < 2:
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        before_backward(self.submod, self.zero, last_backward)
        return _backward(bwd_kwargs), None


class HalvedStage(_FrugalStage):
    """The same for schedules that run the weight half of a backward apart (see ``rewrite.weight_halves``)."""

    def __init__(self, *args: Any, zero: int, micro_batches: int, **options: Any) -> None:
        super().__init__(*args, dw_builder=self._take_weight_half, **options)
        self.zero, self.micro_batches, self.finished = zero, micro_batches, 0

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """The first half: whatever it leaves in the parameters' gradients waits for the second."""
        if isinstance(self.submod, FSDPModule):
            self.submod.set_is_last_backward(False)
            self.submod.set_requires_gradient_sync(False)
            self.submod.set_reshard_after_backward(self.zero == 3)
        return _backward(bwd_kwargs), None

    def _take_weight_half(self) -> Callable[[], None]:
        halves = PENDING[:]
        PENDING.clear()
        return lambda: self._run_weight_half(halves)

    def _run_weight_half(self, halves: list[Any]) -> None:
        run_weight_halves(halves)
        self.finished = (self.finished + 1) % self.micro_batches
        if not isinstance(self.submod, FSDPModule):
            return
        self._share_reduced()
        last = self.finished == 0 and self.zero >= 2  # below that, the schedule reduces gradients at the end
        self.submod.set_is_last_backward(last)
        self.submod.set_requires_gradient_sync(self.zero >= 2)
        self.submod.set_requires_all_reduce(last or self.zero < 2)
        self.submod.set_reshard_after_backward(last or self.zero == 3)
        state = fully_shard.state(self.submod)  # type: ignore[attr-defined]
        for group in _groups(state):
            if self.zero >= 2 and group.mesh_info.mesh.ndim == 2:
                _fill_missing_gradients(group)
            _reduce_in_one_dtype(group)
            group.post_backward()
        state._root_post_backward_final_callback()


def _backward(bwd_kwargs: dict[str, Any]) -> Any:
    return stage_backward(bwd_kwargs["stage_output"], bwd_kwargs["output_grads"], bwd_kwargs["input_values"])


def _groups(root: Any) -> Iterator[Any]:
    """FSDP2's parameter groups under a root; torch 2.13 allows several in a module, those before one."""
    for state in root._state_ctx.all_states:
        if hasattr(state, "_fsdp_param_groups"):
            yield from state._fsdp_param_groups
        elif state._fsdp_param_group is not None:
            yield state._fsdp_param_group


def _fill_missing_gradients(group: Any) -> None:
    """Under HSDP, FSDP sums what it scattered until it is reduced across replicas, as one flat tensor: it must be of
    the same parameters each time, and biases have no gradient in a half that has weights alone."""
    for held in group.fsdp_params:
        parameter = getattr(held, "_unsharded_param", None)
        if parameter is not None and parameter.grad is None and held.unsharded_accumulated_grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _reduce_in_one_dtype(group: Any) -> None:
    """What a first half left (norms, biases) FSDP keeps in the dtype that it reduces in. What the weight half made must
    be so too: all gradients of a group travel as one flat tensor."""
    for held in group.fsdp_params:
        if held.unsharded_accumulated_grad is not None:
            held.accumulate_unsharded_grad_if_needed()
        elif hasattr(held, "_unsharded_param"):
            held.to_accumulated_grad_if_needed()


class Pipeline:
    """Runs this rank's stages under the plan's schedule: ``step`` takes its share of the batch and returns the
    scaled loss sum."""

    def __init__(self, stages: Sequence[StageModule], plan: Plan, world: World) -> None:
        axis = world.axis("pp")
        assert axis is not None
        places = [place for place, rank in enumerate(plan.stage_ranks) if rank == world.pp_rank]
        self.is_last = len(plan.stages) - 1 in places
        self.num_micro_batches = plan.num_micro_batches
        pairs = zip(places, stages, strict=True)
        self.stages = [_make_stage(place, stage, plan, world, axis.get_group()) for place, stage in pairs]
        self.schedule = _schedule(self.stages, plan)

    def step(self, batch: dict[str, Any]) -> Tensor | None:
        """Forward and backward of every micro-batch. Returns the sum of the losses on the last stage, else None."""
        losses: list[Tensor] = []
        target = torch.zeros(self.num_micro_batches, 1)
        if self.is_last:
            self.schedule.step(target=target, losses=losses, return_outputs=False, **batch)
            return torch.stack([loss.detach() for loss in losses]).sum()
        self.schedule.step(return_outputs=False, **batch)
        return None


def _make_stage(place: int, stage: StageModule, plan: Plan, world: World, group: Any) -> PipelineStage:
    options: dict[str, Any] = {
        "input_args": _examples(stage.reads),
        "output_args": _examples(stage.writes),
        "group": group,
    }
    if SCHEDULE_NEEDS[plan.schedule].halves:
        options |= {"zero": plan.zero, "micro_batches": plan.num_micro_batches}
        return HalvedStage(stage, place, len(plan.stages), world.device, **options)
    made = Stage(stage, place, len(plan.stages), world.device, **options)
    made.zero = plan.zero
    return made


def _schedule(stages: list[PipelineStage], plan: Plan) -> Any:
    """torch's own schedule for one stage on a rank; for several, our order under torch's runtime.

    The orders are the same (a test compares them), but torch's classes take fewer numbers of micro-batches.
    """
    options: dict[str, Any] = {"loss_fn": first, "scale_grads": False}
    if plan.schedule is Schedule.ONE_F_ONE_B:
        return Schedule1F1B(stages[0], plan.num_micro_batches, **options)
    if plan.schedule is Schedule.GPIPE:
        return ScheduleGPipe(stages[0], plan.num_micro_batches, **options)
    order = pipeline_order(plan.schedule, plan.pp, plan.vpp, plan.num_micro_batches)
    return in_order(stages, plan.num_micro_batches, [as_text(actions) for actions in order.ranks])


def in_order(stages: list[PipelineStage], micro_batches: int, ranks: Sequence[str]) -> Any:
    """torch's runtime for the stages of a rank, with each rank's actions in their order (``1F0 2F0+1B0``, where a
    pair that is issued together is joined)."""
    reduced: list[Any] = []
    for stage in stages:
        stage.reduced = reduced  # type: ignore[attr-defined]
    runtime = _PipelineScheduleRuntime(stages, micro_batches, loss_fn=first, scale_grads=False)
    actions = {rank: [_torch_action(word) for word in text.split()] for rank, text in enumerate(ranks)}
    runtime._prepare_schedule_with_comms(actions)
    # torch would gather whole stages ahead, and shard them again, as it sees fit; the plan says when.
    unsharded = runtime.unsharded_stages
    runtime.register_custom_function(UNSHARD, lambda action, ctx: unsharded.add(action.stage_index))
    runtime.register_custom_function(RESHARD, lambda action, ctx: unsharded.discard(action.stage_index))
    return runtime


def _torch_action(word: str) -> Any:
    single: list[Any] = [_Action.from_str(part) for part in word.split("+")]
    return single[0] if len(single) == 1 else _Action(-1, OVERLAP_F_B, None, tuple(single))


def as_text(actions: Sequence[Action]) -> str:
    """A rank's actions as ``in_order`` takes them."""
    return "".join(f"{action}{'+' if action.with_next else ' '}" for action in actions).rstrip()


def first(output: Tensor, target: Tensor) -> Tensor:
    """The stage has computed the loss already."""
    return output.sum()


def _examples(wires: list[Wire]) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(w.shape, dtype=getattr(torch, w.dtype), device="meta", requires_grad=w.requires_grad)
        for w in wires
    )

"""1F1B over ``torch.distributed.pipelining``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining._backward import stage_backward

from autoplan.plan import Plan
from autoplan.rewrite import StageModule
from autoplan.rewrite.stage_module import Wire
from autoplan.runtime.data_parallel import before_backward
from autoplan.runtime.world import World

__all__ = ["Pipeline"]


class _Stage(PipelineStage):
    """A stage whose FSDP state follows the plan's ZeRO level.

    The stock stage holds gathered parameters and whole gradients until the step ends, whatever the
    wrapping says; that is ZeRO-1.
    """

    zero = 0

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        if not isinstance(self.submod, FSDPModule) or self.zero < 2:
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        before_backward(self.submod, self.zero, last_backward)
        return stage_backward(
            bwd_kwargs["stage_output"], bwd_kwargs["output_grads"], bwd_kwargs["input_values"]
        ), None


class Pipeline:
    """Runs a stage under 1F1B: ``step`` takes this rank's share of the batch and returns the scaled loss sum."""

    def __init__(self, stage: StageModule, plan: Plan, world: World) -> None:
        axis = world.axis("pp")
        assert axis is not None
        self.is_last = world.pp_rank == plan.pp - 1
        self.num_micro_batches = plan.num_micro_batches
        self.stage = _Stage(
            stage, world.pp_rank, plan.pp, world.device,
            input_args=_examples(stage.reads), output_args=_examples(stage.writes), group=axis.get_group(),
        )  # fmt: skip
        self.stage.zero = plan.zero
        self.schedule = Schedule1F1B(self.stage, plan.num_micro_batches, loss_fn=_first, scale_grads=False)

    def step(self, batch: dict[str, Any]) -> Tensor | None:
        """Forward and backward of every micro-batch. Returns the sum of the losses on the last stage, else None."""
        losses: list[Tensor] = []
        target = torch.zeros(self.num_micro_batches, 1)
        if self.is_last:
            self.schedule.step(target=target, losses=losses, return_outputs=False, **batch)
            return torch.stack([loss.detach() for loss in losses]).sum()
        self.schedule.step(return_outputs=False, **batch)
        return None


def _first(output: Tensor, target: Tensor) -> Tensor:
    """The stage has computed the loss already."""
    return output.sum()


def _examples(wires: list[Wire]) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(w.shape, dtype=getattr(torch, w.dtype), device="meta", requires_grad=w.requires_grad)
        for w in wires
    )

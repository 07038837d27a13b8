"""Search results made by hand: what the reports and the command line are tested on without a search."""

from __future__ import annotations

from autoplan.cost.estimate import Estimate, MemoryEstimate, StageEstimate
from autoplan.plan import Job, Plan, Precision, StagePlan
from autoplan.search.result import Candidate, Cure, SearchResult, Status
from autoplan.units import GIB

JOB = Job(global_batch=256, tokens_per_sample=8192)


def hand_made_candidate(
    step_s: float = 8.0,
    *,
    pp: int = 4,
    dp: int = 1,
    fsdp: int = 4,
    tp: int = 4,
    zero: int = 1,
    micro_batch: int = 1,
    recompute: int = 2,
    layers: int = 80,
) -> Candidate:
    """``layers`` layers on ``pp`` equal stages, of which each runs ``recompute`` again."""
    plan = Plan(
        model="llama3-70b",
        fingerprint="0f1e2d3c",
        global_batch=JOB.global_batch,
        precision=Precision.BF16,
        pp=pp,
        dp=dp,
        fsdp=fsdp,
        tp=tp,
        micro_batch=micro_batch,
        num_micro_batches=JOB.global_batch // (micro_batch * dp * fsdp),
        zero=zero,
        stages=tuple(_stage(index, pp, layers // pp, recompute) for index in range(pp)),
        boundary="S(1)" if tp > 1 else "R",
        layouts={"decoder": {"linear": "cut o", "linear_1": "cut i"}} if tp > 1 else {},
    )
    return Candidate(plan, _estimate(plan, step_s))


def hand_made_result(status: Status = Status.WITHIN_GAP) -> SearchResult:
    """64 GPUs, a best plan and three behind it."""
    return SearchResult(
        status=status,
        gap=0.0 if status is Status.OPTIMAL else 0.0081,
        bound_s=8.0 if status is Status.OPTIMAL else 7.9357,
        best=hand_made_candidate(),
        runners_up=(
            hand_made_candidate(8.2, recompute=0, pp=8, fsdp=2),
            hand_made_candidate(8.64, tp=8, pp=2),
            hand_made_candidate(11.0, tp=1, pp=1, fsdp=64, zero=3, recompute=80),
        ),
        seconds=3.21,
        candidates=4312,
        pruned=4250,
    )


def infeasible_result() -> SearchResult:
    """Nothing fits, and two ways to mend it."""
    return SearchResult(
        status=Status.INFEASIBLE,
        gap=float("inf"),
        bound_s=float("inf"),
        best=None,
        runners_up=(),
        seconds=0.5,
        candidates=40,
        pruned=40,
        conflict="the training state takes 1.03 TiB and 8 GPUs hold 632 GiB",
        cures=(
            Cure("--nodes", "2", "use --nodes 2"),
            Cure("--optimizer", "sgd", "use --optimizer sgd, whose state is smaller"),
        ),
    )


def _stage(index: int, pp: int, length: int, recompute: int) -> StagePlan:
    mine = [f"model.layers.{layer}" for layer in range(index * length, (index + 1) * length)]
    units = [*(["prologue"] if index == 0 else []), *mine, *(["epilogue"] if index == pp - 1 else [])]
    return StagePlan(units=tuple(units), recompute=tuple(mine[:recompute]))


def _estimate(plan: Plan, step_s: float) -> Estimate:
    tokens_per_s = JOB.global_batch * JOB.tokens_per_sample / step_s
    memory = MemoryEstimate(
        parameters=8.25 * GIB,
        gradients=16.5 * GIB,
        optimizer=12.375 * GIB,
        activations=24 * GIB,
        gathered=0.0,
        workspace=2.5 * GIB,
        reserve=3.0 * GIB,
    )
    shares = {
        "compute": 0.7,
        "recompute": 0.03,
        "tp_comm": 0.12,
        "pp_comm": 0.01,
        "bubble": 0.06,
        "fsdp_comm": 0.05,
        "dp_comm": 0.0,
        "optimizer": 0.03,
    }
    return Estimate(
        step_time_s=step_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s / plan.world_size,
        model_tflops_per_gpu=3400 / step_s,
        mfu=3.44 / step_s,
        mfu_full_attention=3.72 / step_s,
        peak_memory_bytes=memory.total,
        memory_limit_bytes=79.1 * GIB,
        fits=True,
        parts={name: share * step_s for name, share in shares.items()},
        stages=tuple(StageEstimate(forward_s=0.01, backward_s=0.02, memory=memory) for _ in plan.stages),
    )

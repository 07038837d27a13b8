"""What a training program does beyond its configuration: fusions, overlap, and what backward keeps.

Structure only, from each program's documentation and source; how fast a machine does it is the
profile's business.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SOFTWARE", "Software"]


@dataclass(frozen=True, slots=True)
class Software:
    """One kind of training program.

    Args:
        name: how it is called in tables and on the command line.
        eager: each op is issued by Python while the device waits if it is faster; False under CUDA
            graphs or a compiler that issues whole steps.
        dropout: activations are dropped at random, and the masks kept.
        overlap_tp: tensor-parallel collectives run in pieces beside the products that need them.
        overlap_dp: gradients are reduced, and parameters gathered, beside backward and forward.
        overlap_pp: sends between stages run beside compute.
        overlap_ep: tokens travel to experts and back beside the products of another micro-batch.
        deduplicated: a token travels once to each node (or, within one, to each rank) that has some of its
            experts (DeepEP, HybridEP), not once to each expert.
        routed_in_graph: also layers with experts are graphs of the device, whatever the data.
        fused_loss: cross-entropy is one kernel that keeps only its gradient in 16 bit.
        recomputes_memory_bound: selective recomputation covers all that is no product, and
            parks products' results on the host where they do not fit (XLA's policies).
        attention: speed of its fused attention over the best that the device has; ``attention_hopper`` the
            same on Hopper and later, whose multipliers older kernels cannot keep busy.
        gradient_bytes: of an element as it travels.
        logit_bytes: of one logit and what the loss keeps beside it: 16 bits and 32 bits; where it is one
            kernel, 16 bits and their gradient; in old programs also 32 bits of a copy and of exponentials.
        main_gradients: gradients add up in 32 bit.
        partition_gradients: ZeRO copies its share of the gradients to 32 bit before the step (DeepSpeed).
        watched: it logs no memory of its own: what is reported is what nvidia-smi shows.
        gather_share: of the bandwidth of collectives, what ZeRO-3 reaches that gathers tensor by tensor into lists
            of shards and copies them out (DeepSpeed until 2022; 0.1 to 0.3 in SC21's and BigScience's runs).
        live_parameters: elements that ZeRO-3 keeps gathered at most, unless one matrix is larger
            (DeepSpeed's ``stage3_max_live_parameters``); otherwise two layers are.
    """

    name: str
    eager: bool = True
    dropout: bool = False
    overlap_tp: bool = False
    overlap_dp: bool = False
    overlap_pp: bool = False
    overlap_ep: bool = False
    deduplicated: bool = False
    routed_in_graph: bool = False
    fused_loss: bool = False
    recomputes_memory_bound: bool = False
    attention: float = 1.0
    attention_hopper: float = 1.0
    gradient_bytes: int = 2
    logit_bytes: int = 6
    main_gradients: bool = True
    partition_gradients: bool = False
    watched: bool = False
    gather_share: float = 1.0
    live_parameters: float = float("inf")


SOFTWARE: dict[str, Software] = {
    s.name: s
    for s in (
        # Megatron-LM as of SC21: 1F1B with synchronous sends, one all-reduce of 32-bit gradients at the end.
        Software("megatron", dropout=True, gradient_bytes=4, logit_bytes=14, watched=True),
        # Megatron-DeepSpeed: the same layers; gradients stay in 16 bit with fp16.
        Software(
            "megatron-deepspeed",
            dropout=True,
            logit_bytes=14,
            main_gradients=False,
            partition_gradients=True,
            watched=True,
            gather_share=0.18,
            live_parameters=1e9,
        ),
        # Megatron-Core, NeMo and Megatron-Bridge recipes: everything overlaps, whole layers are graphs,
        # gradients are reduced and kept in 16 bit.
        Software(
            "megatron-core",
            eager=False,
            overlap_tp=True,
            overlap_dp=True,
            overlap_pp=True,
            fused_loss=True,
            logit_bytes=4,
            main_gradients=False,
        ),
        # The same without any overlap, as tests of single features run it.
        Software("megatron-core-plain", fused_loss=True, gradient_bytes=4),
        # torch FSDP in eager mode (Composer, torchtitan without compile, Accelerate).
        Software("fsdp", overlap_dp=True, attention=0.5, attention_hopper=0.4),
        # JAX under XLA (MaxText, Paxml): one compiled step.
        Software(
            "xla",
            eager=False,
            overlap_tp=True,
            overlap_dp=True,
            overlap_pp=True,
            fused_loss=True,
            recomputes_memory_bound=True,
            main_gradients=False,
        ),
    )
}
"""Every kind by name."""

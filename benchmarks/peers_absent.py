"""Planners that are not in the table of ``peers.py``, and what was found when they were tried."""

from __future__ import annotations

__all__ = ["ABSENT"]

ABSENT: dict[str, str] = {
    "Alpa 0.2.3 (alpa, Python 3.9)": "its package wants jax 0.3.22, whose jaxlib is no longer in the index (0.4.13 is the "
    "oldest for Python 3.9), and its auto-sharding pass is in a patched jaxlib that never was there; with jaxlib 0.4.13 "
    "`import alpa` ends in jax's `RuntimeError: jaxlib version 0.4.13 is newer than and incompatible with jax version 0.3.22`",
    "FlexFlow 25.2.1 (flexflow, Python 3.11)": "a source package that must be built; without CUDA its configuration ends in CMake's "
    "`CUDNN package not found -> specify search path via CUDNN_DIR variable`",
    "Colossal-AI 0.5.0 (colossalai, torch 2.13 CPU, Python 3.11, Debian's coinor-cbc)": "with `--no-deps` and what its imports "
    "ask for, its solver of layouts (`colossalai.auto_parallel`) runs on a CPU and solved a decoder of two layers on a described "
    "mesh of 2 x 4. It refuses decoders with `F.gelu` or `F.relu` (`not found in the operator registry`), so none of the models "
    "asked about here; it chooses layouts on one mesh alone, from communication between devices without a model of their "
    "speed: no pipeline, no micro-batches, no sharded state; such an answer is not one that either model here prices",
    "PaddlePaddle 3.3.1 (paddlepaddle, CPU, Python 3.11)": "installs and runs. Its auto-tuner "
    "(`paddle.distributed.auto_tuner`) launches each candidate on the GPUs themselves: the estimates that it could rank by "
    "return 1. Of its full-automatic modes (`strategy.auto_mode`, `full_rule_based` and `full_random`, with a described cluster "
    "of 8 A100) the search is empty under the current intermediate representation (the branches hold only `pass`), and "
    "`Engine.prepare` ends in `AttributeError: 'NoneType' object has no attribute 'dist_attr'`; with "
    "`FLAGS_enable_pir_api=0`, where the search is, building a decoder of two layers ends in `TypeError: matmul(): argument "
    "(position 1) must be Value, but got Variable`",
    "Slapo 0.0.3 (slapo)": "read, not run: a language of schedules; its auto-tuner runs every candidate's training script, on the GPUs",
    "Oobleck 0.1.1 (oobleck)": "read, not run: it plans templates of pipelines for nodes that fail, from profiles that it takes on "
    "GPUs; it answers another question, without a choice of tp, ZeRO or recomputation",
    "aceso 0.1.0, autoparallel 0.2.0, easydist 0.0.1, whale 1.2.1, proteus 8.2.0, piper 0.15.1, merak 0.3.5, varuna 0.1.0, calculon 1.1.1 "
    "(packages)": "other programs of the same name (spatial accessibility, a joblib decorator, a packaging example, a teaching "
    "language, a Tryton client, pipelines of commands, a binary builder, a network monitor, producers and consumers)",
    "nnScaler": "in no package index that was searched",
    "DeepSpeed 0.19.8's autotuning (deepspeed)": "not run: it times every candidate on the GPUs",
    "llm-analysis 0.2.2 (llm-analysis)": "not run: it prices one configuration and has no search",
}

"""A plan at work: the module that trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from autoplan.errors import ModelError, PlanError
from autoplan.graph.ir import ModelGraph
from autoplan.graph.trace import flatten_batch
from autoplan.plan import Plan
from autoplan.rewrite import StageModule, free_module, inputs_of
from autoplan.rewrite.random_kernels import DRAWS, sample_draws
from autoplan.runtime.checkpoint import Checkpoints
from autoplan.runtime.clipping import clip, global_norm
from autoplan.runtime.data_parallel import average_replicas, before_backward
from autoplan.runtime.failures import clear_failures
from autoplan.runtime.huggingface import load_safetensors, save_safetensors
from autoplan.runtime.pipeline import Chunks, Pipeline
from autoplan.runtime.state import aliases, gather
from autoplan.runtime.tied import TiedParameters
from autoplan.runtime.world import World, world_size

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster
    from autoplan.hardware.measurement import Measurement

__all__ = ["OptimizerFactory", "Program"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Program(nn.Module):
    """This rank's part of a training program.

        loss = program.step(program.shard(batch))     # one optimizer step, any plan

        loss = program(program.shard(batch))          # the same by hand, for plans without a pipeline
        loss.backward(); program.optimizer.step()

    ``step`` returns the mean loss over the global batch, the same on every rank. ``data_rank`` and
    ``data_ranks`` say which share of the batch is this rank's, for a ``DistributedSampler``.
    """

    def __init__(
        self,
        stages: Sequence[StageModule],
        plan: Plan,
        graph: ModelGraph,
        world: World,
        optimizer: OptimizerFactory,
        model: nn.Module,
        buffers: Mapping[str, Tensor],
        cluster: AnyCluster | str | Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        stage = stages[0] if len(stages) == 1 else Chunks(stages)
        self.stage = stage
        self.stages = list(stages)  # of this rank, in the order of the model
        self.plan = plan
        self.cluster = cluster  # that it was planned for, as it was given
        self.world = world
        self.data_rank = world.data_rank
        self.data_ranks = world.data_ranks
        self.optimizer = optimizer(stage.parameters())
        self.steps_done = 0
        self._calls = 0
        self._seed = seed if graph.draws else None  # None: nothing draws random numbers
        self.grad_norm: Tensor | None = None
        self.names = aliases(model)
        unused = {self.names[name][0] for name in graph.unused}
        self.shapes = {
            name: p.shape for name, p in model.named_parameters() if self.names[name][0] not in unused
        }
        self.rest = _untouched(graph, model, self.names)
        self.graph = graph
        self._checkpoints = Checkpoints(self)
        self._weight = _weight_module(graph, buffers, world) if graph.weight is not None else None
        self._weight_reads = inputs_of(self._weight) if self._weight is not None else []
        self._tied = TiedParameters(graph, plan, stage, world)
        for one in stages:
            average_replicas(one, plan, world)
        self._pipeline = Pipeline(stages, plan, world) if plan.pp > 1 else None

    @property
    def share(self) -> int:
        """Samples of a step that are this rank's."""
        return self.plan.global_batch // self.data_ranks

    def shard(self, batch: Any) -> Any:
        """This rank's share of a global batch: the same structure, fewer rows. Raises PlanError on a wrong size."""
        _, tensors, _ = flatten_batch(batch)
        if tensors[0].shape[0] != self.plan.global_batch:
            raise PlanError(
                "global batch",
                tensors[0].shape[0],
                f"{self.plan.global_batch} samples, as planned",
                "pass the batch size that was planned for, or search again",
            )
        first = self.data_rank * self.share
        return pytree.tree_map(lambda tensor: tensor[first : first + self.share], batch)

    def step(self, batch: Any, max_grad_norm: float | None = None) -> Tensor:
        """One optimizer step on this rank's share of the batch (see ``shard``).

        With ``max_grad_norm``, gradients are cut to that global norm first, and ``grad_norm`` is what it was
        (``math.inf`` only measures). Gradients are left in place until the next step, as
        ``optimizer.zero_grad`` would be called then.

        Raises:
            PlanError, ModelError: the batch is of another size or shape than was planned for.
            DistributedError: another rank has failed, has gone, or hangs beyond the process group's timeout.
        """
        with clear_failures():
            return self._step(batch, max_grad_norm)

    def _step(self, batch: Any, max_grad_norm: float | None) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        share, micro_batches, scale = self._prepare(batch, f"step {self.steps_done}")
        if self._pipeline is not None:
            total = self._pipeline.step(share | {"loss_scale": scale.expand(self.plan.num_micro_batches)})
        else:
            total = torch.zeros((), device=self.world.device, dtype=torch.float64)
            for index, part in enumerate(micro_batches):
                before_backward(self.stage, self.plan.zero, index == len(micro_batches) - 1)
                loss = self.stage(**part, loss_scale=scale).sum()
                loss.backward()
                total = total + loss.detach()
        for stage in self.stages:
            if stage.replicas is not None:
                stage.replicas.finish()
        self._tied.sum_gradients()
        if max_grad_norm is not None:
            self.clip_grad_norm_(max_grad_norm)
        self.optimizer.step()
        self.steps_done += 1
        return self._mean(total)

    def forward(self, batch: Any) -> Tensor:
        """The loss of this rank's share, ready for ``backward()``; gradients come out averaged over all ranks.

        Raises:
            PlanError: the plan has a pipeline, whose backward pass is part of its schedule.
        """
        if self._pipeline is not None:
            raise PlanError(
                "pp", self.plan.pp, "1 for a direct call", "use program.step(batch), which runs the schedule"
            )
        _, micro_batches, scale = self._prepare(batch, f"call {self._calls}")
        self._calls += 1
        before_backward(self.stage, 3 if self.plan.zero == 3 else 2, True, alone=True)
        losses = [self.stage(**part, loss_scale=scale).sum() for part in micro_batches]
        return torch.stack(losses).sum()

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Cut all gradients to the global norm ``max_norm``, as ``torch.nn.utils.clip_grad_norm_`` does.

        Returns the norm that they had, over the whole model, the same on every rank; ``grad_norm`` keeps it.
        For a direct call, between ``backward`` and ``optimizer.step``. Every rank must call it.
        """
        parameters = list(dict.fromkeys(p for stage in self.stages for p in stage.parameters()))
        self.grad_norm = global_norm(parameters, self.world, self._tied.copies())
        clip(parameters, self.grad_norm, max_norm)
        return self.grad_norm

    def full_state_dict(self) -> dict[str, Tensor]:
        """The whole model's parameters, and the buffers that training changes, under the model's own names.

        Every rank must call it and gets all of it. What forward never uses is not in it.
        """
        return gather(
            self.stage, self.world, self.plan.tp, self.names, lambda parameter: parameter, buffers=True
        )

    def full_gradients(self) -> dict[str, Tensor]:
        """The whole model's gradients under its own names, as the last step left them. Every rank must call it."""
        return gather(self.stage, self.world, self.plan.tp, self.names, lambda parameter: parameter.grad)

    def save(
        self, path: str | Path, extra: Mapping[str, Any] | None = None, *, async_: bool = False
    ) -> Future[None]:
        """Write a checkpoint: parameters, buffers that training changes, the optimizer, and the number of steps.

        Every rank must call it, and all must see one file system. It is written beside ``path`` and takes its
        place only when it is whole, so that at any moment the last good checkpoint is there to load.

        Args:
            path: the directory that becomes the checkpoint; what was saved there before is replaced.
            extra: whatever else should come back from ``load`` (an epoch, a scheduler's state), as JSON can hold.
            async_: return once the tensors are copied to the host, while a thread writes them. The next save,
                load or close waits for it; ``result()`` of what is returned does too, and raises its error.

        Raises:
            CheckpointError: it cannot be written; on every rank.
        """
        return self._checkpoints.save(path, extra or {}, not async_)

    def load(self, path: str | Path, *, optimizer: bool = True) -> dict[str, Any]:
        """Read a checkpoint that any plan of this model wrote, on any number of ranks; returns its ``extra``.

        Args:
            path: what ``save`` was given.
            optimizer: whether its state comes along; without it, weights alone are read.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another model or optimizer; the same on every rank.
        """
        manifest = self._checkpoints.load(path, optimizer)
        self.steps_done = manifest.step
        return manifest.extra

    def load_safetensors(self, directory: str | Path) -> None:
        """Read weights as Hugging Face keeps them, each rank its own slices. Every rank must call it.

        The optimizer stays as it is. Needs the package safetensors.

        Raises:
            CheckpointError: a file or tensor is missing or damaged; the same on every rank, before any change.
        """
        load_safetensors(self, directory)

    def save_safetensors(
        self, directory: str | Path, dtype: torch.dtype | None = None, file_bytes: int = 5 * 10**9
    ) -> None:
        """Write weights as ``from_pretrained`` reads them: files of at most ``file_bytes``, and their index.

        ``dtype`` is that of floating-point tensors on disk; None keeps the one that training keeps them in.
        Every rank must call it; one tensor at a time is whole in memory. Raises CheckpointError.
        """
        save_safetensors(self, directory, dtype, file_bytes)

    def measure(
        self, batch: Any, steps: int = 5, cluster: AnyCluster | str | Path | None = None
    ) -> Measurement:
        """Take steps on this rank's share of a batch, and say of each part of them how long it took and was
        predicted to take.

        Passes of units, collectives by mesh axis and size, waiting, the optimizer, and the most memory that tensors
        took. Two steps go before the ``steps`` that are timed; all of them are steps like any other, with the same
        numbers. Every rank must call it and gets the same answer, to be printed or saved for ``autoplan calibrate``.

        Args:
            cluster: whose prediction to compare with; default that of ``parallelize``, or this machine's profile.

        Raises:
            InputError: ``steps`` is no count.
            ProfileError: the cluster is none, of another size, or of several types of device.
            Those of ``step``.
        """
        from autoplan.runtime.measure import measure

        return measure(self, batch, steps, cluster)

    @contextlib.contextmanager
    def profile(self, path: str | Path) -> Iterator[torch.profiler.profile]:
        """torch's profiler around the steps inside; each rank writes a Chrome trace.

        ``path`` becomes ``NAME.rankN.json`` where there are several ranks. Yields the profiler, whose
        ``key_averages()`` sums up by op.
        """
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.world.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        file = Path(path)
        if world_size() > 1:
            file = file.with_name(f"{file.stem}.rank{dist.get_rank()}{file.suffix or '.json'}")
        with torch.profiler.profile(activities=kinds) as profiler:
            yield profiler
        profiler.export_chrome_trace(str(file))

    def close(self) -> None:
        """Wait for a checkpoint that is being written, and end the process group if ``parallelize`` started it."""
        self._checkpoints.close()
        if self.world.started and dist.is_initialized():
            dist.destroy_process_group()

    def _prepare(
        self, batch: Any, occasion: str
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Tensor]:
        """The share, the same cut into micro-batches, and what each micro-batch's loss is multiplied by.

        Random numbers follow from the seed, ``occasion`` and a sample's place in the global batch.
        """
        names, tensors, _ = flatten_batch(batch)
        if tensors[0].shape[0] != self.share:
            raise PlanError(
                "batch",
                tensors[0].shape[0],
                f"{self.share} samples, this rank's share",
                "pass program.shard(global_batch)",
            )
        self._check_shapes(names, tensors)
        share = {
            f"batch_{name}": self._cast(tensor.to(self.world.device), name)
            for name, tensor in zip(names, tensors, strict=True)
        }
        if self._seed is not None:
            draws = sample_draws(self._seed, occasion, self.data_rank * self.share, self.share)
            share[f"batch_{DRAWS}"] = draws.to(self.world.device)
        cut = [tensor.split(self.plan.micro_batch) for tensor in share.values()]
        parts = [dict(zip(share, row, strict=True)) for row in zip(*cut, strict=True)]
        if self._weight is None:
            return (
                share,
                parts,
                torch.full(
                    (1,), 1 / self.plan.num_micro_batches, device=self.world.device, dtype=torch.float64
                ),
            )
        count = torch.zeros((), device=self.world.device, dtype=torch.float64)
        for part in parts:
            count += self._weight(*(part[f"batch_{name}"] for name in self._weight_reads))[0]
        total = self._world_sum(count) / (self.plan.world_size // self.data_ranks)
        return share, parts, (self.data_ranks / total.clamp(min=1)).reshape(1)

    def _check_shapes(self, names: list[str], tensors: list[Tensor]) -> None:
        planned = self.graph.batch_inputs
        if set(names) != set(planned):
            raise ModelError(
                "batch",
                sorted(names),
                f"the inputs {sorted(planned)}, as in the example batch",
                "pass batches of one structure",
            )
        for name, tensor in zip(names, tensors, strict=True):
            wanted = planned[name][0]
            if tuple(tensor.shape[1:]) != wanted[1:]:
                raise ModelError(
                    f"batch.{name}",
                    tuple(tensor.shape),
                    f"(…, {', '.join(map(str, wanted[1:]))}), as in the example batch",
                    "pad to one shape, or plan again for this one",
                )

    def _cast(self, tensor: Tensor, name: str) -> Tensor:
        return (
            tensor.to(getattr(torch, self.graph.batch_inputs[name][1]))
            if tensor.is_floating_point()
            else tensor
        )

    def _mean(self, total: Tensor | None) -> Tensor:
        """The global mean loss from each last-stage rank's scaled sum."""
        if total is None:
            total = torch.zeros((), device=self.world.device)
        copies = self.plan.tp * self.plan.cp * self.data_ranks
        return self._world_sum(total.detach().double()) / copies

    def _world_sum(self, value: Tensor) -> Tensor:
        if world_size() > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def extra_repr(self) -> str:
        plan = self.plan
        return f"pp={plan.pp}, dp={plan.dp}, fsdp={plan.fsdp}, cp={plan.cp}, tp={plan.tp}, zero={plan.zero}, micro_batch={plan.micro_batch}"


def _weight_module(graph: ModelGraph, buffers: Mapping[str, Tensor], world: World) -> fx.GraphModule:
    """Counts the targets of a micro-batch that are not ignored."""
    assert graph.weight is not None
    here = {name: tensor.to(world.device) for name, tensor in buffers.items()}
    return free_module(graph, [graph.weight], here, world.device)


def _untouched(graph: ModelGraph, model: nn.Module, names: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """What belongs to the model's state but to no unit: buffers that stay as they are, unused parameters."""
    changed = {
        f"{unit.path}.{relative}" if unit.path else relative
        for unit in graph.units
        for relative in map(graph.kinds[unit.kind].buffers.__getitem__, graph.kinds[unit.kind].updates)
    }
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not tensor.is_meta and name not in changed and (name not in names or name in graph.unused)
    }

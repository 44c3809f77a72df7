"""A model that does not fit on one device: parameters, gradients and optimizer spread over the ranks (FSDP2).

`run.shard=true`: each layer is put together on every rank when its turn comes, and let go after it; its gradients are
added up where they are kept. Batches, records and checkpoints are those of any other run, so that the same run may go
on with or without it, and `zslx probe` and `zslx export` read what it leaves. The whole weights must fit on each device
at the start. Saving gathers the whole state in the memory of rank 0, and a resume reads it there; the other ranks keep
their share of each tensor as it comes. Exact but for the order of sums.

What takes a whole gradient or the whole weights in one place is refused, by name: gradient surgery, filters, optimizers
of methods, averaged weights, growing models, gradients on a control set, gradient interference at probe steps.
Checked against one process by tests/distributed/test_ranks.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from zslx.config.run_config import Config
from zslx.distributed import group
from zslx.distributed.gradient import RankedPass
from zslx.distributed.measuring import RankedInstruments
from zslx.distributed.run import RankedRun
from zslx.intervention.composed import Methods
from zslx.model.transformer import Model
from zslx.text.loader import Batch
from zslx.training.course import NORM, Request, Update
from zslx.training.numbers import finite
from zslx.training.step_gradient import StepGradient

# What methods may not have or need: it takes whole weights or whole gradients.
HOOKS = ("depth", "group_weights", "combine", "group_ids", "filter", "optimizer", "average")
NEEDS = ("token_alignment", "domain_gramian", "domain_variance")


class ShardedPass(RankedPass):
    """Computes the gradient of a step; each rank ends with its share of it."""

    adds_up = False

    def __init__(self, model: nn.Module, methods: Methods, **options: Any):
        for hook in HOOKS:
            for method in methods.hooks[hook]:
                raise ValueError(f"run.shard=true: {method.name} has the hook {hook}, {WHOLE}")
        for need in NEEDS:
            for method in methods.needing(need):
                raise ValueError(f"run.shard=true: {method.name} needs {need}, {WHOLE}")
        super().__init__(model, methods, **options)

    def __call__(self, batch: Batch, step: int) -> StepGradient:
        if len(batch.tokens) % group.world():  # every rank must make as many passes
            raise ValueError(
                f"step {step}: a batch of {len(batch.tokens)} sequences; run.shard=true needs a multiple of the "
                f"{group.world()} ranks"
            )
        return super().__call__(batch, step)


WHOLE = "which takes the whole model in one place: train it with run.shard=false"


class ShardedInstruments(RankedInstruments):
    """The instruments of a run whose parameters are spread."""

    def update_norm(self, model: nn.Module) -> float:
        squares = torch.zeros((), dtype=torch.float64, device=self.heldout.batch.tokens.device)
        for name, p in model.named_parameters():
            squares += local(p.detach() - self.weights_before[name]).double().square().sum()
        return math.sqrt(float(group.total(squares)))


class ShardedRun(RankedRun):
    """A run whose parameters are spread over the ranks."""

    gradient_pass = ShardedPass
    measuring = ShardedInstruments

    def __init__(self, config: Config, out: Path | None):
        chosen = config.instruments
        if chosen.probes and (chosen.gradient_sequences or chosen.token_samples):
            raise ValueError(
                "run.shard=true: gradient interference takes the whole model in one place: give "
                "instruments.gradient_sequences=0 instruments.token_samples=0, and measure it with zslx probe"
            )
        if config.train.compile:
            raise ValueError("run.shard=true: train.compile=true is for a whole model; allowed is false")
        for key in ("batch_size", "heldout_sequences"):
            if (count := getattr(config.data, key)) % group.world():
                raise ValueError(f"data.{key}={count}: run.shard=true needs a multiple of the {group.world()} ranks")
        super().__init__(config, out)

    def placed(self, model: Model) -> Model:
        model = super().placed(model)
        mesh = init_device_mesh(self.device.type, (group.world(),))
        for layer in layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if hasattr(model, "hidden"):
            register_fsdp_forward_method(model, "hidden")  # with train.loss_chunk it is called by itself
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the losses are shares of the whole batch's mean already
        return model

    def shown(self) -> Mapping[str, Tensor]:
        return Hidden()

    def save(self, step: int) -> None:
        super(RankedRun, self).save(step)  # every rank has weights of its own: there is nothing to compare

    def _write(self, kind: str, step: int, state: dict[str, Any]) -> None:
        super()._write(kind, step, gathered(state))

    def kept(self, name: str, whole: Tensor) -> Tensor:
        match name.split("/")[1:]:
            case ["model", parameter]:
                return spread(whole, dict(self.model.named_parameters())[parameter])
            case ["optimizer", number, "state", index, _]:
                return spread_alike(whole, held(self.optimizers[int(number)])[int(index)])
        return whole

    def put(self, state: dict[str, Any]) -> None:
        own = dict(self.model.named_parameters())
        weights = {name: spread(tensor, own[name]) for name, tensor in state["model"].items()}
        optimizers = [
            spread_optimizer(kept, optimizer)
            for kept, optimizer in zip(state["optimizer"], self.optimizers, strict=True)
        ]
        super().put(state | {"model": weights, "optimizer": optimizers})


class Hidden(Mapping[str, Tensor]):
    """The parameters as a method sees them: a share of each would pass for the whole."""

    def __getitem__(self, name: str) -> Tensor:
        raise ValueError(f"run.parameters: {name} is spread over the ranks; train the method with run.shard=false")

    def __iter__(self) -> Iterator[str]:
        raise ValueError("run.parameters are spread over the ranks; train the method with run.shard=false")

    def __len__(self) -> int:
        raise ValueError("run.parameters are spread over the ranks; train the method with run.shard=false")


def sharded_answer(request: Request) -> Any:
    """The answer to a run's request. The norm of a spread gradient must be put together before it is a number."""
    if not isinstance(request, Update):
        return request.by_itself()
    limit = request.clip if request.clip else math.inf
    norm = nn.utils.clip_grad_norm_(request.model.parameters(), limit)
    assert isinstance(norm, DTensor)
    number = finite(NORM, float(norm.full_tensor()), request.step)
    for optimizer in request.optimizers:
        optimizer.step()
    return number


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers, which are put together one at a time: the longest list of modules."""
    lists: list[list[nn.Module]] = [list(m.children()) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


def local(tensor: Tensor) -> Tensor:
    """This rank's share."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(state: Any) -> Any:
    """The state with whole tensors, on rank 0; on the others without them. Every rank must call it."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [gathered(value) for value in state]
    if not isinstance(state, DTensor):
        return state
    whole: Tensor = state.full_tensor().detach()
    return whole.cpu() if group.leads() else None


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, spread as a parameter is; one that is spread already, as it is."""
    if isinstance(whole, DTensor):
        return whole
    assert isinstance(like, DTensor)
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def spread_alike(value: Any, parameter: Tensor) -> Any:
    """What an optimizer remembers of a parameter: spread, where it has the parameter's shape."""
    return spread(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters, numbered as the optimizer's state numbers them."""
    return [p for part in optimizer.param_groups for p in part["params"]]


def spread_optimizer(kept: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer as it was saved, with what has a parameter's shape spread."""
    parameters = held(optimizer)
    state = {
        i: {key: spread_alike(value, parameters[i]) for key, value in values.items()}
        for i, values in kept["state"].items()
    }
    return kept | {"state": state}

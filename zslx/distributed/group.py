"""The ranks of a run, which sequences are whose, and the collectives between them.

Rank r of W has the rows ⌊B r / W⌋ .. ⌊B (r+1) / W⌋ − 1 of a batch of B: an uneven B gives some ranks one more. Tensors
on the CPU go through gloo, those on GPUs through NCCL. `sent` counts the bytes that this rank handed to collectives of
each kind; what they make of them on the wire is in docs/scale.md.

Shapes: B sequences, W ranks.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from zslx.text.loader import Batch

STORE = "ZSLX_STORE"  # a file by which the ranks of one machine find each other; torchrun has a server for it
PATIENCE = datetime.timedelta(minutes=30)  # what a rank may do while the others wait: a text that is tokenised
LAST_WORDS = datetime.timedelta(seconds=10)  # for the leader to write why a run failed that fails on every rank
sent: Counter[str] = Counter()
_store: dist.Store | None = None


def called() -> bool:
    """Whether this process was started as one of several ranks: by torchrun, or by launch.py."""
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    return several and "RANK" in os.environ and bool({STORE, "MASTER_ADDR"} & os.environ.keys())


def backend(device: str) -> str:
    """What carries the tensors of a group on cpu or cuda: those on the CPU go through gloo in both."""
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """This process is a rank inside this context. `device`: cpu or cuda, of which each rank takes one. Where there is a
    process group already, Ray Train's for one, it is used and left as it is."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        here, there = int(os.environ.get("LOCAL_WORLD_SIZE", world)), torch.cuda.device_count()
        if here > there:
            raise ValueError(f"{here} ranks on a machine with {there} GPUs: each needs one")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    global _store
    if dist.is_initialized():
        _store = dist.PrefixStore("zslx", dist.distributed_c10d._get_default_store())
        sent.clear()
        yield
        return
    if STORE in os.environ:
        _store = dist.FileStore(os.environ[STORE], world)
    else:
        found, rank, world = next(rendezvous("env://"))
        # torchrun's store outlives its ranks: those started again must not find what the first ones left.
        _store = dist.PrefixStore(f"zslx-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", found)
    dist.init_process_group(backend(device), store=_store, rank=rank, world_size=world, timeout=PATIENCE)
    sent.clear()
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank()


def world() -> int:
    return dist.get_world_size()


def leads() -> bool:
    """Whether this is rank 0, which alone touches the run folder."""
    return rank() == 0


def rows(count: int, of: int | None = None) -> slice:
    """Which of `count` sequences are those of this rank, or of another one."""
    r, w = rank() if of is None else of, world()
    return slice(count * r // w, count * (r + 1) // w)


def own(batch: Batch) -> Batch:
    """This rank's sequences of a batch."""
    mine = rows(len(batch.tokens))
    return batch.each(lambda tensor: tensor[mine])


def total(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place; the same bits on each."""
    sent["all_reduce"] += tensor.nbytes
    dist.all_reduce(tensor)
    return tensor


def whole(own: Tensor, count: int) -> Tensor:
    """Rows (count, ...) of all ranks from this one's. Exact: every other rank adds zeros to them."""
    found = own.new_zeros(count, *own.shape[1:])
    found[rows(count)] = own
    return total(found)


def largest(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers."""
    found = torch.tensor([number], device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def exchange(own: Tensor, to_ranks: Sequence[int], from_ranks: Sequence[int]) -> Tensor:
    """Numbers for each rank, beside each other in `own` (n,), against what the ranks have for this one (m,)."""
    found = own.new_empty(sum(from_ranks))
    sent["all_to_all"] += (own.numel() - to_ranks[rank()]) * own.itemsize
    dist.all_to_all_single(found, own, list(from_ranks), list(to_ranks))
    return found


def bytes_from_leader(tensor: Tensor) -> Tensor:
    """Fill a tensor on the CPU, of any dtype, with rank 0's."""
    if tensor.numel():
        dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)
    return tensor


def say_ended() -> None:
    """The leader has said and written all that it has to."""
    if _store is not None:
        _store.set("ended", "")


def leader_ended() -> bool:
    """Whether the leader ends now, too."""
    try:
        assert _store is not None
        _store.wait(["ended"], LAST_WORDS)
    except RuntimeError:
        return False
    return True


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def from_leader(value: Any = None) -> Any:
    """Plain values of rank 0, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def tensor_from_leader(tensor: Tensor) -> Tensor:
    """Fill a tensor with rank 0's."""
    dist.broadcast(tensor, src=0)
    return tensor

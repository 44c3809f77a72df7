"""Shows how the gradients of single sequences conflict, from one backward pass.

    python examples/conflict_of_sequences.py

Works on any torch model and loss; here on a small one, at its initial weights and after some steps.
"""

import torch
from torch import nn

import zslx

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 50))
tokens = torch.randint(50, (8, 12))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)


def losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The loss (B, T) of predicting each token's successor, in nats."""
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none").view(8, -1)


for step in range(61):
    if step % 20 == 0:
        stats = zslx.sequence_stats(model, losses, tokens, want=("sum", "abs_sum", "gramian"))
        norms = stats.gramian.diagonal().sqrt()
        cosines = (stats.gramian / norms / norms[:, None])[~torch.eye(8, dtype=torch.bool)]
        net = sum(g.abs().sum() for g in stats.sum.values()) / sum(g.sum() for g in stats.abs_sum.values())
        print(f"step {step}: interference {1 - net:.3f}, negative cosines {(cosines < 0).float().mean():.0%}")
    optimizer.zero_grad()
    losses(model, tokens).mean().backward()
    optimizer.step()

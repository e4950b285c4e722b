"""Running sums of losses and hits, kept on the device so that no step waits for them."""

from __future__ import annotations

import torch
from torch import Tensor

from tltrain.train.distributed import Group

TOP = 5


class Tally:
    """Sums over samples: loss, top-1 hits, top-5 hits, samples. Padding counts nothing, every sample once."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, losses: Tensor, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch: `losses` float [b], `logits` float [b, C], `labels` int64 [b], `weights` float [b] of 0 or 1."""
        top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        hits = top == labels[:, None]
        rows = torch.stack(
            (
                losses.detach().double(),
                hits[:, 0].double(),
                hits.any(1).double(),
                torch.ones_like(losses).double(),
            )
        )
        # `where` rather than a product: a padded sample whose loss is not finite must not count either.
        self.sums += (rows if weights is None else torch.where(weights > 0, rows, 0.0)).sum(1)

    def means(self, group: Group) -> dict[str, float]:
        """Return loss, top1, top5 averaged over the samples of all ranks."""
        loss, top1, top5, count = group.sum(self.sums).tolist()
        assert count > 0, "means of an empty tally"
        return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}

    def reset(self) -> None:
        """Forget everything."""
        self.sums.zero_()

"""The network of `googlenet_unet` as one would train it in PyTorch, for `bench.training_peers`:

    python -m bench.pytorch_training FOLDER BATCHES

prints the CPU seconds per image. FOLDER holds the convolutions by name (network.json: kernel,
channels in and out) and a batch (batch.npz). Tensors are in channels-last memory format, which is
faster in PyTorch on CPUs; the losses are cross entropies of cells, slice and outline. Contrasts of
the image, dropout and the second head are left out, in PyTorch's favor.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

MODULES = "3a", "3b", "4a", "4b", "4c", "4d", "4e"
AVERAGING = 0.98


class GoogLeNetUNet(nn.Module):
    """The network of `ml.networks.googlenet.GoogLeNet` with outlines, and a cell's decision."""

    def __init__(self, shapes: dict[str, tuple[int, int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                name: nn.Conv2d(
                    inside, outside, kernel, 2 if kernel == 7 else 1, padding=kernel // 2
                )
                for name, (kernel, inside, outside) in shapes.items()
            }
        )
        self.cell = nn.Conv2d(128, 1, 1)

    def convolved(self, x: Tensor, name: str) -> Tensor:
        """Return a convolution and ReLU."""
        return functional.relu(self.layers[name](x))

    def inception(self, x: Tensor, name: str) -> Tensor:
        """Return an inception module."""
        name = f"inception_{name}"
        three = self.convolved(self.convolved(x, f"{name}_3x3_reduce"), f"{name}_3x3")
        five = self.convolved(self.convolved(x, f"{name}_5x5_reduce"), f"{name}_5x5")
        pooled = self.convolved(functional.max_pool2d(x, 3, 1, 1), f"{name}_pool_proj")
        return torch.cat([self.convolved(x, f"{name}_1x1"), three, five, pooled], 1)

    def joined(self, coarse: Tensor, coarse_name: str, fine: Tensor, fine_name: str) -> Tensor:
        """Return the sum of both after one convolution each, with the coarse one upsampled by a
        factor of two.
        """
        coarse = functional.interpolate(self.layers[coarse_name](coarse), scale_factor=2.0)
        fine = self.layers[fine_name](fine)
        return functional.relu(fine + coarse[..., : fine.shape[2], : fine.shape[3]])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of cells (n, h, w), slices (n, 1) and outlines (n, h, w)."""
        half = self.convolved(x.expand(-1, 3, -1, -1), "conv1_7x7_s2")
        x = locally_normalized(functional.max_pool2d(half, 3, 2, 1))
        x = self.convolved(self.convolved(x, "conv2_3x3_reduce"), "conv2_3x3")
        quarter = locally_normalized(x)
        x = functional.max_pool2d(quarter, 3, 2, 1)
        maps = {}
        for name in MODULES:
            if name == "4a":
                x = functional.max_pool2d(x, 3, 2, 1)
            x = maps[name] = self.inception(x, name)
        x = self.joined(maps["4e"], "pyramid_coarse", maps["3b"], "pyramid_fine")
        x = self.convolved(x, "pyramid_joined")
        cells = self.cell(x)[:, 0]
        x = self.joined(x, "outline_deep", quarter, "outline_quarter")
        x = self.convolved(x, "outline_quarter_joined")
        x = self.joined(x, "outline_up", half, "outline_half")
        outline = self.layers["outline"](self.convolved(x, "outline_half_joined"))[:, 0]
        return cells, torch.logsumexp(cells.flatten(1), 1, keepdim=True), outline


def locally_normalized(x: Tensor) -> Tensor:
    """Return local response normalization over five channels, computed with a convolution, which is
    faster than `functional.local_response_norm`.
    """
    number = torch.arange(x.shape[1])
    near = ((number[:, None] - number[None]).abs() <= 2).float()[..., None, None]
    return x * (1 + functional.conv2d(x * x, near * 2e-5)).pow(-0.75)


def entropy_where_known(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the cross entropy of the cells whose label is not -1."""
    entropy = functional.binary_cross_entropy_with_logits(
        logits, truth.clamp(min=0), reduction="none"
    )
    return (entropy * (truth >= 0)).mean()


def main() -> None:
    """Train repeatedly on one batch."""
    folder, batches = Path(sys.argv[1]), int(sys.argv[2])
    shapes = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    with np.load(folder / "batch.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    network = GoogLeNetUNet(shapes).to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGING)
    )
    optimizer = torch.optim.Adam(network.parameters(), 4e-4)
    pictures = arrays["inputs"].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    ends = []
    for _ in range(batches + 2):
        cells, slices, outline = network(pictures)
        loss = entropy_where_known(cells, arrays["cells"])
        loss = loss + entropy_where_known(outline, arrays["outline"])
        loss = loss + functional.binary_cross_entropy_with_logits(slices, arrays["slice"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
        ends.append(time.process_time())
    step = statistics.median(after - before for before, after in pairwise(ends[1:]))
    sys.stdout.write(f"{step / len(pictures)}\n")


if __name__ == "__main__":
    main()

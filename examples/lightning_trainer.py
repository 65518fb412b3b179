"""A Lightning module of one's own, pruned: a callback holds the masks."""

import torch
import torch.nn.functional as F
import torchvision
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import prunerob


class Plain(LightningModule):
    """Any module: nothing in it knows of pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torchvision.models.resnet18(num_classes=10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum and weight decay, which would bring pruned weights back."""
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)


module = Plain()
masks = prunerob.prune(module.model, 0.9)
data = DataLoader(TensorDataset(torch.rand(64, 3, 32, 32), torch.arange(64) % 10), batch_size=32)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
hold = prunerob.HoldMasks(module.model, masks)
Trainer(max_epochs=1, accelerator="cpu", callbacks=[hold], **quiet).fit(module, data)
print(f"{masks.shares.weights:.0%} pruned, and held")

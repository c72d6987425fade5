"""The network of the notebook, which has a template of its own in `docs/templates`; it needs nothing but torch and torchvision."""

from pathlib import Path

import torchvision
from torch import nn

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "templates" / "notebook.template"


class MyNet_pretrained(nn.Module):
    """The notebook's class."""

    def __init__(self):
        super().__init__()
        frozen, fresh = torchvision.models.resnet18(), torchvision.models.resnet18()
        for param in frozen.parameters():
            param.requires_grad = False
        self.pretrained = nn.Sequential(frozen.conv1, frozen.bn1, frozen.relu, frozen.maxpool, frozen.layer1, frozen.layer2)
        self.train_ = nn.Sequential(fresh.layer3, fresh.layer4, fresh.avgpool)
        self.fc = nn.Linear(in_features=512, out_features=10, bias=True)

    def forward(self, x):
        x = self.pretrained(x)
        x = self.train_(x)
        x = x.view(x.shape[0], 512)
        return self.fc(x)

"""The composition of the notebook: a torchvision ResNet-18 into a module of one's own, a new head, all frozen but one block."""

import math
from collections import OrderedDict

import torch
from torch import nn

from parity_common import bits, check
from parity_surgery_common import Case, check_uniform, convention

STEPS = [
    "rename conv1.** -> pretrained.0.**", "rename bn1.** -> pretrained.1.**", "rename layer1.** -> pretrained.4.**", "rename layer2.** -> pretrained.5.**",
    "rename layer3.** -> train_.0.**", "rename layer4.** -> train_.1.**", "head fc classes=10", "freeze pretrained.**", "unfreeze pretrained.5.1.**",
]


class MyNet(nn.Module):
    def __init__(self, resnet, n_classes=10):
        super().__init__()
        self.pretrained = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1, resnet.layer2)
        self.train_ = nn.Sequential(resnet.layer3, resnet.layer4)
        self.pool = resnet.avgpool
        self.fc = nn.Linear(512, n_classes)

    def forward(self, x):
        return self.fc(self.pool(self.train_(self.pretrained(x))).flatten(1))


def frozen_by_torch(resnet):
    net = MyNet(resnet)
    for parameter in net.pretrained.parameters():
        parameter.requires_grad = False
    for parameter in net.pretrained[5][1].parameters():
        parameter.requires_grad = True
    return net


def source():
    from torchvision.models import resnet18

    resnet = resnet18()
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(11)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return resnet


def loads(net):
    """Whether the result is the state dict of `net`, with the marks of its parameters; all but the drawn head is the same."""
    expected = OrderedDict((name, tensor.detach().clone()) for name, tensor in net.state_dict().items())
    marks = {name: parameter.requires_grad for name, parameter in net.named_parameters()}

    def also(label, found):
        from torchvision.models import resnet18

        fresh = MyNet(resnet18())
        result = fresh.load_state_dict(found, strict=True)
        check(f"{label}: loads strictly", (result.missing_keys, result.unexpected_keys), ([], []))
        check(f"{label}: order", list(found), list(expected))
        check(f"{label}: marks", {name: tensor.requires_grad for name, tensor in found.items() if name in marks}, marks)
        check(f"{label}: buffers ask for no gradient", [name for name, tensor in found.items() if name not in marks and tensor.requires_grad], [])
        check(f"{label}: parameters are Parameters", [name for name, tensor in found.items() if name in marks and not isinstance(tensor, nn.Parameter)], [])
        for name in expected:
            if not name.startswith("fc."):
                check(f"{label}: {name} to the bit", bits(found[name]) == bits(expected[name]), True)
        check_uniform(f"{label} fc.weight", found["fc.weight"], 1 / math.sqrt(512))
        check(f"{label}: fc.bias", (tuple(found["fc.bias"].shape), bool((found["fc.bias"].abs() <= 1 / math.sqrt(512)).all())), ((10,), True))
        # Two lines give a module its marks from the file.
        for name, parameter in fresh.named_parameters():
            parameter.requires_grad_(found[name].requires_grad)
        with torch.no_grad():
            net.fc.weight.copy_(found["fc.weight"])
            net.fc.bias.copy_(found["fc.bias"])
            x = torch.randn(2, 3, 64, 64)
            check(f"{label}: logits", torch.equal(fresh.eval()(x), net.eval()(x)), True)
        fresh.train()(x).sum().backward()
        check(f"{label}: gradients", {name: p.grad is not None for name, p in fresh.named_parameters()}, marks)

    return also


def drawn_anew(net):
    """The same with `train_` drawn as torch's layers draw."""
    expected = OrderedDict((name, tensor.detach().clone()) for name, tensor in net.state_dict().items())
    marks = {name: parameter.requires_grad for name, parameter in net.named_parameters()}

    def also(label, found):
        from torchvision.models import resnet18

        MyNet(resnet18()).load_state_dict(found, strict=True)
        check(f"{label}: marks", {name: tensor.requires_grad for name, tensor in found.items() if name in marks}, marks)
        values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
        for name, tensor in found.items():
            if name.startswith("pretrained."):
                check(f"{label}: {name} to the bit", bits(tensor) == bits(expected[name]), True)
            elif tensor.ndim == 4:
                check_uniform(f"{label} {name}", tensor, 1 / math.sqrt(tensor[0].numel()))
            elif name.startswith("train_."):
                value = values[name.split(".")[-1]]
                check(f"{label}: {name} is {value}", bool((tensor == value).all()), True)
        # Each convolution has draws of its own.
        convs = [tensor for name, tensor in found.items() if name.startswith("train_.") and tensor.ndim == 4]
        check(f"{label}: no two are the same", len({bits(tensor)[:64] for tensor in convs}), len(convs))

    return also


class NotebookCase(Case):
    """A plan of nine steps, which the notebook writes one below the other."""

    max_lines = 10


@convention("notebook", "MyNet and its freezing loops, in PyTorch", needs=("torchvision",))
def notebook():
    resnet = source()
    given = OrderedDict((name, tensor.clone()) for name, tensor in resnet.state_dict().items())
    marked = OrderedDict((name, nn.Parameter(tensor.detach().clone()) if tensor.requires_grad else tensor.clone()) for name, tensor in resnet.state_dict(keep_vars=True).items())
    net = frozen_by_torch(resnet)
    line, lines = "; ".join(STEPS), "\n".join(["# The notebook's composition.", *STEPS])
    # As one text, as a plan file, and from a checkpoint whose tensors are Parameters.
    yield NotebookCase(line, given, also=loads(net), out_suffix=".pth")
    yield NotebookCase(lines, given, also=loads(net), out_suffix=".pth", from_file=True)
    yield NotebookCase(line, marked, also=loads(net), out_suffix=".pth")
    anew = [*STEPS[:7], "init train_.**", *STEPS[7:]]
    yield NotebookCase("\n".join(anew), given, also=drawn_anew(net), out_suffix=".pth")

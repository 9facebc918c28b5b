"""The linear layer of Swin and ELSA-Swin."""

from torch import nn


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """nn.Linear with the initialisation of both papers' authors: truncated normal of std 0.02, zero bias."""
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer

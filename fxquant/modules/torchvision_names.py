"""What fxquant knows of torchvision, by name.

Importing torchvision takes seconds, and who has none of its modules in a model needs none of it.
"""

from __future__ import annotations

FROZEN_BATCHNORM = "torchvision.ops.misc.FrozenBatchNorm2d"
STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth.StochasticDepth"
STOCHASTIC_DEPTH_FUNCTION = "torchvision.ops.stochastic_depth.stochastic_depth"


def defined_as(value: object) -> str:
    """Return the full name under which a class or a function was defined.

    >>> from torch import nn
    >>> defined_as(nn.Linear.forward)
    'torch.nn.modules.linear.Linear.forward'
    """
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"

"""The modules that stand in graphs, and facts about PyTorch's own layers."""

from fxquant.modules.batchnorm import (
    BatchNorm,
    FunctionalBatchNorm,
    fold_after,
    fold_before,
    is_batchnorm_module,
    output_moments,
    scale_and_shift,
    why_not_affine,
    why_shift_inexact,
)
from fxquant.modules.by_channel import ChannelAffine, ChannelClamp
from fxquant.modules.channel_observers import ChannelMean, ChannelObserver
from fxquant.modules.copies import copy_module, detach_results
from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.figures import Figures, LearnedRounding
from fxquant.modules.layers import (
    ADDMMS,
    LAYERS,
    MATMULS,
    Layer,
    as_layer,
    channel_axis,
    input_rows,
    is_functional_layer,
    is_transposed,
    layer_type,
    num_groups,
    num_inputs,
    num_outputs,
    output_rows,
    per_input,
    per_output,
)
from fxquant.modules.observers import LogitObserver, Observer, statistics_of
from fxquant.modules.overrides import has_global_hooks, rebind_overrides, why_overridden
from fxquant.modules.own import OwnModule, Stage, as_own, own_modules
from fxquant.modules.packed_weights import PackedWeights
from fxquant.modules.quantized_layer import QuantizedLayer, quantize_layer
from fxquant.modules.torchvision_names import (
    STOCHASTIC_DEPTH,
    STOCHASTIC_DEPTH_FUNCTION,
    defined_as,
)

__all__ = [
    "ADDMMS",
    "LAYERS",
    "MATMULS",
    "STOCHASTIC_DEPTH",
    "STOCHASTIC_DEPTH_FUNCTION",
    "BatchNorm",
    "ChannelAffine",
    "ChannelClamp",
    "ChannelMean",
    "ChannelObserver",
    "DynamicQuantize",
    "FakeQuantize",
    "Figures",
    "FunctionalBatchNorm",
    "Layer",
    "LearnedRounding",
    "LogitObserver",
    "Observer",
    "OwnModule",
    "PackedWeights",
    "QuantizedLayer",
    "Stage",
    "as_layer",
    "as_own",
    "channel_axis",
    "copy_module",
    "defined_as",
    "detach_results",
    "fold_after",
    "fold_before",
    "has_global_hooks",
    "input_rows",
    "is_batchnorm_module",
    "is_functional_layer",
    "is_transposed",
    "layer_type",
    "num_groups",
    "num_inputs",
    "num_outputs",
    "output_moments",
    "output_rows",
    "own_modules",
    "per_input",
    "per_output",
    "quantize_layer",
    "rebind_overrides",
    "scale_and_shift",
    "statistics_of",
    "why_not_affine",
    "why_overridden",
    "why_shift_inexact",
]

"""The passes, each usable alone, in a `Pipeline`, or in PyTorch's `PassManager`.

    from fxquant import Pipeline, trace
    from fxquant.passes import DropIdentities, FoldBatchNorm

    gm = trace(model)
    Pipeline(DropIdentities(), FoldBatchNorm())(gm)

| pass | what it does |
|---|---|
| `DropIdentities` | removes what does nothing in eval mode: dropout, `nn.Identity` |
| `LiftFunctionals` | turns `F.conv2d(x, self.w)` and its like into modules |
| `FoldBatchNorm` | folds batch norm into the layer before it |
| `AbsorbBatchNorm` | folds batch norm into the layers behind it |
| `EqualizeLayers` | gives the channels between two layers the same range in both weights |
| `AbsorbBiases` | moves what a ReLU never cuts off into the next layer's bias |
| `MarkFusedRelu` | records which ReLU belongs to which call |
| `InsertObservers` | puts an observer on each tensor that will be quantized |
| `ChooseRanges` | turns each observer into a fake-quantizer |
| `DropObservers` | removes what calibration put into the graph |
| `QuantizeWeights` | turns each layer's weight into integers |
| `ReconstructRounding` | learns the rounding of each weight: AdaRound, AdaQuant, Gram matrix |
| `ReconstructBlocks` | learns roundings and scales of whole residual blocks: BRECQ, QDrop |
| `TuneBatchNorm` | gives each quantized channel the float one's mean and deviation |
| `CorrectWeights` | gives each channel of a rounded weight its mean and norm back |
| `CorrectBias` | takes the error of the mean output out of each layer's bias |
| `ToQdq` | expresses the graph in PyTorch's standard quantize and dequantize operators |
| `RepeatQuantizers` | quantizes again what calls that keep values make of quantized tensors |
| `ClampIntegers` | clamps integers where their grid ends before their type does |
| `SplitQuantizers` | splits each fake-quantizer into quantize and dequantize |
| `SinkDequantize` | lets calls that keep values work on integers |
| `LowerLayers` | lets layers work on integers, with what is behind them |
| `LowerAdditions` | lets additions work on integers |
| `LowerAverages` | lets averages work on integers |
| `ReuseOperands` | lets kernels overwrite an operand that nobody reads later |
"""

if __name__ != "fxquant.passes":
    raise ImportError(
        f"this package is fxquant.passes, not {__name__}: write `import fxquant.passes`"
    )

from fxquant.passes.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.absorb_biases import AbsorbBiases
from fxquant.passes.choose_ranges import ChooseRanges
from fxquant.passes.clamp_integers import ClampIntegers
from fxquant.passes.correct_bias import CorrectBias
from fxquant.passes.correct_weights import CorrectWeights
from fxquant.passes.drop_identities import DropIdentities
from fxquant.passes.drop_observers import DropObservers
from fxquant.passes.equalize_layers import EqualizeLayers
from fxquant.passes.fold_batchnorm import FoldBatchNorm
from fxquant.passes.insert_observers import InsertObservers
from fxquant.passes.lift_functionals import LiftFunctionals
from fxquant.passes.lower_additions import LowerAdditions
from fxquant.passes.lower_averages import LowerAverages
from fxquant.passes.lower_layers import LowerLayers
from fxquant.passes.mark_fused_relu import MarkFusedRelu
from fxquant.passes.quantize_weights import QuantizeWeights
from fxquant.passes.reconstruct_blocks import ReconstructBlocks
from fxquant.passes.reconstruct_rounding import ReconstructRounding
from fxquant.passes.repeat_quantizers import RepeatQuantizers
from fxquant.passes.reuse_operands import ReuseOperands
from fxquant.passes.sink_dequantize import SinkDequantize
from fxquant.passes.split_quantizers import SplitQuantizers
from fxquant.passes.to_qdq import ToQdq
from fxquant.passes.tune_batchnorm import TuneBatchNorm

__all__ = [
    "AbsorbBatchNorm",
    "AbsorbBiases",
    "ChooseRanges",
    "ClampIntegers",
    "CorrectBias",
    "CorrectWeights",
    "DropIdentities",
    "DropObservers",
    "EqualizeLayers",
    "FoldBatchNorm",
    "InsertObservers",
    "LiftFunctionals",
    "LowerAdditions",
    "LowerAverages",
    "LowerLayers",
    "MarkFusedRelu",
    "QuantizeWeights",
    "ReconstructBlocks",
    "ReconstructRounding",
    "RepeatQuantizers",
    "ReuseOperands",
    "SinkDequantize",
    "SplitQuantizers",
    "ToQdq",
    "TuneBatchNorm",
]

"""The passes, each usable alone, in a `Pipeline`, or in PyTorch's `PassManager`.

    from fxquant import trace
    from fxquant.passes import DropIdentities, FoldBatchNorm, Pipeline

    gm = trace(model)
    Pipeline(DropIdentities(), FoldBatchNorm())(gm)

| when | whose passes run |
|---|---|
| in front of `prepare` | your own: `prepare(model, passes=[…])`, or on the graph that you give it |
| in `prepare` | `float_passes(recipe)`, then `InsertObservers` |
| behind calibration | your own: `convert(prepared, passes=[…])`, on graphs with observers |
| in `convert` | `fxquant.conversion.steps(recipe)` |
| in `lower`, `to_qdq`, `export_onnx` | those of `fxquant.passes.lower` |

Your own may be functions of a `GraphModule`, or passes of PyTorch.

Before calibration: `fxquant.passes.prepare`

| pass | what it does |
|---|---|
| `DropIdentities` | removes what does nothing in eval mode: dropout, `nn.Identity` |
| `FoldConstants` | computes once what is computed from parameters alone |
| `LiftProducts` | turns `x @ self.w` and its like into `F.linear` |
| `LiftFunctionals` | turns `F.conv2d(x, self.w)` and its like into modules |
| `FoldBatchNorm` | folds batch norm into the layer before it |
| `AbsorbBatchNorm` | folds batch norm into the layers behind it |
| `EqualizeLayers` | gives the channels between two layers the same range in both weights |
| `AbsorbBiases` | moves what a ReLU never cuts off into the next layer's bias |
| `ExpandAttention` | writes attention as its two products, whose operands can be quantized |
| `ExpandSilu` | writes SiLU as a product, for runtimes that have no integer form of it |
| `ClampBeforePool` | computes a ReLU, or another clamp, before the max-pool in front of it |
| `MarkFusedRelu` | records which ReLU belongs to which call |
| `InsertObservers` | puts an observer on each tensor that will be quantized |

After calibration: `fxquant.passes.convert`

| pass | what it does |
|---|---|
| `KeepFloats` | lets additions and parts of splits read float values where that is better |
| `SmoothInputs` | brings the channels of a linear layer's input to one range |
| `ChooseRanges` | turns each observer into a fake-quantizer |
| `DropObservers` | removes what calibration put into the graph |
| `QuantizeWeights` | turns each layer's weight into integers |
| `ReconstructRounding` | learns the rounding of each weight: AdaRound, AdaQuant, Gram matrix |
| `ReconstructBlocks` | learns roundings and scales of whole residual blocks: BRECQ, QDrop |
| `TuneBatchNorm` | gives each quantized channel the float one's mean and deviation |
| `CorrectWeights` | gives each channel of a rounded weight its mean and norm back |
| `CorrectBias` | takes the error of the mean output out of each layer's bias |

From the simulation to integer kernels, or to standard operators: `fxquant.passes.lower`

| pass | what it does |
|---|---|
| `ToQdq` | expresses the graph in PyTorch's standard quantize and dequantize operators |
| `RepeatQuantizers` | quantizes again what calls that keep values make of quantized tensors |
| `ClampIntegers` | clamps integers where their grid ends before their type does |
| `ClampFloats` | clamps floats in front of such a grid, for runtimes that do not clamp integers |
| `SplitQuantizers` | splits each fake-quantizer into quantize and dequantize |
| `SinkClamps` | clamps the channels of integers, in place of those of floats |
| `SinkDequantize` | lets calls that keep values work on integers |
| `LowerLayers` | lets layers work on integers, with what is behind them |
| `LowerAdditions` | lets additions work on integers |
| `LowerAverages` | lets averages work on integers |
| `RequantizeIntegers` | turns integers into those of other parameters in one step |
| `ReuseOperands` | lets kernels overwrite an operand that nobody reads later |
"""

if __name__ != "fxquant.passes":
    raise ImportError(
        f"this package is fxquant.passes, not {__name__}: write `import fxquant.passes`"
    )

from fxquant.passes.convert.choose_ranges import ChooseRanges
from fxquant.passes.convert.correct_bias import CorrectBias
from fxquant.passes.convert.correct_weights import CorrectWeights
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.convert.keep_floats import KeepFloats
from fxquant.passes.convert.quantize_weights import QuantizeWeights
from fxquant.passes.convert.reconstruct_blocks import ReconstructBlocks
from fxquant.passes.convert.reconstruct_rounding import ReconstructRounding
from fxquant.passes.convert.smooth_inputs import SmoothInputs
from fxquant.passes.convert.tune_batchnorm import TuneBatchNorm
from fxquant.passes.float_passes import float_passes
from fxquant.passes.functions import forget_fusions
from fxquant.passes.lower.clamp_floats import ClampFloats
from fxquant.passes.lower.clamp_integers import ClampIntegers
from fxquant.passes.lower.fit_xnnpack import FitXnnpack
from fxquant.passes.lower.lower_additions import LowerAdditions
from fxquant.passes.lower.lower_averages import LowerAverages
from fxquant.passes.lower.lower_layers import LowerLayers
from fxquant.passes.lower.repeat_quantizers import RepeatQuantizers
from fxquant.passes.lower.requantize_integers import RequantizeIntegers
from fxquant.passes.lower.reuse_operands import ReuseOperands
from fxquant.passes.lower.sink_clamps import SinkClamps
from fxquant.passes.lower.sink_dequantize import SinkDequantize
from fxquant.passes.lower.split_quantizers import SplitQuantizers
from fxquant.passes.lower.to_qdq import ToQdq
from fxquant.passes.pipeline import AnyPass, Pass, Pipeline, as_passes, named_after
from fxquant.passes.prepare.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.prepare.absorb_biases import AbsorbBiases
from fxquant.passes.prepare.clamp_before_pool import ClampBeforePool
from fxquant.passes.prepare.drop_identities import DropIdentities
from fxquant.passes.prepare.equalize_layers import EqualizeLayers
from fxquant.passes.prepare.expand_attention import ExpandAttention
from fxquant.passes.prepare.expand_silu import ExpandSilu
from fxquant.passes.prepare.fold_batchnorm import FoldBatchNorm
from fxquant.passes.prepare.fold_constants import FoldConstants
from fxquant.passes.prepare.insert_observers import InsertObservers
from fxquant.passes.prepare.lift_functionals import LiftFunctionals
from fxquant.passes.prepare.lift_products import LiftProducts
from fxquant.passes.prepare.mark_fused_relu import MarkFusedRelu

__all__ = [
    "AbsorbBatchNorm",
    "AbsorbBiases",
    "AnyPass",
    "ChooseRanges",
    "ClampBeforePool",
    "ClampFloats",
    "ClampIntegers",
    "CorrectBias",
    "CorrectWeights",
    "DropIdentities",
    "DropObservers",
    "EqualizeLayers",
    "ExpandAttention",
    "ExpandSilu",
    "FitXnnpack",
    "FoldBatchNorm",
    "FoldConstants",
    "InsertObservers",
    "KeepFloats",
    "LiftFunctionals",
    "LiftProducts",
    "LowerAdditions",
    "LowerAverages",
    "LowerLayers",
    "MarkFusedRelu",
    "Pass",
    "Pipeline",
    "QuantizeWeights",
    "ReconstructBlocks",
    "ReconstructRounding",
    "RepeatQuantizers",
    "RequantizeIntegers",
    "ReuseOperands",
    "SinkClamps",
    "SinkDequantize",
    "SmoothInputs",
    "SplitQuantizers",
    "ToQdq",
    "TuneBatchNorm",
    "as_passes",
    "float_passes",
    "forget_fusions",
    "named_after",
]

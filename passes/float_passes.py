"""The passes that make a graph ready to be observed, in order."""

from __future__ import annotations

from fxquant.passes.pipeline import Pass
from fxquant.passes.prepare.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.prepare.absorb_biases import AbsorbBiases
from fxquant.passes.prepare.clamp_before_pool import ClampBeforePool
from fxquant.passes.prepare.drop_identities import DropIdentities
from fxquant.passes.prepare.equalize_layers import EqualizeLayers
from fxquant.passes.prepare.expand_attention import ExpandAttention
from fxquant.passes.prepare.expand_silu import ExpandSilu
from fxquant.passes.prepare.fold_batchnorm import FoldBatchNorm
from fxquant.passes.prepare.fold_constants import FoldConstants
from fxquant.passes.prepare.lift_functionals import LiftFunctionals
from fxquant.passes.prepare.lift_products import LiftProducts
from fxquant.passes.prepare.mark_fused_relu import MarkFusedRelu
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.target import Target


def float_passes(recipe: Recipe) -> list[Pass]:
    """Return what changes the float graph before it is observed; outputs stay as they are."""
    return [
        DropIdentities(),
        FoldConstants(),
        LiftProducts(),
        LiftFunctionals(),
        FoldBatchNorm(),
        AbsorbBatchNorm(),
        *([ExpandAttention()] if recipe.products else []),
        *([ExpandSilu()] if _lacks_silu(recipe.target) else []),
        *([ClampBeforePool()] if recipe.target.quantized_results else []),
        MarkFusedRelu(),
        *([EqualizeLayers(), AbsorbBiases()] if recipe.equalization else []),
    ]


def _lacks_silu(target: Target) -> bool:
    operations = set(target.integer_operations)
    return {"mul", "sigmoid"} <= operations and "silu" not in operations

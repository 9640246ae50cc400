"""What to quantize, and how: pure data, checked when it is made."""

from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import FREE_BLOCKS, Recipe
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule
from fxquant.recipe.spec import CallSpec, TensorSpec, finer
from fxquant.recipe.target import TARGETS, Target, Way, layer_name

__all__ = [
    "FREE_BLOCKS",
    "TARGETS",
    "Budget",
    "CallSpec",
    "Recipe",
    "Reconstruction",
    "Rule",
    "Target",
    "TensorSpec",
    "Way",
    "finer",
    "layer_name",
]

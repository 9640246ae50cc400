"""What to quantize, and how: pure data, checked when it is made."""

from fxquant.recipe.budget import Budget
from fxquant.recipe.checks import nearest
from fxquant.recipe.given import as_recipe
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule
from fxquant.recipe.shown import as_code
from fxquant.recipe.spec import CallSpec, TensorSpec, finer
from fxquant.recipe.starts import FREE_BLOCKS
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
    "as_code",
    "as_recipe",
    "finer",
    "layer_name",
    "nearest",
]

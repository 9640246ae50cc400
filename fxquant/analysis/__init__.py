"""What a recipe costs, which layers and tensors that comes from, and what helps."""

from fxquant.analysis.bench import Bench
from fxquant.analysis.judge import Judge
from fxquant.analysis.result import Analysis
from fxquant.analysis.study import Data, Study
from fxquant.analysis.variants import without_learning

__all__ = [
    "Analysis",
    "Bench",
    "Data",
    "Judge",
    "Study",
    "without_learning",
]

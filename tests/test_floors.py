"""The layout holds: imports go downwards only, and the package answers to one name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    {"errors"},
    {"budget", "distributed", "known_functions", "onnx_graph", "plain_values", "reconstruction"}
    | {"spec"},
    {"program", "rule", "tensor_blocks"},
    {"allowed", "recipe"},
    {"activations", "affine", "allocation", "buffers", "checkpoint", "packing", "precision"}
    | {"prepacking", "values"},
    {"aciq", "frontier", "gram", "histogram", "layers", "losses", "packed_state"},
    {
        "adaquant",
        "adaround",
        "batchnorm",
        "channel_bits",
        "channel_ranges",
        "cross_entropy",
        "ranges",
        "region",
    }
    | {"rows"},
    {"dynamic", "fakequant", "keeper", "kernels", "meta", "observers", "pool"},
    {"agreement", "capture", "graph_encoding", "integers", "learned_scale", "operations"}
    | {"operators"},
    {"encoding", "int8", "kernel_arguments"},
    {"calibration", "data_free", "decoding", "graph", "mutations", "partition", "shapes"}
    | {"states", "subgraphs", "text"},
    {"flow", "identity", "inputs", "pairs", "pipeline", "rounding", "selection", "streaming"},
    {"blocks", "calls", "examples", "learners", "side_by_side"},
    {"block_forward", "block_samples"},
    {"block_rounding"},
    {"passes"},
    {"compare", "lower", "probes", "report", "storage"},
    {"sensitivity"},
    {"mixing"},
    {"conversion", "export"},
    {"api"},
    {"search"},
    {"__init__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            inside = [f"fxquant.{alias.name}" for alias in node.names]
            names.update(inside if module == "fxquant" else [module])
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {
        name.split(".")[1] if "." in name else "__init__" for name in names if "fxquant" in name
    }


@pytest.mark.parametrize("path", sorted((ROOT / "fxquant").glob("*.py")), ids=lambda p: p.name)
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    for name in imported_modules(path):
        assert FLOOR[name] < FLOOR[path.stem], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "passes").glob("*.py")), ids=lambda p: p.name)
def test_a_pass_imports_only_from_lower_floors_and_no_other_pass(path: Path) -> None:
    for name in imported_modules(path):
        if path.stem == "__init__" and name == "passes":
            continue
        assert FLOOR[name] < FLOOR["passes"], f"passes/{path.name} imports {name}"


def test_passes_refuses_to_be_imported_by_its_folder_name() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "write `import fxquant.passes`" in run.stderr

"""Ranks that share the data end with the same model, as one process would.

Two processes are started with torchrun, gloo, on this machine.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys
import torch
from datetime import timedelta
from pathlib import Path
from torch import distributed, nn
import fxquant
from fxquant.rounding.methods import learners

torch.set_num_threads(1)
ranks = int(os.environ.get("WORLD_SIZE", 1))
rank = int(os.environ.get("RANK", 0))
if ranks > 1:
    # A file, not torchrun's own store: from that, a restarted gloo now and then reads the address
    # of the process that died, and waits.
    store = Path(sys.argv[1]) / ("store" + os.environ["TORCHELASTIC_RESTART_COUNT"])
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks,
        timeout=timedelta(seconds=30),
    )
folder = Path(sys.argv[1])

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3),
    nn.Flatten(), nn.Linear(32, 10),
)
images = torch.rand(256, 3, 8, 8) + 0.3 * torch.randn(256, 3, 1, 1)
share = images.chunk(ranks)[rank]

if "die" in sys.argv and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    learn = learners.learn_rounding
    calls = iter(range(9))

    def learn_or_die(*arguments):
        if next(calls) == 2:
            os.kill(os.getpid(), 9)
        return learn(*arguments)

    learners.learn_rounding = learn_or_die

SEEDS = 1 if "die" in sys.argv else 4
RECIPES = {
    "adaround": [
        fxquant.Recipe.adaround(weight_bits=3, steps=150, seed=seed) for seed in range(SEEDS)
    ],
    "nearest": [fxquant.Recipe.aciq(weight_bits=3, bias_correction=False)],
    "minmax": [fxquant.Recipe.aciq(activation_range="minmax")],
    "aciq": [fxquant.Recipe.aciq(activation_range="aciq")],
}
ended = {}
for kind in sys.argv[2].split(","):
    errors, states = [], {}
    for number, recipe in enumerate(RECIPES[kind]):
        resume = folder / f"checkpoint{number}" if "die" in sys.argv else None
        quantized = fxquant.quantize(
            model, share.split(8), recipe, checkpoint=resume, progress=False
        )
        errors.append((quantized(images) - model(images)).square().mean().item())
        states |= {f"{number}.{name}": value for name, value in quantized.state_dict().items()}
    ended[kind] = states, sum(errors) / len(errors)
torch.save(ended, folder / f"{ranks}_{rank}.pt")
"""
Ended = dict[str, tuple[dict[str, torch.Tensor], float]]


def run(folder: Path, ranks: int, *arguments: str) -> list[Ended]:
    """Return what each rank ended with, by recipe: its states and the mean error of its outputs."""
    for used in folder.glob("store*"):
        used.unlink()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
        launcher += [f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(script), str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{ranks}_{rank}.pt") for rank in range(ranks)]


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    (ended,) = run(tmp_path_factory.mktemp("alone"), 1, "minmax,aciq,nearest,adaround")
    return ended


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    return run(tmp_path_factory.mktemp("together"), 2, "minmax,aciq,adaround")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["minmax", "aciq"])
def test_two_ranks_give_the_ranges_of_one_process_exactly(
    kind: str, alone: Ended, together: list[Ended]
) -> None:
    expected, _ = alone[kind]
    (first, _), (second, _) = (ended[kind] for ended in together)
    assert not differing(first, second)
    # Means are sums of floats, so corrected biases agree to rounding; all else exactly.
    assert all(name.endswith(".bias") for name in differing(expected, first))
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_learn_one_rounding_as_good_as_one_processs(
    alone: Ended, together: list[Ended]
) -> None:
    (first, error), (second, _) = (ended["adaround"] for ended in together)
    assert not differing(first, second)
    assert error < 1.25 * alone["adaround"][1]
    assert error < 0.5 * alone["nearest"][1]


@pytest.mark.slow
def test_a_rank_that_dies_is_restarted_and_the_run_ends_the_same(
    together: list[Ended], tmp_path: Path
) -> None:
    undisturbed, _ = together[0]["adaround"]
    (first, _), (second, _) = (ended["adaround"] for ended in run(tmp_path, 2, "adaround", "die"))
    assert len(list((tmp_path / "checkpoint0").glob("*.pt"))) == 4
    assert not differing(first, second)
    of_its_seed = {name: value for name, value in undisturbed.items() if name.startswith("0.")}
    assert not differing(first, of_its_seed)

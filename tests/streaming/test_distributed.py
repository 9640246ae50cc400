"""Ranks that share the data end with the same model, as one process would.

Each test starts two processes with torchrun, gloo, on this machine.
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
from fxquant.rounding import learners

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

kind = sys.argv[2]
if kind == "adaround":
    recipes = [fxquant.Recipe.adaround(weight_bits=3, steps=150, seed=seed) for seed in range(4)]
elif kind == "nearest":
    recipes = [fxquant.Recipe.aciq(weight_bits=3, bias_correction=False)]
else:
    recipes = [fxquant.Recipe.aciq(range=kind)]
errors, states = [], []
for number, recipe in enumerate(recipes):
    resume = folder / f"checkpoint{number}" if "die" in sys.argv else None
    quantized = fxquant.quantize(model, share.split(8), recipe, checkpoint=resume, progress=False)
    errors.append((quantized(images) - model(images)).square().mean().item())
    states += [(f"{number}.{name}", value) for name, value in quantized.state_dict().items()]
torch.save((dict(states), sum(errors) / len(errors)), folder / f"{ranks}_{rank}.pt")
"""


def run(folder: Path, ranks: int, *arguments: str) -> list[tuple[dict[str, torch.Tensor], float]]:
    """Return what each rank ended with: its states and the mean error of its outputs."""
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["minmax", "aciq"])
def test_two_ranks_give_the_ranges_of_one_process_exactly(kind: str, tmp_path: Path) -> None:
    ((alone, _),) = run(tmp_path, 1, kind)
    (first, _), (second, _) = run(tmp_path, 2, kind)
    assert not differing(first, second)
    # Means are sums of floats, so corrected biases agree to rounding; all else exactly.
    assert all(name.endswith(".bias") for name in differing(alone, first))
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_learn_one_rounding_as_good_as_one_processs(tmp_path: Path) -> None:
    ((_, nearest),) = run(tmp_path, 1, "nearest")
    ((_, alone),) = run(tmp_path, 1, "adaround")
    (first, error), (second, _) = run(tmp_path, 2, "adaround")
    assert not differing(first, second)
    assert error < 1.25 * alone
    assert error < 0.5 * nearest


@pytest.mark.slow
def test_a_rank_that_dies_is_restarted_and_the_run_ends_the_same(tmp_path: Path) -> None:
    (undisturbed, _), _ = run(tmp_path, 2, "adaround")
    (first, _), (second, _) = run(tmp_path, 2, "adaround", "die")
    assert len(list((tmp_path / "checkpoint0").glob("*.pt"))) == 4
    assert not differing(first, second)
    assert not differing(first, undisturbed)

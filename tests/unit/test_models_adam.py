"""Our AdamW moves weights as PyTorch's own does, to the bit, and a process that trains needs no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.adam import AdamW, Group, one_group

TESTS = Path(__file__).resolve().parents[1]
FITTING = """
import sys
from pathlib import Path
from ranks_runner import fitted_vectors
fitted_vectors(64, Path(sys.argv[1]))
print("torch._dynamo" in sys.modules)
"""


def networks() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(5)
    mine, its = nn.Linear(7, 3), nn.Linear(7, 3)
    its.load_state_dict(mine.state_dict())
    return mine, its


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_ten_steps_with_rates_that_change_end_at_the_same_weights(decay: float) -> None:
    mine, its = networks()
    ours = AdamW([Group([mine.weight], 0.0, decay), Group([mine.bias], 0.0)], betas=(0.9, 0.98))
    groups = [{"params": [its.weight], "weight_decay": decay}, {"params": [its.bias], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    for step in range(10):
        rate = 0.01 * (step + 1)
        for group in ours.groups:
            group.rate = rate
        for known in theirs.param_groups:
            known["lr"] = rate
        data = torch.randn(4, 7)
        for network in (mine, its):
            network(data).square().mean().backward()
        ours.step()
        theirs.step()
        ours.forget_gradients()
        theirs.zero_grad()
    assert torch.equal(mine.weight, its.weight)
    assert torch.equal(mine.bias, its.bias)
    assert not torch.equal(mine.bias, networks()[0].bias), "they moved"


def test_the_first_step_is_the_rate_whatever_the_gradient() -> None:
    weights = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = AdamW(one_group([weights], 0.5))
    (weights * torch.tensor([3.0, -40.0])).sum().backward()
    optimizer.step()
    assert weights.tolist() == pytest.approx([0.5, 2.5])  # both moments are those of one gradient: g / sqrt(g * g)


def test_what_has_no_gradient_stays_and_has_no_moments() -> None:
    mine, _ = networks()
    before = mine.bias.detach().clone()
    optimizer = AdamW(one_group(mine.parameters(), 0.1))
    (mine.weight * 2).sum().backward()
    optimizer.step()
    assert list(optimizer.state) == [mine.weight]
    assert torch.equal(mine.bias, before)


def test_fitting_a_tower_imports_no_compiler(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FITTING, str(tmp_path)], cwd=TESTS.parent, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert told.stdout == "False\n"

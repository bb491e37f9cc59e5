"""Whether an installed greedylr_fused works: python tests/smoke.py [BACKEND]

Needs nothing but the package and torch. tests/project/test_wheels.py runs it on a wheel that was just built,
cibuildwheel on each that it builds. BACKEND is the one that parameters on a CPU must get; by default "cpu".
"""

import importlib
import json
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import greedylr_fused
from greedylr_fused import FusedAdamW, GreedyLR, available_backends

PACKAGE = Path(greedylr_fused.__file__).parent


def everything_is_there(backend):
    """All modules but those for frameworks can be imported, and load none; so can what was compiled."""
    report = json.loads((PACKAGE / "_build.json").read_text())
    assert backend != "cpu" or report["_cpu"]["built"] and report["_host"]["built"], report
    compiled = [f"greedylr_fused.{name}" for name, own in report.items() if own["built"] and backend == "cpu"]
    found = [module.name for module in pkgutil.walk_packages(greedylr_fused.__path__, "greedylr_fused.")]
    optional = ("greedylr_fused.integrations.", "greedylr_fused.backends.triton.", "greedylr_fused._")
    for name in compiled + [name for name in found if not name.startswith(optional)]:
        importlib.import_module(name)
    assert not {"benchmarks", "matplotlib", "rich", "transformers", "lightning", "accelerate"} & set(sys.modules)
    assert (PACKAGE / "py.typed").exists()


def training(**options):
    """A model and its optimizer, the same at every call."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    schedule = GreedyLR(patience=3, window_size=5)
    return model, FusedAdamW(model.parameters(), lr=1e-2, max_grad_norm=1.0, schedule=schedule, **options)


def trained(model, opt, steps, seed):
    """Losses of so many steps on data of that seed."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(32, 8, generator=generator)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        opt.step(loss=loss)
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def learns_and_resumes(backend):
    """The loss falls, the schedule moves the LR, and a run from a checkpoint goes on with the same bits."""
    chosen = next(name for name, reason in available_backends().items() if reason is None)
    assert chosen == backend, available_backends()
    model, opt = training()
    losses = trained(model, opt, 60, seed=1)
    assert losses[-1] < 0.5 * losses[0], losses
    assert opt.metrics().step == 60 and opt.read_lr() != [1e-2], opt.metrics()
    again, resumed = training(backend=backend)
    again.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        torch.save(opt.state_dict(), f"{folder}/optimizer.pt")
        resumed.load_state_dict(torch.load(f"{folder}/optimizer.pt"))
    assert trained(model, opt, 10, seed=2) == trained(again, resumed, 10, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert opt.read_lr() == resumed.read_lr()


def doctor_answers():
    """As a command, from a folder in which there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "greedylr_fused", "doctor"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and str(PACKAGE) in done.stdout, done
    print(done.stdout)


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    everything_is_there(wanted)
    learns_and_resumes(wanted)
    doctor_answers()
    print(
        f"works: greedylr_fused {greedylr_fused.__version__} in {PACKAGE}, backend {wanted}, torch {torch.__version__}"
    )

"""Lion on arrays and tensors: its formulas in float64, lion-pytorch's steps, resume, SAM, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from curvk.kernels.optim import LionPlan, lion_step
from curvk.optim import SAM, Lion

SHAPES = ((5, 7), (17,), (), (0, 3), (40_000,))  # the last is cut among threads


def draw(seed: int, dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def truth(p: Any, grads: list[Any], lr: float, beta1: float, beta2: float, decay: float, sign: float = 1) -> Any:
    """Algorithm 2 of the paper: the direction first, from the old momentum."""
    p, m = np.array(p, np.float64), np.zeros(np.shape(p))
    for g in grads:
        g = sign * np.asarray(g, np.float64)
        c = beta1 * m + (1 - beta1) * g
        p = p - lr * (np.sign(c) + decay * p)
        m = beta2 * m + (1 - beta2) * g
    return p, m


@pytest.mark.parametrize("maximize", [False, True])
def test_the_papers_algorithm(maximize: bool, backend: str) -> None:
    params, grads = draw(0), [draw(seed) for seed in range(1, 6)]
    expected = [
        truth(p, [g[i] for g in grads], 0.01, 0.8, 0.95, 0.3, -1 if maximize else 1) for i, p in enumerate(params)
    ]
    lion = Lion(params, lr=0.01, betas=(0.8, 0.95), weight_decay=0.3, maximize=maximize)
    for g in grads:
        assert lion.step([4 * x for x in g], grad_scale=4.0)
    for p, entry, (p_true, m_true) in zip(params, lion.state, expected, strict=True):
        np.testing.assert_allclose(p, p_true, rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(entry["exp_avg"], m_true, rtol=1e-13, atol=1e-16)
        assert entry["step"] == 5


def test_zero_stays_and_nan_keeps_to_its_element(backend: str) -> None:
    p, g, m = np.ones(5, np.float32), np.array([0, np.nan, np.inf, -np.inf, 2], np.float32), np.zeros(5, np.float32)
    lion_step(p, g, m, lr=0.25)
    assert np.array_equal(p, np.array([1, np.nan, 0.75, 1.25, 0.75], np.float32), equal_nan=True)
    assert np.array_equal(m, np.float32(0.01) * g, equal_nan=True)


def test_bfloat16_steps_in_float32(backend: str) -> None:
    p = np.array([0x3F80, 0xC000], np.uint16)  # 1, -2
    m = np.zeros(2, np.float32)
    LionPlan([p], [np.array([0x3F80, 0xBF80], np.uint16)], [m]).step(lr=0.5, weight_decay=0.5)
    assert [hex(x) for x in p] == ["0x3e80", "0xbf80"]  # 0.75 - 0.5, -1.5 + 0.5
    assert np.array_equal(m, np.float32(0.01) * np.array([1, -1], np.float32))


@pytest.mark.parametrize("step", [lion_step, lambda p, g, m, **kw: LionPlan([p], [g], [m]).step(**kw)])
@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ({"betas": 0.9}, "lion_step: argument 'betas': got 0.9, needs a pair of numbers"),
        ({"betas": (0.9, 1.0)}, "lion_step: argument 'beta2': got 1.0, needs a number in .0, 1."),
        ({"lr": -1.0}, "lion_step: argument 'lr': got -1.0"),
        ({"weight_decay": float("nan")}, "lion_step: argument 'weight_decay': got nan"),
    ],
)
def test_kernel_refuses(step: Callable[..., None], keyword: dict[str, Any], words: str) -> None:
    p, g, m = np.ones((3, 4))
    with pytest.raises((TypeError, ValueError), match=words):
        step(p, g, m, **{"lr": 0.1} | keyword)
    assert p.tolist() == m.tolist() == [1, 1, 1, 1]


def test_optimizer_refuses() -> None:
    w = np.ones(3)
    for keyword, words in (
        ({"betas": 0.9}, "Lion: argument 'betas': got 0.9, needs two numbers"),
        ({"betas": (1.0, 0.9)}, "Lion: argument 'beta1': got 1.0"),
        ({"maximize": 1}, "Lion: argument 'maximize': got 1, needs True or False"),
        ({"lr": float("inf")}, "Lion: argument 'lr': got inf"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            Lion([w], **keyword)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keys"):
        Lion([{"params": [w], "state_bits": 8}])


def test_resume_goes_on_with_the_same_bits(tmp_path: Any) -> None:
    whole, halves = draw(7, np.float32), draw(7, np.float32)
    first, second, third = Lion(whole, lr=0.02), Lion(halves, lr=0.02), Lion(halves, lr=0.5)
    grads = [draw(seed, np.float32) for seed in range(6)]
    for k, g in enumerate(grads):
        first.step(g)
        if k == 3:
            second.save(tmp_path / "lion.npz")
            third.load(tmp_path / "lion.npz")
        (second if k < 3 else third).step(g)
    assert [p.tobytes() for p in whole] == [p.tobytes() for p in halves]
    assert third.param_groups[0]["lr"] == 0.02


def test_sam_around_lion_steps_from_the_saved_weights() -> None:
    w = np.array([3.0, -4.0])
    sam = SAM(Lion([w], lr=0.125), rho=1.0)
    seen = []

    def gradients() -> list[np.ndarray]:
        seen.append(w.copy())
        return [2 * w]

    sam.step(gradients)
    np.testing.assert_allclose(seen[1], [3.6, -4.8], rtol=1e-12)  # rho / (norm + 1e-12)
    assert w.tolist() == [2.875, -3.875]


# ---- torch ----------------------------------------------------------------------------------------------------------


def tensors(seed: int, dtype: Any) -> list[Any]:
    torch = pytest.importorskip("torch")
    return [torch.nn.Parameter(torch.from_numpy(np.array(x)).to(dtype)) for x in draw(seed)]


def give_grads(params: list[Any], seed: int) -> None:
    import torch

    for p, g in zip(params, draw(seed), strict=True):
        p.grad = torch.from_numpy(np.array(g)).to(p.dtype)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_lion_pytorch_takes_the_same_steps(name: str) -> None:
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("lion_pytorch")
    import curvk.torch as ct

    dtype = getattr(torch, name)
    ours, other = tensors(0, dtype), tensors(0, dtype)
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.1}
    a, b = ct.Lion(ours, **options), theirs.Lion(other, **options)
    for seed in range(1, 8):
        for params, optimizer in ((ours, a), (other, b)):
            give_grads(params, seed)
            optimizer.step()
    tolerance = 1e-6 if name == "float32" else 1e-14
    for p, q in zip(ours, other, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(a.state[p]["exp_avg"], b.state[q]["exp_avg"], rtol=tolerance, atol=tolerance)
    new = ct.Lion(other, lr=1.0)
    new.load_state_dict(b.state_dict())  # its groups say more than ours, and nothing that ours miss
    assert new.param_groups[0]["lr"] == 1e-2
    for params, optimizer in ((ours, a), (other, new)):
        give_grads(params, 9)
        optimizer.step()
    for p, q in zip(ours, other, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_torch_and_numpy_step_alike(name: str) -> None:
    torch = pytest.importorskip("torch")
    import curvk.torch as ct

    params = tensors(3, getattr(torch, name))
    views = [p.detach().view(torch.uint16 if name == "bfloat16" else p.dtype).numpy() for p in params]
    arrays = [x.copy() for x in views]
    a, b = ct.Lion(params, lr=0.03, weight_decay=0.2), Lion(arrays, lr=0.03, weight_decay=0.2)
    for seed in range(4):
        give_grads(params, seed)
        grads = [p.grad.view(torch.uint16) if name == "bfloat16" else p.grad for p in params]
        a.step()
        b.step([g.numpy() for g in grads])
    assert [x.tobytes() for x in views] == [x.tobytes() for x in arrays]


def test_torch_use() -> None:
    torch = pytest.importorskip("torch")
    import curvk.torch as ct

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    x = torch.randn(64, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    lion = ct.Lion(model.parameters(), lr=0.05, max_grad_norm=1.0, skip_nonfinite=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(lion, 300)

    def closure() -> Any:
        lion.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(300):
        losses.append(lion.step(closure).item())
        schedule.step()
    assert losses[-1] < 1e-4 * losses[0]
    before = [p.clone() for p in model.parameters()]
    model.weight.grad[0, 0] = float("inf")
    lion.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_complex_parameters_step_by_parts() -> None:
    torch = pytest.importorskip("torch")
    import curvk.torch as ct

    p = torch.nn.Parameter(torch.tensor([1 + 2j], dtype=torch.complex64))
    p.grad = torch.tensor([3 - 4j], dtype=torch.complex64)
    ct.Lion([p], lr=0.5).step()
    assert p.tolist() == [0.5 + 2.5j]


def test_refusals_name_no_lion_of_torchs() -> None:
    torch = pytest.importorskip("torch")
    import curvk.torch as ct

    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(NotImplementedError, match=r"use an optimizer of torch\.optim"):
        ct.Lion([{"params": [p], "differentiable": True}])
    with pytest.raises(ValueError, match=r"Lion, parameter group 0: argument 'betas': got 3, needs two numbers"):
        ct.Lion([p], betas=3)
    with pytest.raises(NotImplementedError, match="capturable=True, but its lr is set on the host"):
        ct.Lion([{"params": [p], "capturable": True}])
    p.grad = torch.eye(3).to_sparse()[0]
    with pytest.raises(TypeError, match="is sparse, needs to be dense"):
        ct.Lion([p]).step()

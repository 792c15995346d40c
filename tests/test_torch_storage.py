"""How curvk.torch keeps parameters and states: fewer bits, rounding, masters, averages, memory."""

from __future__ import annotations

import signal
import weakref

import pytest

torch = pytest.importorskip("torch")

import curvk  # noqa: E402
import curvk.optim  # noqa: E402
import curvk.torch as ct  # noqa: E402
import numpy as np  # noqa: E402
from curvk._backend import Plan  # noqa: E402
from curvk.kernels.noise import tensor_word  # noqa: E402
from curvk.torch import _storage  # noqa: E402
from torch_storage_models import BASES, SHAPES, STORAGES, bits, made, run, same, saved, state_bits  # noqa: E402

# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), BASES, ids=str)
def test_an_average_and_zeroed_gradients_change_no_bit_of_the_step(name, options, dtype):
    params, set_grads = made(dtype)
    twins, _ = made(dtype)
    plain = getattr(ct, name)(twins, lr=0.01, **options)
    ours = getattr(ct, name)(params, lr=0.01, ema=0.75, zero_grad=True, **options)
    average = [p.detach().double().clone() for p in params]
    for k in range(5):
        run(ours, params, set_grads, k, k + 1)
        run(plain, twins, set_grads, k, k + 1)
        assert not any(p.grad.any() for p in params)
        if dtype != torch.bfloat16:  # whose average is that of the parameters before they are rounded
            average = [0.75 * a + 0.25 * p.detach().double() for a, p in zip(average, params, strict=True)]
    same(params, twins)
    for p, q, a in zip(params, twins, average, strict=True):
        for key, value in plain.state.get(q, {}).items():
            assert torch.equal(ours.state[p][key], value), key
        if dtype != torch.bfloat16:
            torch.testing.assert_close(ours.state[p]["param_ema"].double(), a, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), BASES, ids=str)
def test_split_masters_are_float32_parameters(name, options):
    """The same bits as a float32 model that is stepped with the same gradients."""
    params, set_grads = made()
    twins = [torch.nn.Parameter(p.detach().float()) for p in params]
    ours = getattr(ct, name)(params, lr=0.003, master="split16", **options)
    truth = getattr(ct, name)(twins, lr=0.003, **options)
    run(ours, params, set_grads, 0, 20)
    run(truth, twins, set_grads, 0, 20)
    for p, q in zip(params, twins, strict=True):
        low = ours.state[p]["param_low"]
        assert low.dtype == torch.int16
        # The upper half is rounded to nearest: an upper half that was rounded up goes with a negative lower half.
        whole = (p.detach().contiguous().view(torch.int16).int() << 16) + low.contiguous().int()
        assert torch.equal(whole.view(torch.float32), q.detach().contiguous())
        torch.testing.assert_close(p.detach().float(), q.detach(), rtol=2.0**-8, atol=0)


def displacement(dtype, **options):
    """The mean way of parameters over 200 steps with lr 1e-3, whose gradients mostly agree."""
    generator = torch.Generator().manual_seed(5)
    p = torch.nn.Parameter((1 + torch.rand(20000, generator=generator)).to(dtype))
    start = p.detach().double().clone()
    optimizer = ct.AdamW([p], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(200):
        p.grad = (0.5 + torch.randn(p.shape, generator=generator)).to(torch.bfloat16).to(dtype)
        optimizer.step()
    return (p.detach().double() - start).mean().item()


def test_stochastic_rounding_keeps_the_motion_that_rounding_to_nearest_loses():
    start = {"dtype": torch.bfloat16}
    wide = displacement(torch.float32)
    assert wide < -0.05
    # The start is rounded alike, since it is made in the dtype; so the ways are comparable to their noise.
    assert abs(displacement(**start)) < 0.3 * abs(wide)
    for options in ({"rounding": "stochastic"}, {"rounding": "kahan"}, {"master": "split16"}):
        assert displacement(**start, **options) == pytest.approx(wide, rel=0.02), options


@pytest.mark.parametrize("options", STORAGES[:3], ids=str)
def test_narrow_moments_follow_the_wide_ones(options):
    p = torch.nn.Parameter(torch.zeros(4096))
    q = torch.nn.Parameter(torch.zeros(4096))
    ours, truth = ct.Adam([p], **options), ct.Adam([q])
    generator = torch.Generator().manual_seed(2)
    for _ in range(300):
        p.grad = torch.randn(4096, generator=generator)
        q.grad = p.grad.clone()
        ours.step()
        truth.step()
    way, difference = q.detach().norm(), (p.detach() - q.detach()).norm()
    assert difference < 0.1 * way


@pytest.mark.parametrize("options", STORAGES, ids=str)
def test_bits_are_those_of_the_kernel_called_by_hand(options):
    """Of the kernel's arguments: which word, draw, seed and order of the states."""
    params, set_grads = made()
    optimizer = ct.AdamW(
        [(f"layer.{i}", p) for i, p in enumerate(params)], lr=0.01, betas=(0.8, 0.95), eps=1e-6, **options
    )
    twins = [p.detach().clone() for p in params]
    rounding = {"nearest": 0, "stochastic": 1, "kahan": 2}[options.get("rounding", "nearest")]
    rounding = 3 if "master" in options else rounding
    kind, per = options.get("state_bits", 32), 256 if "state_format" in options else 32
    op = {32: "adam_sweep", 16: "adam_sweep16", 8: "adam_sweep8b" if per == 256 else "adam_sweep8"}[kind]
    moments = []
    for _ in range(2):
        dtype = {32: torch.float32, 16: torch.bfloat16, 8: torch.uint8}[kind]
        moments.append([torch.zeros_like(p, dtype=dtype) for p in twins])
        if kind == 8:
            moments.append([torch.zeros(-(-p.numel() // per)) for p in twins])
    max_v = [None] if kind == 32 else []
    low = {0: None, 1: None, 2: torch.bfloat16, 3: torch.int16}[rounding]
    low = low and [torch.zeros_like(p, dtype=low) for p in twins]
    ema = [p.float() for p in twins] if "ema" in options else None
    words = np.array([tensor_word(f"layer.{i}", "rounding") for i in range(len(params))])
    seed = options.get("seed", 0)
    for k in range(3):
        run(optimizer, params, set_grads, k, k + 1)
        set_grads(k, twins)
        rows = (words, np.zeros(len(words), np.int64))
        plan = Plan(op, (twins, [t.grad for t in twins], *moments, *max_v, low, ema, None, None, *rows))
        zero = options.get("zero_grad", False)
        sweep = (rounding, options.get("ema", 0.0), zero, k + 1, seed - 2**64 if seed >= 2**63 else seed)
        plan.run((k + 1, 0.01, 0.8, 0.95, 1e-6, 0.01, True, False, 1.0, *sweep))
        assert zero == (not any(p.grad.any() for p in params))
    same(params, twins)
    keys = ["exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale"] if kind == 8 else ["exp_avg", "exp_avg_sq"]
    for key, column in zip(keys, moments, strict=True):
        same([optimizer.state[p][key] for p in params], column)


def test_noise_depends_on_the_name_the_step_and_the_seed():
    def after(names=("a", "b"), seed=0, steps=1, **more):
        params = [torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in names]
        named = zip(names, params, strict=True) if names[0] is not None else params
        optimizer = ct.SGD(list(named), lr=1e-3, rounding="stochastic", seed=seed, **more)
        for _ in range(steps):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        return [bits([p]) for p in params]

    a, b = after()
    assert a != b
    assert after(("b", "a")) == [b, a]
    assert after(seed=1)[0] != a
    assert after((None, None)) == after(("0", "1"))


def test_positions_count_over_all_groups():
    def made(groups):
        params = [torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(3)]
        optimizer = ct.SGD([{"params": [params[i] for i in g]} for g in groups], lr=1e-3, rounding="stochastic")
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        return optimizer, params

    _, together = made([(0, 1, 2)])
    _, apart = made([(0,), (1, 2)])
    same(apart, together)


def test_a_parameter_that_goes_moves_the_others_as_it_would_for_a_resumed_run():
    idle, p, q = (torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(3))
    optimizer = ct.SGD([{"params": [idle]}, {"params": [p]}], lr=1e-3, rounding="stochastic")
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    optimizer.param_groups[0]["params"].clear()
    q.data.copy_(p.detach())
    resumed = ct.SGD([{"params": []}, {"params": [q]}], lr=1e-3, rounding="stochastic")
    resumed.load_state_dict(saved(optimizer.state_dict()))
    for x, o in ((p, optimizer), (q, resumed)):
        x.grad = torch.ones_like(x)
        o.step()
    same([p], [q])


def test_sgd_by_hand_with_late_momentum():
    p = torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16))
    twin, buffer = p.detach().clone(), torch.zeros(100, dtype=torch.bfloat16)
    optimizer = ct.SGD([("w", p)], lr=0.01, state_bits=16, rounding="stochastic", seed=9)
    word, zero = np.array([tensor_word("w", "rounding")]), np.zeros(1, np.int64)
    for k in range(5):
        g = torch.full((100,), 0.3 + k).bfloat16()
        optimizer.param_groups[0]["momentum"] = 0.9 if k >= 2 else 0.0
        p.grad = g.clone()
        optimizer.step()
        momentum = (0.01, 0.9 if k >= 2 else 0.0, 0.0, 0.0, False, False, False, k == 2, 1.0)
        op, column = ("sgd_sweep16", [buffer]) if k >= 2 else ("sgd_sweep", None)
        plan = Plan(op, ([twin], [g], column, None, None, None, None, word, zero))
        plan.run((*momentum, 1, 0.0, False, k + 1, 9))
        same([p], [twin])
    same([optimizer.state[p]["momentum_buffer"]], [buffer])


def test_layout_changes_no_bit():
    """Of parameters and gradients; codes count their groups in C order."""
    for options in STORAGES:
        values = torch.randn(48, 40, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        params = [torch.nn.Parameter(v) for v in (values.clone(), values.t().contiguous().t(), values.clone())]
        optimizers = [ct.AdamW([p], lr=0.01, **options) for p in params]
        for k in range(3):
            g = torch.randn(48, 40, generator=torch.Generator().manual_seed(k)).to(torch.bfloat16)
            for p, own in zip(params, (g.clone(), g.t().contiguous().t(), g.t().contiguous().t()), strict=True):
                p.grad = own
            for optimizer in optimizers:
                optimizer.step()
        for p, optimizer in zip(params[1:], optimizers[1:], strict=True):
            same([p], params[:1])
            for key, value in optimizers[0].state[params[0]].items():
                assert bits([optimizer.state[p][key]]) == bits([value]), (options, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", STORAGES, ids=str)
@pytest.mark.parametrize(("name", "base"), BASES[:4], ids=str)
def test_arrays_and_tensors_get_the_same_bits(name, base, options, dtype):
    """From curvk.optim, which has its own way to the kernels."""
    params, set_grads = made(dtype, shapes=[(7,), (3, 50), (300,)])
    plain = [(p.detach().view(torch.uint16) if dtype == torch.bfloat16 else p.detach()).numpy().copy() for p in params]
    ours, theirs = getattr(ct, name)(params, lr=0.01, **base, **options), getattr(curvk.optim, name)
    theirs = theirs(plain, lr=0.01, **base, **options)
    for k in range(4):
        set_grads(k, params)
        grads = [p.grad.view(torch.uint16) if dtype == torch.bfloat16 else p.grad for p in params]
        theirs.step([g.numpy().copy() for g in grads])
        ours.step()
    for p, array, state in zip(params, plain, theirs.state, strict=True):
        assert bits([p]) == [list(array.tobytes())]
        for key, value in state.items():
            if key != "step":
                assert bits([ours.state[p][key]]) == [list(value.tobytes())], key


def test_backends_agree():
    if curvk.get_backend() != "cpp":
        pytest.skip("one backend only")
    for options in STORAGES:
        results = []
        for backend in ("cpp", "numba"):
            with curvk.use_backend(backend):
                params, set_grads = made(shapes=SHAPES[:5])
                optimizer = ct.AdamW(params, lr=0.01, **options)
                run(optimizer, params, set_grads, 0, 3)
            results.append((bits(params), state_bits(optimizer, params)))
        assert results[0] == results[1], options


# ---- averages, memory, zeroed gradients ------------------------------------------------------------------------------


def test_averaged_swaps_and_restores_every_bit():
    params, set_grads = made()
    params.append(torch.nn.Parameter(torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16)))
    idle = torch.nn.Parameter(torch.ones(3))
    optimizer = ct.AdamW([*params, idle], lr=0.1, ema=0.5, master="split16")
    run(optimizer, params, set_grads, 0, 4)
    before, states = bits([*params, idle]), state_bits(optimizer, params)

    def looked_at():
        with optimizer.averaged():
            for p in params[:-1]:
                assert torch.equal(p, optimizer.state[p]["param_ema"].to(p.dtype))
            assert bits(params) != before[:-1]
            with pytest.raises(RuntimeError, match="hold their averages; step outside"):
                optimizer.step()
            with pytest.raises(RuntimeError, match="averages already"), optimizer.averaged():
                pass
            raise KeyError("from inside")

    with pytest.raises(KeyError, match="from inside"):
        looked_at()
    assert (bits([*params, idle]), state_bits(optimizer, params)) == (before, states)
    run(optimizer, params, set_grads, 4, 5)
    with pytest.raises(ValueError, match="no parameter group has 'ema'"), ct.SGD(params).averaged():
        pass


@pytest.mark.parametrize("when", [0, 1])
def test_ctrl_c_leaves_no_average_behind(monkeypatch, when):
    """Before Ctrl-C is made to wait, and while the parameters are written."""
    params, set_grads = made()
    optimizer = ct.SGD(params, lr=0.1, ema=0.5)
    run(optimizer, params, set_grads, 0, 2)
    before = bits(params)
    whole, calls = _storage._write, []

    def interrupted(pairs):
        calls.append(pairs)
        if len(calls) == 2 and when:
            whole(pairs[:1])
            signal.raise_signal(signal.SIGINT)
            whole(pairs[1:])
        else:
            whole(pairs)

    def early():
        raise KeyboardInterrupt

    monkeypatch.setattr(_storage, "_write", interrupted)
    if not when:
        monkeypatch.setattr(_storage, "uninterrupted", early)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), optimizer.averaged():
            assert bits(params) != before
    finally:
        signal.signal(signal.SIGINT, handler)
    assert bits(params) == before
    run(optimizer, params, set_grads, 2, 3)


def test_memory_is_counted_by_hand():
    weight = torch.nn.Parameter(torch.ones(100, 50, dtype=torch.bfloat16))
    table = torch.nn.Parameter(torch.ones(1000))
    groups = [{"params": [weight]}, {"params": [table], "state_bits": 32, "master": "none", "ema": None}]
    optimizer = ct.AdamW(groups, state_bits=8, master="split16", ema=0.9)
    assert optimizer.memory()["bytes"] == {"params": 10000 + 4000, "grads": 0}
    for p in (weight, table):
        p.grad = torch.ones_like(p)
    optimizer.step()
    expected = {
        "params": 2 * 5000 + 4 * 1000,
        "grads": 2 * 5000 + 4 * 1000,
        "step": 4 + 4,
        "exp_avg": 5000 + 4 * 1000,
        "exp_avg_scale": 4 * 157,
        "exp_avg_sq": 5000 + 4 * 1000,
        "exp_avg_sq_scale": 4 * 157,
        "param_low": 2 * 5000,
        "param_ema": 4 * 5000,
    }
    found = optimizer.memory()
    assert found["parameters"] == 6000
    assert found["bytes"] == expected
    each = found["bytes_per_parameter"]
    assert each == {**{k: v / 6000 for k, v in expected.items()}, "total": sum(expected.values()) / 6000}
    assert ct.SGD([torch.nn.Parameter(torch.ones(0))]).memory()["bytes_per_parameter"]["total"] == 0


def test_zeroed_gradients_are_noticed_by_autograd_and_others_are_not_touched():
    for zero, noticed in ((True, True), (False, False)):
        p = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        optimizer = ct.AdamW([p], rounding="stochastic", zero_grad=zero)
        p.grad = torch.ones_like(p)
        for _ in range(3):
            factor = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
            product = (p.grad * factor).sum()
            memory, version = p.grad.data_ptr(), p.grad._version
            optimizer.step()
            assert p.grad.data_ptr() == memory
            assert (p.grad._version > version) == noticed
            assert bool(p.grad.any()) != zero
            if noticed:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    product.backward()
            else:
                product.backward()


def test_gradients_are_not_kept_alive():
    for options in STORAGES:
        params, set_grads = made(shapes=[(64,), (8, 8)])
        optimizer = ct.SGD(params, momentum=0.9, **options)
        for k in range(3):
            run(optimizer, params, set_grads, k, k + 1)
            alive = [weakref.ref(p.grad) for p in params]
            optimizer.zero_grad()
            assert not any(r() is not None for r in alive), options


def test_gradients_may_share_memory_where_they_are_only_read():
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(3)]
    g = torch.ones(3, dtype=torch.bfloat16)
    optimizer = ct.SGD(params, lr=0.5, rounding="kahan")
    for _ in range(2):
        params[0].grad = params[1].grad = g
        params[2].grad = torch.ones((), dtype=torch.bfloat16).expand(3)
        optimizer.step()
    assert [p.tolist() for p in params] == [[0.0] * 3] * 3
    assert g.tolist() == [1.0] * 3
    optimizer = ct.SGD(params[:2], lr=0.5, zero_grad=True)
    with pytest.raises(ValueError, match=r"gradient of parameter 1 of group 0.*shared.*its own memory"):
        optimizer.step()


def test_lazily_negated_gradients_are_zeroed_too():
    p = torch.nn.Parameter(torch.ones(3))
    z = torch.view_as_complex(torch.ones(3, 2))
    p.grad = torch.conj(z).imag
    assert p.grad.is_neg()
    ct.SGD([p], lr=0.5, zero_grad=True).step()
    assert (p.tolist(), p.grad.tolist()) == ([1.5] * 3, [0.0] * 3)


def test_skipped_steps_zero_their_gradients():
    """Else inf would stay in the gradients, and every later step be skipped."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ct.AdamW([p], zero_grad=True, skip_nonfinite=True)
    p.grad = torch.tensor([1.0, float("inf"), 2.0])
    optimizer.step()
    assert (p.tolist(), p.grad.tolist()) == ([1.0] * 3, [0.0] * 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    optimizer = ct.AdamW([p], lr=0.5, weight_decay=0.0, zero_grad=True)
    for bad in (True, False, False):
        scaler.scale((p * (float("inf") if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert p.grad.tolist() == [0.0] * 3
        assert bool(optimizer.state) != bad
    assert torch.allclose(p.detach(), torch.zeros(3), atol=1e-5)


def test_accumulated_gradients_in_one_pass():
    p, q = (torch.nn.Parameter(torch.ones(40)) for _ in range(2))
    ours, truth = ct.SGD([p], lr=0.1, zero_grad=True), torch.optim.SGD([q], lr=0.1)
    for _ in range(3):
        for _ in range(2):
            for x in (p, q):
                x.square().sum().backward()
        ours.step()
        truth.step()
        truth.zero_grad()
    torch.testing.assert_close(p, q)


def test_complex_parameters():
    for name in ("SGD", "Adam"):
        p, q = (torch.nn.Parameter(torch.full((4,), 1 + 2j)) for _ in range(2))
        optimizer = getattr(ct, name)([p], lr=0.1, ema=0.5, zero_grad=True)
        plain = getattr(ct, name)([q], lr=0.1)
        average = p.detach().clone()
        for k in range(3):
            p.grad = torch.full((4,), 0.5 - 1j * k).conj()
            q.grad = p.grad.clone()
            optimizer.step()
            plain.step()
            average = 0.5 * average + 0.5 * p.detach()
            assert not p.grad.any()
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=0)
        torch.testing.assert_close(optimizer.state[p]["param_ema"], average)
        with optimizer.averaged():
            torch.testing.assert_close(p.detach(), average)

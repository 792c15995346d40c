"""Statistics and random numbers where one batch is evaluated at several points."""

from __future__ import annotations

import copy
import threading

import pytest

torch = pytest.importorskip("torch")

from curvk.torch._probing import Randomness, frozen_statistics  # noqa: E402
from torch import nn  # noqa: E402

NORMS = {
    "batch": lambda: nn.BatchNorm1d(3),
    "cumulative": lambda: nn.BatchNorm1d(3, momentum=None),
    "untracked": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm1d(3, track_running_stats=True),
    "instance, untracked": lambda: nn.InstanceNorm1d(3),
}


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("kind", NORMS)
def test_training_mode_uses_the_batch_and_moves_nothing(kind):
    torch.manual_seed(1)
    x = torch.randn(4, 3, 5)
    model = nn.Sequential(nn.Sequential(NORMS[kind]()), nn.Conv1d(3, 2, 1))
    twin = copy.deepcopy(model)
    before, expected = state(model), twin(x)
    with frozen_statistics():
        for _ in range(2):
            assert torch.equal(model(x), expected)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), expected)  # and afterwards they move as they did
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_eval_mode_is_left_alone_and_a_module_may_train_later():
    torch.manual_seed(1)
    x = torch.randn(4, 3, 5)
    for kind in ("batch", "instance"):
        model = NORMS[kind]()
        model(x)
        model.eval()
        before, expected = state(model), model(x)
        with frozen_statistics():
            assert torch.equal(model(x), expected)
            model.train()
            model(x)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), kind


def test_exceptions_put_the_layers_back():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
    before = state(model)
    with frozen_statistics(), pytest.raises(RuntimeError):
        model(torch.randn(4, 2))
    assert state(model).keys() == before.keys()
    model(torch.randn(4, 3, 5))
    assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_other_threads_train_on():
    model = nn.BatchNorm1d(3)
    before = state(model)
    with frozen_statistics():
        thread = threading.Thread(target=lambda: model(torch.randn(4, 3)))
        thread.start()
        thread.join()
    assert not torch.equal(model.running_mean, before["running_mean"])


def test_rewound_randomness_repeats():
    random = Randomness()
    first = torch.rand(3)
    random.rewind()
    assert torch.equal(torch.rand(3), first)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that it guards on hooks of all modules
def test_a_compiled_model_is_compiled_twice_not_at_every_probe():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    compiled, x = torch.compile(model, backend=counter), torch.randn(8, 3)
    for _ in range(12):
        compiled(x)
        before = state(model)
        with frozen_statistics():
            compiled(x)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert counter.frame_count == 2
    torch._dynamo.reset()

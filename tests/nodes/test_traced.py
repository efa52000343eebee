"""What `rl.traced` sees of real modules, against torch's own counters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rlinf_graph import rl
from rlinf_graph.compiler.cost.operations import LAYER_LAUNCHES
from rlinf_graph.ir.operations import Operations

TOKENS = rl.Input(("samples", "tokens"), "int64")
IMAGES = rl.Input(("samples", 3, 224, 224))
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
}
DECODER = {**SMALL, "num_key_value_heads": 4, "vocab_size": 1000, "use_cache": False}


def volume(samples: int = 64, tokens: float = 512) -> rl.Volume:
    return rl.Volume(samples, rl.Lengths.fixed(tokens, "declared"))


def traced(build: Any, *inputs: rl.Input, **settings: Any) -> Operations:
    return rl.traced(build, *inputs, **({"volume": volume(), "batch": 4} | settings))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def reward_model() -> nn.Module:
    config = transformers.LlamaConfig(**DECODER, num_labels=1, pad_token_id=0)
    return transformers.LlamaForSequenceClassification(config)


def clip() -> nn.Module:
    config = transformers.CLIPVisionConfig(**SMALL, image_size=224, patch_size=32)
    return transformers.CLIPVisionModel(config)


def siglip() -> nn.Module:
    config = transformers.SiglipVisionConfig(**SMALL, image_size=224, patch_size=32)
    return transformers.SiglipVisionModel(config)


def qwen_7b() -> nn.Module:
    config = transformers.Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        use_cache=False,
        dtype="bfloat16",
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def counted(build: Callable[[], nn.Module], given: Tensor, *, backward: bool) -> float:
    """Operations of the same call by torch's counter.

    transformers takes its way for compilers, which asks no tensor for its values.
    """
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        module = build().train(backward)
        counter = FlopCounterMode(display=False)
        with counter, torch.set_grad_enabled(backward):
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            made = module(given)
            if backward:
                outputs = [t for t in made.to_tuple() if isinstance(t, Tensor)]
                torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("build", "given"),
    [(llama, TOKENS), (reward_model, TOKENS), (clip, IMAGES), (siglip, IMAGES)],
)
def test_operations_are_those_of_torchs_counter(
    build: Callable[[], nn.Module], given: rl.Input, backward: bool
) -> None:
    work = traced(build, given, backward=backward)
    shape = [{"samples": 4, "tokens": 512}.get(size, size) for size in given.sizes]
    inputs = torch.empty(shape, dtype=getattr(torch, given.dtype), device="meta")
    assert work.flops == pytest.approx(counted(build, inputs, backward=backward), rel=1e-2)
    assert work.gaps == ()
    with torch.device("meta"):
        module = build()
    held = [*module.parameters(), *module.buffers()]
    assert work.parameters == sum(tensor.nbytes for tensor in held)


def test_a_7b_model_takes_seconds_and_no_memory() -> None:
    start = time.perf_counter()
    work = traced(qwen_7b, TOKENS, volume=volume(tokens=4096), batch=1, backward=True)
    assert time.perf_counter() - start < 30
    # 193.96 TFLOP: FlopCounterMode over forward and backward at 4,096 tokens.
    assert work.flops == pytest.approx(193.96e12, rel=1e-2)
    assert work.weight_dtype == "bfloat16"
    assert work.parameters == pytest.approx(2 * 7_615_616_512, rel=1e-6)
    assert work.gradients == pytest.approx(work.parameters, rel=1e-6)
    assert sum(o.count for o in work.table if o.kind == "causal attention") == 2 * 28
    forward = traced(qwen_7b, TOKENS, volume=volume(tokens=4096), batch=1)
    assert forward.launches / 28 == pytest.approx(LAYER_LAUNCHES, rel=0.02)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2))
        self.head = nn.Linear(64 * 9 * 9, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).flatten(1))


class ByHand(nn.Module):
    """Attention that stores its square."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, 192)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.project(hidden).chunk(3, -1)
        return torch.softmax(query @ key.mT / 8, -1) @ value


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))


@pytest.mark.parametrize(
    ("build", "given", "flops"),
    [
        (mlp, rl.Input(("samples", 8)), 2 * 4 * (8 * 64 + 64 * 2)),
        (
            Conv,
            rl.Input(("samples", 4, 84, 84)),
            2 * 4 * (400 * 32 * 4 * 64 + 81 * 64 * 32 * 16 + 6 * 64 * 81),
        ),
        (ByHand, rl.Input(("samples", 16, 64)), 2 * 4 * 16 * (64 * 192 + 2 * 16 * 64)),
    ],
)
def test_products_and_convolutions_are_counted_by_hand(
    build: Any, given: rl.Input, flops: float
) -> None:
    assert traced(build, given).flops == flops
    assert traced(build, given).gaps == ()


@pytest.mark.parametrize("backward", [False, True])
def test_the_launches_are_the_operators_that_make_fx_sees(backward: bool) -> None:
    with torch.device("meta"):
        module = ByHand()
        given = torch.empty(4, 16, 64)
    weights = list(module.parameters())

    def run(hidden: Tensor) -> Any:
        made = module(hidden)
        return torch.autograd.grad(made, weights, torch.empty_like(made)) if backward else made

    targets = [node.target for node in make_fx(run)(given).graph.nodes]
    views = "view _unsafe_view t transpose expand split slice detach alias empty_like"
    operators = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    names = Counter(operator._schema.name.replace("::", ".") for operator in operators)
    for name in views.split():
        names.pop(f"aten.{name}", None)
    work = traced(ByHand, rl.Input(("samples", 16, 64)), backward=backward)
    seen = Counter[str]()
    for made in work.table:
        seen[made.name] += made.count
    assert seen == names


def clipped(logits: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    logprobs = functional.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    ratio = (logprobs - logprobs.detach()).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()


def test_a_loss_is_bytes_of_its_elements() -> None:
    sizes = ("samples", "tokens")
    given = (
        rl.Input((*sizes, "vocabulary")),
        rl.Input(sizes, "int64"),
        rl.Input(sizes),
    )
    settings = {"volume": volume(tokens=16), "sizes": {"vocabulary": 100}}
    work = traced(clipped, *given, **settings)
    large, small = 4 * 16 * 100 * 4, 4 * 16 * 4
    by_name = {made.name: (made.read, made.written) for made in work.table}
    assert by_name["aten._log_softmax"] == (large, large)
    assert by_name["aten.gather"] == (small * 2 + small, small)
    assert by_name["aten.clamp"] == (small, small)
    assert by_name["aten.minimum"] == (2 * small, small)
    assert by_name["aten.mean"] == (small, 4)
    assert work.flops == 0
    assert {made.kind for made in work.table} == {"reduction", "gather/scatter", "element-wise"}
    assert traced(clipped, *given, **settings, backward=True).moved > 2 * work.moved


def test_what_lives_at_once_is_what_backward_needs() -> None:
    def deep() -> nn.Module:
        return nn.Sequential(*(nn.Tanh() for _ in range(8)))

    one = 4 * 1000 * 4
    given = rl.Input(("samples", 1000))
    assert traced(deep, given).live == 3 * one  # the module's input, a layer's input and output
    # The input and eight kept results, beside them two gradients on their way.
    assert traced(deep, given, backward=True).live == pytest.approx(11 * one, abs=one)


def test_a_module_is_not_touched_and_counts_like_its_factory() -> None:
    module = mlp()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    given = rl.Input(("samples", 8))
    assert traced(module, given, backward=True).table == traced(mlp, given, backward=True).table
    assert all(torch.equal(before[name], weight) for name, weight in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())
    assert module.training


def test_the_same_lambda_is_captured_once_and_another_anew() -> None:
    made = 0

    def count(width: int) -> nn.Module:
        nonlocal made
        made += 1
        return nn.Linear(8, width)

    given = rl.Input(("samples", 8))
    works = [traced(lambda: count(16), given, volume=volume(n)) for n in (8, 64)]
    assert made == 1
    assert [work.samples for work in works] == [8, 64]
    assert traced(lambda: count(32), given).flops == 2 * works[0].flops

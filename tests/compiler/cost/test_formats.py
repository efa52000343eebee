import pytest

from rlinf_graph.compiler.cost.formats import FORMATS, peak, weight_bytes
from rlinf_graph.compiler.cost.lookup import known_models
from rlinf_graph.ir import hardware
from rlinf_graph.ir.cluster import DeviceType


def device(name: str) -> DeviceType:
    entry = hardware.find(name)
    assert entry
    return entry.device


@pytest.mark.parametrize(
    ("dtype", "name", "tera"),
    [
        ("bfloat16", "A100", 312),
        ("float16", "A100", 312),
        ("float8", "A100", 312),  # it has no units for it: widened as it is read
        ("float8", "H100", 1979),
        ("mxfp4", "H100", 989),
        ("mxfp4", "GB200", 10000),
        ("nvfp4", "B300", 13500),
        ("float32", "H100", 67),
        ("bfloat16", "cpu", 0.1),
        ("float16", "cpu", 0.1),
    ],
)
def test_a_format_is_multiplied_at_the_best_peak_that_there_is(
    dtype: str, name: str, tera: float
) -> None:
    assert peak(dict(device(name).flops), dtype) == pytest.approx(tera * 1e12)


def test_shorter_formats_are_never_slower() -> None:
    for entry in hardware.catalogue().values():
        flops = dict(entry.device.flops)
        order = [peak(flops, dtype) for dtype in ("float32", "bfloat16", "float8")]
        assert order == sorted(order), entry.device.name


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("Qwen/Qwen3-8B", "bfloat16", 16.4e9),  # 16.4 GB of safetensors on the hub
        ("Qwen/Qwen3-8B", "float32", 32.8e9),
        ("openai/gpt-oss-20b", "mxfp4", 13.8e9),  # 12.8 GiB of its model card
        ("openai/gpt-oss-120b", "mxfp4", 65.3e9),  # 60.8 GiB
    ],
)
def test_weights_take_the_bytes_of_published_files(name: str, dtype: str, size: float) -> None:
    assert weight_bytes(known_models()[name], "lm", dtype) == pytest.approx(size, rel=0.01)


def test_embedding_and_head_stay_wide_in_float8() -> None:
    shape = known_models()["Qwen/Qwen3-8B"]
    ends = 2 * shape.vocab * shape.hidden + shape.vectors
    assert weight_bytes(shape, "lm", "float8") == shape.dense_matrices + 2 * ends
    assert FORMATS["float8"].bytes == 1


def test_a_dense_model_has_its_matrices_in_four_bits() -> None:
    shape = known_models()["Qwen/Qwen3-8B"]
    bits = shape.dense_matrices * 4.25 + 16 * (shape.parameters() - shape.dense_matrices)
    assert weight_bytes(shape, "lm", "mxfp4") == pytest.approx(bits / 8)

"""Fine-tuning on an NVIDIA GPU does what Trainer does there. Skipped where there is none."""

import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_sides_do_the_same(precision: str) -> None:
    for package in ("transformers", "accelerate", "scipy", "sklearn"):
        pytest.importorskip(package)
    from benchmarks import finetuning

    sizes = {"layers": 2, "hidden": 64, "heads": 2, "vocab_size": 300, "max_length": 32, "batch_size": 8}
    options = finetuning.Options(
        pairs=2, warmup=1, steps=2, lr=1e-3, dropout=0.0, device="cuda", precision=precision, **sizes
    )
    result = finetuning.measure(options)
    losses = result["training"]["losses_mean"]
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-3 if precision == "float32" else 2e-2)
    assert result["width_mean"]["ours"] == result["width_mean"]["theirs"]
    assert all(found > 0 for found in result["training"]["peak_mb"].values())
    assert "cpu" not in result["training"]

"""The denominator of MFU."""

import torch

from cramming import peak


def test_measuring_draws_none_of_a_runs_random_numbers() -> None:
    """A resumed run measures after its state of them is restored, so dropout would go on elsewhere."""
    before = torch.get_rng_state()
    rate = peak._measured.__wrapped__(torch.device("cpu"), "float32", 1, size=64, within_s=0.01)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < rate < float("inf")


def test_runs_of_a_process_share_a_denominator_unless_they_compute_on_other_threads() -> None:
    peak._measured.cache_clear()
    first, source = peak.peak_flops_per_s(torch.device("cpu"), "float32")
    assert source == "measured"
    assert peak.peak_flops_per_s(torch.device("cpu"), "float32") == (first, source)
    assert peak._measured.cache_info().misses == 1
    torch.set_num_threads(2)
    peak.peak_flops_per_s(torch.device("cpu"), "float32")
    assert peak._measured.cache_info().misses == 2

"""Scaling on paper: the formulae against what they count, played through; the command; the tables of the page."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramming import cli, optim, registry
from cramming.cli import parse
from cramming.errors import UserError
from cramming.scaling import formulae
from cramming.scaling.command import Options, Sizes, Table, command
from cramming.scaling.formulae import Cluster, Footprint, Model, Plan, Single
from cramming.scaling.links import ETHERNET_10, LINKS, NDR, NVLINK4, PCIE4, START_S, Link

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "scaling.md").read_text()
BERT = Model(parameters=110_000_000, units=13, largest_unit=24_000_000)
STEP = Single(step_s=0.08, sequences=512, seq_length=128, update_s=0.002, activation_bytes=2e10)
MIXED = Footprint.of("bfloat16", "adamw")


def played_reduce_scatter(parts: list[list[int]]) -> int:
    """A ring that adds up ``parts[device][chunk]``, step by step; afterwards device d has chunk d + 1 whole.

    Returns:
        How many chunks each device sent.
    """
    p = len(parts)
    for step in range(p - 1):
        moving = [(device, (device - step) % p) for device in range(p)]
        values = [parts[device][chunk] for device, chunk in moving]
        for (device, chunk), value in zip(moving, values, strict=True):
            parts[(device + 1) % p][chunk] += value
    return p - 1


@given(p=st.integers(1, 9))
def test_a_ring_sends_what_the_formula_says(p: int) -> None:
    parts = [[10**device for _ in range(p)] for device in range(p)]
    sent = played_reduce_scatter(parts)
    assert [parts[device][(device + 1) % p] for device in range(p)] == [sum(10**d for d in range(p))] * p
    size = 12 * p  # bytes, in p chunks
    assert formulae.ring_bytes(size, p) == pytest.approx(sent * 12)


def test_seconds_of_a_ring_by_hand() -> None:
    """8 GB over 8 devices at 7 GB/s: 7 GB in a second, and 7 hops."""
    assert formulae.ring_s(8e9, 8, 0.01, 7e9) == pytest.approx(1.07)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    cluster = Cluster(64)
    assert cluster.all_reduce_s(4e8) == pytest.approx(2 * cluster.half_s(4e8) - START_S)
    assert Cluster(1).all_reduce_s(4e8) == Cluster(1).half_s(4e8) == 0
    # Bandwidth as the tests of NCCL define it: 2 (p - 1) / p of the bytes over the seconds is the link's own.
    fast = Cluster(8, within=replace(NVLINK4, hop_s=0.0), link_share=1.0)
    assert 2 * 7 / 8 * 4e9 / (fast.all_reduce_s(4e9) - START_S) == pytest.approx(450e9)


@given(nodes=st.integers(1, 4), node=st.integers(1, 4))
def test_a_hierarchical_reduction_adds_everything_and_sends_what_is_said(nodes: int, node: int) -> None:
    p, chunks = nodes * node, nodes * node
    values = [[100**device + chunk for chunk in range(chunks)] for device in range(p)]
    due = [sum(column) for column in zip(*values, strict=True)]
    inner = outer = 0.0
    for first in range(0, p, node):  # reduce-scatter in each node: a block of chunks for each of its devices
        blocks = [
            [sum(values[d][c] for d in range(first, first + node)) for c in range(part * nodes, (part + 1) * nodes)]
            for part in range(node)
        ]
        for part in range(node):
            values[first + part] = blocks[part]
        inner = (node - 1) * nodes
    for part in range(node):  # then among the devices of one place
        ring = [values[n * node + part] for n in range(nodes)]
        outer = played_reduce_scatter(ring)
        for n in range(nodes):
            place = (n + 1) % nodes
            assert ring[n][place] == due[part * nodes + place]
    assert Cluster(p, node).sent_bytes(chunks) == pytest.approx((inner, outer))


def test_ports_are_shared_by_the_devices_of_a_node() -> None:
    alone, eighth = Cluster(64, between=ETHERNET_10, ports=8), Cluster(64, between=ETHERNET_10, ports=1)
    quiet = replace(ETHERNET_10, hop_s=0.0)
    free = Link("free", 1e30, 0.0, "")
    assert Cluster(64, ports=0) == replace(Cluster(64, ports=8), ports=0)
    assert alone.all_reduce_s(1e9) == Cluster(64, between=ETHERNET_10).all_reduce_s(1e9)
    slow = Cluster(64, within=free, between=quiet, ports=1).all_reduce_s(1e9) - START_S
    assert slow == pytest.approx(8 * (Cluster(64, within=free, between=quiet).all_reduce_s(1e9) - START_S))
    assert eighth.all_reduce_s(1e9) > 7 * alone.all_reduce_s(1e9)


@given(compute=st.floats(0.01, 10), communication=st.floats(0.0, 10), pieces=st.integers(1, 40))
def test_overlap_is_that_of_buckets_sent_one_after_another(compute: float, communication: float, pieces: int) -> None:
    ready = sent = 0.0
    for _ in range(pieces):
        ready += compute / pieces
        sent = max(sent, ready) + communication / pieces
    assert formulae.exposed_s(compute, communication, pieces) == pytest.approx(sent - compute, rel=1e-6, abs=1e-9)
    here = arrived = 0.0  # the other way round: a part is there before it is computed with
    for _ in range(pieces):
        arrived += communication / pieces
        here = max(here, arrived) + compute / pieces
    assert formulae.exposed_s(compute, communication, pieces) == pytest.approx(here - compute, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("sharding", "gigabytes"), [("none", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_memory_is_that_of_the_published_example(sharding: str, gigabytes: float) -> None:
    """Figure 1 of ZeRO: 7.5 billion parameters, K = 12, 64 devices."""
    published = Footprint(weights=2, gradients=2, state=12)
    assert 7.5 * published.bytes_each(sharding, 64) == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("optimizer", formulae.OPTIMIZER_BYTES)
def test_state_of_an_optimizer_is_what_it_keeps(optimizer: str) -> None:
    registry.load_plugins()
    weight = torch.nn.Parameter(torch.randn(64, 64))
    kind = optim.build(optimizer, [weight], lr=1e-3)
    weight.grad = torch.randn(64, 64)
    kind.step()
    kept = sum(t.numel() * t.element_size() for t in kind.state[weight].values() if isinstance(t, torch.Tensor))
    assert kept / weight.numel() == pytest.approx(formulae.OPTIMIZER_BYTES[optimizer], abs=0.01)


def test_volumes_are_those_of_zero() -> None:
    """Twice the parameters without sharding, with zero1 and zero2; three times with zero3 (section 7)."""
    even = Footprint(weights=2, gradients=2, state=12)
    found = {}
    for sharding in formulae.SHARDINGS:
        plan = Plan(even, sharding, reduced_bytes=2)
        inner, outer = formulae.predicted(BERT, STEP, plan, Cluster(8)).sent_bytes
        assert outer == 0
        found[sharding] = inner / (2 * BERT.parameters * 7 / 8)
    assert found == pytest.approx({"none": 2, "zero1": 2, "zero2": 2, "zero3": 3})


def test_sharding_fits_where_nothing_else_does_and_is_never_faster() -> None:
    large = Model(7_500_000_000, 33, 400_000_000)
    cluster = Cluster(64)
    by_sharding = [formulae.predicted(large, STEP, Plan(MIXED, sharding), cluster) for sharding in formulae.SHARDINGS]
    memory = [found.memory_bytes for found in by_sharding]
    assert memory == sorted(memory, reverse=True)
    assert memory[0] == pytest.approx(7.5e9 * (2 + 6 + 12) + 2e10)
    for bound, expected in zip(memory, formulae.SHARDINGS, strict=True):
        assert formulae.least_sharding(large, STEP, Plan(MIXED), cluster, bound) == expected
    assert formulae.least_sharding(large, STEP, Plan(MIXED), cluster, memory[-1] - 1) is None
    accumulating = [
        formulae.predicted(large, STEP, Plan(MIXED, sharding, batch=64 * 512 * 4), cluster)
        for sharding in formulae.SHARDINGS
    ]
    assert accumulating[2].communication_s > 2 * accumulating[1].communication_s  # after every pass, not after the last
    assert accumulating[3].communication_s == pytest.approx(4 * by_sharding[3].communication_s)


def test_efficiency_by_hand() -> None:
    """8 devices over PCIe: what an all-reduce of 440 MB adds, bucket by bucket, and nothing else."""
    cluster = Cluster(8, within=PCIE4, link_share=0.5)
    each = 440e6 / 17  # as many buckets of 25 MiB
    bucket_s = START_S + 2 * (7 * PCIE4.hop_s + each * 7 / 8 / (PCIE4.bytes_per_s / 2))
    backward_s = 0.078 * 2 / 3
    exposed_s = bucket_s + 16 * max(0.0, bucket_s - backward_s / 17)
    found = formulae.predicted(BERT, STEP, Plan(MIXED), cluster)
    assert found.communication_s == pytest.approx(17 * bucket_s)
    assert found.exposed_s == pytest.approx(exposed_s)
    assert found.step_s == pytest.approx(0.08 + exposed_s)
    assert found.tokens_per_s == pytest.approx(8 * 512 * 128 / found.step_s)
    assert formulae.efficiency(BERT, STEP, Plan(MIXED), cluster) == pytest.approx(0.08 / found.step_s)
    assert formulae.device_hours(found, found.tokens_per_s * 3600) == pytest.approx(8)


def test_a_free_link_costs_nothing_and_one_device_sends_nothing() -> None:
    free = Link("free", 1e30, 0.0, "")
    cluster = Cluster(64, within=free, between=free)
    found = formulae.predicted(BERT, STEP, Plan(MIXED), cluster)
    assert found.step_s == pytest.approx(STEP.step_s, rel=0.02)  # 17 collectives set out
    alone = formulae.predicted(BERT, STEP, Plan(MIXED), Cluster(1))
    assert (alone.exposed_s, alone.communication_s, alone.sent_bytes) == (0, 0, (0, 0))
    assert alone.step_s == pytest.approx(STEP.step_s)


def test_a_fixed_batch_is_shared_and_updates_are_not() -> None:
    plan = Plan(MIXED, batch=4096)
    steps = {n: formulae.predicted(BERT, STEP, plan, Cluster(n)) for n in (1, 8, 64)}
    assert {n: (found.sequences, found.microbatches) for n, found in steps.items()} == {
        1: (4096, 8),
        8: (512, 1),
        64: (64, 1),
    }
    assert steps[1].step_s == pytest.approx(8 * 0.078 + 0.002)
    assert steps[64].compute_s == pytest.approx(0.078 / 8 + 0.002)
    assert steps[64].memory_bytes == pytest.approx(20 * BERT.parameters + 2e10 / 8)
    with pytest.raises(ValueError, match="batch=4096 does not divide among 24 devices"):
        formulae.predicted(BERT, STEP, plan, Cluster(24))


def test_slower_links_are_never_better() -> None:
    order = sorted((link for link in LINKS.values() if link.hop_s == NDR.hop_s), key=lambda link: link.bytes_per_s)
    shares = [formulae.efficiency(BERT, STEP, Plan(MIXED), Cluster(64, between=link)) for link in order]
    assert shares == sorted(shares)
    assert shares[0] < 0.8
    assert 0.95 < shares[-1] < 1


def test_sizes_are_those_of_the_model_itself() -> None:
    tiny = Sizes.of("bert_tiny", 128)
    config = cli.compose(["arch=bert_tiny", "data=local", "data.path=none"]).arch
    model = config.build(config.vocab_size, 128)
    assert tiny.model.parameters == sum(p.numel() for p in model.parameters()) < 10 * tiny.model.largest_unit
    assert tiny.model.units == model.layers + 1
    assert tiny.forward_flops == model.flops(128, 19, model.layers)


def ran(words: str) -> Iterator[str]:
    """The error the command gives for these words."""
    try:
        command(shlex.split(words))
    except UserError as error:
        yield str(error)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("arch=bert_bse", "bert_base"),
        ("link=nvlink", "link=nvlink is unknown; did you mean 'nvlink"),
        ("devices=[12]", "devices=12 must fill nodes of node=8"),
        ("devices=[]", "devices=[] leaves nothing to predict"),
        ("devices=[0]", "devices=0"),
        ("batch=100 devices=[8]", "batch=100 does not divide among 8 devices"),
        ("peak_gb=1 step_s=0.1", "peak_gb=1.0 is less than the 2.2 GB"),
        ("step_s=-1", "step_s=-1.0 must not be below 0"),
        ("link_share=2", "link_share=2.0 must lie above 0"),
        ("hop_us=3", "give its link_gb_s= too"),
        ("update_s=1", "update_s=1.0 is a part of a step"),
        ("measured=none.json", "measured=none.json is no result of benchmarks/step.py"),
        ("measured=a.json step_s=1", "give one of them"),
        ("bert_base", "'bert_base' is not key=value"),
        ("step=1", "unknown option step"),
    ],
)
def test_a_wrong_word_is_one_line(words: str, said: str) -> None:
    (error,) = ran(words)
    assert said in error
    assert "\n" not in error


def test_it_starts_without_torch_and_exits_with_2() -> None:
    code = (
        "import sys; from cramming.cli import run_command; from cramming.scaling.command import command\n"
        "import cramming.scaling.formulae; assert 'torch' not in sys.modules\n"
        "run_command(lambda: command(['link=rope']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: link=rope is unknown")
    assert done.stderr.count("\n") == 1


def test_a_measured_step_is_read_from_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate = 3 * 64 * Sizes.of("bert_tiny", 128).forward_flops / 0.5
    row = {"arch": "bert", "length": 128, "sequences": 64, "block_s": {"ours": 0.5}, "peak_mb": {"ours": 10 * 1024}}
    row |= {"our_flops_per_s": rate}
    file = tmp_path / "step.json"
    file.write_text(json.dumps({"options": {"size": "tiny"}, "rows": [row]}))
    command([f"measured={file}", "arch=bert_tiny", "devices=[1,8]", f"out={tmp_path / 'o.json'}", "price=2"])
    out = capsys.readouterr().out
    assert "Measured: a step of 64 sequences takes 500.00 ms on one device" in out
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert rows[0]["tokens_per_s"] == pytest.approx(64 * 128 / 0.5)
    assert rows[0]["memory_bytes"] == pytest.approx(10 * 2**30)
    hours = 1e10 / (64 * 128 / 0.5) / 3600
    assert f"{2 * hours:,.2f}" in out
    for words, said in (
        ("arch=bert_base", "has no step of bert of size base at 128 tokens: there is bert of size tiny at 128"),
        ("arch=mosaic_tiny", "has no step of mosaic of size tiny"),
    ):
        (error,) = ran(f"measured={file} {words}")
        assert said in error
    file.write_text(json.dumps({"options": {"size": "tiny"}, "rows": [row | {"our_flops_per_s": 1.1 * rate}]}))
    (error,) = ran(f"measured={file} arch=bert_tiny")
    assert "is of another model than bert_tiny" in error


def test_a_measured_link_takes_the_place_of_one_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["arch=bert_tiny", "devices=[2]", "node=2", "step_s=0.1", "precision=float32"]
    options, _ = parse([*words, "link_gb_s=2", "hop_us=50", "link_share=1"], Options, "")
    (row,) = [prediction for prediction, _ in Table.of(options).rows]
    gradients = 4 * Sizes.of("bert_tiny", 128).model.parameters
    due = formulae.START_S + 2 * (50e-6 + gradients / 2 / 2e9)
    assert row.communication_s == pytest.approx(due)
    assert "a measured link of 2 GB/s, 50 microseconds a hop" in Table.of(options).markdown()


def test_the_plot_is_written(tmp_path: Path) -> None:
    command(["arch=bert_tiny", "devices=[1,16]", f"plot={tmp_path / 'links.png'}"])
    assert (tmp_path / "links.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    command(["arch=bert_tiny", "devices=[1]", "memory_gb=0.01"])
    assert "1 devices: nothing fits 0.01 GB; take fewer sequences a pass" in capsys.readouterr().out


COMMANDS = re.findall(r"^    python -m cramming\.scaling (.+)$", PAGE, flags=re.MULTILINE)


def test_the_page_has_a_table_for_each_model() -> None:
    said = {word for line in COMMANDS for word in shlex.split(line)}
    assert {"arch=bert_base", "arch=bert_large", "arch=modern"} <= said


@pytest.mark.parametrize("words", [line for line in COMMANDS if "=step.json" not in line and "..." not in line])
def test_tables_of_the_page_are_what_the_command_prints(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    options, rest = parse(shlex.split(words), Options, "")
    assert rest == []
    after = PAGE.split(f"    python -m cramming.scaling {words}\n", 1)[1].lstrip("\n")
    assert after.startswith(Table.of(options).markdown()), f"paste the output of: python -m cramming.scaling {words}"


def test_two_ranks_of_the_page_are_what_was_measured_and_what_is_predicted() -> None:
    (words,) = (line for line in COMMANDS if "batch=... sharding=..." in line)
    rows = re.findall(r"^\| (\d+) \| `(ddp|fsdp)` \| (.+) \|$", PAGE, flags=re.MULTILINE)
    assert [row[:2] for row in rows] == [(n, engine) for n in ("128", "64", "8") for engine in ("ddp", "fsdp")]
    for batch, engine, cells in rows:
        file = REPOSITORY / "benchmarks" / "results" / f"2026-11-22_parallel_4x256_{batch}.json"
        measured = json.loads(file.read_text())[engine]
        sharding = {"ddp": "none", "fsdp": "zero3"}[engine]
        asked = words.replace("batch=... sharding=...", f"batch={batch} sharding={sharding}")
        (row, _), *_ = Table.of(parse(shlex.split(asked), Options, "")[0]).rows
        step_ms = 1e3 * int(batch) * 128 / measured["tokens_per_s"]["median"]
        shares = row.exposed_s / row.step_s, measured["communication"]["median"]
        assert cells == f"{1e3 * row.step_s:.0f} | {step_ms:.0f} | {shares[0]:.1%} | {shares[1]:.1%}"


def test_links_of_the_page_are_those_of_the_module() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| (.+?) \|$", PAGE, flags=re.MULTILINE)
    due = [(k, f"{v.bytes_per_s / 1e9:.4g}", f"{v.hop_s * 1e6:.1f}", v.source) for k, v in LINKS.items()]
    assert rows == due


def test_optimizers_of_the_page_are_those_of_the_module() -> None:
    said = PAGE.split("State, bytes a parameter:")[1].split("\n\n")[0]
    assert {name: int(size) for name, size in re.findall(r"`(\w+)` (\d+)", said)} == formulae.OPTIMIZER_BYTES

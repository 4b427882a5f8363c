"""The command: a model's sizes, a step of one device, and a table of what several would do."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cramming.cli import compose, parse
from cramming.errors import UserError
from cramming.scaling.formulae import (
    OPTIMIZER_BYTES,
    SHARDINGS,
    Cluster,
    Footprint,
    Model,
    Plan,
    Prediction,
    Single,
    activation_bytes,
    device_hours,
    efficiency,
    least_sharding,
    predicted,
)
from cramming.scaling.links import LINKS, Link
from cramming.suggest import nearest

_USAGE = """\
Predict training on several devices from a step of one: tokens a second, communication, memory, device-hours.

  python -m cramming.scaling arch=bert_base step_s=0.081 sequences=512 peak_gb=21.4      one device's step, measured
  python -m cramming.scaling arch=bert_base measured=benchmarks/results/.../step_bert_base.json
  python -m cramming.scaling arch=bert_large devices=[1,8,64] between=100gbe ports=1 batch=4096
  python -m cramming.scaling arch=bert_base            nothing measured: mfu=0.55 of peak_tflops=989 is assumed

Options, with their defaults:
  arch=bert_base devices=[1,8,64,1024] seq_length=128 sequences=512 batch=0 (of all devices; 0: each takes sequences=)
  step_s=0 update_s=0 peak_gb=0 (of one device with sequences=; 0: assumed) measured= (a result of benchmarks/step.py)
  link=nvlink4 between=ndr node=8 ports=0 (in a node; 0: one a device) link_share=0.8      links: {links}
  link_gb_s=0 hop_us=0 (of the link within a node where it was measured, each way; takes the place of link=)
  sharding=auto (the least that fits; {shardings}) memory_gb=141 optimizer=adamw precision=bfloat16 reduce=float32
  tokens_billion=10 price=0 (of a device-hour) mfu=0.55 peak_tflops=989 out= (a JSON file) plot= (a PNG)
What is assumed, and every formula: docs/scaling.md"""
_MASK_RATE = 0.15
_FLOPS_AGREE_WITHIN = 0.02  # benchmarks round the vocabulary
_SIZES = ("tiny", "small", "base", "large")


@dataclass
class Options:
    """What the command line may change; ``_USAGE`` says what each is."""

    arch: str = "bert_base"
    devices: list[int] = field(default_factory=lambda: [1, 8, 64, 1024])
    seq_length: int = 128
    sequences: int = 512
    batch: int = 0
    step_s: float = 0.0
    update_s: float = 0.0
    peak_gb: float = 0.0
    measured: str = ""
    mfu: float = 0.55
    peak_tflops: float = 989.0
    link: str = "nvlink4"
    between: str = "ndr"
    node: int = 8
    ports: int = 0
    link_share: float = 0.8
    link_gb_s: float = 0.0
    hop_us: float = 0.0
    sharding: str = "auto"
    memory_gb: float = 141.0
    optimizer: str = "adamw"
    precision: str = "bfloat16"
    reduce: str = "float32"
    tokens_billion: float = 10.0
    price: float = 0.0
    out: str = ""
    plot: str = ""

    def __post_init__(self) -> None:
        chosen: tuple[tuple[str, Sequence[str]], ...] = (
            ("link", list(LINKS)),
            ("between", list(LINKS)),
            ("sharding", ("auto", *SHARDINGS)),
            ("optimizer", list(OPTIMIZER_BYTES)),
            ("precision", ("bfloat16", "float32")),
            ("reduce", ("float32", "bfloat16")),
        )
        for key, known in chosen:
            if (value := getattr(self, key)) not in known:
                raise UserError(f"{key}={value} is unknown{nearest(value, known)}")
        for key in ("seq_length", "sequences", "node", "mfu", "peak_tflops", "memory_gb", "tokens_billion"):
            if not 0 < getattr(self, key) < math.inf:
                raise UserError(f"{key}={getattr(self, key)} must be above 0")
        for key in ("step_s", "update_s", "peak_gb", "price", "batch", "ports", "link_gb_s", "hop_us"):
            if not 0 <= getattr(self, key) < math.inf:
                raise UserError(f"{key}={getattr(self, key)} must not be below 0")
        if not self.devices:
            raise UserError("devices=[] leaves nothing to predict; give devices=[1,8,64]")
        if self.measured and self.step_s:
            raise UserError("measured= and step_s= both say what a step takes: give one of them")
        if self.hop_us and not self.link_gb_s:
            raise UserError(f"hop_us={self.hop_us} is of a measured link: give its link_gb_s= too")
        if self.update_s and self.update_s >= self.step_s:
            raise UserError(f"update_s={self.update_s} is a part of a step and must lie below step_s={self.step_s}")

    def cluster(self, devices: int) -> Cluster:
        """So many devices.

        Raises:
            UserError: nodes that are not full, or a share that is none.
        """
        within = LINKS[self.link]
        if self.link_gb_s:
            within = Link("measured", 1e9 * self.link_gb_s, 1e-6 * self.hop_us, "measured")
        try:
            return Cluster(devices, self.node, within, LINKS[self.between], self.ports, link_share=self.link_share)
        except ValueError as error:
            raise UserError(str(error)) from error


@dataclass(frozen=True)
class Sizes:
    """What is read off a model that was never allocated."""

    model: Model
    forward_flops: float  # of a sequence
    activation_bytes: float  # of a sequence, estimated; 0: not known

    @staticmethod
    @functools.cache
    def of(arch: str, seq_length: int) -> "Sizes":
        """Of an option of ``arch=``, at the vocabulary that suits it.

        Raises:
            UserError: there is no such option, or its model takes no sequences of that length.
        """
        import torch

        config = compose([f"arch={arch}", f"data.seq_length={seq_length}", "data=local", "data.path=none"]).arch
        with torch.device("meta"):
            model = config.build(config.vocab_size, seq_length)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks]
        predicted_positions = max(1, round(_MASK_RATE * seq_length))
        hidden = getattr(config, "hidden", 0)
        kept = activation_bytes(model.layers, hidden, seq_length, predicted_positions, config.vocab_size)
        return Sizes(
            Model(parameters, len(blocks) + 1, max(*blocks, parameters - sum(blocks))),
            model.flops(seq_length, predicted_positions, model.layers),
            kept if hidden else 0.0,
        )


def command(argv: Sequence[str]) -> None:
    """Print the table the options ask for, and keep it where they say.

    Raises:
        UserError: an option that is none, or a value that cannot be.
    """
    usage = _USAGE.format(links=", ".join(LINKS), shardings=", ".join(SHARDINGS))
    options, words = parse(argv, Options, usage)
    if words:
        raise UserError(f"{words[0]!r} is not key=value")
    table = Table.of(options)
    print(table.markdown())
    if options.out:
        file = Path(options.out)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(table.plain(), indent=1) + "\n")
    if options.plot:
        table.plot(Path(options.plot))


@dataclass(frozen=True)
class Table:
    """Predictions for the devices that were asked for."""

    options: Options
    sizes: Sizes
    single: Single
    basis: str  # of the single device's figures
    rows: list[tuple[Prediction, float]]  # with the efficiency
    unfit: list[int]  # numbers of devices none of whose shardings fits

    @staticmethod
    def of(options: Options) -> "Table":
        """Everything computed.

        Raises:
            UserError: see ``command``.
        """
        sizes = Sizes.of(options.arch, options.seq_length)
        single, basis = _single(options, sizes)
        plan = _plan(options)
        rows, unfit = list[tuple[Prediction, float]](), list[int]()
        for devices in options.devices:
            cluster = options.cluster(devices)
            try:
                sharding = options.sharding
                if sharding == "auto":
                    least = least_sharding(sizes.model, single, plan, cluster, options.memory_gb * 1e9)
                    if least is None:
                        unfit.append(devices)
                    sharding = least or SHARDINGS[-1]
                chosen = replace(plan, sharding=sharding)
                rows.append(
                    (predicted(sizes.model, single, chosen, cluster), efficiency(sizes.model, single, chosen, cluster))
                )
            except ValueError as error:
                raise UserError(str(error)) from error
        return Table(options, sizes, single, basis, rows, unfit)

    def markdown(self) -> str:
        """The table as a page has it."""
        options = self.options
        columns = ["devices", "sequences", "sharding", "step, ms", "communication, ms", "exposed, ms"]
        columns += [
            "GB sent",
            "tokens/s",
            "efficiency",
            "GB held",
            f"device-hours for {options.tokens_billion:g}e9 tokens",
        ]
        columns += ["cost"] if options.price else []
        shown = [columns, ["---:"] * len(columns), *(self._cells(*row) for row in self.rows)]
        title = (
            f"`{options.arch}`, {self.sizes.model.parameters:,} parameters, {options.seq_length} tokens. {self.basis}"
        )
        within = options.link
        if options.link_gb_s:
            within = f"a measured link of {options.link_gb_s:g} GB/s, {options.hop_us:g} microseconds a hop"
        links = f"Within {options.node} devices {within}, between them {options.between}"
        if options.node == 1:
            links = f"Between devices {options.between}"
        links += f" ({options.ports} a node)" if options.ports else ""
        lines = [title, f"{links}.", "", *(f"| {' | '.join(cells)} |" for cells in shown)]
        notes = [f"{n} devices: nothing fits {options.memory_gb:g} GB; take fewer sequences a pass" for n in self.unfit]
        if any(row.sequences < self.single.sequences for row, _ in self.rows):
            notes.append(
                f"fewer sequences than the {self.single.sequences} of the step of one device: that smaller passes are "
                "less efficient is not in it"
            )
        return "\n".join([*lines, *(["", *(f"* {note}" for note in notes)] if notes else [])])

    def plain(self) -> dict[str, Any]:
        """The table as plain values."""
        rows = [
            {**vars(row), "efficiency": share, "device_hours": device_hours(row, 1e9 * self.options.tokens_billion)}
            for row, share in self.rows
        ]
        return {"options": vars(self.options), "basis": self.basis, "single": vars(self.single), "rows": rows}

    def plot(self, file: Path) -> None:
        """Efficiency by the number of devices, for every link that nodes may be connected by, as a PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        counts = [2**power for power in range(int(math.log2(max(self.options.devices))) + 1)]
        networks = [name for name, link in LINKS.items() if link.hop_s == LINKS["ndr"].hop_s]
        for name in dict.fromkeys((self.options.between, *networks)):
            asked = replace(self.options, between=name, devices=[n for n in counts if self._divides(n)])
            rows = Table.of(asked).rows
            axes.plot([row.devices for row, _ in rows], [share for _, share in rows], marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("devices")
        axes.set_ylabel("efficiency")
        axes.set_title(f"{self.options.arch}, {self.options.seq_length} tokens: link between nodes", loc="left")
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.legend(frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="png")

    def _divides(self, devices: int) -> bool:
        """Whether so many fill their nodes and share the batch."""
        options = self.options
        return (devices <= options.node or devices % options.node == 0) and options.batch % devices == 0

    def _cells(self, row: Prediction, share: float) -> list[str]:
        hours = device_hours(row, 1e9 * self.options.tokens_billion)
        cells = [str(row.devices), str(row.sequences), row.sharding]
        cells += [f"{1e3 * seconds:.2f}" for seconds in (row.step_s, row.communication_s, row.exposed_s)]
        cells += [f"{sum(row.sent_bytes) / 1e9:.2f}", f"{row.tokens_per_s:,.0f}", f"{share:.1%}"]
        cells += [f"{row.memory_bytes / 1e9:.1f}", f"{hours:,.1f}"]
        return [*cells, f"{hours * self.options.price:,.2f}"] if self.options.price else cells


def _plan(options: Options) -> Plan:
    return Plan(
        Footprint.of(options.precision, options.optimizer),
        batch=options.batch,
        reduced_bytes=4.0 if options.reduce == "float32" else 2.0,
    )


def _single(options: Options, sizes: Sizes) -> tuple[Single, str]:
    """One device's step, and where it is from."""
    if options.measured:
        options = _of_benchmark(options, sizes)
    if options.step_s:
        basis = f"Measured: a step of {options.sequences} sequences takes {1e3 * options.step_s:.2f} ms on one device"
        step_s = options.step_s
    else:
        step_s = 3 * options.sequences * sizes.forward_flops / (options.mfu * options.peak_tflops * 1e12)
        basis = f"Assumed, not measured: {options.mfu:.0%} of {options.peak_tflops:g} TFLOP/s, which makes a step of "
        basis += f"{options.sequences} sequences {1e3 * step_s:.2f} ms on one device"
    held = Footprint.of(options.precision, options.optimizer).bytes_each("none", 1) * sizes.model.parameters
    if options.peak_gb:
        if options.peak_gb * 1e9 < held:
            raise UserError(
                f"peak_gb={options.peak_gb} is less than the {held / 1e9:.1f} GB that weights, gradients and "
                f"{options.optimizer} take alone; give what a whole step took"
            )
        kept, basis = options.peak_gb * 1e9 - held, f"{basis}, in {options.peak_gb:g} GB."
    elif sizes.activation_bytes:
        kept, basis = options.sequences * sizes.activation_bytes, f"{basis}; memory for the way back is estimated."
    else:
        kept, basis = 0.0, f"{basis}; memory for the way back is not known, and left out."
    return Single(step_s, options.sequences, options.seq_length, options.update_s, kept), basis


def _of_benchmark(options: Options, sizes: Sizes) -> Options:
    """The options with a step and its memory as ``benchmarks/step.py`` wrote them down.

    Raises:
        UserError: no such file, no row of this model and length in it, or one of another depth or width.
    """
    try:
        kept = json.loads(Path(options.measured).read_text())
        results = list(kept["models"].values()) if "models" in kept else [kept]  # of bench.py, or of step.py
        rows = {(row["arch"], row["length"], one["options"]["size"]): row for one in results for row in one["rows"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"measured={options.measured} is no result of benchmarks/step.py ({error})") from error
    family, _, size = options.arch.rpartition("_")
    if size not in _SIZES:
        family, size = options.arch, "base"
    row = rows.get((family, options.seq_length, size))
    if row is None or "ours" not in row["block_s"]:
        there = ", ".join(f"{arch} of size {size} at {length}" for arch, length, size in rows)
        raise UserError(
            f"measured={options.measured} has no step of {family} of size {size} at {options.seq_length} tokens: "
            f"there is {there or 'nothing'}"
        )
    found = (row["our_flops_per_s"] or 0.0) * row["block_s"]["ours"] / row["sequences"]
    due = 3 * sizes.forward_flops
    if abs(found / due - 1) > _FLOPS_AGREE_WITHIN:
        raise UserError(
            f"measured={options.measured} is of another model than {options.arch}: a sequence of its step takes "
            f"{found / 1e9:.1f} billion operations, not {due / 1e9:.1f}; give step.py its layers= and vocab_size="
        )
    return replace(
        options,
        measured="",
        step_s=row["block_s"]["ours"],
        sequences=row["sequences"],
        peak_gb=row["peak_mb"]["ours"] * 2**20 / 1e9,
    )

"""Seconds, bytes and memory of a step on several devices that each hold a part of the batch.

Symbols: p devices, g of them in a node, m nodes, n bytes that a collective is about, alpha seconds of a hop, B bytes a
second of a link in one direction. Nothing here imports torch or measures anything.

Sources: [Thakur 2005] Thakur, Rabenseifner & Gropp, "Optimization of collective communication operations in MPICH",
section 4; [Patarasuk 2009] Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations";
[Jia 2018] "Highly scalable deep learning training system with mixed-precision", https://arxiv.org/abs/1807.11205
(hierarchical all-reduce); [Li 2020] "PyTorch distributed: experiences on accelerating data parallel training",
https://arxiv.org/abs/2006.15704, section 3.2; [ZeRO] Rajbhandari et al., https://arxiv.org/abs/1910.02054, sections 3.1
and 7; [FSDP] Zhao et al., https://arxiv.org/abs/2304.11277, section 3; [Korthikanti 2022] "Reducing activation
recomputation in large transformer models", https://arxiv.org/abs/2205.05198, section 4.1.
"""

import math
from dataclasses import dataclass, replace

from cramming.scaling.links import NDR, NVLINK4, START_S, Link

SHARDINGS = ("none", "zero1", "zero2", "zero3")
"""What is spread over the devices: nothing; the optimizer's state; gradients too; weights too."""
BUCKET_BYTES = 25 * 2**20  # of gradients in one all-reduce: the default of DistributedDataParallel

OPTIMIZER_BYTES = {  # float32 state for each parameter, beside the weight itself
    "adamw": 8,  # two moments
    "adam": 8,
    "radam": 8,
    "lamb": 8,
    "stable_adamw": 8,
    "lion": 4,  # one
    "sgd": 4,  # with momentum
    "lars": 4,
}


def ring_bytes(size: float, devices: int) -> float:
    """What each device sends in a reduce-scatter or an all-gather of ``size`` bytes: n (p - 1) / p [Thakur 2005].

    No algorithm sends less, and an all-reduce is one after the other: twice as much [Patarasuk 2009].
    """
    return size * (devices - 1) / devices


def ring_s(size: float, devices: int, hop_s: float, bytes_per_s: float) -> float:
    """Seconds of it: (p - 1) alpha + n (p - 1) / (p B) [Thakur 2005]; adding up what arrives is not counted."""
    return (devices - 1) * hop_s + ring_bytes(size, devices) / bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """Devices in nodes of one size.

    Attributes:
        devices: p, all of them.
        node: g, devices in a node.
        within: the link between devices of a node.
        between: the link between nodes.
        ports: of ``between`` in a node, shared by its devices; 0: one for each.
        link_share: of a link's line rate that collectives reach.

    Raises:
        ValueError: nodes that are not full, or a share outside (0, 1].
    """

    devices: int
    node: int = 8
    within: Link = NVLINK4
    between: Link = NDR
    ports: int = 0
    link_share: float = 0.8

    def __post_init__(self) -> None:
        if self.devices < 1 or self.node < 1 or self.ports < 0:
            raise ValueError(f"devices={self.devices}, node={self.node}, ports={self.ports}: too few")
        if self.devices > self.node and self.devices % self.node:
            raise ValueError(f"devices={self.devices} must fill nodes of node={self.node}")
        if not 0 < self.link_share <= 1:
            raise ValueError(f"link_share={self.link_share} must lie above 0 and not above 1")

    @property
    def local(self) -> int:
        """Devices of one node that are used."""
        return min(self.devices, self.node)

    @property
    def nodes(self) -> int:
        """m."""
        return self.devices // self.local

    def sent_bytes(self, size: float) -> tuple[float, float]:
        """What a device sends in a reduce-scatter or an all-gather: within its node, and to others.

        Hierarchical [Jia 2018]: n bytes in a ring of the node, then n / g of them in a ring of the devices that have
        the same place in their nodes; an all-gather the other way round.
        """
        return ring_bytes(size, self.local), ring_bytes(size / self.local, self.nodes)

    def half_s(self, size: float, times: int = 1) -> float:
        """Seconds of ``times`` reduce-scatters or all-gathers, ``size`` bytes in all; one after another."""
        return times * self._started(self._rings_s(size / times))

    def all_reduce_s(self, size: float, times: int = 1) -> float:
        """Seconds of ``times`` all-reduces, ``size`` bytes in all: a reduce-scatter and an all-gather each."""
        return times * self._started(2 * self._rings_s(size / times))

    def _rings_s(self, size: float) -> float:
        ports = self.ports or self.local
        inner, outer = self.within.bytes_per_s, self.between.bytes_per_s * ports / self.local
        return ring_s(size, self.local, self.within.hop_s, self.link_share * inner) + ring_s(
            size / self.local, self.nodes, self.between.hop_s, self.link_share * outer
        )

    def _started(self, seconds: float) -> float:
        return START_S + seconds if self.devices > 1 else 0.0


def exposed_s(compute_s: float, communication_s: float, pieces: int) -> float:
    """What communication adds to computing when each of ``pieces`` equal parts can be sent as soon as it is computed.

    The last part sets out when everything is computed, and before that parts wait for one another where sending takes
    longer than computing: c / k + (k - 1) / k max(0, c - b) for k parts, b seconds of computing and c of sending. The
    same holds where parts must have arrived before they are computed with [Li 2020, 3.2.3; FSDP, 3.3].
    """
    return communication_s / pieces + (pieces - 1) / pieces * max(0.0, communication_s - compute_s)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a parameter takes on one device.

    Attributes:
        weights: of what passes read.
        gradients: until the step.
        state: the optimizer's, with float32 weights that passes do not read: K of [ZeRO, 3.1].
    """

    weights: float
    gradients: float
    state: float

    @staticmethod
    def of(precision: str, optimizer: str) -> "Footprint":
        """As ``cramming.precision`` keeps them: in 16 bits a copy of the weights and its gradients beside float32 ones.

        Raises:
            KeyError: an optimizer whose state is not in ``OPTIMIZER_BYTES``.
        """
        state = OPTIMIZER_BYTES[optimizer]
        return Footprint(4, 4, state) if precision == "float32" else Footprint(2, 2 + 4, 4 + state)

    def bytes_each(self, sharding: str, devices: int) -> float:
        """For each parameter on each of ``devices`` [ZeRO, figure 1]: a part that is spread is divided among them."""
        spread = SHARDINGS.index(sharding)
        parts = (self.state, self.gradients, self.weights)
        return sum(part / devices if number < spread else part for number, part in enumerate(parts))


def activation_bytes(layers: int, hidden: int, tokens: int, predicted: int, vocabulary: int) -> float:
    """An estimate of what a pass keeps for the way back, in 16 bits, where it was not measured.

    34 bytes for each token, hidden unit and layer: equation 1 of [Korthikanti 2022] without the scores, which fused
    attention does not keep; and the logits with their gradient.
    """
    return 34.0 * layers * hidden * tokens + 2 * 2.0 * predicted * vocabulary


@dataclass(frozen=True)
class Model:
    """What of a model matters here.

    Attributes:
        parameters: each counted once, as tied ones are sent and kept once.
        units: parts that sharded weights are gathered in: blocks, and the rest.
        largest_unit: parameters of the largest.
    """

    parameters: int
    units: int
    largest_unit: int


@dataclass(frozen=True)
class Single:
    """A step of one device, measured or assumed.

    Attributes:
        step_s: forward, backward and update.
        sequences: in its batch, one pass.
        seq_length: tokens in each.
        update_s: the optimizer's part of ``step_s``.
        activation_bytes: what a pass keeps for the way back.
        backward_share: of the passes, 2/3 where backward has twice the products of forward.
    """

    step_s: float
    sequences: int
    seq_length: int
    update_s: float = 0.0
    activation_bytes: float = 0.0
    backward_share: float = 2 / 3

    @property
    def passes_s(self) -> float:
        """Forward and backward."""
        return self.step_s - self.update_s


@dataclass(frozen=True)
class Plan:
    """How a step is spread.

    Attributes:
        footprint: bytes of a parameter.
        sharding: one of ``SHARDINGS``.
        batch: sequences of a step on all devices; 0: each has as many as were measured on one.
        reduced_bytes: of a gradient on its way to the other devices.
    """

    footprint: Footprint
    sharding: str = "none"
    batch: int = 0
    reduced_bytes: float = 4.0


@dataclass(frozen=True)
class Prediction:
    """A step of all devices.

    Attributes:
        devices: p.
        sharding: what is spread.
        sequences: of a step on each device.
        microbatches: passes in which a device takes them.
        compute_s: passes and update.
        communication_s: of all collectives, hidden or not.
        exposed_s: what of it computing does not hide.
        step_s: computing and what is exposed.
        tokens_per_s: of all devices.
        memory_bytes: of each device.
        sent_bytes: by each device, within its node and to others.
    """

    devices: int
    sharding: str
    sequences: int
    microbatches: int
    compute_s: float
    communication_s: float
    exposed_s: float
    step_s: float
    tokens_per_s: float
    memory_bytes: float
    sent_bytes: tuple[float, float]


@dataclass(frozen=True)
class _Collectives:
    """Some collectives of one kind, and the seconds of computing they run beside, ``times`` in a step."""

    size: float
    beside_s: float
    pieces: int
    times: int = 1
    halves: int = 1  # reduce-scatter or all-gather; 2: all-reduce, or one of each

    def seconds(self, cluster: Cluster) -> tuple[float, float]:
        """Of all of them: together, and what is exposed."""
        if cluster.devices == 1:
            return 0.0, 0.0
        whole = cluster.all_reduce_s if self.halves == 2 else cluster.half_s
        each = whole(self.size, self.pieces)
        return self.times * each, self.times * exposed_s(self.beside_s, each, self.pieces)

    def sent(self, cluster: Cluster) -> tuple[float, float]:
        """Bytes by each device, within its node and to others."""
        inner, outer = cluster.sent_bytes(self.size)
        return self.times * self.halves * inner, self.times * self.halves * outer


def collectives(model: Model, plan: Plan, forward_s: float, backward_s: float, microbatches: int) -> list[_Collectives]:
    """What a step of ``microbatches`` passes communicates.

    Volumes are those of [ZeRO, 7]: twice the parameters without sharding and with zero1 or zero2, three times with
    zero3. Gradients are sent after the last pass, or, where they are kept in parts, after every pass; weights in parts
    are gathered for every forward and every backward pass [FSDP, 3.2.1].
    """
    gradients, weights = model.parameters * plan.reduced_bytes, model.parameters * plan.footprint.weights
    buckets = max(1, math.ceil(gradients / BUCKET_BYTES))
    if plan.sharding == "none":
        return [_Collectives(gradients, backward_s, buckets, halves=2)]
    if plan.sharding == "zero3":
        # Gradients leave and weights arrive beside the same computing: as one stream of both.
        both = (gradients + weights) / 2
        return [
            _Collectives(weights, forward_s, model.units, microbatches),
            _Collectives(both, backward_s, model.units, microbatches, halves=2),
        ]
    times = microbatches if plan.sharding == "zero2" else 1
    return [_Collectives(weights, forward_s, model.units), _Collectives(gradients, backward_s, buckets, times)]


def predicted(model: Model, single: Single, plan: Plan, cluster: Cluster) -> Prediction:
    """A step of all devices: computing, and the communication that it does not hide.

    A device computes its sequences as fast as was measured, in proportion to their number; its passes hold as many as
    were measured or fewer. Spread state is updated in parts.

    Raises:
        ValueError: a batch that does not divide among the devices.
    """
    p = cluster.devices
    if plan.batch % p:
        raise ValueError(f"batch={plan.batch} does not divide among {p} devices")
    sequences = plan.batch // p or single.sequences
    microbatches = math.ceil(sequences / single.sequences)
    share = sequences / microbatches / single.sequences  # of a measured pass
    passes_s = single.passes_s * share
    update_s = single.update_s / (1 if plan.sharding == "none" else p)
    backward_s = single.backward_share * passes_s
    sent = collectives(model, plan, passes_s - backward_s, backward_s, microbatches)
    seconds = [some.seconds(cluster) for some in sent]
    communication, exposed = (sum(column) for column in zip(*seconds, strict=True))
    compute_s = microbatches * passes_s + update_s
    memory = model.parameters * plan.footprint.bytes_each(plan.sharding, p) + single.activation_bytes * share
    if plan.sharding == "zero3" and p > 1:  # the part that is computed with, and the next one on its way
        memory += 2 * model.largest_unit * plan.footprint.weights
    inner, outer = (sum(column) for column in zip(*(some.sent(cluster) for some in sent), strict=True))
    return Prediction(
        devices=p,
        sharding=plan.sharding,
        sequences=sequences,
        microbatches=microbatches,
        compute_s=compute_s,
        communication_s=communication,
        exposed_s=exposed,
        step_s=compute_s + exposed,
        tokens_per_s=p * sequences * single.seq_length / (compute_s + exposed),
        memory_bytes=memory,
        sent_bytes=(inner, outer),
    )


def efficiency(model: Model, single: Single, plan: Plan, cluster: Cluster) -> float:
    """Tokens a second of all devices over as many times those of one that takes the same step alone."""
    alone = predicted(model, single, replace(plan, sharding="none"), replace(cluster, devices=1))
    return predicted(model, single, plan, cluster).tokens_per_s / (cluster.devices * alone.tokens_per_s)


def least_sharding(model: Model, single: Single, plan: Plan, cluster: Cluster, memory_bytes: float) -> str | None:
    """The first of ``SHARDINGS`` that fits a device's memory; None: none does, and the batch must be smaller."""
    for sharding in SHARDINGS:
        found = predicted(model, single, replace(plan, sharding=sharding), cluster)
        if found.memory_bytes <= memory_bytes:
            return sharding
    return None


def device_hours(found: Prediction, tokens: float) -> float:
    """Of all devices together, for training on so many tokens."""
    return tokens / found.tokens_per_s * found.devices / 3600

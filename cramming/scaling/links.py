"""What connects devices: line rates by the standard or the data sheet, and how long a message takes to set out.

Hops are those NCCL's own cost model has for a ring in its protocol for large messages: 3.4 us over NVLink, 5.7 us over
PCIe, 9.6 us over a network, and 8.4 us to start a collective (``src/graph/tuning.cc`` at commit 01afd20). What sockets
over TCP add is not in them.
"""

from dataclasses import dataclass

START_S = 8.4e-6  # of a collective
_NVLINK_HOP_S, _PCIE_HOP_S, _NETWORK_HOP_S = 3.4e-6, 5.7e-6, 9.6e-6


@dataclass(frozen=True)
class Link:
    """A way between two devices.

    Attributes:
        name: as the command line has it.
        bytes_per_s: in each direction, by the standard: what is reached is less.
        hop_s: of a message that has no length.
        source: of the rate.
    """

    name: str
    bytes_per_s: float
    hop_s: float
    source: str


NVLINK4 = Link("nvlink4", 18 * 25e9, _NVLINK_HOP_S, "NVIDIA H100 and H200 data sheets: 18 links of 25 GB/s each way")
NVLINK5 = Link("nvlink5", 18 * 50e9, _NVLINK_HOP_S, "NVIDIA Blackwell architecture: 18 links of 50 GB/s each way")
PCIE4 = Link("pcie4", 16 * 16e9 / 8 * 128 / 130, _PCIE_HOP_S, "PCI Express 4.0: 16 lanes of 16 GT/s, 128 of 130 bits")
PCIE5 = Link("pcie5", 16 * 32e9 / 8 * 128 / 130, _PCIE_HOP_S, "PCI Express 5.0: 16 lanes of 32 GT/s, 128 of 130 bits")
NDR = Link("ndr", 400e9 / 8, _NETWORK_HOP_S, "InfiniBand NDR, four lanes: 400 Gb/s each way")
ETHERNET_400 = Link("400gbe", 400e9 / 8, _NETWORK_HOP_S, "IEEE 802.3bs: 400 Gb/s each way")
ETHERNET_100 = Link("100gbe", 100e9 / 8, _NETWORK_HOP_S, "IEEE 802.3ba: 100 Gb/s each way")
ETHERNET_10 = Link("10gbe", 10e9 / 8, _NETWORK_HOP_S, "IEEE 802.3ae: 10 Gb/s each way")

LINKS = {link.name: link for link in (NVLINK4, NVLINK5, PCIE4, PCIE5, NDR, ETHERNET_400, ETHERNET_100, ETHERNET_10)}

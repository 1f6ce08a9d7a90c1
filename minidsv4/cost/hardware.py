"""Chips and laptops: peak rates, memory, bandwidth and link, each with its source.

Rates are FLOP/s of dense products, links bytes per second in ONE direction (vendors quote both), GB is 10^9 bytes.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator, or one laptop.

    flops      bits of the format -> FLOP/s; a format that is missing runs at the next wider one; empty where no rate
               is published
    memory     bytes
    bandwidth  bytes per second from that memory
    link       bytes per second to its neighbours, one direction; 0 where there are none
    source     where the numbers come from
    """

    name: str
    flops: dict[int, float]
    memory: float
    bandwidth: float
    link: float
    source: str

    def peak(self, bits: int) -> float:
        """FLOP/s in a format of so many bits.

        raises  ValueError where no rate is published for it or for a wider one
        """
        wider = [rate for width, rate in sorted(self.flops.items()) if width >= bits]
        if not wider:
            raise ValueError(f"peak: for {self.name} no FLOP rate of {bits} bits or more is published")
        return wider[0]


def _device(name, tflops, gigabytes, terabytes_per_second, link_gigabytes, source):
    rates = {bits: 1e12 * rate for bits, rate in zip((16, 8, 4), tflops) if rate}
    return Device(name, rates, 1e9 * gigabytes, 1e12 * terabytes_per_second, 1e9 * link_gigabytes, source)


_ROWS = [  # name, TFLOP/s in BF16, FP8 (INT8 where so said) and FP4, memory GB, TB/s, link GB/s one way, source
    ("H800", (989, 1979, None), 80, 3.35, 200, "H100 die; link as in DeepEP's documentation, about 160 usable"),
    ("H20", (148, 296, None), 96, 4.0, 450, "vendor data as repeated by integrators"),
    ("H200", (989, 1979, None), 141, 4.8, 450, "NVIDIA data sheet, dense values"),
    ("B200", (2250, 4500, 9000), 180, 8.0, 900, "HGX B200 data sheet, dense values"),
    ("Ascend 910C", (752, 1504, None), 128, 3.2, 392, "arXiv 2506.12708, package of two dies; 8 bit is INT8"),
    ("Ascend 950PR", (432, 865, 1730), 128, 1.6, 1000, "Huawei's roadmap of 2025-09 and white paper; link announced"),
    ("Ascend 950DT", (432, 865, 1730), 144, 4.0, 374, "DeepGEMM-Ascend and DeepEP-Ascend, link as measured there"),
    ("M4 Max laptop", (None, None, None), 128, 0.546, 0, "Apple's technical data; no dense rate is published"),
    ("Ryzen AI Max+ 395", (None, None, None), 128, 0.256, 0, "256 bit LPDDR5X-8000; no dense rate is published"),
]
DEVICES = {row[0]: _device(*row) for row in _ROWS}
LAPTOPS = ("M4 Max laptop", "Ryzen AI Max+ 395")


@dataclass(frozen=True)
class Disk:
    """A solid-state disk and the bytes per second that it reads in order, by its data sheet."""

    name: str
    bandwidth: float
    source: str


DISKS = (
    Disk("SATA", 0.56e9, "Samsung 870 EVO"),
    Disk("NVMe, PCIe 3", 3.5e9, "Samsung 970 EVO Plus"),
    Disk("NVMe, PCIe 4", 7.45e9, "Samsung 990 PRO"),
    Disk("NVMe, PCIe 5", 14.7e9, "Samsung 9100 PRO"),
)

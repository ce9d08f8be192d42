"""What a chip can do and costs.

FLOP/s, HBM, its bandwidth and inter-chip links (the bidirectional total divided by ports
and by 2 directions) of v5e, v5p and v6e are those of cloud.google.com/tpu/docs, as search
results quoted them in 2026-11; those of v4 and all of the data-centre network were not
looked up again. The HBM that a program may use is less than the chip has: v5e's is what
libtpu names when it runs out, the others are the chip's less about 1 GiB.

Prices are the on-demand list prices of 2025 in the cheapest US region, in US dollars, to
the best of our knowledge and not confirmed since. They change: give your own with --price.
"""

import dataclasses

GB = 1e9
PRICES_OF = 'on-demand list prices of 2025, cheapest US region'


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip; bandwidths are bytes per second.

    Attributes:
      name: as in the names of topologies.
      platform: of JAX, 'tpu' or 'cpu'.
      hbm: bytes that a program may use; 0 is unknown.
      flops: bfloat16 FLOP/s at most.
      hbm_bandwidth: of its memory.
      link: one inter-chip link, one direction.
      dcn: data-centre network, for each chip.
      price: US dollars an hour.
      cores_per_name: what N in NAME-N counts for each chip.
    """

    name: str
    platform: str
    hbm: float
    flops: float
    hbm_bandwidth: float
    link: float
    dcn: float
    price: float
    cores_per_name: int

    @property
    def ring(self) -> float:
        """What a collective is given: both directions of one axis of the torus."""
        return 2 * self.link


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', 'tpu', 31.0 * GIB, 275e12, 1200 * GB, 50 * GB, 6.25 * GB, 3.22, 2),
        Chip('v5e', 'tpu', 15.75 * GIB, 197e12, 819 * GB, 50 * GB, 3.125 * GB, 1.20, 1),
        Chip('v5p', 'tpu', 95.0 * GIB, 459e12, 2765 * GB, 100 * GB, 6.25 * GB, 4.20, 2),
        Chip('v6e', 'tpu', 31.25 * GIB, 918e12, 1600 * GB, 100 * GB, 12.5 * GB, 2.70, 1),
        # nominal, so that a plan for fake devices has every line; no claim about any CPU
        Chip('cpu', 'cpu', 0.0, 5e10, 10 * GB, 5 * GB, 1 * GB, 0.0, 1),
    )
}

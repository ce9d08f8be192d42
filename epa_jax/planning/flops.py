"""Floating-point operations and memory traffic of a step, from shapes alone.

XLA's cost analysis counts the body of a scan once, and so a model of L scanned layers as
one. A multiplication with its addition is 2 operations; what is not a matrix product is
left out.
"""

import dataclasses

from epa_jax.models import lora as lora_lib
from epa_jax.models import transformer
from epa_jax.models.lora import Lora
from epa_jax.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What costs follow from.

    Attributes:
      layers: parameters of all layers.
      head: parameters of the output head.
      width: n_layers * n_heads * head_dim, which attention multiplies for each pair.
      adapters: parameters of adapters; 0 without.
      last: parameters of the last products of all layers, which no gradient needs anew.
    """

    layers: int
    head: int
    width: int
    adapters: int
    last: int


def sizes(spec: ModelSpec, lora: Lora | None = None) -> Sizes:
    """Of a model and its adapters."""
    looked_up = spec.vocab_size * spec.d_model
    tables = 1 if spec.tie_embeddings else 2
    adapters = 0
    if lora is not None:
        leaves = lora_lib.abstract_adapters(spec, lora)['layers'].values()
        adapters = sum(leaf.size for leaf in leaves)
    return Sizes(
        layers=transformer.num_params(spec) - tables * looked_up,
        head=looked_up,
        width=spec.n_layers * spec.n_heads * spec.head_dim,
        adapters=adapters,
        last=spec.n_layers * spec.d_ff * spec.d_model,
    )


def forward(size: Sizes, tokens: float, scored: float, pairs: float) -> float:
    """Of one pass: 2 for each parameter and token, 4 for each pair and unit of width.

    Args:
      size: of the model.
      tokens: that pass through the layers.
      scored: of those, the ones that meet the vocabulary.
      pairs: of a query and a key.
    """
    through = 2 * (size.layers + size.adapters) * tokens
    return through + 2 * size.head * scored + 4 * size.width * pairs


def training(
    size: Sizes, tokens: float, scored: float, pairs: float, reference: bool = False
) -> float:
    """Model FLOPs of a step: what any implementation has to do.

    Backward costs twice the forward pass; where only adapters are trained, the model's own
    parameters need no gradient and cost once.

    Args:
      size: of the model.
      tokens: real ones.
      scored: likewise.
      pairs: that see each other.
      reference: whether the step runs a reference as well.
    """
    once = forward(size, tokens, scored, pairs)
    whole = 3 * once
    if size.adapters:
        whole -= 2 * size.layers * tokens + 2 * size.head * scored
    return whole + (once if reference else 0.0)


def executed(
    size: Sizes,
    rows: int,
    row_length: int,
    scored: float,
    remat: str,
    reference: bool = False,
) -> float:
    """What our step executes for a micro-batch, padding and recomputation included.

    Attention counts the causal half of each row, which is the least that a back end
    without knowledge of the segments does. The head computes its logits again backward,
    attention its scores.

    Args:
      size: of the model.
      rows: of the micro-batch, over all devices.
      row_length: tokens.
      scored: places of a row that meet the vocabulary.
      remat: as in `schema.ModelConfig`.
      reference: as `training`.
    """
    cells = rows * row_length
    pairs = rows * row_length * (row_length + 1) / 2
    total = training(size, cells, rows * scored, pairs, reference)
    total += 2 * size.head * rows * scored + 2 * size.width * pairs
    if remat == 'full':
        total += forward(size, cells, 0, pairs) - 2 * size.last * cells
    return total


def update_bytes(state_bytes: int, gradient_bytes: int) -> float:
    """Memory traffic of the update on a device: state read and written, gradients read."""
    return 2.0 * state_bytes + gradient_bytes


def pass_bytes(
    spec: ModelSpec,
    size: Sizes,
    cells: float,
    compute_bytes: int,
    gradient_bytes: int,
    ways: int,
    remat: str,
) -> float:
    """Memory traffic of a micro-batch on one device, at least.

    Weights are written once gathered and read once, for each pass; each matrix reads and
    writes its activations once a pass; gradients are made, and their sum is read and
    written. Scores of attention are taken to stay on the chip.

    Args:
      spec: architecture.
      size: of the model.
      cells: tokens of this device, padding included.
      compute_bytes: of an element.
      gradient_bytes: of the gradients on the device.
      ways: tensor-parallel shards.
      remat: as in `schema.ModelConfig`.
    """
    passes = 4 if remat == 'full' else 3
    weights = 2 * (size.layers + size.head) / ways * compute_bytes * passes
    heads = (spec.n_heads + spec.n_kv_heads) * spec.head_dim * 2
    width = 6 * spec.d_model + (heads + 4 * spec.d_ff) / ways
    activations = spec.n_layers * width * cells * compute_bytes * passes
    return weights + activations + 3 * gradient_bytes

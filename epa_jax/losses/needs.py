"""Whether a run can feed a loss."""

from epa_jax.config import ConfigError
from epa_jax.losses.definition import Loss


def check_needs(loss: Loss, *, n_strong: int, n_weak: int, reference_mode: str) -> None:
    """Refuses a loss that the run cannot feed.

    Args:
      loss: from `make_loss`.
      n_strong: `data.n_strong`, most strong negatives of a prompt.
      n_weak: `data.n_weak`, weak negatives of a prompt.
      reference_mode: `reference.mode`.

    Raises:
      ConfigError: it needs a reference or negatives that the run does not have.
    """
    needs = loss.needs
    if needs.needs_reference and reference_mode == 'none':
        raise ConfigError(
            f"loss.name={loss.name!r} needs a reference and reference.mode='none'; use "
            "'cached' or 'in_step', or set loss.reference_free"
        )
    for key, found, least in (
        ('data.n_strong', n_strong, needs.min_strong),
        ('data.n_weak', n_weak, needs.min_weak),
        ('data.n_strong + data.n_weak', n_strong + n_weak, needs.min_negatives),
    ):
        if found < least:
            raise ConfigError(
                f'loss.name={loss.name!r} needs {key} of at least {least}, found {found}'
            )


def needs_ratings(loss: Loss, n_strong: int) -> bool:
    """Whether every own response of the data must have a rating."""
    needs = loss.needs.ratings
    return needs == 'always' or (needs == 'ranks' and n_strong > 1)

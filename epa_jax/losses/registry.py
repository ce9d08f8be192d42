"""The table of losses: every name that `loss.name` may have.

To add one, write the function, add its line here, and add hyperparameters that are new to
`loss_config.LossConfig`; `docs/adding_a_loss.md` walks through it.
"""

import types
from collections.abc import Mapping

from epa_jax.losses import (
    energy,
    likelihood,
    listwise,
    pairwise,
    rated,
    reference_free,
    transport,
    unpaired,
)
from epa_jax.losses.definition import (
    ANY,
    NOT_NEGATIVE,
    POSITIVE,
    TOKENS,
    WHICH_PAIRS,
    Choice,
    LossDef,
    Range,
)

BETA = {'beta': POSITIVE}
PAIR = BETA | {'pairs': WHICH_PAIRS}
SMOOTHED = PAIR | {'label_smoothing': Range(0, 0.5)}

LOSSES: Mapping[str, LossDef] = types.MappingProxyType(
    {
        'epa': LossDef(
            energy.epa,
            'chosen against strong and weak negatives in one softmax',
            'arXiv:2412.13862',
            BETA
            | {
                'margin': ANY,
                'weight_strong': NOT_NEGATIVE,
                'weight_weak': NOT_NEGATIVE,
            },
            min_strong=0,
        ),
        'ipm': LossDef(
            energy.ipm,
            'exact softmax over a response space that the table enumerates',
            'arXiv:2412.13862',
            BETA,
            min_strong=0,
        ),
        'dpo': LossDef(
            pairwise.dpo,
            'Bradley-Terry on log-ratios; label_smoothing makes it cDPO',
            'arXiv:2305.18290',
            SMOOTHED | {'margin': ANY},
        ),
        'robust': LossDef(
            pairwise.robust,
            'DPO unbiased under flipped labels',
            'arXiv:2403.00409',
            PAIR | {'label_smoothing': Range(0, 0.5, open_high=True)},
        ),
        'ipo': LossDef(
            pairwise.ipo,
            'squared distance of the log-ratio gap to 1 / (2 beta)',
            'arXiv:2310.12036',
            PAIR | {'tokens': TOKENS},
        ),
        'hinge': LossDef(
            pairwise.hinge, 'hinge on the reward gap (RSO)', 'arXiv:2309.06657', PAIR
        ),
        'sigmoid_norm': LossDef(
            pairwise.sigmoid_norm,
            'DPO on means over tokens (dpo_norm)',
            'arXiv:2411.15124',
            PAIR | {'margin': ANY},
            differences_only=False,
            per_token=True,
        ),
        'exo_pair': LossDef(
            pairwise.exo_pair,
            'reverse KL to smoothed labels',
            'arXiv:2402.00856',
            PAIR | {'label_smoothing': Range(0, 0.5, open_low=True)},
        ),
        'sppo_hard': LossDef(
            pairwise.sppo_hard,
            'rewards of both sides to +1/2 and -1/2',
            'arXiv:2405.00675',
            PAIR,
            differences_only=False,
        ),
        'discopop': LossDef(
            pairwise.discopop,
            'logistic and exponential loss, mixed by the gap',
            'arXiv:2406.08414',
            PAIR | {'tau': Range(0, 1, open_low=True)},
        ),
        'apo_zero': LossDef(
            pairwise.apo_zero,
            'anchored: chosen up, rejected down',
            'arXiv:2408.06266',
            PAIR,
            differences_only=False,
        ),
        'apo_down': LossDef(
            pairwise.apo_down,
            'anchored: both down, rejected more',
            'arXiv:2408.06266',
            PAIR,
            differences_only=False,
        ),
        'cpo': LossDef(
            reference_free.cpo,
            'DPO without a reference, plus NLL of the chosen',
            'arXiv:2401.08417',
            PAIR | {'nll_weight': NOT_NEGATIVE, 'nll_tokens': TOKENS},
            needs_reference=False,
            differences_only=False,
        ),
        'slic': LossDef(
            reference_free.slic,
            'hinge on log-probs, plus NLL of the chosen',
            'arXiv:2305.10425',
            {
                'pairs': WHICH_PAIRS,
                'margin': NOT_NEGATIVE,
                'nll_weight': NOT_NEGATIVE,
                'nll_tokens': TOKENS,
            },
            needs_reference=False,
            differences_only=False,
        ),
        'simpo': LossDef(
            reference_free.simpo,
            'mean log-probs with a target margin',
            'arXiv:2405.14734',
            PAIR | {'gamma': ANY},
            needs_reference=False,
            differences_only=False,
            per_token=True,
        ),
        'alphapo': LossDef(
            reference_free.alphapo,
            'SimPO with a reshaped reward',
            'arXiv:2501.03884',
            PAIR | {'gamma': ANY, 'alpha': Range(-10, 10)},
            needs_reference=False,
            differences_only=False,
            shiftable=False,
            per_token=True,
        ),
        'orpo': LossDef(
            reference_free.orpo,
            'NLL of the chosen and a log odds ratio',
            'arXiv:2403.07691',
            PAIR,
            needs_reference=False,
            differences_only=False,
            shiftable=False,
            per_token=True,
        ),
        'mpo': LossDef(
            reference_free.mpo,
            'the probability of the preferred side, as reward',
            'arXiv:2312.16430',
            PAIR | {'tokens': TOKENS, 'against': Choice(('none', 'reference'))},
            needs_reference=False,
            differences_only=False,
        ),
        'pl_dpo': LossDef(
            listwise.pl_dpo,
            'Plackett-Luce likelihood of the whole ranking',
            'arXiv:2305.18290',
            BETA,
            ratings='ranks',
        ),
        'infonca': LossDef(
            listwise.infonca,
            'softmax of rewards towards softmax of ratings',
            'arXiv:2402.05369',
            BETA | {'rating_temperature': NOT_NEGATIVE},
            ratings='always',
        ),
        'nca': LossDef(
            listwise.nca,
            'noise-contrastive form of infonca',
            'arXiv:2402.05369',
            BETA | {'rating_temperature': NOT_NEGATIVE},
            ratings='always',
            differences_only=False,
        ),
        'rpo_sq': LossDef(
            rated.rpo_sq,
            'reward gap to rating gap, squared error',
            'arXiv:2406.11704',
            PAIR | {'rating_scale': POSITIVE},
            ratings='always',
        ),
        'rpo_fwd_kl': LossDef(
            rated.rpo_fwd_kl,
            'reward gap to rating gap, forward KL',
            'arXiv:2406.11704',
            PAIR | {'rating_scale': POSITIVE},
            ratings='always',
        ),
        'rpo_bwd_kl': LossDef(
            rated.rpo_bwd_kl,
            'reward gap to rating gap, backward KL',
            'arXiv:2406.11704',
            PAIR | {'rating_scale': POSITIVE},
            ratings='always',
        ),
        'kto': LossDef(
            unpaired.kto,
            'each response against a KL baseline of weak negatives',
            'arXiv:2402.01306',
            BETA
            | {
                'weight_chosen': NOT_NEGATIVE,
                'weight_rejected': NOT_NEGATIVE,
                'baseline': Choice(('weak', 'zero')),
            },
            min_strong=0,
            min_weak=1,
            couples_prompts=True,
            differences_only=False,
        ),
        'bco': LossDef(
            unpaired.bco,
            'each response classified against a shift of rewards',
            'arXiv:2404.04656',
            BETA | {'shift': Choice(('running', 'batch', 'none'))},
            couples_prompts=True,
            differences_only=False,
            carry=unpaired.bco_rewards,
        ),
        'aot': LossDef(
            transport.aot,
            'quantiles of policy gaps against those of the reference',
            'arXiv:2406.05882',
            SMOOTHED,
            couples_prompts=True,
            differences_only=False,
        ),
        'aot_unpaired': LossDef(
            transport.aot_unpaired,
            'quantiles of chosen rewards against those of rejected',
            'arXiv:2406.05882',
            SMOOTHED,
            couples_prompts=True,
            differences_only=False,
        ),
        'sft': LossDef(
            likelihood.sft,
            'negative log-likelihood of the chosen response',
            'maximum likelihood',
            {},
            needs_reference=False,
            min_strong=0,
            min_negatives=0,
            differences_only=False,
            shiftable=False,
        ),
    }
)

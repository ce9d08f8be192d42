"""Log-probs of given responses against one sequence at a time."""

import numpy as np

from epa_jax.evals.scoring import score
from epa_jax.models.transformer import Compute
from tests import tiny


def test_every_response_has_its_own_sum():
    groups = tiny.random_groups(0, 9, responses=4)
    params = tiny.params()
    ids = [(np.array(p, np.int32), [np.array(r, np.int32) for r in rs]) for p, rs in groups]
    prompts, responses = zip(*ids, strict=True)
    found = score(params, tiny.SPEC, Compute(), prompts, responses).logps
    for n, (prompt, answers) in enumerate(groups):
        for k, answer in enumerate(answers):
            logps = tiny.sequence_logps(params, tiny.SPEC, prompt, answer)
            np.testing.assert_allclose(found[n, k], float(logps.sum()), rtol=1e-5)

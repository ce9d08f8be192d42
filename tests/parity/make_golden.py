"""Makes the golden logits of tests/models/golden_test.py with transformers on PyTorch.

    python -m tests.parity.make_golden

prints `GOLDEN`, to be pasted there. The weights are a formula of their names' order, so
that no file of weights is needed; PyTorch computes in float64.
"""

import pprint

import numpy as np
import torch
import transformers

from tests.models import golden_test


def logits(name: str) -> np.ndarray:
    """Logits [T, V] of one case, float64."""
    config = golden_test.CONFIGS[name]
    kind = {'llama': transformers.LlamaConfig, 'mistral': transformers.MistralConfig}
    model = transformers.AutoModelForCausalLM.from_config(
        kind[config['model_type']](**config), attn_implementation='eager'
    )
    weights = golden_test.weights(config)
    state = {k: torch.as_tensor(v) for k, v in weights.items()}
    model.load_state_dict(state, strict=not config['tie_word_embeddings'])
    with torch.no_grad():
        out = model.double().eval()(torch.tensor([golden_test.TOKENS])).logits
    return out[0].numpy()


def main() -> None:
    """Prints the numbers."""
    golden = {
        name: {
            t: logits(name)[t, golden_test.SHOWN].round(6).tolist()
            for t in golden_test.PLACES
        }
        for name in golden_test.CONFIGS
    }
    print('GOLDEN =', pprint.pformat(golden, width=88, compact=True))


if __name__ == '__main__':
    main()

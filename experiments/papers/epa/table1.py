"""Table 1's intrinsic metrics, exactly: Pearson and slope-1 error of every method.

Claim: EPA has a higher Pearson coefficient and a lower slope-1 error than DPO, IPO, KTO,
  NCA and PL-DPO, and weak negatives help.
Command: python -m experiments.papers.epa.table1
World: LLaMAs of two layers; 9 prompts, all 40 responses of up to 3 tokens; 32 rankings of
  4 reference samples a prompt; two kinds of reward, one that knows topics (responses to
  other prompts are bad, as EPA assumes) and one that does not. 5 seeds, 500 steps of 32.
"""

from typing import Any

from epa_jax.theory.study import Plan
from experiments.papers.common import arguments, interval, write_csv
from experiments.papers.epa.runs import METHODS, Method, make_setting, run

SHOWN = ('pearson', 'slope1_error', 'slope1_root', 'slope1_error_ref', 'kl', 'reward')
PLAN = Plan(steps=50, measurements=10, lr=3e-4)
WORLDS = {'topical': 1.0, 'neutral': 0.0}


def rows_of(
    kind: str, seeds: int, plan: Plan, methods: list[Method]
) -> list[dict[str, Any]]:
    """Every method at the end of training, and at its best Pearson on the way."""
    setting = make_setting(seeds, topical=WORLDS[kind])
    rows: list[dict[str, Any]] = []
    for method in methods:
        history, _ = run(setting, method, plan)
        for seed in range(seeds):
            row = {'world': kind, 'method': method.name, 'seed': seed}
            row |= {key: float(getattr(history, key)[seed, -1]) for key in SHOWN}
            # at the start r_theta is 0 and has no correlation
            row['best_pearson'] = float(history.pearson[seed, 1:].max())
            row['best_slope1_error'] = float(history.slope1_error[seed, 1:].min())
            rows.append(row)
            print('.', end='', flush=True)
    print()
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and 95 % half-widths over seeds, and of the difference to DPO in each."""
    out = []
    keys = [key for key in rows[0] if key not in ('world', 'method', 'seed')]
    for kind, method in dict.fromkeys((row['world'], row['method']) for row in rows):
        mine = {r['seed']: r for r in rows if (r['world'], r['method']) == (kind, method)}
        dpo = {r['seed']: r for r in rows if (r['world'], r['method']) == (kind, 'DPO')}
        line: dict[str, Any] = {'world': kind, 'method': method}
        for key in keys:
            line[key], line[f'{key}_95'] = interval(r[key] for r in mine.values())
        for key in ('pearson', 'slope1_error'):
            gaps = [mine[seed][key] - dpo[seed][key] for seed in mine]
            line[f'{key}_less_dpo'], line[f'{key}_less_dpo_95'] = interval(gaps)
        out.append(line)
    return out


def main() -> None:
    """Writes results/table1*.csv and prints the table."""
    args = arguments(__file__, __doc__, seeds=5)
    rows = [
        row
        for kind in WORLDS
        for row in rows_of(kind, args.seeds, PLAN, list(METHODS.values()))
    ]
    write_csv(args.out / 'table1_seeds.csv', rows)
    table = summary(rows)
    write_csv(args.out / 'table1.csv', table)
    for line in table:
        cells = (f'{line[key]:8.3f} ± {line[f"{key}_95"]:.3f}' for key in SHOWN[:3])
        print(f'{line["world"]:8} {line["method"]:22}', *cells)


if __name__ == '__main__':
    main()

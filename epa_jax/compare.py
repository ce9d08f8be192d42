"""Several runs side by side: python -m epa_jax.compare RUN RUN ... --out FOLDER."""

import argparse

from epa_jax.commands import show_errors
from epa_jax.comparison import scatter, table
from epa_jax.comparison.figure import draw
from epa_jax.comparison.page import page
from epa_jax.comparison.runs import grouped, read_run
from epa_jax.storage import argument as local_path


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.compare',
        description='A table with intervals, training curves, points of what was measured, '
        'and an HTML report. Runs that '
        'differ in their seed alone become one column.',
    )
    add = parser.add_argument
    add('runs', nargs='+', type=local_path, help='run folders')
    add('--out', type=local_path, help='folder for table.csv, report.html and figures')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the table and writes the report."""
    args = arguments(argv)
    groups = grouped([read_run(folder) for folder in args.runs])
    print('\n'.join(table.text(groups)))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        figures = {'curves': draw(groups), 'scatter': scatter.draw(groups)}
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in drawn.items():
            figure.savefig(args.out / f'{name}.png')
        (args.out / 'table.csv').write_text(table.as_csv(groups), 'utf-8')
        (args.out / 'report.html').write_text(page(groups, drawn), 'utf-8')
        print(f'\nreport {args.out / "report.html"}')


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()

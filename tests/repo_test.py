"""The repository's own rules, checked on its text."""

import ast
import configparser
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from epa_jax import config

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / 'epa_jax'
MODULES = {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path
    for path in sorted(PACKAGE.rglob('*.py'))
    if path.name != '__init__.py'
}
EXPERIMENTS = sorted(p for p in (REPO / 'experiments').glob('*.py') if p.stem != '__init__')
PYTHONS = ('3.11', '3.12', '3.13')
LONGEST_FILE = 340

# module: the test that covers it, instead of a tests/<module>_test.py of its own
NO_TWIN = {
    'formats.files': 'formats/safetensors_test.py',
    'formats.gguf_spec': 'formats/gguf_file_test.py',
    'formats.gguf_tokenizer': 'formats/tokenizer_test.py',
    'models.flash_backward': 'models/flash_test.py',
    'losses.__main__': 'losses/main_test.py',
    'limits': 'config_test.py',
    'loop': 'train_test.py',
    'loss_config': 'config_test.py',
    'planning.abstract': 'plan_test.py',
    'planning.chips': 'planning/topology_test.py',
    'planning.compiled': 'plan_test.py',
    'planning.report': 'plan_test.py',
    'planning.roofline': 'plan_test.py',
    'programs': 'train_step_test.py',
    'schema': 'config_test.py',
    'types': 'train_step_test.py',
}
LOADS_CODE = {'pickle', 'cloudpickle', 'dill', 'joblib', 'shelve', 'torch'}
EXTRA = {
    'evals.harness': 'lm_eval',
    'lm_eval': 'lm_eval',
    'storage': 'gcs',
}  # may import what it installs
FLAGS = {'config', 'train', 'sweep', 'quickstart'}  # may import ml_collections


def documented_order() -> list[str]:
    """Module names in the order of the list in ARCHITECTURE.md."""
    text = (REPO / 'ARCHITECTURE.md').read_text()
    (block,) = (
        b for b in re.findall(r'```\n(.*?)```', text, re.S) if b.startswith('types')
    )
    names = []
    for line in block.splitlines():
        room, rest = line.split(maxsplit=1)
        if room.endswith('/'):
            names += [room.replace('/', '.') + name for name in rest.split()]
        else:
            names.append(room)
    return names


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, with the imported names appended."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports; a folder stands for its last module."""
    order = documented_order()
    found = set()
    for name in imports(path):
        top, _, inner = name.partition('.')
        if top != 'epa_jax':
            continue
        parts = inner.split('.')
        prefixes = ['.'.join(parts[:n]) for n in range(len(parts), 0, -1)]
        module = next((p for p in prefixes if p in MODULES), None)
        if module is None and (PACKAGE / parts[0]).is_dir():
            module = [m for m in order if m.startswith(f'{parts[0]}.')][-1]
        assert module, f'{path}: imports {name}; no module imports the package root'
        found.add(module)
    return found


def test_every_module_is_in_the_documented_order() -> None:
    order = documented_order()
    assert len(order) == len(set(order))
    assert set(MODULES) - set(order) == set(), 'name these in ARCHITECTURE.md'
    assert set(order) - set(MODULES) == set(), 'these are gone from epa_jax'


@pytest.mark.parametrize('module', MODULES)
def test_imports_go_only_to_earlier_lines(module: str) -> None:
    order = documented_order()
    earlier = order[: order.index(module)]
    assert imported_modules(MODULES[module]) <= set(earlier)


@pytest.mark.parametrize('init', sorted(PACKAGE.rglob('__init__.py')), ids=str)
def test_a_folder_exports_only_its_own(init: Path) -> None:
    room = init.parent.relative_to(PACKAGE).name
    assert all(module.startswith(f'{room}.') for module in imported_modules(init))


def test_losses_know_neither_data_nor_model_files() -> None:
    for module in (m for m in MODULES if m.startswith('losses.')):
        allowed = ('types', 'schema', 'config', 'storage', 'losses.')
        assert all(m.startswith(allowed) for m in imported_modules(MODULES[module])), module


def test_only_config_and_experiments_know_ml_collections() -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split('.')[0] == 'ml_collections' for name in imports(path))
    }
    assert users <= FLAGS


@pytest.mark.parametrize('module', MODULES)
def test_nothing_loads_code_with_data(module: str) -> None:
    assert not {name.split('.')[0] for name in imports(MODULES[module])} & LOADS_CODE
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.keyword):
            assert node.arg not in ('trust_remote_code', 'allow_pickle'), node.value.lineno


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_builds(path: Path) -> None:
    experiment = runpy.run_path(str(path))
    run = config.resolve(experiment['get_config']())
    assert run.workdir.startswith('runs/')
    assert f'--config=experiments/{path.name}' in experiment['__doc__']
    for word in ('Claim:', 'Data:', 'Model:', 'Hardware'):
        assert word in experiment['__doc__'], word


def test_experiments_write_to_different_folders() -> None:
    folders = [re.findall(r"workdir = '(.*)'", path.read_text()) for path in EXPERIMENTS]
    assert len({name for found in folders for name in found}) == len(EXPERIMENTS)


def python_files() -> list[Path]:
    roots = ('epa_jax', 'benchmarks', 'experiments', 'tests')
    return [path for root in roots for path in sorted((REPO / root).rglob('*.py'))]


def test_files_are_short() -> None:
    lines = {str(p.relative_to(REPO)): p.read_text().count('\n') for p in python_files()}
    assert {name: n for name, n in lines.items() if n > LONGEST_FILE} == {}


def test_no_file_names_somebody_s_home() -> None:
    home = re.compile(r'/(?:root|home|Users)/\w')
    assert [str(p) for p in python_files() if home.search(p.read_text())] == []


def test_every_module_has_a_docstring() -> None:
    paths = [*MODULES.values(), *PACKAGE.rglob('__init__.py')]
    assert [str(p) for p in paths if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_every_module_has_a_test_twin() -> None:
    missing = {
        module
        for module in MODULES
        if not (REPO / 'tests' / f'{module.replace(".", "/")}_test.py').is_file()
    }
    assert missing - set(NO_TWIN) == set(), 'write tests/<module>_test.py for these'
    assert set(NO_TWIN) - missing == set(), 'these have one: take them out of NO_TWIN'
    for covering in NO_TWIN.values():
        assert (REPO / 'tests' / covering).is_file(), covering


@pytest.fixture(scope='module')
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPO / 'setup.cfg')
    return parser


def requirements(setup_cfg: configparser.ConfigParser) -> list[Requirement]:
    extras = setup_cfg['options.extras_require']
    assert set(extras) == {
        'tpu', 'cuda12', 'cuda13', 'lm_eval', 'notebook', 'test', 'parity', 'alpaca_eval',
        'plan', 'gcs',
    }  # fmt: skip
    unpinned = ('parity', 'alpaca_eval', 'notebook')
    groups = [text for name, text in extras.items() if name not in unpinned]
    groups.append(setup_cfg['options']['install_requires'])
    lines = [line for text in groups for line in text.strip().splitlines()]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize('python', PYTHONS)
def test_constraints_pin_what_setup_cfg_allows(
    setup_cfg: configparser.ConfigParser, python: str
) -> None:
    pins = {}
    for line in (REPO / 'constraints.txt').read_text().splitlines():
        if line.startswith('#'):
            continue
        pin = Requirement(line)
        here = {'python_version': python, 'python_full_version': f'{python}.0'}
        if pin.marker is None or pin.marker.evaluate({**here, 'sys_platform': 'linux'}):
            name = canonicalize_name(pin.name)
            assert name not in pins, f'{name} is pinned twice for Python {python}'
            (specifier,) = pin.specifier
            assert specifier.operator == '=='
            pins[name] = specifier.version
    for requirement in requirements(setup_cfg):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f'{requirement}: {version} pinned'


def test_every_import_is_a_stated_requirement(
    setup_cfg: configparser.ConfigParser,
) -> None:
    extras = setup_cfg['options.extras_require']
    distribution = {'absl': 'absl-py', 'orbax': 'orbax-checkpoint'}
    distribution |= {'aiohttp': 'gcsfs', 'google': 'gcsfs'}  # which cannot do without

    def names(text: str) -> set[str]:
        lines = text.strip().splitlines()
        return {canonicalize_name(Requirement(line).name) for line in lines}

    for module, path in MODULES.items():
        tops = {name.split('.')[0] for name in imports(path)} - {'epa_jax'}
        tops -= sys.stdlib_module_names
        found = {canonicalize_name(distribution.get(top, top)) for top in tops}
        stated = names(setup_cfg['options']['install_requires'])
        stated |= names(extras[EXTRA[module]]) if module in EXTRA else set()
        assert found <= stated, f'{module} imports {found - stated}'


def test_every_place_names_the_same_pythons(setup_cfg: configparser.ConfigParser) -> None:
    assert setup_cfg['options']['python_requires'] == '>=3.11,<3.14'
    classifiers = setup_cfg['metadata']['classifiers']
    assert tuple(re.findall(r'Python :: (3\.\d+)', classifiers)) == PYTHONS
    (minors,) = re.findall(r"^MINORS='(.*)'", (REPO / 'setup_env.sh').read_text(), re.M)
    assert tuple(f'3.{m}' for m in reversed(minors.split())) == PYTHONS

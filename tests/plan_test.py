"""Plans for 8 fake devices: sizes against sums of bytes, and what the text says."""

import json

import pytest

from epa_jax import plan as plan_lib
from epa_jax import prepare
from epa_jax.config import ConfigError
from epa_jax.data.load import load_datasets
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.transformer import num_params
from epa_jax.planning import abstract, compiled, report, roofline
from epa_jax.planning.topology import devices, parse
from tests import planned, small_run, tiny

CPU = parse('cpu-8')


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
    run = planned.config(tmp_path_factory.mktemp('plan'))
    return plan_lib.plan(run, CPU)


def test_memory_is_the_sum_of_bytes(plan):
    """Parameters and gradients once, moments twice, all split over 8 devices."""
    memory, count = plan['memory'], num_params(tiny.SPEC)
    norms = 3 * 2 * 16 + 16  # whole on every device
    own = 4 * ((count - norms) // 8 + norms)
    assert memory['parameters'] == own
    assert memory['optimizer'] == pytest.approx(2 * own, abs=16)  # and counters
    update = memory['programs']['update']
    assert update['arguments'] == pytest.approx(4 * own, rel=0.02)
    assert update['outputs'] < 0.1 * update['arguments']  # the state is written over
    assert update['beside'] == 0
    accumulate = memory['programs']['accumulate']
    assert accumulate['beside'] == pytest.approx(2 * own, abs=32)
    assert accumulate['donated'] >= own
    for program in (update, accumulate):
        parts = ('arguments', 'outputs', 'temporaries', 'code', 'beside')
        assert program['peak'] == sum(program[part] for part in parts)


def test_the_step_gathers_its_weights_in_the_loop_over_layers(plan):
    gathers = [c for c in plan['collectives'] if c['kind'] == 'all-gather']
    in_loops = sum(c['count'] for c in gathers if c['in_loop'] and c['program'] != 'update')
    assert in_loops >= tiny.SPEC.n_layers * 7  # seven matrices, forward at least


def test_a_step_and_a_run_add_up(plan):
    work, cost, roof = plan['work'], plan['cost'], plan['roofline']
    assert work['micro_batches'] == 2  # 32 prompts of 60 tokens, 2 in each of 8 rows
    assert work['steps'] == 10
    assert cost['step_seconds'] == pytest.approx(roof['least'] / 0.6)
    assert cost['tokens_per_second'] == pytest.approx(32 * 60 / cost['step_seconds'])
    assert cost['hours'] == pytest.approx(10 * cost['step_seconds'] / 3600)
    peak = 8 * CPU.chip.flops * cost['step_seconds']
    assert cost['mfu'] == pytest.approx(roof['model_flops'] / peak)
    assert roof['executed_flops'] > roof['model_flops']
    assert cost['dollars'] == 0


def test_the_text_names_what_a_reader_asks(plan):
    text = report.render(plan, 2.0, 0.6, listed=True)
    for words in ('cpu-8 (8 devices: data 1, fsdp 8', 'accumulate', 'all-gather', 'binds',
                  'tokens/s', 'US dollars', 'at 60% of every peak (assumed)'):  # fmt: skip
        assert words in text, words
    assert json.loads(json.dumps(plan)) == plan


def test_a_price_is_of_the_list_or_the_reader_s(plan):
    assert 'chips x 2.00 (on-demand list prices' in report.render(plan, 2.0, 0.6, True)
    own = report.render(plan, 2.0, 0.6, listed=False)
    assert 'chips x 2.00 (--price)' in own
    assert 'list price' not in own


def test_a_plan_has_the_shapes_and_programs_of_training(tmp_path):
    """`prepare` loads weights and data; shapes alone must give the same step."""
    small_run.write(tmp_path)
    run = small_run.config(tmp_path)
    from_shapes = abstract.abstract_run(run, devices(CPU))
    tokenizer = load_tokenizer(run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=1)
    job = prepare.prepare(run, datasets, tokenizer)
    assert from_shapes.state == job.abstract
    assert from_shapes.work.layout == job.batches.train.preference.layout
    batch = job.programs.place(next(job.batches.train.steps()).preference[0])
    (call,) = [c for c in from_shapes.calls if c.name == 'accumulate']
    given = (job.programs.zero(), job.abstract.params, job.frozen, batch)
    theirs = job.programs.accumulate.lower(*given).as_text()
    assert call.function.lower(*call.args).as_text() == theirs


def test_adapters_have_no_gradients_of_their_base(tmp_path):
    whole = abstract.abstract_run(planned.config(tmp_path), devices(CPU))
    run = planned.config(tmp_path, lora__rank=2, reference__mode='in_step')
    lora = abstract.abstract_run(run, devices(CPU))
    assert lora.reference_in_step
    assert lora.frozen.reference is None  # it is the base
    base = abstract.device_bytes(lora.frozen.base)
    assert base == abstract.device_bytes(whole.state.params)
    adapters = abstract.device_bytes(lora.state.params)
    assert abstract.device_bytes(lora.state.opt_state) == pytest.approx(
        2 * adapters, abs=16
    )
    assert roofline.step_flops(lora)[0] < 1.4 * roofline.step_flops(whole)[0]


def test_coupled_losses_and_text_have_programs_of_their_own(tmp_path):
    run = planned.config(
        tmp_path, loss__name='bco', sft__train='text', plan__sft_tokens=50, sft__sequences=4
    )
    calls = abstract.abstract_run(run, devices(CPU)).calls
    assert [call.name for call in calls] == ['table', 'pull', 'imitate', 'update']
    for call in calls[:2]:
        call.function.lower(*call.args)  # shapes agree


def test_a_refusal_for_memory_says_how_much():
    words = (
        'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.50G of 15.75G '
        'hbm. Exceeded hbm capacity by 15.75G.'
    )
    assert compiled.out_of_memory(words) == int(31.5 * 2**30)
    words = (
        'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total '
        'memory required for HLO temporaries (192.00G) exceeds available HBM (15.75G).'
    )
    assert compiled.out_of_memory(words) == 192 * 2**30
    assert compiled.out_of_memory('INTERNAL: something else') is None


def test_an_architecture_must_be_somewhere(tmp_path):
    run = planned.config(tmp_path, plan__architecture='')
    with pytest.raises(ConfigError, match=r'plan\.architecture=FILE'):
        abstract.spec_of(run)


@pytest.mark.parametrize(
    ('count', 'text'),
    [(12, '12 B'), (4096, '4.1 kB'), (3.2e6, '3.2 MB'), (7.245e9, '7.25 GB')],
)
def test_sizes_are_readable(count, text):
    assert report.size(count) == text

"""The scripts for queued resources, against a stub of gcloud."""

import shlex
import shutil

import pytest

from tests.tpu_scripts import cloud as lib
from tests.tpu_scripts.cloud import NAMED, NO_SLICE, QUICK, SLICE, TRAIN, Cloud, state


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def command_of(words):
    (found,) = (w for w in words if w.startswith('--command='))
    return found.removeprefix('--command=')


def test_create_asks_and_waits_until_active(cloud):
    waiting = [state(s) for s in ('ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING')]
    cloud.answer(describe=[NO_SLICE, *waiting, state('ACTIVE')])
    cloud.run('create.sh', *SLICE, *QUICK, '--project=p', '--capacity=spot')
    assert cloud.kinds() == ['describe', 'create', *['describe'] * 4]
    asked = cloud.calls()[1]
    assert asked[5] == 'slice'
    assert set(asked[6:]) == {
        '--accelerator-type=v5litepod-16', '--runtime-version=v2-alpha-tpuv5-lite',
        '--node-id=slice', '--spot', '--zone=us-west4-a', '--project=p',
    }  # fmt: skip
    for words in cloud.calls():
        lib.check_flags(words)


@pytest.mark.parametrize(
    ('options', 'flags'),
    [
        (['--type=v5p-8', '--capacity=reserved'],
         ['--accelerator-type=v5p-8', '--runtime-version=v2-alpha-tpuv5', '--reserved']),
        (['--type=v6e-8', '--slices=2'],
         ['--runtime-version=v2-alpha-tpuv6e', '--node-count=2', '--node-prefix=slice']),
        (['--type=v4-32', '--runtime=mine', '--valid-until=6h', '--network=n',
          '--subnetwork=s', '--service-account=a@b'],
         ['--runtime-version=mine', '--valid-until-duration=6h', '--network=n',
          '--subnetwork=s', '--service-account=a@b']),
    ],
)  # fmt: skip
def test_create_passes_what_is_asked_for(cloud, options, flags):
    cloud.answer(describe=[NO_SLICE, state('ACTIVE')])
    cloud.run('create.sh', *NAMED, *QUICK, *options)
    asked = cloud.calls()[1]
    lib.check_flags(asked)
    assert set(flags) <= set(asked)
    assert ('--node-id=slice' in asked) == ('--slices=2' not in options)
    assert '--spot' not in asked


def test_create_waits_for_one_that_is_there(cloud):
    cloud.answer(describe=[state('PROVISIONING'), state('ACTIVE')])
    cloud.run('create.sh', *SLICE, *QUICK)
    assert cloud.kinds() == ['describe', 'describe']


@pytest.mark.parametrize('broken', ['FAILED', 'SUSPENDED', 'SUSPENDING', 'DELETING'])
def test_create_refuses_one_that_is_lost(cloud, broken):
    cloud.answer(describe=[state(broken)])
    _, error = cloud.run('create.sh', *SLICE, *QUICK, code=1)
    assert f'slice is {broken}' in error
    assert 'teardown.sh' in error
    assert cloud.kinds() == ['describe']


def test_create_says_how_to_learn_why_it_failed(cloud):
    cloud.answer(describe=[NO_SLICE, state('FAILED')])
    _, error = cloud.run('create.sh', *SLICE, *QUICK, code=1)
    assert 'queued-resources describe slice --zone=us-west4-a' in error


def test_a_wait_ends(cloud):
    cloud.answer(describe=[state('WAITING_FOR_RESOURCES')])
    _, error = cloud.run('create.sh', *SLICE, *QUICK, '--wait-minutes=0', code=1)
    assert 'still WAITING_FOR_RESOURCES after 0 minutes' in error


def test_an_unreachable_cloud_is_asked_again(cloud):
    cloud.answer(describe=[[1, '', 'ERROR: timed out\n'], state('ACTIVE')])
    cloud.run('create.sh', *SLICE, *QUICK)
    assert cloud.kinds() == ['describe', 'describe', 'describe']


@pytest.mark.parametrize(
    ('error', 'asked'), [('ERROR: timed out', 2), ('ERROR: PERMISSION_DENIED: no', 1)]
)
def test_gcloud_s_own_words_are_shown(cloud, error, asked):
    cloud.answer(describe=[[1, '', f'{error}\n']])
    _, shown = cloud.run('create.sh', *SLICE, *QUICK, code=1)
    assert f'cannot ask for the state of slice: {error}' in shown
    assert cloud.kinds() == ['describe'] * asked


def test_set_up_copies_the_commit_to_all_workers_and_installs(cloud):
    cloud.run('setup.sh', *NAMED, *QUICK)
    assert cloud.kinds() == ['scp', 'ssh install']
    copied, installed = cloud.calls()
    assert copied[6] == 'slice:epa_jax.bundle'
    for words in (copied, installed):
        lib.check_flags(words)
        assert {'--node=all', '--worker=all'} <= set(words)


def test_set_up_tries_a_worker_that_does_not_answer_again(cloud):
    down = [255, '', 'ssh: connect to host 1.2.3.4 port 22: Connection refused\n']
    cloud.answer(scp=[down, [0, '', '']], ssh_install=[down, [0, '', '']])
    cloud.run('setup.sh', *NAMED, *QUICK)
    assert cloud.kinds() == ['scp', 'scp', 'ssh install', 'ssh install']
    cloud.answer(scp=[down])
    _, error = cloud.run('setup.sh', *NAMED, *QUICK, code=1)
    assert 'not installed on every worker of slice' in error


def test_launch_hands_the_command_over_as_it_is(cloud):
    cloud.run('launch.sh', *NAMED, *QUICK, '--', *TRAIN)
    (words,) = cloud.calls()
    lib.check_flags(words)
    assert {'--node=all', '--worker=all'} <= set(words)
    remote = shlex.split(command_of(words))
    assert remote[:3] == ['bash', 'epa_jax/tpu_scripts/worker.sh', 'start']
    assert tuple(remote[4:]) == TRAIN


def test_launch_starts_on_all_workers_or_none(cloud):
    cloud.answer(ssh_start=[[1, '', 'one of the workers: Connection timed out\n']])
    _, error = cloud.run('launch.sh', *NAMED, *QUICK, '--', *TRAIN, code=1)
    assert 'not started on every worker of slice, and stopped on the others' in error
    assert cloud.kinds() == ['ssh start', 'ssh start', 'ssh stop']
    first, second, _ = cloud.calls()
    assert first == second  # the same id: a worker that has begun does not begin again


def test_watch_shows_states_and_the_log(cloud):
    cloud.run('watch.sh', *NAMED, '--worker=3', '--lines=9', '--follow')
    status, log = cloud.calls()
    assert command_of(status).endswith('worker.sh status')
    assert command_of(log).endswith('worker.sh log 9 follow')
    assert {'--node=0', '--worker=3'} <= set(log)
    lib.check_flags(log)


def test_collect_copies_results_and_logs(cloud, tmp_path):
    out = tmp_path / 'results'
    run = '--workdir=gs://bucket/runs/first/'
    cloud.run('collect.sh', run, f'--out={out}', *NAMED, '--workers=2')
    copy, *logs = cloud.calls()
    assert copy[:5] == ['gcloud', 'storage', 'rsync', 'gs://bucket/runs/first', str(out)]
    assert '--exclude=^checkpoints/.*' in copy
    assert [words[6] for words in logs] == [f'{out}/worker-{i}.log' for i in range(2)]
    for words in cloud.calls():
        lib.check_flags(words)
    cloud.run('collect.sh', run, f'--out={out}', '--checkpoints', EPA_NAME='slice')
    assert not any(word.startswith('--exclude') for word in cloud.calls()[-1])


def test_teardown_deletes_and_looks_that_it_is_gone(cloud):
    cloud.answer(describe=[state('ACTIVE'), NO_SLICE])
    cloud.run('teardown.sh', *NAMED, *QUICK)
    assert cloud.kinds() == ['describe', 'delete', 'describe']


def test_teardown_of_nothing_is_no_error(cloud):
    cloud.answer(describe=[NO_SLICE])
    _, error = cloud.run('teardown.sh', *NAMED, *QUICK)
    assert 'nothing to delete' in error
    assert cloud.kinds() == ['describe']


@pytest.mark.parametrize('answers', [{'delete': [[1, '', 'no\n']]}, {}])
def test_a_slice_that_may_still_cost_money_is_an_error(cloud, answers):
    cloud.answer(describe=[state('ACTIVE')], **answers)
    _, error = cloud.run('teardown.sh', *NAMED, *QUICK, code=1)
    assert 'run this again' in error


@pytest.mark.parametrize(
    ('script', 'arguments'),
    [
        ('create.sh', [*SLICE, '--capacity=spot']),
        ('setup.sh', [*NAMED]),
        ('launch.sh', [*NAMED, '--', *TRAIN]),
        ('watch.sh', [*NAMED, '--follow']),
        ('resume.sh', [*SLICE, '--', *TRAIN]),
        ('collect.sh', ['--workdir=gs://bucket/a', '--out=a b', '--workers=2', *NAMED]),
        ('teardown.sh', [*NAMED]),
    ],
)
def test_a_dry_run_prints_the_commands_and_runs_none(cloud, script, arguments, tmp_path):
    dry = [arguments[0], '--dry-run', *arguments[1:]]
    out, _ = cloud.run(script, *dry, PATH=f'{system_path()}:{tmp_path}')
    commands = lib.printed(out)
    assert commands
    assert not (tmp_path / 'calls.jsonl').exists()
    for words in commands:
        if words[0] == 'gcloud':
            lib.check_flags(words)
    if arguments[-1] == TRAIN[-1]:
        (started,) = (w for w in commands if w[0] == 'gcloud' and ' start ' in ' '.join(w))
        assert tuple(shlex.split(command_of(started))[4:]) == TRAIN


def system_path():
    """Where bash's own tools are; neither gcloud nor its stub need be there."""
    return ':'.join(
        {str(shutil.which(t)).rpartition('/')[0] for t in ('bash', 'sed', 'git')}
    )


@pytest.mark.parametrize(
    ('script', 'arguments', 'wrong'),
    [
        ('create.sh', ['--nmae=x'], '--nmae: no such option'),
        ('create.sh', ['--name'], '--name: needs a value'),
        ('create.sh', ['--name='], '--name: empty'),
        ('create.sh', ['slice'], 'slice: not an option'),
        ('create.sh', ['--zone=z'], '--name is missing'),
        ('create.sh', [*NAMED], '--type is missing'),
        ('create.sh', ['--name=A_b', '--zone=z'], 'A_b: expected lower-case'),
        ('create.sh', [*NAMED, '--type=h100'], '--type=h100: expected such as'),
        ('create.sh', [*SLICE, '--capacity=cheap'], '--capacity=cheap: expected spot'),
        ('create.sh', [*SLICE, '--slices=x'], '--slices=x: expected a whole number'),
        ('create.sh', [*SLICE, '--slices=0'], '--slices=0: expected 1'),
        ('launch.sh', [*NAMED], 'no command'),
        ('launch.sh', [*NAMED, '--retries=3', '--', 'x'], '--retries: no such option'),
        ('watch.sh', [*NAMED, '--follow=1'], '--follow=1: takes no value'),
        ('collect.sh', ['--workdir=runs/x', '--out=o'], 'expected a folder in a bucket'),
        ('collect.sh', ['--workdir=gs://bucket', '--out=o'], 'expected a folder in a'),
    ],
)
def test_mistakes_are_named_and_nothing_is_run(cloud, script, arguments, wrong, tmp_path):
    _, error = cloud.run(script, *arguments, code=2)
    assert wrong in error
    assert f'see {script} --help' in error
    assert not (tmp_path / 'calls.jsonl').exists()


def test_settings_come_from_the_environment_too(cloud):
    cloud.answer(describe=[NO_SLICE, state('ACTIVE')])
    settings = {'NAME': 'other', 'ZONE': 'z', 'PROJECT': 'p', 'TYPE': 'v5p-8'}
    env = {f'EPA_{key}': value for key, value in settings.items()}
    cloud.run('create.sh', '--poll', '0', EPA_CAPACITY='spot', **env)
    asked = cloud.calls()[1]
    assert {'other', '--zone=z', '--project=p', '--spot'} <= set(asked)


def test_a_missing_tool_is_named(cloud, tmp_path):
    empty = tmp_path / 'tools'
    empty.mkdir()
    for tool in ('bash', 'dirname', 'sed'):
        (empty / tool).symlink_to(str(shutil.which(tool)))
    _, error = cloud.run('launch.sh', *NAMED, '--', 'x', code=1, PATH=str(empty))
    assert 'gcloud is not installed; see docs/tpu.md' in error

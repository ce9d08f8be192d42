"""gke.sh, against stubs of xpk, gcloud and kubectl."""

import shlex

import pytest

from tests.tpu_scripts import cloud as lib
from tests.tpu_scripts.cloud import SCRIPTS, Cloud

CLUSTER = ('--cluster=pod', '--zone=us-west4-a', '--project=p')
WORKLOAD = (*CLUSTER, '--workload=first')
TRAIN = ('python', '-m', 'epa_jax.train', '--config.data.system_prompt=Be "good"')


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def called(cloud):
    for words in cloud.calls():
        lib.check_flags(words)
    return cloud.calls()


@pytest.mark.parametrize(
    ('capacity', 'flag'),
    [
        (['--capacity=spot'], '--spot'),
        ([], '--on-demand'),
        (['--capacity=reserved', '--reservation=mine'], '--reservation=mine'),
    ],
)
def test_create_makes_a_cluster(cloud, capacity, flag):
    cloud.run('gke.sh', 'create', *CLUSTER, '--type=v5e-16', '--slices=2', *capacity)
    (words,) = called(cloud)
    assert words[:3] == ['xpk', 'cluster', 'create']
    assert set(words[3:]) == {
        *CLUSTER, flag, '--tpu-type=v5litepod-16', '--num-slices=2',
    }  # fmt: skip


def test_launch_runs_again_after_75(cloud):
    cloud.run('gke.sh', 'launch', *WORKLOAD, '--type=v5p-8', '--retries=7', '--', *TRAIN)
    (words,) = called(cloud)
    assert words[:3] == ['xpk', 'workload', 'create']
    assert {
        *WORKLOAD, '--tpu-type=v5p-8', '--restart-on-exit-codes=75', '--max-restarts=7',
        f'--script-dir={SCRIPTS.parent}',
    } <= set(words)  # fmt: skip
    (command,) = (w for w in words if w.startswith('--command='))
    install, _, run = command.partition(' && exec ')
    assert '.[tpu]' in install
    assert tuple(shlex.split(run)) == TRAIN


def test_resume_deletes_the_old_workload_first(cloud):
    arguments = (*WORKLOAD, '--type=v5p-8', '--', *TRAIN)
    cloud.run('gke.sh', 'resume', *arguments)
    assert cloud.kinds() == ['workload delete', 'workload create']
    cloud.answer(workload_delete=[[1, '', 'no such workload\n']])
    cloud.run('gke.sh', 'resume', *arguments)
    assert cloud.kinds()[2:] == ['workload delete', 'workload create']
    called(cloud)


def test_watch_reads_the_logs_of_all_pods(cloud):
    cloud.run('gke.sh', 'watch', *WORKLOAD, '--follow', '--lines=7')
    login, logs = called(cloud)
    assert login[:5] == ['gcloud', 'container', 'clusters', 'get-credentials', 'pod']
    assert '--location=us-west4' in login
    assert '--selector=jobset.sigs.k8s.io/jobset-name=first' in logs
    assert {'--follow', '--tail=7'} <= set(logs)


@pytest.mark.parametrize(
    ('action', 'kind', 'flag'),
    [
        ('status', 'workload list', '--filter-by-job=first'),
        ('wait', 'workload list', '--wait-for-job-completion=first'),
        ('stop', 'workload delete', '--workload=first'),
    ],
)
def test_what_is_done_with_a_workload(cloud, action, kind, flag):
    cloud.run('gke.sh', action, *WORKLOAD)
    assert cloud.kinds() == [kind]
    assert flag in called(cloud)[0]


def test_a_failure_of_xpk_is_handed_on(cloud):
    cloud.answer(workload_list=[[125, '', 'failed\n']])
    cloud.run('gke.sh', 'wait', *WORKLOAD, code=125)


def test_teardown_deletes_the_cluster(cloud):
    cloud.run('gke.sh', 'teardown', *CLUSTER)
    assert cloud.kinds() == ['cluster delete']
    called(cloud)


def test_collect_is_that_of_slices(cloud, tmp_path):
    cloud.run('gke.sh', 'collect', '--workdir=gs://b/r', f'--out={tmp_path / "r"}')
    assert cloud.kinds() == ['storage rsync']


@pytest.mark.parametrize('action', ['create', 'launch', 'resume', 'status', 'watch', 'wait',
                                    'stop', 'teardown', 'collect'])  # fmt: skip
def test_a_dry_run_prints_the_commands_and_runs_none(cloud, action, tmp_path):
    arguments = list(CLUSTER if action in ('create', 'teardown') else WORKLOAD)
    if action in ('create', 'launch', 'resume'):
        arguments.append('--type=v5e-16')
    if action == 'collect':
        arguments = ['--workdir=gs://b/r', '--out=o']
    command = ['--', *TRAIN] if action in ('launch', 'resume') else []
    out, _ = cloud.run('gke.sh', action, *arguments, '--dry-run', *command)
    assert not (tmp_path / 'calls.jsonl').exists()
    commands = [words for words in lib.printed(out) if words[0] != 'mkdir']
    assert commands
    for words in commands:
        lib.check_flags(words)


@pytest.mark.parametrize(
    ('arguments', 'wrong'),
    [
        ([], 'nothing: expected create'),
        (['begin'], 'begin: expected create'),
        (['create', *CLUSTER], '--type is missing'),
        (['create', *CLUSTER, '--type=v5e-16', '--capacity=reserved'],
         '--reservation is missing'),
        (['launch', *WORKLOAD, '--type=v5e-16'], 'no command'),
        (['launch', *CLUSTER, '--type=v5e-16', '--', 'x'], '--workload is missing'),
        (['status', *WORKLOAD, '--lines=3'], '--lines: no such option'),
        (['stop', '--cluster=pod', '--workload=first'], '--zone is missing'),
    ],
)  # fmt: skip
def test_mistakes_are_named(cloud, arguments, wrong):
    assert wrong in cloud.run('gke.sh', *arguments, code=2)[1]

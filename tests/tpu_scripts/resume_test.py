"""resume.sh against a stub of gcloud: preemptions, failures, workers that do not answer."""

import pytest

from tests.tpu_scripts import cloud as lib
from tests.tpu_scripts.cloud import NO_SLICE, QUICK, SLICE, TRAIN, Cloud, state, workers

RESUME = ('resume.sh', *SLICE, *QUICK, '--capacity=spot')
ROUND = ['scp', 'ssh install', 'ssh start']  # what follows a slice


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def test_resume_goes_from_nothing_to_the_end(cloud):
    cloud.answer(
        describe=[NO_SLICE, NO_SLICE, state('ACTIVE')],
        ssh_status=[workers(*['running'] * 4), workers('0', 'running', '0', '0'),
                    workers('0', '0', '0', '0')],
    )  # fmt: skip
    _, error = cloud.run(*RESUME, '--', *TRAIN)
    assert 'finished' in error
    assert cloud.kinds() == [
        'describe', 'describe', 'create', 'describe', *ROUND,
        'ssh status', 'describe', 'ssh status', 'describe', 'ssh status',
    ]  # fmt: skip
    for words in cloud.calls():
        lib.check_flags(words)


def test_resume_makes_a_slice_that_was_taken_away_anew(cloud):
    cloud.answer(
        describe=[state('ACTIVE')] * 3 + [state('SUSPENDING'), state('SUSPENDED'),
                                          state('ACTIVE')],
        ssh_status=[workers('none'), workers('running'), workers('0')],
    )  # fmt: skip
    cloud.run(*RESUME, '--', *TRAIN)
    assert cloud.kinds() == [
        'describe', 'ssh status',  # nothing to join
        'describe', 'describe', *ROUND, 'ssh status', 'describe',
        'describe', 'delete', 'create', 'describe', *ROUND, 'ssh status',
    ]  # fmt: skip
    deleted = cloud.calls()[cloud.kinds().index('delete')]
    assert {'--force', '--quiet'} <= set(deleted)
    lib.check_flags(deleted)


@pytest.mark.parametrize('codes', [('75', '134'), ('134', '134')])
def test_resume_runs_again_where_the_run_left_with_75_or_134(cloud, codes):
    cloud.answer(
        describe=[state('ACTIVE')],
        ssh_status=[workers('none', 'none'), workers(*codes), workers('0', '0')],
    )
    _, error = cloud.run(*RESUME, '--', *TRAIN)
    assert 'preempted (0 times before)' in error
    assert cloud.kinds().count('ssh start') == 2
    assert 'create' not in cloud.kinds()


def test_resume_gives_up_after_so_many_preemptions(cloud):
    cloud.answer(describe=[state('ACTIVE')], ssh_status=[workers('75')])
    _, error = cloud.run(*RESUME, '--retries=2', '--', *TRAIN, code=75)
    assert 'more than 2 times' in error
    assert cloud.kinds().count('ssh start') == 3


@pytest.mark.parametrize('codes', [('1', '134'), ('75', '1')])
def test_a_run_that_fails_is_not_run_again(cloud, codes):
    cloud.answer(
        describe=[state('ACTIVE')],
        ssh_status=[workers('none', 'none'), workers(*codes)],
    )
    _, error = cloud.run(*RESUME, '--', *TRAIN, code=1)
    assert 'the run failed with 1;' in error
    assert 'watch.sh --name=slice' in error
    assert cloud.kinds().count('ssh start') == 1
    assert 'delete' not in cloud.kinds()


def test_failures_on_a_slice_on_its_way_out_are_a_preemption(cloud):
    cloud.answer(
        describe=[state('ACTIVE')] * 3 + [state('SUSPENDED'), state('SUSPENDED'),
                                          state('ACTIVE')],
        ssh_status=[workers('none', 'none'), workers('134', '134'), workers('0', '0')],
    )  # fmt: skip
    cloud.run(*RESUME, '--', *TRAIN)
    assert cloud.kinds().count('create') == 1
    assert cloud.kinds().count('ssh start') == 2


def test_a_worker_that_was_rebooted_runs_again(cloud):
    cloud.answer(
        describe=[state('ACTIVE')],
        ssh_status=[workers('none'), workers('killed', '1'), workers('0', '0')],
    )
    cloud.run(*RESUME, '--', *TRAIN)
    assert cloud.kinds().count('ssh start') == 2


def test_workers_that_run_on_alone_are_stopped(cloud):
    cloud.answer(
        describe=[state('ACTIVE')],
        ssh_status=[workers('none', 'none'), workers('running', '1')],
    )
    cloud.run(*RESUME, '--grace=2', '--', *TRAIN, code=1)
    assert cloud.kinds().count('ssh stop') == 1
    assert cloud.kinds().count('ssh status') == 4


def test_workers_that_do_not_answer_end_the_watch(cloud):
    cloud.answer(
        describe=[state('ACTIVE')], ssh_status=[workers('none'), [255, '', 'timed out\n']]
    )
    _, error = cloud.run(*RESUME, '--', *TRAIN, code=1)
    assert 'slice is ACTIVE but its workers do not answer' in error


def test_a_worker_that_does_not_answer_for_a_while_is_no_failure(cloud):
    cloud.answer(
        describe=[state('ACTIVE')],
        ssh_status=[workers('none'), [255, '', 'timed out\n'], workers('0')],
    )
    cloud.run(*RESUME, '--', *TRAIN)
    assert cloud.kinds().count('ssh start') == 1


def test_resume_joins_a_run_that_goes_on(cloud):
    running = workers('running', 'running')
    cloud.answer(describe=[state('ACTIVE')], ssh_status=[running, running, workers('0')])
    cloud.run(*RESUME, '--', *TRAIN)
    assert 'ssh start' not in cloud.kinds()
    assert 'scp' not in cloud.kinds()


def test_restart_stops_what_runs(cloud):
    cloud.answer(describe=[state('ACTIVE')], ssh_status=[workers('0')])
    cloud.run(*RESUME, '--restart', '--', *TRAIN)
    kinds = cloud.kinds()
    assert kinds.index('ssh stop') + 1 == kinds.index('ssh start')


def test_a_slice_that_cannot_be_had_ends_the_run(cloud):
    cloud.answer(describe=[state('FAILED')])
    _, error = cloud.run(*RESUME, '--', *TRAIN, code=1)
    assert 'slice cannot be had' in error
    assert cloud.kinds().count('create') == 2  # --tries


def test_quota_errors_of_create_are_shown_and_end_it(cloud):
    refused = [1, '', 'ERROR: RESOURCE_EXHAUSTED: Quota limit TPUV5sLitepod exceeded\n']
    cloud.answer(describe=[NO_SLICE], create=[refused])
    _, error = cloud.run(*RESUME, '--', *TRAIN, code=1)
    assert 'Quota limit TPUV5sLitepod exceeded' in error
    assert cloud.kinds().count('create') == 1


def test_a_workdir_on_the_slice_is_warned_of(cloud):
    cloud.answer(describe=[state('ACTIVE')], ssh_status=[workers('0')])
    _, error = cloud.run(*RESUME, '--', 'python', 'x.py')
    assert 'no workdir=gs://' in error
    _, error = cloud.run(*RESUME, '--', *TRAIN)
    assert 'no workdir=gs://' not in error

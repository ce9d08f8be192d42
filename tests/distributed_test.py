import jax
import pytest

from epa_jax.config import ConfigError
from epa_jax.distributed import connect, lost_peer, own_part


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **keys: found.append(keys))
    return found


def test_the_environment_names_the_job(calls, monkeypatch):
    monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
    monkeypatch.setenv('JAX_PROCESS_ID', '0')
    connect(heartbeat_seconds=7)
    assert (calls[0]['num_processes'], calls[0]['process_id']) == (4, 0)
    assert calls[0]['heartbeat_timeout_seconds'] == 7


def test_what_it_does_not_name_is_left_to_jax(calls, monkeypatch):
    for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'):
        monkeypatch.delenv(name, raising=False)
    connect()
    assert calls[0]['num_processes'] is calls[0]['process_id'] is None


def test_a_number_that_is_none_is_named(calls, monkeypatch):
    monkeypatch.setenv('JAX_PROCESS_ID', 'first')
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID='first': expected a number"):
        connect()


@pytest.mark.parametrize('kind', [ValueError, RuntimeError])
def test_no_job_is_one_message_with_the_remedy(monkeypatch, kind):
    def refuse(**keys):
        raise kind('coordinator_address should be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', refuse)
    with pytest.raises(ConfigError, match=r'address should be defined\. .* leave --distr'):
        connect()


@pytest.mark.parametrize(
    ('processes', 'message', 'lost'),
    [
        (2, 'INTERNAL: Gloo AllGather failed: Connection reset by peer', True),
        (2, 'UNAVAILABLE: the coordinator', True),
        (2, 'RESOURCE_EXHAUSTED: Out of memory', False),
        (1, 'INTERNAL: something of our own', False),
    ],
)
def test_only_a_peer_can_be_lost(monkeypatch, processes, message, lost):
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    assert lost_peer(jax.errors.JaxRuntimeError(message)) is lost
    assert not lost_peer(RuntimeError(message))


@pytest.mark.parametrize(('count', 'processes'), [(10, 3), (2, 4), (0, 2), (7, 1)])
def test_parts_make_the_whole(monkeypatch, count, processes):
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    found = []
    for index in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
        part = range(count)[own_part(count)]
        assert len(part) in (count // processes, -(-count // processes))
        found += part
    assert found == list(range(count))

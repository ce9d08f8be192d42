"""Groups of devices against lists written by hand."""

import pytest

from epa_jax.planning.groups import first_group


@pytest.mark.parametrize(
    ('attributes', 'group'),
    [
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", [0, 4]),
        ('replica_groups=[4,2]<=[8]', [0, 1]),
        ('replica_groups=[4,2]<=[2,4]T(1,0)', [0, 4]),
        ('replica_groups={{1,3},{0,2}}', [1, 3]),
        ('source_target_pairs={{0,5},{5,0}}', [0, 5]),
        ('replica_groups={}', list(range(8))),
    ],
)
def test_groups_are_read_in_every_notation(attributes, group):
    assert first_group(attributes, 8) == group

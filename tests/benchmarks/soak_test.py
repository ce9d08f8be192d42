"""A long run holds memory flat, and ends in the same bits however it was cut."""

import pytest

from benchmarks import soak
from benchmarks.soak import MIB, compare, resident, rise


def test_the_rise_is_that_of_the_later_run_alone():
    start = [(i, i * 50 * MIB) for i in range(25)]  # fills caches, compiles
    flat = [(25 + i, (1000 + i % 3) * MIB) for i in range(75)]
    assert abs(rise(start + flat)) < 2
    leak = [(25 + i, (1000 + i) * MIB) for i in range(75)]
    assert rise(start + leak) == pytest.approx(50, abs=2)


def test_resident_memory_is_that_of_the_system():
    with open('/proc/self/status') as file:
        (line,) = (text for text in file if text.startswith('VmRSS'))
    assert resident() == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)


def test_a_folder_of_an_earlier_soak_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['soak', f'--folder={tmp_path}'])
    with pytest.raises(SystemExit):
        soak.main()
    assert 'is there' in capsys.readouterr().err


@pytest.mark.endurance
def test_a_long_run(tmp_path, monkeypatch, repo_root):
    monkeypatch.chdir(repo_root)
    whole, same = compare(tmp_path, steps=2000, every=50, pieces=3)
    assert [step for step, _ in whole.memory] == list(range(50, 2001, 50))
    assert rise(whole.memory) < 20  # MiB, of about 600
    assert same

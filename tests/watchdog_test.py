import subprocess
import sys
import time

from epa_jax.interrupt import RUN_AGAIN
from epa_jax.watchdog import Watchdog

HANGS = """
import threading
from epa_jax.watchdog import Watchdog

def wait_for_a_peer():
    threading.Event().wait()

with Watchdog(0.2):
    wait_for_a_peer()
"""


def test_a_process_that_hangs_is_ended_with_its_code_and_says_where():
    done = subprocess.run(
        [sys.executable, '-c', HANGS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == RUN_AGAIN
    assert 'no step or batch has ended for' in done.stderr
    assert 'the same command goes on from the newest checkpoint' in done.stderr
    assert 'wait_for_a_peer' in done.stderr


def test_progress_keeps_it_alive():
    codes = []
    with Watchdog(1.0, end=codes.append) as watchdog:
        for _ in range(15):
            time.sleep(0.1)
            watchdog.beat()
    assert codes == []


def test_it_may_be_opened_again():
    codes = []
    watchdog = Watchdog(0.2, end=codes.append)
    with watchdog:
        pass
    time.sleep(0.3)
    assert codes == []
    with watchdog:
        time.sleep(0.5)
    assert codes == [RUN_AGAIN]


def test_a_clock_that_is_set_does_not_matter(monkeypatch):
    codes = []
    with Watchdog(1.0, end=codes.append) as watchdog:
        for day in (2, 0):
            monkeypatch.setattr(time, 'time', lambda day=day: 86400.0 * day)
            watchdog.beat()
            time.sleep(0.1)
    assert codes == []


def test_without_a_limit_it_waits():
    codes = []
    with Watchdog(0, end=codes.append):
        time.sleep(0.1)
    assert codes == []

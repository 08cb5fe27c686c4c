import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gradlab.running.interrupts import Interrupts

SWALLOWED = """
import os, signal, time
from gradlab.running.interrupts import Interrupts

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))

try:
    with Interrupts():
        Finalised()
        time.sleep(60)
except KeyboardInterrupt:
    print("ended")
"""


@pytest.mark.parametrize(("interrupted", "logged"), [(True, 0), (False, 1)])
def test_ctrl_c_inside_a_callback_is_an_interruption_and_not_told_as_a_failure(
    interrupted: bool, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    def end() -> None:
        if interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        raise ValueError

    def call(interrupts: Interrupts) -> None:
        try:
            jax.block_until_ready(
                jax.jit(lambda: jax.pure_callback(end, jax.ShapeDtypeStruct((), "float32")))()
            )
        except Exception as error:  # what jax makes of an interruption
            interrupts.check()
            raise ValueError from error

    def block() -> None:
        with Interrupts() as interrupts:
            call(interrupts)

    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(KeyboardInterrupt if interrupted else ValueError),
    ):
        block()
    assert len([record for record in caplog.records if record.exc_info]) == logged


def told_by(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_signal_before_anything_is_at_stake_ends_at_once() -> None:
    ended = told_by(
        "import os, signal; from gradlab.running import interrupts\n"
        "with interrupts.ending('nothing yet'): os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('went on')"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "interrupted: nothing yet\n")


def test_one_that_a_finaliser_swallowed_comes_again() -> None:
    assert told_by(SWALLOWED).stdout == "ended\n"


def test_what_was_ignored_stays_so_and_all_is_as_before() -> None:
    first = signal.getsignal(signal.SIGINT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not first
        assert signal.getsignal(signal.SIGINT) is first
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("project", "status"), [("configs", 130), ("elsewhere", -signal.SIGINT)])
def test_only_an_experiment_ends_in_one_line_from_its_first_import_on(
    tmp_path: Path, project: str, status: int
) -> None:
    file, values = tmp_path / "experiments" / "one.py", tmp_path / project / "one.yaml"
    for path in (file, values):
        path.parent.mkdir()
        path.touch()
    file.write_text("import gradlab, os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = subprocess.run([sys.executable, file], capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert (ended.stderr.count("\n") == 1) == (status == 130)

import logging
import os
import signal

import jax
import pytest

from gradlab.running.interrupts import Interrupts


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

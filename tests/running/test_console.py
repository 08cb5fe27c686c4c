"""What is printed holds every number that was given, in whatever brackets it stands."""

from pathlib import Path

import pytest

from gradlab.experiment.claim import Claim
from gradlab.running import console
from gradlab.running.console import Steps


def test_a_line_goes_to_stderr_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("one line")
    assert capsys.readouterr() == ("", "one line\n")


def test_a_table_has_every_claim_with_its_verdict_and_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    claims = [
        Claim("it is [bold]one[/bold]", 1.25, 1.0, {"a": 0.25, "b": 0.5}, "here"),
        Claim("it is at most two", float("inf"), 2.0, {}, "here", "<="),
    ]
    console.judged("How much is it? [red]", claims, Path("results") / "e")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "How much is it? [red]"
    first, second = (next(line for line in lines if "it is" in line and w in line) for w in W)
    assert "it is [bold]one[/bold]" in first
    assert first.split()[0] == "holds"
    assert first.split()[-4:] == ["1.25", "=", "1", "0.75"]
    assert second.split()[0] == "FAILS"
    assert second.split()[-4:] == ["inf", "<=", "2", "0"]
    assert lines[-1] == "1 of 2 claims hold; files in results/e"


W = ("one", "two")


def test_steps_tell_how_far_a_sweep_is_and_no_line_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Steps("e", 2, 5) as steps:
        steps.step(1)
        steps.step(0)
        steps.reach(5)
        steps.reach(5)
        assert steps.done == 5
    told = capsys.readouterr().err.splitlines()
    # A line a second at most, and one at the end.
    assert told[-1] == "e: 5 of 5 points, 0 s left"
    assert len(told) == len(set(told)) <= 2


def test_busy_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.busy("thinking"):
        pass
    assert capsys.readouterr() == ("", "")

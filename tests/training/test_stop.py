"""Asked to stop: the loop hears of it at its next question, never in the middle of a step."""

import signal

import pytest

from drifting.training.stop import StopRequest


@pytest.fixture(autouse=True)
def interruptible():
    """Handlers of a terminal: a shell's background jobs, and all that they start, ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_handlers_come_back(tmp_path, capfd, number):
    before = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert not stop.requested()
        signal.raise_signal(number)
        assert stop.requested()
        assert stop.requested()
        stop.announce(tmp_path, step=3, total=9)
    assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)] == before
    said = capfd.readouterr().err
    name = signal.Signals(number).name
    assert f"{name}: finishing this step, then saving" in said
    assert f"{name}: stopped after step 3 of 9, saved in {tmp_path}. The same command continues." in said


def test_a_second_interrupt_is_immediate_and_sigterm_never_is():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

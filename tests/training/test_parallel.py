"""Processes of one training that share the weights."""

import multiprocessing
import signal
import threading

import pytest

from lazy import Lazy
from step_audio.errors import StepAudioError

torch = Lazy("torch")
SideBySide = Lazy("step_audio_training.parallel:SideBySide")


@pytest.fixture
def computing():
    model = torch.nn.Linear(2, 1, bias=False)

    def losses(batch, encoder_learns):
        loss = model(batch).sum()
        loss.backward()
        return {"loss": loss.item()}

    made = SideBySide(model, losses, 2)
    yield model, made
    made.close()


def test_gradients_are_the_mean_of_both_processes(computing):
    model, made = computing
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 8.0]])
    told = made.compute([one, other], True)
    assert torch.allclose(model.weight.grad, torch.tensor([[2.0, 5.0]]))
    assert told["loss"] == pytest.approx(float(model(torch.tensor([[2.0, 5.0]])).detach()), abs=1e-5)


def test_a_process_that_was_killed_is_told_with_what_helps(computing):
    """However often one asks."""
    _, made = computing
    made.processes[0].kill()
    made.processes[0].join()
    for _ in range(2):
        with pytest.raises(StepAudioError, match="was killed, for memory perhaps"):
            made.compute([torch.ones(1, 2)] * 2, True)


def test_they_end_although_a_process_begun_since_holds_their_pipes(computing):
    """As one does that makes data."""
    _, made = computing
    later = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
    later.start()
    try:
        closing = threading.Thread(target=made.close, daemon=True)
        closing.start()
        closing.join(60)
        assert not closing.is_alive() and not made.processes[0].is_alive()
    finally:
        later.kill()

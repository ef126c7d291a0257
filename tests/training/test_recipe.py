"""The recipe: batches hold what was said, a decoder grows without forgetting, training resumes where it was."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial

import numpy as np
import pytest

from lazy import Lazy
from step_audio.checkpoint import Checkpoint, decoder_tensors, encoder_tensors, expected_tensors, to_float32
from step_audio.config import ModelConfig
from step_audio.errors import ArtefactError
from step_audio.mel import frame_count, pooled_frames, token_count
from step_audio.tokenizer import Tokenizer
from step_audio_build.convert.write_checkpoint import write_checkpoint
from step_audio_server.assets import embedded_checkpoint
from step_audio_server.commands.cli import main
from step_audio_training.command import run
from tiny_whisper import ctranslate2_bytes, tiny_variables

torch = Lazy("torch")
batches = Lazy("step_audio_training.batches")
collation = Lazy("step_audio_training.collation")
beginning = Lazy("step_audio_training.beginning")
grown_decoder = Lazy("step_audio_training.growth:grown_decoder")

N_MELS = 8


@pytest.fixture(scope="module")
def train():
    """The recipe; it brings transformers, which takes seconds."""
    from step_audio_training import train

    return train


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few recordings, in espeak-ng's voices alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("RECORDINGS", 2),
            ("EXAMPLES", 4),
            ("BATCHES", 2),
            ("DRILLS", ("text_only", None)),
            ("COPYING", ("order", "names")),
            ("LONGEST", 2.5),
            ("CLIPS", 2),
        ):
            patch.setattr(f"step_audio_training.batches.{name}", value)
        patch.setattr("step_audio_training.replay.NEW", 2)
        patch.setattr("step_audio_training.voices._is_there", lambda speaker: False)
        yield


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("step_audio_training.beginning.CORPUS_EXAMPLES", 60)
        return beginning.make_tokenizer(0)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    file = tmp_path_factory.mktemp("whisper") / "model.bin"
    file.write_bytes(ctranslate2_bytes(tiny_variables(N_MELS, positions=600)))
    return file


@pytest.fixture(autouse=True)
def one_thread():
    """Several may share the work out differently from one run to the next."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_batches_hold_what_was_said(tokenizer_json):
    """Labels are the answers, letters the words, and the audio rows are each example's own clips."""
    tokenizer, vocab = Tokenizer(tokenizer_json), 9000
    for batch in batches.Batches(7, 0, 1, tokenizer_json, vocab, N_MELS, batches.Stages())[0]:
        counts = [token_count(int(length)) for length in batch.frames]
        assert batch.mels.shape[1] == N_MELS
        assert [(row != collation.IGNORED).sum().item() for row in batch.sounds] == counts
        assert len(batch.letters) == batch.letter_counts.sum() and batch.letters.min() > 0
        letters = batch.letters.split(batch.letter_counts.tolist())
        said = ["".join(collation.LETTERS[n - 1] for n in part) for part in letters]
        words = batch.words.split(batch.word_counts.tolist())
        assert [tokenizer.decode(part.tolist()).strip() for part in words] == said
        starts = np.cumsum([0, *counts])
        texts = []
        for ids, labels in batch.groups:
            for row, answer in zip(ids, labels, strict=True):
                text = tokenizer.decode([token for token in answer.tolist() if token != collation.IGNORED])
                texts.append(text)
                assert text.endswith("<|EOT|>")
                audio = row[row >= vocab] - vocab
                runs = np.split(audio.numpy(), np.flatnonzero(np.diff(audio.numpy()) != 1) + 1) if len(audio) else []
                for run_ in runs:  # whole clips, from first row to last
                    assert run_[0] in starts and run_[-1] + 1 in starts
                asked = np.flatnonzero(answer.numpy() != collation.IGNORED)
                before = row[1 : asked[0] + 1][row[1 : asked[0] + 1] < vocab]
                assert tokenizer.decode(before.tolist()).endswith(("<think>\n", "</think>\n"))
        for heard in (text.partition("I hear: ")[2].partition(".")[0] for text in texts if text.startswith("I hear: ")):
            assert heard in said or not any(heard.startswith(each) for each in said if each)


def answered(batch) -> int:
    """Tokens of its answers; espeak-ng's voices waver, and so does what is said of their height."""
    return sum((labels != collation.IGNORED).sum().item() for _, labels in batch.groups)


def test_a_step_says_the_same_wherever_a_run_begins(tokenizer_json):
    whole = list(batches.training_batches(7, 0, 6, tokenizer_json, 9000, N_MELS, workers=0))
    assert len(whole) == 6
    for begin in (1, 3, 4):
        later = list(batches.training_batches(7, begin, 6, tokenizer_json, 9000, N_MELS, workers=0))
        assert len(later) == 6 - begin
        for a, b in zip(whole[begin:], later, strict=True):
            assert torch.equal(a.letters, b.letters) and torch.equal(a.letter_counts, b.letter_counts)
            assert answered(a) == pytest.approx(answered(b), abs=4)


@pytest.fixture
def smaller(tmp_path, tokenizer_json):
    """A checkpoint with fewer layers, narrower MLPs and another tokenizer."""
    from step_audio_training.model import qwen2
    from step_audio_training.whisper import whisper_config

    audio = whisper_config(tiny_variables(), llm_dim=256)
    config = beginning.listener_config(tokenizer_json, audio)
    tokenizer = Tokenizer.from_directory(embedded_checkpoint())
    sizes = {"num_hidden_layers": 4, "intermediate_size": 640, "vocab_size": beginning.rows(tokenizer.max_id + 1)}
    config = config.model_copy(update={"text": config.text.model_copy(update=sizes)})
    torch.manual_seed(0)
    weights = {name: tensor.numpy() for name, tensor in qwen2(config).state_dict().items()}
    weights |= {name: np.zeros(shape, np.float32) for name, shape in encoder_tensors(audio).items()}
    directory = tmp_path / "smaller"
    write_checkpoint(
        directory,
        config,
        weights,
        Lazy("tokenizers:Tokenizer").from_file(str(embedded_checkpoint() / "tokenizer.json")),
    )
    return directory


def test_a_grown_decoder_says_what_the_small_one_says(tokenizer_json, smaller):
    """The same logits for a text that both tokenizers part alike, though it is deeper and wider."""
    from step_audio_training.model import qwen2
    from step_audio_training.whisper import whisper_config

    directory = smaller
    old_config = ModelConfig.from_directory(directory)
    audio = whisper_config(tiny_variables(), llm_dim=old_config.text.hidden_size)
    config = beginning.listener_config(tokenizer_json, audio)
    assert config.text.num_hidden_layers > old_config.text.num_hidden_layers
    old, new = qwen2(old_config).eval(), qwen2(config).eval()
    checkpoint = Checkpoint(directory)
    old.load_state_dict(
        {n: torch.from_numpy(np.array(to_float32(checkpoint.read(n)))) for n in decoder_tensors(old_config.text)}
    )
    new.load_state_dict(grown_decoder(directory, tokenizer_json, config.text))
    before, after = Tokenizer.from_directory(directory), Tokenizer(tokenizer_json)
    digits = "47+30=77,78+4=82"
    a, b = before.encode(digits), after.encode(digits)
    assert [before.decode([n]) for n in a] == [after.decode([n]) for n in b]
    with torch.no_grad():
        theirs = old(input_ids=torch.tensor([a])).logits[0][:, a]
        ours = new(input_ids=torch.tensor([b])).logits[0][:, b]
    assert torch.allclose(theirs, ours, atol=1e-3)
    with pytest.raises(ArtefactError, match="cannot be grown: its head_dim is another"):
        grown_decoder(directory, tokenizer_json, config.text.model_copy(update={"head_dim": 16}))


def test_training_resumes_and_exports(train, tmp_path, monkeypatch, tokenizer_json, whisper, smaller):
    """Stopped, killed and resumed it gives the same weights as in one go by two processes, and a checkpoint that can be
    read."""
    vocab = beginning.rows(beginning.used_tokens(tokenizer_json))
    made = batches.Batches(7, 0, 1, tokenizer_json, vocab, N_MELS, batches.Stages())[0] * 6
    monkeypatch.setattr(train, "training_batches", lambda seed, first, last, *_: (batch for batch in made[first:last]))
    monkeypatch.setattr("step_audio_training.beginning.make_tokenizer", lambda seed: tokenizer_json)
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    monkeypatch.setattr(train, "SAY_EVERY", 2)
    monkeypatch.setattr(train, "EXAMINE_EVERY", 6)
    monkeypatch.setattr(train, "draw_paper", lambda seed, each: {})
    monkeypatch.setattr(train, "examine", lambda *_: {"sums": 0.5})
    recipe = train.Recipe(seed=3, steps=6, reading_steps=0, hearing_steps=0, frozen_steps=2, warm_up_steps=2)
    begin = partial(beginning.of_whisper, whisper, None, 3)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)  # not installed: only the picture is missing in the end
        run(tmp_path / "whole", recipe, begin, 0, "cpu", 2, said.append)
    assert said[-1] == "training.svg is not drawn: pip install -e '.[train]'"
    assert any(line.startswith("step 4 of 6: spelled_loss ") for line in said)

    real = train._learn
    count = 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if count == 5:  # as if killed: what came after the last save is lost
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train, "_learn", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    run(tmp_path / "parts", recipe, begin, 0, "cpu", 1, said.append)
    assert (
        said[-1] == "stopped at step 3 of 6; the same command goes on" and signal.getsignal(signal.SIGTERM) == handler
    )
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", recipe, begin, 0, "cpu", 1, said.append)
    monkeypatch.setattr(train, "_learn", real)
    run(tmp_path / "parts", recipe, pytest.fail, 0, "cpu", 1, said.append)  # the wheel is not needed again

    whole, parts = (Checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "parts"))
    config = ModelConfig.from_directory(tmp_path / "whole" / "checkpoint")
    assert config.audio.n_mels == N_MELS
    for name in expected_tensors(config):
        assert np.array_equal(whole.read(name), parts.read(name)), name
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and "answer_loss" in rows[-1]
    assert json.loads((tmp_path / "parts" / "examined.jsonl").read_text()) == {"step": 6, "sums": 0.5}
    assert (tmp_path / "parts" / "training.svg").read_text().startswith("<?xml")
    with pytest.raises(ArtefactError, match="is there already"):
        run(tmp_path / "whole", recipe, begin, 0, "cpu", 1, print)
    with pytest.raises(ArtefactError, match="other settings"):
        train.train(tmp_path / "whole", train.Recipe(seed=4, steps=6), begin)

    goes_on, _ = train.train(
        tmp_path / "on", train.Recipe(seed=5, steps=0), lambda: beginning.of_checkpoint(tmp_path / "whole/checkpoint")
    )
    for name, tensor in (goes_on.audio.state_dict() | goes_on.decoder.state_dict()).items():
        assert np.array_equal(to_float32(whole.read(name)), tensor.numpy()), name
    with pytest.raises(ArtefactError, match="no listener of today's shape: begin with --whisper"):
        beginning.of_checkpoint(smaller)


def test_the_picture_shows_what_each_stage_has(tmp_path):
    """In writing there is nothing to spell, and while it hears, no answer."""
    from step_audio_training.plot import plot_training

    rows = [{"step": 1, "answer_loss": 3.0}, {"step": 2, "words_loss": 2.0}, {"step": 3, "answer_loss": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_training(tmp_path / "log.jsonl", tmp_path / "examined.jsonl", tmp_path / "it.svg")
    assert (tmp_path / "it.svg").read_text().startswith("<?xml")


def test_the_encoder_begins_as_whispers_and_stays_so_at_first(train, tmp_path, monkeypatch, tokenizer_json, whisper):
    from step_audio_training.whisper import encoder_weights, read_whisper

    monkeypatch.setattr("step_audio_training.beginning.make_tokenizer", lambda seed: tokenizer_json)
    monkeypatch.setattr(train, "draw_paper", lambda seed, each: {})
    monkeypatch.setattr(train, "examine", lambda *_: {})
    wanted = encoder_weights(read_whisper(whisper))
    begin = partial(beginning.of_whisper, whisper, None, 1)
    for steps, same in ((2, True), (1, False)):  # of three, the first is read, and nothing is asked in the second
        recipe = train.Recipe(steps=3, reading_steps=1, hearing_steps=1, frozen_steps=steps)
        model, _ = train.train(tmp_path / str(steps), recipe, begin, echo=lambda line: None)
        state = model.audio.encoder.state_dict()
        assert all(np.array_equal(state[name], value) for name, value in wanted.items()) == same
        read, heard, asked = map(json.loads, (tmp_path / str(steps) / "log.jsonl").read_text().splitlines())
        assert [("letters_loss" in row, "answer_loss" in row) for row in (read, heard, asked)] == [
            (False, True), (True, False), (True, True),
        ]  # fmt: skip


def test_what_is_heard_again_is_the_same_wherever_a_run_begins(tokenizer_json):
    """And is what was said: recordings come again, in another take, with their words."""
    tokenizer, stages = Tokenizer(tokenizer_json), batches.Stages(reading=0, hearing=6)
    whole = list(batches.training_batches(7, 0, 6, tokenizer_json, 9000, N_MELS, 0, stages))
    later = list(batches.training_batches(7, 4, 6, tokenizer_json, 9000, N_MELS, 0, stages))
    for a, b in zip(whole[4:], later, strict=True):
        assert torch.equal(a.letters, b.letters) and torch.equal(a.words, b.words)
    said = []
    for batch in whole:
        assert not batch.groups and len(batch.mels) == batches.CLIPS
        letters = batch.letters.split(batch.letter_counts.tolist())
        texts = ["".join(collation.LETTERS[n - 1] for n in part) for part in letters]
        assert texts == [tokenizer.decode(w.tolist()).strip() for w in batch.words.split(batch.word_counts.tolist())]
        said += texts
    assert len(set(said)) < len(said) == 12


def test_what_a_frozen_encoder_has_heard_is_learnt_from_again(tokenizer_json):
    """The same as if they were asked anew, whole clips in the order of their places; wherever a run begins."""
    vocab, asked = 9000, []

    def hear(samples):  # its number, in as many rows as the product has
        asked.append(len(samples))
        rows = np.zeros((pooled_frames(frame_count(len(samples))), 4), np.float32)
        rows[:, 0] = len(asked)
        rows[:, 1] = np.arange(len(rows))
        return rows

    given = (7, 0, 6, tokenizer_json, vocab, N_MELS, 0, batches.Stages(), hear)
    whole = list(batches.training_batches(*given))
    for batch in whole:
        assert not len(batch.mels) and len(batch.heard) == len(batch.sounds) == len(batch.letter_counts) >= 1
        table = batch.heard[:, ::2][batch.sounds != collation.IGNORED]  # as the adaptor makes an embedding of two
        clips = 0
        for ids, _ in batch.groups:
            for row in ids:
                audio = table[(row[row >= vocab] - vocab).long()]
                for clip in audio[:, 0].unique():
                    places = audio[audio[:, 0] == clip][:, 1].tolist()
                    clips += places == list(range(0, 2 * int((table[:, 0] == clip).sum()), 2))
        assert clips >= 2
    later = list(batches.training_batches(*given[:1], 4, *given[2:]))
    for a, b in zip(whole[4:], later, strict=True):
        assert answered(a) == pytest.approx(answered(b), abs=4)


def test_a_frozen_encoder_does_not_change(train, tmp_path, monkeypatch, tokenizer_json, whisper, capsys):
    monkeypatch.setattr("step_audio_training.beginning.make_tokenizer", lambda seed: tokenizer_json)
    monkeypatch.setattr(train, "draw_paper", lambda seed, each: {})
    monkeypatch.setattr(train, "examine", lambda *_: {})
    begun = beginning.of_whisper(whisper, None, 1)
    recipe = train.Recipe(
        steps=2, reading_steps=0, hearing_steps=0, frozen_steps=0, warm_up_steps=1, encoder_frozen=True
    )
    untouched, _ = train.train(tmp_path / "none", train.Recipe(steps=0), lambda: begun, echo=lambda line: None)
    model, _ = train.train(tmp_path / "two", recipe, lambda: begun, processes=2, echo=lambda line: None)
    before, after = untouched.state_dict(), model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("audio.encoder.", "spelling.")) for name in changed)
    for learns in ("audio.adapter.", "decoder.model.", "letters.", "sounds."):
        assert any(name.startswith(learns) for name in changed), learns
    assert main(["train", "--output", str(tmp_path / "x"), "--whisper", str(whisper), "--encoder-frozen"]) == 1
    assert "--encoder-frozen goes with --checkpoint, a listener that hears already" in capsys.readouterr().err


def test_what_is_read_first_is_to_be_copied(tokenizer_json):
    """The answer's words stand in the prompt, in short examples without recordings."""
    tokenizer, vocab = Tokenizer(tokenizer_json), 9000
    stages = batches.Stages(reading=1, hearing=1)
    *read, _, heard = batches.training_batches(7, 0, 4, tokenizer_json, vocab, N_MELS, 0, stages)
    assert len(heard.mels) and not any(len(batch.mels) for batch in read)
    copies = 0
    for ids, labels in (group for batch in read for group in batch.groups):
        assert ids.shape[1] <= batches.LONGEST_READ and (ids < vocab).all()
        for row, answer in zip(ids.tolist(), labels.tolist(), strict=True):
            asked = next(n for n, token in enumerate(answer) if token != collation.IGNORED)
            text = tokenizer.decode([token for token in answer[asked:] if token != collation.IGNORED])
            copies += text.removesuffix("<|EOT|>").rpartition("</think>")[2].strip() in tokenizer.decode(row[:asked])
    assert copies >= 3


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "no state", "no dictionary"])
def test_a_damaged_state_is_named_with_what_to_do(train, tmp_path, damage):
    file = tmp_path / "state.pt"
    torch.save([1] if damage == "no dictionary" else {"model": {}}, file)
    data = {"empty": b"", "text": b"hello", "cut": file.read_bytes()[:-100]}.get(damage, file.read_bytes())
    file.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"state\.pt is damaged or .*: delete it to begin anew, or restore it$"):
        train.train(tmp_path, train.Recipe(seed=3, steps=6), pytest.fail)
    assert file.read_bytes() == data


def test_an_examination_counts_right_answers(tokenizer_json):
    """Each question is answered as if it were alone, and right to the letter is right."""
    from step_audio_training import exam
    from step_audio_training.model import Listener
    from step_audio_training.whisper import whisper_config

    torch.manual_seed(0)
    config = beginning.listener_config(tokenizer_json, whisper_config(tiny_variables(N_MELS, positions=600), 256))
    used = torch.arange(beginning.used_tokens(tokenizer_json))
    model, tokenizer = Listener(config, used).eval(), Tokenizer(tokenizer_json)
    random = np.random.default_rng(0)
    questions = [exam.draw_known(task, random) for task in ("transcription", "text_only", "beeps")]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(exam, "MOST_TOKENS", 6)
        assert exam._answers(model, tokenizer, questions) == [
            exam._answers(model, tokenizer, [q])[0] for q in questions
        ]
        patch.setattr(exam, "_answers", lambda m, t, qs: [q.example.answer.upper() for q in qs[:-1]] + ["no"])
        results = exam.examine(model, tokenizer, {"pitch": [questions[0]] * 4, "text_only": questions[1:2]})
    assert results["pitch"] == 0.75 and results["text_only"] == 0
    assert exam.word_errors(["a", "b", "c", "d"], ["a", "x", "c", "d", "e"]) == 2
    assert results["false alarms"] == 0

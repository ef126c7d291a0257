"""`check`: the engine answers two questions, one of them about sound; its tokens are compared with the model's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.chat import ClipInfo, build_prompt
from step_audio.checkpoint import Checkpoint, from_float32, to_float32
from step_audio.clips import content_hash
from step_audio.config import Strict
from step_audio.conversation import parse_conversation
from step_audio.errors import ArtefactError
from step_audio.mel import log_mel, token_count
from step_audio.progress import Progress
from step_audio.tokenizer import Tokenizer
from step_audio_build.artefacts.artefact import as_source, finish, finished, required
from step_audio_build.artefacts.manifest import Identity, to_json, write_atomically
from step_audio_build.planning.gpus import installed_version, require
from step_audio_build.planning.profiles import Profile
from step_audio_build.stages.layout import DTYPE, BuildJob
from step_audio_build.tools import subprocess_runner
from step_audio_build.tools.check_engine import Answers, CheckJob, CheckQuestion
from step_audio_build.tools.mpirun import MPI_ENVIRONMENT, mpirun
from step_audio_build.tools.tone import gliding_tone

if TYPE_CHECKING:
    from step_audio_build.tools.reference_check import CheckedToken

FORMAT = 1
MAX_TOKENS = 24  # of each answer
TONE_SECONDS = 3.0  # of the question about sound

# The least share of tokens that must be the checkpoint's own choice. 16-bit and quantised arithmetic turn near-ties
# around; weights in a wrong place leave next to nothing.
MIN_AGREEMENT = {"bfloat16": 0.75, "int8": 0.75, "fp8": 0.6, "int4": 0.5, "awq": 0.5}

QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "Count from one to twenty."}],
    "audio": [{"role": "user", "content": [{"type": "text", "text": "What do you hear?"}, {"type": "audio"}]}],
}


# Of a cache of keys and values in 8 bits: the more of it an answer looks at, the more its rounding shows.
LONG: dict[str, list[dict[str, Any]]] = {
    "long": [
        {
            "role": "user",
            "content": " ".join(f"Shelf {n} holds {n * 37 % 911} books." for n in range(1, 301))
            + " How many books are on shelves 17, 149 and 288?",
        }
    ]
}


def questions(profile: Profile) -> dict[str, list[dict[str, Any]]]:
    """Those that an engine of the profile is asked."""
    return QUESTIONS | LONG if profile.kv_cache_dtype == "fp8" else QUESTIONS


class Verdict(Strict):
    """check.json"""

    tokens: int
    agreement: float  # share of tokens that are the checkpoint's own choice
    lowest: float  # the same, of the question with the least of it
    largest_shortfall: float  # logits that the worst token was behind
    repeatable: bool  # the same tokens when asked again
    load_seconds: float
    answers: dict[str, str]  # as text, for a person to look at


class CheckStage:
    """Asks the new engine two questions and holds its tokens against the checkpoint's own; writes check.json.

    `run` raises ArtefactError for an engine that does not agree: it is not to be served.
    """

    name = "check"
    needs_gpu = True

    def __init__(self, job: BuildJob):
        self.job = job

    def identity(self) -> Identity:
        manifests = {name: required(self.job.layout.manifest(name), name) for name in ("encoder", "engine")}
        return Identity(
            kind="check",
            format=FORMAT,
            source=[as_source(name, manifest) for name, manifest in manifests.items()],
            settings={"max_tokens": MAX_TOKENS, **({"kv_cache_dtype": "fp8"} if self._kv_in_fp8 else {})},
        )

    @property
    def _kv_in_fp8(self) -> bool:
        return self.job.profile.kv_cache_dtype == "fp8"

    def finished(self) -> bool:
        layout = self.job.layout
        return finished(layout.manifest(self.name), self.identity(), layout.own) is not None

    def size(self) -> int:
        return 0

    def describe(self) -> list[str]:
        return [" ".join(self._command()), f"compare the tokens with {self.job.checkpoint} in torch"]

    def run(self) -> None:
        job, layout = self.job, self.job.layout
        identity = self.identity()
        tools = {"tensorrt_llm": installed_version("tensorrt_llm"), "driver": require(job.profile).driver}
        tokenizer = Tokenizer.from_directory(job.checkpoint)
        tables: dict[str, Float32Array] = {}
        check_job = CheckJob(
            engine=layout.engine,
            questions=[self._question(name, tokenizer, tables) for name in questions(job.profile)],
            answers=layout.own / "check.answers.json",
            max_tokens=MAX_TOKENS,
            end_id=tokenizer.special.stop_ids[0],
            kv_fraction=job.plan.kv_fraction,
        )
        write_atomically(self._job_file, check_job.model_dump_json(indent=1) + "\n")
        check_job.answers.unlink(missing_ok=True)
        subprocess_runner.run(self._command(), layout.log(self.name), job.echo, MPI_ENVIRONMENT)
        try:
            answers = Answers.model_validate_json(check_job.answers.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtefactError(f"check: the engine gave no answer; log: {layout.log(self.name)}") from None
        verdict = self._compare(check_job, answers, tables, tokenizer)
        write_atomically(layout.own / "check.json", to_json(verdict.model_dump()))
        self._tell(verdict)
        finish(layout.manifest(self.name), identity, layout.own, ["check.json"], tools)

    def invalidate(self) -> None:
        self.job.layout.manifest(self.name).unlink(missing_ok=True)

    def _command(self) -> tuple[str, ...]:
        worker = (sys.executable, "-m", "step_audio_build.tools.check_engine", str(self._job_file))
        return worker if self.job.profile.gpus == 1 else mpirun([worker] * self.job.profile.gpus)

    @property
    def _job_file(self) -> Path:
        return self.job.layout.own / "check.job.json"

    def _question(self, name: str, tokenizer: Tokenizer, tables: dict[str, Float32Array]) -> CheckQuestion:
        """`tables` gets the question's embeddings where it has sound."""
        conversation = parse_conversation(questions(self.job.profile)[name])
        clips, file = [], None
        if conversation.audio_count:
            samples = gliding_tone(TONE_SECONDS, seed=7)
            tables[name] = self._embed(samples)
            file = self.job.layout.own / f"check.{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, tables[name])
            clips = [[ClipInfo(len(tables[name]), content_hash(samples))]]
        prompt = build_prompt(conversation, tokenizer, self.job.model.text.vocab_size, clips)
        return CheckQuestion(name=name, ids=prompt.input_ids.tolist(), table=file)

    def _embed(self, samples: Float32Array) -> Float32Array:
        """Its embeddings by the published weights, rounded as the engine's table is: float32 [rows, hidden]."""
        import torch

        from step_audio.encoder import load_encoder

        rule, audio = self.job.settings.length_rule, self.job.model.audio
        encoder = load_encoder(Checkpoint(self.job.checkpoint), audio, rule)
        mel = log_mel(samples, audio.n_mels)
        with torch.inference_mode():
            out = encoder(torch.from_numpy(mel)[None], torch.tensor([mel.shape[1]]))[0].numpy()
        return to_float32(from_float32(out[: token_count(mel.shape[1], rule)], DTYPE))

    def _compare(
        self, check_job: CheckJob, answers: Answers, tables: dict[str, Float32Array], tokenizer: Tokenizer
    ) -> Verdict:
        from step_audio_build.tools.reference_check import check_tokens

        none = np.zeros((0, self.job.model.text.hidden_size), np.float32)
        checked, agreements = [], []
        for question in check_job.questions:
            tokens = answers.tokens.get(question.name)
            if not tokens:
                raise ArtefactError(f"check: the engine gave no token for the question {question.name}")
            self.job.echo(f"check: {len(tokens)} tokens of {question.name} against the checkpoint in torch")
            ids = np.array(question.ids, np.int32)
            layers = Progress(f"check: {question.name}", unit="")
            found = check_tokens(self.job.checkpoint, ids, tables.get(question.name, none), tokens, layers)
            agreements.append(_agreement(found))
            checked += found
        return Verdict(
            tokens=len(checked),
            agreement=_agreement(checked),
            lowest=min(agreements),
            largest_shortfall=max(token.shortfall for token in checked),
            repeatable=answers.tokens == answers.again,
            load_seconds=answers.load_seconds,
            answers={name: tokenizer.decode(tokens) for name, tokens in answers.tokens.items()},
        )

    def _tell(self, verdict: Verdict) -> None:
        """Raises ArtefactError for an engine that does not say what the checkpoint says."""
        self.job.echo(
            f"check: {verdict.agreement:.0%} of {verdict.tokens} tokens are the checkpoint's own choice, the worst is "
            f"{verdict.largest_shortfall:.2f} logits behind it; engine loaded in {verdict.load_seconds:.0f} s"
        )
        if not verdict.repeatable:
            self.job.echo("check: asked again, the engine gave other tokens; greedy answers are not repeatable")
        least = MIN_AGREEMENT[self.job.profile.precision]
        if self._kv_in_fp8 and verdict.lowest < least:
            raise ArtefactError(
                f"with keys and values in FP8 the engine agrees with the checkpoint in {verdict.lowest:.0%} of the "
                f"tokens of a question, {least:.0%} is the least: leave kv_cache_dtype out; see "
                f"{self.job.layout.own / 'check.json'}"
            )
        if verdict.agreement < least:
            raise ArtefactError(
                f"the engine agrees with the checkpoint in {verdict.agreement:.0%} of tokens, {least:.0%} is the least "
                f"for {self.job.profile.precision}; see {self.job.layout.own / 'check.json'}"
            )


def _agreement(checked: Sequence[CheckedToken]) -> float:
    return sum(token.token == token.best for token in checked) / len(checked)

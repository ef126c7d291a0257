"""The small tokenizer's guides, and how their answers are asked for."""

from engine_fixture import VOCAB
from step_audio.tokenizer import Tokenizer
from tokenizer_fixture import build_json

TOKENIZER = Tokenizer.from_json(build_json())
STOP = TOKENIZER.special.stop_ids
EOT = STOP[0]
TOKEN = {id_: TOKENIZER.token_bytes([id_], skip_special_tokens=True) for id_ in range(VOCAB)}  # b"": not to be used


def text(answer, index: int = 0) -> str:
    return TOKENIZER.decode(answer.tokens(index))

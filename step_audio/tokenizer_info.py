"""What xgrammar must know of a tokenizer, in the file that TensorRT-LLM's backend reads.

NVIDIA makes it with `generate_xgrammar_tokenizer_info.py`; ours has the same three fields, but leaves out the
tokens that decoded text leaves out. A guide that allowed them would see its `{` arrive and the reader would not.
"""

from __future__ import annotations

import json

from step_audio.tokenizer import Tokenizer


def xgrammar_tokenizer_info(tokenizer: Tokenizer) -> str:
    """JSON: `encoded_vocab`, the token of every id as the vocabulary spells it, "" for those no guide may use;
    `stop_token_ids`; `tokenizer_str`, of which xgrammar reads how tokens spell bytes."""
    raw = json.loads(tokenizer.to_json())
    tokens = {id_: token for token, id_ in raw["model"]["vocab"].items()}
    tokens |= {token["id"]: "" if token["special"] else token["content"] for token in raw["added_tokens"]}
    return json.dumps(
        {
            "encoded_vocab": [tokens.get(id_, "") for id_ in range(tokenizer.max_id + 1)],
            "tokenizer_str": json.dumps({key: raw.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")}),
            "stop_token_ids": sorted(tokenizer.special.stop_ids),
        }
    )

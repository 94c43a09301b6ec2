"""The texts that mark turns in the chat templates of open models, so that foreign text cannot imitate them.

A server that reads special tokens in the text of a message (vLLM, llama.cpp and SGLang can be started this way) would
end our turn at an ``<|im_end|>`` in an answer, and the rest of the answer would speak as the judge. `FIRST` finds the
first character of each token. `fences.visible` writes it as its number, and the rest is not a token any more.

Names in angle brackets are listed individually, because ``<size_t>`` and ``<b>`` are code. An answer that contains one
of the listed names is shown with an additional number, and means the same.
"""

from __future__ import annotations

_NAMES = (  # in angle brackets, with or without a slash, in any case
    "s|bos|eos|pad|unk|mask|sep|cls|sop|eop|eod|eot|eoh|eoa|eosys|bom",  # Llama 2, T5, GLM, InternLM, Jamba
    r"im|im_\w+|\w+_token|special_\d+|extra_id_\d+|reserved_\w+|mask[:_]\d+",  # Command, Nemotron, T5, Baichuan, Ernie
    r"(?:start|end|begin|beginning)_of_\w+|unused_?\d+|\d+mass",  # Gemma, MiniMax
    r"think|tools?|tool_\w+|function_\w+|arg_key|arg_value|seed:\w+",  # Qwen, DeepSeek, GLM, Seed
    r"image|video|audio|img|image_\w+|audio_\w+|global-img|row_\d+_col_\d+|fake_token_around_image",  # with pictures
    r"fim_\w+|repo_?name|file_?name|file_sep|gh_stars|issue_\w+|jupyter_\w+|commit_\w+|pr(?:_\w+)?|empty_output",
)
_BRACKETED = (  # in square brackets
    "/?INST|/?SYSTEM_PROMPT|/?AVAILABLE_TOOLS|TOOL_CALLS|/?TOOL_RESULTS|/?TOOL_CONTENT|ARGS|CALL_ID|/?THINK",  # Mistral
    r"/?MODEL_SETTINGS|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|PREFIX|MIDDLE|SUFFIX|REFERENCE_DOC_\d+|control_\d+",
    "[gs]?MASK|CLS|SEP|PAD|UNK|BOS|EOS|EOT|start_header_id|end_header_id|multimodal",  # GLM, BERT, Kimi, Gemma
)
FIRST = "|".join(
    (
        r"<(?=[|\uff5c])",  # <|im_end|>, <|eot_id|>, <|channel|>, <|turn>; the wide bar is of DeepSeek and Hunyuan
        r"<(?=/?[\w:\u2581]{1,40}[|\uff5c]>)",  # <turn|> and <channel|> of Gemma 4
        rf"(?i:<(?=/?(?:{'|'.join(_NAMES)})>))",
        rf"\[(?=(?:{'|'.join(_BRACKETED)})\])",
        "<(?=</?SYS>>)",  # Llama 2
        r"\[(?=\|[\w ]{1,40}\|\])",  # [|endofturn|] of EXAONE
        r"\|(?=\|\|\w{1,40}\|\|\|)",  # |||EMAIL_ADDRESS||| of OLMo
        ">(?=>[A-Z]{3,20}<<)",  # >>QUESTION<< of Falcon
        r"(?<=\])~(?=!?b[\[\]])|(?<=\[e)~(?=\[)|(?<=\]![pd])~(?=\[)",  # ]~b] and ]~!b[ and [e~[ and ]!p~[ of MiniMax
    )
)

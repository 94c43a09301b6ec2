"""``ropd serve-teacher``: the scripted teacher behind HTTP."""

from __future__ import annotations

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError

_SERVER = ("host", "port", "api_key_env", "max_body_mb")  # flags of the server; the others are of the teacher


def run(args: Arguments) -> None:
    from ropd_jax.teacher.clients.endpoint import read_key
    from ropd_jax.utils.packages import need

    need("aiohttp", extra="view", what="ropd serve-teacher")
    from ropd_jax.teacher.scripted import server
    from ropd_jax.teacher.scripted.client import ScriptedClient

    options = {name: value for name, value in args.values.items() if name not in _SERVER}
    key, name = "", args["api_key_env"]
    if name and not (key := read_key(name, "--api_key_env")):
        raise UserError(
            f"--api_key_env={name}: this environment variable is not set; set it to the key that clients must send "
            f"(export {name}=...)"
        )
    server.serve(
        ScriptedClient(**options), host=args["host"], port=args["port"], api_key=key, max_body_mb=args["max_body_mb"]
    )


COMMAND = Command(
    name="serve-teacher",
    summary="put the scripted teacher behind HTTP (OpenAI and Gemini wire formats)",
    intro="""
        Serves the scripted teacher:

          POST /v1/chat/completions                         OpenAI
          POST /v1beta/models/MODEL:generateContent         Gemini

        It works out solutions by rule; it is not a language model. Set --api_key_env before you let other machines
        reach it with --host.
    """,
    run=run,
    renamed={"book": "answer_key"},
    flags=(
        Flag("host", "ADDRESS", "Address to listen on; the default is reachable from this machine only.", "127.0.0.1"),
        Flag("port", "N", "Port; 0 chooses a free one, which is printed.", 8808, low=0, high=65535),
        Flag(
            "api_key_env",
            "NAME",
            "Environment variable with the key that clients must send. Default: any key is accepted.",
        ),
        Flag("max_body_mb", "X", "Largest request in MiB; a larger one is answered with 413.", 8.0, low=0.001),
        Flag("answer_key", "FILE", 'JSONL of {"question", "solution"}: worked solutions of word problems.'),
        Flag("latency_s", "S", "Seconds before each reply.", 0.0, low=0.0),
        Flag("fault_rate", "X", "Share of replies that fail: 429, 503, broken JSON.", 0.0, low=0.0, high=1.0),
        Flag("slip_rate", "X", "Share of references with an arithmetic slip.", 0.0, low=0.0, high=1.0),
        Flag("wrong_verdict_rate", "X", "Share of verdicts that are inverted.", 0.0, low=0.0, high=1.0),
        Flag("noise", "FILE", "How verdicts err: report.json of ropd calibrate-judge, or JSON (docs/judge.md)."),
        Flag("labels", "FILE", "JSONL of labelled verdicts whose truths the verifier knows (docs/judge.md)."),
    ),
    examples=(
        "ropd serve-teacher --port 8808",
        "ropd train --config quickstart --workdir runs/http \\",
        "    --config.teacher.provider=openai --config.teacher.base_url=http://127.0.0.1:8808/v1",
    ),
)

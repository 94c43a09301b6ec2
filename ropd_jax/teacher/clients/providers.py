"""How each provider is set up, and what is known of it: the table that docs/providers.md is made from.

    python -m ropd_jax.teacher.clients.providers > docs/providers.md

The tests read the same table: every command line is parsed, and every refusal is tried against a local server.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap


@dataclasses.dataclass(frozen=True)
class Provider:
    """One provider.

    Attributes:
        title: its name.
        settings: values of the config by key, without ``teacher.``, as they are written on a command line.
        address: where its requests then go.
        key: the environment variable of its API key; "" if it needs none.
        notes: what to know, one fact each.
        limits: known limits, with the public page or thread where it was read.
        refuses: (parameter, words) of refusals that its users met: the request is sent again without.
        formats: (response format, words) of formats that it refuses.
        tried: how the settings were tried; "" is the way that the head of the page describes.
    """

    title: str
    settings: dict[str, str]
    address: str
    key: str = ""
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    refuses: tuple[tuple[str, str], ...] = ()
    formats: tuple[tuple[str, str], ...] = ()
    tried: str = ""


_LIMIT_NAME = (
    "max_tokens",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
)

PROVIDERS = (
    Provider(
        "OpenAI",
        {"provider": "openai", "verifier.model": "gpt-5.2", "verifier.extra": "{'reasoning_effort': 'high'}"},
        "https://api.openai.com/v1/",
        "OPENAI_API_KEY",
        notes=(
            "`teacher.organization` and `teacher.project` choose the account, if the key has several.",
            "`ropd collect-references --batch` uses the batch API.",
        ),
        limits=(
            "GPT-5.2 accepts a temperature without `reasoning_effort`, and refuses it with one "
            "(BerriAI/litellm-docs#1064). Both are tried; what is refused is left out.",
            "Some models accept only some efforts.",
        ),
        refuses=(
            ("temperature", "Unsupported value: 'temperature' does not support 0.0 with this model."),
            ("reasoning_effort", "Unsupported value: 'reasoning_effort' does not support 'high' with this model."),
        ),
    ),
    Provider(
        "Azure OpenAI",
        {
            "provider": "openai",
            "base_url": "https://RESOURCE.openai.azure.com/openai/v1",
            "api_key_env": "AZURE_OPENAI_API_KEY",
            "verifier.model": "DEPLOYMENT",
        },
        "https://RESOURCE.openai.azure.com/openai/v1/",
        "AZURE_OPENAI_API_KEY",
        notes=(
            "The model is the name of your deployment.",
            "Use the v1 API (learn.microsoft.com, Azure OpenAI, API version lifecycle). An address with "
            "`?api-version=` is refused here, because a query can hold a secret.",
        ),
        limits=(
            "GPT-5 deployments refuse `max_tokens` (OpenHands/OpenHands#11662), and some GPT-4o deployments refuse "
            "`max_completion_tokens` (BerriAI/litellm#8855). The other name is tried once and remembered.",
            "Mistral models on Azure refuse `seed` (langchain-ai/langchain-azure#82).",
            "A token of Microsoft Entra ID is not renewed; use an API key.",
        ),
        refuses=(_LIMIT_NAME, ("seed", "Extra inputs are not permitted: seed")),
    ),
    Provider(
        "Gemini",
        {
            "provider": "gemini",
            "verifier.model": "gemini-2.5-flash",
            "verifier.extra": "{'thinking_config': {'thinking_budget': 1024}}",
        },
        "https://generativelanguage.googleapis.com/",
        "GEMINI_API_KEY",
        notes=(
            "`extra` accepts the fields of `google.genai.types.GenerateContentConfig`: `top_p`, `thinking_config`, "
            "`safety_settings`, ...",
            "Gemini 2.5 has a `thinking_budget` in tokens, Gemini 3 a `thinking_level`; both in one request are a 400 "
            "(ai.google.dev, Gemini thinking). Thinking counts towards `max_output_tokens`.",
            "`--batch` sends a file with a key for each request.",
        ),
        limits=(
            "Thinking cannot be turned off for Gemini 2.5 Pro and Gemini 3 Pro (enricoros/big-AGI#893; ai.google.dev).",
            "Replies of batches with inline requests come in any order (googleapis/python-genai#1909) and without "
            "metadata (#2008). Jobs of an earlier version that used this stop with an error if a key is missing.",
            "Gemini's OpenAI address, `https://generativelanguage.googleapis.com/v1beta/openai` with "
            "`teacher.provider=openai`, refuses `seed` (Vali-98/ChatterUI#227).",
        ),
        refuses=(("seed", "seed is not supported by this model"),),
    ),
    Provider(
        "Vertex AI",
        {
            "provider": "gemini",
            "vertexai": "True",
            "project": "PROJECT",
            "location": "global",
            "verifier.model": "gemini-2.5-pro",
        },
        "https://aiplatform.googleapis.com/",
        notes=(
            "No key: run `gcloud auth application-default login`, or set `GOOGLE_APPLICATION_CREDENTIALS` to the file "
            "of a service account.",
            "The default project is `GOOGLE_CLOUD_PROJECT`, or that of the credentials; the default location is "
            '`GOOGLE_CLOUD_LOCATION`, or "global".',
        ),
        limits=("`--batch` is not supported: Vertex AI's batches need a bucket.",),
        tried="Through the real SDK against a local server that also issues the service account's tokens; not against "
        "the service.",
    ),
    Provider(
        "vLLM",
        {
            "provider": "openai",
            "base_url": "http://127.0.0.1:8000/v1",
            "verifier.model": "Qwen/Qwen3-32B",
            "verifier.extra": "{'chat_template_kwargs': {'enable_thinking': False}}",
        },
        "http://127.0.0.1:8000/v1/",
        notes=(
            "On loopback no key is needed. For `vllm serve --api-key`, name the variable with `teacher.api_key_env`.",
            "Parameters that OpenAI does not have go into the body, so put them into `extra` (docs.vllm.ai, "
            "OpenAI-compatible server).",
        ),
        limits=("Whether `enable_thinking` does anything depends on the model's chat template.",),
    ),
    Provider(
        "SGLang",
        {
            "provider": "openai",
            "base_url": "http://127.0.0.1:30000/v1",
            "verifier.model": "Qwen/Qwen3-32B",
            "verifier.extra": "{'chat_template_kwargs': {'enable_thinking': False}}",
        },
        "http://127.0.0.1:30000/v1/",
        notes=("SGLang documents `chat_template_kwargs` (docs.sglang.io, OpenAI APIs).",),
        limits=("An effort that the model does not have is a 400 (router-for-me/CLIProxyAPI#1572).",),
        refuses=(("reasoning_effort", "{'loc': ('body', 'reasoning_effort'), 'msg': \"Input should be 'low'\"}"),),
    ),
    Provider(
        "llama.cpp",
        {
            "provider": "openai",
            "base_url": "http://127.0.0.1:8080/v1",
            "verifier.model": "any",
            "concurrency": "1",
            "verifier.extra": "{'chat_template_kwargs': {'enable_thinking': False}}",
        },
        "http://127.0.0.1:8080/v1/",
        notes=(
            "`teacher.concurrency` is the number of slots (`--parallel`).",
            "It uses the one model that it has loaded, whatever the name.",
        ),
        limits=(
            "Unknown parameters are ignored, so a misspelt one in `extra` has no effect.",
            "`reasoning_effort` is accepted; without a thinking model it has no effect.",
        ),
        tried="A real server on loopback (xllamacpp, Qwen2.5-Coder-0.5B): `seed`, `temperature`, `max_tokens`, "
        "`top_p`, `chat_template_kwargs`, `reasoning_effort`, an unknown parameter, a JSON schema with bounds.",
    ),
    Provider(
        "Ollama",
        {
            "provider": "openai",
            "base_url": "http://127.0.0.1:11434/v1",
            "verifier.model": "MODEL",
            "concurrency": "1",
        },
        "http://127.0.0.1:11434/v1/",
        notes=(
            "Its documentation lists `seed`, `temperature`, `top_p`, `max_tokens`, `response_format` and "
            "`reasoning_effort` (docs.ollama.com, OpenAI compatibility).",
        ),
        limits=(
            "**A prompt longer than its context is cut without an error**, and `num_ctx` in a request is ignored "
            "(ollama/ollama#2722, #6286). Set `OLLAMA_CONTEXT_LENGTH` for the server, or `PARAMETER num_ctx` in a "
            "Modelfile, to more than a group of answers needs.",
        ),
    ),
    Provider(
        "LM Studio",
        {
            "provider": "openai",
            "base_url": "http://127.0.0.1:1234/v1",
            "verifier.model": "MODEL",
            "concurrency": "1",
        },
        "http://127.0.0.1:1234/v1/",
        notes=("It accepts a JSON schema (lmstudio.ai, structured output).",),
        limits=(
            "It refuses `json_object` (lmstudio-ai/lmstudio-bug-tracker#189). A schema that it cannot use is replaced "
            "by one without bounds, then by plain text.",
        ),
        formats=(("json_object", "'response_format.type' must be 'json_schema' or 'text'"),),
    ),
    Provider(
        "OpenRouter",
        {
            "provider": "openai",
            "base_url": "https://openrouter.ai/api/v1",
            "api_key_env": "OPENROUTER_API_KEY",
            "headers": "{'X-Title': 'ROPD'}",
            "verifier.model": "openai/gpt-5.2",
            "verifier.extra": "{'reasoning': {'effort': 'high'}}",
        },
        "https://openrouter.ai/api/v1/",
        "OPENROUTER_API_KEY",
        notes=(
            "`reasoning` has either an `effort` or `max_tokens` (openrouter.ai, reasoning tokens).",
            "`{'provider': {'order': [...], 'allow_fallbacks': False}}` in `extra` fixes the server behind a model, so "
            "that a run has one judge.",
        ),
        limits=("What is refused depends on the server behind the model, which can change between requests.",),
        refuses=(("seed", "seed is not supported by this provider"),),
    ),
    Provider(
        "DeepSeek",
        {
            "provider": "openai",
            "base_url": "https://api.deepseek.com/v1",
            "api_key_env": "DEEPSEEK_API_KEY",
            "verifier.model": "deepseek-v4-flash",
            "verifier.extra": "{'thinking': {'type': 'disabled'}}",
        },
        "https://api.deepseek.com/v1/",
        "DEEPSEEK_API_KEY",
        notes=("Thinking is on by default; `reasoning_effort` controls it (api-docs.deepseek.com, thinking mode).",),
        limits=(
            'A JSON schema is a 400, "This response_format type is unavailable now" (llm-exe/llm-exe#662); '
            "`json_object` is used from then on.",
            "The thinking model accepts a temperature and ignores it (DeepSeek's guide to deepseek-reasoner).",
        ),
        formats=(("json_schema", "This response_format type is unavailable now"),),
    ),
    Provider(
        "Groq",
        {
            "provider": "openai",
            "base_url": "https://api.groq.com/openai/v1",
            "api_key_env": "GROQ_API_KEY",
            "verifier.model": "qwen/qwen3-32b",
            "verifier.extra": "{'reasoning_effort': 'none'}",
        },
        "https://api.groq.com/openai/v1/",
        "GROQ_API_KEY",
        limits=(
            "A temperature of 0 becomes 1e-8; `logprobs` and `logit_bias` are a 400 (console.groq.com, OpenAI "
            "compatibility).",
            "Qwen 3 accepts only the efforts `none` and `default` (earendil-works/pi#1745).",
        ),
        refuses=(("reasoning_effort", "`reasoning_effort` must be one of `none` or `default`"),),
    ),
    Provider(
        "Together",
        {
            "provider": "openai",
            "base_url": "https://api.together.ai/v1",
            "api_key_env": "TOGETHER_API_KEY",
            "verifier.model": "openai/gpt-oss-20b",
        },
        "https://api.together.ai/v1/",
        "TOGETHER_API_KEY",
        notes=("The address is from docs.together.ai, OpenAI compatibility.",),
        limits=("Only some models accept a JSON schema; for the others the fallbacks above apply.",),
    ),
    Provider(
        "Mistral",
        {
            "provider": "openai",
            "base_url": "https://api.mistral.ai/v1",
            "api_key_env": "MISTRAL_API_KEY",
            "verifier.model": "mistral-large-latest",
        },
        "https://api.mistral.ai/v1/",
        "MISTRAL_API_KEY",
        limits=(
            "Its seed is called `random_seed`, and `seed` is refused as an extra input, as on Azure "
            "(langchain-ai/langchain-azure#82). Do not put `random_seed` into `extra`: all references of a prompt "
            "would be the same text.",
        ),
        refuses=(("seed", "Extra inputs are not permitted: body.seed"),),
    ),
)

_HEAD = """\
# Providers

How to set up each provider, and its known limits. This page is generated from
[a table](../ropd_jax/teacher/clients/providers.py) that the tests read too:
`python -m ropd_jax.teacher.clients.providers > docs/providers.md`. Unless a section says otherwise, its settings were
tried through the real SDK against a local server that refuses what the section lists, but not against the service.

The commands set the models of three roles, and `extra` for the verifier; every role has the same keys. `ropd preflight`
makes one cheap call per role and reports errors.

## For all providers

- `teacher.ROLE.extra` is merged into the body of the role's requests. It is part of the key on the tape, so a request
  with another `extra` is sent again. On the command line, give the whole mapping:
  `--config.teacher.verifier.extra="{'top_p': 0.95}"`.
- `teacher.headers` (or `teacher.ROLE.headers`) are sent with every request. Secrets are named, not written:
  `{'X-Org': 'env:MY_ORG'}` takes the value of the environment variable `MY_ORG`. A header or an `extra` that contains a
  key is refused.
- If a model refuses `seed`, `temperature`, `top_p` or `reasoning_effort`, its requests omit the parameter from then on,
  with one line in the log. If it refuses `max_tokens`, the limit is sent as `max_completion_tokens`, and the other way
  round. A refused system message becomes part of the user's message. A refused JSON schema is replaced by one without
  bounds, then by `json_object`, then by plain text. Any other refused parameter of `extra` stops the run.
- If a model does not accept `seed`, several references to a prompt differ only by chance, so give the role a
  temperature.
"""


def flags(provider: Provider) -> list[str]:
    """The provider's settings as flags; the verifier's model is that of the other roles too."""
    found = []
    for key, value in provider.settings.items():
        keys = (
            [f"{role}.model" for role in ("reference", "rubricator", "verifier")] if key == "verifier.model" else [key]
        )
        found += [f"--config.teacher.{k}={value}" for k in keys]
    return found


def command(provider: Provider) -> str:
    """The command line that tries the provider's settings."""
    exports = [f"export {provider.key}=..."] if provider.key else []
    words = ["ropd preflight --config quickstart", *map(_quoted, flags(provider))]
    return "\n".join([*exports, " \\\n    ".join(words)])


def page() -> str:
    """The text of docs/providers.md."""
    return _HEAD + "".join(_section(provider) for provider in PROVIDERS)


def _section(p: Provider) -> str:
    needs = "an account" if p.key or "vertexai" in p.settings else "a server"
    parts = [f"\n## {p.title}\n", f"\n<!-- not run: needs {needs} -->\n```\n{command(p)}\n```\n"]
    for name, facts in (("Notes", p.notes), ("Known limits", p.limits)):
        if facts:
            parts += [f"\n{name}:\n\n", *(_item(fact) for fact in facts)]
    if p.refuses:
        names = ", ".join(f"`{name}`" for name, _ in p.refuses)
        parts.append("\n" + textwrap.fill(f"Can be refused, and is then left out: {names}.", 118) + "\n")
    if p.tried:
        how = textwrap.fill(f"Tried: {p.tried}", 118, break_long_words=False, break_on_hyphens=False)
        parts.append(f"\n{how}\n")
    return "".join(parts)


def _item(fact: str) -> str:
    how = dict(initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return textwrap.fill(fact, 118, **how) + "\n"  # type: ignore[arg-type]


def _quoted(flag: str) -> str:
    name, _, value = flag.partition("=")
    return f'{name}="{value}"' if set(value) & set("{} '") else flag


if __name__ == "__main__":
    sys.stdout.write(page())

"""How services actually answer: one row per behaviour, modelled on public reports.

    Row("openrouter-429-inside-200", "OpenRouter", "200 with an error instead of choices", "BerriAI/litellm#8448",
        Answer({"error": {"message": "Provider returned error", "code": 429}}), Fails(TransientError, "rate_limited"))

``test_services.py`` sends each row's answers through the real SDKs. The documentation of the providers lists the rows
by service. ``thread`` is a public report of the behaviour, "" if the form was tested or is documented by the service.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ropd_jax.teacher import (
    BlockedError,
    ConfigurationError,
    ContextError,
    MalformedError,
    RequestError,
    TeacherError,
    TransientError,
    TruncatedError,
    Usage,
)

LIMIT = 4096  # max_output_tokens of every request
NO_USAGE = Usage()


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a server. ``body`` is JSON unless it is text or bytes; ``cut`` closes the connection within it."""

    body: Any
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: bool = False

    @property
    def data(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


@dataclasses.dataclass(frozen=True)
class Says:
    """A reply with this text and these tokens."""

    text: str = "four"
    usage: Usage | None = None  # None: not checked


@dataclasses.dataclass(frozen=True)
class Fails:
    """A failure of this type and cause.

    Attributes:
        says: a part of the message, so that the server's own message reaches the user.
        wait: ``retry_after`` in seconds.
        room: the ``max_output_tokens`` that would have fitted.
        usage: tokens that are billed anyway; None: not checked.
    """

    type: type[TeacherError]
    cause: str
    says: str = ""
    wait: float | None = None
    room: int | None = None
    usage: Usage | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One behaviour.

    Attributes:
        name: unique.
        service: the service for which it was reported.
        what: the behaviour, in a few words.
        thread: ``owner/repository#number`` of a public report.
        answers: the server's answers, in order; the last one is repeated.
        outcome: the outcome of the first answer.
        limits: ``max_output_tokens`` of each request, if two attempts are allowed; None means one request, or two for a
            transient failure.
        last: the outcome of all attempts; None means that of the first answer.
    """

    name: str
    service: str
    what: str
    thread: str
    answers: Answer | tuple[Answer, ...]
    outcome: Says | Fails
    limits: tuple[int, ...] | None = None
    last: Says | Fails | None = None

    @property
    def sent(self) -> tuple[Answer, ...]:
        return self.answers if isinstance(self.answers, tuple) else (self.answers,)

    @property
    def requests(self) -> tuple[int, ...]:
        """``max_output_tokens`` of each request, with two attempts."""
        if self.limits is not None:
            return self.limits
        again = isinstance(self.outcome, Fails) and self.outcome.type is TransientError
        return (LIMIT,) * (2 if again else 1)


def completion(text: Any = "four", reason: Any = "stop", *, usage: Any = None, **more: Any) -> dict:
    """A chat completion in OpenAI's format; ``more`` has keys of its choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice | more], "usage": usage}


def generated(text: str | None = "four", reason: str = "STOP", *, usage: Any = None, **more: Any) -> dict:
    """A reply in Gemini's format; ``more`` has keys of the body."""
    candidate: dict = {"finishReason": reason, "index": 0}
    if text is not None:
        candidate["content"] = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [candidate], "modelVersion": "m"} | ({} if usage is None else {"usageMetadata": usage}) | more


def failed(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    """``{"error": {"message": ...}}`` with a status."""
    return Answer({"error": {"message": message} | more}, status, headers or {})


def google(status: int, name: str, message: str, *details: dict) -> Answer:
    """Google's form of an error."""
    error = {"code": status, "message": message, "status": name}
    return Answer({"error": error | ({"details": list(details)} if details else {})}, status)


def _info(kind: str, **keys: Any) -> dict:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}"} | keys


FINE = Answer(completion())
MADE = Answer(generated())
BUSY = "rate_limited"
NO_KEY = "unauthorized"
NO_CREDIT = "insufficient_quota"

# ------------------------------------------------------------------------------------------------ usage

USAGE = [
    Row("xai-reasoning-outside", "xAI", "reasoning tokens are in the total only", "vercel/ai#12425",
        Answer(completion(usage={"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 399,
                                 "completion_tokens_details": {"reasoning_tokens": 386}})),
        Says(usage=Usage(12, 387, 386))),
    Row("xai-reasoning-no-total", "xAI", "more reasoning than completion tokens and no total",
        "UKGovernmentBEIS/inspect_ai#5528",
        Answer(completion(usage={"prompt_tokens": 32, "completion_tokens": 9,
                                 "completion_tokens_details": {"reasoning_tokens": 94}})),
        Says(usage=Usage(32, 103, 94))),
    Row("gateway-completion-zero", "CLIProxyAPI", "completion_tokens 0 although the model thought",
        "router-for-me/CLIProxyAPI#5733",
        Answer(completion(usage={"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 81,
                                 "completion_tokens_details": {"reasoning_tokens": 60}})),
        Says(usage=Usage(21, 60, 60))),
    Row("openai-reasoning-inside", "OpenAI", "reasoning tokens are a part of completion_tokens", "",
        Answer(completion(usage={"prompt_tokens": 10, "completion_tokens": 70, "total_tokens": 80,
                                 "completion_tokens_details": {"reasoning_tokens": 60}})),
        Says(usage=Usage(10, 70, 60))),
    Row("clarifai-total-only", "Clarifai", "thinking is in the total only, without details",
        "Clarifai/clarifai-python#978",
        Answer(completion(usage={"prompt_tokens": 20, "completion_tokens": 424, "total_tokens": 1016})),
        Says(usage=Usage(20, 996))),
    Row("deepseek-cache-hit", "DeepSeek", "cached tokens as prompt_cache_hit_tokens", "langchain-ai/langchain#39668",
        Answer(completion(usage={"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105,
                                 "prompt_cache_hit_tokens": 80, "prompt_cache_miss_tokens": 20})),
        Says(usage=Usage(100, 5, None, 80))),
    Row("moonshot-cached", "Moonshot", "cached_tokens at the top of the usage", "",
        Answer(completion(usage={"prompt_tokens": 50, "completion_tokens": 5, "cached_tokens": 40})),
        Says(usage=Usage(50, 5, None, 40))),
    Row("gateway-input-output", "gateways to Anthropic", "input_tokens and output_tokens", "",
        Answer(completion(usage={"input_tokens": 7, "output_tokens": 3})), Says(usage=Usage(7, 3))),
    Row("bifrost-null-usage", "OpenRouter", "counts of null and a total of 0", "maximhq/bifrost#5425",
        Answer(completion(usage={"prompt_tokens": None, "completion_tokens": None, "total_tokens": 0})),
        Says(usage=NO_USAGE)),
    Row("zero-usage", "gateways", "every count is 0, so the server does not count", "",
        Answer(completion(usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})),
        Says(usage=NO_USAGE)),
    Row("no-usage", "small servers", "no usage at all", "", FINE, Says(usage=NO_USAGE)),
    Row("gemini-thoughts-apart", "Gemini", "thoughts apart from the candidates", "Wei-Shaw/sub2api#554",
        Answer(generated(usage={"promptTokenCount": 55021, "candidatesTokenCount": 923, "totalTokenCount": 56729,
                                "thoughtsTokenCount": 785})),
        Says(usage=Usage(55021, 1708, 785))),
    Row("gemini-thoughts-inside", "Gemini", "candidates that include the thoughts: the total decides",
        "simonw/llm-gemini#75",
        Answer(generated(usage={"promptTokenCount": 10, "candidatesTokenCount": 100, "thoughtsTokenCount": 60,
                                "totalTokenCount": 110})),
        Says(usage=Usage(10, 100, 60))),
    Row("gemini-zero-left-out", "Gemini", "a count of 0 is left out", "pydantic/pydantic-ai#4102",
        Answer(generated("", usage={"promptTokenCount": 11280, "totalTokenCount": 11280})),
        Says("", Usage(11280, 0))),
    Row("gemini-blocked-prompt-usage", "Gemini", "a blocked prompt has no output, and says only its input", "",
        Answer({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 90}}),
        Fails(BlockedError, "blocked", "PROHIBITED_CONTENT", usage=Usage(90, 0))),
    Row("gemini-only-thought", "Gemini", "the whole limit was used for thinking", "BerriAI/litellm#36881",
        Answer(generated(None, "MAX_TOKENS", usage={"promptTokenCount": 9, "thoughtsTokenCount": 4096,
                                                    "totalTokenCount": 4105})),
        Fails(TruncatedError, "truncated", usage=Usage(9, 4096, 4096)), limits=(LIMIT, 2 * LIMIT)),
    Row("gemini-no-usage", "Gemini", "no usageMetadata", "", MADE, Says(usage=NO_USAGE)),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ finish reasons

FINISH = [
    Row("finish-end-turn", "xAI", "finish_reason end_turn is an end", "zeitlings/ayai-gpt-nexus#2",
        Answer(completion(reason="end_turn")), Says()),
    Row("finish-eos", "Together", "finish_reason eos is an end", "togethercomputer/together-python#153",
        Answer(completion(reason="eos")), Says()),
    Row("finish-absent", "gateways", "finish_reason null", "QuantumNous/new-api#696",
        Answer(completion(reason=None)), Says()),
    Row("finish-capital", "gateways to Gemini", "finish_reason STOP in capitals", "",
        Answer(completion(reason="STOP")), Says()),
    Row("finish-abort", "vLLM", "200 with finish_reason abort: the engine stopped", "vllm-project/vllm#57082",
        (Answer(completion("fo", "abort")), FINE), Fails(TransientError, "unfinished", "abort"), last=Says()),
    Row("finish-abort-sglang", "SGLang", "200 with finish_reason abort: another instance died",
        "sgl-project/sglang#6693",
        Answer(completion("", "abort")), Fails(TransientError, "unfinished")),
    Row("finish-error", "OpenRouter", "finish_reason error: the provider died within the reply",
        "gethouston/houston#1211",
        (Answer(completion("fo", "error")), FINE), Fails(TransientError, "server_error"), last=Says()),
    Row("finish-error-object", "OpenRouter", "an error next to what was generated so far", "genkit-ai/genkit#6259",
        Answer(completion("fo", "error", error={"code": 429, "message": "upstream is rate limited"})),
        Fails(TransientError, BUSY, "upstream is rate limited")),
    Row("finish-error-finish", "Bedrock relays", "finish_reason error_finish with the throttling as the text",
        "ranxianglei/billion-context-pi#169",
        Answer(completion("Too many tokens, please wait before trying again.", "error_finish")),
        Fails(TransientError, "unfinished")),
    Row("finish-no-resource", "DeepSeek", "finish_reason insufficient_system_resource", "genkit-ai/genkit#6259",
        (Answer(completion("fo", "insufficient_system_resource")), FINE), Fails(TransientError, "unavailable"),
        last=Says()),
    Row("finish-tool-calls", "OpenAI", "tool_calls without a tool", "yenche123/liubai#26",
        Answer(completion(None, "tool_calls")), Fails(TransientError, "unfinished", "tool_calls")),
    Row("finish-length", "OpenAI", "finish_reason length", "",
        (Answer(completion("fo", "length", usage={"prompt_tokens": 5, "completion_tokens": 4096})), FINE),
        Fails(TruncatedError, "truncated", usage=Usage(5, 4096)), limits=(LIMIT, 2 * LIMIT), last=Says()),
    Row("finish-model-length", "Mistral", "finish_reason model_length", "",
        (Answer(completion("fo", "model_length")), FINE), Fails(TruncatedError, "truncated"),
        limits=(LIMIT, 2 * LIMIT), last=Says()),
    Row("finish-context", "Zhipu", "finish_reason model_context_window_exceeded", "genkit-ai/genkit#6259",
        Answer(completion("fo", "model_context_window_exceeded")), Fails(ContextError, "context")),
    Row("finish-sensitive", "Zhipu", "finish_reason sensitive is a content filter", "anomalyco/opencode#44092",
        Answer(completion("", "sensitive")), Fails(BlockedError, "blocked")),
    Row("finish-filter", "Azure", "finish_reason content_filter", "",
        Answer(completion("", "content_filter")), Fails(BlockedError, "blocked")),
    Row("finish-refusal", "OpenAI", "a refusal instead of content", "",
        Answer(completion(None, message={"role": "assistant", "content": None, "refusal": "No."})),
        Fails(BlockedError, "refused", "No.")),
    Row("gemini-other", "Gemini", "finishReason OTHER", "epam/ai-dial-adapter-vertexai#162",
        (Answer(generated(None, "OTHER")), MADE), Fails(TransientError, "unfinished", "OTHER"), last=Says()),
    Row("gemini-malformed-call", "Gemini", "finishReason MALFORMED_FUNCTION_CALL without a tool",
        "BerriAI/litellm#40477",
        (Answer(generated(None, "MALFORMED_FUNCTION_CALL")), MADE), Fails(TransientError, "unfinished"), last=Says()),
    Row("gemini-recitation", "Gemini", "finishReason RECITATION", "",
        Answer(generated(None, "RECITATION")), Fails(BlockedError, "blocked", "RECITATION")),
    Row("gemini-stop-empty", "Gemini", "STOP without parts: an empty reply, which its role asks for again",
        "google-gemini/deprecated-generative-ai-python#744",
        Answer(generated(None, "STOP")), Says("")),
]  # fmt: skip

# ------------------------------------------------------------------------------------ 200 that is no reply

NO_REPLY = [
    Row("inside-429", "OpenRouter", "200 with an error instead of choices", "BerriAI/litellm#8448",
        (Answer({"error": {"message": "Provider returned error", "code": 429,
                           "metadata": {"raw": "m is temporarily rate-limited upstream", "provider_name": "P"}}}),
         FINE),
        Fails(TransientError, BUSY, "200 (which means 429) for model 'inside-429': Provider returned error: m is "),
        last=Says()),
    Row("inside-502", "OpenRouter", "200 with the error of a provider behind it", "Aider-AI/aider#3550",
        Answer({"error": {"message": "Internal Server Error", "code": 502}, "choices": None}),
        Fails(TransientError, "server_error", "Internal Server Error")),
    Row("inside-next-to-empty", "OpenRouter", "an error next to a choice without content", "BerriAI/litellm#8448",
        Answer(completion(None) | {"error": {"message": "Provider returned error", "code": 429}}),
        Fails(TransientError, BUSY)),
    Row("inside-401", "gateways", "200 with a refused key inside", "spring-projects/spring-ai#6908",
        Answer({"error": {"message": "No auth credentials found", "code": 401}}),
        Fails(ConfigurationError, NO_KEY, "No auth credentials found")),
    Row("inside-type", "gateways to Anthropic", "200 whose error has a type and no number", "",
        Answer({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        Fails(TransientError, "overloaded")),
    Row("inside-unknown", "gateways", "200 with an error of unknown kind", "spring-projects/spring-ai#6908",
        Answer({"error": {"message": "something went wrong"}}),
        Fails(TransientError, "server_error", "something went wrong")),
    Row("inside-text-busy", "gateways", "200 with an error that is only words: busy", "",
        Answer({"error": "Rate limit exceeded, please retry in 5 seconds"}), Fails(TransientError, BUSY, wait=5.0)),
    Row("inside-text-key", "gateways", "200 with an error that is only words: a wrong key", "",
        Answer({"error": "Invalid API key provided"}), Fails(ConfigurationError, NO_KEY)),
    Row("inside-vllm-form", "vLLM", "200 with the error's keys at the top", "",
        Answer({"object": "error", "message": "bad seed", "type": "BadRequestError", "code": 400}),
        Fails(RequestError, "bad_request", "bad seed")),
    Row("inside-minimax", "MiniMax", "200 with base_resp", "",
        Answer({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit exceeded(RPM)"}}),
        Fails(TransientError, BUSY)),
    Row("inside-minimax-balance", "MiniMax", "200 with base_resp about the balance", "",
        Answer({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
        Fails(ConfigurationError, NO_CREDIT)),
    Row("inside-empty", "gateways", "an empty error next to a whole reply", "",
        Answer(completion() | {"error": {"code": None, "message": ""}}), Says()),
    Row("inside-context", "llama.cpp", "200 with an overflow inside", "oobabooga/textgen#7257",
        Answer({"error": {"code": 400, "message": "the request exceeds the available context size. try increasing the "
                          "context size or enable context shift", "type": "exceed_context_size_error",
                          "n_prompt_tokens": 14429, "n_ctx": 8192}}),
        Fails(ContextError, "context", "exceeds the available context size")),
    Row("inside-moderation", "gateways", "200 with a content filter inside", "",
        Answer({"error": {"code": "content_filter", "message": "blocked"}}), Fails(BlockedError, "blocked")),
    Row("lmstudio-path", "LM Studio", "200 for a path that it does not have (/v1 is missing)",
        "lmstudio-ai/lmstudio-bug-tracker#618",
        Answer({"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
        Fails(ConfigurationError, "not_found", "teacher.base_url")),
    Row("choices-null", "9Router", "200 with choices null: the provider is exhausted", "decolua/9router#2727",
        (Answer({"id": None, "choices": None, "object": None}), FINE), Fails(TransientError, "no_choices"),
        last=Says()),
    Row("choices-empty", "Azure", "200 with no choices", "",
        Answer({"id": "1", "object": "chat.completion", "choices": [], "model": "m"}),
        Fails(TransientError, "no_choices")),
    Row("empty-lines", "DeepSeek", "200 with empty lines only: high load", "deepseek-ai/DeepSeek-V3#606",
        (Answer("\n\n\n\n"), FINE), Fails(TransientError, "empty_body"), last=Says()),
    Row("lines-before", "DeepSeek", "empty lines before the reply, which keep the connection open",
        "bespokelabsai/curator#463", Answer("\n\n\n\n" + json.dumps(completion())), Says()),
    Row("byte-order-mark", "gateways", "a byte order mark before the reply", "",
        Answer(b"\xef\xbb\xbf" + json.dumps(completion()).encode()), Says()),
    Row("cut-json", "gateways", "half a JSON body", "",
        (Answer(json.dumps(completion())[:70]), FINE), Fails(TransientError, "cut_off"), last=Says()),
    Row("cut-connection", "vLLM", "the connection ends within the body", "openai/openai-python#2065",
        (Answer(completion(), cut=True), FINE), Fails(TransientError, "connection"), last=Says()),
    Row("web-page", "proxies", "a page to log in", "",
        Answer("<html><body>Please log in</body></html>"), Fails(TransientError, "web_page", "teacher.base_url")),
    Row("gemini-inside", "Gemini", "200 with an error inside", "",
        (Answer({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}), MADE),
        Fails(TransientError, "unavailable", "overloaded"), last=Says()),
    Row("gemini-no-candidates", "Gemini", "200 without candidates", "ShishirPatil/gorilla#809",
        (Answer({"usageMetadata": {"promptTokenCount": 4, "totalTokenCount": 4}, "modelVersion": "m"}), MADE),
        Fails(TransientError, "no_candidates", usage=Usage(4, 0)), last=Says()),
    Row("gemini-empty-feedback", "Gemini", "200 with ratings only, no reason for a block", "songquanpeng/one-api#1718",
        Answer({"promptFeedback": {"safetyRatings": []}, "candidates": []}), Fails(TransientError, "no_candidates")),
    Row("gemini-cut-json", "Gemini", "half a JSON body", "",
        (Answer(json.dumps(generated())[:60]), MADE), Fails(TransientError, "cut_off"), last=Says()),
    Row("gemini-cut-connection", "Gemini", "the connection ends within the body", "",
        (Answer(generated(), cut=True), MADE), Fails(TransientError, "connection"), last=Says()),
    Row("gemini-empty-body", "Gemini", "200 with an empty body", "",
        (Answer(""), MADE), Fails(TransientError, "empty_body"), last=Says()),
    Row("gemini-other-form", "Gemini", "JSON of another form", "", Answer([1]), Fails(MalformedError, "malformed")),
]  # fmt: skip

# ------------------------------------------------------------------------- content filters, keys, credit, regions

REFUSED = [
    Row("xai-403", "xAI", "403 that means the content", "UKGovernmentBEIS/inspect_ai#2267",
        Answer({"code": "The caller does not have permission to execute the specified operation", "error": "Content "
                "violates usage guidelines. Team: t, Model: grok-4, Failed check: SAFETY_CHECK_TYPE_BIO"}, 403),
        Fails(BlockedError, "blocked", "SAFETY_CHECK_TYPE_BIO")),
    Row("openrouter-403", "OpenRouter", "403 of its moderation", "cline/cline#2075",
        failed(403, "m requires moderation on P. Your input was flagged", code=403,
               metadata={"reasons": ["violence"], "flagged_input": "...", "provider_name": "P"}),
        Fails(BlockedError, "blocked")),
    Row("cloudflare-403", "Cloudflare", "403 of a firewall that takes code in a prompt for an attack",
        "cloudflare/har-sanitizer#57",
        Answer("<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title><style>p{}</style></head>"
               "<body><h1>Sorry, you have been blocked</h1></body></html>", 403),
        Fails(BlockedError, "blocked", "you have been blocked")),
    Row("azure-filter", "Azure", "400 of its content filter", "openai/openai-python#331",
        failed(400, "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
               code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}),
        Fails(BlockedError, "blocked")),
    Row("openai-invalid-prompt", "OpenAI", "400 invalid_prompt of reasoning models", "usestrix/strix#1162",
        failed(400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
               type="invalid_request_error", code="invalid_prompt"),
        Fails(BlockedError, "blocked")),
    Row("dashscope-inspection", "DashScope", "400 of its data inspection", "camel-ai/owl#432",
        failed(400, "Input data may contain inappropriate content.", code="data_inspection_failed"),
        Fails(BlockedError, "blocked")),
    Row("dashscope-inspection-text", "DashScope", "the same in words only", "QwenLM/qwen-code#3145",
        failed(400, "<400> InternalError.Algo.DataInspectionFailed: Input text data may contain inappropriate "
                    "content."),
        Fails(BlockedError, "blocked")),
    Row("zhipu-1301", "Zhipu", "code 1301: unsafe or sensitive", "",
        failed(400, "系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301"), Fails(BlockedError, "blocked")),
    Row("plain-403", "OpenAI", "403 about the key's rights", "",
        failed(403, "You have insufficient permissions for this operation. Missing scopes: model.request"),
        Fails(ConfigurationError, NO_KEY)),
    Row("suspended-403", "Gemini", "403 about a suspended project", "",
        google(403, "PERMISSION_DENIED", "Permission denied: Consumer 'project' has been suspended."),
        Fails(ConfigurationError, NO_KEY)),
    Row("deactivated-policy", "OpenAI", "403: an account closed for its content is no blocked prompt", "",
        failed(403, "Your account was deactivated for violating our usage policies.", code="account_deactivated"),
        Fails(ConfigurationError, NO_KEY)),
    Row("region-403", "OpenAI", "403 unsupported_country_region_territory", "home-assistant/core#120072",
        failed(403, "Country, region, or territory not supported", code="unsupported_country_region_territory"),
        Fails(ConfigurationError, "region")),
    Row("region-400", "Gemini", "400 User location is not supported", "google-gemini/gemini-cli#1993",
        google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
        Fails(ConfigurationError, "region")),
    Row("gemini-expired-key", "Gemini", "400 API key expired", "plainbook-ai/plainbook#25",
        google(400, "INVALID_ARGUMENT", "API key expired. Please renew the API key.",
               _info("ErrorInfo", reason="API_KEY_INVALID")),
        Fails(ConfigurationError, NO_KEY)),
    Row("gemini-invalid-key", "Gemini", "400 API key not valid", "google-gemini/gemini-cli#4690",
        google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
        Fails(ConfigurationError, NO_KEY)),
    Row("quoted-key-error", "gateways to Gemini", "an error as a text within an error", "continuedev/continue#11336",
        failed(400, json.dumps({"error": {"code": 400, "message": "API key expired. Please renew the API key."}}),
               code=400),
        Fails(ConfigurationError, NO_KEY, "renew the API key")),
    Row("openai-quota", "OpenAI", "429 insufficient_quota is no rate limit", "langchain-ai/langchainjs#1929",
        failed(429, "You exceeded your current quota, please check your plan and billing details.",
               type="insufficient_quota", code=None),
        Fails(ConfigurationError, NO_CREDIT)),
    Row("gemini-quota-minute", "Gemini", "429 with the words of a used-up quota, about one minute",
        "RooCodeInc/Roo-Code#3883",
        (google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing "
                                           "details.",
                _info("QuotaFailure", violations=[{"quotaId": "GenerateContentInputTokensPerModelPerMinute-FreeTier"}]),
                _info("RetryInfo", retryDelay="26s")), MADE),
        Fails(TransientError, BUSY, wait=26.0), last=Says()),
    Row("gemini-quota-day", "Gemini", "429 about a day", "glidea/one-balance#12",
        google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing "
                                          "details.",
               _info("QuotaFailure", violations=[{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]),
               _info("RetryInfo", retryDelay="40s")),
        Fails(ConfigurationError, NO_CREDIT)),
    Row("gemini-quota-plain", "Gemini", "429 without a time: used up until midnight",
        "gke-labs/gemini-for-kubernetes-development#1215",
        google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing "
                                          "details."),
        Fails(ConfigurationError, NO_CREDIT)),
    Row("vertex-exhausted", "Vertex", "429 Resource exhausted is a rate limit", "google-gemini/gemini-cli#14811",
        google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
        Fails(TransientError, BUSY)),
    Row("anthropic-credit", "gateways to Anthropic", "400 Your credit balance is too low",
        "anthropics/claude-quickstarts#229",
        failed(400, "Your credit balance is too low to access the Anthropic API.", type="invalid_request_error"),
        Fails(ConfigurationError, NO_CREDIT)),
    Row("openrouter-402", "OpenRouter", "402: the credit is smaller than max_tokens", "QwenLM/qwen-code#73",
        failed(402, "This request requires more credits, or fewer max_tokens. You requested up to 4096 tokens, but can "
               "only afford 100.", code=402),
        Fails(ConfigurationError, NO_CREDIT, "can only afford 100")),
    Row("zhipu-1113", "Zhipu", "429 with code 1113: no balance", "",
        failed(429, "Insufficient balance or no resource package. Please recharge.", code="1113"),
        Fails(ConfigurationError, NO_CREDIT)),
    Row("ollama-404", "Ollama", "404 for a model that is not there", "",
        failed(404, 'model "m" not found, try pulling it first', type="api_error"),
        Fails(ConfigurationError, "not_found", "try pulling it first")),
    Row("http-to-https", "nginx", "400: http to a port that speaks https", "",
        Answer("<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>", 400),
        Fails(ConfigurationError, "not_found", "plain HTTP request was sent to HTTPS port")),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ too long

_ROOM = LIMIT // 2


def _over(name: str, service: str, thread: str, answer: Answer, what: str = "", room: int | None = None) -> Row:
    """An overflow. If its message shows how much output would fit, the second request asks for that much."""
    if room is None:
        return Row(name, service, what or "a prompt over the context", thread, answer, Fails(ContextError, "context"))
    return Row(name, service, what or "prompt and max_tokens over the context", thread, (answer, FINE),
               Fails(ContextError, "context", room=room), limits=(LIMIT, room), last=Says())  # fmt: skip


TOO_LONG = [
    _over("context-openai", "OpenAI", "ChatGPTNextWeb/NextChat#3195",
          failed(400, "This model's maximum context length is 8192 tokens. However, you requested 10240 tokens (6144 "
                 "in the messages, 4096 in the completion). Please reduce the length of the messages or completion.",
                 code="context_length_exceeded"), room=2048),
    _over("context-openai-prompt", "OpenAI", "webtimemachine/wtm2#579",
          failed(400, "This model's maximum context length is 128000 tokens. However, your messages resulted in 204308 "
                 "tokens.", code="context_length_exceeded")),
    _over("context-vllm", "vLLM", "ogx-ai/ogx#4534",
          Answer({"object": "error", "message": "This model's maximum context length is 6048 tokens. However, you "
                  "requested 8144 tokens (4048 in the messages, 4096 in the completion).", "type": "BadRequestError",
                  "param": None, "code": 400}, 400), room=2000),
    _over("context-vllm-new", "vLLM", "claude-code-best/claude-code#272",
          failed(400, "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length "
                 "is 6000 tokens and your request has 5000 input tokens (4096 > 6000 - 5000)."), room=1000),
    _over("context-vllm-prompt", "vLLM", "thu-coai/Glyph#9",
          failed(400, "The decoder prompt (length 163840) is longer than the maximum model length of 131072. Make sure "
                 "that `max_model_len` is no smaller than the number of text tokens.")),
    _over("context-vllm-500", "Xinference", "langchain-ai/deepagents#468",
          Answer({"detail": "[address=0.0.0.0:1, pid=1] The decoder prompt (length 66501) is longer than the maximum "
                  "model length of 65536."}, 500), "a prompt over the context, as 500"),
    _over("context-sglang", "SGLang", "sgl-project/sglang#4048",
          failed(400, "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).")),
    _over("context-sglang-both", "SGLang", "",
          failed(400, "Requested token count exceeds the model's maximum context length of 8192 tokens. You requested "
                 "a total of 10096 tokens: 6000 tokens from the input messages and 4096 tokens for the completion."),
          room=2192),
    _over("context-llamacpp", "llama.cpp", "ggml-org/llama.cpp#17284",
          failed(400, "the request exceeds the available context size, try increasing it", code=400,
                 type="exceed_context_size_error", n_prompt_tokens=15953, n_ctx=8192)),
    _over("context-llamacpp-500", "llama.cpp", "ggml-org/llama.cpp#15780",
          failed(500, "the request exceeds the available context size. try increasing the context size or enable "
                 "context shift", code=500, type="exceed_context_size_error", n_prompt_tokens=1407, n_ctx=256),
          "a prompt over the context, as 500"),
    _over("context-llamacpp-python", "llama-cpp-python", "abetlen/llama-cpp-python#416",
          failed(400, "Requested tokens (2285) exceed context window of 2048", code="context_length_exceeded")),
    _over("context-lmstudio", "LM Studio", "Gitlawb/openclaude#353",
          Answer({"error": "The number of tokens to keep from the initial prompt is greater than the context length "
                  "(n_keep: 13055>= n_ctx: 4096)."}, 400)),
    _over("context-lmstudio-new", "LM Studio", "anomalyco/opencode#11141",
          Answer({"error": "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)"}, 400)),
    _over("context-tgi", "TGI", "huggingface/llm-vscode#94",
          Answer({"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 6204 "
                  "`inputs` tokens and 4096 `max_new_tokens`", "error_type": "validation"}, 422), room=1988),
    _over("context-tgi-prompt", "TGI", "huggingface/text-generation-inference#695",
          Answer({"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1168",
                  "error_type": "validation"}, 422)),
    _over("context-together", "Together", "BerriAI/litellm#4934",
          failed(400, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 80125 "
                 "`inputs` tokens and 4096 `max_new_tokens`", type="invalid_request_error", param="max_tokens")),
    _over("context-xai", "xAI", "cline/cline#3120",
          Answer({"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is "
                  "131072 but the request contains 136973 tokens."}, 400)),
    _over("context-anthropic", "gateways to Anthropic", "docker/docker-agent#569",
          Answer({"type": "error", "error": {"type": "invalid_request_error", "message": "input length and "
                  "`max_tokens` exceed context limit: 198000 + 4096 > 200000, decrease input length or "
                  "`max_tokens`"}}, 400),
          room=2000),
    _over("context-anthropic-prompt", "gateways to Anthropic", "entropy-research/Devon#88",
          failed(400, "prompt is too long: 209353 tokens > 199999 maximum", type="invalid_request_error")),
    _over("context-bedrock", "Bedrock", "aws-samples/bedrock-chat#95",
          Answer({"message": "Input is too long for requested model."}, 400)),
    _over("context-trtllm", "TensorRT-LLM", "triton-inference-server/tensorrtllm_backend#141",
          failed(500, "Cannot process new request: Prompt length (5056) exceeds maximum sequence length (2048)"),
          "a prompt over the context, as 500"),
    _over("context-moonshot", "Moonshot", "",
          failed(400, "Invalid request: Your request exceeded model token limit: 8192 (requested: 10192)",
                 type="invalid_request_error"), room=2096),
    _over("context-moonshot-old", "Moonshot", "MoonshotAI/MoonshotAI-Cookbook#18",
          failed(400, "model max length exceeded, max length:8192")),
    _over("context-dashscope", "DashScope", "agentscope-ai/QwenPaw#6255",
          failed(400, "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 983616]",
                 code="invalid_parameter_error")),
    _over("context-zhipu", "Zhipu", "zeroclaw-labs/zeroclaw#4124",
          failed(400, "Prompt exceeds max length", code="1261")),
    _over("context-mistral", "Mistral", "",
          Answer({"object": "error", "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model "
                  "with 32768 maximum context length", "type": "invalid_request_error", "code": "3051"}, 400)),
    _over("context-openrouter", "OpenRouter", "refly-ai/refly#1177",
          failed(400, "This endpoint's maximum context length is 32768 tokens. However, you requested about 42832 "
                 "tokens (42832 of text input).", code=400)),
    _over("context-groq-413", "Groq", "ITSpecialist111/ai_automation_suggester#61",
          failed(413, "Request too large for model `m` in organization `o` service tier `on_demand` on tokens per "
                 "minute (TPM): Limit 6000, Requested 8096, please reduce your message size and try again.",
                 type="tokens",
                 code="rate_limit_exceeded"), "more tokens than a minute allows, which no wait changes", room=2000),
    _over("context-openai-tpm", "OpenAI", "vanna-ai/vanna-flask#11",
          failed(429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389.",
                 type="tokens", code="rate_limit_exceeded"), "more tokens than a minute allows, as 429"),
    _over("context-github-413", "GitHub Models", "cline/cline#2115",
          failed(413, "Request body too large for gpt-4o model. Max size: 8000 tokens.", code="tokens_limit_reached")),
    _over("context-nginx-413", "nginx", "CosmosShadow/gptpdf#38",
          Answer("<html><head><title>413 Request Entity Too Large</title></head></html>", 413), "more bytes than it "
                                                                                                "takes"),
    Row("context-gemini", "Gemini", "a prompt over the context", "google-gemini/gemini-cli#6678",
        google(400, "INVALID_ARGUMENT", "The input token count (1200293) exceeds the maximum number of tokens allowed "
               "(1048576)."), Fails(ContextError, "context")),
    Row("context-vertex", "Vertex", "a prompt over the context", "google-gemini/gemini-cli#19727",
        google(400, "INVALID_ARGUMENT", "Unable to submit request because the input token count is 1251952 but model "
               "only supports up to 1048576. Reduce the input token count and try again."), Fails(ContextError,
               "context")),
    Row("output-openai", "OpenAI", "max_tokens over what the model allows", "ChatGPTNextWeb/NextChat#3195",
        (failed(400, "max_tokens is too large: 4096. This model supports at most 2048 completion tokens, whereas you "
                "provided 4096.", type="invalid_request_error", param="max_tokens"), FINE),
        Fails(RequestError, "bad_request", room=2048), limits=(LIMIT, 2048), last=Says()),
    Row("output-vertex", "Vertex", "maxOutputTokens over what the model allows", "",
        (google(400, "INVALID_ARGUMENT", "Unable to submit request because it has a maxOutputTokens value of 4096 but "
                "the supported range is from 1 (inclusive) to 2049 (exclusive). Update the value and try again."),
                MADE),
        Fails(RequestError, "bad_request", room=2048), limits=(LIMIT, 2048), last=Says()),
    Row("truncated-then-room", "vLLM", "after a cut reply, twice the limit does not fit, but a little more does", "",
        (Answer(completion("fo", "length")),
         failed(400, "This model's maximum context length is 10000 tokens. However, you requested 12192 tokens (4000 "
                "in the messages, 8192 in the completion)."), FINE),
        Fails(TruncatedError, "truncated"), limits=(LIMIT, 2 * LIMIT, 6000), last=Says()),
    Row("truncated-no-room", "vLLM", "after a cut reply nothing more fits: the answers are asked for in parts", "",
        (Answer(completion("fo", "length")),
         failed(400, "This model's maximum context length is 8000 tokens. However, you requested 12192 tokens (4000 in "
                "the messages, 8192 in the completion).")),
        Fails(TruncatedError, "truncated"), limits=(LIMIT, 2 * LIMIT), last=Fails(ContextError, "context")),
    Row("room-not-enough", "vLLM", "the reply is cut within all that fits: the answers are asked for in parts", "",
        (failed(400, "This model's maximum context length is 8192 tokens. However, you requested 10096 tokens (6000 in "
                "the messages, 4096 in the completion)."), Answer(completion("fo", "length"))),
        Fails(ContextError, "context", room=2192), limits=(LIMIT, 2192), last=Fails(ContextError, "context", "2192")),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ traffic

TRAFFIC = [
    Row("wait-ms", "Azure", "retry-after-ms before retry-after", "openai/openai-python#957",
        (failed(429, "Requests have exceeded the token rate limit.", {"retry-after-ms": "250", "retry-after": "1"}),
        FINE),
        Fails(TransientError, BUSY, wait=0.25), last=Says()),
    Row("wait-header", "OpenAI", "retry-after in seconds", "",
        (failed(429, "Rate limit reached.", {"Retry-After": "7"}), FINE), Fails(TransientError, BUSY, wait=7.0),
        last=Says()),
    Row("wait-seconds-in-text", "OpenAI", "Please try again in 9.816s", "FoundationAgents/MetaGPT#523",
        failed(429, "Rate limit reached for gpt-4 in organization o on tokens per min (TPM): Limit 10000, Used 8554, "
               "Requested 3082. Please try again in 9.816s.", type="tokens", code="rate_limit_exceeded"),
        Fails(TransientError, BUSY, wait=9.816)),
    Row("wait-minutes-in-text", "OpenAI", "Please try again in 1m9.696s", "Pythagora-io/gpt-pilot#608",
        failed(429, "Rate limit reached for m on tokens per day (TPD): Limit 1500000, Used 1485066, Requested 16144. "
               "Please try again in 1m9.696s.", code="rate_limit_exceeded"), Fails(TransientError, BUSY, wait=69.696)),
    Row("wait-ms-in-text", "OpenAI", "Please try again in 579ms", "Pythagora-io/gpt-pilot#608",
        failed(429, "Rate limit reached for m. Please try again in 579ms.", code="rate_limit_exceeded"),
        Fails(TransientError, BUSY, wait=0.579)),
    Row("wait-azure-text", "Azure", "Please retry after 45 seconds", "icereed/paperless-gpt#814",
        failed(429, "Your requests have exceeded the token rate limit of your tier. Please retry after 45 seconds.",
               code="429"), Fails(TransientError, BUSY, wait=45.0)),
    Row("wait-gemini", "Gemini", "retryDelay in the details", "letterstory/lettertrace#34",
        (google(429, "RESOURCE_EXHAUSTED", "Quota of a minute.", _info("RetryInfo", retryDelay="38s")), MADE),
        Fails(TransientError, BUSY, wait=38.0), last=Says()),
    Row("wait-gemini-openai", "Gemini behind its OpenAI address", "a list with retryDelay", "",
        Answer([{"error": {"code": 429, "message": "Quota of a minute.", "status": "RESOURCE_EXHAUSTED",
                           "details": [_info("RetryInfo", retryDelay="12.5s")]}}], 429),
        Fails(TransientError, BUSY, wait=12.5)),
    Row("wait-huggingface", "Hugging Face", "503 with estimated_time while a model loads",
        "huggingface/transformers#32665",
        Answer({"error": "Model m is currently loading", "estimated_time": 20.0}, 503),
        Fails(TransientError, "unavailable", wait=20.0)),
    Row("llamacpp-loading", "llama.cpp", "503 while it loads the model", "mostlygeek/llama-swap#146",
        (failed(503, "Loading model", code=503, type="unavailable_error"), FINE), Fails(TransientError, "unavailable"),
        last=Says()),
    Row("ollama-busy", "Ollama", "503 of a full queue", "valentinfrlch/ha-llmvision#648",
        Answer({"error": "server busy, please try again. maximum pending requests exceeded"}, 503),
        Fails(TransientError, "unavailable")),
    Row("ollama-runner", "Ollama", "500 when its runner stops", "ollama/ollama#14093",
        failed(500, "model runner has unexpectedly stopped, this may be due to resource limitations", type="api_error"),
        Fails(TransientError, "server_error")),
    Row("bedrock-throttle", "Bedrock", "429 Too many tokens is traffic, not length", "anthropics/claude-code#236",
        Answer({"message": "Too many tokens, please wait before trying again."}, 429), Fails(TransientError, BUSY)),
    Row("bedrock-throttle-400", "Bedrock relays", "400 with a ThrottlingException", "crewAIInc/crewAI#7417",
        failed(400, "Too many tokens, please wait before trying again.", type="ThrottlingException"),
        Fails(TransientError, BUSY)),
    Row("cerebras-429", "Cerebras", "429 about the tokens of a minute", "continuedev/continue#9800",
        Answer({"message": "Tokens per minute limit exceeded - too many tokens processed.",
                "type": "too_many_tokens_error", "code": "token_quota_exceeded"}, 429), Fails(TransientError, BUSY)),
    Row("zhipu-1302", "Zhipu", "429 with code 1302: too much concurrency", "kaitranntt/ccs#402",
        failed(429, "High concurrency usage of this API, please reduce concurrency", code="1302"),
        Fails(TransientError, BUSY)),
    Row("meta-429", "Llama API", "429 with a title and a detail", "meta-llama/llama-models#354",
        Answer({"title": "Too Many Requests", "detail": "You have exceeded the maximum number of tokens allowed within "
                "a given time frame. Wait a bit and try again.", "status": 429}, 429), Fails(TransientError, BUSY)),
    Row("cloudflare-1015", "Cloudflare", "403 error code: 1015 is a rate limit", "BerriAI/litellm#8448",
        Answer("error code: 1015", 403), Fails(TransientError, BUSY)),
    Row("anthropic-529", "gateways to Anthropic", "529 Overloaded", "",
        Answer({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 529),
        Fails(TransientError, "overloaded")),
    Row("groq-498", "Groq", "498: no capacity in the flexible tier", "",
        failed(498, "Flex tier capacity exceeded", type="server_error", code="capacity_exceeded"),
        Fails(TransientError, "overloaded")),
    Row("cloudflare-524", "Cloudflare", "524: the server took too long", "",
        Answer("<html><title>524: A timeout occurred</title></html>", 524), Fails(TransientError, "timeout")),
    Row("nginx-502", "nginx", "502 with a page", "",
        (Answer("<html><head><title>502 Bad Gateway</title></head></html>", 502), FINE),
        Fails(TransientError, "unavailable", "502 Bad Gateway"), last=Says()),
    Row("nginx-502-cut", "nginx", "502 whose connection ends within the body", "",
        (Answer("<html><title>502 Bad Gateway</title></html>", 502, cut=True), FINE),
        Fails(TransientError, "unavailable"), last=Says()),
    Row("hidden-status", "gateways", "500 around a 429", "",
        failed(500, "Upstream error", code=429), Fails(TransientError, BUSY)),
    Row("hidden-words", "gateways", "500 whose words are a 429", "",
        failed(500, "Upstream said: Too Many Requests"), Fails(TransientError, BUSY)),
    Row("openai-400-internal", "OpenAI", "400 whose words are a 500", "",
        failed(400, "The server had an error while processing your request. Sorry about that!", type="server_error"),
        Fails(TransientError, "server_error")),
    Row("vllm-quotes-prompt", "vLLM", "400 that quotes the prompt, whose words decide nothing", "",
        failed(400, "[{'type': 'value_error', 'loc': ('body',), 'input': {'messages': [{'content': 'flagged as "
               "inappropriate content'}]}}]", code=400),
        Fails(RequestError, "bad_request")),
    Row("fastapi-422", "vLLM", "422 with a list of problems", "",
        Answer({"detail": [{"loc": ["body", "seed"], "msg": "Input should be a valid integer", "type": "int_type"}]},
        422),
        Fails(RequestError, "bad_request", "valid integer")),
    Row("gemini-5xx-list", "Gemini", "500 whose body is JSON but no object", "",
        (Answer([[]], 500), MADE), Fails(TransientError, "server_error"), last=Says()),
    Row("gemini-5xx-text", "Gemini", "503 with a JSON text", "",
        (Answer('"unavailable"', 503), MADE), Fails(TransientError, "unavailable"), last=Says()),
    Row("gemini-5xx-null", "Gemini", "502 with null", "", Answer("null", 502), Fails(TransientError, "unavailable")),
    Row("gemini-5xx-page", "Gemini", "502 with a page", "googleapis/python-aiplatform#5010",
        Answer("<html><title>Error 502 (Server Error)!!1</title></html>", 502),
        Fails(TransientError, "unavailable", "Error 502")),
    Row("gemini-5xx-cut", "Gemini", "503 whose connection ends within the body", "",
        (Answer({"error": {"code": 503, "message": "overloaded"}}, 503, cut=True), MADE),
        Fails(TransientError, "unavailable"), last=Says()),
    Row("gemini-503", "Gemini", "503 UNAVAILABLE: the model is overloaded", "",
        (google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), MADE),
        Fails(TransientError, "unavailable"), last=Says()),
    Row("gemini-499", "Gemini", "499: cancelled on its side", "",
        google(499, "CANCELLED", "The operation was cancelled."), Fails(TransientError, "server_error")),
    Row("gemini-504", "Gemini", "504 DEADLINE_EXCEEDED", "",
        google(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
        Fails(TransientError, "timeout")),
]  # fmt: skip

GROUPS: dict[str, list[Row]] = {
    "usage": USAGE,
    "finish reasons": FINISH,
    "200 without a reply": NO_REPLY,
    "refusals": REFUSED,
    "too long": TOO_LONG,
    "traffic": TRAFFIC,
}
ROWS = [row for rows in GROUPS.values() for row in rows]
GOOGLE = ("Gemini", "Vertex")


def api_of(row: Row) -> str:
    """``gemini`` for the rows in Google's own format, ``openai`` for the others."""
    return "gemini" if row.service in GOOGLE else "openai"


def meaning(row: Row) -> str:
    """The client's outcome for the row, in a few words, for the documentation.

    >>> meaning(next(row for row in ROWS if row.name == "wait-gemini"))
    'sent again after 38 s (rate_limited)'
    """
    found = row.outcome
    if isinstance(found, Says):
        return "a reply" if found.text else "an empty reply, which its role asks for again"
    if len(row.requests) > 1 and found.type is not TransientError:
        again = f"sent again with a limit of {row.requests[1]:,} tokens"
        return again if found.type is TruncatedError else f"{again}, which fits"
    if found.type is TransientError:
        return f"sent again{f' after {found.wait:g} s' if found.wait else ''} ({found.cause})"
    return {
        BlockedError: f"no reply for this prompt ({found.cause})",
        ConfigurationError: f"the run stops ({found.cause})",
        ContextError: "asked for again in parts",
        TruncatedError: "cut off",
    }.get(found.type, f"this call fails ({found.cause})")

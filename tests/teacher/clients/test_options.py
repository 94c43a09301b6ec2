"""Additional parameters and headers in a config: where they go, refusals, and that secrets never get into a config."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax import configs
from ropd_jax.teacher import ChatRequest, ConfigurationError, Teacher, build_teacher
from ropd_jax.teacher.build import panel_sources, reference_sources, role_of
from ropd_jax.teacher.clients.batch import open_batch
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.clients.options import checked_extra, checked_headers, sent_headers
from ropd_jax.teacher.roles.role import Role
from ropd_jax.teacher.tape.store import body_key, request_body
from ropd_jax.types import Criterion, Message, Rubric, UserError
from tests.teacher.clients.wire import serving, wire

ASKED = ChatRequest("reference", (Message("user", "Q?"),), "m", 0.5, 50, None, 3)
SECRET = "s3cret-0123456789"
RUBRIC = Rubric((Criterion("c1", "one", 1),))


def config(**changes):
    cfg = configs.default()
    for key, value in changes.items():
        configs.change(cfg, "teacher." + key.replace("__", "."), value)
    return cfg.teacher


# ----------------------------------------------------------------------------------------------------- extra


def test_extra_is_merged_into_the_body_as_it_is():
    extra = {
        "top_p": 0.9, "reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False},
        "reasoning": {"max_tokens": 2000}, "provider": {"order": ["a"]},
    }  # fmt: skip
    replies, seen = wire("openai", [dataclasses.replace(ASKED, extra=extra)])
    body = seen[0].body
    assert {k: body[k] for k in extra} == extra and replies == ["fine"]
    plain = {k: v for k, v in body.items() if k not in extra}
    assert plain == {
        "model": "m", "messages": [{"role": "user", "content": "Q?"}], "seed": 3, "max_tokens": 50, "temperature": 0.5
    }  # fmt: skip


def test_extra_of_gemini_is_its_generation_config():
    extra = {"top_p": 0.9, "thinking_config": {"thinking_budget": 64}, "safety_settings": [
        {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]}  # fmt: skip
    _, seen = wire("gemini", [dataclasses.replace(ASKED, extra=extra)])
    how = seen[0].body["generationConfig"]
    assert how["topP"] == 0.9 and list(how["thinkingConfig"].values()) == [64]
    assert (how["seed"], how["temperature"], how["maxOutputTokens"]) == (3, 0.5, 50)
    assert seen[0].body["safetySettings"] == extra["safety_settings"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"reasoning_effort": "high"}, r"the parameter 'reasoning_effort'; use thinking_config=\{'thinking_level'"),
        ({"topp": 0.9}, "the parameter 'topp'; did you mean top_p"),
        ({"top_p": "much"}, "cannot use the role's extra: top_p"),
        ({"thinking_config": {"budget": 1}}, "cannot use the role's extra: thinking_config.budget"),
    ],
)
def test_gemini_names_a_parameter_that_it_does_not_have(extra, message):
    with pytest.raises(ConfigurationError, match=message) as e:
        wire("gemini", [dataclasses.replace(ASKED, extra=extra)])
    assert "\n" not in str(e.value)


def test_every_role_sends_its_own_extra(saying, sum_prompt):
    class Keeping:
        def __init__(self):
            self.seen = []

        async def chat(self, request):
            self.seen.append((request.purpose, dict(request.extra)))
            raise ConfigurationError("enough")

        async def close(self):
            pass

    client = Keeping()
    role = lambda n: Role(extra={"top_p": n})  # noqa: E731
    teacher = Teacher(client, reference=role(1), rubric=role(2), verify=role(3), score=role(4), judge=role(5))
    asked = [
        lambda: teacher.references(sum_prompt),
        lambda: teacher.induce_rubric(sum_prompt, ["a"], ["b"]),
        lambda: teacher.static_rubric(sum_prompt, ["a"]),
        lambda: teacher.verify(sum_prompt, RUBRIC, ["b"], key="k"),
        lambda: teacher.score(sum_prompt, ["b"], key="k", lowest=1, highest=9, template="score_judge.v3"),
    ]
    for ask in asked:
        with pytest.raises(ConfigurationError, match="enough"):
            asyncio.run(ask())
    found = dict.fromkeys((p, e["top_p"]) for p, e in client.seen)
    assert list(found) == [("reference", 1), ("rubric", 2), ("verify", 3), ("score", 4)]


def test_a_tape_without_extra_keeps_its_keys_and_one_with_it_has_others():
    assert "extra" not in request_body("openai", ASKED)
    key = body_key(request_body("openai", ASKED))
    assert key == body_key(request_body("openai", dataclasses.replace(ASKED, extra={})))
    assert key == "133dd8bb119ff85275206ef666c0e89e8fdf6af0262df4eb6e324be509a10afe"  # as on older tapes
    others = [dataclasses.replace(ASKED, extra=e) for e in ({"top_p": 1}, {"top_p": 0.5}, {"a": {"b": 1}})]
    assert len({key, *(body_key(request_body("openai", r)) for r in others)}) == 4


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2)))
def test_the_order_of_extra_makes_no_key(extra):
    turned = dict(reversed(extra.items()))
    keys = {body_key(request_body("openai", dataclasses.replace(ASKED, extra=e))) for e in (extra, turned)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"temperature": 1.0}, "extra has 'temperature', which teacher.verifier.temperature sets"),
        ({"max_tokens": 9}, "which teacher.verifier.max_output_tokens sets"),
        ({"messages": []}, "which teacher.verifier.template sets"),
        ({"seed": 1}, "extra has 'seed', which the role sets itself"),
        ({"n": 2}, "extra has 'n', which the role sets itself"),
        ({"stream": True}, "extra has 'stream'"),
        ({"response_format": {"type": "text"}}, "extra has 'response_format'"),
        ({"api_key": SECRET}, "'api_key', which looks like a secret"),
        ({"a": {"Authorization": SECRET}}, "'a.Authorization', which looks like a secret"),
        ({"a": [{"access_token": SECRET}]}, "'a.access_token', which looks like a secret"),
        ({"a": "sk-abc" + SECRET}, "'a', which looks like a secret"),
        ({"a": float("nan")}, "extra is not JSON"),
        ({"a": {1, 2}}, "extra is not JSON"),
    ],
)
def test_what_extra_cannot_hold(extra, message):
    with pytest.raises(ConfigurationError, match=message) as e:
        role_of(config(verifier__extra=extra), "verifier")
    assert SECRET not in str(e.value)


def test_names_that_only_look_like_secrets_are_accepted():
    extra = {
        "prompt_cache_key": "run-7", "user": "skater", "chat_template_kwargs": {"bos_token": "x"}, "author": "a",
        "session_id": "7", "max_tokens_per_step": 9,
    }  # fmt: skip
    assert checked_extra(extra, "teacher.verifier") == extra


def test_the_roles_extra_is_no_part_of_the_config():
    teacher = config(verifier__extra={"a": {"b": [1]}})
    role = role_of(teacher, "verifier")[1]
    role.extra["a"]["b"].append(2)
    assert role_of(teacher, "verifier")[1].extra == {"a": {"b": [1]}}


def test_models_of_a_panel_have_their_own_extra_and_another_provider_none_of_the_roles():
    other = {"provider": "gemini", "model": "g"}
    own = {"model": "b", "extra": {"top_p": 0.5}}
    teacher = config(provider="openai", verifier__extra={"reasoning_effort": "low"}, verifier__panel=("a", own, other))
    assert [r.extra for _, r in panel_sources(teacher)] == [{"reasoning_effort": "low"}, {"top_p": 0.5}, {}]
    twice = ({"model": "a", "extra": {"top_p": 0.5}}, {"model": "a", "extra": {"top_p": 0.6}})
    assert len(panel_sources(config(verifier__panel=twice))) == 2
    with pytest.raises(ConfigurationError, match=r"teacher\.reference\.extra has 'api_key'"):
        reference_sources(config(references_from=({"model": "a", "extra": {"api_key": SECRET}},)))


def test_the_released_column_asks_for_much_reasoning():
    released, paper = configs.paper_run("released").teacher, configs.paper_run("paper").teacher
    for role in ("reference", "rubricator", "verifier", "scorer"):
        assert role_of(released, role)[1].extra == {"reasoning_effort": "high"}
        assert role_of(paper, role)[1].extra == {}


def test_a_section_for_any_keys_is_set_as_a_whole():
    cfg = configs.paper_run("released")
    configs.change(cfg, "teacher.verifier.extra", {"top_p": 0.5})
    assert cfg.teacher.verifier.extra.to_dict() == {"top_p": 0.5}
    with pytest.raises(UserError, match=r"write teacher\.judge\.extra=\"\{'top_p': VALUE\}\""):
        configs.change(cfg, "teacher.judge.extra.top_p", 0.5)


# --------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_headers_are_sent_and_their_secrets_come_from_the_environment(provider, monkeypatch):
    monkeypatch.setenv("MY_ORG", SECRET)
    headers = checked_headers({"X-Org": "env:MY_ORG", "X-Title": "ROPD"}, "teacher.headers")
    assert SECRET not in repr(Endpoint(provider, headers=headers))
    _, seen = wire(provider, [ASKED], headers=headers)
    assert (seen[0].headers["x-org"], seen[0].headers["x-title"]) == (SECRET, "ROPD")


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_a_server_that_sends_a_header_back_brings_it_nowhere(provider, monkeypatch):
    monkeypatch.setenv("MY_ORG", SECRET)
    headers = (("X-Org", "env:MY_ORG"),)
    replies, _ = wire(provider, [ASKED], text=f"you are {SECRET}", headers=headers)
    assert replies == ["you are <api key>"]
    with pytest.raises(Exception, match="<api key>") as e:
        wire(provider, [ASKED], refuse=lambda body: f"bad header {SECRET}", headers=headers)
    assert SECRET not in str(e.value)


def test_organization_and_project_of_openai():
    _, seen = wire("openai", [ASKED], organization="org-1", project="proj-2")
    assert (seen[0].headers["openai-organization"], seen[0].headers["openai-project"]) == ("org-1", "proj-2")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Authorization": f"Bearer {SECRET}"}, r"'Authorization' \(not shown\).*'env:VARIABLE'.*api_key_env"),
        ({"api-key": SECRET}, "'api-key' .not shown."),
        ({"X-Goog-Api-Key": SECRET}, "not shown"),
        ({"Cookie": SECRET}, "not shown"),
        ({"Ocp-Apim-Subscription-Key": SECRET}, "not shown"),
        ({"X-Auth-Token": SECRET}, "not shown"),
        ({"X-Anything": "sk-" + SECRET}, "not shown"),
        ({"X-Anything": "Bearer " + SECRET}, "not shown"),
        ({"Host": "x"}, "which HTTP sets itself"),
        ({"a b": "x"}, "invalid header"),
        ({"X": 3}, "invalid header"),
        ({"X": "a\r\nY: b"}, "a character that a header cannot have"),
    ],
)
@pytest.mark.parametrize("key", ["headers", "verifier__headers"])
def test_a_header_that_a_config_cannot_hold(key, headers, message):
    with pytest.raises(ConfigurationError, match=message) as e:
        role_of(config(**{key: headers}), "verifier")
    assert SECRET not in str(e.value) and str(e.value).startswith(f"teacher.{key.replace('__', '.')}")


def test_a_header_whose_variable_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("MY_ORG", raising=False)
    with pytest.raises(ConfigurationError, match="'MY_ORG', which is not set"):
        sent_headers((("X-Org", "env:MY_ORG"),))
    monkeypatch.setenv("MY_ORG", SECRET + "\n")
    with pytest.raises(ConfigurationError, match="a character that a header cannot have") as e:
        sent_headers((("X-Org", "env:MY_ORG"),))
    assert SECRET not in str(e.value)


def test_roles_inherit_the_teachers_headers_and_another_provider_does_not():
    teacher = config(provider="openai", headers={"X-A": "1"}, organization="o", judge__headers={"X-B": "2"})
    with_a = Endpoint("openai", organization="o", headers=(("X-A", "1"),))
    assert role_of(teacher, "verifier")[0] == with_a
    assert role_of(teacher, "judge")[0] == dataclasses.replace(with_a, headers=(("X-B", "2"),))
    assert role_of(teacher, "judge", {"provider": "gemini"})[0] == Endpoint("gemini", headers=(("X-B", "2"),))


def test_a_literal_secret_is_refused_before_the_run_is_built(tmp_path):
    with pytest.raises(ConfigurationError, match="looks like a secret"):
        build_teacher(config(headers={"Authorization": SECRET}), workdir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- vertex


def test_vertex_ai_sends_a_token_of_the_application_default_credentials(monkeypatch, tmp_path):
    async def main():
        async with serving() as server:
            key = server.service_account(tmp_path / "key.json")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
            monkeypatch.setenv("GOOGLE_API_KEY", "not-this-one-000000")
            endpoint = dict(vertexai=True, location="europe-west4")
            reply = await server.chat("gemini", ASKED, **endpoint)
            named = await server.chat("gemini", ASKED, **endpoint, project="mine")
            return server.seen, reply, named

    seen, reply, named = asyncio.run(main())
    calls = [s for s in seen if s.path != "/token"]
    assert reply.text == named.text == "fine"
    paths = [s.path.partition("/projects/")[2] for s in calls]
    tail = "locations/europe-west4/publishers/google/models/m:generateContent"
    assert paths == [f"owner/{tail}", f"mine/{tail}"]
    assert all(s.headers["authorization"] == "Bearer token-of-the-account" for s in calls)
    assert all("x-goog-api-key" not in s.headers for s in calls)


def test_vertex_ai_without_credentials_or_with_refused_ones_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ConfigurationError, match="gcloud auth application-default login"):
        build_teacher(config(provider="gemini", vertexai=True), needs=("verify",))

    async def main():
        async with serving(token_status=400) as server:
            key = server.service_account(tmp_path / "key.json")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
            await server.chat("gemini", ASKED, vertexai=True)

    with pytest.raises(ConfigurationError, match="refuses to renew the application-default credentials"):
        asyncio.run(main())


def test_vertex_ai_has_no_batches_here(monkeypatch):
    with pytest.raises(ConfigurationError, match="batches of Vertex AI need a bucket"):
        open_batch("gemini", vertexai=True)


def test_an_address_of_vertex_ai_that_no_config_names_is_refused(monkeypatch):
    monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", "http://elsewhere")
    with pytest.raises(ConfigurationError, match="GOOGLE_VERTEX_BASE_URL is set"):
        build_teacher(config(provider="gemini", vertexai=True), needs=("verify",))

"""``ropd serve-teacher``."""

from __future__ import annotations

import pytest

from ropd_jax.cli import main as cli


def test_serve_teacher_hands_its_flags_on(monkeypatch, tmp_path):
    from ropd_jax.teacher.scripted import server

    calls = []
    monkeypatch.setattr(server, "serve", lambda scripted, **kw: calls.append((type(scripted).__name__, kw)))
    (tmp_path / "b.jsonl").write_text('{"question": "q", "solution": "s"}\n')
    assert cli.main(["serve-teacher", "--port=0", "--answer_key", str(tmp_path / "b.jsonl"), "--fault_rate=0.5"]) == 0
    assert calls == [("ScriptedClient", {"host": "127.0.0.1", "port": 0, "api_key": "", "max_body_mb": 8.0})]


def test_serve_teacher_reads_the_key_that_clients_must_send(monkeypatch):
    from ropd_jax.teacher.scripted import server

    calls = []
    monkeypatch.setattr(server, "serve", lambda scripted, **kw: calls.append((kw["api_key"], kw["max_body_mb"])))
    monkeypatch.setenv("ROPD_TEST_KEY", "sk-serve-0123456789")
    assert cli.main(["serve-teacher", "--api-key-env", "ROPD_TEST_KEY", "--max_body_mb=2"]) == 0
    assert calls == [("sk-serve-0123456789", 2.0)]


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("ROPD_TEST_KEY", None, "ROPD_TEST_KEY: this environment variable is not set; set it"),
        ("ROPD_TEST_KEY", "sk-serve\n", "ROPD_TEST_KEY has a line break"),
        ("sk-serve-0123", None, "--api_key_env is not the name of an environment variable"),
    ],
)
def test_a_key_that_the_server_cannot_read_is_one_line_without_it(name, value, words, monkeypatch, capsys):
    monkeypatch.delenv("ROPD_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    assert cli.main(["serve-teacher", "--port=0", f"--api_key_env={name}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "sk-serve" not in error

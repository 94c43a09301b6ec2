"""``ropd serve-teacher``."""

from __future__ import annotations

from ropd_jax.cli import main as cli


def test_serve_teacher_hands_its_flags_on(monkeypatch, tmp_path):
    from ropd_jax.teacher.scripted import server

    calls = []
    monkeypatch.setattr(server, "serve", lambda scripted, **kw: calls.append((type(scripted).__name__, kw)))
    (tmp_path / "b.jsonl").write_text('{"question": "q", "solution": "s"}\n')
    assert cli.main(["serve-teacher", "--port=0", "--answer_key", str(tmp_path / "b.jsonl"), "--fault_rate=0.5"]) == 0
    assert calls == [("ScriptedClient", {"host": "127.0.0.1", "port": 0})]

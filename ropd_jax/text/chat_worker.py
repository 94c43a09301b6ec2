"""What the child of ``text.chat`` does: it compiles and renders chat templates.

    request   {"template": "{% for m in messages %}...", "variables": null}       only checks the syntax
              {"template": ..., "variables": {"messages": [...], ...}}             renders
    reply     {"text": "..."}, {"refusal": "..."} or {"syntax": "...", "line": 3}

A template is a program of whoever made the checkpoint. Jinja's immutable sandbox keeps it from reaching Python objects,
but not from computing: ``9**9**9**9`` hangs while it is compiled, two loops of 10^5 rounds hang while it is rendered.
"""

from __future__ import annotations

import functools
import json
from typing import Any


def warm_up() -> None:
    """Imports Jinja."""
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        template = _compile(request["template"])
        return {"text": "" if request["variables"] is None else template.render(**request["variables"])}
    except TemplateSyntaxError as e:
        return {"syntax": e.message, "line": e.lineno}
    except (TemplateError, TypeError, ValueError) as e:
        return {"refusal": str(e)[:1000]}


@functools.lru_cache(maxsize=16)
def _compile(template: str):
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        from jinja2 import TemplateError

        raise TemplateError(message)

    # the options that chat templates are written for: a block tag removes its line break; break and continue work
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.globals["raise_exception"] = raise_exception
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    return env.from_string(template)

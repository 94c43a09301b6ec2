"""The child process of ``text.chat``: it compiles and renders chat templates.

    request   {"template": "{% for m in messages %}...", "variables": null}       only checks syntax
              {"template": ..., "variables": {"messages": [...], ...}, "now": "2026-01-31T12:00:00"}     renders
    reply     {"text": "..."}, {"refusal": "..."} or {"syntax": "...", "line": 3}

A template is a program by the author of the checkpoint. Jinja's immutable sandbox prevents access to Python objects,
but not long computations: ``9**9**9**9`` hangs during compilation, two loops of 10^5 rounds during rendering.
"""

from __future__ import annotations

import datetime
import functools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2.parser import Parser

_clock: list[datetime.datetime] = []  # the time of the request


def warm_up() -> None:
    """Imports Jinja."""
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401

    datetime.datetime.now().strftime("%c %Z")  # reads the locale, which is a file


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    from jinja2 import TemplateError, TemplateSyntaxError

    _clock[:] = [datetime.datetime.fromisoformat(request["now"])] if request.get("now") else []
    try:
        template = _compile(request["template"])
        return {"text": "" if request["variables"] is None else template.render(**request["variables"])}
    except TemplateSyntaxError as e:
        return {"syntax": e.message, "line": e.lineno}
    except (TemplateError, TypeError, ValueError) as e:
        return {"refusal": str(e)[:1000]}


@functools.lru_cache(maxsize=16)
def _compile(template: str):
    """Compiles a template in the same environment as transformers.

    A block tag removes its line break; ``break`` and ``continue`` work; ``{% generation %}`` marks the assistant's part
    and adds nothing to the text.
    """
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Dict:
        """``dict``, without the attributes of a type."""

        def __call__(self, *args, **kwargs):
            return dict(*args, **kwargs)

        def fromkeys(self, *args, **kwargs):
            return dict.fromkeys(*args, **kwargs)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols])
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: _clock[0].strftime(form)
    env.globals["dict"] = Dict()
    env.globals["namespace"] = _namespace()
    env.filters["tojson"] = tojson
    return env.from_string(template)


@functools.cache
def _generation():
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """``{% generation %}...{% endgeneration %}``: its content; its variables are local, as in a macro."""

        tags = {"generation"}  # noqa: RUF012, jinja2 reads it from the class

        def parse(self, parser: Parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller):
            return caller()

    return Generation


@functools.cache
def _namespace():
    import jinja2
    from jinja2.utils import Namespace

    class Plain(Namespace):
        """``namespace``, whose attributes cannot start with an underscore."""

        def __init__(*args, **kwargs):  # as in Jinja: `self` can be an attribute
            self, args = args[0], args[1:]
            attributes = dict(*args, **kwargs)
            for name in attributes:
                _check(name)
            Namespace.__init__(self, attributes)

        def __setitem__(self, name, value):
            _check(name)
            Namespace.__setitem__(self, name, value)

    def _check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r} in a chat template")

    return Plain

"""What a command is, and how its flags are read.

Each file of this folder defines one `Command`: its flags with their help, an introduction, examples, and `run`. From it
follow

    parse(command, args)           words, flags and config as `Arguments`; a mistake is a one-line `UserError`
    help.help_text(command)        what ``ropd COMMAND --help`` prints

``-`` and ``_`` are the same in the name of every flag and config key: ``--max-tokens`` is ``--max_tokens``,
``--config.optim.warmup-steps`` is ``--config.optim.warmup_steps``, ``--no-calls`` is ``--nocalls``.

absl and ml_collections are imported only when a command runs, so that help and misspelt commands are answered at once.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

if TYPE_CHECKING:
    from absl import flags
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
        name: with ``_``.
        value: the placeholder of the value in the help, e.g. ``DIR``; "" for a switch.
        help: one or two sentences.
        default: its type is the flag's type, unless ``kind`` names another.
        kind: the type, needed when the default is None.
        low, high: bounds of a number, both allowed.
        required: what is expected, for the error when it is missing; "" for an optional flag.
        section: a heading in the help, for flags that belong together.
    """

    name: str
    value: str
    help: str
    default: Any = ""
    kind: type | None = None
    low: float | None = None
    high: float | None = None
    required: str = ""
    section: str = "flags"

    @property
    def type(self) -> type:
        return self.kind or type(self.default)

    @property
    def shown(self) -> str:
        """``--workdir DIR``; a switch that is on by default as ``--no-calls``."""
        if self.type is not bool:
            return f"--{self.name} {self.value}"
        return {True: f"--no-{self.name}", None: f"--{self.name}, --no-{self.name}"}.get(self.default, f"--{self.name}")

    def define(self, values: flags.FlagValues) -> None:
        """Adds the flag to absl's values."""
        from absl import flags

        bounds: dict[str, Any] = dict(lower_bound=self.low, upper_bound=self.high)
        if self.type is bool:
            flags.DEFINE_boolean(self.name, self.default, self.help, flag_values=values)
        elif self.type is int:
            flags.DEFINE_integer(self.name, self.default, self.help, flag_values=values, **bounds)
        elif self.type is float:
            flags.DEFINE_float(self.name, self.default, self.help, flag_values=values, **bounds)
        else:
            flags.DEFINE_string(self.name, self.default, self.help, flag_values=values)


@dataclasses.dataclass
class Arguments:
    """The parsed arguments of a command.

    Attributes:
        words: the arguments that are not flags, e.g. the directory of a run.
        values: of the flags, by name; also as ``args["workdir"]``.
        read_config: the config with all overrides; None for a command without one.
        overrides: the keys that were given as ``--config.a.b``.
    """

    words: list[str]
    values: dict[str, Any]
    read_config: ConfigDict | None = None
    overrides: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def config(self) -> ConfigDict:
        assert self.read_config is not None, "this command has no config"
        return self.read_config


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of ``ropd``.

    Attributes:
        summary: its line in ``ropd --help``.
        intro: paragraphs with blank lines between; a line that begins with two spaces is kept as it is.
        run: does the work and returns the exit code; None is 0.
        words: the expected arguments that are not flags, e.g. ``("RUN",)``; in brackets if it can be left out.
        missing: the error when a word that is needed is not there.
        config: ``required`` and ``optional`` add ``--config NAME`` and ``--config.a.b=value``; ``run`` only the second.
        stored: for ``run``: the words -> the config that the overrides change.
        check_key: refuses (UserError) an override that has no effect in this command.
        renamed: earlier names of flags -> the present ones, for the error.
        usages: the usage lines, for a command whose flags do not determine them.
        notes: a text between flags and examples.
    """

    name: str
    summary: str
    intro: str
    run: Callable[[Arguments], int | None]
    flags: tuple[Flag, ...] = ()
    examples: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    missing: str = ""
    config: Literal["", "required", "optional", "run"] = ""
    stored: Callable[[Sequence[str]], ConfigDict] | None = None
    check_key: Callable[[str], None] | None = None
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    usages: tuple[str, ...] = ()
    notes: str = ""

    @property
    def all_flags(self) -> tuple[Flag, ...]:
        return (CONFIG, *self.flags) if self.config == "required" else self.flags


CONFIG = Flag(
    "config",
    "NAME[:arg]",
    "A config that comes with the package (ropd configs lists them), or the path of a Python file that ends in .py and "
    "defines get_config() -> ConfigDict; the part after the colon is passed on as get_config(arg).",
    required="the name of a config or a file, e.g. --config quickstart (ropd configs lists the names)",
)
OVERRIDE = "--config.a.b=value"
_HOSTS = "several hosts (docs/hosts.md)"
HOSTS = (
    Flag(
        "coordinator",
        "HOST:PORT",
        "Address of host 0; or set JAX_COORDINATOR_ADDRESS. auto: read it from Slurm or Open MPI. off: only this host.",
        section=_HOSTS,
    ),
    Flag("num_processes", "N", "Number of hosts; or JAX_NUM_PROCESSES.", None, int, low=0, section=_HOSTS),
    Flag("process_id", "I", "Index of this host, 0 to N-1; or JAX_PROCESS_ID.", None, int, low=0, section=_HOSTS),
)
STEPS = Flag("steps", "a:b", "Steps a to b-1 only; a: and :b leave one end open.")


# ----------------------------------------------------------------------------------------------------- reading


def parse(command: Command, args: Sequence[str]) -> Arguments:
    """Reads the arguments of a command.

    Raises:
        UserError: whatever is wrong with them, with the nearest names or the expected type.
    """
    from absl import flags

    args = normalized(command, args)
    _check_once(command, args)
    words = _leading_words(args)
    rest = args[len(words) :]
    _check_renamed(command, rest)
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # words can also follow the flags
    for flag in command.flags:
        flag.define(values)
    spec = None
    if command.config:
        if command.config != "run":
            spec, rest = take(rest, "config")
        _define_config(command, words, spec, rest, values)
    given, rest = rest, _without_none(rest)
    words += _parse(values, command, rest)
    if len(words) > len(command.words):
        _refuse_word(command, words[len(command.words)])
    _check_words(command, words)
    if command.config == "required" and spec is None:
        raise UserError(f"--config is missing; expected {CONFIG.required}")
    found = {name: values[name].value for name in values if name.partition(".")[0] != "config"}
    for flag in command.flags:
        if flag.required and found[flag.name] in ("", None):
            raise UserError(f"--{flag.name} is missing; expected {flag.required}")
    config = values["config"].value if "config" in values else None
    if config is not None:
        _set_none(config, given)
    if config is not None and command.config != "run":  # a finished run can be of a version with other bounds
        from ropd_jax.workdir.keys import check_values

        check_values(config)
    overrides = tuple(key for arg in given if (key := override(arg)) is not None)
    return Arguments(words, found, config, overrides)


def normalized(command: Command, args: Sequence[str]) -> list[str]:
    """The arguments with ``_`` in every flag's name; values stay as they are.

    ``--poll-s 5 --no-batch=x --config.data.max-prompt-tokens=9 a-b`` becomes
    ``--poll_s 5 --nobatch=x --config.data.max_prompt_tokens=9 a-b``.
    """
    switches = {f.name for f in command.flags if f.type is bool} | {"config"}  # a config key can be a bool too
    valued = {f.name for f in command.flags if f.type is not bool} | {"config"}
    done: list[str] = []
    left = iter(args)
    for arg in left:
        found = re.fullmatch(r"--?([A-Za-z][^=]*)(=.*)?", arg, re.DOTALL)
        if not found:
            done.append(arg)
            continue
        name, value = found[1].replace("-", "_"), found[2]
        if name.startswith("no_") and name.removeprefix("no_").partition(".")[0] in switches:
            name = f"no{name.removeprefix('no_')}"
        done.append(f"--{name}{value or ''}")
        if value is None and name in valued:
            done += [text for text in [next(left, None)] if text is not None]
    return done


def _leading_words(args: Sequence[str]) -> list[str]:
    end = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    return list(args[:end])


def _check_words(command: Command, words: Sequence[str]) -> None:
    needed = [w for w in command.words if not w.startswith("[")]
    if len(words) < len(needed):
        raise UserError(command.missing)


def _refuse_word(command: Command, word: str) -> None:
    takes = f"takes {' '.join(command.words)} and flags" if command.words else "takes flags only"
    raise UserError(f"ropd {command.name} {takes}, not {word!r}; write --name=value (ropd {command.name} --help)")


def _check_renamed(command: Command, args: Sequence[str]) -> None:
    for arg in args:
        name = arg.removeprefix("--").partition("=")[0]
        if arg.startswith("--") and name in command.renamed:
            raise UserError(f"--{name} is now --{command.renamed[name]}; write --{command.renamed[name]}=...")


def _check_once(command: Command, args: Sequence[str]) -> None:
    """Refuses a flag that is given twice; a key of the config can be, and the last one counts."""
    for name in ("config", *(f.name for f in command.flags)):
        found = [(i, arg.partition("=")[2]) for i, arg in enumerate(args) if arg.partition("=")[0] == f"--{name}"]
        if len(found) > 1:
            values = ", ".join(value or "".join(args[i + 1 : i + 2]) for i, value in found)
            raise UserError(f"--{name} is given {len(found)} times ({values}); expected it once: remove the others")


def take(args: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Removes ``--name VALUE`` or ``--name=VALUE`` from the arguments."""
    value, rest = None, []
    left = iter(args)
    for arg in left:
        if arg == f"--{name}":
            value = next(left, None)
            if value is None or value.startswith("--"):
                raise UserError(f"--{name} has no value; expected --{name} NAME")
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
        else:
            rest.append(arg)
    return value, rest


def override(arg: str) -> str | None:
    """The key of ``--config.a.b[=value]`` or ``--noconfig.a.b``, else None."""
    found = re.match(r"--(?:no)?config\.([^=]*)", arg)
    return found[1] if found else None


def _none_key(arg: str) -> str | None:
    """The key of ``--config.data.size=None``, if None is a value of it; absl reads numbers and texts only."""
    from ropd_jax.workdir.keys import key_of

    found = re.fullmatch(r"--config\.([^=]*)=(?:None|none|null)", arg)
    key = key_of(found[1]) if found else None
    return found[1] if found and key is not None and key.optional else None


def _without_none(args: Sequence[str]) -> list[str]:
    return [arg for arg in args if _none_key(arg) is None]


def _set_none(config: Any, args: Sequence[str]) -> None:
    """Set the keys whose last value in the arguments is None."""
    last = {key: arg for arg in args if (key := override(arg)) is not None}
    for key, arg in last.items():
        if _none_key(arg) is not None:
            section, _, name = key.rpartition(".")
            config[section][name] = None


def _define_config(
    command: Command, words: Sequence[str], spec: str | None, args: Sequence[str], values: flags.FlagValues
) -> None:
    """Reads the config and makes each of its keys a flag, ``--config.a.b``."""
    keys = [key for arg in args if (key := override(arg)) is not None]
    if command.config == "required" and spec is None:
        if keys:
            raise UserError(f"--config.{keys[0]} changes a config, but none is given; add --config NAME")
        return
    from ml_collections import config_flags

    from ropd_jax import configs

    if command.check_key is not None:
        for key in keys:
            command.check_key(key)
    if command.stored is not None:
        _check_words(command, words)
        config = command.stored(words).lock()
    else:
        config = configs.load_config(spec) if spec else configs.default().lock()
    for key in keys:
        configs.check_key(config, key, f"--config.{key}")
    argv = [f"ropd {command.name}", *args]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True, sys_argv=argv)


def _parse(values: flags.FlagValues, command: Command, args: Sequence[str]) -> list[str]:
    """Parses with absl and returns the words that are not flags; absl's errors become one line that helps."""
    from absl import flags

    known = [*values, *(["config"] if command.config in ("required", "optional") else [])]
    try:
        return values([f"ropd {command.name}", *args])[1:]
    except flags.UnrecognizedFlagError as error:
        text = near(error.flagname, known) if known else f"it has none (ropd {command.name} --help)"
        raise UserError(f"ropd {command.name} has no flag --{error.flagname}; {text}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(str(error), values)) from error
    except flags.Error as error:
        raise UserError(str(error)) from error


def _wrong_value(message: str, values: flags.FlagValues) -> str:
    """``flag --config.seed=abc: invalid literal ...`` with the expected type and the present value instead."""
    found = re.match(r"flag --(?P<name>[\w.-]+?)=(?P<value>.*?): (?P<why>.*)", message, re.DOTALL)
    if not found:
        return message
    name, value, why = found["name"], found["value"], " ".join(found["why"].split())
    if not name.startswith("config."):
        return f"--{name}={value}: {why}"
    from ropd_jax import configs

    key = name.removeprefix("config.")
    now = configs.lookup(values["config"].default, key)
    return f"--{name}={value}: expected {configs.kind(now)} ({key} is {now!r} in the file)"


def steps_of(text: str) -> tuple[int, int] | None:
    """``3:7`` as (3, 7), the end not included; None for "", which is all steps."""
    found = re.fullmatch(r"(\d*):(\d*)", text)
    if text and not (found and text != ":"):
        raise UserError(f"--steps={text} is not a range; expected a:b, a: or :b, e.g. --steps 0:10")
    return (int(found[1] or 0), int(found[2] or sys.maxsize)) if found else None

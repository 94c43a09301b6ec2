"""Arguments of the verbs: a config file, overrides of its keys, and absl flags, each mistake one line that helps."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

if TYPE_CHECKING:
    from absl import flags
    from ml_collections import ConfigDict


def config_and_flags(verb: str, args: list[str], values: flags.FlagValues) -> ConfigDict:
    """Parses ``--config FILE --config.a.b=value ...`` and the flags that ``values`` defines; returns the config."""
    spec, rest = take(args, "config")
    keys = [a for a in rest if override(a)]
    if spec is None and keys:
        raise UserError(f"{keys[0]} changes a config, but none is given; add --config FILE")
    if spec is not None:
        config = load_config(spec)
        check_known(config, spec)
        define_config(verb, config, rest, values)
    parse(values, verb, rest, also=("config",))
    if spec is None:
        raise UserError("--config is missing; expected a config file, e.g. --config experiments/quickstart.py")
    return values["config"].value


def define_config(verb: str, config: ConfigDict, args: list[str], values: flags.FlagValues) -> None:
    """Makes ``--config.a.b`` a flag for each key of the config."""
    from ml_collections import config_flags

    _check_overrides(config, args)
    argv = [f"ropd {verb}", *args]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True, sys_argv=argv)


def parse(values: flags.FlagValues, verb: str, args: list[str], also: Sequence[str] = ()) -> None:
    """Parses flags with absl; its errors become one line that names near flags or the expected type."""
    from absl import flags

    known = [*values, *also]
    try:
        left = values([f"ropd {verb}", *args])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"ropd {verb} has no flag --{error.flagname}; {near(error.flagname, known)}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(str(error), values)) from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    if left:
        raise UserError(f"ropd {verb} takes flags only, not {left[0]!r}; write --name=value (ropd {verb} --help)")


def _wrong_value(message: str, values: flags.FlagValues) -> str:
    """``flag --config.seed=abc: invalid literal ...`` said with the type that is expected and the value there is."""
    found = re.match(r"flag --(?P<name>[\w.-]+?)=(?P<value>.*?): (?P<why>.*)", message, re.DOTALL)
    if not found:
        return message
    name, value, why = found["name"], found["value"], " ".join(found["why"].split())
    if not name.startswith("config."):
        return f"--{name}={value}: {why}"
    now = _lookup(values["config"].default, name.removeprefix("config."))
    return f"--{name}={value}: expected {_kind(now)} ({name.removeprefix('config.')} is {now!r} in the file)"


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a tuple, (1, 2)"}
    return names.get(type(value), f"a {type(value).__name__}")


def take(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """Removes ``--name VALUE`` or ``--name=VALUE`` from the arguments; the last one wins."""
    value, rest = None, []
    left = iter(args)
    for arg in left:
        if arg in (f"--{name}", f"-{name}"):
            value = next(left, None)
            if value is None or value.startswith("--"):
                raise UserError(f"--{name} has no value; expected --{name} FILE")
        elif arg.startswith((f"--{name}=", f"-{name}=")):
            value = arg.partition("=")[2]
        else:
            rest.append(arg)
    return value, rest


def override(arg: str) -> str | None:
    """The key of ``--config.a.b[=value]`` or ``--noconfig.a.b``, else None."""
    found = re.match(r"--?(?:no)?config\.([^=]*)", arg)
    return found[1] if found else None


def _check_overrides(config: ConfigDict, args: list[str]) -> None:
    """Refuses overrides of keys that the config does not have, and of whole sections."""
    from ml_collections import ConfigDict

    known = list(_leaves(config))
    for arg in args:
        key = override(arg)
        if key is None or key in known:
            continue
        section = _lookup(config, key)
        if isinstance(section, ConfigDict):
            raise UserError(f"--config.{key} is a section; expected one of its keys: {', '.join(section)}")
        tail = key.rpartition(".")[2]
        same_tail = [k for k in known if k.rpartition(".")[2] == tail]
        hint = f"did you mean {' or '.join(same_tail[:3])}?" if same_tail else near(key, known)
        raise UserError(f"the config has no key {key!r}; {hint}")


def check_known(config: ConfigDict, spec: str) -> None:
    """Refuses a key of the file that ``configs.default()`` lacks; a section that is empty there takes any keys."""
    from ropd_jax import configs

    known = list(_leaves(configs.default()))
    for key in _leaves(config):
        if key not in known and not any(key.startswith(f"{k}.") for k in known):
            raise UserError(f"{spec} sets {key}, which is no key of ropd_jax/configs.py; {near(key, known)}")


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    from ml_collections import ConfigDict

    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _lookup(config: Any, path: str) -> Any:
    for part in path.split("."):
        if not hasattr(config, "keys") or part not in config:
            return None
        config = config[part]
    return config


# ----------------------------------------------------------------------------------------------------- config


def load_config(spec: str) -> ConfigDict:
    """Runs ``get_config`` of ``FILE[:arg]`` and returns its ConfigDict, locked.

    Raises:
        UserError: no such file, no get_config, an argument it does not take, or whatever the file itself raises.
    """
    from ml_collections import ConfigDict

    name, colon, arg = spec.partition(".py:")
    path = pathlib.Path(f"{name}.py" if colon else spec)
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = near(str(path), siblings) if siblings else f"there is no Python file in {str(path.parent)!r}"
        raise UserError(f"config file {str(path)!r} does not exist; {hint}")
    module_spec = importlib.util.spec_from_file_location(f"ropd_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file {str(path)!r} is no Python file; expected a .py file with get_config()")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = _call_get_config(module, path, arg if colon else None)
    except UserError:
        raise
    except Exception as error:  # the file is the user's own program: whatever it raises is shown with its line
        raise UserError(_where(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned a {type(config).__name__}; expected an ml_collections.ConfigDict")
    return config.lock()


def _call_get_config(module: Any, path: pathlib.Path, arg: str | None) -> Any:
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path} has no get_config(); expected a function that starts from ropd_jax.configs.default()")
    parameters = inspect.signature(module.get_config).parameters.values()
    if arg is not None and not parameters:
        raise UserError(f"{path}: get_config() takes no argument, but {arg!r} was given; leave out the part after .py")
    if arg is None and any(p.default is p.empty for p in parameters):
        raise UserError(f"{path}: get_config(arg) needs an argument; write --config {path}:ARG")
    return module.get_config() if arg is None else module.get_config(arg)


def _where(error: Exception, path: pathlib.Path) -> str:
    """``experiments/a.py:12: KeyError: ...``: the last line of the user's file on the way to the error."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}{f':{frames[-1]}' if frames else ''}"
    text = " ".join(str(error.args[0] if error.args else error).split())
    if found := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):  # from ConfigDict
        return f"{where}: the config has no key {found[2]!r}; did you mean {found[1]}?"
    if found := re.search(r'Key "(\w+)" does not exist', text):
        return f"{where}: the config has no key {found[1]!r}; see ropd_jax/configs.py for all keys"
    return f"{where}: {type(error).__name__}: {text}"

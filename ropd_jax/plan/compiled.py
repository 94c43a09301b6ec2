"""Compiles a program for a slice and reads the compiler's report. Cached, because it takes minutes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from ropd_jax.plan import gpu
from ropd_jax.plan.hlo import Collective, Work, loop_work, whole_work
from ropd_jax.plan.programs import Program
from ropd_jax.types import UserError

log = logging.getLogger(__name__)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_FORM = 4  # version of the cache files


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report about one program, in bytes of one device.

    Attributes:
        name: of the program.
        fits: False if the compiler rejected it for lack of memory; then only ``peak`` is known, as a lower bound.
        arguments: bytes of arguments, of which ``donated`` are reused for outputs.
        temporaries: activations, gradients, gathered weights: everything that exists only inside the program.
        peak: arguments + temporaries + outputs that are not donated arguments + code.
        collectives: see `ropd_jax.plan.hlo`.
        cycles, cast_bytes, kernels: as in `hlo.Work`.
        loop: work of decoding one token, without passes of inner loops whose end depends on data (attention's over
            blocks of the cache); ``inner_cycles``: of one pass of each of these. None and 0 for other programs.
        seconds: time of the compilation.
    """

    name: str
    fits: bool
    peak: int
    arguments: int = 0
    outputs: int = 0
    donated: int = 0
    temporaries: int = 0
    code: int = 0
    collectives: tuple[Collective, ...] = ()
    cycles: int = 0
    cast_bytes: int = 0
    kernels: int = 0
    loop: Work | None = None
    inner_cycles: int = 0
    seconds: float = 0.0


def compile_program(
    program: Program, *, slice_name: str, report: Callable[[str], None], cache: bool = True
) -> Compiled:
    """Lower and compile, or read the cached report of an equal program. Inside ``jax.set_mesh``.

    Args:
        slice_name: of the topology and mesh, e.g. ``v5e:4x4 fsdp=16 tp=1``.
        report: receives progress, one line each.
    """
    report(f"{program.name}: lowering")
    lowered = program.lower()
    file = _cache_file(lowered.as_text(), slice_name, program) if cache else None
    if file and file.is_file():
        report(f"{program.name}: known from an earlier plan")
        return _read(file)
    report(f"{program.name}: compiling for {slice_name} (a minute or more)")
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            raise UserError(f"optim.xla_options={program.options!r}: {str(error).splitlines()[0]}") from error
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        found = Compiled(program.name, fits=False, peak=needed, seconds=time.monotonic() - start)
    else:
        m, text = compiled.memory_analysis(), compiled.as_text()
        work = whole_work(text, program.passes)
        loop, with_inner = (loop_work(text, n) if program.per_token else None for n in (0, 1))
        found = Compiled(
            name=program.name,
            fits=True,
            peak=_peak(m),
            arguments=m.argument_size_in_bytes,
            outputs=m.output_size_in_bytes,
            donated=m.alias_size_in_bytes,
            temporaries=m.temp_size_in_bytes,
            code=m.generated_code_size_in_bytes,
            collectives=work.collectives,
            cycles=work.cycles,
            cast_bytes=work.cast_bytes,
            kernels=work.kernels,
            loop=loop,
            inner_cycles=with_inner.cycles - loop.cycles if loop and with_inner else 0,
            seconds=time.monotonic() - start,
        )
    report(f"{program.name}: compiled in {found.seconds:.0f} s")
    if file:
        _write(file, found)
    return found


def _peak(m: Any) -> int:
    extra = m.output_size_in_bytes - m.alias_size_in_bytes
    return m.argument_size_in_bytes + m.temp_size_in_bytes + extra + m.generated_code_size_in_bytes


def out_of_memory(message: str) -> int | None:
    """Bytes that the compiler would have needed, from its error; None if the error has another cause."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    sizes = [
        float(number) * _UNITS[unit]
        for pattern in (
            r"[Tt]otal hbm usage >= ([\d.]+)([KMGT]?)",
            r"Used ([\d.]+)([KMGT]?) of",
            r"\(([\d.]+)([KMGT]?)\)",
        )
        for number, unit in re.findall(pattern.replace("SIZE", r"([\d.]+)([KMGT]?)"), message)[:1]
    ]
    return round(max(sizes)) if sizes else None


def _cache_file(text: str, slice_name: str, program: Program) -> pathlib.Path:
    versions = [_version(name) for name in ("jax", "jaxlib", "libtpu", *gpu.PACKAGES.values())]
    options = [os.environ.get("LIBTPU_INIT_ARGS", ""), program.options]
    parts = [str(_FORM), *versions, *options, slice_name, str(program.passes), str(program.per_token), text]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return home / "ropd_jax" / "plan" / f"{key[:32]}.json"


def _version(package: str) -> str:
    """The version of a package; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(file: pathlib.Path) -> Compiled:
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["collectives"] = _collectives(raw["collectives"])
    if loop := raw["loop"]:
        raw["loop"] = Work(**loop | {"collectives": _collectives(loop["collectives"])})
    return Compiled(**raw)


def _collectives(raw: list[dict[str, Any]]) -> tuple[Collective, ...]:
    return tuple(Collective(**c) for c in raw)


def _write(file: pathlib.Path, found: Compiled) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    part.replace(file)

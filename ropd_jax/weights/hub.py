"""Checkpoints on the Hugging Face Hub, by their id: ``Qwen/Qwen3-4B``, or ``Qwen/Qwen3-4B@revision``. Imports no jax.

`huggingface_hub` downloads into its own cache (``HF_HOME``), once, and resumes interrupted downloads.
``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` have their usual meaning.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re

from ropd_jax.types import UserError

log = logging.getLogger(__name__)
ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
SMALL = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")  # config and tokenizer
WEIGHTS = ("*.safetensors",)  # never *.bin or *.pth: pickles of the same numbers
IGNORED = ("*/*",)  # folders: other formats, original checkpoints


def is_id(name: str) -> bool:
    """True if a name, which is not a local file, can name a repository."""
    return ID.fullmatch(name) is not None and not pathlib.Path(name).parent.is_dir()


def fetch(name: str, *, weights: bool = True, key: str = "student.checkpoint") -> pathlib.Path:
    """The local directory of a repository, downloaded if it is not in the cache.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        weights: False fetches only config and tokenizer.
        key: of the config, for messages.

    Raises:
        UserError: gated, not found, offline, unreachable, or no disk space, with the remedy and without any token.
    """
    from huggingface_hub import constants, errors, snapshot_download

    found = ID.fullmatch(name)
    assert found is not None, name
    repo, revision = found["repo"], found["revision"]
    log.info("looking for %s in %s and on %s", name, constants.HF_HUB_CACHE, constants.ENDPOINT)
    what = f"{key}={name!r}"
    try:
        return pathlib.Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*SMALL, *(WEIGHTS if weights else ())],
                ignore_patterns=list(IGNORED),
            )
        )
    except errors.GatedRepoError as e:
        raise UserError(
            f"{what} is gated: accept its terms at {constants.ENDPOINT}/{repo} and set HF_TOKEN to a token of that "
            "account"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise UserError(
            f"{what} is not a local path, and {constants.ENDPOINT} has no such repository, or it is private; "
            "check the name, or set HF_TOKEN"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise UserError(f"{what}: {repo} has no revision {revision!r}; choose a branch, tag or commit of it") from e
    except errors.LocalEntryNotFoundError as e:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what} is not a local file or directory and not (fully) in the cache {constants.HF_HUB_CACHE}, and "
                f"HF_HUB_OFFLINE forbids downloads; unset that, or download it elsewhere: hf download {repo}"
            ) from e
        raise UserError(
            f"{what} is not in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be reached "
            f"({_short(e)}); try again, or set HF_ENDPOINT to a mirror"
        ) from e
    except (errors.HTTPError, errors.HFValidationError, OSError) as e:
        raise UserError(f"{what} cannot be fetched ({_short(e)}); the same command resumes the download") from e


def _short(error: BaseException) -> str:
    """The cause in one line, with all tokens removed."""
    text = " ".join(str(error.__cause__ or error).split())[:200]
    token = os.environ.get("HF_TOKEN")
    return text.replace(token, "***") if token else text

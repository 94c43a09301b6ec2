"""Files in buckets: two real protocols on loopback, and ``memory://``."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from ropd_jax.types import UserError
from ropd_jax.utils import buckets, paths
from ropd_jax.utils.files import numbered_rows, write_atomic
from tests.buckets import gcs, s3

PLACES = {"gs": gcs, "s3": s3, "memory": lambda: "memory://bkt"}
_numbers = itertools.count()


@pytest.fixture(params=PLACES)
def url(request, tmp_path, monkeypatch):
    """An empty folder of a bucket; the cache is the test's own."""
    monkeypatch.setenv("ROPD_CACHE", str(tmp_path / "cache"))
    return f"{PLACES[request.param]()}/test{next(_numbers)}"


def text_at(url):
    return buckets.prepare(url).cat_file(url).decode()


def test_a_file_written_to_a_url_is_read_back_and_a_new_version_is_seen(url):
    write_atomic(f"{url}/rows.jsonl", '{"a": 1}\n')
    assert list(numbered_rows(f"{url}/rows.jsonl")) == [(1, {"a": 1})]
    write_atomic(f"{url}/rows.jsonl", '{"a": 1}\n{"a": 2}\n')
    assert [row["a"] for _, row in numbered_rows(f"{url}/rows.jsonl")] == [1, 2]


def test_only_what_was_added_is_sent_again(url, monkeypatch):
    fs = buckets.prepare(url)
    part = buckets.S3_PART if url.startswith("s3") else 1000
    begin, tail = "a" * part, "\nthe tail\n"
    write_atomic(f"{url}/log", begin)
    sent, pipe_file = [], fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda name, data: (sent.append(data), pipe_file(name, data)))
    buckets.append(f"{url}/log", tail.encode())
    assert text_at(f"{url}/log") == begin + tail
    assert sent == ([tail.encode()] if url.startswith("gs") else [])  # s3fs: a copied part and a new one
    assert list(buckets.listing(url)) == ["log"]


def test_a_directory_is_copied_with_its_folders_and_only_what_changed_is_copied_again(url, monkeypatch):
    for name in ("config.json", "deep/er/x.txt"):
        write_atomic(f"{url}/set/{name}", name)
    place = paths.local_file(f"{url}/set")
    assert (place / "config.json").read_text() == "config.json" and (place / "deep/er/x.txt").is_file()
    write_atomic(f"{url}/set/config.json", "another")
    fetched = []
    monkeypatch.setattr(
        buckets, "fetch", lambda fs, files, real=buckets.fetch: (fetched.extend(files), real(fs, files))
    )
    assert (paths.local_file(f"{url}/set") / "config.json").read_text() == "another"
    assert len(fetched) == 1


def test_what_is_written_is_uploaded_also_after_an_error(url):
    with contextlib.suppress(ZeroDivisionError), paths.written(f"{url}/out") as place:
        write_atomic(place / "answers.jsonl", "paid for\n")
        raise ZeroDivisionError
    assert text_at(f"{url}/out/answers.jsonl") == "paid for\n"
    with paths.written(f"{url}/out", earlier=("answers.jsonl",)) as place:
        assert (place / "answers.jsonl").read_text() == "paid for\n"


def test_a_pattern_finds_files_in_order(url):
    for name in ("b", "a"):
        write_atomic(f"{url}/q_{name}.jsonl", "")
    assert paths.matching(f"{url}/q_*.jsonl") == [f"{url}/q_a.jsonl", f"{url}/q_b.jsonl"]


def test_what_is_not_there_is_one_line(url):
    scheme = url.partition("://")[0]
    urls = [f"{url}/none", f"{scheme}://no-such-bucket/a/b"]
    for missing in urls:
        for read in (paths.local_file, paths.local_run):
            with pytest.raises(UserError, match=missing) as error:
                read(missing)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("text, words", [
    ("gs:///a", "names no bucket"),
    ("http://host/a", "http:// is not supported; expected a local path, gs:// or s3://"),
    ("memory://a/b", "memory:// is not supported"),
    ("gs:/bkt/a", "lacks a slash; write gs://bkt/a"),
])  # fmt: skip
def test_a_url_that_cannot_be_a_place_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        paths.as_path(text, "--workdir")


@pytest.mark.parametrize("url, words", [
    ("gs://bkt/a", r"needs the package gcsfs, which is not installed: pip install 'ropd_jax\[gcs\]'"),
    ("s3://bkt/a", r"needs the package s3fs, which is not installed: pip install 'ropd_jax\[s3\]'"),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(url, words, monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    for use in (paths.as_path, paths.local_file, paths.local_run):
        with pytest.raises(UserError, match=words):
            use(url)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (paths.as_path, paths.local_file, paths.local_run, lambda p: paths.only_local(p, "--to")):
        assert str(place("~/x")) == str(tmp_path / "x")
    with paths.written("~/x") as place:
        assert str(place) == str(tmp_path / "x")
    write_atomic("~/y.json", "1")
    assert (tmp_path / "y.json").read_text() == "1"

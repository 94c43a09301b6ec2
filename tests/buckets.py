"""Bucket servers on loopback, one of each kind for a process of tests: Google's protocol and Amazon's."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import logging
import os
import socket
import threading
import urllib.request

import pytest


def _free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


@functools.cache
def gcs() -> str:
    """Starts a server for ``gs://bkt`` and points every client at it; returns the bucket."""
    objects = pytest.importorskip("gcp_storage_emulator.handlers.objects")
    pytest.importorskip("gcsfs")
    objects.download = _with_generation(objects.download)
    server_module = importlib.import_module("gcp_storage_emulator.server")
    server_module.Router.handle = _one_at_a_time(server_module.Router.handle)
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    os.environ |= {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "NO_GCE_CHECK": "true",
    }
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # a line for each request
    server = server_module.create_server("127.0.0.1", port, in_memory=True, default_bucket="bkt")
    server._api.daemon = True  # or the end of Python waits for it, before it calls what atexit knows
    server.start()
    atexit.register(server.stop)
    return "gs://bkt"


def _one_at_a_time(handle):
    """The server has a thread for each connection, and its threads change the same dicts: a listing fails if an object
    is written meanwhile, and a removal loses such an object."""
    lock = threading.Lock()

    def locked(*args, **options):
        with lock:
            return handle(*args, **options)

    return locked


def _with_generation(download):
    """The server leaves out a header that Google sends, and that tensorstore needs if it reads while it writes."""

    def handler(request, response, storage, *args, **options):
        with contextlib.suppress(Exception):
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]
        return download(request, response, storage, *args, **options)

    return handler


@functools.cache
def s3() -> str:
    """Starts a server for ``s3://bkt`` and points every client at it; returns the bucket."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    port = _free_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = server_module.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    atexit.register(server.stop)
    request = urllib.request.Request(f"http://127.0.0.1:{port}/bkt", method="PUT")
    urllib.request.urlopen(request).close()
    return "s3://bkt"

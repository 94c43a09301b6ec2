"""Reports in one line what keeps this machine from reaching a service: proxies, certificates, ports, names.

ALL_PROXY=socks5://...        the HTTP library does not support SOCKS      when a client is created
SSL_CERT_FILE=/gone.pem       the file does not exist                      when a client is created
https://localhost:8000        the server speaks http                       on a call
an in-house certificate       not signed by a trusted authority            on a call
http://techer:8000            the host is unknown                          on a call, which is retried
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import urllib.parse
from collections.abc import Iterator

from ropd_jax.teacher.clients.endpoint import is_loopback, shown_address
from ropd_jax.teacher.clients.errors import ConfigurationError, TeacherError, TransientError

_SCHEMES = ("http", "https", "socks5", "socks5h")
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_PLAIN = re.compile(r"wrong.version.number|record.layer.failure|http.request|unknown.protocol", re.IGNORECASE)


def is_direct(base_url: str) -> bool:
    """True if an address is reached without a proxy: plain http on this machine, regardless of ALL_PROXY."""
    return base_url.startswith("http://") and is_loopback(base_url)


@contextlib.contextmanager
def environment(provider: str, *, proxies: bool = True) -> Iterator[None]:
    """Turns errors from creating an HTTP client into a ``ConfigurationError`` that names the variable.

    Args:
        proxies: True if the client uses the proxies in the environment.
    """
    for variable, value in _proxies() if proxies else ():
        if not _is_proxy(value):
            raise ConfigurationError(
                f"{provider}: {variable}={shown_address(value)} cannot be used as a proxy; expected http://host:port. "
                "Correct or unset the variable",
                cause="proxy",
            )
    for name in _CERTIFICATES:
        path = os.environ.get(name, "")
        if path and not any(map(os.path.exists, path.split(os.pathsep))):  # can be a list of directories
            raise ConfigurationError(
                f"{provider}: the environment variable {name} is {path!r}, which does not exist; expected certificates "
                f"in PEM format. Correct it, or unset {name}",
                cause="certificate",
            )
    try:
        yield
    except ImportError as e:
        if "socks" not in str(e).lower():
            raise
        raise ConfigurationError(
            f"{provider}: {_proxy_shown('socks')} is a SOCKS proxy, which needs the package socksio (pip install "
            "socksio). Install it, unset the variable, or use an http:// proxy",
            cause="proxy",
        ) from None
    except (ssl.SSLError, OSError) as e:
        name = next((name for name in _CERTIFICATES if os.environ.get(name)), "SSL_CERT_FILE")
        why = getattr(e, "reason", None) or e.strerror or type(e).__name__
        raise ConfigurationError(
            f"{provider}: the certificates cannot be read ({why}); {name} is {os.environ.get(name, '')!r}. Expected a "
            "file in PEM format",
            cause="certificate",
        ) from None


def unreachable(error: BaseException, provider: str, where: str) -> TeacherError:
    """The typed failure of a connection that could not be made or that broke.

    Args:
        error: the HTTP library's error; the system's own error is searched for among its causes.
        where: the address in its shown form.
    """
    causes = list(_chain(error))
    text = " ".join(str(e) for e in causes)
    proxy = "" if is_direct(where) else _proxy_shown()
    head = f"{provider}: cannot reach {where}"
    host = urllib.parse.urlsplit(where).hostname if "://" in where else where
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in causes) or "CERTIFICATE_VERIFY_FAILED" in text:
        why = next((e.verify_message for e in causes if isinstance(e, ssl.SSLCertVerificationError)), "")
        return ConfigurationError(
            f"{head}: its certificate is not trusted ({why or 'verification failed'}). Set SSL_CERT_FILE to a PEM file "
            "with the certificate of the authority that signed it",
            cause="certificate",
        )
    if any(isinstance(e, ssl.SSLError) for e in causes) and _PLAIN.search(text):
        return ConfigurationError(f"{head}: the server does not speak https; expected http://...", cause="address")
    if any(type(e).__name__ == "ProxyError" for e in causes):
        return ConfigurationError(f"{head}: {proxy or 'the proxy'} refused the connection", cause="proxy")
    if any(type(e).__name__ in ("UnsupportedProtocol", "InvalidURL", "LocalProtocolError") for e in causes):
        return ConfigurationError(f"{head}: this is not a server address; expected http://host:port", cause="address")
    if any("timeout" in type(e).__name__.lower() for e in causes):
        return TransientError(f"{head}: no answer in time", cause="timeout")
    if any(isinstance(e, socket.gaierror) for e in causes):
        return TransientError(
            f"{head}: the host {host!r} has no known address (DNS){f', through {proxy}' if proxy else ''}",
            cause="connection",
        )
    if any(isinstance(e, ConnectionRefusedError) for e in causes):
        what = f"nothing listens at the proxy {proxy}" if proxy else "nothing listens on this port"
        return TransientError(f"{head}: {what}", cause="connection")
    kind = next((type(e).__name__ for e in causes if isinstance(e, OSError)), type(error).__name__)
    return TransientError(f"{head} ({kind})", cause="connection")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        queue += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def _proxies() -> Iterator[tuple[str, str]]:
    """The variables that name a proxy, with their values."""
    for name in _PROXIES:
        for variable in (name, name.lower()):
            if value := os.environ.get(variable, ""):
                yield variable, value


def _proxy_shown(scheme: str = "") -> str:
    """The variable that names a proxy, with its address without the password, or ""."""
    found = ((variable, value) for variable, value in _proxies() if scheme in value)
    return next((f"{variable}={shown_address(value)}" for variable, value in found), "")


def _is_proxy(value: str) -> bool:
    """True if the HTTP library can use the value as a proxy's address."""
    try:
        parts = urllib.parse.urlsplit(value if "://" in value else f"http://{value}")
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # one bracket too many, a port that is not a number
        return False

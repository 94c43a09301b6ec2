"""An unreachable service is reported in one line with the cause: proxies, certificates, ports, names."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl

import pytest
from aiohttp import web

from ropd_jax.teacher import ChatRequest, ConfigurationError, TransientError, make_client
from ropd_jax.types import Message, UserError
from tests.teacher.services.forms import completion, generated

PROVIDERS = ["openai", "gemini"]
ELSEWHERE = "http://teacher.invalid:8000/v1"
VARIABLES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment-0123456789")
    monkeypatch.setenv("GEMINI_API_KEY", "sk-environment-0123456789")


def ask(provider, address):
    """One call, through the real SDK."""

    async def run():
        client = make_client(provider=provider, base_url=address, attempts=1, timeout_s=5.0)
        try:
            return (await client.chat(ChatRequest("verify", (Message("user", "x"),), "m"))).text
        finally:
            await client.close()

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def server(context=None):
    """A server that answers both formats; yields its port."""

    async def answer(http):
        return web.json_response(completion() if "chat" in http.path else generated())

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def ask_server(provider, scheme, context=None):
    async def run():
        async with server(context) as port:
            client = make_client(provider=provider, base_url=f"{scheme}://127.0.0.1:{port}", attempts=1, timeout_s=5.0)
            try:
                return (await client.chat(ChatRequest("verify", (Message("user", "x"),), "m"))).text
            finally:
                await client.close()

    return asyncio.run(run())


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "variable, value, words",
    [
        ("ALL_PROXY", "socks5://me:x7y9q@127.0.0.1:1080", r"ALL_PROXY=socks5://127\.0\.0\.1:1080 .*SOCKS.*socksio"),
        ("https_proxy", "socks5h://127.0.0.1:1080", r"https_proxy=socks5h://127\.0\.0\.1:1080 .*SOCKS"),
        ("HTTP_PROXY", "http://127.0.0.1:port", r"HTTP_PROXY=http://127\.0\.0\.1:port cannot be used as a proxy"),
        ("HTTP_PROXY", "ftp://127.0.0.1:21", r"HTTP_PROXY=ftp://127\.0\.0\.1:21 cannot be used as a proxy"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", r"SSL_CERT_FILE is '/nowhere/ca\.pem', which does not exist"),
        ("SSL_CERT_DIR", "/nowhere:/else", r"SSL_CERT_DIR is '/nowhere:/else', which does not exist"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_when_the_client_is_made(provider, variable, value, words, monkeypatch):
    if "socks" in value:
        pytest.importorskip("httpx2")
        with contextlib.suppress(ImportError):
            import socksio  # noqa: F401

            pytest.skip("socksio is installed")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=words) as e:
        make_client(provider=provider, base_url=ELSEWHERE)
    assert isinstance(e.value, UserError) and "\n" not in str(e.value) and "x7y9q" not in str(e.value)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_file_without_certificates_is_named(provider, monkeypatch, tmp_path):
    (tmp_path / "ca.pem").write_text("not a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE is .*ca\.pem'. Expected a file in PEM format") as e:
        make_client(provider=provider, base_url="https://teacher.invalid/v1")
    assert e.value.cause == "certificate"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://127.0.0.1:1"])
def test_a_server_on_this_machine_is_reached_without_a_proxy(provider, proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert ask_server(provider, "http") == "four"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_host_that_nobody_knows_is_a_name_problem_and_worth_another_try(provider):
    with pytest.raises(
        TransientError, match=r"cannot reach http://teacher\.invalid.*'teacher\.invalid' has no known addr"
    ) as e:
        ask(provider, ELSEWHERE)
    assert e.value.cause == "connection"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_proxy_that_is_down_is_named(provider, monkeypatch, unused_port):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:x7y9q@127.0.0.1:{unused_port}")
    with pytest.raises(
        TransientError, match=rf"nothing listens at the proxy HTTP_PROXY=http://127.*{unused_port}"
    ) as e:
        ask(provider, ELSEWHERE)
    assert "x7y9q" not in str(e.value)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_port_without_a_server_is_named(provider, unused_port):
    with pytest.raises(TransientError, match=rf"127\.0\.0\.1:{unused_port}.*nothing listens on this port"):
        ask(provider, f"http://127.0.0.1:{unused_port}/v1")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("port", ["0", "65536", "-1", "80a"])
def test_a_port_that_cannot_be_one_is_refused_before_anything_is_sent(provider, port):
    with pytest.raises(ConfigurationError, match=r"teacher\.base_url is .*a port from 1 to 65535"):
        make_client(provider=provider, base_url=f"http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_https_to_a_server_without_it_is_a_configuration_error(provider):
    with pytest.raises(ConfigurationError, match=r"does not speak https; expected http://") as e:
        ask_server(provider, "https")
    assert e.value.cause == "address"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(server's TLS context, path of the certificate): self-signed, for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509")
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, path.with_suffix(".key"))
    return context, path


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_certificate_that_is_not_trusted_is_a_configuration_error(provider, certificate):
    with pytest.raises(ConfigurationError, match=r"certificate is not trusted \(.*Set SSL_CERT_FILE") as e:
        ask_server(provider, "https", certificate[0])
    assert e.value.cause == "certificate" and "\n" not in str(e.value)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_ssl_cert_file_makes_it_trusted(provider, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    assert ask_server(provider, "https", certificate[0]) == "four"

"""The gateway's own TLS: HTTPS where it has a certificate, and beyond loopback nothing else."""

import asyncio
import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.process import running
from gateway.settings import Settings
from mesh.settings import SettingsError
from mesh.transport import Transport
from tests.contract.gateway_harness import SECRET
from tests.support.certificates import Peers


def settings(listen: str, **given: Any) -> Settings:
    return Settings("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1", listen, SECRET, **given)


async def test_with_a_certificate_it_speaks_https_and_nothing_else(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    # Any certificate for a name that the buyer's browser knows; here that of a service.
    files = peers.certify("inventory")
    told = settings("127.0.0.1:0", tls_certificate=str(files.certificate), tls_key=str(files.key))
    context = ssl.create_default_context(cafile=str(files.authorities))
    async with running(told) as gateway:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.port, ssl=context, server_hostname="inventory.flashsale"
        )
        expiry = writer.get_extra_info("peercert")["notAfter"]
        assert ssl.cert_time_to_seconds(expiry) > datetime.now(UTC).timestamp()
        text = (await asyncio.to_thread(gateway.metrics.text)).decode()
        (line,) = re.findall(r"^gateway_certificate_expiry_timestamp_seconds (\S+)$", text, re.M)
        assert float(line) == ssl.cert_time_to_seconds(expiry)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 503")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/")
        writer.close()


async def test_beyond_loopback_it_needs_a_certificate_or_to_be_told() -> None:
    told = settings("0.0.0.0:0", shared_secret_anywhere=True)
    with pytest.raises(SettingsError, match=r"GATEWAY_LISTEN: 0\.0\.0\.0:0 is not on loopback.*MESH_ALLOW_PLAINTEXT"):
        async with running(told):
            pass
    async with running(told, Transport(allow_plaintext=True)) as gateway:
        assert gateway.port


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_TLS_CERTIFICATE, GATEWAY_TLS_KEY"):
        settings("127.0.0.1:0", tls_key="key.pem")


async def test_a_certificate_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    files = Peers(tmp_path).certify("inventory")
    told = settings("127.0.0.1:0", tls_certificate=str(files.certificate), tls_key=str(files.key))
    files.certificate.write_text("none")
    with pytest.raises(SettingsError, match=r"GATEWAY_TLS_CERTIFICATE: .*certificate\.pem cannot be read"):
        async with running(told):
            pass

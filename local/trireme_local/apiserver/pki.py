"""The cluster's certificate authority, serving certificate and service-account signing key."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = timedelta(days=3650)
_DNS_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def _write(path: Path, data: bytes, mode: int) -> None:
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_bytes(data)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The form in which client-go's keyutil.ParsePublicKeysPEM reads it: of a PKCS8 file it takes RSA keys only."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    moment = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(hours=1))
        .not_valid_after(moment + _VALID)
    )


class Pki:
    """Files under `folder`, made on first use: ca.crt, ca.key, apiserver.crt, apiserver.key, sa.key, sa.pub."""

    def __init__(self, folder: Path, addresses: tuple[str, ...] = ("127.0.0.1",)) -> None:
        self.folder = folder
        self.ca_path = folder / "ca.crt"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.ca_path.exists():
            self._create_authority()
        if not (folder / "apiserver.crt").exists():
            self._create_serving(addresses)
        if not (folder / "sa.key").exists():
            _write(folder / "sa.key", _key_bytes(ec.generate_private_key(ec.SECP256R1())), 0o600)
        if not (folder / "sa.pub").exists():
            _write(folder / "sa.pub", _public_key_bytes(self.signing_key()), 0o644)

    def _create_authority(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("trireme-local-ca")
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(self.folder / "ca.key", _key_bytes(key), 0o600)
        _write(self.ca_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def _create_serving(self, addresses: tuple[str, ...]) -> None:
        authority = x509.load_pem_x509_certificate(self.ca_path.read_bytes())
        signer = serialization.load_pem_private_key((self.folder / "ca.key").read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in _DNS_NAMES]
        hosts = dict.fromkeys([*addresses, "127.0.0.1", "10.96.0.1"])
        names += [x509.IPAddress(ipaddress.ip_address(host)) for host in hosts]
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        certificate = (
            _builder(_name("kube-apiserver"), authority.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(signer, hashes.SHA256())
        )
        _write(self.folder / "apiserver.key", _key_bytes(key), 0o600)
        _write(self.folder / "apiserver.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def server_context(self) -> ssl.SSLContext:
        """The TLS context of the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "apiserver.crt", self.folder / "apiserver.key")
        return context

    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that signs service-account tokens."""
        key = serialization.load_pem_private_key((self.folder / "sa.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

"""Hosts and ports: what a client calls, and what a certificate is for."""

import ipaddress
import re

from cryptography import x509

from ist_fed.errors import PkiError

LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
LOCAL = ("localhost", "127.0.0.1", "::1")


def general_name(host: str) -> x509.DNSName | x509.IPAddress:
    """A host as a certificate names it.

    Raises:
        PkiError: it is neither the name of a host nor an IP address that can be called.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if len(host) > 253 or not re.fullmatch(rf"({LABEL}\.)*(?![0-9]+$){LABEL}", host):
            raise PkiError(
                f"a host is a DNS name (letters, digits, '-' and '.') or an IP address, but is {host[:80]!r}"
            ) from None
        return x509.DNSName(host.lower())
    if address.is_unspecified or address.is_multicast or "%" in host:
        raise PkiError(f"clients must be able to call the host, but nobody can call '{host}'; name one they can reach")
    return x509.IPAddress(address)


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[IPv6]:port` as host and port.

    Raises:
        PkiError: it is none, or nobody can call the host.
    """
    host, port = split_port(address)
    general_name(host)
    return host, port


def split_port(address: str, what: str = "an address") -> tuple[str, int]:
    """The same of any host, as of one that means every interface.

    Args:
        address: to be split.
        what: it is, as the refusal calls it.

    Raises:
        PkiError: it is not host and port.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[3]) < 65536:
        lacks = ", without a port" if re.fullmatch(r"(?![0-9]*$)(\[.*\]|[^:]+)", address) else ""
        raise PkiError(f"{what} is 'host:port', with a port from 1 to 65535, but is {address[:80]!r}{lacks}")
    return match[1] or match[2], int(match[3])


def join_address(host: str, port: int) -> str:
    """`host:port`, with the brackets that an IPv6 address needs."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    split_address(address)
    return address

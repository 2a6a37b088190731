"""Identity: who the server is, which clients it admits, and how either proves it.

The server's side, a folder of its own:

federation/
  federation.json            its name, and the address that clients call
  ca/ca.key, ca.pem          the certificate authority; the key is encrypted with a passphrase
  server/server.key, .pem    what the gRPC server shows; replaced by `rotate_server`
  clients/NAME.json          one record a client; never removed, so that a number is never given twice

A client's side, wherever it runs: NAME.key (which never leaves), NAME.pub, NAME.request.json, NAME.kit.json.

The client makes a request, the server approves it, and the kit that comes back says whom to call and whom to trust.
"""

from ist_fed.pki.federation import Federation
from ist_fed.pki.kit import Kit, open_kit
from ist_fed.pki.members import Member
from ist_fed.pki.request import make_request

__all__ = ["Federation", "Kit", "Member", "make_request", "open_kit"]

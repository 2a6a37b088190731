"""Large subnets between server and client in one gRPC stream each way, beside Flower's messages.

Flower takes a message to pieces and puts them into a database, from which they are asked for one by one: that carries
a hundred megabytes in a dozen seconds, and holds them several times. Here a message holds a ticket in place of them.
Only its client comes to know it, has the bytes for it from the server's ServerApp itself, and sends its own back.
"""

from ist_fed.engines.streams.grid import StreamingGrid, streaming
from ist_fed.engines.streams.mod import streamed
from ist_fed.engines.streams.place import Place
from ist_fed.engines.streams.service import Service

__all__ = ["Place", "Service", "StreamingGrid", "streamed", "streaming"]

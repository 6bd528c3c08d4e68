"""The gateway for Python services: `Client`, and `AsyncClient` for asyncio. Both do one thing, `unset`.

A call is tried again where the gateway says that may help, where nobody answered, and where the answer was lost; under one
`Idempotency-Key` for all its tries, so that the gateway makes it once. One time limit holds for everything. `call` decides, and
touches nothing; `clients` send, wait and raise. Knows nothing of the rest of the package, so that importing it is cheap.
"""

from gateway.client.call import Fields
from gateway.client.clients import AsyncClient, Client
from gateway.client.errors import Done, GatewayError, RateLimited, Refused, Unavailable, Unknown

__all__ = ["AsyncClient", "Client", "Done", "Fields", "GatewayError", "RateLimited", "Refused", "Unavailable", "Unknown"]
